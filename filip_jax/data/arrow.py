"""Arrow files: folders of Hugging Face's `datasets` (save_to_disk, and its cache), and files of pyarrow and polars.

They are mapped into memory, so a record costs the bytes that it has, in any order.
"""

import hashlib
import math
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from filip_jax import storage
from filip_jax.data.arrow_messages import check_unpacked
from filip_jax.data.column_types import inner_type, is_list, is_text
from filip_jax.data.columnar import KEPT, MAX_PATH_BYTES, Columnar, Footer, column_of, damage
from filip_jax.data.row_groups import MAX_COLUMN_BYTES
from filip_jax.errors import UserError

SUFFIXES = (".arrow", ".feather", ".ipc")
READERS = 64  # columns of files that stay open
MAX_UNPACKED = KEPT // READERS  # bytes of a compressed stream that are kept, of its latest batch any
MAGIC = b"ARROW1"  # of a file whose batches have an index; a stream has none
SAVED = re.compile(r"data-\d{5}-of-\d{5}\.arrow")  # as save_to_disk names files, in a folder for each split
SPLIT = re.compile(r"(?:-([A-Za-z]\w*?)|^(train|validation|val|test))(-\d{5}-of-\d{5})?\.arrow$")
MADE = re.compile(r"(cache|tmp)[-\w]*\.arrow")  # what `datasets` computed beside its data


class Arrow(Columnar):
    """The rows of Arrow files; a record batch is a shard.

    Args:
        path: a folder, a pattern or braces; local.
        split: "train", of a folder with several; "" where it has no others.
        image, caption_keys, key, images: see `Parquet`.

    Raises:
        UserError: no such files or split, files that are no Arrow, or what `Columnar` raises.
    """

    reads = SUFFIXES

    def __init__(
        self, *, path: str, split: str = "", image: str = "image", caption_keys: Sequence[str] = ("caption",),
        key: str = "", images: str = "",
    ):  # fmt: skip
        if storage.is_remote(path):
            raise UserError(f"path={path!r}: Arrow files are mapped into memory: copy them to a disk")
        left_out: Counter[str] = Counter()
        files = storage.find(path, SUFFIXES, "path", left_out)
        found = _of_split(files, path, split, left_out)
        super().__init__(found, path, left_out, image=image, caption_keys=caption_keys, key=key, images=images)

    def _footer(self, path: str) -> Footer:
        schema = _opened(path).schema
        check_unpacked(path, *_mapped(path), MAX_COLUMN_BYTES)
        captions = dict.fromkeys(tuple(column_of(name, schema)) for name in self.caption_keys)
        first = next((name for name, *_ in captions if name in schema.names), "")  # of which no batch is large
        batches = _batches(path, schema.names.index(first) if first else 0) if schema.names else ()
        column, *fields = image = column_of(self.image, schema)
        kind = inner_type(schema.field(column).type, fields) if schema.names.count(column) == 1 else None
        others = _hash_of(path, schema, [[self.key], *([image] if kind and is_text(kind) else [])], MAX_PATH_BYTES)
        return Footer([batch.num_rows for batch in batches], schema, _hash_of(path, schema, captions), others)

    def _read(self, path: str, number: int, name: str) -> pa.Array:
        try:
            column = self._reader(path, name).get_batch(number).column(0)
            column.validate(full=True)  # or a wrong offset would read what is not the file's
            return column
        except (pa.ArrowException, OSError, IndexError, ValueError) as error:
            raise damage(error, path, name, number) from error

    def _reader(self, path: str, name: str) -> "pa.RecordBatchFileReader | _Stream":
        """The reader of a column of a file; READERS of them stay open."""
        reader = self._readers.pop((path, name), None)
        if reader is None:
            field = _opened(path).schema.names.index(name)
            reader = _opened(path, field)
            reader = reader if isinstance(reader, pa.RecordBatchFileReader) else _Stream(path, field)
        self._readers[path, name] = reader
        while len(self._readers) > READERS:
            self._readers.popitem(last=False)
        return reader

    def __setstate__(self, state: dict[str, Any]):
        super().__setstate__(state)
        self._readers: OrderedDict[tuple[str, str], pa.RecordBatchFileReader | _Stream] = OrderedDict()


class _Stream:
    """The batches of one column of a stream, which has no index of them.

    Batches that are the file's own bytes, mapped into memory, cost nothing and are kept. Of those that are unpacked the
    latest are kept; for an earlier one the stream is read again from its beginning.
    """

    def __init__(self, path: str, field: int):
        self.path, self.field = path, field
        self._begin()

    def _begin(self) -> None:
        self.rest = _batches(self.path, self.field)
        self.first, self.batches, self.bytes = 0, list[pa.RecordBatch](), 0

    def get_batch(self, number: int) -> pa.RecordBatch:
        """Return a batch. Raises an IndexError if there are not so many."""
        if number < self.first:
            self._begin()
        while number >= self.first + len(self.batches):
            batch = next(self.rest, None)
            if batch is None:
                raise IndexError("the stream ends before it")
            self.batches.append(batch)
            self.bytes += _unpacked(batch)
            while self.bytes > MAX_UNPACKED and len(self.batches) > 1:
                self.bytes -= _unpacked(self.batches.pop(0))
                self.first += 1
        return self.batches[number - self.first]


def _unpacked(batch: pa.RecordBatch) -> int:
    """The bytes of a batch beside those of its file, which cannot be written to."""
    return sum(buffer.size for buffer in _buffers(batch.column(0)) if buffer.is_mutable)


def _opened(path: str, *fields: int) -> pa.RecordBatchReader | pa.RecordBatchFileReader:
    """A reader of some columns, given by their numbers, or of all."""
    options = pa.ipc.IpcReadOptions(included_fields=list(fields))
    file, is_file = _mapped(path)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(file, options=options)


def _mapped(path: str) -> tuple[pa.MemoryMappedFile, bool]:
    """Return an opened file, which closes with its reader, and whether it has a footer, as no stream has."""
    file = pa.memory_map(path)
    is_file = file.read(len(MAGIC)) == MAGIC
    file.seek(0)
    return file, is_file


def _batches(path: str, field: int) -> Iterator[pa.RecordBatch]:
    """The batches of a file, of one column."""
    reader = _opened(path, field)
    if isinstance(reader, pa.RecordBatchFileReader):
        yield from (reader.get_batch(n) for n in range(reader.num_record_batches))
    else:
        yield from reader


def _hash_of(path: str, schema: pa.Schema, names: Iterable[Sequence[str]], row_bytes: float = math.inf) -> str:
    """Return a hash of the bytes of columns, or fields of columns, as they are written; see parquet's."""
    digest = hashlib.sha256()
    for name, *fields in names:
        for batch in _batches(path, schema.names.index(name)) if name in schema.names else ():
            buffers = list(_buffers(batch.column(0), fields))
            size = sum(buffer.size for buffer in buffers)  # column.nbytes trusts offsets, which may be damaged
            for buffer in buffers if size <= row_bytes * batch.num_rows else ():
                digest.update(buffer)
    return digest.hexdigest()


def _buffers(column: pa.Array, fields: Sequence[str] = ()) -> Iterator[pa.Buffer]:
    """The bytes of a column as they are written, with its dictionaries; of structs only those of the named field."""
    kind = column.type
    is_nested = is_list(kind) or pa.types.is_struct(kind)
    buffers = column.buffers()[: kind.num_buffers] if is_nested else column.buffers()  # others are its values'
    yield from (buffer for buffer in buffers if buffer is not None)
    if pa.types.is_dictionary(kind):
        yield from _buffers(column.dictionary, fields)
    elif pa.types.is_struct(kind):
        for field in (n for n in range(kind.num_fields) if not fields or kind.field(n).name == fields[0]):
            yield from _buffers(column.field(field), fields[1:])
    elif is_nested:
        yield from _buffers(column.values, fields)


def _of_split(files: Sequence[storage.Found], path: str, split: str, left_out: Counter[str]) -> list[storage.Found]:
    """The files of one split, without what `datasets` computed beside them, which `left_out` counts.

    Raises:
        UserError: there are several splits and none is named, or not this one.
    """
    own = [file for file in files if not MADE.fullmatch(storage.name_of(file.path))] or list(files)
    left_out.update({"computed by datasets": len(files) - len(own)} if len(own) < len(files) else {})
    files = own
    splits: dict[str, list[storage.Found]] = {}
    root = storage.common_folder([file.path for file in files])
    for file in files:
        splits.setdefault(_split_of(file.path, root), []).append(file)
    if not split and (len(splits) == 1 or not os.path.isdir(path)):  # a pattern names what it is to have
        return files
    if split not in splits:
        names = sorted(filter(None, splits), key=lambda name: (name != "train", name)) or ["none"]
        which = f"has no split {split!r}" if split else "has several splits"
        raise UserError(f"path={path!r} {which}; its splits are {', '.join(names)}: say split={names[0]}")
    return splits[split]


def _split_of(file: str, root: str) -> str:
    """Return the split of a file by its name or its folder's; "" where they do not say."""
    if SAVED.fullmatch(storage.name_of(file)):
        return "" if storage.folder_of(file) == root else storage.name_of(storage.folder_of(file))
    match = SPLIT.search(storage.name_of(file))
    return (match[1] or match[2]) if match else ""
