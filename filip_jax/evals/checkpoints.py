"""Evaluations of the checkpoints of runs: which, those that are done already, one table and one plot of all."""

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from filip_jax import storage
from filip_jax.errors import UserError
from filip_jax.evals.choice import Choice, best_step, find_workdirs, short_names
from filip_jax.evals.clip_benchmark import write_results
from filip_jax.evals.curves import metric_plot
from filip_jax.evals.published import beside_published
from filip_jax.evals.results import Metrics, Task, read_results, record_baselines, record_step, recorded, table
from filip_jax.evals.run import Eval, open_evals, run_baselines, run_evals, tasks_of
from filip_jax.inference import Run
from filip_jax.mesh import make_mesh

POLL = 5.0  # seconds
SAY = 60.0  # seconds between two lines that it waits
TABLE, PLOT = "evals.md", "evals.svg"


def evaluate_runs(workdirs: str, choice: Choice, evals: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Evaluates checkpoints of runs and their baselines, records the numbers, and gives one table.

    The table and a plot over the steps go into evals.md and evals.svg of the run, or of the folder that all runs
    lie in.

    Args:
        workdirs: a workdir, or a pattern with * that matches several; local or in a bucket.
        evals: instead of each run's own.

    Raises:
        UserError: no run, no such checkpoint, or an evaluation that can not be. Of several checkpoints the others
            are evaluated first. Of several runs those without any checkpoint are left out, with a warning.
    """
    choice.check()
    return _Session(workdirs, choice, evals).run()


class _Session:
    """One call of `evaluate_runs`: the runs by workdir, and what was found."""

    def __init__(self, workdirs, choice, evals):
        self.workdirs, self.choice, self.evals = workdirs, choice, evals
        self.mesh = make_mesh(devices=jax.local_devices())
        self.runs: dict[str, Run] = {}
        self.opened: dict[str, list[Eval]] = {}  # by config section: several runs share their data
        self.floors: dict[str, int] = {}  # the first step that a watch from "latest" looks at
        self.found: dict[tuple[str, int], Metrics] = {}
        self.failures: dict[tuple[str, int], str] = {}
        self.baselines: dict[str, dict[str, Metrics]] = {}

    def run(self) -> str:
        if self.choice.watch:
            self._follow()
        else:
            self._find_runs()
            trained = [path for path, run in self.runs.items() if run.checkpoints.steps()]
            for path in self.runs:
                if path not in trained and len(self.runs) > 1:
                    warnings.warn(f"{path} has no checkpoint yet and is left out", stacklevel=2)
            for path in trained or list(self.runs)[:1]:
                for step in self._chosen(path):
                    self._evaluate(path, step)
        output = self._report() if self.found else ""
        if self.failures:
            print(output, flush=True)
            raise UserError("; ".join(self.failures.values()))
        return output

    def _find_runs(self) -> None:
        paths = find_workdirs(self.workdirs)
        for path in paths or ([] if self.choice.watch else [self.workdirs]):
            if path not in self.runs:
                try:
                    self.runs[path] = Run(path, self.mesh, self.choice.batch_size * self.mesh.size)
                except UserError:
                    if not self.choice.watch:  # it may be about to begin
                        raise

    def _chosen(self, path: str) -> list[int]:
        """The steps to evaluate.

        Raises:
            UserError: there is no such checkpoint, or no number by which one is the best.
        """
        checkpoints, step = self.runs[path].checkpoints, self.choice.step
        steps = checkpoints.steps()
        if self.choice.watch:
            floor = self.floors.setdefault(path, max(steps, default=0) if step == "latest" else 0)
            return [step for step in steps if step >= floor]
        if step.isdecimal():
            return [int(step)]
        if not steps:
            raise UserError(f"{path} has no checkpoint yet")
        if step == "best":
            return [best_step(path, read_results(self.runs[path].workdir)["steps"], steps, self.choice.metric)]
        return steps if step == "all" else steps[-1:]

    def _follow(self) -> None:
        """Evaluates each new checkpoint until all runs have ended, or nothing comes any more."""
        moved, said = time.monotonic(), 0.0
        while True:
            self._find_runs()
            ended = self.runs and all(
                self._is_finished(path) for path in self.runs
            )  # nothing comes after what is seen now
            for path in self.runs:
                for step in self._chosen(path):
                    if (path, step) not in self.found and (path, step) not in self.failures:
                        self._evaluate(path, step)
                        moved = time.monotonic()
            if ended:
                return
            now = time.monotonic()
            if self.choice.idle_minutes and now - moved > 60 * self.choice.idle_minutes:
                print(f"no new checkpoint for {self.choice.idle_minutes:g} minutes", flush=True)
                return
            if now - said > SAY:
                said = now
                print(self._waiting(), flush=True)
            time.sleep(POLL)

    def _waiting(self) -> str:
        if not self.runs:
            return f"waiting for a run: {self.workdirs}"
        left = [path for path in self.runs if not self._is_finished(path)]
        newest = max(self.runs[left[0]].checkpoints.steps(), default=0)
        rest = f" and {len(left) - 1} more" if len(left) > 1 else ""
        last = self.runs[left[0]].config.get("total_steps", "?")
        return f"waiting for a checkpoint: {left[0]} is at step {newest} of {last}{rest}"

    def _is_finished(self, path: str) -> bool:
        last = self.runs[path].config.get("total_steps", float("inf"))
        return max(self.runs[path].checkpoints.steps(), default=0) >= last

    def _evaluate(self, path: str, step: int) -> None:
        """Records what is missing of one checkpoint; what goes wrong is kept where there are others to evaluate."""
        run, name = self.runs[path], self._name(path)
        try:
            wanted = self._open(run)
            self.found[path, step] = self._numbers(run, name, step, wanted)
            self.baselines.setdefault(path, {}).update(self._baselines(run, wanted))
            run.place.flush()
        except (UserError, OSError) as error:
            if self.choice.watch and step not in run.checkpoints.steps():
                warnings.warn(f"{path}: step {step} was removed before it was evaluated", stacklevel=2)
            elif not self.choice.watch and self.choice.step != "all" and len(self.runs) == 1:
                raise
            self.failures[path, step] = str(error)

    def _open(self, run: Run) -> list[Eval]:
        section = run.config["evals"] if self.evals is None else self.evals
        key = repr(section)
        if key not in self.opened:
            self.opened[key] = open_evals(section)
        return self.opened[key]

    def _numbers(self, run: Run, name: str, step: int, wanted: Sequence[Eval]) -> Metrics:
        """All numbers of a checkpoint, each recorded as soon as it is known."""
        if step not in run.checkpoints.steps():
            have = ", ".join(map(str, run.checkpoints.steps())) or "none"
            raise UserError(f"{run.place.name} has no checkpoint of step {step}; it has steps {have}")
        tasks = tasks_of(wanted, run.checkpoints, step, run.config)
        done = {} if self.choice.again else self._done(run, step, tasks)
        todo = [each for each in wanted if each.name not in done]
        if done:
            print(f"{run.place.name} at step {step}: {', '.join(done)}: done before", flush=True)
        model = run.load(step) if todo else None
        for each in todo:
            print(f"{run.place.name} at step {step}: {each.name} ...", flush=True)
            done[each.name] = metrics = run_evals(model, [each], run.workdir)
            record_step(run.workdir, step, metrics, {each.name: tasks[each.name]})
            write_results(run.workdir, name, step, each.name, each.kind, metrics, tasks[each.name])
        return {metric: value for each in wanted for metric, value in done[each.name].items()}

    def _done(self, run: Run, step: int, tasks: Mapping[str, Task]) -> dict[str, Metrics]:
        found = {name: recorded(run.workdir, step, name, task) for name, task in tasks.items()}
        return {name: metrics for name, metrics in found.items() if metrics is not None}

    def _baselines(self, run: Run, wanted: Sequence[Eval]) -> dict[str, Metrics]:
        """Those of all evaluations, from evals.json where they are known there."""
        results = read_results(run.workdir)
        tasks = {each.name: each.task["task"] for each in wanted}
        todo = [each for each in wanted if results["baseline_tasks"].get(each.name) != tasks[each.name]]
        if todo or self.choice.again:
            record_baselines(run.workdir, run_baselines(todo), {each.name: tasks[each.name] for each in todo})
            results = read_results(run.workdir)
        kept = {
            baseline: {m: value for m, value in metrics.items() if m.split("/")[0] in tasks}
            for baseline, metrics in results["baselines"].items()
        }
        return {baseline: metrics for baseline, metrics in kept.items() if metrics}

    def _name(self, path: str) -> str:
        return short_names(list(self.runs))[list(self.runs).index(path)]

    def _report(self) -> str:
        """The table; it is written with the plot."""
        columns = {f"{self._name(path)}, step {step}": metrics for (path, step), metrics in self.found.items()}
        baselines = self._merged_baselines()
        beside = beside_published(columns)
        text = table(columns | baselines) + (f"\n\n{beside}" if beside else "")
        names = {each.name for evals in self.opened.values() for each in evals}
        curves = {self._name(path): read_results(self.runs[path].workdir)["steps"] for path, _ in self.found}
        plot = metric_plot(curves, baselines, names)
        paths = list(dict.fromkeys(path for path, _ in self.found))
        folder = paths[0] if len(paths) == 1 else storage.common_folder(paths)
        files = {TABLE: text + "\n", PLOT: plot} if plot else {TABLE: text + "\n"}
        for file, content in files.items():
            storage.write(storage.join(folder, file), content.encode())
        return f"{text}\n\nwritten: {', '.join(storage.join(folder, file) for file in files)}"

    def _merged_baselines(self) -> dict[str, Metrics]:
        """One column per baseline; one per run and baseline where runs disagree on a number."""
        columns: dict[str, Metrics] = {}
        for baseline in dict.fromkeys(name for of_run in self.baselines.values() for name in of_run):
            of_runs = {path: b[baseline] for path, b in self.baselines.items() if baseline in b}
            merged = {metric: value for metrics in of_runs.values() for metric, value in metrics.items()}
            agree = all(merged[metric] == value for metrics in of_runs.values() for metric, value in metrics.items())
            own = {f"{baseline} ({self._name(path)})": metrics for path, metrics in of_runs.items()}
            columns |= {baseline: merged} if agree else own
        return columns
