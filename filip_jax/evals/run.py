"""The evaluations of a config, on one model."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from filip_jax import __version__
from filip_jax.checkpoint import Checkpoints
from filip_jax.data.sources import SOURCES, Source, fingerprint, make_source
from filip_jax.evals import linear_probe, localisation, pictures, retrieval, zero_shot
from filip_jax.evals.records import check_records
from filip_jax.evals.results import Metrics, Task
from filip_jax.inference import Embedder
from filip_jax.sections import check, choose

# Each has evaluate(model, source, output, **options) -> numbers and baselines(source, **options) ->
# {name: numbers}. A new kind is a file beside this and a line here.
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
    """One entry of a config's `evals` section, its source opened."""

    name: str
    kind: ModuleType
    source: Source
    options: Mapping[str, Any]

    @cached_property
    def task(self) -> Task:
        """SHA-256 of what is evaluated: all of it as `task`, its data, class names, prompts, files … by name.

        Two evaluations of one checkpoint with the same `task` give the same numbers.
        """
        parts = {"data": fingerprint(self.source)} | _contents("", self.options)
        if hasattr(self.source, "class_names"):
            parts["class_names"] = _sha256("\n".join(self.source.class_names).encode("utf-8", "surrogateescape"))
        whole = {"kind": self.kind.__name__, "options": _plain(self.options), "version": __version__, "parts": parts}
        return {"task": _sha256(json.dumps(whole, sort_keys=True).encode())} | parts


def _plain(value: Any) -> Any:
    """Options as JSON holds them."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _contents(place: str, options: Mapping[str, Any]) -> dict[str, str]:
    """{where: SHA-256} of the lists, files and sources that options name."""
    found = {}
    for name, value in options.items():
        here = f"{place}{name}"
        if isinstance(value, Mapping) and value.get("name") in SOURCES:
            found[here] = fingerprint(make_source(value, here))
        elif isinstance(value, Mapping):
            found |= _contents(f"{here}.", value)
        elif isinstance(value, (list, tuple)):
            found[here] = _sha256(json.dumps(_plain(value)).encode())
        elif isinstance(value, str) and len(value) < 4096 and Path(value).is_file():
            found[here] = _sha256(Path(value).read_bytes())
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def open_evals(evals: Mapping[str, Mapping[str, Any]]) -> list[Eval]:
    """Every evaluation of an `evals` section, ready to run, its captions looked through.

    Raises:
        UserError: an unknown kind, a source that can not be opened, a wrong option, an empty caption.
    """
    check_evals(evals)
    return [_open(name, **section) for name, section in evals.items()]


def _open(name: str, *, kind: str, source: Mapping[str, Any], **options: Any) -> Eval:
    records = make_source(source, f"evals.{name}.source")
    check_records(records, options.get("examples", len(records)), f"evals.{name}")
    return Eval(name, KINDS[kind], records, options)


def check_evals(evals: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises a UserError if a section has an unknown kind or option; opens no data."""
    for name, section in evals.items():
        kind = choose(KINDS, section.get("kind", ""), f"evals.{name}.kind")
        options = {key: value for key, value in section.items() if key != "kind"}
        check(kind.evaluate, options, f"evals.{name}", ("model", "output"))


def run_evals(model: Embedder, evals: Sequence[Eval], workdir: Path, guard: Guard | None = None) -> Metrics:
    """Every evaluation on one model: {"<name>/<metric>": number}.

    Args:
        guard: called with each evaluation's name and a function that runs it; gives its metrics.
    """
    metrics = {}
    for each in evals:

        def one(each=each):
            result = each.kind.evaluate(model, each.source, workdir / "pictures" / each.name, **each.options)
            return {f"{each.name}/{metric}": value for metric, value in result.items()}

        metrics |= guard(each.name, one) if guard else one()
    return metrics


def tasks_of(evals: Sequence[Eval], checkpoints: Checkpoints, step: int, config: Mapping[str, Any]) -> dict[str, Task]:
    """What these evaluations of a checkpoint are of, by name: each one's `task`, the checkpoint's SHA-256, the model's.

    Args:
        config: of the run, by which the model is built.
    """
    sizes = {name: config["data"][name] for name in ("image_size", "text_length")}
    model = _sha256(json.dumps(_plain(config["model"]) | sizes, sort_keys=True).encode())
    sha256 = checkpoints.sha256(step)
    return {each.name: {"checkpoint": sha256, "model": model} | each.task for each in evals}


def run_baselines(evals: Sequence[Eval]) -> dict[str, Metrics]:
    """What needs no model: {"chance": {"<name>/<metric>": number}, …}."""
    results: dict[str, Metrics] = {}
    for each in evals:
        for baseline, result in each.kind.baselines(each.source, **each.options).items():
            results.setdefault(baseline, {}).update({f"{each.name}/{metric}": v for metric, v in result.items()})
    return results
