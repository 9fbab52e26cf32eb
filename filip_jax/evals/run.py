"""All evaluations of a config: numbers into evals.json, one table for the eye."""

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from filip_jax.data.sources import Source, make_source
from filip_jax.errors import UserError
from filip_jax.evals import linear_probe, localisation, pictures, retrieval, zero_shot
from filip_jax.evals.clip_benchmark import write_results
from filip_jax.evals.published import beside_published
from filip_jax.evals.records import check_records
from filip_jax.files import read_json, write_atomically
from filip_jax.inference import Embedder, Run
from filip_jax.sections import check, choose

FILE = "evals.json"
# Each has evaluate(model, source, output, **options) -> numbers and baselines(source, **options) ->
# {name: numbers}. A new kind is a file beside this and a line here.
KINDS = {
    "retrieval": retrieval,
    "zero_shot": zero_shot,
    "linear_probe": linear_probe,
    "localisation": localisation,
    "pictures": pictures,
}

Metrics = dict[str, Any]  # numbers; texts under eval/<name>/error
Guard = Callable[[str, Callable[[], Metrics]], Metrics]


@dataclass(frozen=True)
class Eval:
    """One entry of a config's `evals` section, its source opened."""

    name: str
    kind: ModuleType
    source: Source
    options: Mapping[str, Any]


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


def run_baselines(evals: Sequence[Eval]) -> dict[str, Metrics]:
    """What needs no model: {"chance": {"<name>/<metric>": number}, …}."""
    results: dict[str, Metrics] = {}
    for each in evals:
        for baseline, result in each.kind.baselines(each.source, **each.options).items():
            results.setdefault(baseline, {}).update({f"{each.name}/{metric}": v for metric, v in result.items()})
    return results


def evaluate_runs(workdirs: Sequence[str | Path], step: str, evals: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Evaluates checkpoints of runs and their baselines, records the numbers, and gives one table.

    Args:
        step: "latest", "all" or a number.
        evals: instead of each run's own.

    Raises:
        UserError: no run, no such checkpoint, or an evaluation that can not be. Of several runs those
            without any checkpoint are left out, with a warning.
    """
    if step not in ("latest", "all") and not step.isdigit():
        raise UserError(f"--step={step} is not latest, all or a number")
    runs = [Run(workdir) for workdir in workdirs]
    trained = [run for run in runs if run.checkpoints.steps()] or runs[:1]
    for run in runs:
        if run not in trained:
            warnings.warn(f"{run.workdir} has no checkpoint yet and is left out", stacklevel=2)
    columns: dict[str, Metrics] = {}
    baselines: dict[str, dict[str, Metrics]] = {}
    for name, run in zip(_short_names([run.workdir for run in trained]), trained):
        wanted = open_evals(run.config["evals"] if evals is None else evals)
        for number in {"all": run.checkpoints.steps(), "latest": [None]}.get(step) or [int(step)]:
            model = run.load(number)
            print(f"{run.workdir} at step {model.step}: {', '.join(each.name for each in wanted)} ...", flush=True)
            columns[f"{name}, step {model.step}"] = metrics = run_evals(model, wanted, run.workdir)
            record_step(run.workdir, model.step, metrics)
            for each in wanted:
                write_results(run.workdir, name, model.step, each.name, each.kind, metrics)
        of_run = run_baselines(wanted)
        record_baselines(run.workdir, of_run)
        run.place.flush()
        for baseline, metrics in of_run.items():
            baselines.setdefault(baseline, {})[name] = metrics
    beside = beside_published(columns)
    return table(columns | _merged(baselines)) + (f"\n\n{beside}" if beside else "")


def _short_names(workdirs: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [workdir.resolve().parts for workdir in workdirs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def _merged(baselines: Mapping[str, Mapping[str, Metrics]]) -> dict[str, Metrics]:
    """One column per baseline; one per run and baseline where runs disagree on a number."""
    columns: dict[str, Metrics] = {}
    for baseline, of_runs in baselines.items():
        merged = {metric: value for metrics in of_runs.values() for metric, value in metrics.items()}
        agree = all(merged[metric] == value for metrics in of_runs.values() for metric, value in metrics.items())
        columns |= {baseline: merged} if agree else {f"{baseline} ({name})": m for name, m in of_runs.items()}
    return columns


def read_results(workdir: Path) -> dict[str, Any]:
    """evals.json: {"steps": {"<step>": metrics}, "baselines": {name: metrics}}; empty before the first."""
    file = workdir / FILE
    return {"steps": {}, "baselines": {}} | (read_json(file) if file.exists() else {})


def is_recorded(workdir: Path, step: int, evals: Sequence[Eval]) -> bool:
    """Whether evals.json has a number of each of these evaluations at this step."""
    names = {metric.removeprefix("eval/").split("/")[0] for metric in read_results(workdir)["steps"].get(str(step), {})}
    return all(each.name in names for each in evals)


def forget_after(workdir: Path, step: int) -> None:
    """Removes the steps beyond this one, to which a run goes back, from evals.json; a damaged file is set aside."""
    try:
        results = read_results(workdir)
        results["steps"] = {str(int(number)): metrics for number, metrics in results["steps"].items()}
    except (UserError, ValueError, TypeError, AttributeError) as error:
        aside = workdir / f"damaged_{FILE}"
        os.replace(workdir / FILE, aside)
        warnings.warn(f"{error}; it is now {aside}, and evaluations are recorded anew", stacklevel=2)
        return
    kept = {number: metrics for number, metrics in results["steps"].items() if int(number) <= step}
    if kept != results["steps"]:
        _write(workdir, results | {"steps": kept})


def record_step(workdir: Path, step: int, metrics: Metrics) -> None:
    """Adds the metrics of one step to evals.json."""
    results = read_results(workdir)
    names = {metric.split("/")[0] for metric in metrics}
    before = results["steps"].get(str(step), {})
    kept = {m: value for m, value in before.items() if not (m.startswith("eval/") and m.split("/")[1] in names)}
    results["steps"][str(step)] = kept | metrics
    _write(workdir, results)


def record_baselines(workdir: Path, baselines: dict[str, Metrics]) -> None:
    """Adds numbers of baselines to evals.json."""
    results = read_results(workdir)
    for name, metrics in baselines.items():
        results["baselines"][name] = results["baselines"].get(name, {}) | metrics
    _write(workdir, results)


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
    if isinstance(value, (int, str)):
        return str(value)
    if f"{row}_low" in metrics:
        return f"{value:.3f} [{metrics[f'{row}_low']:.3f}, {metrics[f'{row}_high']:.3f}]"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"
