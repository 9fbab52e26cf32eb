"""The work on one piece of a source, in this process or in workers; each result file is whole or absent."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from filip_jax import folders
from filip_jax.cleaning.judge import Judge
from filip_jax.cleaning.repeats import repeats_of, write_array, write_hashes
from filip_jax.cleaning.report import Tally
from filip_jax.cleaning.rules import Rules, text_hash
from filip_jax.data.kept import SCHEMA
from filip_jax.data.record import BadRecord
from filip_jax.data.sources import Source
from filip_jax.files import remove_abandoned, write_atomically
from filip_jax.workers import run as run_workers

PLAN = "plan.json"
RESULT = re.compile(r"plan\.json|repeats\.npy|\d{8,}\.(hashes\.npy|kept\.npy|captions\.arrow|json)")
PIECE = 10_000  # records at most


@dataclass(frozen=True)
class Work:
    """What is to be done, as every worker knows it.

    Attributes:
        folder: of the results.
        records: how many of the source's records are looked at, evenly spread over its first `within`.
        bounds: piece n is the records bounds[n] to bounds[n + 1] of these.
    """

    source: Source
    rules: Rules
    folder: Path
    records: int
    within: int
    bounds: tuple[int, ...]

    def indices(self, piece: int) -> Iterator[int]:
        """The piece's records by their index in the source."""
        return (n * self.within // self.records for n in range(self.bounds[piece], self.bounds[piece + 1]))

    def size(self, piece: int) -> int:
        """How many records the piece has."""
        return self.bounds[piece + 1] - self.bounds[piece]

    def file(self, piece: int, ending: str) -> Path:
        """One of the piece's result files."""
        return self.folder / f"{piece:08}.{ending}"

    def clear(self) -> None:
        """Removes the folder with the results, if nothing else is in it; follows no link."""
        if self.folder.is_dir() and not self.folder.is_symlink():
            remove_abandoned(self.folder, 0.0)
            if all(RESULT.fullmatch(file.name) for file in self.folder.iterdir()):
                root = str(self.folder.parent)
                folders.remove([str(file) for file in self.folder.iterdir()], root)
                folders.remove_empty_folders(str(self.folder), root)


def piece_bounds(shard_sizes: np.ndarray, piece: int) -> tuple[int, ...]:
    """Where pieces of at most `piece` records begin and end: small shards together, large ones in parts."""
    bounds, end = [0], 0
    for size in shard_sizes.tolist():
        if end > bounds[-1] and end + size - bounds[-1] > piece:
            bounds.append(end)
        end += size
        while end - bounds[-1] > piece:
            bounds.append(bounds[-1] + piece)
    return tuple(bounds if end == bounds[-1] else [*bounds, end])


class Worker:
    """A process's share of the work; rules that need models load them once."""

    def __init__(self, work: Work):
        self.work = work
        self.judge: Judge | None = None
        self.repeats: tuple[np.ndarray, np.ndarray] | None = None

    def count(self, piece: int) -> int:
        """First pass: the hashes of the piece's texts, file.hashes.npy."""
        hashes = []
        for index in self.work.indices(piece):
            with contextlib.suppress(BadRecord):  # the second pass counts it
                hashes += [text_hash(caption.text) for caption in self.work.source.captions(index)]
        write_hashes(self.work.file(piece, "hashes.npy"), hashes)
        return piece

    def clean(self, piece: int) -> int:
        """Second pass: the indices kept, the texts changed, and last, as the sign of completion, the counts."""
        work = self.work
        if self.judge is None:
            self.judge = Judge(work.rules)
            if work.rules.max_repeats:
                hashes, counts = np.load(work.folder / "repeats.npy", mmap_mode="r")
                self.repeats = hashes, counts
        repeats = repeats_of(work.file(piece, "hashes.npy"), *self.repeats) if self.repeats else {}
        tally, kept, rows = Tally(), [], []
        for index in work.indices(piece):
            verdict = self.judge.record(work.source, index, repeats)
            tally.add(index, verdict)
            if not verdict.reason:
                kept.append(index)
            if verdict.changed:
                rows += [(index, caption.origin, caption.text) for caption in verdict.kept]
        write_array(work.file(piece, "kept.npy"), np.array(kept, np.int64))
        write_atomically(work.file(piece, "captions.arrow"), _arrow(rows))
        write_atomically(work.file(piece, "json"), json.dumps(tally.described()))
        return piece


def _arrow(rows: list[tuple[int, str, str]]) -> bytes:
    columns: list[tuple[Any, ...]] = list(zip(*rows)) or [(), (), ()]
    texts = [[text.encode("utf-8", "replace").decode("utf-8") for text in column] for column in columns[1:]]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pa.table([columns[0], *texts], schema=SCHEMA))
    return sink.getvalue().to_pybytes()


def run(work: Work, step: str, pieces: list[int], workers: int) -> Iterator[int]:
    """Runs Worker.count or Worker.clean over pieces and yields each when it is done; see `workers.run`."""
    yield from run_workers(_worker, (work, step), pieces, workers)


def _worker(work: Work, step: str) -> Callable[[int], int]:
    return getattr(Worker(work), step)
