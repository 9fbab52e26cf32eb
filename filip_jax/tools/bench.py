"""The input pipeline alone: how fast it is, where its time goes, and what to change."""

import os
import resource
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from filip_jax.data.pipeline import batches, make_order, parts_of
from filip_jax.data.preprocess import training_views
from filip_jax.data.record import BadRecord
from filip_jax.data.samples import draw_captions
from filip_jax.data.sources import Source
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.framing import CLIP_FRAMING, Framing
from filip_jax.sections import call

STAGES = ("read", "decode and augment", "tokenise", "batch")
CORES = os.cpu_count() or 1


def bench(
    source: Source,
    tokenizer: Tokenizer,
    *,
    data: Mapping[str, Any],
    batch_size: int,
    seed: int,
    samples: int,
    framing: Framing = CLIP_FRAMING,
) -> str:
    """A report for people: seconds by stage on one core, then the whole pipeline as configured.

    Args:
        data: a config's section.
        samples: how many are timed, in each of both parts.
        framing: of the evaluation view, see `batches`.

    Raises:
        UserError: no samples are asked for.
    """
    if samples < 1:
        raise UserError(f"samples={samples} must be at least 1")
    stages, bad = time_stages(source, tokenizer, data, seed, samples, framing)
    total = sum(stages.values())
    lines = [f"{samples} samples one after the other, on one core ({bad} could not be used):"]
    lines += [f"  {name:20}{1e6 * stages[name] / samples:8.0f} us  {stages[name] / total:4.0%}" for name in STAGES]
    lines += [f"  {'all':20}{1e6 * total / samples:8.0f} us  {samples / total:.0f} images/s"]
    least_wait = 0.1 * batch_size * total / samples / CORES
    rate, cores = time_pipeline(source, tokenizer, data, batch_size, seed, samples, least_wait, framing)
    workers, threads = data["workers"], data["threads"]
    lines.append(
        f"the pipeline with workers={workers}, threads={threads}: {rate:.0f} images/s "
        f"on {cores:.1f} busy cores of {CORES}, {rate / max(cores, 0.01):.0f} images/s/core"
    )
    return "\n".join([*lines, f"advice: {advice(stages, cores, data)}"])


def time_stages(
    source: Source,
    tokenizer: Tokenizer,
    data: Mapping[str, Any],
    seed: int,
    samples: int,
    framing: Framing = CLIP_FRAMING,
) -> tuple[dict[str, float], int]:
    """(seconds by stage, records that could not be used) over samples in the run's order."""
    order = make_order(source, seed=seed, shuffle=data["shuffle"], block_size=data["block_size"])
    sources, seconds, rows, bad = list(parts_of(source).values()), dict.fromkeys(STAGES, 0.0), [], 0
    for n in range(samples):
        visit, rng = order.visit(n), np.random.default_rng(n)
        clock = [time.perf_counter()]
        try:
            record = sources[visit.part][visit.index]
            clock.append(time.perf_counter())
            count = data.get("views", 1)
            views = training_views(record.image, data["image_size"], rng, count, framing, **data["augment"])
            clock.append(time.perf_counter())
            captions = data.get("captions_per_image", 1), data.get("split_captions", "")
            texts = draw_captions(record.captions, rng, *captions)
            rows.append((views, tokenizer.encode(texts, data["text_length"])[0]))
            clock.append(time.perf_counter())
        except UserError:
            raise
        except (BadRecord, ValueError):
            bad += 1
        for name, start, end in zip(STAGES, clock, clock[1:]):
            seconds[name] += end - start
        if len(rows) == 64 or n == samples - 1:
            started = time.perf_counter()
            [np.stack([row for sample in column for row in sample]) for column in zip(*rows)]
            seconds["batch"] += time.perf_counter() - started
            rows = []
    return seconds, bad


def time_pipeline(
    source: Source,
    tokenizer: Tokenizer,
    data: Mapping[str, Any],
    batch_size: int,
    seed: int,
    samples: int,
    least_wait: float,
    framing: Framing = CLIP_FRAMING,
) -> tuple[float, float]:
    """(images/s, cores that were busy) of the pipeline, when what it had prepared before is used up.

    That is so when each worker's last two batches came only after `least_wait` seconds.
    """
    stream = call(
        batches,
        data,
        "data",
        source=source,
        tokenizer=tokenizer,
        batch_size=batch_size,
        seed=seed,
        start=0,
        process_index=0,
        process_count=1,
        framing=framing,
    )
    in_a_row, waits = 2 * max(data["workers"], 2), 0
    for _ in range(20 * in_a_row):
        waits = waits + 1 if _waited(stream) > least_wait else 0
        if waits == in_a_row:
            break
    count = max(4, -(-samples // batch_size))
    started, busy = time.perf_counter(), _cpu_seconds()
    for _ in range(count):
        _waited(stream)
    seconds, busy = time.perf_counter() - started, _cpu_seconds() - busy
    stream.close()
    return count * batch_size / seconds, busy / seconds


def _waited(stream: Iterator[Any]) -> float:
    """Seconds until the next batch was there."""
    started = time.perf_counter()
    next(stream)  # bound to no name, so that its memory is free at once
    return time.perf_counter() - started


def _cpu_seconds() -> float:
    """Of this process and of its workers that run."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ticks = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            ticks += int(fields[11]) + int(fields[12])
    return own.ru_utime + own.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def advice(stages: Mapping[str, float], cores: float, data: Mapping[str, Any]) -> str:
    """The one change that promises most."""
    share = {name: seconds / sum(stages.values()) for name, seconds in stages.items()}
    if share["read"] > 0.5:
        where = (
            "data.shuffle=block reads neighbours together" if data["shuffle"] == "global" else "copy the data nearer"
        )
        return f"reading takes {share['read']:.0%}: {where}; `filip data convert` makes one read of each record"
    if cores < 0.7 * CORES:
        return f"{CORES - cores:.1f} cores are idle: try more data.workers (now {data['workers']})"
    if share["decode and augment"] > 0.5:
        return (
            f"all cores are busy, decoding and augmenting take {share['decode and augment']:.0%}: "
            f"`filip data convert --short_side={round(data['image_size'] * 1.15)}` stores smaller images; "
            "data.augment.auto_augment=False costs less"
        )
    return "all cores are busy, and no stage stands out"
