"""Folders that a run writes, on disks and in buckets: what lies there, and its removal."""

import glob
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filip_jax import storage


def matches(folder: str, pattern: str, deep: bool = False) -> list[str]:
    """The files in `folder` that a pattern with * matches, sorted; with `deep` also those in matching folders."""
    if storage.is_remote(folder):
        patterns = [f"{folder}/{pattern}", *([f"{folder}/{pattern}/**"] if deep else [])]
        return sorted({path for each in patterns for path in storage.listed(each)})
    found = glob.glob(os.path.join(glob.escape(folder), pattern))
    inside = [os.path.join(root, name) for top in found if deep for root, _, names in os.walk(top) for name in names]
    return sorted({path for path in [*found, *inside] if os.path.isfile(path)})


def read_whole(path: str) -> bytes:
    """All bytes of a file that may be written anew while this process runs.

    Raises:
        OSError: it can not be read.
    """
    with storage.open_stream(path) as stream:
        return stream.read()


def remove(paths: Sequence[str]) -> None:
    """Removes files; one that is not there is none to remove.

    Raises:
        OSError: one can not be removed.
    """
    for path in paths:
        if storage.is_remote(path):
            storage.remove_remote(path)
        else:
            Path(path).unlink(missing_ok=True)


def remove_empty_folders(folder: str) -> None:
    """Removes the folder with all folders in it that hold nothing; buckets have none."""
    if not storage.is_remote(folder):
        for root, _, _ in os.walk(folder, topdown=False):
            with suppress(OSError):
                os.rmdir(root)
