"""One line of progress, with the time that is left, for work that takes long."""

import sys
import time

from filip_jax.console import show

PERIOD = 5.0  # seconds between lines


_silent = False


def silence() -> None:
    """No more lines of this process: another one does the same work and says how far it is."""
    global _silent
    _silent = True


class Progress:
    """Prints to stderr how far the work is, every few seconds and at the end.

    Args:
        what: the work, as in "indexing shards".
        total: how much there is to do; None if nobody knows.
        done: how much was done before.
    """

    def __init__(self, what: str, total: int | None, done: int = 0):
        self.what, self.total, self.done, self.first = what, total, done, done
        self.started = self.said = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        now = time.monotonic()
        if _silent:
            return
        if now - self.said >= PERIOD or (self.done == self.total and self.said > self.started):
            self.said = now
            rate = (self.done - self.first) / max(now - self.started, 1e-9)
            if self.total is None:
                return show(f"{self.what}: {self.done}  {rate:.0f}/s", file=sys.stderr)
            left = round((self.total - self.done) / max(rate, 1e-9))
            clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
            percent = 100 * self.done // max(self.total, 1)
            line = f"{self.what}: {self.done}/{self.total} ({percent}%)  {rate:.0f}/s  ETA {clock}"
            show(line, file=sys.stderr)

    def spare(self, count: int) -> None:
        """`count` of the total need not be done."""
        if count and self.total is not None:  # the end is said once
            self.total -= count
            self.advance(0)
