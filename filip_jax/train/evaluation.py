"""Evaluations beside the training, whose errors the training survives."""

import json
import time
import warnings
from collections.abc import Callable

import jax

from filip_jax.cluster import service
from filip_jax.cluster.watch import HUNG, PREEMPTED, Watch
from filip_jax.console import show, show_error
from filip_jax.errors import ProcessLost, UserError, one_line
from filip_jax.evals.results import Metrics
from filip_jax.files import write_atomically
from filip_jax.small_files import Notes, is_whole, read_json
from filip_jax.workdir import Workdir

FILE = "evaluating.json"  # the step, and how often each evaluation was begun there and not ended
MOST_ATTEMPTS = 3  # an evaluation that ended the process so often is not tried again
ALONE = 120.0  # seconds that a process whose evaluation failed waits for the others


class EvalGuard:
    """Runs one evaluation after the other; an error becomes the metric eval/<name>/error.

    An evaluation that takes the process with it (no memory left, a crash) is remembered in a file,
    and is given up at its third attempt.

    Args:
        fatal: errors are raised instead.
    """

    def __init__(self, workdir: Workdir, watch: Watch, fatal: bool):
        self.workdir, self.file, self.watch, self.fatal = workdir, workdir.folder / FILE, watch, fatal
        self.step = 0
        watch.on_leave.append(self._excuse)

    def __call__(self, name: str, run: Callable[[], Metrics]) -> Metrics:
        """The metrics of an evaluation, or its error.

        Raises:
            UserError: it failed, and that is fatal.
        """
        if service.of_first_process(self._attempt(name)) > MOST_ATTEMPTS:
            error, metrics = f"it ended the process {MOST_ATTEMPTS} times", dict[str, float]()
        else:
            error, metrics = self._try(name, run)
        service.on_first_process(lambda: self._forget(name))
        if not error:
            return metrics
        if self.fatal:
            raise UserError(f"evaluation {name} at step {self.step}: {error}")
        if jax.process_index() == 0:
            show(f"evaluation {name} failed, training goes on: {error}")
        return {f"eval/{name}/error": error}

    def _try(self, name: str, run: Callable[[], Metrics]) -> tuple[str, Metrics]:
        error, metrics = "", {}
        try:
            metrics = run()
        except Exception as caught:
            error = (
                str(caught) if isinstance(caught, (UserError, ProcessLost)) else f"{type(caught).__name__}: {caught}"
            )
            error = one_line(error)
            if not isinstance(caught, (UserError, OSError, ProcessLost)):
                show_error()
        if jax.process_count() == 1:
            return error, metrics
        place = f"evaluated/{self.step}/{name}"
        self._meet(place, name, error)
        found = next(filter(None, service.gather(error)), "")
        service.on_first_process(lambda: service.drop(f"{place}/"))
        return found, metrics

    def _meet(self, place: str, name: str, error: str) -> None:
        """Where one process failed alone, the others wait inside of the evaluation, for ever."""
        service.put(f"{place}/{jax.process_index()}", True)
        end = time.monotonic() + ALONE
        while error and len(service.get_all(place)) < jax.process_count():
            if time.monotonic() > end:
                line = f"filip: evaluation {name} at step {self.step} failed on process {jax.process_index()} alone: {error}"
                self.watch.leave(HUNG, f"{line}; exit {HUNG}")
            time.sleep(service.POLL)

    def _attempt(self, name: str) -> int:
        """Which attempt at this evaluation of this step it is; written down before it begins."""
        if jax.process_index():
            return 0
        attempts = self._attempts()
        attempts[name] = attempts.get(name, 0) + 1
        self._write(attempts)
        return attempts[name]

    def _attempts(self) -> dict[str, int]:
        try:
            before = read_json(self.file, Notes()) if self.file.exists() else {}
        except (UserError, OSError):  # torn, or not ours
            return {}
        attempts = before.get("attempts") if before.get("step") == self.step else {}
        return (
            {name: count for name, count in attempts.items() if is_whole(count)} if isinstance(attempts, dict) else {}
        )

    def _write(self, attempts: dict[str, int]) -> None:
        if not attempts and not self.workdir.is_remote:  # a bucket's copy would come back
            return self.file.unlink(missing_ok=True)
        write_atomically(self.file, json.dumps({"step": self.step, "attempts": attempts}) + "\n")
        try:
            self.workdir.flush()  # a mirror would end with the process
        except OSError as error:
            warnings.warn(f"{error}; the run goes on", stacklevel=2)

    def _forget(self, name: str) -> None:
        """The evaluation has ended, well or not."""
        attempts = self._attempts()
        attempts.pop(name, None)
        self._write(attempts)

    def _excuse(self, code: int, line: str) -> None:
        """A run that was asked to stop in an evaluation does not blame it."""
        if code == PREEMPTED and jax.process_index() == 0:
            self._write({})  # earlier attempts, too: at most three more
