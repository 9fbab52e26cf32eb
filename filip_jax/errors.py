"""The exceptions for mistakes that a user can mend and for runs that end before their time; what messages look like."""

from filip_jax.plain import one_line

__all__ = ["Preempted", "ProcessLost", "UserError", "one_line"]


class UserError(ValueError):
    """A wrong config, file, checkpoint or cluster, said in one line that names what to change.

    The command line prints the line and exits with code 2; every other exception is a defect of
    filip_jax and keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


class Preempted(Exception):
    """The run was asked to stop, and everything is saved: the command line ends with exit code 42."""


class ProcessLost(Exception):
    """A process that the command needs is gone, said in one line with the likely cause.

    The command line ends with exit code 43: the same command goes on.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))
