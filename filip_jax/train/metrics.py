"""Where the numbers of a run go: metrics.jsonl, TensorBoard, and one line of progress."""

import contextlib
import io
import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from filip_jax.console import show
from filip_jax.errors import UserError
from filip_jax.files import open_to_append, replacing, writing
from filip_jax.logged import FILE, typed_metrics
from filip_jax.small_files import objects_of
from filip_jax.train.goodput import Goodput
from filip_jax.train.input_log import InputLog
from filip_jax.train.tensorboard import Scalars

FOLDER = "tensorboard"
WAITING = 0.05  # of the time that devices wait for data, above which something should be done
ADVICE = (
    "  the devices wait for data {:.0%} of the time: try more --config.data.workers; "
    "`filip data bench` says where the input's time goes"
)


def say(*lines: str) -> None:
    """Prints lines for people, once, however many processes run."""
    if jax.process_index() == 0:
        show(*lines)


class MetricWriter:
    """Appends {"step": n, name: value, …} lines; on resume each step stands once.

    Args:
        workdir: the run's folder.
        step: the step that the run resumes from; lines beyond it are removed.
        evaluated: whether the evaluations of that step are complete.
        also: writes the same elsewhere: write(step, metrics) and close().

    Attributes:
        dropped: the last of the steps' lines that were removed.
    """

    def __init__(self, workdir: Path, *, step: int, evaluated: bool, also: Any = None):
        self.also = also
        self.dropped: dict[str, Any] = {}
        self.enabled = jax.process_index() == 0
        if not self.enabled:
            return
        self.file = file = workdir / FILE
        self._forget_after(step, evaluated)
        if self.dropped and not step:
            reached = self.dropped["step"]
            warnings.warn(
                f"{file} reached step {reached}, but there is no checkpoint: the run begins anew", stacklevel=2
            )
        self.workdir = workdir.stat()
        self._open()
        self.scalars = Scalars(workdir / FOLDER, step + 1)

    def _forget_after(self, step: int, evaluated: bool) -> None:
        """Removes the lines beyond the step, one by one: the log of a long run is larger than what should be held."""
        with replacing(self.file) as beside, beside.open("wb") as kept:
            for line in objects_of(self.file, typed_metrics):
                if _stands(line, step, evaluated):
                    kept.write(json.dumps(line).encode() + b"\n")
                elif "train/loss" in line:
                    self.dropped = line

    def _open(self) -> None:
        self.lines = io.TextIOWrapper(open_to_append(self.file), "utf-8", line_buffering=True)

    def _open_again(self) -> None:
        """Begins the file anew if somebody removed it from the workdir; in another folder of the name it makes none."""
        with contextlib.suppress(FileNotFoundError):
            if not self.file.exists() and os.path.samestat(self.workdir, self.file.parent.stat()):
                warnings.warn(f"{self.file} was removed while the run wrote to it: it begins anew", stacklevel=3)
                self.lines.close()
                self._open()

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        """One line, handed to the operating system when the call returns; texts stand in the file only."""
        if self.enabled:
            self._open_again()
            said = {k: v if isinstance(v, str) or math.isfinite(v) else str(v) for k, v in metrics.items()}
            with writing(self.file):
                self.lines.write(json.dumps({"step": step, **said}) + "\n")
            self.scalars.add(step, {name: value for name, value in metrics.items() if not isinstance(value, str)})
            if self.also:
                self.also.write(step, metrics)

    def close(self) -> None:
        if self.enabled:
            with writing(self.file):
                self.lines.close()
            self.scalars.close()
            if self.also:
                self.also.close()


def _stands(line: dict, step: int, evaluated: bool) -> bool:
    return line["step"] < step or (line["step"] == step and (evaluated or "train/loss" in line))


class StepLog:
    """Logs the training steps, one behind: step n is waited for when step n + 1 is under way.

    Args:
        goodput: where the time goes.
        batch_size: of the global batch.
        every_steps: which steps are written and shown.
        max_skipped: skipped steps in a row that end the run.
        step: the step that the run starts from.
    """

    def __init__(
        self,
        writer: MetricWriter,
        input_log: InputLog,
        goodput: Goodput,
        *,
        batch_size: int,
        total_steps: int,
        every_steps: int,
        max_skipped: int,
        step: int,
    ):
        self.writer, self.input, self.goodput, self.batch_size = writer, input_log, goodput, batch_size
        self.total_steps, self.every_steps, self.max_skipped = total_steps, every_steps, max_skipped
        self.pending: tuple[int, Mapping[str, Any], Mapping[str, Any]] | None = None
        self.notes: dict[str, float] = {}
        self.at_bound: set[str] = set()
        self.advised = False
        self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        """Rates count from here: after a pause that is no training."""
        self.since, self.waited, self.started = step, 0.0, time.perf_counter()

    def push(self, step: int, metrics: Mapping[str, Any], waited: float, rows: Mapping[str, Any]) -> None:
        """A step that was just dispatched; finishes the one before.

        Args:
            metrics: scalars on the devices.
            waited: seconds that the devices waited for its batch.
            rows: this process's rows of the batch: part and index.
        """
        self.waited += waited  # before the window ends that the wait was part of
        self.flush()
        self.pending = (step, metrics, rows)

    def note(self, **numbers: float) -> None:
        """Numbers for the next line: time/<name>."""
        self.notes |= {f"time/{name}": value for name, value in numbers.items()}

    def is_idle(self) -> bool:
        """Whether the devices have finished the step dispatched last."""
        return self.pending is None or all(value.is_ready() for value in self.pending[1].values())

    def flush(self) -> None:
        """Waits for the step dispatched last and logs it if it is due.

        Raises:
            UserError: too many steps in a row were skipped.
        """
        if self.pending is None:
            return
        (step, metrics, rows), self.pending = self.pending, None
        with self.goodput.watch.phase("step"):
            numbers = {name: float(value) for name, value in metrics.items()}
        self.input.log_keys(step, rows)
        if in_a_row := int(numbers.pop("train/skipped_in_a_row")):
            self._skipped(step, in_a_row, numbers, rows)
        self._say_bounds(step, numbers)
        if step % self.every_steps == 0 or step == self.total_steps:
            numbers |= self._rates(step) | self.goodput.metrics() | self.notes
            self.notes = {}
            self.writer.write(step, numbers)
            say(self._line(step, numbers))
            self._advise(step, numbers["time/data_wait_frac"])
            self.input.restart_window()
            self.restart_clock(step)

    def _skipped(self, step: int, in_a_row: int, numbers: Mapping[str, float], rows: Mapping[str, Any]) -> None:
        found = {name: numbers[f"train/{name}"] for name in ("loss", "grad_norm", "param_norm")}
        said = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        file = self.input.name_skipped(step, found, rows)
        say(f"step {step} is skipped ({said}): nothing but the position in the data moves; {file} names its samples")
        if in_a_row >= self.max_skipped:
            raise UserError(
                f"{in_a_row} steps in a row were skipped, the last is step {step} ({said}): start in a new workdir with "
                f"a lower optimizer.peak_learning_rate, look at the samples that {file} names, or raise "
                f"guards.max_skipped={self.max_skipped}; these steps have changed nothing"
            )

    def _advise(self, step: int, waiting: float) -> None:
        """Once for each time that it begins, and not for the first steps, which the pipeline fills up in."""
        if step > self.every_steps and waiting > WAITING and not self.advised:
            say(ADVICE.format(waiting))
        self.advised = waiting > WAITING

    def _say_bounds(self, step: int, numbers: Mapping[str, float]) -> None:
        """Name each parameter of an objective that has come to a bound."""
        names = (name.removeprefix("train/") for name, value in numbers.items() if name.endswith("_at_bound") and value)
        at_bound = {name.removesuffix("_at_bound") for name in names}
        for name in sorted(at_bound - self.at_bound):
            say(f"step {step}: {name} is held at its bound")
        self.at_bound = at_bound

    def _rates(self, step: int) -> dict[str, float]:
        steps, seconds = step - self.since, time.perf_counter() - self.started
        return {
            "train/samples_per_second": steps * self.batch_size / seconds,
            "train/batch_time": seconds / steps,
            "train/samples_seen": step * self.batch_size,
            "time/data_wait_frac": self.waited / seconds,
        } | self.input.fractions()

    def _line(self, step: int, numbers: Mapping[str, float]) -> str:
        left = round((self.total_steps - step) * numbers["train/batch_time"])
        cut, bad, skipped = (
            numbers[name] for name in ("data/text_truncated_frac", "data/bad_frac", "train/skipped_steps")
        )
        return (
            f"step {step}/{self.total_steps} ({100 * step // self.total_steps}%)"
            f"  loss {numbers['train/loss']:.4f}  lr {numbers['train/lr']:.2e}"
            + "".join(f"  {name} {value:.4g}" for name, value in _of_objectives(numbers).items())
            + f"  {numbers['train/samples_per_second']:.0f} samples/s"
            f"  data wait {100 * numbers['time/data_wait_frac']:.0f}%"
            + (f"  texts cut {100 * cut:.1f}%" if cut else "")
            + (f"  bad records {100 * bad:.1f}%" if bad else "")
            + (f"  skipped {skipped:.0f}" if skipped else "")
            + f"  ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        )


def _of_objectives(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return what the line of a step shows of each objective; the loss of a single one is that of the step."""
    own = {name.removeprefix("train/"): value for name, value in numbers.items() if name.count("/") == 2}
    own = {name: value for name, value in own.items() if not name.endswith("_at_bound")}
    losses = [name for name in own if name.endswith("/loss")]
    return {name: value for name, value in own.items() if name not in losses or len(losses) > 1}
