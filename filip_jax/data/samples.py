"""The samples of a run: order -> record -> captions, views, tokens.

Sample n of a run is a pure function of (seed, n).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from filip_jax.data.each_caption import ImageNumbers
from filip_jax.data.order import Order, Visit
from filip_jax.data.preprocess import View, training_views
from filip_jax.data.record import BadRecord, Caption, Record, that_say
from filip_jax.data.sentences import draw_merged, sentences_of
from filip_jax.data.sources import Source
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.framing import CLIP_FRAMING, Framing

Batch = dict[str, Any]
ENDLESS = 2**62
SUBSTITUTES = 32  # that are tried for one sample


@dataclass(frozen=True)
class Bad:
    """A record that could not be used, and why."""

    part: str
    shard: str
    key: str
    reason: str


class Samples:
    """The global stream, by number: one row of what `batches` gives, and `bad`.

    A record that cannot be used is replaced by another of its part, drawn by the sample's number;
    `bad` names each that was tried before.
    """

    def __init__(
        self, parts: Mapping[str, Source], order: Order, tokenizer: Tokenizer, *, image_size: int, text_length: int,
        augment: Mapping[str, Any], seed: int, groups: bool = False, captions_per_image: int = 1, views: int = 1,
        framing: Framing = CLIP_FRAMING, split_captions: str = "",
    ):  # fmt: skip
        self.names, self.sources, self.order = list(parts), list(parts.values()), order
        self.tokenizer, self.image_size, self.text_length, self.augment = tokenizer, image_size, text_length, augment
        self.captions_per_image, self.views, self.framing = captions_per_image, views, framing
        self.split_captions = split_captions
        self.image_number = ImageNumbers(self.sources) if groups else None
        self.key = int.from_bytes(hashlib.blake2b(f"samples {seed}".encode(), digest_size=8).digest(), "little")

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, n: int) -> Batch:
        bad: list[Bad] = []
        for attempt in range(SUBSTITUTES + 1):
            visit = self.order.substitute(n, attempt) if attempt else self.order.visit(n)
            try:
                return self._row(visit, self.generator(n, attempt)) | {"bad": tuple(bad)}
            except BadRecord as error:
                bad.append(Bad(self.names[visit.part], *self.sources[visit.part].where(visit.index), str(error)))
        raise UserError(
            f"sample {n}: {len(bad)} records in a row of {bad[0].part} cannot be used; "
            f"the last is {bad[-1].key} of {bad[-1].shard}: {bad[-1].reason}"
        )

    def generator(self, n: int, attempt: int) -> np.random.Generator:
        """Return the generator of sample n's captions and views, when `attempt` records could not be used."""
        key = np.array([self.key, n], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, attempt]))

    def _row(self, visit: Visit, rng: np.random.Generator) -> Batch:
        record, counts = self.sources[visit.part][visit.index], (self.captions_per_image, self.views)
        texts, views = draw_sample(
            record, rng, self.image_size, self.augment, *counts, self.framing, self.split_captions
        )
        ids, truncated = self.tokenizer.encode(texts, self.text_length)
        row: Batch = {
            "image": np.stack(views) if self.views > 1 else views[0],
            "label": np.int32(-1 if record.label is None else record.label),
            "ids": ids[0],
            "truncated": truncated.any(),
            "part": np.int32(visit.part),
            "index": np.int64(visit.index),
        }
        if self.captions_per_image > 1:
            absent = self.captions_per_image - len(texts)
            row["ids"] = np.pad(ids, ((0, absent), (0, 0)), constant_values=self.tokenizer.pad_id)
            row["caption_weight"] = np.array([1] * len(texts) + [0] * absent, np.float32)
        if self.image_number:
            row["group"] = self.image_number(visit.part, visit.index)
        return row


def draw_sample(
    record: Record,
    rng: np.random.Generator,
    image_size: int,
    augment: Mapping[str, Any],
    captions: int = 1,
    views: int = 1,
    framing: Framing = CLIP_FRAMING,
    split: str = "",
) -> tuple[list[str], list[View]]:
    """Return so many captions, or as many as there are, and so many views of a record.

    Args:
        split: see `draw_captions`.

    Raises:
        BadRecord: it has no caption, or its image cannot be read.
    """
    texts = draw_captions(record.captions, rng, captions, split)
    try:
        return texts, training_views(record.image, image_size, rng, views, framing, **augment)
    except ValueError as error:
        raise BadRecord(str(error)) from error


def draw_captions(captions: Sequence[Caption], rng: np.random.Generator, count: int = 1, split: str = "") -> list[str]:
    """Return `count` different texts, or as many as there are, each drawn by weight from those that are left.

    Texts that say nothing are never drawn.

    Args:
        split: one of `SPLITS`. "sentences" draws from the captions' sentences, see `sentences_of`; "diverse" merges some of
            them, see `draw_merged`.

    Raises:
        BadRecord: there is none.
    """
    left, texts = that_say(captions), list[str]()
    if not left:
        raise BadRecord("no caption")
    if split == "diverse":
        return draw_merged(left, rng, count)
    left = sentences_of(left) if split else left
    while left and len(texts) < count:
        texts.append(_draw_caption(left, rng))
        left = tuple(caption for caption in left if caption.text not in texts)
    return texts


def _draw_caption(captions: Sequence[Caption], rng: np.random.Generator) -> str:
    if len(captions) == 1:
        return captions[0].text
    ends = np.cumsum([caption.weight for caption in captions])
    return captions[int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))].text
