"""An exported folder read by our own importer: its values bit by bit, its features of seeded inputs, its ids."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.models import make_model, portable
from filip_jax.paths import unflatten
from filip_jax.weights.exported_run import ExportedRun, Target
from filip_jax.weights.load import read_weights
from filip_jax.weights.report import some

MAX_DIFFERENCE = 1e-5  # of a feature of length 1
IMAGES = 2
POOLING = {"pooled": "global", "tokens": "tokens"}  # of a head
TEXTS = (
    "a photo of a dog", "Two  CATS,\tand a dog!", "it's 12:30", "caf\u00e9 na\u00efve stra\u00dfe", "\u732b\u3068\u72ac",
    "\U0001f436 on grass", "tom &amp; jerry", "\u201ccurly\u201d \u2019quotes\u2019", "<|endoftext|> </s> <eos>", "word " * 100,
)  # fmt: skip


def check_folder(folder: Path, run: ExportedRun, target: Target) -> list[str]:
    """Return what is the same and what differs, a line each.

    Raises:
        UserError: the importer refuses the folder, a value or an id is another one, or a feature differs by more than
            MAX_DIFFERENCE.
    """
    pieces = None if target.reads_texts else run.tokenizer
    imported = read_weights(str(folder), _nothing, family=target.family, pieces=pieces)
    given = run.public(target)
    others = [path for path, value in given.items() if not _same(value, imported.parameters[path])]
    if others:
        raise UserError(
            f"the folder does not read back as it was written: {some(others)} differ; nothing is kept of it"
        )
    tensors = sum(len(names) for rule in target.rules for names in rule.names_of(given[rule.path].shape))
    lines = [f"{tensors} tensors are the same bit by bit"]
    ids = run.tokenizer.encode(TEXTS, run.towers["text"]["length"])[0]
    head = run.head if target.is_whole else "pooled"
    ours = _features(_section(run), given, ids, head)
    theirs = _features(imported.config["model"], imported.parameters, ids, head)
    for side, (first, second) in {"image": (ours[0], theirs[0]), "text": (ours[1], theirs[1])}.items():
        difference = float(np.abs(first - second).max())
        lines.append(f"{side} features of seeded inputs differ by at most {difference:.1e}")
        if not difference <= MAX_DIFFERENCE:
            raise UserError(f"the folder computes something else: {lines[-1]}; nothing is kept of it")
    if target.reads_texts:
        again = Tokenizer(imported.tokenizer).encode(TEXTS, ids.shape[1])[0]
        differ = [
            text for text, first, second in zip(TEXTS, ids, again, strict=True) if not np.array_equal(first, second)
        ]
        if differ:
            raise UserError(
                f"the folder's tokenizer gives other ids than the run's to {len(differ)} of {len(TEXTS)} odd texts, such as "
                f"{differ[0][:24]!r}; nothing is kept of it: --format=safetensors keeps the run's own"
            )
        lines.append(f"{len(TEXTS)} odd texts have the same ids")
    return lines


def _nothing(*lines: str) -> None:
    """Say nothing: the folder's names were said when it was written."""


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    first, second = np.asarray(first), np.asarray(second)
    return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())


def _section(run: ExportedRun) -> dict[str, Any]:
    """Return the section `model` of the run with the head that leaves as the pooled one."""
    model = dict(run.config["model"])
    for side in ("image", "text"):
        model[side] = {**model[side], "projection": run.towers[side]["projection"]}
    return model


def _features(
    section: Mapping[str, Any], parameters: Mapping[str, np.ndarray], ids: np.ndarray, head: str
) -> tuple[Any, Any]:
    """Return the features of random images and of these texts, pooled or tokens, float32."""
    network = make_model({head}, **portable({**section, "dtype": "float32", "remat": False}))
    own = unflatten({path: parameters[path] for path in network.metadata})
    side = network.image.size
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, side, side, 3), dtype=np.uint8)
    with jax.default_matmul_precision("highest"):
        image = jax.jit(partial(network.encode_image, pooling=POOLING[head]))(own, images)
        text, _ = jax.jit(partial(network.encode_text, pooling=POOLING[head]))(own, ids)
    return np.asarray(image), np.asarray(text)
