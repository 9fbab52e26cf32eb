"""The rows of columnar files, parquet's or Arrow's: images, or their paths, in one column and texts in others."""

import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from traceback import walk_tb
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from filip_jax import storage
from filip_jax.data.column_types import (
    field_advice,
    holds_image,
    holds_text,
    inner_type,
    label_names,
    listed,
    option_advice,
    said_type,
)
from filip_jax.data.identity import digest, digest_of_files, identify
from filip_jax.data.listed import FROM, read_listed
from filip_jax.data.packed import PACKED_BYTES, refuse_other
from filip_jax.data.record import HEAD_BYTES, IMAGE_BYTES, METADATA_BYTES, BadRecord, Caption, Record
from filip_jax.data.scalars import value_of
from filip_jax.data.values import embedded_image, field_of, image_of, texts_of
from filip_jax.errors import UserError, one_line
from filip_jax.plain import counted
from filip_jax.walk import say_left_out

KEPT = 1 << 29  # bytes of columns that a process keeps
MAX_PATH_BYTES = 1024  # of a row, beyond which a column of images holds more than paths; of a key
MAX_IMAGE_VALUE = 2 * IMAGE_BYTES  # bytes, for base64 is longer than its image


class Footer(NamedTuple):
    """The rows of each piece of a file, its schema, and two hashes: all that is known once it is opened.

    One is of its captions' columns, one of what else rows are known by: their key and, where the column of the image
    holds them, the paths.
    """

    sizes: list[int]
    schema: pa.Schema
    captions: str
    rows: str


class Columnar(ABC):
    """The rows of columnar files; a row group or record batch is a shard.

    Args:
        found: the files.
        path: as the user named them, for messages.
        image, caption_keys, key, images: see `Parquet`.

    Attributes:
        left_out: {reason: files of the folder that do not count}.
        label_names: the names of the classes of each column that Hugging Face's `datasets` has as a ClassLabel.

    Raises:
        UserError: files that cannot be read, or that lack a column or have it twice, or of a type that holds no such thing.
    """

    # These are not pickled: each process has its own.
    _columns: OrderedDict[tuple[int, str], Any]
    _lock: threading.Lock
    _bytes: int

    def __init__(
        self, found: Sequence[storage.Found], path: str, left_out: Counter[str], *, image: str, caption_keys: Sequence[str], key: str, images: str
    ):  # fmt: skip
        self.files = [file.path for file in found]
        self.names = storage.names_below(path, self.files)
        self.image, self.caption_keys, self.key, self.images = image, tuple(caption_keys), key, images
        self.left_out = left_out
        self.__setstate__({})
        try:
            with ThreadPoolExecutor(32) as pool:
                footers = list(pool.map(self._footer, self.files))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if _is_of_the_disk(error, path):
                raise
            for file in self.files:
                refuse_other(storage.read(file, 0, PACKED_BYTES), file, type(self).__name__.lower())
            raise UserError(f"path={path!r} cannot be read as {type(self).__name__.lower()}: {error}") from error
        self.columns = {name: column_of(name, footers[0].schema) for name in (image, *caption_keys)}
        for file, footer in zip(self.files, footers):
            self._check(file, footer.schema)
        self.shard_sizes = np.array([size for footer in footers for size in footer.sizes], np.int64)
        self.ends = np.cumsum(self.shard_sizes).tolist()
        self.groups = [(file, group) for file, footer in enumerate(footers) for group in range(len(footer.sizes))]
        self.label_names = label_names(footers[0].schema)
        self.seen = (
            f"{counted(len(found), 'file')} with the columns {listed(footers[0].schema)}{say_left_out(left_out)}"
        )
        self.identity = identify(
            names=digest(map(storage.name_of, self.files)),
            sizes=digest(str(file.size) for file in found),
            records=len(self),
            captions=digest_of_files((footer.captions for footer in footers), storage.is_remote(path)),
            rows=digest_of_files((footer.rows for footer in footers), storage.is_remote(path)),
            image=image,
            key=key,
            caption_keys=self.caption_keys,
        )

    @abstractmethod
    def _footer(self, path: str) -> Footer:
        """What is known of a file before its rows are read."""

    @abstractmethod
    def _read(self, path: str, number: int, name: str) -> pa.ChunkedArray | pa.Array:
        """A column of a piece of a file. Raises BadRecord if it is damaged."""

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Record:
        data = self._image(index, IMAGE_BYTES + 1)
        if len(data) > IMAGE_BYTES:
            raise BadRecord(f"an image of more than {IMAGE_BYTES} bytes")
        shard, key = self.where(index)
        return Record(key, data, self.captions(index), shard=shard)

    def where(self, index: int) -> tuple[str, str]:
        group, row = self._place(index)
        file, number = self.groups[group]
        name = self.names[file]
        if self.key:
            with suppress(BadRecord):  # it still has a number
                if (key := self._value(group, row, self.key, MAX_PATH_BYTES)) is not None:
                    return name, str(key)
        first = self.ends[group - number - 1] if group > number else 0
        return name, str(index - first)

    def captions(self, index: int) -> tuple[Caption, ...]:
        group, row = self._place(index)
        found = []
        for key in self.caption_keys:
            found += [Caption(text, key) for text in texts_of(self._value(group, row, key))]
        return tuple(found)

    def _value(self, group: int, row: int, name: str, most: int = METADATA_BYTES) -> Any:
        """Return the value of a row in a column, or in a field of one; only this is converted, and only up to `most` bytes."""
        column, *fields = self.columns.get(name, [name])
        scalar = self._column(group, column)[row]
        try:
            return field_of(value_of(scalar, most, fields), fields)
        except BadRecord as error:
            raise BadRecord(f"column {column}: {error}") from error

    def image_head(self, index: int) -> bytes:
        """The first bytes of the encoded image."""
        return self._image(index, HEAD_BYTES)

    def _image(self, index: int, most: int) -> bytes:
        group, row = self._place(index)
        image = image_of(self._value(group, row, self.image, MAX_IMAGE_VALUE), self.image)
        if isinstance(image, bytes):
            return image[:most]
        if (data := embedded_image(image, most)) is not None:
            return data[:most]
        folder = self.images or storage.folder_of(self.files[self.groups[group][0]])
        return read_listed(folder, image, most, "" if self.images else FROM)

    def _place(self, index: int) -> tuple[int, int]:
        group = bisect_right(self.ends, index)
        return group, index - self.ends[group] + int(self.shard_sizes[group])

    def _column(self, group: int, name: str) -> pa.ChunkedArray | pa.Array:
        """A column of a row group; the latest ones are kept."""
        with self._lock:
            if (group, name) in self._columns:
                self._columns.move_to_end((group, name))
                return self._columns[group, name]
            file, number = self.groups[group]
            column = self._read(self.files[file], number, name)
            self._columns[group, name] = column
            self._bytes += column.nbytes
            others = [place for place in self._columns if place[0] != group]  # each record needs all of its group's
            while self._bytes > KEPT and others:
                self._bytes -= self._columns.pop(others.pop(0)).nbytes
            return column

    def _check(self, file: str, schema: pa.Schema) -> None:
        """Raises a UserError if a column that is wanted is missing, is there twice, or cannot hold what is wanted of it."""
        kinds = {"image": holds_image, "caption_keys": holds_text, "key": lambda _: True}
        names = [("image", self.image), *(("caption_keys", key) for key in self.caption_keys), ("key", self.key)]
        wanted = [(option, name, self.columns.get(name, [name])) for option, name in names if name or option != "key"]
        absent = {option: name for option, name, (column, *_) in reversed(wanted) if column not in schema.names}
        if absent:
            say = " and ".join(option_advice(option, schema, kinds[option], self.image) for option in reversed(absent))
            missing = " and no column ".join(map(repr, reversed(absent.values())))
            raise UserError(f"{file} has no column {missing}; it has {listed(schema)}; {say}")
        for option, name, (column, *fields) in wanted:
            if schema.names.count(column) > 1:
                raise UserError(f"{file} has two columns {column!r}: rename one, so that it is clear which is meant")
            kind = inner_type(schema.field(column).type, fields)
            if kind is None:
                raise UserError(
                    f"{file}: the column {column!r} has no field {'.'.join(fields)!r}; it has {listed(schema)}"
                )
            if not kinds[option](kind):
                what = f"is {said_type(kind)}, which holds no {'images' if option == 'image' else 'texts'}"
                fits = kinds[option]
                say = field_advice(option, name, kind, fits) or option_advice(option, schema, fits, self.image)
                raise UserError(f"{file}: the column {name!r} {what}; it has {listed(schema)}; {say}")

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state):
        vars(self).update(state, _columns=OrderedDict(), _lock=threading.Lock(), _bytes=0)


def column_of(name: str, schema: pa.Schema) -> list[str]:
    """Return [column, field, …] of a name a.b.c; a column may have dots in its name, too."""
    return [name] if name in schema.names else name.split(".")


def _is_of_the_disk(error: Exception, path: str) -> bool:
    """Return whether the disk or the bucket failed, not the file; errors of a bucket's driver may have no number."""
    if not isinstance(error, OSError) or error.errno or not storage.is_remote(path):
        return isinstance(error, OSError) and bool(error.errno)
    frames = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    return storage.name_of(storage.folder_of(frames[-1])) != "pyarrow"  # which raises what it finds in a file itself


def damage(error: Exception, path: str, name: str, number: int) -> BadRecord:
    """Return the bad record that an error while reading a column stands for; raises one that is the disk's or the bucket's."""
    if _is_of_the_disk(error, path):
        raise error
    return BadRecord(f"column {name} of piece {number} is damaged: {one_line(str(error))[:200]}")
