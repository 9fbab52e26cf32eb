"""Reading stored features: rows of one snapshot, mapped into memory; any number of threads and processes may read."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int, Int16, Shaped

from filip_jax.errors import UserError
from filip_jax.features.manifest import SCALARS, read_manifest
from filip_jax.features.table import Rows, open_part, schema_of, verify_part
from filip_jax.user_paths import from_user, is_remote

MAX_OPEN = 4096  # parts that stay mapped, without a file descriptor; a process may have 65,530 mappings
SHORTEST = 8  # share of a block, 1 / SHORTEST, that rows to the end of a part must be to be a block of their own

Numbers = Sequence[int] | Int[np.ndarray, " n"]  # of rows
Block = tuple[
    Int[np.ndarray, " n"], Shaped[np.ndarray, "n p d"], Float[np.ndarray, "n p"] | None, Bool[np.ndarray, "n p"]
]


def open_features(folder: str | Path) -> "Features":
    """Return the features in a folder, as its manifest is at this moment.

    Raises:
        UserError: there are none, the folder is in a bucket, or the manifest is damaged.
    """
    if is_remote(str(folder)):
        raise UserError(f"{folder}: features are mapped into memory: copy the folder to a disk, and name it there")
    return Features(Path(from_user(folder)))


class Features:
    """The rows that the manifest of a folder names when it is opened; later ones need another `open_features`.

    Methods that take rows take their numbers, in any order.

    Attributes:
        manifest: what the features are of.
        live: for each row, whether the source still has its record.
    """

    def __init__(self, folder: Path):
        self.folder, self.manifest = folder, read_manifest(folder)
        self.live = self.manifest.live
        self.ends = np.cumsum([part.rows for part in self.manifest.parts], dtype=np.int64)
        self._parts: OrderedDict[int, Rows] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return self.manifest.rows

    def tokens(self, rows: Numbers) -> tuple[Float[np.ndarray, "n p d"], Bool[np.ndarray, "n p"]]:
        """Return the tokens of rows, float32, and the mask of those that are there, padded to the longest of them.

        Raises:
            UserError: there is no such row, or its part is damaged.
        """
        stored, scales, mask = self.stored(rows)
        return dequantized(stored, scales), mask

    def stored(
        self, rows: Numbers
    ) -> tuple[Shaped[np.ndarray, "n p d"], Float[np.ndarray, "n p"] | None, Bool[np.ndarray, "n p"]]:
        """Return what `tokens` does in the type that is stored, the tokens' scales where it is int8, and the mask."""
        parts = list(self._of_parts(rows))
        lengths = np.zeros(len(rows), int)
        for part, places, n in parts:
            lengths[places] = part.offsets[n + 1] - part.offsets[n]
        mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
        tokens = np.zeros((*mask.shape, self.manifest.dimension), self.manifest.dtype)
        scales = np.zeros(mask.shape, np.float32) if self.manifest.dtype == "int8" else None
        for part, places, n in parts:
            row, place = np.nonzero(mask[places])
            token = part.offsets[n][row] + place
            tokens[places[row], place] = part.values[token]
            if scales is not None and part.scales is not None:
                scales[places[row], place] = part.scales[token]
        return tokens, scales, mask

    def blocks(self, size: int) -> Iterator[Block]:
        """Yield (rows, tokens in the stored type, their scales if that is int8, mask) of all live rows, at most so many at a time.

        Where rows are equally long and lie together, the tokens are a view of the file; they are not to be written to. So
        a block ends with its part, unless it would be very short.

        Raises:
            UserError: a part is damaged.
        """
        live = np.flatnonzero(self.live)
        ends = np.searchsorted(live, self.ends)  # of the parts, in `live`
        start = 0
        while start < len(live):
            of_part = ends[np.searchsorted(ends, start, side="right")] - start
            rows = live[start : start + (min(size, of_part) if SHORTEST * of_part >= size else size)]
            yield self._view(rows) or (rows, *self.stored(rows))
            start += len(rows)

    def _view(self, rows: Int[np.ndarray, " n"]) -> Block | None:
        """Return the block of rows without a copy, if they lie in a row in one part and are equally long."""
        number = int(np.searchsorted(self.ends, rows[0], side="right"))
        if rows[-1] >= self.ends[number] or rows[-1] - rows[0] >= len(rows):
            return None
        part, first = self._part(number), int(rows[0] - self._start(number))
        offsets = part.offsets[first : first + len(rows) + 1]
        length = int(offsets[1] - offsets[0])
        if (np.diff(offsets) != length).any():
            return None
        span = slice(int(offsets[0]), int(offsets[-1]))
        scales = None if part.scales is None else part.scales[span].reshape(len(rows), length)
        tokens = part.values[span].reshape(len(rows), length, -1)
        return rows, tokens, scales, np.ones((len(rows), length), bool)

    def positions(self, rows: Numbers) -> list[Int16[np.ndarray, " p"]]:
        """Return of each token of each row its place in the grid, row by row, or in the text; -1 stands for no place."""
        return [part.positions[part.offsets[n] : part.offsets[n + 1]] for part, n in self._places(rows)]

    def pooled(self, rows: Numbers) -> Float[np.ndarray, "n d"]:
        """Return the pooled vectors of rows, L2-normalized."""
        vectors = np.zeros((len(rows), self.manifest.dimension), np.float32)
        for part, places, n in self._of_parts(rows):
            vectors[places] = part.pooled[n]
        return vectors

    def fields(self, rows: Numbers) -> list[dict[str, Any]]:
        """Return what the rows are of: key, shard, index, width, height, orientation, caption."""
        return [{name: part.columns[name][n].as_py() for name in SCALARS} for part, n in self._places(rows)]

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of all rows, removed ones included.

        Raises:
            UserError: there is no such column, or a part is damaged.
        """
        schema = schema_of(self.manifest)
        if name not in schema.names:
            raise UserError(f"there is no column {name!r:.100}; the columns are {', '.join(schema.names)}")
        columns = [self._part(number).columns[name] for number in range(len(self.ends))]
        return pa.chunked_array(columns, schema.field(name).type)

    def verify(self) -> None:
        """Read all parts, and raise a UserError for one that is not as it was written."""
        for number, part in enumerate(self.manifest.parts):
            self._part(number)
            verify_part(self.folder, part)

    def _of_parts(self, rows: Numbers) -> Iterator[tuple[Rows, Int[np.ndarray, " m"], Int[np.ndarray, " m"]]]:
        """Yield of each part that has some of the rows: (the part, which of `rows` these are, their rows in the part)."""
        numbers = np.asarray(rows, np.int64)
        if len(numbers) and not (0 <= numbers.min() and numbers.max() < len(self)):
            raise UserError(f"there are {len(self)} rows; {numbers.min()} to {numbers.max()} are asked for")
        owners = np.searchsorted(self.ends, numbers, side="right")
        for number in np.unique(owners).tolist():
            places = np.flatnonzero(owners == number)
            yield self._part(number), places, numbers[places] - self._start(number)

    def _places(self, rows: Numbers) -> list[tuple[Rows, int]]:
        """Return (the part, the row in it) of each row."""
        rows_at: dict[int, tuple[Rows, int]] = {}
        for part, places, n in self._of_parts(rows):
            rows_at |= {place: (part, row) for place, row in zip(places.tolist(), n.tolist())}
        return [rows_at[place] for place in range(len(rows))]

    def _start(self, number: int) -> int:
        return int(self.ends[number - 1]) if number else 0

    def _part(self, number: int) -> Rows:
        with self._lock:
            part = self._parts.pop(number, None)
            if part is None:
                part = open_part(self.folder, self.manifest.parts[number], self.manifest)
            self._parts[number] = part
            if len(self._parts) > MAX_OPEN:
                self._parts.popitem(last=False)
            return part


def dequantized(
    stored: Shaped[np.ndarray, "n p d"], scales: Float[np.ndarray, "n p"] | None
) -> Float[np.ndarray, "n p d"]:
    """Return tokens of the stored type as float32."""
    tokens = stored.astype(np.float32)
    return tokens if scales is None else tokens * scales[..., None]
