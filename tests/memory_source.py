"""Sources in memory for the tests of cleaning; a module of its own, so that worker processes load nothing else."""

import os
import time

import numpy as np

from filip_jax.data.record import BadRecord, Caption, Record


class Memory:
    """Records from lists.

    Args:
        texts: of each record its captions, or None for a record that cannot be read.
        sizes: width and height of each picture, or None for one that cannot be read.
    """

    seen = "lists"

    def __init__(self, texts, sizes=None, shard_sizes=None, identity="memory"):
        self.texts, self.sizes = texts, sizes or [(300, 300)] * len(texts)
        self.shard_sizes, self.identity = np.array(shard_sizes or [len(texts)]), identity

    def __len__(self) -> int:
        return len(self.texts)

    def captions(self, index: int) -> tuple[Caption, ...]:
        if self.texts[index] is None:
            raise BadRecord("no such record")
        return tuple(Caption(text, f"origin{n}") for n, text in enumerate(self.texts[index]))

    def where(self, index: int) -> tuple[str, str]:
        return "memory", str(index)

    def __getitem__(self, index: int) -> Record:
        size = self.sizes[index]
        image = np.zeros((size[1], size[0], 3), np.uint8) if size else b"no picture"
        return Record(str(index), image, self.captions(index))


class Interrupted(Memory):
    """Stops with KeyboardInterrupt at the `reads`-th reading of captions."""

    reads = -1

    def captions(self, index: int) -> tuple[Caption, ...]:
        if self.reads == 0:
            raise KeyboardInterrupt
        self.reads -= 1
        return super().captions(index)


class Slow(Memory):
    """Takes 10 ms a record."""

    def captions(self, index: int) -> tuple[Caption, ...]:
        time.sleep(0.01)
        return super().captions(index)


class Deadly(Memory):
    """Kills the process that reads record 7."""

    def captions(self, index: int) -> tuple[Caption, ...]:
        if index == 7:
            os._exit(9)
        return super().captions(index)
