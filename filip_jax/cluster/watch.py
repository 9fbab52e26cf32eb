"""Which phase a run is in: the clock of its table, the limit on each phase, and what signals do.

A thread beside the main one, so that a run whose main thread is deep in a compiler, a collective or
a disk still ends when it is asked to, and does not hang for ever.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from filip_jax.console import show, show_error
from filip_jax.errors import UserError

PREEMPTED = 42  # exit code: the run was asked to stop; started again it goes on
HUNG = 43  # exit code: nothing moved, or a process is gone; started again it goes on
PERIOD = 0.25  # seconds between looks at the clock
QUICK = ("data", "step")  # phases that a hang shows in first
SLOW = ("start", "restore", "compile", "save", "evaluation", "end")  # these may take four times as long
HANG_SECONDS = 1800.0
LAST_WORDS = 4.0  # seconds that each action before an end may take
STOP_SIGNALS = ("SIGTERM", "SIGUSR1")


class Watch:
    """Knows the phase of this process, counts its seconds, and ends the process when it must.

    Attributes:
        seconds: of each phase since the watch began.
        stop: the name of the signal that asked the run to stop, or "".
        unsaved: whether there is anything that a stop would lose; without, a signal ends the process at once.
        handled: whether the main thread is on its way out already.
        on_leave: each is called with the exit code and the last line before the process ends by the watch.
        laggards: says which other processes are behind, for the message of a hang.
        look: called a few times a second.
        hang_seconds: after which a phase of `QUICK` is taken for a hang; others have four times as long.
    """

    def __init__(self):
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.stop, self.unsaved, self.handled = "", False, False
        self.on_leave: list[Callable[[int, str], None]] = []
        self.laggards: Callable[[], str] = lambda: ""
        self.look: Callable[[], None] = lambda: None
        self.hang_seconds = HANG_SECONDS
        self.step = 0
        self._lock = threading.RLock()
        self._phases = [("start", time.monotonic())]
        self._since = time.monotonic()
        self._before: dict[int, Any] = {}
        self._signals: dict[int, str] = {}
        self._ended = False
        self._deadline: tuple[float, str] | None = None

    def begin(self, signals: Sequence[str] = STOP_SIGNALS) -> "Watch":
        """Starts the thread and listens to the signals; call it in the main thread, `end` it there."""
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        if threading.current_thread() is threading.main_thread():
            self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self.listen(signals)
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")
        self._thread.start()
        return self

    def listen(self, signals: Sequence[str]) -> None:
        """These signals ask the run to stop, and no others.

        Raises:
            UserError: an unknown signal.
        """
        check_signals(signals)
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)
            # The handler does nothing: the byte that its call leaves in the pipe reaches the thread at once.
            self._signals = {int(signal.Signals[name]): name for name in signals}
            self._before = {number: signal.signal(number, lambda *_: None) for number in self._signals}

    def end(self) -> None:
        """Stops the thread and gives the signals back."""
        self._ended = True
        self._thread.join()
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup)
        os.close(self._reader)
        os.close(self._writer)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside is of this phase, and of no other around it."""
        self._enter(name)
        try:
            yield
        finally:
            self._leave()

    def set_base(self, name: str) -> None:
        """What happens outside of every phase is of this one."""
        with self._lock:
            self._count()
            self._phases[0] = (name, time.monotonic())

    @contextlib.contextmanager
    def within(self, seconds: float, line: str) -> Iterator[None]:
        """What happens inside ends in so many seconds, or the process does, with this line."""
        self._deadline = (time.monotonic() + seconds, line)
        try:
            yield
        finally:
            self._deadline = None

    def _enter(self, name: str) -> None:
        with self._lock:
            self._count()
            self._phases.append((name, time.monotonic()))

    def _leave(self) -> None:
        with self._lock:
            self._count()
            self._phases.pop()
            name, _ = self._phases[-1]
            self._phases[-1] = (name, time.monotonic())  # what it did before was something

    def _count(self) -> None:
        now = time.monotonic()
        self.seconds[self._phases[-1][0]] += now - self._since
        self._since = now

    def totals(self) -> dict[str, float]:
        """The seconds of each phase until now."""
        with self._lock:
            self._count()
            return dict(self.seconds)

    def move(self, seconds: float, source: str, target: str) -> None:
        """Counts seconds of one phase to another: the wait for data while the devices were busy."""
        with self._lock:
            self.seconds[source] -= seconds
            self.seconds[target] += seconds

    def now(self) -> tuple[str, int, float]:
        """(the phase, the step, the seconds that the phase has taken)."""
        with self._lock:
            name, since = self._phases[-1]
            return name, self.step, time.monotonic() - since

    def set_unsaved(self, unsaved: bool) -> None:
        """Whether a stop would lose anything."""
        with self._lock:
            self.unsaved = unsaved

    def request_stop(self, reason: str) -> None:
        """As if the signal had come: another process was asked to stop."""
        with self._lock:
            self.stop = self.stop or reason

    def leave(self, code: int, line: str) -> None:
        """Ends this process now, whatever its main thread does; never returns."""
        _in_time(lambda: show(line, file=sys.stderr))  # whose reader may be what hangs
        leave(code, line, self.on_leave)

    def _run(self) -> None:
        try:
            self._look_after_the_run()
        except Exception as error:  # without this thread nobody hears signals, or notices a hang
            show_error()
            self.leave(
                HUNG, f"filip: the thread that watches the run failed: {type(error).__name__}: {error}; exit {HUNG}"
            )

    def _look_after_the_run(self) -> None:
        while not self._ended:
            if select.select([self._reader], [], [], PERIOD)[0]:
                for number in os.read(self._reader, 1024):
                    if number in self._signals:
                        self.request_stop(self._signals[number])
            with self._lock:  # the main thread cannot begin to lose anything meanwhile
                if self.stop and not self.unsaved and not self.handled and not self._ended:
                    phase = self._phases[-1][0]
                    self.leave(PREEMPTED, f"filip: {self.stop} in phase {phase}: everything is saved; exit {PREEMPTED}")
            self.look()
            if (deadline := self._deadline) and time.monotonic() > deadline[0]:
                self.leave(HUNG, deadline[1])
            phase, step, seconds = self.now()
            limit = self.hang_seconds * (1 if phase in QUICK else 4)
            if seconds > limit:
                self._hang(phase, step, seconds, limit)

    def _hang(self, phase: str, step: int, seconds: float, limit: float) -> None:
        behind: list[str] = []
        _in_time(lambda: faulthandler.dump_traceback(file=sys.stderr, all_threads=True))
        _in_time(lambda: behind.append(self.laggards()))
        line = (
            f"filip: hang: phase {phase} at step {step} has not ended for {seconds:.0f} s, more than {limit:.0f} "
            f"(processes.hang_seconds={self.hang_seconds:g}){''.join(behind)}; the stacks stand above; exit {HUNG}"
        )
        self.leave(HUNG, line)


def leave(code: int, line: str, actions: Sequence[Callable[[int, str], None]]) -> None:
    """Ends this process without Python's own last acts, which wait for threads and for other processes."""
    for action in actions:
        _in_time(partial(action, code, line))
    _in_time(lambda: [child.kill() for child in multiprocessing.active_children()])
    _in_time(lambda: (sys.stdout.flush(), sys.stderr.flush()))
    os._exit(code)


def _in_time(action: Callable[[], object]) -> None:
    """Runs an action, but does not wait for ever; what it raises is not worth an end that does not come."""

    def run():
        with contextlib.suppress(Exception):
            action()

    with contextlib.suppress(RuntimeError):  # no thread can start any more
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(LAST_WORDS)


def check_signals(names: Sequence[str]) -> None:
    """Raises a UserError for a signal that cannot ask a run to stop."""
    legal = {each.name for each in signal.Signals} - {"SIGKILL", "SIGSTOP", "SIGINT"}
    for name in names:
        if name not in legal:
            raise UserError(f"processes.stop_signals: {name!r} cannot be; for example {', '.join(STOP_SIGNALS)}")
