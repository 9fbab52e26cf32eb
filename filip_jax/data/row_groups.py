"""Row groups of parquet, unpacked bit by bit: a dictionary or a compressed page can stand for any number of bytes."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from filip_jax.data.record import BadRecord

MAX_COLUMN_BYTES = 1 << 32  # of the columns that are read of one row group, unpacked


def read_batches(file: pq.ParquetFile, group: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of some columns of a row group, so few at a time that no batch has more than MAX_COLUMN_BYTES.

    Raises:
        BadRecord: the columns are larger, as the file's footer says or as they turn out to be.
    """
    meta = file.metadata.row_group(group)
    chunks = [meta.column(n) for n in range(meta.num_columns)]
    roots = tuple(f"{name}." for name in names)
    size = sum(chunk.total_uncompressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(roots))
    _check(size, group, names)
    rows = max(1, min(meta.num_rows, MAX_COLUMN_BYTES // max(size, 1)))  # each row may be the dictionary's largest word
    total = 0
    for batch in file.iter_batches(rows, row_groups=[group], columns=list(names)):
        total += batch.nbytes
        _check(total, group, names)
        yield batch


def _check(size: int, group: int, names: Sequence[str]) -> None:
    if size > MAX_COLUMN_BYTES:
        what = f"{', '.join(names)} of row group {group}"
        raise BadRecord(f"{what}: {size} bytes unpacked; at most {MAX_COLUMN_BYTES} are read: write smaller row groups")
