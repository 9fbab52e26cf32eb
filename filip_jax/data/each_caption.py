"""Every caption of an image as a sample of its own, as in fine-tuning for retrieval (FILIP, table 10)."""

import dataclasses
from typing import Any

import numpy as np

from filip_jax.data.identity import extend
from filip_jax.data.record import BadRecord, Caption, Record, that_say
from filip_jax.errors import UserError
from filip_jax.progress import Progress

MOST = 2**32  # captions, as of what an order can number
MOST_IMAGES = 2**31  # that have a number of 32 bits


class EachCaption:
    """A source whose records are the (image, caption) pairs of another, an image's own in a row.

    All captions are read once when it opens, in every process of a run: of 100,000 images that is seconds from a
    disk, minutes from a bucket. Held are four bytes an image. Captions that say nothing are left out; a record without
    any, or one that cannot be read, counts as one pair, so that training replaces and names it.

    Args:
        source: of any kind.

    Raises:
        UserError: 2^32 captions or more.
    """

    def __init__(self, source):
        progress, counts = Progress("counting captions", len(source)), np.zeros(len(source), np.uint32)
        for index in range(len(source)):
            counts[index] = _count(source, index)
            progress.advance()
        ends = np.cumsum(counts, dtype=np.int64)
        if len(ends) and ends[-1] >= MOST:
            raise UserError(f"each_caption=True: {ends[-1]} captions are more than 2^32")
        shards = np.concatenate([[0], np.cumsum(source.shard_sizes)])
        self.source, self.ends = source, ends.astype(np.uint32)
        self.shard_sizes = np.diff(np.concatenate([[0], ends])[shards])
        self.identity, self.seen = extend(source.identity, each_caption=True), source.seen
        self.left_out = getattr(source, "left_out", {})
        if hasattr(source, "class_names"):
            self.class_names = source.class_names
        if hasattr(source, "image_head"):
            self.image_head = self._image_head

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> Record:
        image, nth = self._place(index)
        record = self.source[image]
        captions = that_say(record.captions)[nth : nth + 1]
        first = captions == record.captions[:1]
        return dataclasses.replace(record, captions=captions, regions=record.regions if first else ())

    def captions(self, index: int) -> tuple[Caption, ...]:
        image, nth = self._place(index)
        return that_say(self.source.captions(image))[nth : nth + 1]

    def where(self, index: int) -> tuple[str, str]:
        return self.source.where(self.image_of(index))

    def image_of(self, index: int) -> int:
        """Which image of the source a pair has."""
        return int(np.searchsorted(self.ends, np.uint32(index), side="right"))

    def _image_head(self, index: int) -> bytes:
        return self.source.image_head(self.image_of(index))

    def _place(self, index: int) -> tuple[int, int]:
        """(the image, which of its captions)."""
        image = self.image_of(index)
        return image, index - (int(self.ends[image - 1]) if image else 0)


def _count(source: Any, index: int) -> int:
    try:
        return max(1, len(that_say(source.captions(index))))
    except BadRecord:
        return 1


class ImageNumbers:
    """A number below 2^31 for each image of several sources; pairs of one image have the same.

    Args:
        sources: images of different ones are different images.

    Raises:
        UserError: they have more images than there are numbers.
    """

    def __init__(self, sources):
        self.sources = list(sources)
        counts = [len(each.source if isinstance(each, EachCaption) else each) for each in self.sources]
        self.firsts = np.cumsum([0, *counts])
        if self.firsts[-1] > MOST_IMAGES:
            raise UserError(
                f"an objective's positives='image' numbers up to 2^31 images; the source has {self.firsts[-1]}"
            )

    def __call__(self, part: int, index: int) -> np.int32:
        """Of record `index` of source `part`."""
        source = self.sources[part]
        image = source.image_of(index) if isinstance(source, EachCaption) else index
        return np.int32(self.firsts[part] + image)
