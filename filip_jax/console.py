"""The one place where text is printed: each line is one, whatever it holds.

Output that nobody reads any more stops no training: a lost ssh session, a terminal that was closed.
"""

import errno
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from filip_jax.plain import printable


def show(*lines: str, file: Any = None) -> None:
    """Print lines, each as `printable` and as the stream's encoding can say it.

    Args:
        file: by default sys.stdout.
    """
    stream = file or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = "\n".join(map(printable, lines)).encode(encoding, "backslashreplace").decode(encoding)
    print(text, file=stream, flush=True)


def show_error() -> None:
    """Print the traceback of the exception that is being handled to stderr."""
    show(*traceback.format_exc().rstrip("\n").split("\n"), file=sys.stderr)


def say_in_any_encoding() -> None:
    """From here on help and messages of libraries, too, stand on terminals that lack some of their characters."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class Lasting:
    """A text stream that drops what cannot be written, once its reader is gone."""

    def __init__(self, stream: TextIO):
        self.stream, self.gone = stream, False

    def write(self, text: str) -> int:
        """As of any stream; raises nothing."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """As of any stream; raises nothing."""
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        if not self.gone:
            try:
                action()
            except OSError as error:  # of a full disk this text alone is lost
                self.gone = error.errno in (errno.EPIPE, errno.EIO, errno.EBADF)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def outlive_readers() -> None:
    """From here on this process's sys.stdout and sys.stderr outlive their readers."""
    sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)
