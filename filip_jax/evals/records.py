"""The records of an evaluation: checked when it is opened, decoded one by one when it runs."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from jaxtyping import Bool, Float, UInt8

from filip_jax.data.decode import decode
from filip_jax.data.preprocess import centre_view
from filip_jax.data.record import BadRecord, Record
from filip_jax.data.sources import Source
from filip_jax.errors import UserError
from filip_jax.inference import Embedder

TEXTS = 1024  # that are encoded before their pads are cut off


def check_records(source: Source, examples: int, key: str) -> None:
    """Raises a UserError unless the source has so many records, each with a caption."""
    if type(examples) is not int or not 1 <= examples <= len(source):
        raise UserError(f"{key}.examples={examples}, but the source has {len(source)} records")
    for index in range(examples):
        try:
            captions = source.captions(index)
        except BadRecord as error:
            raise UserError(f"{key}: record {' '.join(source.where(index))}: {error}") from error
        if not captions or not captions[0].text.strip():
            raise UserError(f"{key}: record {' '.join(source.where(index))} has an empty caption")


def first_records(source: Source, count: int) -> Iterator[Record]:
    """Records 0 to count - 1, one at a time, images still encoded.

    Raises:
        UserError: one that can not be read; an evaluation replaces none.
    """
    for index in range(count):
        try:
            yield source[index]
        except BadRecord as error:
            raise UserError(f"record {' '.join(source.where(index))}: {error}") from error


def labelled_records(source: Source, kind: str) -> Iterator[Record]:
    """All records, one at a time, each with a label.

    Args:
        kind: of the evaluation, for the message.

    Raises:
        UserError: the source has no classes, at once; a record without label, when it is its turn.
    """
    if not hasattr(source, "class_names"):
        raise UserError(f"{kind} needs a source of labelled images with class names")

    def records():
        for record in first_records(source, len(source)):
            if record.label is None:
                raise UserError(f"{kind} needs a source of labelled images; record {record.key} has no label")
            yield record

    return records()


def views(records: Iterable[Record], size: int) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
    """What the image tower sees of each record, one picture in memory at a time.

    Raises:
        UserError: an image that can not be read, named by its record.
    """
    for record in records:
        try:
            yield centre_view(decode(record.image), size)
        except ValueError as error:
            raise UserError(f"record {record.key}: {error}") from error


def encode_images(model: Embedder, records: Iterable[Record]) -> Float[np.ndarray, "n p d"]:
    """The image tokens of all records; of the pictures one batch is in memory."""
    pictures = views(records, model.image_size)
    batches = iter(lambda: list(islice(pictures, model.batch_size)), [])
    return np.concatenate([model.encode_image(batch) for batch in batches])


def encode_texts(
    model: Embedder, texts: Sequence[str]
) -> tuple[Float[np.ndarray, "n longest d"], Bool[np.ndarray, "n longest"]]:
    """The tokens of all texts and their mask, no longer than the longest text."""
    parts = []
    for start in range(0, len(texts), TEXTS):
        tokens, mask = model.encode_text(texts[start : start + TEXTS])
        long = int(np.where(mask, np.arange(1, mask.shape[1] + 1), 1).max())
        parts.append((tokens[:, :long].copy(), mask[:, :long]))  # the copy lets the rest go
    longest = max(mask.shape[1] for _, mask in parts)
    tokens = [np.pad(tokens, ((0, 0), (0, longest - tokens.shape[1]), (0, 0))) for tokens, _ in parts]
    masks = [np.pad(mask, ((0, 0), (0, longest - mask.shape[1]))) for _, mask in parts]
    return np.concatenate(tokens), np.concatenate(masks)
