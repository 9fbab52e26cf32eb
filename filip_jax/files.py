"""Files that are whole or absent, whenever the process dies."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

from filip_jax.errors import UserError

JSON_BYTES = 1 << 26  # of one JSON file of ours: configs, numbers, reports


def write_atomically(file: Path, content: str | bytes) -> None:
    """Writes beside the file, then renames over it; of several processes the last one wins."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with beside.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(beside, file)


def read_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        UserError: it holds none, or is larger than JSON_BYTES.
    """
    size = file.stat().st_size
    if size > JSON_BYTES:
        raise UserError(f"{file} is damaged: it has {size} bytes; at most {JSON_BYTES} are read")
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds {type(content).__name__}, not an object")
    return content


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file with one on each line; a last one torn by a kill is none, other damaged ones warn."""
    if not file.exists():
        return []
    lines, damaged = [], 0
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            lines += [json.loads(line)] if line.endswith(b"\n") else []
        except (ValueError, RecursionError):
            damaged += 1
    if damaged:
        warnings.warn(f"{file}: {damaged} damaged lines are left out", stacklevel=2)
    return lines
