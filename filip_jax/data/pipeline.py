"""Grain: samples -> this process's rows of each global batch.

Hosts, workers and threads only decide who makes a sample. Every per-sample step therefore comes first, on the one
global stream; the cut into processes comes last, in contiguous blocks of the global batch.
"""

import errno
import os
import re
import signal
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from filip_jax.data.each_caption import EachCaption
from filip_jax.data.joined import Mixture
from filip_jax.data.order import Order, Part
from filip_jax.data.preprocess import check_augment
from filip_jax.data.record import BadRecord, kind_of
from filip_jax.data.samples import ENDLESS, Batch, Samples, draw_sample
from filip_jax.data.sentences import SPLITS
from filip_jax.data.sources import Source
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError, one_line
from filip_jax.framing import CLIP_FRAMING, Framing
from filip_jax.sections import call
from filip_jax.workers import lost

MOST_AT_ONCE = 4096  # workers, and threads of a worker
MAX_OF_IMAGE = 64  # captions, and views
TRIED = 64  # records that are looked at before a run
REMEDY = "lower data.workers or data.threads, or give the machine more memory"
# Reading needs no disk: workers hand batches over in /dev/shm. The kernel sends these signals in a like shortage.
SHORTAGES = {errno.ENOSPC: -signal.SIGBUS, errno.ENOMEM: -signal.SIGKILL}
WRITTEN_LIST = re.compile(r"\[\s*(\"|').*\1\s*\]|\{\s*(\"|').*\}", re.DOTALL)
AS_ONE_TEXT = (
    "a list or object that was written as text, as pandas' to_csv does, is one caption: write JSON lines or parquet"
)
SINGLE = "source"  # the name of the part if there is no mixture


class _ProcessBatches(grain.MapDataset):
    """One process's rows of each global batch: a contiguous block, so that row order ignores the process count.

    Grain sees batches and no rows: what it does for each element would be a tenth of the time of a small picture.
    """

    def __init__(self, samples: Samples, batch_size: int, start: int, process_index: int, process_count: int):
        super().__init__(grain.MapDataset.source(samples))
        self._samples, self._batch_size, self._rows = samples, batch_size, batch_size // process_count
        self._first = start + process_index * self._rows

    def __len__(self) -> int:
        return ENDLESS // self._batch_size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        first = index * self._batch_size + self._first
        return _stack([self._samples[n] for n in range(first, first + self._rows)])


def _stack(rows: Sequence[Batch]) -> Batch:
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0] if name != "bad"}
    return arrays | {"bad": tuple(bad for row in rows for bad in row["bad"])}


def parts_of(source: Source) -> dict[str, Source]:
    """The sources of a mixture by name, or the one."""
    return source.parts if isinstance(source, Mixture) else {SINGLE: source}


def make_order(source: Source, *, seed: int, shuffle: str, block_size: int) -> Order:
    """The order of a run over a source."""
    weights = source.weights if isinstance(source, Mixture) else {SINGLE: 1.0}
    parts = [Part(name, part.shard_sizes, weights[name]) for name, part in parts_of(source).items()]
    return Order(parts, seed=seed, shuffle=shuffle, block_size=block_size)


def check_numbers(
    *,
    workers: int,
    threads: int,
    text_length: int,
    max_bad_fraction: float,
    augment: Mapping[str, Any],
    captions_per_image: int = 1,
    views: int = 1,
    split_captions: str = "",
    **others: Any,
) -> None:
    """Raise a UserError for numbers of the `data` section that cannot be."""
    ranges = {
        "workers": (0, workers, MOST_AT_ONCE),
        "threads": (0, threads, MOST_AT_ONCE),
        "captions_per_image": (1, captions_per_image, MAX_OF_IMAGE),
        "views": (1, views, MAX_OF_IMAGE),
    }
    for key, (least, value, most) in ranges.items():
        if not least <= value <= most:
            raise UserError(f"data.{key}={value} must be at least {least} and at most {most}")
    if split_captions not in SPLITS:
        raise UserError(f"data.split_captions={split_captions!r} is not one of {', '.join(map(repr, SPLITS))}")
    if text_length < 3:
        raise UserError(f"data.text_length={text_length} must be at least 3: BOS, a token, EOS")
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"data.max_bad_fraction={max_bad_fraction} must be in [0, 1]")
    call(check_augment, augment, "data.augment")


def _check_memory(images: int, image_size: int) -> None:
    """Raise a UserError if a batch's rows of one process are more than the host's memory holds."""
    needed, there = images * image_size**2 * 3, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UserError(
            f"batch_size: {images} pictures of data.image_size={image_size} in a process are {needed / 1e9:.0f} GB; "
            f"the host has {there / 1e9:.0f} GB"
        )


def check_usable(source: Source, image_size: int, augment: Mapping[str, Any]) -> None:
    """Looks at some records of each part, evenly spread over it.

    Raises:
        UserError: none of them can be used; it says why, and what the data holds.
    """
    for name, part in parts_of(source).items():
        count = min(TRIED, len(part))
        reasons, example = Counter[str](), ""
        for index in (n * len(part) // count for n in range(count)):
            try:
                [text], _ = draw_sample(part[index], np.random.default_rng(0), image_size, augment)
                if WRITTEN_LIST.fullmatch(text.strip()):
                    said = f"{' '.join(part.where(index))} has the caption {text:.80}"
                    warnings.warn(one_line(f"{name}: {said}: {AS_ONE_TEXT}"), stacklevel=2)
                break
            except BadRecord as error:
                reasons[kind_of(str(error))] += 1
                example = example or f"; the first is {' '.join(part.where(index))}: {error}"
        else:
            why = "; ".join(f"{reason} ({times})" for reason, times in reasons.most_common(3))
            found = f"none of {count} records looked at can be used: {why}{example}" if count else "it has no records"
            raise UserError(f"{name}: {found}. It is {part.seen}")


def batches(
    source: Source,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    image_size: int,
    text_length: int,
    augment: Mapping[str, Any],
    shuffle: str,
    block_size: int,
    max_bad_fraction: float,
    seed: int,
    workers: int,
    threads: int,
    start: int,
    process_index: int,
    process_count: int,
    groups: bool = False,
    captions_per_image: int = 1,
    views: int = 1,
    split_captions: str = "",
    framing: Framing = CLIP_FRAMING,
) -> "Batches":
    """Endless batches of this process's rows.

    {image uint8 [rows, size, size, 3], label int32 [rows], -1 for none, ids int32 [rows, length], truncated bool [rows],
    part int32 and index int64 [rows]: which record of which part, bad: the records that were replaced; with groups also
    group int32 [rows]: which image; with several captions per image `ids` is [rows, captions, length], and beside it stands
    caption_weight float32 [rows, captions]; with several views `image` is [rows, views, size, size, 3]}

    Args:
        batch_size: of the global batch; `rows` is its share of one process.
        augment: arguments of `training_views`.
        shuffle, block_size: see `Order`.
        max_bad_fraction: of a part's records that cannot be used, above which a run ends (the trainer counts).
        seed: of the order, of which captions are drawn, and of the augmentation.
        workers: processes that prepare batches; 0 prepares in threads of this process.
        threads: that prepare batches, per worker.
        start: how many samples of the global stream the run has consumed.
        groups: whether rows say which image they show; it is the same number in all processes.
        captions_per_image: different texts that are drawn for each row. An image that has fewer has all of them first;
            the rest of its row is absent: pads, with caption_weight 0 where the others have 1.
        views: of each image, which is decoded once.
        split_captions: whether texts are drawn from sentences of the captions, see `draw_captions`.
        framing: of the evaluation view, which is trained on where the augmentation crops nothing.

    Raises:
        UserError: the batch does not split over the processes or is larger than this host's memory, an empty
            source, a number out of range, more images than groups can name.
    """
    check_numbers(
        workers=workers, threads=threads, text_length=text_length, max_bad_fraction=max_bad_fraction, augment=augment,
        captions_per_image=captions_per_image, views=views, split_captions=split_captions,
    )  # fmt: skip
    if batch_size % process_count:
        raise UserError(f"batch_size={batch_size} is not divisible by {process_count} processes")
    if len(source) == 0:
        raise UserError("the data source is empty")
    if captions_per_image > 1 and any(isinstance(part, EachCaption) for part in parts_of(source).values()):
        raise UserError(
            f"data.captions_per_image={captions_per_image}, but each_caption=True makes each caption a sample of its own: "
            "set one of them"
        )
    _check_memory(batch_size // process_count * views, image_size)
    order = make_order(source, seed=seed, shuffle=shuffle, block_size=block_size)
    samples = Samples(
        parts_of(source), order, tokenizer,
        image_size=image_size, text_length=text_length, augment=augment, seed=seed, groups=groups,
        captions_per_image=captions_per_image, views=views, framing=framing, split_captions=split_captions,
    )  # fmt: skip
    whole = _ProcessBatches(samples, batch_size, start, process_index, process_count)
    dataset = whole.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if workers:
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes insist on it
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return Batches(iter(dataset))


class Batches:
    """Grain's iterator, in whose errors a worker process that is gone is said in words.

    Raises:
        ProcessLost: a worker was killed, or no memory is left.
    """

    def __init__(self, batches: Any):
        self.batches, self.close = batches, batches.close

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            return next(self.batches)
        except (RuntimeError, MemoryError, OSError) as error:
            # Grain gives the exit code nowhere else.
            killed = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
            if killed:
                raise lost("a data worker", int(killed[1]), REMEDY) from error
            number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
            if number in SHORTAGES:
                raise lost("a data worker", SHORTAGES[number], REMEDY, f"failed ({os.strerror(number)})") from error
            raise
