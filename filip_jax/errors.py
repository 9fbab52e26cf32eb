"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A wrong config, file, checkpoint or cluster, said in one line that names what to change.

    The command line prints the line and exits with code 2; every other exception is a defect of
    filip_jax and keeps its traceback.
    """
