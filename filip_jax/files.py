"""Files that are whole or absent, whenever the process dies."""

import os
from pathlib import Path


def write_atomically(file: Path, content: str | bytes) -> None:
    """Writes beside the file, then renames over it."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    beside = file.with_name(f"{file.name}.tmp")
    with beside.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(beside, file)
