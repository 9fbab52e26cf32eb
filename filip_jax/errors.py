"""The exceptions for mistakes that a user can mend and for runs that end before their time; what messages look like."""

from filip_jax.redact import redact

LONGEST = 4000  # characters of a message; a value of a megabyte is not shown whole


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


def one_line(text: str) -> str:
    """The text without secrets as one line that any terminal can show, whatever a foreign file's names brought into it.

    Line breaks become blanks, control characters and lone surrogates escapes (no file can colour or clear
    the terminal), and of what is longer than LONGEST the beginning and the end are left.
    """
    text = redact(text)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    text = " ".join(text.split("\n")) if "\n" in text else text
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
