"""The workdir that an import writes: whole or absent."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from filip_jax import storage
from filip_jax.checkpoint import CheckpointWriter
from filip_jax.errors import UserError
from filip_jax.files import write_atomically
from filip_jax.inference.run import TOKENIZER
from filip_jax.paths import Metadata, saved_metadata, unflatten
from filip_jax.saved_config import save_config
from filip_jax.small_files import read_own, sha256_of
from filip_jax.user_paths import from_user

ORIGIN, SOURCE = "origin.json", "source"  # a file, and a folder with the small files of the source
CONFIGS = (  # of others, by which a family reads its weights
    "config.json", "open_clip_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json",
)  # fmt: skip
COPIED = (
    *CONFIGS, "special_tokens_map.json", "tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model",
    "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE",
)  # fmt: skip
MAX_CONFIG_BYTES, MAX_COPY_BYTES = 1 << 23, 1 << 26  # of one of them
LICENSE = re.compile(r"^(license|license_name|license_link|base_model):[ \t]*(\S.{0,200})$", re.MULTILINE)


@dataclass(frozen=True)
class Imported:
    """What a workdir is written of.

    Attributes:
        config: as a run saves it.
        parameters: arrays by path; none is left when they are written.
        metadata: of the parameters, by path.
        tokenizer: as `Tokenizer` takes it.
        files: of the weights.
        folder: with the small files that are copied, or None.
        notes: what origin.json says beside the hashes and the license.
    """

    config: Mapping[str, Any]
    parameters: dict[str, np.ndarray]
    metadata: Mapping[str, Metadata]
    tokenizer: bytes
    files: Sequence[Path]
    folder: Path | None
    notes: Mapping[str, Any]


def check_output(output: str) -> Path:
    """Return the folder that will be the workdir.

    Raises:
        UserError: it is in a bucket, or there is something already.
    """
    place = Path(from_user(output))
    if storage.is_remote(from_user(output)):
        raise UserError(f"--output={output}: give a folder of this machine, and copy it into the bucket then")
    if place.is_symlink() or (place.exists() and (not place.is_dir() or any(place.iterdir()))):
        raise UserError(f"--output={output} is there already: name a folder that is not, or is empty")
    return place


def write_workdir(place: Path, imported: Imported) -> None:
    """Write the workdir beside its place and move it there at the end.

    Raises:
        UserError, OSError: something cannot be read or written. Nothing is left then.
    """
    with beside(place) as folder:
        copied = _copy(imported.folder, folder / SOURCE) if imported.folder else {}
        origin = {
            "files": {file.name: sha256_of(file) for file in imported.files},
            "license": _license(copied),
            **imported.notes,
        }
        write_atomically(folder / ORIGIN, json.dumps(origin, indent=2, ensure_ascii=False) + "\n")
        write_atomically(folder / TOKENIZER, imported.tokenizer)
        save_config(folder, imported.config)
        meta = {
            "samples_seen": 0,
            "tokenizer_sha256": hashlib.sha256(imported.tokenizer).hexdigest(),
            "parameters": saved_metadata(imported.metadata),
            "origin": {name: origin[name] for name in ("family", "files", "license")},
        }
        numbers = dict(every_steps=1, every_minutes=0.0, keep_last=1, keep_every_steps=0)
        writer = CheckpointWriter(folder, **numbers)
        writer.save(0, {"params": unflatten(imported.parameters)}, meta, imported.config)
        imported.parameters.clear()  # which is copied: there need not be room for three
        writer.wait()


@contextlib.contextmanager
def beside(place: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `place` when the block ends, and goes if it fails."""
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = place.parent / f".filip_{secrets.token_hex(8)}"
    folder.mkdir()
    try:
        yield folder
        os.replace(folder, place)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _copy(folder: Path, place: Path) -> dict[str, bytes]:
    """Copy the small files of a folder; return those that are texts for people."""
    files = {name: read_own(folder / name, MAX_COPY_BYTES) for name in COPIED if (folder / name).is_file()}
    place.mkdir()
    for name, data in files.items():
        write_atomically(place / name, data)
    return files


def _license(copied: Mapping[str, bytes]) -> dict[str, str]:
    """Return what the head of a model's README.md says of its license, and which files say more."""
    readme = copied.get("README.md", b"")[: 1 << 16].decode("utf-8", "replace")
    head = readme.split("\n---", 1)[0] if readme.startswith("---") else ""
    stated = {key: value.strip() for key, value in LICENSE.findall(head)}
    files = [name for name in copied if name.startswith(("LICENSE", "NOTICE"))]
    return stated | ({"files": ", ".join(files)} if files else {})
