"""All evaluations of a config: numbers into evals.json, one table for the eye."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from filip_jax.data.sources import Source, make_source
from filip_jax.errors import UserError
from filip_jax.evals import localisation, pictures, retrieval, zero_shot
from filip_jax.files import write_atomically
from filip_jax.inference import Embedder, Run
from filip_jax.sections import call, check, choose

FILE = "evals.json"
# Each has evaluate(model, source, output, **options) -> numbers and baselines(source, **options) ->
# {name: numbers}. A new kind is a file beside this and a line here.
KINDS = {"retrieval": retrieval, "zero_shot": zero_shot, "localisation": localisation, "pictures": pictures}

Metrics = dict[str, float]


@dataclass(frozen=True)
class Eval:
    """One entry of a config's `evals` section, its source opened."""

    name: str
    kind: ModuleType
    source: Source
    options: Mapping[str, Any]


def open_evals(evals: Mapping[str, Mapping[str, Any]]) -> list[Eval]:
    """Every evaluation of an `evals` section, ready to run.

    Raises:
        UserError: an unknown kind, a source that can not be opened, a wrong option.
    """
    return [call(_open, section, f"evals.{name}", name=name) for name, section in evals.items()]


def _open(name: str, *, kind: str, source: Mapping[str, Any], **options: Any) -> Eval:
    module = choose(KINDS, kind, f"evals.{name}.kind")
    check(module.evaluate, options, f"evals.{name}", ("model", "source", "output"))
    return Eval(name, module, make_source(source, f"evals.{name}.source"), options)


def run_evals(model: Embedder, evals: Sequence[Eval], workdir: Path) -> Metrics:
    """Every evaluation on one model: {"<name>/<metric>": number}."""
    metrics = {}
    for each in evals:
        result = each.kind.evaluate(model, each.source, workdir / "pictures" / each.name, **each.options)
        metrics |= {f"{each.name}/{metric}": value for metric, value in result.items()}
    return metrics


def run_baselines(evals: Sequence[Eval]) -> dict[str, Metrics]:
    """What needs no model: {"chance": {"<name>/<metric>": number}, …}."""
    results: dict[str, Metrics] = {}
    for each in evals:
        for baseline, result in each.kind.baselines(each.source, **each.options).items():
            results.setdefault(baseline, {}).update({f"{each.name}/{metric}": v for metric, v in result.items()})
    return results


def evaluate_runs(workdirs: Sequence[Path], step: str, evals: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Evaluates checkpoints of runs and their baselines, records the numbers, and gives one table.

    Args:
        step: "latest", "all" or a number.
        evals: instead of each run's own.

    Raises:
        UserError: no run, no such checkpoint, or an evaluation that can not be.
    """
    columns: dict[str, Metrics] = {}
    baselines: dict[str, Metrics] = {}
    for workdir in workdirs:
        run = Run(workdir)
        wanted = open_evals(run.config["evals"] if evals is None else evals)
        for number in _steps(run, step):
            print(f"{workdir} at step {number}: {', '.join(each.name for each in wanted)} ...", flush=True)
            columns[f"{workdir.name}, step {number}"] = metrics = run_evals(run.load(number), wanted, workdir)
            record_step(workdir, number, metrics)
        of_run = run_baselines(wanted)
        record_baselines(workdir, of_run)
        baselines |= of_run
    return table(columns | baselines)


def _steps(run: Run, step: str) -> list[int | None]:
    steps = run.checkpoints.steps()
    if step == "all" and steps:
        return steps
    if step in ("latest", "all"):
        return steps[-1:] or [run.load().step]
    if not step.isdigit():
        raise UserError(f"--step={step} is not latest, all or a number")
    return [int(step)]


def read_results(workdir: Path) -> dict[str, Any]:
    """evals.json: {"steps": {"<step>": metrics}, "baselines": {name: metrics}}; empty before the first."""
    file = workdir / FILE
    return json.loads(file.read_text("utf-8")) if file.exists() else {"steps": {}, "baselines": {}}


def is_recorded(workdir: Path, step: int) -> bool:
    """Whether evals.json has this step."""
    return str(step) in read_results(workdir)["steps"]


def record_step(workdir: Path, step: int, metrics: Metrics) -> None:
    """Adds the metrics of one step to evals.json."""
    results = read_results(workdir)
    results["steps"][str(step)] = results["steps"].get(str(step), {}) | metrics
    _write(workdir, results)


def record_baselines(workdir: Path, baselines: dict[str, Metrics]) -> None:
    """Sets the baselines in evals.json."""
    _write(workdir, read_results(workdir) | {"baselines": baselines})


def _write(workdir: Path, results: dict[str, Any]) -> None:
    write_atomically(workdir / FILE, json.dumps(results, indent=2) + "\n")


def table(columns: Mapping[str, Metrics]) -> str:
    """Metrics as rows, columns as given, in markdown; intervals stand behind their number."""
    rows = [
        m
        for m in dict.fromkeys(m for metrics in columns.values() for m in metrics)
        if not m.endswith(("_low", "_high"))
    ]
    lines = [["", *columns], *([row, *(_cell(metrics, row) for metrics in columns.values())] for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns) + 1)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(line, widths)) + " |" for line in lines)


def _cell(metrics: Metrics, row: str) -> str:
    if row not in metrics:
        return ""
    value = metrics[row]
    if isinstance(value, int):
        return str(value)
    if f"{row}_low" in metrics:
        return f"{value:.3f} [{metrics[f'{row}_low']:.3f}, {metrics[f'{row}_high']:.3f}]"
    return f"{value:.3f}"
