"""The one trainer.

Its order is a contract: evaluate if due -> take a batch -> roll call -> step -> log -> save if due. A
step's metrics are written before its checkpoint; what is evaluated has been saved. So a run killed
anywhere goes on from the newest checkpoint with every step logged once and no evaluation missed.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from filip_jax import inference
from filip_jax.checkpoint import CheckpointWriter, abstract
from filip_jax.cluster import service
from filip_jax.cluster.pulse import Pulse
from filip_jax.cluster.roll_call import Decision, roll_call
from filip_jax.cluster.watch import Watch
from filip_jax.data.pipeline import batches, parts_of
from filip_jax.data.sources import Source, check_same_data
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError, one_line
from filip_jax.evals.results import forget_after, is_recorded, record_step, table
from filip_jax.evals.run import Eval, open_evals, run_evals, tasks_of
from filip_jax.mesh import global_batch
from filip_jax.redact import redacted
from filip_jax.saved_config import save_config
from filip_jax.sections import call
from filip_jax.train import start
from filip_jax.train.advice import advise
from filip_jax.train.evaluation import EvalGuard
from filip_jax.train.feed import Feed, no_rows
from filip_jax.train.goodput import CompileCache, Goodput
from filip_jax.train.init_from import Donor, fill_all, open_donors
from filip_jax.train.input_log import InputLog, forget_keys_after
from filip_jax.train.metrics import MetricWriter, StepLog, say
from filip_jax.train.profile import Profile
from filip_jax.train.setup import Setup, batch_of
from filip_jax.train.step import State
from filip_jax.train.upkeep import Upkeep
from filip_jax.train.wandb_log import WandbLog
from filip_jax.workdir import cache_folder


def train(workdir: str | Path, config: Mapping[str, Any], watch: Watch | None = None) -> None:
    """Trains the run of `workdir` to its last step, from its newest sound checkpoint if it has one.

    Args:
        workdir: a folder, gs://… or s3://….
        watch: that has begun already; by default one of this call's own.

    Raises:
        UserError: a config, data or checkpoint that cannot be, or too many steps that had to be skipped.
        Preempted, ProcessLost: a signal asked the run to stop, or a data worker is gone; everything is saved.
    """
    if watch is not None:
        return _train(workdir, config, watch)
    watch = Watch().begin()
    try:
        _train(workdir, config, watch)
    finally:
        watch.end()


def _train(workdir: str | Path, config: Mapping[str, Any], watch: Watch) -> None:
    several = jax.process_count() > 1
    pulse = Pulse(watch, config["processes"]["heartbeat_seconds"] if several else 0.0)  # which was checked on joining
    try:
        setup = start.prepare_setup(config, workdir, watch)
        trainer = Trainer(workdir, setup, config, watch)
        watch.set_base("step")
        trainer.run()
        with watch.phase("end"):
            service.gather("done")  # what the first process wrote last is there for all
            service.on_first_process(lambda: trainer.upkeep.check_usable(trainer.step))
    except jax.errors.JaxRuntimeError as error:
        if several:
            pulse.wait_for_judgement(error)
        raise
    except Exception as error:
        pulse.last_words = f"filip: error: {error}"
        raise
    finally:
        pulse.close()
    say(*trainer.goodput.table().split("\n"))
    say(f"done: {workdir} holds {', '.join(map(one_line, trainer.names))}")


class Trainer:
    """A run in progress: its state, its step and what watches them."""

    def __init__(self, path: str | Path, setup: Setup, config: Mapping[str, Any], watch: Watch):
        self.setup, self.config_given, self.config, self.watch = setup, config, redacted(config), watch
        source = start.open_source(setup)
        self.evals: Sequence[Eval] = open_evals(setup.evals) if setup.eval_every_steps else []
        self.place, self.lease = start.open_workdir(path, watch)
        try:
            self._begin(source)
        except BaseException:  # or the lease would live on, and end this process when another run takes the workdir
            self.lease.close()
            raise

    def _begin(self, source: Source) -> None:
        setup, config, watch, metadata = self.setup, self.config_given, self.watch, self.setup.optimizer.metadata
        self.workdir = workdir = self.place.folder
        self.cache = CompileCache(cache_folder() if self.place.is_remote else workdir, setup.compile_cache)
        self.checkpoints = call(CheckpointWriter, setup.checkpoint, "checkpoint", workdir=self.place.name)
        with watch.phase("restore"):
            newest = start.newest_sound(self.checkpoints, workdir, config)
        donors = [] if newest is not None else open_donors(setup.init_from, setup.shapes, metadata)
        if newest is None:  # who goes on has read it
            service.on_first_process(lambda: advise(setup, source))
        service.on_first_process(lambda: save_config(workdir, config))  # which says whose the other files are
        tokenizer = start.prepare_tokenizer(self.place, setup, source, started=newest is not None)
        self.upkeep = Upkeep(self.place, self.lease)
        self.checkpoints.before_manifest = self.upkeep.before_manifest
        self.meta = start.describe_run(setup, tokenizer, source)
        sizes = {"mesh": setup.mesh} | {name: setup.data[name] for name in ("image_size", "text_length")}
        self.embedder = lambda *state: inference.Embedder(setup.model, setup.objectives, tokenizer, *state, **sizes)
        self.eval_guard = EvalGuard(self.place, watch, setup.evals_fatal)
        self.state, self.step, meta = self._start(newest, tokenizer, donors)
        self.samples_seen, watch.step = meta.get("samples_seen", 0), self.step
        self.saved_step: int | None = self.step
        self._open_logs(source, meta)
        rows = call(
            batches, setup.data, "data", source=source, tokenizer=tokenizer, batch_size=setup.batch_size,
            seed=setup.seed, start=self.samples_seen, groups="groups" in setup.objectives.needs,
            process_index=jax.process_index(), process_count=jax.process_count(), framing=setup.model.image.framing,
        )  # fmt: skip
        self.feed = Feed(rows if self.step < setup.total_steps else no_rows(), lambda: watch.stop)
        self.profile = Profile(self.place, self.step, setup.total_steps, **setup.profile)

    def _start(self, newest: int | None, tokenizer: Tokenizer, donors: Sequence[Donor]) -> tuple[State, int, dict]:
        """(state, step, meta): of the newest checkpoint on this mesh, or a state that is born sharded."""
        setup = self.setup
        if newest is None:
            say(f"{self.place.name}: starting on {jax.device_count()} {jax.devices()[0].device_kind} devices")
            with self.watch.phase("restore"):
                for donor in donors:
                    donor.check(tokenizer.sha256)
            with self.watch.phase("compile"), jax.set_mesh(setup.mesh):
                state = jax.jit(setup.init, out_shardings=setup.shardings)(jax.random.key(setup.seed))
            with self.watch.phase("restore"):
                return fill_all(donors, state), 0, {}
        if newest > setup.total_steps:
            raise UserError(f"{self.checkpoints.folder(newest)} is beyond total_steps={setup.total_steps}")
        meta, started = self.checkpoints.meta(newest), time.monotonic()
        inference.run.check_tokenizer(tokenizer, meta, self.workdir)
        check_same_data(meta, self.meta, self.workdir)
        with self.watch.phase("restore"):
            state = self.checkpoints.restore(newest, abstract(setup.shapes, setup.shardings))
        took = f"{time.monotonic() - started:.1f} s to restore"
        say(f"{self.place.name}: resuming at step {newest} of {setup.total_steps} ({took})")
        return state, newest, meta

    def _open_logs(self, source: Source, meta: Mapping[str, Any]) -> None:
        setup, workdir = self.setup, self.workdir
        service.on_first_process(lambda: forget_after(workdir, self.step))
        of_each = service.together if self.place.is_remote else service.on_first_process  # a mirror is a process's own
        of_each(lambda: forget_keys_after(workdir, self.step))
        recorded = service.of_first_process(is_recorded(workdir, self.step, [each.name for each in self.evals]))
        self.evaluated_step = self.step if recorded else None
        wandb = WandbLog(workdir, project=setup.wandb_project, name=self.place.name, config=self.config)
        self.writer = MetricWriter(workdir, step=self.step, evaluated=recorded, also=wandb)
        self.goodput = Goodput(self.watch, meta.get("seconds", {}), self.writer.dropped, self.lease.reached)
        self.lease.clock = self.goodput.seconds
        self.input = InputLog(
            workdir, sources=parts_of(source), max_bad_fraction=setup.data["max_bad_fraction"], keys=setup.log_keys
        )
        self.log = StepLog(
            self.writer, self.input, self.goodput, batch_size=setup.batch_size, total_steps=setup.total_steps,
            every_steps=setup.log_every_steps, max_skipped=setup.guards["max_skipped"], step=self.step,
        )  # fmt: skip

    def run(self) -> None:
        """The loop; whatever ends it, what was logged and saved is on disk."""
        try:
            with self.upkeep.explaining():
                self._run()
        finally:
            with self.watch.phase("end"):
                try:
                    self.feed.close()
                    self.profile.close(self.state)
                    with contextlib.suppress(UserError):  # a save that failed was raised, or what ends the run is
                        self.checkpoints.wait()
                    self.writer.close()
                finally:
                    self.lease.close()
                self.names = self.place.names()
                self.place.close()

    def _run(self) -> None:
        """The order that the module promises."""
        if self.step < self.setup.total_steps:
            train_step = start.compile_and_say(self.setup, self.state, self.watch, self.cache, self.log)
        while True:
            if self._evaluation_is_due():
                self._evaluate()
            if self.step == self.setup.total_steps:
                break
            batch, rows, waited = self._next_batch()
            self.state = start.begin_with(self.setup, self.step, self.state, batch, self.watch)
            with self.watch.phase("step"), self.profile.at(self.step, self.state):
                self.state, metrics = train_step(self.state, batch)
            del batch  # an error would hold it while the feed is closed
            self.step, self.samples_seen = self.step + 1, self.samples_seen + self.setup.batch_size
            self.watch.step = self.step
            self.log.push(self.step, metrics, waited, rows)
            self.place.push()
            if self.step % self.setup.checkpoint["every_steps"] == 0 or self.step == self.setup.total_steps:
                self._save()
        self._finish_saving()

    def _next_batch(self) -> tuple[dict[str, jax.Array], dict[str, Any], float]:
        """The next global batch, under way to the devices, this process's rows, and the seconds that devices waited.

        Raises:
            Preempted, ProcessLost: the run is asked to stop, or a data worker is gone; it is saved.
        """
        started = time.perf_counter()
        with self.watch.phase("data"):
            decision = roll_call(self.watch, self.step, self._is_ready, self.checkpoints.is_due_by_clock)
        waited = time.perf_counter() - started
        if not self.log.is_idle():
            self.watch.move(waited, "data", "step")
            waited = 0.0
        if decision.stop or decision.lost:
            self._stop(decision)
        if decision.save and self.step != self.saved_step:
            self._save()
        self.watch.set_unsaved(True)
        rows = self.feed.take()
        where, given = ({name: rows[name] for name in names} for names in (("part", "index"), batch_of(self.setup)))
        return global_batch(self.setup.mesh, given), where, waited

    def _is_ready(self, seconds: float) -> bool:
        """Whether this process can take the next step; raises what keeps it from ever doing so."""
        self.checkpoints.check_saves()
        had = self.feed.item is not None
        if self.feed.ready(seconds) and not had:
            self.input.add(self.feed.item)
        return self.feed.item is not None

    def _stop(self, decision: Decision) -> None:
        say(f"filip: {decision.end(f'saving step {self.step} and stopping')}")
        self.watch.handled = True
        self._save()
        self._finish_saving()
        say(*self.goodput.table().split("\n"))
        raise decision.end(f"step {self.step} of {self.setup.total_steps} is saved")

    def _save(self) -> None:
        """Starts a save, if this step is not saved yet; the time that training stands still for it is logged."""
        self.log.flush()
        with self.watch.phase("save"):
            service.on_first_process(self.upkeep.look)
            if self.step == self.saved_step:
                return
            started = time.perf_counter()
            self.place.flush()  # a checkpoint never stands before the lines of its steps
            meta = self.meta | {"samples_seen": self.samples_seen, "seconds": self.goodput.totals()}
            self.checkpoints.save(self.step, self.state, meta, self.config)
        self.saved_step = self.step
        self.log.note(save_block=time.perf_counter() - started, save_before=self.checkpoints.seconds)
        self.log.restart_clock(self.step)

    def _finish_saving(self) -> None:
        """Waits until everything is on disk: now a stop would lose nothing."""
        with self.watch.phase("save"):
            service.together(self.checkpoints.wait)
        if self.upkeep.has_lost(self.saved_step):  # somebody removed it
            self.saved_step = None
            self._save()
            service.together(self.checkpoints.wait)
        self.watch.set_unsaved(self.step != self.saved_step)

    def _evaluation_is_due(self) -> bool:
        every, last = self.setup.eval_every_steps, self.step == self.setup.total_steps
        return bool(every and self.step and (self.step % every == 0 or last)) and self.step != self.evaluated_step

    def _evaluate(self) -> None:
        self._save()
        self._finish_saving()
        say(f"step {self.step}: evaluating {', '.join(each.name for each in self.evals)} ...")
        self.eval_guard.step = self.step
        with self.watch.phase("evaluation"):
            model = self.embedder(self.state["ema" if "ema" in self.state else "params"], self.step)
            metrics = run_evals(model, self.evals, self.workdir, self.eval_guard)
            self.writer.write(self.step, metrics)
            where = self.evals, self.checkpoints, self.step, self.config
            service.on_first_process(lambda: record_step(self.workdir, self.step, metrics, tasks_of(*where)))
        self.place.push(now=True)
        self.evaluated_step = self.step
        say(table({f"step {self.step}": metrics}))
        self.log.restart_clock(self.step)
