"""The records of an evaluation: checked when it is opened, read and decoded ahead of the model when it runs."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from filip_jax.ahead import in_order
from filip_jax.data.decode import decode
from filip_jax.data.preprocess import box_in_centre_view, centre_view
from filip_jax.data.record import BadRecord, Record, Region, that_say
from filip_jax.data.sources import Source
from filip_jax.errors import UserError
from filip_jax.framing import CLIP_FRAMING, Framing
from filip_jax.inference import Embedder

T = TypeVar("T")

CAPTIONS = 256  # that are read ahead
TEXTS = 1024  # that are encoded before their pads are cut off


@dataclass(frozen=True)
class View(Record):
    """A record as the image tower sees it."""

    image: np.ndarray


def check_records(source: Source, examples: int, key: str) -> None:
    """Raises a UserError unless the source has so many records, each with a caption that is not blank."""
    if len(source) == 0:
        raise UserError(f"{key}: the source has no records. It is {source.seen}")
    if type(examples) is not int or examples < 1:
        raise UserError(f"{key}.examples={examples} must be a whole number and at least 1")
    if examples > len(source):
        raise UserError(f"{key}.examples={examples}, but the source has {len(source)} records: set at most that")

    def captions(index):
        try:
            return source.captions(index)
        except BadRecord as error:
            raise UserError(f"{key}: record {' '.join(source.where(index))}: {error}") from error

    for index, found in enumerate(in_order(captions, range(examples), CAPTIONS)):
        if not that_say(found):
            raise UserError(f"{key}: record {' '.join(source.where(index))} has an empty caption")


def prepared(source: Source, count: int, prepare: Callable[[Record], T], ahead: int) -> Generator[T, None, None]:
    """What `prepare` makes of records 0 to count - 1, in order, by threads ahead of the caller, see `in_order`.

    Raises:
        UserError: one that cannot be read, or what `prepare` raises, when it is its turn; an evaluation replaces none.
    """

    def one(index):
        try:
            record = source[index]
        except BadRecord as error:
            raise UserError(f"record {' '.join(source.where(index))}: {error}") from error
        return prepare(record)

    return in_order(one, range(count), ahead)


def views(
    source: Source, count: int, size: int, ahead: int, framing: Framing = CLIP_FRAMING
) -> Generator[View, None, None]:
    """Records 0 to count - 1 `as_seen`; raises what `prepared` raises."""
    return prepared(source, count, partial(as_seen, size=size, framing=framing), ahead)


def labelled_views(
    source: Source, kind: str, size: int, ahead: int, framing: Framing = CLIP_FRAMING
) -> Generator[View, None, None]:
    """All records `as_seen`, each with a label.

    Args:
        kind: of the evaluation, for the message.

    Raises:
        UserError: the source has no classes, at once; a record without label, when it is its turn.
    """
    classes_of(source, kind)

    def one(record: Record) -> View:
        if record.label is None:
            raise UserError(f"{kind} needs a source of labelled images; record {record.key} has no label")
        return as_seen(record, size, framing)

    return prepared(source, len(source), one, ahead)


def classes_of(source: Source, kind: str, place: str = "source") -> Sequence[str]:
    """Return the names of the source's classes.

    Args:
        kind: of the evaluation, for the message.
        place: where the source stands in its section, for the message.

    Raises:
        UserError: it has none.
    """
    names = getattr(source, "class_names", None)
    if names is None:
        raise UserError(f"{kind} needs labelled images with class names; {place} has none")
    return names


def as_seen(record: Record, size: int, framing: Framing = CLIP_FRAMING) -> View:
    """The record as the image tower sees it: its image is the centre view, and boxes are in pixels of that.

    Raises:
        UserError: an image that cannot be read, named by its record.
    """
    picture = open_picture(record)
    regions = seen_regions(record, picture, size, framing)
    view = centre_view(picture, size, framing)
    return View(record.key, view, record.captions, record.shard, record.label, regions)


def open_picture(record: Record) -> Image.Image:
    """The record's image, decoded. Raises a UserError, which names the record, if it cannot be read."""
    try:
        return decode(record.image)
    except ValueError as error:
        raise UserError(f"record {record.key}: {error}") from error


def seen_regions(
    record: Record, picture: Image.Image, size: int, framing: Framing = CLIP_FRAMING
) -> tuple[Region, ...]:
    """The record's regions with boxes in pixels of its picture's centre view, beyond which they may reach."""
    boxes = [box_in_centre_view(each.box, picture.size, size, framing) for each in record.regions]
    return tuple(replace(each, box=box) for each, box in zip(record.regions, boxes))


def encode_images(model: Embedder, records: Iterator[View]) -> tuple[Float[np.ndarray, "n p d"], list[int | None]]:
    """The image tokens of all records `as_seen`, and their labels; two batches of pictures are in memory."""
    tokens, labels = [], []
    while batch := list(islice(records, model.batch_size)):
        tokens.append(model.encode_image([record.image for record in batch]))
        labels += [record.label for record in batch]
        del batch  # before the next one is there
    return np.concatenate(tokens), labels


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
