"""Warnings before a run whose settings can hardly learn anything: the commonest mistakes with few pairs."""

import warnings
from collections.abc import Iterator

from filip_jax.data.sources import Source
from filip_jax.train.setup import Setup

MAX_WARMUP = 0.5  # of the run; above it the peak is hardly used


def advice(setup: Setup, records: int | None) -> Iterator[str]:
    """Yield a line for each setting with which a run learns little or nothing.

    Args:
        records: of the source; None if it draws as many as are asked for.
    """
    batch_size, total_steps, warmup_steps = setup.batch_size, setup.total_steps, setup.optimizer.warmup_steps
    if records and batch_size > records:
        yield f"batch_size={batch_size}, but the source has {records} records: give a smaller one, in which none occurs twice"
    if warmup_steps > MAX_WARMUP * total_steps:
        yield (
            f"optimizer.warmup_steps={warmup_steps} of total_steps={total_steps}: the learning rate rises for most of the run; "
            "a tenth of it is enough"
        )
    if records and total_steps < round(records / batch_size):  # as epochs=1 counts them
        yield (
            f"total_steps={total_steps} of batch_size={batch_size} see {batch_size * total_steps / records:.0%} of the "
            f"{records} records: --config.epochs=N makes N passes over all of them"
        )
    for name, part in setup.objectives.active.items():
        if line := part.advice(batch_size):
            yield f"objectives.{name}.{line}"


def advise(setup: Setup, source: Source) -> None:
    """Warn of each setting with which a run learns little or nothing from a source."""
    for line in advice(setup, None if getattr(source, "is_generated", False) else len(source)):
        warnings.warn(line, stacklevel=3)
