"""Grain: source -> shuffle -> decode, augment, tokenise -> this process's rows of each global batch.

Sample n of a run is a pure function of (seed, n): hosts, workers and threads only decide who makes
it. Every per-sample step therefore comes first, on the one global stream; the cut into processes
comes last, in contiguous blocks of the global batch.
"""

from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from filip_jax.data.preprocess import AUGMENTATIONS, decode
from filip_jax.data.sources import Source
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.sections import choose

Batch = dict[str, np.ndarray]


class _Prepare(grain.transforms.RandomMap):
    """A record as the arrays of one row; the generator's state depends on (seed, n) only."""

    def __init__(self, tokenizer: Tokenizer, image_size: int, text_length: int, augment: str):
        self.tokenizer, self.text_length = tokenizer, text_length
        self.image_size, self.augment = image_size, choose(AUGMENTATIONS, augment, "data.augment")

    def random_map(self, record, rng: np.random.Generator):
        try:
            picture = decode(record.image)
        except ValueError as error:
            raise UserError(f"record {record.key}: {error}") from error
        ids, truncated = self.tokenizer.encode([record.caption], self.text_length)
        image = self.augment(picture, self.image_size, rng)
        return {"image": image, "ids": ids[0], "truncated": truncated[0]}


class _ProcessRows(grain.MapDataset):
    """Of each global batch the rows of one process: its block, so row order ignores the process count."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, process_index: int, process_count: int):
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, batch_size // process_count
        self._first = process_index * self._rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self._rows

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        step, row = divmod(index, self._rows)
        return self._parent[step * self._batch_size + self._first + row]


def check_numbers(workers: int, threads: int, text_length: int) -> None:
    """Raises a UserError for numbers of the `data` section that can not be."""
    if workers < 0 or threads < 0 or text_length < 3:
        raise UserError(
            f"data.workers={workers} and data.threads={threads} must be at least 0, "
            f"data.text_length={text_length} at least 3: BOS, a token, EOS"
        )


def batches(
    source: Source,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    image_size: int,
    text_length: int,
    augment: str,
    seed: int,
    workers: int,
    threads: int,
    start: int,
    process_index: int,
    process_count: int,
) -> Iterator[Batch]:
    """Endless batches {image uint8 [rows, size, size, 3], ids int32 [rows, length], truncated bool [rows]}.

    Args:
        batch_size: of the global batch; `rows` is its share of one process.
        augment: one of `AUGMENTATIONS`.
        seed: of the order, which is a new permutation in every epoch, and of the augmentation.
        workers: processes that prepare batches; 0 prepares in threads of this process.
        threads: that prepare batches, per worker.
        start: how many samples of the global stream the run has consumed.

    Raises:
        UserError: the batch does not split over the processes, an empty source, a number out of range.
    """
    check_numbers(workers, threads, text_length)
    if batch_size % process_count:
        raise UserError(f"batch_size={batch_size} is not divisible by {process_count} processes")
    if len(source) == 0:
        raise UserError("the data source is empty")
    stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    stream = stream.random_map(_Prepare(tokenizer, image_size, text_length, augment))
    rows = _ProcessRows(stream, batch_size, process_index, process_count)
    whole = rows.batch(batch_size // process_count, drop_remainder=True)[start // batch_size :]
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset = whole.to_iter_dataset(reading)
    if workers:
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes insist on it
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(dataset)
