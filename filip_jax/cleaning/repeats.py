"""How often each text stands in a data set that does not fit into memory: hashes on disk, counted in parts."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt64

from filip_jax.files import write_atomically

Hashes = UInt64[np.ndarray, " n"]
Distinct = UInt64[np.ndarray, " m"]
PART = 1 << 22  # hashes that are counted at once, about 70 bytes each


def write_hashes(file: Path, hashes: Iterable[int]) -> None:
    """The different hashes of one piece, ascending, and how often each is there: file.npy [2, n] of uint64."""
    write_array(file, np.stack(_counted(np.fromiter(hashes, np.uint64))))


def write_array(file: Path, array: np.ndarray) -> None:
    """A .npy file, whole or absent."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomically(file, buffer.getvalue())


def count_repeats(files: list[Path], most: int, part: int = PART) -> tuple[Hashes, Hashes]:
    """The hashes that are in the files more than `most` times, ascending, and their counts.

    Every part reads from each file its own range of hashes, so that memory is bounded by `part` and each
    file is read once.
    """
    total = sum(np.load(file, mmap_mode="r").shape[1] for file in files)
    parts = max(1, -(-total // part))
    edges = [round(n * 2**64 / parts) for n in range(1, parts)]
    found, start = [], [0] * len(files)
    for n in range(parts):
        pieces = []
        for at, file in enumerate(files):
            table = np.load(file, mmap_mode="r")
            end = int(np.searchsorted(table[0], np.uint64(edges[n]))) if n < parts - 1 else table.shape[1]
            pieces.append(np.array(table[:, start[at] : end]))
            start[at] = end
        hashes, counts = _counted(*np.concatenate(pieces, axis=1))
        often = counts > most
        found.append((hashes[often], counts[often]))
    hashes, counts = (np.concatenate(column) for column in zip(*found))
    return hashes, counts


def repeats_of(file: Path, hashes: Hashes, counts: Hashes) -> dict[int, int]:
    """Of one piece's hashes those that are in `hashes` (ascending), with their counts in the whole data."""
    if not len(hashes):
        return {}
    own = np.load(file)[0]
    at = np.searchsorted(hashes, own)
    at[at == len(hashes)] = 0
    same = hashes[at] == own
    return dict(zip(own[same].tolist(), counts[at[same]].tolist()))


def _counted(hashes: Hashes, counts: Hashes | None = None) -> tuple[Distinct, Distinct]:
    """The different hashes, ascending, and the sums of their counts (1 if none are given)."""
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    counts = np.ones(len(hashes), np.uint64) if counts is None else counts[order]
    first = np.flatnonzero(np.diff(hashes, prepend=hashes[:1] ^ np.uint64(1)))
    return hashes[first], np.add.reduceat(counts, first) if len(first) else counts
