"""The one exception for mistakes that a user can mend, and the one for runs that were asked to stop."""


class UserError(ValueError):
    """A wrong config, file, checkpoint or cluster, said in one line that names what to change.

    The command line prints the line and exits with code 2; every other exception is a defect of
    filip_jax and keeps its traceback.
    """


class Preempted(Exception):
    """The run was asked to stop, and everything is saved: the command line ends with exit code 42."""
