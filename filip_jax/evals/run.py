"""The evaluations of a config, on one model."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from filip_jax.checkpoint import Checkpoints
from filip_jax.data.sources import Source, make_source
from filip_jax.errors import UserError
from filip_jax.evals import linear_probe, localisation, pictures, retrieval, zero_shot
from filip_jax.evals.records import check_records
from filip_jax.evals.results import Metrics
from filip_jax.evals.tasks import Task, hashes_of, hashes_of_model
from filip_jax.inference import Embedder
from filip_jax.names import check_name
from filip_jax.sections import check, choose

# Each has evaluate(model, source, output, **options) -> numbers and baselines(source, **options) -> {name: numbers};
# and, if it likes,
#   check_options(**options)  raises a UserError before anything is evaluated;
#   FILES                     names options that may name a file, or a package of data;
#   BASELINE_OPTIONS          names options that baselines alone look at;
#   pages(output, step)       is the files that it drew, without which it is not done;
#   CLIP_BENCHMARK            is CLIP_benchmark's name of the task and {its name of a metric: ours}; its text retrieval
#                             looks for the texts of an image.
# A new kind is a file beside this and a line here.
KINDS = {
    "retrieval": retrieval,
    "zero_shot": zero_shot,
    "linear_probe": linear_probe,
    "localisation": localisation,
    "pictures": pictures,
}

Guard = Callable[[str, Callable[[], Metrics]], Metrics]


@dataclass(frozen=True)
class Eval:
    """One entry of a config's `evals` section, its source opened.

    Attributes:
        section: of the source.
    """

    name: str
    kind: ModuleType
    source: Source
    section: Mapping[str, Any]
    options: Mapping[str, Any]

    @cached_property
    def task(self) -> Task:
        """What its numbers are of, see `hashes_of`. Raises what that raises."""
        options = {
            name: value
            for name, value in self.options.items()
            if name not in getattr(self.kind, "BASELINE_OPTIONS", ())
        }
        return hashes_of(self.kind, self.section, self.source, options)

    @cached_property
    def baseline_task(self) -> str:
        """The hash of what its baselines are of. Raises what `hashes_of` raises."""
        return hashes_of(self.kind, self.section, self.source, self.options)["task"]


def open_evals(evals: Mapping[str, Any]) -> list[Eval]:
    """Every evaluation of an `evals` section, ready to run, its captions looked through.

    Raises:
        UserError: an unknown kind, a source that cannot be opened, a wrong option, an empty caption.
    """
    check_evals(evals)
    return [open_eval(name, **section) for name, section in evals.items()]


def open_eval(name: str, *, kind: str, source: Mapping[str, Any], **options: Any) -> Eval:
    """Return one evaluation; the keyword arguments but `options` are those of every kind."""
    records = make_source(source, f"evals.{name}.source")
    if hasattr(KINDS[kind], "check_options"):
        KINDS[kind].check_options(**options)
    check_records(records, options.get("examples", len(records)), f"evals.{name}")
    return Eval(name, KINDS[kind], records, source, options)


def check_evals(evals: Mapping[str, Any]) -> None:
    """Raises a UserError if a section has no name that can be a file's, an unknown kind or option; opens no data."""
    for name, section in evals.items():
        check_name(name, "evals")
        if not isinstance(section, Mapping):
            raise UserError(f"evals.{name}={section!r} is not a section")
        kind = choose(KINDS, section.get("kind", ""), f"evals.{name}.kind")
        options = {key: value for key, value in section.items() if key != "kind"}
        check(kind.evaluate, options, f"evals.{name}", ("model", "output"))


def run_evals(model: Embedder, evals: Sequence[Eval], workdir: Path, guard: Guard | None = None) -> Metrics:
    """Every evaluation on one model: {"<name>/<metric>": number}.

    Args:
        guard: called with each evaluation's name and a function that runs it; gives its metrics.
    """
    metrics: dict[str, float] = {}
    for each in evals:

        def one(each=each):
            result = each.kind.evaluate(model, each.source, workdir / "pictures" / each.name, **each.options)
            return {f"{each.name}/{metric}": value for metric, value in result.items()}

        metrics |= guard(each.name, one) if guard else one()
    return metrics


def tasks_of(evals: Sequence[Eval], checkpoints: Checkpoints, step: int, config: Mapping[str, Any]) -> dict[str, Task]:
    """What these evaluations of a checkpoint are of, by name; of one whose options name data that is not here nothing.

    Args:
        config: of the run, by which the model is built.
    """
    model, tasks = hashes_of_model(checkpoints, step, config), {}
    for each in evals:
        with contextlib.suppress(UserError, OSError):
            tasks[each.name] = model | each.task
    return tasks


def run_baselines(evals: Sequence[Eval]) -> dict[str, Metrics]:
    """What needs no model: {"chance": {"<name>/<metric>": number}, …}."""
    results: dict[str, Metrics] = {}
    for each in evals:
        for baseline, result in each.kind.baselines(each.source, **each.options).items():
            results.setdefault(baseline, {}).update({f"{each.name}/{metric}": v for metric, v in result.items()})
    return results
