"""Runs of `filip train`, opened for reading: their config, tokenizer and models."""

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from filip_jax.checkpoint import Checkpoints, abstract
from filip_jax.compiled import keep_programs_of_user
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.inference.embedder import Embedder, one_device
from filip_jax.mesh import check_memory, replicated
from filip_jax.models import Model, make_model, portable
from filip_jax.objectives.total import init_parameters, make_objectives
from filip_jax.saved_config import FILE as CONFIG
from filip_jax.saved_config import TOKENIZER, read_config
from filip_jax.small_files import read_own
from filip_jax.workdir import Workdir


class Run:
    """A workdir of `filip train`, opened for reading; `place` brings what is added to it back into a bucket.

    What is compiled from then on is kept for the next process, unless JAX has been told where.

    Args:
        mesh, batch_size: of its models.

    Raises:
        UserError: no run there, or its tokenizer is missing or not the one it was trained with.
    """

    def __init__(self, workdir: str | Path, mesh: Mesh | None = None, batch_size: int = 64):
        self.place = Workdir(workdir)
        self.workdir, self.mesh = self.place.folder, mesh or one_device()
        try:
            self._open(batch_size)
        except BaseException:
            self.close()
            raise

    def _open(self, batch_size):
        keep_programs_of_user()
        self.config = read_config(self.workdir)
        self.tokenizer = read_tokenizer(self.workdir)
        self.checkpoints = Checkpoints(self.place.name)
        self.objectives = make_objectives(self.config["objectives"])
        self.model = make_model(self.objectives.outputs, **portable(self.config["model"]))
        sizes: dict[str, Any] = {"image_size": self.model.image.size, "text_length": self.model.text.length}
        for key, size in sizes.items():
            if self.config["data"][key] != size:
                raise UserError(
                    f"{self.workdir / CONFIG} is damaged: data.{key}={self.config['data'][key]}, but the model is built for {size}"
                )
        self.embedder: Callable[..., Embedder] = partial(
            Embedder, self.model, self.objectives, self.tokenizer, **sizes, mesh=self.mesh, batch_size=batch_size
        )

    def close(self) -> None:
        """Brings what was added into the bucket, and removes its mirror. Models that were loaded live on."""
        self.place.close()

    def load(self, step: int | None = None, average: bool | None = None) -> Embedder:
        """The model at a step, by default the newest.

        Args:
            average: whether the EMA of the parameters is taken; None takes it where the checkpoint has one.

        Raises:
            UserError: no such checkpoint, one of another model or tokenizer, or one without the average that is wanted.
        """
        steps = self.checkpoints.steps()
        if not steps or (step is not None and step not in steps):
            of_step = "" if step is None else f" of step {step}"
            have = f"; it has steps {', '.join(map(str, steps))}" if steps else " yet"
            raise UserError(f"{self.workdir} has no checkpoint{of_step}{have}")
        step = steps[-1] if step is None else step
        self.checkpoints.check(step)
        check_tokenizer(self.tokenizer, self.checkpoints.meta(step), self.workdir)
        shapes = jax.eval_shape(partial(init_parameters, self.model, self.objectives), jax.random.key(0))
        check_memory(shapes, self.mesh, f"the model of {self.place.name}")
        target = abstract(shapes, jax.tree.map(lambda _: replicated(self.mesh), shapes))
        has_average = self.checkpoints.has(step, "ema")
        if average and not has_average:
            raise UserError(f"the checkpoint of step {step} holds no average of the parameters (ema_decay was 0)")
        part = "ema" if has_average and average is not False else "params"
        origin = self.origin(step, part == "ema")
        return self.embedder(self.checkpoints.restore(step, {part: target})[part], step, origin=origin)

    def origin(self, step: int, average: bool) -> dict[str, Any]:
        """Return what identifies a model of this run: SHA-256 of its config, checkpoint and tokenizer, and `step` and `average`."""
        config = [self.config["model"], *(self.config["data"][name] for name in ("image_size", "text_length"))]
        return {
            "config": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
            "checkpoint": self.checkpoints.sha256(step),
            "tokenizer": self.tokenizer.sha256,
            "step": step,
            "average": average,
        }


def load_model(workdir: str | Path, step: int | None = None) -> Embedder:
    """The model of a run at a step, by default the newest, ready to embed pictures and texts.

    Raises:
        UserError: `workdir` holds no run, no checkpoint of this step, or one of another model.
    """
    run = Run(workdir)
    try:
        return run.load(step)
    finally:
        run.close()


def read_tokenizer(workdir: Path) -> Tokenizer:
    """The run's own tokenizer.

    Raises:
        UserError: it is missing or damaged.
    """
    file, remedy = workdir / TOKENIZER, "bring back the file that the run began with"
    if not os.path.lexists(file):
        raise UserError(f"{workdir} has no tokenizer: {file} is missing; {remedy}")
    data = read_own(file)
    try:
        return Tokenizer(data)
    except UserError as error:
        raise UserError(f"{file} is damaged: {error}; {remedy}") from error


def check_tokenizer(tokenizer: Tokenizer, meta: dict[str, Any], workdir: Path) -> None:
    """Raises a UserError unless the checkpoint was trained with this tokenizer."""
    if tokenizer.sha256 != (saved := meta.get("tokenizer_sha256", "")):
        raise UserError(
            f"{workdir / TOKENIZER} is not the tokenizer of this checkpoint: sha256 {tokenizer.sha256[:12]}… "
            f"instead of {saved[:12]}…; bring back the file that the run began with"
        )


def check_fits(tokenizer: Tokenizer, model: Model) -> None:
    """Raise a UserError unless the text tower takes the tokenizer's ids and pads as they are meant."""
    if tokenizer.vocab_size > (rows := model.text.vocab_size):
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but model.text.vocab_size={rows}: set it to as many or more"
        )
    if tokenizer.pad_id != (pad := model.text.pad_id):
        raise UserError(
            f"the tokenizer's pads are {tokenizer.pad_id}, but model.text.pad_id={pad}: set it to {tokenizer.pad_id}"
        )
    if model.pooling == "tokens" and not model.ends_in_similarity[0] and not tokenizer.has_bos:
        raise UserError(
            "model.bos_in_similarity=False leaves out the first token of a text, but the tokenizer has no BOS: set it to True"
        )
    if model.pooling == "tokens" and not model.ends_in_similarity[1] and tokenizer.eos_is_pad:
        raise UserError(
            "model.eos_in_similarity=False leaves out the last token of a text, but the tokenizer's EOS is its pad, which "
            "never takes part: set it to True"
        )
