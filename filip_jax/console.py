"""Output that nobody reads any more stops no training: a lost ssh session, a terminal that was closed."""

import errno
import sys
from collections.abc import Callable
from typing import Any, TextIO


class Lasting:
    """A text stream that drops what can not be written, once its reader is gone."""

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
