"""The one trainer.

Its order is a contract: evaluate if due -> take a batch -> step -> log -> save if due. A step's
metrics are written before its checkpoint, its evaluations after it; so a run killed anywhere goes
on from the newest checkpoint with every step logged once and no evaluation missed.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from filip_jax import __version__
from filip_jax.checkpoint import CheckpointWriter, abstract
from filip_jax.config import check_same_run, save_config
from filip_jax.data.pipeline import batches, check_usable, parts_of
from filip_jax.data.sources import Source, fingerprint, make_source
from filip_jax.data.tokenizer import Tokenizer, make_tokenizer
from filip_jax.errors import UserError
from filip_jax.evals.run import Eval, forget_after, is_recorded, open_evals, record_step, run_evals, table
from filip_jax.files import write_atomically
from filip_jax.inference import TOKENIZER, Embedder, check_tokenizer, read_tokenizer
from filip_jax.mesh import global_batch, of_first_process, on_first_process, replicated
from filip_jax.sections import call
from filip_jax.train.input_log import InputLog
from filip_jax.train.metrics import MetricWriter, StepLog, say
from filip_jax.train.setup import Setup, make_setup
from filip_jax.train.step import State


def train(workdir: Path, config: Mapping[str, Any]) -> None:
    """Trains the run of `workdir` to its last step, from its newest checkpoint if it has one.

    Raises:
        UserError: a config, data or checkpoint that can not be, or a loss that is not finite.
    """
    setup = call(make_setup, config, "(top level)")
    source = _open_source(setup)
    evals = open_evals(setup.evals) if setup.eval_every_steps else []
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file")
    if setup.batch_size > len(source):
        warnings.warn(f"batch_size={setup.batch_size}, but the source has only {len(source)} records", stacklevel=2)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = call(CheckpointWriter, setup.checkpoint, "checkpoint", workdir=workdir)
    started = bool(checkpoints.steps())
    if started:
        check_same_run(workdir, config)
    tokenizer = _prepare_tokenizer(workdir, setup, source, started=started)
    on_first_process(lambda: save_config(workdir, config))
    Trainer(workdir, setup, source, evals, tokenizer, checkpoints).run()
    say(f"done: {workdir} holds {', '.join(sorted(file.name for file in workdir.iterdir()))}")


class Trainer:
    """A run in progress: its state, its step and what watches them."""

    def __init__(
        self,
        workdir: Path,
        setup: Setup,
        source: Source,
        evals: Sequence[Eval],
        tokenizer: Tokenizer,
        checkpoints: CheckpointWriter,
    ):
        self.workdir, self.setup, self.evals, self.checkpoints = workdir, setup, evals, checkpoints
        self.meta = {
            "tokenizer_sha256": tokenizer.sha256, "data_sha256": fingerprint(source), "filip_jax_version": __version__,
        }  # fmt: skip
        image_size, text_length = setup.data["image_size"], setup.data["text_length"]
        self.embedder = Embedder(
            setup.model, tokenizer, image_size=image_size, text_length=text_length, mesh=setup.mesh
        )
        self.state, self.step, self.samples_seen = self._start(tokenizer)
        self.rows = call(
            batches, setup.data, "data", source=source, tokenizer=tokenizer, batch_size=setup.batch_size,
            seed=setup.seed, start=self.samples_seen,
            process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip
        on_first_process(lambda: forget_after(workdir, self.step))
        self.evaluated_step = self.step if of_first_process(is_recorded(workdir, self.step, evals)) else None
        self.writer = MetricWriter(workdir, step=self.step, evaluated=self.evaluated_step is not None)
        bad = setup.data["max_bad_fraction"]
        self.input = InputLog(workdir, parts=list(parts_of(source)), max_bad_fraction=bad)
        self.log = StepLog(
            self.writer, self.input, batch_size=setup.batch_size, total_steps=setup.total_steps,
            every_steps=setup.log_every_steps, step=self.step,
        )  # fmt: skip

    def _start(self, tokenizer: Tokenizer) -> tuple[State, int, int]:
        """(state, step, data position): the newest checkpoint on this mesh, or a state that is born sharded."""
        setup, steps = self.setup, self.checkpoints.steps()
        if steps:
            say(f"{self.workdir}: resuming at step {steps[-1]} of {setup.total_steps}")
            meta = self.checkpoints.meta(steps[-1])
            check_tokenizer(tokenizer, meta, self.workdir)
            if meta["data_sha256"] != self.meta["data_sha256"]:
                raise UserError(
                    f"the data of {self.workdir} is not what the run began with: its files, their sizes or their "
                    "number of records changed; bring them back or start in a new --workdir"
                )
            state = self.checkpoints.restore(steps[-1], abstract(setup.shapes, setup.shardings))
            return state, steps[-1], meta["samples_seen"]
        say(f"{self.workdir}: starting on {jax.device_count()} {jax.devices()[0].device_kind} devices")
        with jax.set_mesh(setup.mesh):
            return jax.jit(setup.init, out_shardings=setup.shardings)(jax.random.key(setup.seed)), 0, 0

    def run(self) -> None:
        """The loop; whatever ends it, what was logged and saved is on disk."""
        try:
            self._run()
        finally:
            self.rows.close()
            self.writer.close()
            self.checkpoints.close()

    def _run(self) -> None:
        """The order that the module promises."""
        train_step = None
        while True:
            if self._evaluation_is_due():
                self._evaluate()
            if self.step == self.setup.total_steps:
                break
            batch, waited = self._next_batch()
            if train_step is None:
                train_step, waited = self._compile(batch), 0.0
            self.state, metrics = train_step(self.state, batch)
            self.step, self.samples_seen = self.step + 1, self.samples_seen + self.setup.batch_size
            self.log.push(self.step, metrics, waited)
            if self.step % self.checkpoints.every_steps == 0 or self.step == self.setup.total_steps:
                self._save()

    def _next_batch(self) -> tuple[dict[str, jax.Array], float]:
        """The next global batch, under way to the devices, and the seconds that they waited for it."""
        started = time.perf_counter()
        rows = next(self.rows)
        waited = time.perf_counter() - started if self.log.is_idle() else 0.0
        self.input.add(rows)
        return global_batch(self.setup.mesh, {"image": rows["image"], "ids": rows["ids"]}), waited

    def _compile(self, batch: dict[str, jax.Array]):
        setup, started = self.setup, time.perf_counter()
        say("compiling the training step ...")
        outputs = (setup.shardings, replicated(setup.mesh))
        with jax.set_mesh(setup.mesh):
            lowered = jax.jit(setup.train_step, donate_argnums=0, out_shardings=outputs).lower(self.state, batch)
            compiled = lowered.compile()
        say(f"compiled in {time.perf_counter() - started:.1f} s")
        self.log.restart_clock(self.step)
        return compiled

    def _save(self) -> None:
        self.log.flush()
        self.checkpoints.save(self.step, self.state, self.meta | {"samples_seen": self.samples_seen})
        self.log.restart_clock(self.step)

    def _evaluation_is_due(self) -> bool:
        every, last = self.setup.eval_every_steps, self.step == self.setup.total_steps
        due = every and self.step and (self.step % every == 0 or last)
        return bool(due) and self.step != self.evaluated_step

    def _evaluate(self) -> None:
        self.log.flush()
        say(f"step {self.step}: evaluating {', '.join(each.name for each in self.evals)} ...")
        parameters = self.state.get("ema", self.state["params"])
        metrics = run_evals(self.embedder.with_parameters(parameters, self.step), self.evals, self.workdir)
        self.writer.write(self.step, metrics)
        on_first_process(lambda: record_step(self.workdir, self.step, metrics))
        self.evaluated_step = self.step
        say(table({f"step {self.step}": metrics}))
        self.log.restart_clock(self.step)


def _open_source(setup: Setup) -> Source:
    """The run's source, some of its records tried; process 0 goes first, since it may have to index the data."""

    opened = []

    def open_and_try():
        opened.append(make_source(setup.source))
        check_usable(opened[0], setup.data["image_size"], setup.data["augment"])

    on_first_process(open_and_try)
    return opened[0] if opened else make_source(setup.source)


def _prepare_tokenizer(workdir: Path, setup: Setup, source: Source, *, started: bool) -> Tokenizer:
    """The tokenizer the run started with, else that of tokenizer.path, else one trained on captions.

    Raises:
        UserError: no such file, or more ids than the model's vocabulary.
    """

    def make():
        if setup.tokenizer["name"] == "sentencepiece" and not setup.tokenizer["path"]:
            say(f"training a tokenizer of at most {setup.tokenizer['vocab_size']} pieces")
        write_atomically(workdir / TOKENIZER, make_tokenizer(source=source, **setup.tokenizer))

    if not started:
        on_first_process(make)
    tokenizer = read_tokenizer(workdir)
    rows = setup.shapes["params"]["text"]["token_embedding"].shape[0]
    if tokenizer.vocab_size > rows:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} ids, but model.text.vocab_size={rows}")
    return tokenizer
