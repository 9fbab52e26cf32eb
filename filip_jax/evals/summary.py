"""One table and one plot of all that was evaluated."""

from collections.abc import Mapping, Sequence
from typing import Any

from filip_jax import storage
from filip_jax.evals.curves import metric_plot
from filip_jax.evals.published import beside_published
from filip_jax.evals.results import Metrics, table

TABLE, PLOT = "evals.md", "evals.svg"


def write_summary(
    paths: Sequence[str],
    columns: Mapping[str, Metrics],
    baselines: Mapping[str, Mapping[str, Metrics]],
    curves: Mapping[str, Mapping[str, Mapping[str, Any]]],
    names: set[str],
) -> str:
    """Writes both into the run's folder, or into that in which all runs lie; gives the table, and says where they are.

    Args:
        paths: the workdirs.
        columns: of the table, without baselines.
        baselines: {run: {baseline: metrics}}.
        curves: {run: {step: metrics}}.
        names: of the evaluations that are drawn.
    """
    of_all = _merged(baselines)
    beside = beside_published(columns)
    text = table({**columns, **of_all}) + (f"\n\n{beside}" if beside else "")
    plot = metric_plot(curves, of_all, names)
    folder = paths[0] if len(paths) == 1 else storage.common_folder(paths)
    files = {TABLE: text + "\n"} | ({PLOT: plot} if plot else {})
    for file, content in files.items():
        storage.write(storage.join(folder, file), content.encode())
    return f"{text}\n\nwritten: {', '.join(storage.join(folder, file) for file in files)}"


def _merged(baselines: Mapping[str, Mapping[str, Metrics]]) -> dict[str, Metrics]:
    """One column per baseline; one per run and baseline where runs disagree on a number."""
    columns: dict[str, Metrics] = {}
    for baseline in dict.fromkeys(name for of_run in baselines.values() for name in of_run):
        of_runs = {run: found[baseline] for run, found in baselines.items() if found.get(baseline)}
        merged = {metric: value for metrics in of_runs.values() for metric, value in metrics.items()}
        agree = all(merged[metric] == value for metrics in of_runs.values() for metric, value in metrics.items())
        own = {f"{baseline} ({run})": metrics for run, metrics in of_runs.items()}
        columns |= ({baseline: merged} if merged else {}) if agree else own
    return columns
