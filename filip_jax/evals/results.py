"""evals.json of a run: the numbers of every evaluation by step, and of which checkpoint and task they are."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from filip_jax import plain
from filip_jax.errors import UserError
from filip_jax.evals.tasks import Task
from filip_jax.files import locked, write_atomically
from filip_jax.names import is_metric, is_name
from filip_jax.small_files import Notes, is_number, is_text, read_json, warn_of

FILE = "evals.json"
LOCK = ".evals.tmp"  # beside it; a .tmp is not brought into buckets

STEP = re.compile(r"0|[1-9][0-9]{0,9}")
Metrics = dict[str, Any]  # numbers; texts under eval/<name>/error
PARTS = ("steps", "baselines", "tasks", "baseline_tasks")
MAX_ASIDE = 100  # damaged files that are kept


def read_results(workdir: Path) -> dict[str, Any]:
    """Return evals.json, empty before the first evaluation.

    That is {steps: {"<step>": metrics}, baselines: {name: metrics}, tasks: {"<step>": {evaluation: Task}},
    baseline_tasks: {evaluation: SHA-256}}. What is not written so is left out, with a warning.
    """
    notes = Notes()
    results = _read(workdir, notes)
    warn_of(workdir / FILE, notes)
    return results


def _read(workdir: Path, notes: Notes) -> dict[str, Any]:
    file, found = workdir / FILE, {}
    if os.path.lexists(file):
        try:
            found = read_json(file, notes)
        except (UserError, OSError) as error:
            notes.append(str(error))

    def kept(place: str, content: Any, is_key: Callable[[str], bool], value: Callable[[str, Any], Any]) -> dict | None:
        """The entries of an object that are as we write them; None for what is no object."""
        if not isinstance(content, dict):
            return None
        sound = {}
        for key, each in content.items():
            typed = value(f"{place}.{key!r:.100}", each) if is_key(key) else None
            if typed is None:
                notes.append(f"{place}.{key!r:.100} is {each!r:.100}")
            else:
                sound[key] = typed
        return sound

    def part(name: str, is_key: Callable[[str], bool], value: Callable[[str, Any], Any]) -> dict:
        content = kept(name, found.get(name, {}), is_key, value)
        if content is None:
            notes.append(f"{name} is {found[name]!r:.100}")
        return content or {}

    def numbers(place: str, content: Any) -> dict | None:
        return kept(place, content, is_metric, lambda _, x: x if is_number(x) or is_text(x) else None)

    def text(place: str, content: Any) -> str | None:
        return content if is_text(content, 200) else None

    def texts(place: str, content: Any) -> dict | None:
        return kept(place, content, lambda key: is_text(key, 200), text)

    notes += [f"the part {name!r:.100} is not known" for name in found if name not in PARTS]
    return {
        "steps": part("steps", _is_step, numbers),
        "baselines": part("baselines", is_name, numbers),
        "tasks": part("tasks", _is_step, lambda place, tasks: kept(place, tasks, is_name, texts)),
        "baseline_tasks": part("baseline_tasks", is_name, text),
    }


def _is_step(text: str) -> bool:
    return STEP.fullmatch(text) is not None


def evaluation_of(metric: str) -> str:
    """The name of the evaluation that a metric, or an error, is of."""
    return metric.removeprefix("eval/").split("/")[0]


def is_recorded(workdir: Path, step: int, names: list[str]) -> bool:
    """Whether evals.json has a number of each of these evaluations at this step."""
    found = {evaluation_of(metric) for metric in read_results(workdir)["steps"].get(str(step), {})}
    return all(name in found for name in names)


def recorded(workdir: Path, step: int, name: str, task: Task) -> Metrics | None:
    """The numbers of an evaluation of this very checkpoint and task, or None; an error is no number."""
    results = read_results(workdir)
    if results["tasks"].get(str(step), {}).get(name) != task:
        return None
    numbers = results["steps"].get(str(step), {})
    return {metric: value for metric, value in numbers.items() if metric.startswith(f"{name}/")} or None


def comparable(results: Mapping[str, Any], tasks: Mapping[str, str] | None = None) -> dict[str, Metrics]:
    """{"<step>": metrics} of evaluations of the same task at all steps, in the order of the steps.

    Args:
        results: what `read_results` gives.
        tasks: {evaluation: its `task`}; that of others is that of their newest step.
    """
    steps = sorted(results["steps"], key=int)

    def task(step, name):
        return results["tasks"].get(step, {}).get(name, {}).get("task", "")

    newest = {
        evaluation_of(metric): task(step, evaluation_of(metric)) for step in steps for metric in results["steps"][step]
    }
    wanted = newest | dict(tasks or {})
    return {
        step: {
            m: x
            for m, x in results["steps"][step].items()
            if task(step, evaluation_of(m)) == wanted.get(evaluation_of(m))
        }
        for step in steps
    }


def forget_after(workdir: Path, step: int) -> None:
    """Removes the steps beyond this one, to which a run goes back, from evals.json."""
    with _locked(workdir):
        results = _read_to_write(workdir)
        kept = {part: {n: v for n, v in results[part].items() if int(n) <= step} for part in ("steps", "tasks")}
        if results | kept != results:
            _write(workdir, results | kept)


def _read_to_write(workdir: Path) -> dict[str, Any]:
    """What is sound of evals.json; a file with more in it is set aside, so that nothing of it is lost."""
    notes = Notes()
    results = _read(workdir, notes)
    if notes:
        names = (f"damaged_{FILE}", *(f"damaged_{number}_{FILE}" for number in range(1, MAX_ASIDE)))
        aside = next((workdir / name for name in names if not os.path.lexists(workdir / name)), workdir / names[0])
        os.replace(workdir / FILE, aside)
        notes[0] += f"; as it was it is now {aside}"
        warn_of(workdir / FILE, notes)
        _write(workdir, results)
    return results


def record_step(workdir: Path, step: int, metrics: Metrics, tasks: Mapping[str, Task]) -> None:
    """Adds the metrics of one step to evals.json, in place of what these evaluations had there.

    Args:
        tasks: what was evaluated, by the evaluation's name.
    """
    with _locked(workdir):
        results = _read_to_write(workdir)
        names = {evaluation_of(metric) for metric in metrics}
        before = results["steps"].get(str(step), {})
        kept = {m: value for m, value in before.items() if evaluation_of(m) not in names}
        results["steps"][str(step)] = kept | metrics
        sound = {name: task for name, task in tasks.items() if f"eval/{name}/error" not in metrics}
        others = {name: task for name, task in results["tasks"].get(str(step), {}).items() if name not in names}
        if found := others | sound:
            results["tasks"][str(step)] = found
        _write(workdir, results)


def record_baselines(workdir: Path, baselines: Mapping[str, Metrics], tasks: Mapping[str, str]) -> None:
    """Puts numbers of baselines into evals.json, in place of all that these evaluations had there.

    Args:
        tasks: the SHA-256 of each evaluation that they are of.
    """
    with _locked(workdir):
        results = _read_to_write(workdir)
        before = {
            name: {metric: x for metric, x in metrics.items() if evaluation_of(metric) not in tasks}
            for name, metrics in results["baselines"].items()
        }
        merged = {name: before.get(name, {}) | baselines.get(name, {}) for name in (*before, *baselines)}
        results["baselines"] = {name: metrics for name, metrics in merged.items() if metrics}
        results["baseline_tasks"] |= tasks
        _write(workdir, results)


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """A training and `filip eval --watch` both write, perhaps on two machines."""
    with locked(workdir / LOCK):
        yield


def _write(workdir: Path, results: dict[str, Any]) -> None:
    found = {key: _finite(value) for key, value in results.items() if value or key in ("steps", "baselines")}
    write_atomically(workdir / FILE, json.dumps(found, indent=2) + "\n")


def _finite(value: Any) -> Any:
    """The same, with texts for what is no number that is read again: JSON has none that is not finite."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    value = value.item() if isinstance(value, np.generic) else value
    return str(value) if isinstance(value, float) and not is_number(value) else value


def table(columns: Mapping[str, Metrics]) -> str:
    """Metrics as rows, columns as given, in markdown; intervals stand behind their number."""
    lines = [
        ["", *map(plain.cell, columns)],
        *([plain.cell(row), *(_shown(metrics, row) for metrics in columns.values())] for row in rows_of(columns)),
    ]
    return plain.markdown(lines)


def _shown(metrics: Metrics, row: str) -> str:
    return plain.cell(metrics[row]) if isinstance(metrics.get(row), str) else cell(metrics, row)


def rows_of(columns: Mapping[str, Metrics]) -> list[str]:
    """The metrics that have a row in a table."""
    found = dict.fromkeys(metric for metrics in columns.values() for metric in metrics)
    return [metric for metric in found if not metric.endswith(("_low", "_high"))]


def cell(metrics: Mapping[str, Any], row: str) -> str:
    """A metric as a table shows it, with its interval if it has one; "" without."""
    if row not in metrics:
        return ""
    value = metrics[row]
    if isinstance(value, (int, str)):
        return str(value)
    if all(is_number(metrics.get(f"{row}_{end}")) for end in ("low", "high")):
        return f"{value:.3f} [{metrics[f'{row}_low']:.3f}, {metrics[f'{row}_high']:.3f}]"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"
