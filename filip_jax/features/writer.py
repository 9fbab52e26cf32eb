"""Writing stored features: parts that are whole or absent, then the manifest that names them."""

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int8, Int16

from filip_jax.errors import UserError
from filip_jax.features.manifest import (
    FILE,
    MAX_PART_ROWS,
    PART,
    PARTS,
    SCALARS,
    Manifest,
    Part,
    read_manifest,
    write_manifest,
)
from filip_jax.features.table import write_part
from filip_jax.files import LOCK, locked, remove_abandoned, replacing, writing
from filip_jax.folders import check_unlinked, remove
from filip_jax.small_files import sha256_of
from filip_jax.user_paths import from_user, is_remote

MAX_PROCESSES = 10_000  # whose numbers have four digits in the names of parts
DEFAULTS = {"key": "", "shard": "", "index": 0, "width": 0, "height": 0, "orientation": 1, "caption": ""}
WRITER = re.compile(r"\.writer_(\d+)_of_(\d+)\.lock")  # held by each process that writes


class FeatureWriter:
    """Adds rows to the features in a folder, which it makes. Rows count as soon as their part is written: by `flush`, or at the end.

    A writer that is killed leaves files that no manifest names; the next one removes or overwrites them. What raises
    inside of `with` writes nothing more.

    Args:
        folder: on a disk; a new or an empty one, or one with features of this kind.
        manifest: what the rows are of; its parts are those of the folder.
        process, processes: which of several writers this is. They share a folder, each with parts of its own.

    Attributes:
        manifest: of the folder, when this writer wrote or read it last.

    Raises:
        UserError: another process writes there, or the folder holds something else or features of another kind.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, process: int = 0, processes: int = 1):
        if is_remote(str(folder)):
            raise UserError(
                f"{folder}: features are mapped into memory: name a folder on a disk, and copy it from there"
            )
        if not 0 <= process < processes <= MAX_PROCESSES:
            raise UserError(f"process {process} of {processes}: there may be up to {MAX_PROCESSES}, the first is 0")
        self.folder, self.process, self.processes = Path(from_user(folder)), process, processes
        self.waiting: list[dict[str, Any]] = []
        with contextlib.ExitStack() as stack:
            check_unlinked(self.folder, "name another folder")
            self._check_empty()
            with writing(self.folder):
                (self.folder / PARTS).mkdir(parents=True, exist_ok=True)
            self._hold(stack)
            with locked(self.folder / LOCK):
                self.manifest = self._begin(manifest)
            self._stack = stack.pop_all()

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        with self._stack:
            if kind is None:
                self.flush()

    @property
    def rows(self) -> int:
        """The number of rows that wait for `flush`."""
        return sum(len(each["lengths"]) for each in self.waiting)

    def add(
        self,
        tokens: Float[np.ndarray, "n p d"],
        mask: Bool[np.ndarray, "n p"],
        fields: Sequence[Mapping[str, Any]],
        positions: Int16[np.ndarray, "n p"] | None = None,
        pooled: Float[np.ndarray, "n d"] | None = None,
    ) -> None:
        """Take up rows.

        Args:
            tokens: L2-normalized.
            mask: True for the tokens that are stored; each row has one.
            fields: of each row what of `DEFAULTS` is known; a text may hold no half of a character.
            positions: the place of each token; by default they are numbered.
            pooled: by default the mean of a row's tokens, L2-normalized.

        Raises:
            UserError: a row without token, numbers that are not finite or too large for the type, shapes that do not go
                together, or more rows than a part has.
        """
        self._check(tokens, mask, fields, positions, pooled)
        if pooled is None:
            pooled = unit((np.asarray(tokens, np.float32) * mask[..., None]).sum(axis=1))
        if positions is None:
            positions = np.broadcast_to(np.arange(mask.shape[1], dtype=np.int16), mask.shape)
        kept = np.asarray(tokens, np.float32)[mask]
        with np.errstate(over="ignore"):
            stored, scales = (
                quantized(kept) if self.manifest.dtype == "int8" else (kept.astype(self.manifest.dtype), None)
            )
        if not np.isfinite(stored).all():
            raise UserError(f"tokens hold numbers that are too large for {self.manifest.dtype}")
        if not np.isfinite(pooled).all():
            raise UserError("pooled vectors hold numbers that are not finite")
        batch: dict[str, Any] = {name: [each.get(name, DEFAULTS[name]) for each in fields] for name in SCALARS}
        batch |= {"tokens": stored, "scales": scales, "positions": np.asarray(positions, np.int16)[mask]}
        self.waiting.append(batch | {"pooled": np.asarray(pooled, np.float32), "lengths": mask.sum(axis=1)})

    def _check(self, tokens, mask, fields, positions, pooled) -> None:
        n, p, d = tokens.shape
        shapes = {"tokens": (tokens, (n, p, self.manifest.dimension)), "mask": (mask, (n, p))}
        shapes |= {"positions": (positions, (n, p)), "pooled": (pooled, (n, d))}
        given = {name: (array.shape, shape) for name, (array, shape) in shapes.items() if array is not None}
        if len(fields) != n or any(shape != right for shape, right in given.values()):
            described = ", ".join(f"{name} {shape}" for name, (shape, _) in given.items())
            raise UserError(f"{described} and {len(fields)} fields are no rows of dimension {self.manifest.dimension}")
        if not np.isfinite(tokens[mask]).all():
            raise UserError("tokens hold numbers that are not finite")
        if n and (mask.sum(axis=1).min() < 1 or mask.sum(axis=1).max() > self.manifest.max_tokens):
            raise UserError(f"a row has no token, or more than {self.manifest.max_tokens}")
        if self.rows + n > MAX_PART_ROWS:
            raise UserError(f"{self.rows + n} rows would wait, and a part has at most {MAX_PART_ROWS}: flush before")

    def flush(self, change: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> None:
        """Write the rows that wait as a part, if there are any, and the manifest that names it.

        Args:
            change: what else changes in the manifest, in the same moment.

        Raises:
            OSError: the disk refuses; the rows wait still, and the folder is as it was.
        """
        parts = [self._write()] if self.rows else []
        with locked(self.folder / LOCK):
            now = read_manifest(self.folder)  # other processes may have added to it
            self.manifest = change(replace(now, parts=(*now.parts, *parts)))
            write_manifest(self.folder, self.manifest)
        self.waiting = []

    def _write(self) -> Part:
        names = [part.name for part in self.manifest.parts if part.name.startswith(f"{self.process:04d}_")]
        number = max((int(name[5:11]) for name in names), default=-1) + 1
        file = self.folder / PARTS / f"{self.process:04d}_{number:06d}.arrow"
        columns: dict[str, Any] = {name: [x for each in self.waiting for x in each[name]] for name in SCALARS}
        arrays = ("tokens", "positions", "pooled", "lengths", *(["scales"] if self.manifest.dtype == "int8" else []))
        columns |= {name: np.concatenate([each[name] for each in self.waiting]) for name in arrays}
        with replacing(file) as beside:
            write_part(beside, columns, columns["lengths"], self.manifest)
            part = Part(file.name, self.rows, os.path.getsize(beside), sha256_of(beside))
        return part

    def _hold(self, stack: contextlib.ExitStack) -> None:
        """Hold this process's lock, and see that no writer of another number of processes is there."""
        busy = f"{self.folder}: another process writes features there; wait until it has ended, or name another folder"
        own = f".writer_{self.process}_of_{self.processes}.lock"
        stack.enter_context(locked(self.folder / own, busy))
        for name in os.listdir(self.folder):
            match = WRITER.fullmatch(name)
            if match and int(match[2]) != self.processes:
                with locked(self.folder / name, busy):  # of one that was killed
                    pass

    def _check_empty(self) -> None:
        """Raise a UserError if the folder holds no manifest, but something else: parts are never written before one."""
        inside = {"": self.folder, f"{PARTS}/": self.folder / PARTS}
        names = [start + name for start, folder in inside.items() if folder.is_dir() for name in os.listdir(folder)]
        strange = [name for name in names if name != PARTS and not os.path.basename(name).startswith(".")]
        if strange and not os.path.lexists(self.folder / FILE):  # looked for last: others may begin meanwhile
            raise UserError(f"{self.folder} holds {strange[0]!r:.100} and no features: name an empty or a new folder")

    def _begin(self, manifest: Manifest) -> Manifest:
        if not os.path.lexists(self.folder / FILE):
            self._check_empty()
            manifest = replace(manifest, parts=(), removed=())
            write_manifest(self.folder, manifest)
            return manifest
        existing = read_manifest(self.folder)
        if difference := existing.difference(manifest):
            raise UserError(f"{self.folder} holds features of {difference}: name another folder")
        if self.processes == 1:
            named = {part.name for part in existing.parts}
            strays = [name for name in os.listdir(self.folder / PARTS) if PART.fullmatch(name) and name not in named]
            remove([str(self.folder / PARTS / name) for name in strays], str(self.folder))
            remove_abandoned(self.folder / PARTS, 0.0)
        else:
            remove_abandoned(self.folder / PARTS)
        return existing


def unit(x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Return vectors of length 1; one of length 0 stays."""
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def quantized(tokens: Float[np.ndarray, "n d"]) -> tuple[Int8[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
    """Return tokens as whole numbers from -127 to 127, and the scale of each by which they are multiplied."""
    scales = (np.abs(tokens).max(axis=-1) / 127).astype(np.float32)
    return np.rint(tokens / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8), scales
