"""A source as a run sees it: records left out, texts from elsewhere joined, origins weighted."""

import contextlib
import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from filip_jax import storage
from filip_jax.data.identity import extend, identify, parts_of
from filip_jax.data.kept import Kept
from filip_jax.data.record import BadRecord, Caption, Record
from filip_jax.data.side_captions import SideCaptions
from filip_jax.errors import UserError

LOOKED_AT = 256  # records
WEIGHT = 1e9  # the largest


class Joined:
    """A source with the options that all sources share.

    Args:
        source: of any kind.
        weights: how often a text of each origin is drawn, beside the others that a record has; origins
            that are not named are left out. None takes all origins alike.
        side: texts by key.
        kept: the records that a filter left.
        record_key: the origin of the text by which the side file knows a record, which is no caption then; "" is its key.
    """

    def __init__(
        self, source, *, weights: Mapping[str, float] | None, side: SideCaptions | None, kept: Kept | None,
        record_key: str = "",
    ):  # fmt: skip
        self.source, self.weights, self.side, self.kept = source, weights, side, kept
        self.record_key = record_key
        self.shard_sizes, self.seen = source.shard_sizes, source.seen
        self.identity = source.identity
        self.left_out = getattr(source, "left_out", {})
        if side is not None:
            self.identity = extend(self.identity, side_captions=side.identity, origins=list(weights or side.origins))
            self.seen += f"; the side file holds {', '.join(side.origins)}"
            self._warn_of_strangers(side)
        if kept is not None:
            kept.check(self.identity, len(source))
            bounds = np.searchsorted(kept.indices, np.concatenate([[0], np.cumsum(source.shard_sizes)]))
            self.shard_sizes, self.identity = np.diff(bounds), extend(self.identity, keep=kept.identity)
        if hasattr(source, "class_names"):
            self.class_names = source.class_names
        if hasattr(source, "image_head"):
            self.image_head = self._image_head

    def _warn_of_strangers(self, side: SideCaptions) -> None:
        count, keys = min(LOOKED_AT, len(self.source)), list[str]()
        for there in (n * len(self.source) // count for n in range(count)):
            with contextlib.suppress(BadRecord):
                keys.append(self._key(there, self.source.captions(there) if self.record_key else ()))
        if keys and not any(map(side.of, keys)):
            warnings.warn(
                f"the side file has no text for any of {len(keys)} records looked at: its keys read {side.some_key!r}, "
                f"the data's {keys[0]!r}",
                stacklevel=4,
            )

    def __len__(self) -> int:
        return len(self.source if self.kept is None else self.kept)

    def __getitem__(self, index: int) -> Record:
        record = self.source[self._index(index)]
        return dataclasses.replace(record, captions=self._join(index, record.captions, record.key))

    def where(self, index: int) -> tuple[str, str]:
        return self.source.where(self._index(index))

    def captions(self, index: int) -> tuple[Caption, ...]:
        return self._join(index, self.source.captions(self._index(index)))

    def _image_head(self, index: int) -> bytes:
        return self.source.image_head(self._index(index))

    def _index(self, index: int) -> int:
        return index if self.kept is None else int(self.kept.indices[index])

    def _key(self, there: int, captions: tuple[Caption, ...], key: str = "") -> str:
        """Return what the side file calls a record of the source, "" if nothing says it; `key` is its own, where it is known."""
        if not self.record_key:
            return key or self.source.where(there)[1]
        return next((caption.text for caption in captions if caption.origin == self.record_key), "")

    def _join(self, index: int, captions: tuple[Caption, ...], key: str = "") -> tuple[Caption, ...]:
        there = self._index(index)
        replaced = self.kept.replaced(there) if self.kept is not None else ()
        if replaced:
            captions = replaced
        elif self.side is not None:
            captions += self.side.of(self._key(there, captions, key))
        if self.weights is None:
            return captions
        captions = tuple(caption for caption in captions if caption.origin in self.weights)
        if len(captions) == 1:
            return captions  # one is drawn, whatever its weight
        of_origin = Counter(caption.origin for caption in captions)
        return tuple(
            dataclasses.replace(caption, weight=self.weights[caption.origin] / of_origin[caption.origin])
            for caption in captions
        )


class Mixture:
    """Several sources, dealt out to the samples of a run by weight; as a list, one after the other.

    Args:
        parts: by name, which seeds each part's order.
        weights: shares of the samples, of all parts or of none; without them all records count alike.

    Raises:
        UserError: weights of some parts only, or one that is no number above 0.
    """

    def __init__(self, parts: Mapping[str, Any], weights: Mapping[str, Any]):
        self.parts = dict(parts)
        for name in parts:
            weight = weights.get(name)
            if weights and (
                isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= WEIGHT
            ):
                raise UserError(
                    f"source.{name}.weight={weight!r}: give each part of a mixture a number above 0, up to {WEIGHT:g}, "
                    "or none of them"
                )
        self.weights = {name: float(weights.get(name, len(part))) for name, part in parts.items()}
        self.shard_sizes = np.concatenate([part.shard_sizes for part in parts.values()])
        self.identity = identify(**{name: parts_of(part.identity) for name, part in parts.items()})
        self.left_out = sum((Counter(getattr(part, "left_out", {})) for part in parts.values()), Counter())
        self.seen = "; ".join(f"{name}: {part.seen}" for name, part in parts.items())
        self.ends = np.cumsum([len(part) for part in parts.values()])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Record:
        name, index = self._part(index)
        return self.parts[name][index]

    def where(self, index: int) -> tuple[str, str]:
        """Return shard and key of a record; before the shard stands the part's name, for files of two parts may be named alike."""
        name, index = self._part(index)
        shard, key = self.parts[name].where(index)
        return storage.join(name, shard) if shard else name, key

    def captions(self, index: int) -> tuple[Caption, ...]:
        name, index = self._part(index)
        return self.parts[name].captions(index)

    def _part(self, index: int) -> tuple[str, int]:
        number = int(np.searchsorted(self.ends, index, side="right"))
        name = list(self.parts)[number]
        return name, index - int(self.ends[number]) + len(self.parts[name])
