"""Orbax's store of a state: its path, taken literally, and whether it holds the state. No array is read."""

import fnmatch
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import jax.numpy as jnp
import tensorstore as ts
from etils import epath
from orbax.checkpoint._src.serialization import tensorstore_utils

from filip_jax import buckets, storage
from filip_jax.errors import UserError
from filip_jax.user_paths import absolute

Leaf = Mapping[str, Any]  # of an array: {shape, dtype}, of one in the store also its chunks
METADATA = "_METADATA"  # Orbax reads the names of a state's arrays from here
EXTENT = re.compile(r"\w+:(.*):(\d+):(\d+)")  # of bytes, as TensorStore notes it: kind:folder:file:offset:length


class LiteralPath(type(epath.Path(os.sep))):  # type: ignore[misc] # etils exports no class of local paths
    """A path below which Orbax finds what it has written, whatever signs the path has: its own would read [ ] * ?."""

    def glob(self, pattern: str) -> Iterator[epath.Path]:
        """The files and folders that a pattern matches, with signs in its last name only."""
        folder, _, name = pattern.rpartition("/")
        below = self / folder if folder else self
        files = below.iterdir() if below.is_dir() else ()
        return (file for file in files if fnmatch.fnmatchcase(file.name, name))


def literal(path: str) -> LiteralPath:
    """Return the path, which is a URL or made absolute, for Orbax.

    Raises:
        UserError: Orbax or TensorStore would take it for another one, as they do where it has a backslash.
    """
    path = absolute(path)
    buckets.prepare(path)
    try:
        place, taken = LiteralPath(path), _place(path)
        taken = os.fspath(place) if os.fspath(place) != path else taken
    except Exception as error:  # theirs are of any kind
        taken = f"nothing ({' '.join(str(error).split())[:100]})"
    if taken != path:
        raise UserError(
            f"{path!r} cannot hold checkpoints: Orbax or TensorStore takes it for {taken!r}; name a folder without "
            "backslashes, bytes that are not UTF-8, names that end in gs: and, in buckets, # ? or doubled slashes"
        )
    return place


def _place(path: str) -> str:
    """Return the folder where TensorStore would put what Orbax gives it for this path."""
    spec = tensorstore_utils.build_kvstore_tspec(path, use_ocdbt=False)
    taken = ts.KvStore.Spec(spec).to_json()
    key = taken["path"].removesuffix("/")
    return f"{path.partition('://')[0]}://{taken['bucket']}/{key}" if "bucket" in taken else key


def misfit(folder: str, tree: Mapping[str, Leaf]) -> str:
    """Return how the store in `folder` differs from the state that it should hold; "" if it does not.

    The store is opened as for a restore. Names, shapes, types, all pieces of all arrays and the files that hold them
    are compared, but no piece is read.

    Args:
        tree: {path: {shape, dtype}} of every array of the state.
    """
    expected = {path.replace("/", "."): leaf for path, leaf in tree.items()}
    try:
        sizes = {file.path.removeprefix(f"{folder}/"): file.size for file in storage.find_all(folder)}
        keys = dict(_keys(folder))
        return _misfit(_arrays(folder, keys), expected, keys, sizes)
    except Exception as error:  # of many types: the files may hold anything, and the disk may fail
        return f"it cannot be opened: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _misfit(
    arrays: Mapping[str, Leaf],
    expected: Mapping[str, Leaf],
    keys: Mapping[str, tuple[str, int]],
    sizes: Mapping[str, int],
) -> str:
    if METADATA not in sizes:
        return f"{METADATA} is missing"
    if strange := sorted(arrays.keys() ^ expected.keys()):
        lacks = "it lacks" if strange[0] in expected else "beside the state it holds"
        return f"{lacks} {strange[0]}" + (f" and {len(strange) - 1} more" if len(strange) > 1 else "")
    for name, leaf in expected.items():
        if found := _difference(arrays[name], leaf, name, keys):
            return f"{name} {found}"
    for name, (file, end) in keys.items():
        if end > sizes.get(file, 0):
            return f"{file} has {sizes.get(file, 0)} bytes, but {name} ends at {end}"
    return ""


def _keys(folder: str) -> Iterator[tuple[str, tuple[str, int]]]:
    """(key, (the file of its value, where the value ends there)) of the whole store; ("", 0) of one beside its key."""
    base, met = _open(folder, use_ocdbt=False), set()
    root = ts.ocdbt.dump(base).result()["versions"][-1]["root"]
    nodes = [("", root["location"])] if "location" in root else []  # of an empty store
    while nodes:
        prefix, place = nodes.pop()
        if place in met:
            raise ValueError(f"{place} is in two places of the tree")
        met.add(place)
        for entry in ts.ocdbt.dump(base, node=place).result()["entries"]:
            if "location" in entry:
                nodes.append((prefix + entry["subtree_common_prefix"].decode(), entry["location"]))
            else:
                yield prefix + entry["key"].decode(), _extent(entry.get("indirect_value", ""))


def _extent(text: str) -> tuple[str, int]:
    found = EXTENT.fullmatch(text)
    return (found[1].replace(":", ""), int(found[2]) + int(found[3])) if found else ("", 0)


def _arrays(folder: str, keys: Mapping[str, Any]) -> dict[str, Leaf]:
    """Return {name: shape, chunks and dtype} of each array as the store describes it."""
    store, end = _open(folder, use_ocdbt=True), "/.zarray"
    reads = {key.removesuffix(end): store.read(key) for key in keys if key.endswith(end)}
    return {name: json.loads(read.result().value) for name, read in reads.items()}


def _difference(array: Leaf, leaf: Leaf, name: str, keys: Mapping[str, Any]) -> str:
    have, want = (str(jnp.dtype(array["dtype"])), array["shape"]), (leaf["dtype"], leaf["shape"])
    if have != want:
        return f"is {have[0]} {tuple(have[1])}, the state's is {want[0]} {tuple(want[1])}"
    counts = [-(-size // chunk) for size, chunk in zip(array["shape"], array["chunks"], strict=True)]
    pieces = (f"{name}/{'.'.join(map(str, index)) or 0}" for index in product(*map(range, counts)))
    lacking = next((piece for piece in pieces if piece not in keys), "")
    return f"lacks the piece {lacking} of {math.prod(counts)}" if lacking else ""


def _open(folder: str, use_ocdbt: bool) -> ts.KvStore:
    spec = tensorstore_utils.build_kvstore_tspec(folder, use_ocdbt=use_ocdbt)
    return ts.KvStore.open(spec, context=tensorstore_utils.get_ts_context()).result()
