"""What `filip data filter` left of a source: which records, and their changed texts."""

import json
import warnings
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from filip_jax.data.content import sha256_of
from filip_jax.data.identity import ELSEWHERE, OLDER, changes, digest, is_elsewhere, is_older
from filip_jax.data.record import Caption
from filip_jax.errors import UserError
from filip_jax.small_files import read_json

INDICES, TEXTS, REPORT = "kept.npy", "captions.arrow", "report.json"


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

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def indices(self) -> np.ndarray:
        """Of the records that are left, in the source."""
        try:
            indices = np.load(Path(self.folder) / INDICES, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise UserError(f"keep={self.folder!r}: kept.npy is damaged: {error}") from error
        if indices.dtype != np.int64 or indices.ndim != 1:
            raise UserError(f"keep={self.folder!r}: kept.npy is damaged: {indices.dtype} of {indices.ndim} dimensions")
        return indices

    @cached_property
    def _table(self) -> tuple[np.ndarray, pa.Table]:
        try:
            table = pa.ipc.open_file(pa.memory_map(str(Path(self.folder) / TEXTS))).read_all()
            return table.column("index").to_numpy(), table
        except (pa.ArrowException, KeyError) as error:
            raise UserError(f"keep={self.folder!r}: captions.arrow is damaged: {error}") from error

    def replaced(self, index: int) -> tuple[Caption, ...]:
        """The texts of record `index` of the source if they changed, else none."""
        indices, table = self._table
        first, last = np.searchsorted(indices, index, side="left"), np.searchsorted(indices, index, side="right")
        rows = table.slice(first, last - first).to_pylist() if last > first else []
        return tuple(Caption(row["text"], row["origin"]) for row in rows)

    def __getstate__(self):
        return {"folder": self.folder, "identity": self.identity, "of": self.of, "records": self.records}
