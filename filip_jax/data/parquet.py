"""Parquet files with images, or the paths of images, in a column.

Parquet is read a row group at a time, so an order that jumps between groups reads far more than it
needs: train with data.shuffle=block, or convert once with `filip data convert`.
"""

import hashlib
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from filip_jax import storage
from filip_jax.data.listed import read_listed
from filip_jax.data.record import HEAD_BYTES, IMAGE_BYTES, BadRecord, Caption, Record, is_caption
from filip_jax.errors import UserError

KEPT = 1 << 29  # bytes of row groups that a process keeps


class Parquet:
    """The rows of parquet files; a row group is a shard.

    Args:
        path: a folder, a pattern or braces.
        image: the column of encoded images, of structs with bytes or path (as Hugging Face writes
            them), or of paths from the folder `images`; local, gs:// or s3://.
        caption_keys: columns of texts or lists of texts.
        key: the column that names a row; "" counts the rows of a file.
        images: the folder that paths start from; "" is the file's own.

    Raises:
        UserError: no such files or column, or files that are no parquet.
    """

    def __init__(
        self, *, path: str, image: str = "image", caption_keys: Sequence[str] = ("caption",), key: str = "",
        images: str = "",
    ):  # fmt: skip
        found = storage.find(path, (".parquet",), "path")
        self.files = [file.path for file in found]
        self.image, self.caption_keys, self.key, self.images = image, tuple(caption_keys), key, images
        try:
            with ThreadPoolExecutor(32) as pool:
                groups, schemas = zip(*pool.map(_footer, self.files))
        except pa.ArrowInvalid as error:
            raise UserError(f"path={path!r} can not be read as parquet: {error}") from error
        self.shard_sizes = np.concatenate([np.array(sizes, np.int64) for sizes in groups])
        self.ends = np.cumsum(self.shard_sizes).tolist()
        self.groups = [(file, group) for file, sizes in enumerate(groups) for group in range(len(sizes))]
        self.seen = f"{len(found)} files with the columns {', '.join(schemas[0])}"
        for file, schema in zip(self.files, schemas):
            for name in (image, *caption_keys, *([key] if key else [])):
                if name not in schema:
                    raise UserError(f"{file} has no column {name!r}; it has {', '.join(schema)}")
        lines = [f"{storage.name_of(file.path)} {file.size} {list(rows)}" for file, rows in zip(found, groups)]
        text = "\n".join([*lines, image, key, *self.caption_keys])
        self.identity = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        self.__setstate__({})

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
        name = storage.name_of(self.files[file])
        if self.key:
            return name, str(self._column(group, self.key)[row].as_py())
        first = self.ends[group - number - 1] if group > number else 0
        return name, str(index - first)

    def captions(self, index: int) -> tuple[Caption, ...]:
        group, row = self._place(index)
        found = []
        for key in self.caption_keys:
            value = self._column(group, key)[row].as_py()
            texts = value if isinstance(value, list) else [value]
            found += [Caption(t.strip(), key) for t in texts if is_caption(t)]
        return tuple(found)

    def image_head(self, index: int) -> bytes:
        """The first bytes of the encoded image."""
        return self._image(index, HEAD_BYTES)

    def _image(self, index: int, most: int) -> bytes:
        group, row = self._place(index)
        value = self._column(group, self.image)[row].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value[:most]
        if not isinstance(value, str) or not value:
            raise BadRecord(f"no {self.image}")
        return read_listed(self.images or storage.folder_of(self.files[self.groups[group][0]]), value, most)

    def _place(self, index: int) -> tuple[int, int]:
        group = bisect_right(self.ends, index)
        return group, index - self.ends[group] + int(self.shard_sizes[group])

    def _column(self, group: int, name: str) -> pa.ChunkedArray:
        """A column of a row group; the latest ones are kept."""
        with self._lock:
            if (group, name) in self._columns:
                self._columns.move_to_end((group, name))
                return self._columns[group, name]
            file, number = self.groups[group]
            column = self._read(self.files[file], number, name)
            self._columns[group, name] = column
            self._bytes += column.nbytes
            while self._bytes > KEPT and len(self._columns) > 1:
                _, dropped = self._columns.popitem(last=False)
                self._bytes -= dropped.nbytes
            return column

    @staticmethod
    def _read(path: str, number: int, name: str) -> pa.ChunkedArray:
        try:
            with storage.open_stream(path) as stream:
                return pq.ParquetFile(stream).read_row_group(number, [name]).column(name)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and (error.errno or storage.is_remote(path)):
                raise  # the disk or the bucket fails; damage has no number
            said = " ".join(str(error).split())[:200]
            raise BadRecord(f"column {name} of row group {number} is damaged: {said}") from error

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name not in ("_columns", "_lock", "_bytes")}

    def __setstate__(self, state):
        vars(self).update(state, _columns=OrderedDict(), _lock=threading.Lock(), _bytes=0)


def _footer(path: str) -> tuple[list[int], list[str]]:
    """(rows of each row group, columns) of a file."""
    with storage.open_stream(path) as stream:
        file = pq.ParquetFile(stream)
        meta = file.metadata
        return [meta.row_group(n).num_rows for n in range(meta.num_row_groups)], file.schema_arrow.names
