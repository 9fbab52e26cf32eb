"""Which record is sample n of a run: a pure function of the seed, the sources' sizes and n.

A mixture deals the samples out to its parts in their proportions. Each part numbers its own samples;
its pass (epoch) over its records is one permutation after the other, of all records or block by block.
Nothing is remembered, so a run's data position is one integer.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from filip_jax.errors import UserError

SHUFFLES = ("global", "block")
ROUNDS = 8
LARGEST = 2**32


@dataclass(frozen=True)
class Part:
    """One source of a mixture: its name, the records of its shards in order, its share of the samples."""

    name: str
    shard_sizes: np.ndarray
    weight: float

    @property
    def size(self) -> int:
        """Number of records."""
        return int(self.shard_sizes.sum())


@dataclass(frozen=True)
class Visit:
    """Record `index` of part `part`, met in the part's own pass `epoch`."""

    part: int
    epoch: int
    index: int


class Order:
    """The order of a run.

    Args:
        parts: with at least one record each.
        seed: of the order; each part has another order in each of its passes, whatever the seed.
        shuffle: "global" permutes all records of a part. "block" permutes its shards, and then the
            records within each block of the shards so strung together: for disks and buckets where
            records of one file are read faster together.
        block_size: records of a block. Longer shards are cut into pieces of that size.

    Raises:
        UserError: a part without records or with more than 2^32, a weight that is no share, or an
            unknown shuffle.
    """

    def __init__(self, parts: Sequence[Part], *, seed: int, shuffle: str, block_size: int):
        if shuffle not in SHUFFLES:
            raise UserError(f"data.shuffle={shuffle!r} is not one of {', '.join(SHUFFLES)}")
        if block_size < 1:
            raise UserError(f"data.block_size={block_size} must be at least 1")
        for part in parts:
            if not 0 < part.size <= LARGEST:
                raise UserError(f"source {part.name} has {part.size} records; an order needs 1 to 2^32 of them")
            if not 0 < part.weight < float("inf"):
                raise UserError(f"source {part.name}: weight={part.weight} must be above 0")
        self.parts, self.seed, self.shuffle, self.block_size = tuple(parts), seed, shuffle, block_size
        weights = [Fraction(part.weight) for part in parts]
        self.shares = [weight / sum(weights[i:]) for i, weight in enumerate(weights)]
        self._cache: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self.pieces = [_cut(part.shard_sizes, block_size) for part in parts] if shuffle == "block" else []

    def visit(self, n: int) -> Visit:
        """Sample n."""
        part, position = self._deal(n)
        epoch, position = divmod(position, self.parts[part].size)
        return Visit(part, epoch, self._record(part, epoch, position))

    def substitute(self, n: int, attempt: int) -> Visit:
        """Return the substitute for sample n when its record and attempt - 1 substitutes cannot be used."""
        part, position = self._deal(n)
        size = self.parts[part].size
        (drawn,) = _keys(1, self.seed, self.parts[part].name, "substitute", n, attempt)
        return Visit(part, position // size, drawn % size)

    def _deal(self, n: int) -> tuple[int, int]:
        """(part, how many samples that part has had): of any first n samples each has its share, to within the number of parts."""
        for part, share in enumerate(self.shares):
            taken = n * share.numerator // share.denominator
            if (n + 1) * share.numerator // share.denominator > taken:
                return part, taken
            n -= taken
        raise AssertionError("the last share is 1")

    def _record(self, part: int, epoch: int, position: int) -> int:
        name, size = self.parts[part].name, self.parts[part].size
        if self.shuffle == "global":
            return permute(position, size, _keys(ROUNDS, self.seed, name, epoch))
        block, offset = divmod(position, self.block_size)
        length = min(self.block_size, size - block * self.block_size)
        offset = permute(offset, length, _keys(ROUNDS, self.seed, name, epoch, block))
        starts, firsts = self._strung(part, epoch)
        piece = int(np.searchsorted(starts, block * self.block_size + offset, side="right")) - 1
        return int(firsts[piece]) + block * self.block_size + offset - int(starts[piece])

    def _strung(self, part: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """For each piece in this pass's order: where it starts in the string, and its first record."""
        strung = self._cache.get((part, epoch))
        if strung is None:
            firsts, sizes = self.pieces[part]
            keys = _keys(ROUNDS, self.seed, self.parts[part].name, epoch)
            order = np.array([permute(piece, len(sizes), keys) for piece in range(len(sizes))])
            strung = np.cumsum(sizes[order]) - sizes[order], firsts[order]
            passed = [key for key in self._cache if key[0] == part and key[1] < epoch - 1]
            self._cache = {key: held for key, held in self._cache.items() if key not in passed} | {
                (part, epoch): strung
            }
        return strung


def permute(position: int, size: int, keys: Sequence[int]) -> int:
    """The image of `position` under a permutation of range(size): a Feistel cipher, walked until it lands inside."""
    bits = max(6, (size - 1).bit_length())
    low_bits = bits // 2
    while True:
        low, high = position & ((1 << low_bits) - 1), position >> low_bits
        low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
        for key in keys:
            low, high = high, (low ^ _mix(high ^ key)) & low_mask
            low_mask, high_mask = high_mask, low_mask
        position = high << low_bits | low
        if position < size:
            return position


def _mix(x: int) -> int:
    x = (x ^ x >> 31) * 0x7FB5D329728EA185 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x81DADEF4BC2DD44D & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 33


@lru_cache(maxsize=4096)
def _keys(count: int, *words: int | str) -> tuple[int, ...]:
    """Numbers of 64 bits that depend on all words: other words, other numbers."""
    text = "\0".join(f"{type(word).__name__} {word}" for word in words)
    return tuple(int(x) for x in np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8 * count).digest(), "<u8"))


def _cut(shard_sizes: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """(first record, size) of pieces: shards, or parts of those that are longer."""
    counts = -(-shard_sizes // longest)
    shard = np.repeat(np.arange(len(shard_sizes)), counts)
    nth = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)
    sizes = np.minimum(longest, shard_sizes[shard] - nth * longest)
    return np.cumsum(sizes) - sizes, sizes
