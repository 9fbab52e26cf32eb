"""Evaluations of the checkpoints of runs: which, those that are done already, one table and one plot of all."""

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from filip_jax.console import show
from filip_jax.data.index_folder import sources_of_others
from filip_jax.errors import UserError, one_line
from filip_jax.evals.choice import Choice, best_step, find_workdirs, short_names
from filip_jax.evals.clip_benchmark import write_results
from filip_jax.evals.results import Metrics, comparable, read_results, record_baselines, record_step, recorded
from filip_jax.evals.run import Eval, open_evals, run_baselines, run_evals, tasks_of
from filip_jax.evals.summary import write_summary
from filip_jax.evals.watch import follow
from filip_jax.inference import Run
from filip_jax.mesh import make_mesh
from filip_jax.user_paths import from_user
from filip_jax.workdir import DRAWN

Key = tuple[str, int]  # a workdir and a step


def evaluate_runs(workdirs: str, choice: Choice, evals: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Evaluates checkpoints of runs and their baselines, records the numbers, and gives one table.

    The table and a plot go into evals.md and evals.svg of the run, or of the folder that all runs lie in.

    Args:
        workdirs: a workdir, or a pattern with * that matches several; local or in a bucket.
        evals: instead of each run's own.

    Raises:
        UserError: no run, no such checkpoint, or an evaluation that cannot be; all others are evaluated first, and
            the table is printed. Of several runs those without any checkpoint are left out, with a warning.
    """
    choice.check()
    session = Session(workdirs, choice, evals)
    try:
        with sources_of_others() if evals is None else contextlib.nullcontext():
            follow(session) if choice.watch else session.evaluate()
        output = session.summary() if session.found else ""
    finally:
        session.close()
    if session.failures:
        if output:
            show(*output.split("\n"))
        raise UserError("; ".join(dict.fromkeys(session.failures.values())))
    return output


class Session:
    """One call of `evaluate_runs`: the runs by workdir, and what was found."""

    def __init__(self, workdirs: str, choice: Choice, evals: Mapping[str, Any] | None):
        self.workdirs, self.choice, self.evals = from_user(workdirs), choice, evals
        self.mesh = make_mesh(devices=jax.local_devices())
        self.runs: dict[str, Run] = {}
        self.opened: dict[str, Eval | str] = {}  # by section, which several runs may share; or why it cannot be
        self.found: dict[Key, Metrics] = {}
        self.baselines: dict[str, dict[str, Metrics]] = {}
        self.counted: set[tuple[str, str]] = set()  # of which baselines
        self.failures: dict[Any, str] = {}

    def close(self) -> None:
        """Lets the runs go."""
        for run in self.runs.values():
            run.close()

    def evaluate(self) -> None:
        """All checkpoints that are chosen."""
        self.find_runs()
        trained = [path for path, run in self.runs.items() if run.checkpoints.steps()]
        for path in self.runs:
            if path not in trained and len(self.runs) > 1:
                warnings.warn(f"{path} has no checkpoint yet and is left out", stacklevel=2)
        for path in trained or list(self.runs)[:1]:
            try:
                chosen = self._chosen(path)
            except (UserError, OSError) as error:
                self.failures[path] = str(error)
                continue
            for step in chosen:
                try:
                    self.evaluate_step(path, step)
                except (UserError, OSError) as error:
                    self.failures[path, step, ""] = str(error)

    def find_runs(self) -> None:
        """Opens the runs that are there; why one cannot be opened is kept."""
        paths = find_workdirs(self.workdirs)
        for path in paths or ([] if self.choice.watch else [self.workdirs]):
            if path not in self.runs:
                try:
                    run = Run(path, self.mesh, self.choice.batch_size * self.mesh.size)
                    run.place.check_links(DRAWN)
                    self.runs[path] = run
                    self.failures.pop(path, None)
                except (UserError, OSError) as error:  # in a watch it may be about to begin
                    self.failures[path] = str(error)

    def _chosen(self, path: str) -> Sequence[int]:
        """The steps to evaluate.

        Raises:
            UserError: there is no such checkpoint, or no number by which one is the best.
        """
        run, step = self.runs[path], self.choice.step
        steps = run.checkpoints.steps()
        if step.isdecimal() and int(step) not in steps:
            have = f"; it has steps {', '.join(map(str, steps))}" if steps else " yet"
            raise UserError(f"{path} has no checkpoint of step {step}{have}")
        if step.isdecimal():
            return [int(step)]
        if not steps:
            raise UserError(f"{path} has no checkpoint yet")
        if step == "best":
            tasks = {each.name: each.task["task"] for each in self._wanted(run)}
            return [best_step(path, comparable(read_results(run.workdir), tasks), steps, self.choice.metric)]
        return steps if step == "all" else steps[-1:]

    def _wanted(self, run: Run) -> list[Eval]:
        """The evaluations that can be opened; why the others cannot is kept."""
        sections, wanted = run.config["evals"] if self.evals is None else self.evals, list[Eval]()
        for name, section in sections.items():
            key = f"{name} {section!r}"
            if key not in self.opened:
                try:
                    (opened,) = open_evals({name: section})
                    _ = opened.task  # what it names is there, too
                    self.opened[key] = opened
                except (UserError, OSError) as error:
                    self.opened[key] = self.failures[name] = str(error)
            wanted += [each] if isinstance(each := self.opened[key], Eval) else []
        return wanted

    def evaluate_step(self, path: str, step: int) -> None:
        """Records what is missing of one checkpoint; what goes wrong keeps nothing from the rest."""
        run, name = self.runs[path], self._name(path)
        wanted = self._wanted(run)
        tasks = tasks_of(wanted, run.checkpoints, step, run.config)
        done = {} if self.choice.again else self._done(run, step, tasks)
        if done:
            show(f"{path} at step {step}: {', '.join(done)}: done before")
        todo = [each for each in wanted if each.name not in done]
        if todo:
            model = run.load(step)
        for each in todo:
            said = one_line(each.source.seen)
            show(f"{path} at step {step}: {each.name} ({len(each.source):,} records; {said}) ...")
            try:
                done[each.name] = run_evals(model, [each], run.workdir)
                record_step(run.workdir, step, done[each.name], {each.name: tasks[each.name]})
            except (UserError, OSError) as error:
                self.failures[path, step, each.name] = f"{each.name} at step {step}: {error}"
        for each in wanted:
            if each.name in done:
                write_results(run.workdir, name, step, each.name, each.kind, done[each.name], tasks[each.name])
        numbers = {metric: value for each in wanted for metric, value in done.get(each.name, {}).items()}
        if numbers:
            self.found[path, step] = numbers
        self._add_baselines(run, path, wanted)
        run.place.flush()

    def _done(self, run: Run, step: int, tasks: Mapping[str, Any]) -> dict[str, Metrics]:
        found = {name: recorded(run.workdir, step, name, task) for name, task in tasks.items()}
        for each in self._wanted(run):
            if hasattr(each.kind, "pages") and not each.kind.pages(run.workdir / "pictures" / each.name, step):
                found.pop(each.name, None)
        return {name: metrics for name, metrics in found.items() if metrics is not None}

    def _add_baselines(self, run: Run, path: str, wanted: Sequence[Eval]) -> None:
        """Those of the evaluations, from evals.json where they are known there."""
        known = read_results(run.workdir)["baseline_tasks"]
        for each in wanted:
            if (path, each.name) in self.counted:
                continue
            self.counted.add((path, each.name))
            try:
                if self.choice.again or known.get(each.name) != each.baseline_task:
                    record_baselines(run.workdir, run_baselines([each]), {each.name: each.baseline_task})
            except (UserError, OSError) as error:
                self.failures[path, each.name] = f"baselines of {each.name}: {error}"
        names = {each.name for each in wanted}
        for baseline, metrics in read_results(run.workdir)["baselines"].items():
            self.baselines.setdefault(path, {})[baseline] = {
                m: x for m, x in metrics.items() if m.split("/")[0] in names
            }

    def _name(self, path: str) -> str:
        return short_names(list(self.runs))[list(self.runs).index(path)]

    def summary(self) -> str:
        """The table; it is written with the plot."""
        paths = list(dict.fromkeys(path for path, _ in self.found))
        names = {each.name for each in self.opened.values() if isinstance(each, Eval)}
        return write_summary(
            paths,
            columns={f"{self._name(path)}, step {step}": metrics for (path, step), metrics in self.found.items()},
            baselines={self._name(path): self.baselines.get(path, {}) for path in paths},
            curves={self._name(path): comparable(read_results(self.runs[path].workdir)) for path in paths},
            names=names,
        )
