"""What `filip data filter` left of a source: which records, and their changed texts."""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from filip_jax.data.identity import changes
from filip_jax.data.record import Caption
from filip_jax.errors import UserError
from filip_jax.small_files import read_json


class Kept:
    """The filter's output; indices and texts are mapped into memory.

    Args:
        folder: holds kept.npy (ascending indices), captions.arrow (index, origin, text) and report.json.

    Attributes:
        identity: of the rules and the models that judged.

    Raises:
        UserError: no such output, or a damaged one.
    """

    def __init__(self, folder: str):
        self.folder = folder
        for name in ("kept.npy", "captions.arrow", "report.json"):
            if not (Path(folder) / name).is_file():
                raise UserError(f"keep={folder!r}: the folder holds no {name}; `filip data filter` makes it")
        report = read_json(Path(folder) / "report.json")
        self.of = report.get("identity")
        self.identity = json.dumps([report.get("rules"), report.get("models")], sort_keys=True)

    def check(self, identity: str) -> None:
        """Raises a UserError unless this data, with these captions, was filtered."""
        if changed := changes(self.of, identity):
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
            indices = np.load(Path(self.folder) / "kept.npy", mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise UserError(f"keep={self.folder!r}: kept.npy is damaged: {error}") from error
        if indices.dtype != np.int64 or indices.ndim != 1:
            raise UserError(f"keep={self.folder!r}: kept.npy is damaged: {indices.dtype} of {indices.ndim} dimensions")
        return indices

    @cached_property
    def _table(self) -> tuple[np.ndarray, pa.Table]:
        try:
            table = pa.ipc.open_file(pa.memory_map(str(Path(self.folder) / "captions.arrow"))).read_all()
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
        return {"folder": self.folder, "identity": self.identity, "of": self.of}
