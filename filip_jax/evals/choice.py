"""Which runs and checkpoints are evaluated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip_jax import storage
from filip_jax.console import show
from filip_jax.errors import UserError
from filip_jax.evals.curves import HEADLINES
from filip_jax.saved_config import FILE as CONFIG
from filip_jax.user_paths import from_user

STEPS = ("latest", "all", "best")


@dataclass(frozen=True)
class Choice:
    """Which checkpoints are evaluated, and how.

    Attributes:
        step: "latest", "all", "best" by `metric`, or a number.
        metric: "EVALUATION/metric"; "" is the first of a run's that ends as HEADLINES say.
        again: what is recorded already is evaluated, too.
        watch: waits for more checkpoints until each run has its last one.
        idle_minutes: after so long without a new one the watch ends; 0 is never.
        batch_size: images or texts that go through a tower at once, on each device.
    """

    step: str = "latest"
    metric: str = ""
    again: bool = False
    watch: bool = False
    idle_minutes: float = 0.0
    batch_size: int = 64

    def check(self) -> None:
        """Raises a UserError for a choice that cannot be."""
        if self.step not in STEPS and not self.step.isdecimal():
            raise UserError(f"--step={self.step} is not {', '.join(STEPS)} or a number")
        if self.watch and self.step not in ("latest", "all"):
            raise UserError(f"--step={self.step}: --watch evaluates new checkpoints: take latest or all")
        if self.metric and self.step != "best":
            raise UserError(f"--metric={self.metric} is for --step=best, not {self.step}")
        if self.idle_minutes and not self.watch:
            raise UserError("--idle_minutes is for --watch")
        if not 0 <= self.idle_minutes < float("inf"):
            raise UserError(f"--idle_minutes={self.idle_minutes} must be at least 0 and finite")
        if not 1 <= self.batch_size <= 1 << 20:
            raise UserError(f"--batch_size={self.batch_size} must be at least 1 and at most {1 << 20}")


def find_workdirs(pattern: str) -> list[str]:
    """The workdirs that a pattern matches, sorted; one that is named so literally is no pattern."""
    files = storage.listed(storage.join(pattern.rstrip("/"), CONFIG))
    found = (storage.folder_of(file) for file in files)
    return sorted(folder if storage.is_remote(folder) else from_user(Path(folder)) for folder in found)


def best_step(path: str, recorded_steps: Mapping[str, Mapping[str, Any]], steps: Sequence[int], metric: str) -> int:
    """The step with the best recorded number of a metric among those with a checkpoint; of equal ones the first.

    Args:
        recorded_steps: {"<step>": metrics}, of the same evaluations at all steps.
        steps: that have a checkpoint.
        metric: "" is the first that ends as HEADLINES say.

    Raises:
        UserError: no number of it is recorded.
    """
    numbers = {int(step): metrics for step, metrics in recorded_steps.items()}
    here = [numbers[step] for step in steps if step in numbers]
    known = list(dict.fromkeys(name for metrics in here for name, x in metrics.items() if _is_number(x)))
    known = [name for name in known if name.endswith((*HEADLINES, "loss"))]
    metric = metric or next((name for name in known if name.endswith(HEADLINES)), "")
    sign = -1 if metric.endswith("loss") else 1
    of_metric = {step: sign * metrics[metric] for step, metrics in numbers.items() if _is_number(metrics.get(metric))}
    present = {step: value for step, value in of_metric.items() if step in steps}
    if not present:
        have = f"; known are {', '.join(known)}" if known else ""
        raise UserError(
            f"--step=best: {path} has no number of {metric or 'any evaluation'} for the checkpoints that are there: "
            f"evaluate them with --step=all first{have}"
        )
    best, ever = (max(each, key=lambda step: (each[step], -step)) for each in (present, of_metric))
    said = f"{path}: step {best} is the best of {len(present)} by {metric}: {sign * present[best]:.4g}"
    if of_metric[ever] > present[best]:
        said += f" (step {ever} had {sign * of_metric[ever]:.4g}, but its checkpoint was removed)"
    show(said)
    return best


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def short_names(paths: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [path.split("/") if storage.is_remote(path) else Path(path).resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names
