"""Where the numbers of a run go: metrics.jsonl, TensorBoard, and one line of progress."""

import json
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from filip_jax.errors import UserError
from filip_jax.files import write_atomically
from filip_jax.train.input_log import InputLog

FILE = "metrics.jsonl"
FOLDER = "tensorboard"
WAITING = 0.05  # of the time that devices wait for data, above which something should be done
ADVICE = (
    "  the devices wait for data {:.0%} of the time: try more --config.data.workers; "
    "`filip data bench` says where the input's time goes"
)


def say(line: str) -> None:
    """Prints a line for people, once, however many processes run."""
    if jax.process_index() == 0:
        print(line, flush=True)


class MetricWriter:
    """Appends {"step": n, name: value, …} lines; on resume each step stands once.

    Args:
        workdir: the run's folder.
        step: the step that the run resumes from; lines beyond it are removed.
        evaluated: whether the evaluations of that step are complete.
    """

    def __init__(self, workdir: Path, *, step: int, evaluated: bool):
        self.enabled = jax.process_index() == 0
        if not self.enabled:
            return
        file = workdir / FILE
        kept = [line for line in _lines(file) if _stands(line, step, evaluated)]
        write_atomically(file, "".join(json.dumps(line) + "\n" for line in kept))
        self.lines = file.open("a", buffering=1, encoding="utf-8")
        self.events = SummaryWriter(str(workdir / FOLDER), purge_step=step + 1, flush_secs=10)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line, handed to the operating system when the call returns."""
        if self.enabled:
            self.lines.write(json.dumps({"step": step, **metrics}) + "\n")
            for name, value in metrics.items():
                self.events.add_scalar(name, value, step)

    def close(self) -> None:
        if self.enabled:
            self.lines.close()
            self.events.close()


def _lines(file: Path) -> list[dict]:
    """The whole lines of the file; a last one torn by a kill is none."""
    if not file.exists():
        return []
    lines, damaged = [], 0
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            lines += [json.loads(line)] if line.endswith(b"\n") else []
        except ValueError:
            damaged += 1
    if damaged:
        warnings.warn(f"{file}: {damaged} damaged lines are left out", stacklevel=2)
    return lines


def _stands(line: dict, step: int, evaluated: bool) -> bool:
    return line["step"] < step or (line["step"] == step and (evaluated or "train/loss" in line))


class StepLog:
    """Logs the training steps, one behind: step n is waited for when step n + 1 is under way.

    Args:
        batch_size: of the global batch.
        every_steps: which steps are written and shown.
        step: the step that the run starts from.
    """

    def __init__(
        self, writer: MetricWriter, input_log: InputLog, *, batch_size: int, total_steps: int, every_steps: int, step: int
    ):  # fmt: skip
        self.writer, self.input, self.batch_size = writer, input_log, batch_size
        self.total_steps, self.every_steps = total_steps, every_steps
        self.pending: tuple[int, Mapping[str, Any]] | None = None
        self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        """Rates count from here: after a pause that is no training."""
        self.since, self.waited, self.started = step, 0.0, time.perf_counter()

    def push(self, step: int, metrics: Mapping[str, Any], waited: float) -> None:
        """A step that was just dispatched; finishes the one before.

        Args:
            metrics: scalars on the devices.
            waited: seconds that the devices waited for its batch.
        """
        self.waited += waited  # before the window ends that the wait was part of
        self.flush()
        self.pending = (step, metrics)

    def is_idle(self) -> bool:
        """Whether the devices have finished the step dispatched last."""
        return self.pending is None or all(value.is_ready() for value in self.pending[1].values())

    def flush(self) -> None:
        """Waits for the step dispatched last and logs it if it is due.

        Raises:
            UserError: its loss, gradient or parameters are not finite.
        """
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        for name in ("loss", "grad_norm", "param_norm"):
            if not math.isfinite(metrics[f"train/{name}"]):
                raise UserError(
                    f"train/{name} is {metrics[f'train/{name}']} at step {step}: look at the data, or start in a new "
                    "workdir with a lower optimizer.peak_learning_rate; the step is not saved"
                )
        if step % self.every_steps == 0 or step == self.total_steps:
            numbers = {name: float(value) for name, value in metrics.items()} | self._rates(step)
            self.writer.write(step, numbers)
            say(self._line(step, numbers))
            if step > self.every_steps and numbers["time/data_wait_frac"] > WAITING:
                say(ADVICE.format(numbers["time/data_wait_frac"]))
            self.input.restart_window()
            self.restart_clock(step)

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
        cut, bad = numbers["data/text_truncated_frac"], numbers["data/bad_frac"]
        return (
            f"step {step}/{self.total_steps} ({100 * step // self.total_steps}%)"
            f"  loss {numbers['train/loss']:.4f}  lr {numbers['train/lr']:.2e}"
            f"  logit_scale {numbers['train/logit_scale']:.1f}"
            f"  {numbers['train/samples_per_second']:.0f} samples/s"
            f"  data wait {100 * numbers['time/data_wait_frac']:.0f}%"
            + (f"  texts cut {100 * cut:.1f}%" if cut else "")
            + (f"  bad records {100 * bad:.1f}%" if bad else "")
            + f"  ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        )
