"""The records of an evaluation: checked when it is opened, decoded one by one when it runs."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from filip_jax.data.decode import decode
from filip_jax.data.preprocess import centre_view
from filip_jax.data.record import Record
from filip_jax.data.sources import Source
from filip_jax.errors import UserError
from filip_jax.inference import Embedder


def check_records(source: Source, examples: int, key: str) -> None:
    """Raises a UserError unless the source has so many records, each with a caption."""
    if examples < 1 or examples > len(source):
        raise UserError(f"{key}.examples={examples}, but the source has {len(source)} records")
    for index in range(examples):
        if not source.captions(index)[0].text.strip():
            raise UserError(f"{key}: record {source[index].key} has an empty caption")


def first_records(source: Source, count: int) -> list[Record]:
    """Records 0 to count - 1, images still encoded."""
    return [source[index] for index in range(count)]


def views(records: Sequence[Record], size: int) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
    """What the image tower sees of each record, one picture in memory at a time.

    Raises:
        UserError: an image that can not be read, named by its record.
    """
    for record in records:
        try:
            yield centre_view(decode(record.image), size)
        except ValueError as error:
            raise UserError(f"record {record.key}: {error}") from error


def encode_images(model: Embedder, records: Sequence[Record]) -> Float[np.ndarray, "n p d"]:
    """The image tokens of all records, batch by batch."""
    starts = range(0, len(records), model.batch_size)
    batches = (list(views(records[start : start + model.batch_size], model.image_size)) for start in starts)
    return np.concatenate([model.encode_image(batch) for batch in batches])
