"""What `filip data filter` left of a source: which records, and their changed texts."""

import json
import warnings
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from filip_jax.data.content import sha256_of
from filip_jax.data.identity import ELSEWHERE, OLDER, changes, digest, is_elsewhere, is_older
from filip_jax.data.mapped import check_columns, map_array, map_table
from filip_jax.data.record import Caption
from filip_jax.errors import UserError
from filip_jax.small_files import read_json

INDICES, TEXTS, REPORT = "kept.npy", "captions.arrow", "report.json"
SCHEMA = pa.schema([("index", pa.int64()), ("origin", pa.string()), ("text", pa.string())])  # of the texts


class Kept:
    """The filter's output; indices and texts are mapped into memory.

    Args:
        folder: holds kept.npy (ascending indices), captions.arrow (index, origin, text) and report.json.

    Attributes:
        identity: of the rules, the models that judged, and what they left.

    Raises:
        UserError: no such output, or a damaged one.
    """

    def __init__(self, folder: str):
        self.folder = folder
        for name in (INDICES, TEXTS, REPORT):
            if not (Path(folder) / name).is_file():
                raise UserError(f"keep={folder!r}: the folder holds no {name}; `filip data filter` makes it")
        report = read_json(Path(folder) / REPORT)
        self.of, self.records = report.get("identity"), report.get("source_records")
        rules = json.dumps([report.get("rules"), report.get("models")], sort_keys=True)
        self.identity = digest([rules, *(sha256_of(f"{folder}/{name}") for name in (INDICES, TEXTS))])

    def check(self, identity: str, records: int) -> None:
        """Raise a UserError unless this data, with so many records and these captions, was filtered.

        What an earlier version filtered, or lay in a bucket or does now, whose identity cannot be compared, counts if it
        had as many records.
        """
        reason = ELSEWHERE if is_elsewhere(self.of, identity) else OLDER if is_older(self.of, identity) else ""
        if reason and self.of is not None and self.records == records:
            warnings.warn(f"keep={self.folder!r}: {reason}: if the data changed since, filter again", stacklevel=4)
        elif changed := changes(self.of, identity):
            raise UserError(
                f"keep={self.folder!r} was made of other data, or with other caption_keys or side_captions "
                f"(what differs: {changed}): filter again"
            )
        if len(self) and self.indices[-1] >= records:
            raise UserError(f"keep={self.folder!r}: kept.npy is damaged: it names more than the {records} records")

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def indices(self) -> np.ndarray:
        """Of the records that are left, in the source."""
        try:
            indices = map_array(Path(self.folder) / INDICES, np.int64)
            if len(indices) and (indices[0] < 0 or not (indices[1:] > indices[:-1]).all()):
                raise ValueError("it is not in ascending order")
        except (OSError, ValueError) as error:
            raise UserError(f"keep={self.folder!r}: kept.npy is damaged: {error}") from error
        return indices

    @cached_property
    def _table(self) -> tuple[np.ndarray, pa.Table]:
        try:
            table = map_table(Path(self.folder) / TEXTS, SCHEMA)
            for batch in table.to_batches():
                check_columns(batch.columns)
        except (OSError, ValueError) as error:
            raise UserError(f"keep={self.folder!r}: captions.arrow is damaged: {error}") from error
        return table.column("index").to_numpy(), table

    def replaced(self, index: int) -> tuple[Caption, ...]:
        """The texts of record `index` of the source if they changed, else none."""
        indices, table = self._table
        first, last = np.searchsorted(indices, index, side="left"), np.searchsorted(indices, index, side="right")
        rows = table.slice(first, last - first).to_pylist() if last > first else []
        return tuple(Caption(row["text"], row["origin"]) for row in rows)

    def __getstate__(self):
        return {"folder": self.folder, "identity": self.identity, "of": self.of, "records": self.records}
