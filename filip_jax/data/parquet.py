"""Parquet files with images, or the paths of images, in a column.

Parquet is read a row group at a time, so an order that jumps between groups reads far more than it
needs: train with data.shuffle=block, or convert once with `filip data convert`.
"""

import hashlib
import io
import math
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filip_jax import storage
from filip_jax.data.columnar import MAX_PATH_BYTES, Columnar, Footer, column_of, damage
from filip_jax.data.row_groups import read_batches
from filip_jax.errors import UserError

SUFFIXES = (".parquet", ".parq", ".pq")
MAX_FOOTERS = 1 << 26  # bytes of footers, as they are written, that are kept
SPLIT = re.compile(r"(train|validation|valid|val|dev|test)-\d{5}-of-\d{5}")  # as Hugging Face names files


class Parquet(Columnar):
    """The rows of parquet files; a row group is a shard.

    Args:
        path: a folder, a pattern or braces.
        image: the column of encoded images, of structs with bytes or path (as Hugging Face writes
            them), or of paths from the folder `images`; local, gs:// or s3://. Each may be the one item of a list.
        caption_keys: columns of texts, of lists of texts, or of structs with a field raw, caption, text or sentence;
            a.b is the field b of a. Whole numbers are texts, too, as labels.
        key: the column that names a row; "" counts the rows of a file.
        images: the folder that paths start from; "" is the file's own.

    Raises:
        UserError: no such files or column, or files that are no parquet.
    """

    def __init__(
        self, *, path: str, image: str = "image", caption_keys: Sequence[str] = ("caption",), key: str = "",
        images: str = "",
    ):  # fmt: skip
        left_out: Counter[str] = Counter()
        found = storage.find(path, SUFFIXES, "path", left_out)
        splits = dict.fromkeys(match[1] for file in found if (match := SPLIT.match(storage.name_of(file.path))))
        if len(splits) > 1:
            one = f"{storage.folder_of(found[0].path)}/{next(reversed(splits))}-*"
            what = f"files of the splits {', '.join(splits)}, and all are read"
            warnings.warn(f"path={path!r} has {what}; for one say path={one!r}", stacklevel=3)
        super().__init__(found, path, left_out, image=image, caption_keys=caption_keys, key=key, images=images)

    def _footer(self, path: str) -> Footer:
        with storage.open_stream(path) as stream:
            file = pq.ParquetFile(stream)
            meta, schema = file.metadata, file.schema_arrow
            sizes = [meta.row_group(n).num_rows for n in range(meta.num_row_groups)]
            if storage.is_remote(path):  # whose bytes are many requests away; the bucket knows a checksum of them
                return Footer(sizes, schema, *[storage.checksum(path)] * 2)
            captions = _hash_of(stream, meta, [column_of(name, schema) for name in self.caption_keys], path)
            others = _hash_of(stream, meta, [[self.key], column_of(self.image, schema)], path, MAX_PATH_BYTES)
            return Footer(sizes, schema, captions, others)

    def _read(self, path: str, number: int, name: str) -> pa.ChunkedArray:
        try:
            with storage.open_stream(path) as stream:
                file = pq.ParquetFile(stream, metadata=self._footers.pop(path, None))
                self._keep(path, file.metadata)
                columns = [batch.column(0) for batch in read_batches(file, number, [name])]
                return pa.chunked_array(columns, file.schema_arrow.field(name).type)
        except (pa.ArrowException, OSError) as error:
            raise damage(error, path, name, number) from error

    def _keep(self, path: str, footer: pq.FileMetaData) -> None:
        """Keep the latest footers, which grow with a file's row groups."""
        self._footers[path] = footer
        while len(self._footers) > 1 and sum(each.serialized_size for each in self._footers.values()) > MAX_FOOTERS:
            self._footers.popitem(last=False)

    def __setstate__(self, state: dict[str, Any]):
        super().__setstate__(state)
        self._footers: OrderedDict[str, pq.FileMetaData] = OrderedDict()


def _hash_of(
    stream: io.IOBase, meta: pq.FileMetaData, names: Sequence[Sequence[str]], path: str, row_bytes: float = math.inf
) -> str:
    """Return a hash of the bytes of some columns as they are written: nothing is unpacked.

    Args:
        names: of columns, each with the fields that lead to what is meant of it.
        row_bytes: on average; of a column that has more only the size counts.

    Raises:
        UserError: its footer says that they are more than the file has.
    """
    digest, rest = hashlib.sha256(), stream.seek(0, io.SEEK_END)
    for n in range(meta.num_row_groups):
        group = meta.row_group(n)
        for chunk in (group.column(k) for k in range(group.num_columns)):
            if not any(_lies_under(chunk.path_in_schema, *name) for name in names):
                continue
            start, size = chunk.data_page_offset, chunk.total_compressed_size
            start = min(start, chunk.dictionary_page_offset or start)
            rest -= max(size, 0)
            if start < 0 or size < 0 or rest < 0:
                raise UserError(f"{path} is damaged: its footer names more bytes than it has")
            stream.seek(start)
            digest.update(stream.read(size) if size <= row_bytes * group.num_rows else str(size).encode())
    return digest.hexdigest()


def _lies_under(path: str, column: str, *fields: str) -> bool:
    """Return whether a path in a schema is of a field; between the names of fields it has names of its own for lists."""
    parts = iter(path.removeprefix(column).split("."))
    return f"{path}.".startswith(f"{column}.") and all(field in parts for field in fields)
