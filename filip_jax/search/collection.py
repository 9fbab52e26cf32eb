"""The records that are embedded: which of a source are new, which rows have no record any more, and what is read of each."""

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from filip_jax.data.decode import decode, orientation
from filip_jax.data.preprocess import View, centre_view
from filip_jax.data.record import BadRecord, that_say
from filip_jax.data.sources import PATHS, SOURCES, Source, make_source
from filip_jax.errors import UserError, one_line
from filip_jax.features import Features
from filip_jax.inference import Embedder
from filip_jax.progress import Progress
from filip_jax.sections import options_of
from filip_jax.small_files import is_text
from filip_jax.user_paths import absolute, from_user

NOT_FINITE, NO_UNICODE = "its tokens are not finite numbers", "its name is not valid Unicode"


class Unit(NamedTuple):
    """The source of one row: a record, or one of its captions."""

    record: int
    caption: int


@dataclass(frozen=True)
class Item:
    """The content of a unit, a view or a text, with its fields; or the reason why it cannot be used.

    Attributes:
        reason: why there is no content, or no caption beside it.
        truncated: whether the model's context cuts the text.
    """

    content: View | str | None
    fields: Mapping[str, Any]
    reason: str = ""
    truncated: bool = False


@dataclass(frozen=True)
class Comparison:
    """The difference between a source and the rows: records to add, and rows whose records are gone.

    Attributes:
        records, captions: of the units that have no row, in the source's order.
        removed: the rows without a record.
    """

    records: Int[np.ndarray, " n"]
    captions: Int[np.ndarray, " n"]
    removed: Int[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.records)

    def units(self, start: int, end: int) -> Iterator[Unit]:
        """Yield the units from `start` to `end` - 1."""
        yield from map(Unit, self.records[start:end].tolist(), self.captions[start:end].tolist())


def section_of(section: Mapping[str, Any], side: str) -> dict[str, Any]:
    """Return the section with its paths from the root on, so that it means the same from every folder; and with all images, where a kind of source leaves some out by default."""
    content: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, Mapping):
            content[name] = section_of(value, side)
        elif isinstance(value, str) and value and name in PATHS:
            content[name] = absolute(from_user(value))
        else:
            content[name] = list(value) if isinstance(value, tuple) else value
    kind = SOURCES.get(str(section.get("name")))
    if side == "image" and kind is not None and "every_image" in options_of(kind):
        content.setdefault("every_image", True)
    return content


def check_same_collection(was: Mapping[str, Any], now: Mapping[str, Any], folder: Any) -> None:
    """Raise a UserError if the features of a folder are of another source, by its name and paths."""
    for name in sorted({"name", "path"} & (was.keys() | now.keys())):
        if was.get(name) != now.get(name):
            raise UserError(
                f"{folder} holds features of {name}={was.get(name)}, not {now.get(name)}: name another --output, or say "
                "--moved if these are the same records at another place"
            )
    for name, value in was.items():
        if isinstance(value, Mapping) and isinstance(now.get(name), Mapping):
            check_same_collection(value, now[name], folder)


def place_of(source: Source, section: Mapping[str, Any], index: int) -> tuple[str, str]:
    """Return (shard, key) of a record; the shard without the source's own path, so that a folder may move."""
    shard, key = source.where(index)
    root = section.get("path")
    if isinstance(root, str) and (shard + "/").startswith(root.rstrip("/") + "/"):
        shard = shard[len(root.rstrip("/")) :].lstrip("/")
    return shard, key


def compare(source: Source, section: Mapping[str, Any], features: Features, rows: int, side: str) -> Comparison:
    """Return what is new in the source, and gone from it, beside the first `rows` rows.

    A record is known by its shard and key, a text also by itself. Of several alike as many are new as there are more of
    than rows.
    """
    if not rows and side == "image":
        return Comparison(np.arange(len(source)), np.zeros(len(source), int), np.zeros(0, int))
    known = _Known(features, rows, side)
    records, captions = array("q"), array("q")
    progress = Progress("comparing with the features", len(source))
    for index in range(len(source)):
        place = place_of(source, section, index)
        for nth, text in enumerate(texts_of(source, index) if side == "text" else [""]):
            if not known.take(*place, text):
                records.append(index)
                captions.append(nth)
        progress.advance()
    return Comparison(np.array(records, int), np.array(captions, int), np.flatnonzero(~known.taken))


class _Known:
    """The rows by what they are of; rows of equal records hang together, each leading to the next."""

    def __init__(self, features: Features, rows: int, side: str):
        names = ("shard", "key", "caption") if side == "text" else ("shard", "key")
        parts = list(zip(*(features.column(name).slice(0, rows).chunks for name in names)))
        self.taken: Bool[np.ndarray, " rows"] = np.zeros(rows, bool)
        self.after, self.first = np.full(rows, -1), dict[bytes, int]()
        row = rows
        for columns in reversed(parts):  # one part's texts are in memory at a time
            for texts in reversed(list(zip(*(column.to_pylist() for column in columns)))):
                row, name = row - 1, _digest(*texts)
                self.after[row] = self.first.get(name, -1)
                self.first[name] = row

    def take(self, shard: str, key: str, text: str) -> bool:
        """Return whether there is one more row of this record, which then counts as found."""
        name = _digest(shard, key, text) if text else _digest(shard, key)
        row = self.first.get(name, -1)
        if row < 0:
            return False
        self.taken[row], self.first[name] = True, int(self.after[row])
        return True


def _digest(*texts: str) -> bytes:
    data = b"\0".join(text.encode("utf-8", "surrogatepass").replace(b"\0", b"\0\0") for text in texts)
    return hashlib.blake2b(data, digest_size=16).digest()


def texts_of(source: Source, index: int) -> list[str]:
    """Return the captions that say something; a record that cannot be read has one, so that it is named when it is its turn."""
    try:
        return [caption.text for caption in that_say(source.captions(index))]
    except BadRecord:
        return [""]


class Uncaptioned:
    """The images of a source as it is without captions; it is opened for the first image that is asked for."""

    def __init__(self, source: Source, section: Mapping[str, Any]):
        self.source, self.section, self._lock = source, section, Lock()

    def image(self, index: int) -> Any:
        """Return the image of a record.

        Raises:
            BadRecord: it cannot be read, or the source has other records without captions.
        """
        with self._lock:
            bare = self._opened
        if bare is None or place_of(bare, self.section, index) != place_of(self.source, self.section, index):
            raise BadRecord("its captions cannot be read")
        return bare[index].image

    @cached_property
    def _opened(self) -> Source | None:
        try:
            bare = make_source({**self.section, "caption_keys": []})
        except UserError:  # it has no such option, or other records
            return None
        return bare if len(bare) == len(self.source) else None


def read(source: Source, section: Mapping[str, Any], model: Embedder, side: str, bare: Uncaptioned, unit: Unit) -> Item:
    """Return what the model is given of a unit. A picture whose captions cannot be read is one without a caption.

    Args:
        bare: of the source.

    Raises:
        OSError: the disk or the bucket fails.
    """
    shard, key = place_of(source, section, unit.record)
    fields: dict[str, Any] = {"shard": shard, "key": key, "index": unit.record}
    if not all(is_text(name, 1 << 16) for name in (shard, key)):
        return Item(None, fields, NO_UNICODE)
    try:
        if side == "text":
            texts = that_say(source.captions(unit.record))[unit.caption :]
            if not texts:
                return Item(None, fields, "its caption is gone")
            text = texts[0].text
            _, truncated = model.tokenizer.encode([text], model.text_length)
            return Item(text, fields | {"caption": text}, truncated=bool(truncated[0]))
        image, caption, reason = image_of(source, bare, unit.record)
        picture = decode(image)
        fields |= {"width": picture.width, "height": picture.height, "caption": caption}
        fields["orientation"] = orientation(image) if isinstance(image, bytes) else 1
        return Item(centre_view(picture, model.image_size, model.framing), fields, reason)
    except UserError:
        raise
    except (BadRecord, ValueError) as error:
        return Item(None, fields, one_line(str(error)))


def image_of(source: Source, bare: Uncaptioned, index: int) -> tuple[Any, str, str]:
    """Return (image, first caption, why the captions cannot be read) of a record.

    Raises:
        BadRecord: the image cannot be read.
    """
    try:
        record = source[index]
        texts = that_say(record.captions)
        return record.image, texts[0].text if texts else "", ""
    except BadRecord:
        try:
            source.captions(index)
        except BadRecord as error:  # it is not for the image's sake
            return bare.image(index), "", str(error)
        raise
