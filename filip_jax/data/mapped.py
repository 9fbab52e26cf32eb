"""Files of an index, mapped into memory. They may have come with somebody else's data: each is checked before it is used."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from filip_jax.small_files import open_regular


class MappedTable:
    """The rows of an Arrow file of an index, none of whose texts is missing.

    Of a file with wrong offsets Arrow would read what is not the file's. A batch is checked before its first row is
    given, so that a large file is not read as a whole.

    Args:
        rows: of each batch but the last.

    Raises:
        ValueError: it is no such file.
        OSError: it is no regular file, or cannot be read.
    """

    def __init__(self, file: str | Path, schema: pa.Schema, rows: int):
        self.rows, self.checked = rows, set[int]()
        self.table = map_table(file, schema)
        sizes = [batch.num_rows for batch in self.table.to_batches()]
        if any(size != rows for size in sizes[:-1]) or (sizes and sizes[-1] > rows):
            raise ValueError(f"its batches are not of {rows} rows")

    def __len__(self) -> int:
        return self.table.num_rows

    def row(self, number: int) -> list[Any]:
        """Return the values of a row. Raises a ValueError if its batch is damaged."""
        batch, place = divmod(number, self.rows)
        columns = [column.chunk(batch) for column in self.table.columns]
        if batch not in self.checked:
            check_columns(columns)
            self.checked.add(batch)
        return [column[place].as_py() for column in columns]


def map_table(file: str | Path, schema: pa.Schema) -> pa.Table:
    """Return the table of an Arrow file, its batches unchecked.

    Raises:
        ValueError: it is no Arrow file of this schema.
        OSError: it is no regular file, or cannot be read.
    """
    check_regular(file)
    try:
        with pa.memory_map(str(file)) as mapped:  # what is read stays mapped, without the descriptor
            table = pa.ipc.open_file(mapped).read_all()
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    if table.schema != schema:
        raise ValueError("it has other columns")
    return table


def check_columns(columns: Sequence[pa.Array]) -> None:
    """Raise a ValueError for columns of texts, numbers or lists with wrong offsets, texts that are no UTF-8, or gaps."""
    for column in columns:
        column.validate(full=True)
        values = column.flatten() if pa.types.is_list(column.type) else column
        if column.null_count or values.null_count:
            raise ValueError("a value is missing")


def map_array(file: str | Path, dtype: type) -> np.ndarray:
    """Return the one-dimensional array of a .npy file.

    Raises:
        ValueError: it is none of this type.
        OSError: it is no regular file, or cannot be read.
    """
    check_regular(file)
    try:
        array = np.load(file, mmap_mode="r")
    except OSError:
        raise
    except Exception as error:  # of many types: NumPy reads a header as Python reads its own source
        raise ValueError(f"it is no array: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
        raise ValueError(f"it is no array of {np.dtype(dtype)} with one dimension")
    return array


def check_regular(file: str | Path) -> None:
    """Raise an OSError if it is no regular file, or cannot be read."""
    os.close(open_regular(file))
