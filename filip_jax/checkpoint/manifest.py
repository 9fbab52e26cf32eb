"""manifest.json of a checkpoint: written last, it makes the checkpoint; it knows every file's size and hash.

JAX is imported where it is used: a checkpoint can be looked at without it.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from filip_jax import storage
from filip_jax.errors import UserError
from filip_jax.saved_config import FORMAT, check_format
from filip_jax.small_files import is_text, is_whole, parse

FILE = "manifest.json"
ASIDE = "manifest.damaged.json"  # of a checkpoint that a run found damaged: it counts no more
MOST_BYTES = 1 << 26  # of a manifest
MAX_SIZE = 1 << 63  # bytes of a file, or entries of an array's dimension
MAX_DIMENSIONS = 64  # of an array
MAX_DTYPE = 32  # characters of a type's name
MAX_PATH = 1024  # characters of an array's name
PIECE = 1 << 24  # bytes read at once
KINDS = {"state": str, "step": int, "files": dict, "tree": dict, "meta": dict, "config": dict}
META = {"samples_seen": int, "seconds": dict, "tokenizer_sha256": str, "data_sha256": str}  # of what a run leaves there
THREADS = 8  # hashing lets other threads run

Manifest = dict[str, Any]


def describe(state: Any) -> dict[str, dict[str, Any]]:
    """{path: {shape, dtype}} of every leaf; `state` may be shapes."""
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {path_of(path): {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for path, leaf in leaves}


def path_of(path: Sequence[Any]) -> str:
    """A leaf's path as text: params/image/patch/kernel."""
    import jax

    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def write_manifest(folder: str, content: Mapping[str, Any], state_folder: str) -> Manifest:
    """Hashes the files of `state_folder` and writes the manifest of the checkpoint in `folder`.

    Hidden files are left out: Orbax writes none, but NFS, file managers and sync tools do, and take them away again.

    Raises:
        OSError: something cannot be read or written.
    """
    top = folder.rstrip("/") + "/"
    found = storage.find(storage.join(folder, state_folder), ("",), "checkpoint")
    found = [file for file in found if "/." not in file.path.removeprefix(top)]
    names = [file.path.removeprefix(top) for file in found]
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = list(pool.map(lambda file: _sha256(file.path), found))
    files = {name: {"size": f.size, "sha256": sha} for name, f, sha in zip(names, found, hashes)}
    manifest = {"format": FORMAT, "state": state_folder, **content, "files": files}
    manifest["sha256"] = manifest_sha256(manifest)
    storage.write(storage.join(folder, FILE), (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def read_manifest(folder: str) -> Manifest:
    """Return the manifest of the checkpoint in `folder`.

    Raises:
        OtherFormat: another version of filip_jax wrote it.
        UserError: it is not what `write_manifest` writes.
        OSError: it cannot be read.
    """
    path = storage.join(folder, FILE)
    with storage.open_stream(path) as stream:
        data = stream.read(MOST_BYTES)
    try:
        manifest = parse(data)
        is_signed = manifest.pop("sha256") == manifest_sha256(manifest)
        is_sound = is_signed and manifest["format"] == FORMAT and _is_sound(manifest)
    except (ValueError, KeyError, TypeError, AttributeError):
        is_signed = is_sound = False
    if is_signed:
        check_format(manifest, path)
    if not is_sound:
        raise UserError(f"{path} is damaged: it is not the manifest of a checkpoint")
    return manifest


def _is_sound(manifest: Manifest) -> bool:
    if not all(isinstance(manifest[key], kind) for key, kind in KINDS.items()):
        return False
    if not all(isinstance(manifest["meta"].get(key, kind()), kind) for key, kind in META.items()):
        return False
    names = [*manifest["files"], manifest["state"]]
    strange = (name.startswith("/") or storage.is_remote(name) or ".." in name.split("/") for name in names)
    sound = not any(strange)
    for each in manifest["files"].values():
        sound = sound and is_whole(each["size"], MAX_SIZE) and isinstance(each["sha256"], str)
    for path, each in manifest["tree"].items():
        sound = sound and len(path) <= MAX_PATH and is_text(each["dtype"], MAX_DTYPE)
        sound = (
            sound
            and isinstance(each["shape"], list)
            and len(each["shape"]) <= MAX_DIMENSIONS
            and all(is_whole(n, MAX_SIZE) for n in each["shape"])
        )
    return sound


def damage(folder: str, manifest: Manifest, share: int = 0, shares: int = 1) -> str:
    """Which of the files is not as the manifest says, and how; "" if all are well.

    Args:
        share, shares: looks at this of so many equal parts of the files, by bytes.

    Raises:
        OSError: the disk or the bucket fails.
    """
    sizes = {name: entry["size"] for name, entry in manifest["files"].items()}
    by_size = sorted(sizes, key=lambda name: (-sizes[name], name))
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _damage_of(folder, name, manifest["files"][name]), by_size[share::shares])
        return next(filter(None, found), "")


def _damage_of(folder: str, name: str, entry: Mapping[str, Any]) -> str:
    path = storage.join(folder, name)
    if not storage.exists(path):
        return f"{path} is missing"
    sha, size = _sha256_and_size(path, entry["size"])
    if size != entry["size"]:
        more = "or more " if size > entry["size"] else ""
        return f"{path} has {size} bytes {more}instead of {entry['size']}"
    return "" if sha == entry["sha256"] else f"{path} has another content than was written (SHA-256)"


def manifest_sha256(manifest: Manifest) -> str:
    """Of all that it says, the hashes of the checkpoint's files too."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: str) -> str:
    return _sha256_and_size(path)[0]


def _sha256_and_size(path: str, most: float = math.inf) -> tuple[str, int]:
    """Return the file's content, or some of it where it has more than `most` bytes."""
    found, size = hashlib.sha256(), 0
    with storage.open_stream(path) as stream:
        while size <= most and (piece := stream.read(PIECE)):
            found.update(piece)
            size += len(piece)
    return found.hexdigest(), size
