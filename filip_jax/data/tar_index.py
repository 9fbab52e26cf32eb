"""Where the members of tar shards stand, so that any record is one read away; tars are never unpacked.

The index of a shard is a table of equal rows, one per sample: for each kind of member ("jpg", "txt",
"json" …) its offset in units of 512 bytes and its size, both 0 where the sample has none, then the
sample's key; tar_store.py keeps them.
"""

import hashlib
import os
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from filip_jax import storage
from filip_jax.data.identity import digest
from filip_jax.data.member_names import FIRST_DOT, IMAGES, split, why_name_left_out
from filip_jax.data.packed import PACKED_BYTES, refuse_packed
from filip_jax.data.record import CAPTION_BYTES, METADATA_BYTES
from filip_jax.data.tar_headers import DamagedTar, JoinedTar, Member, read_members
from filip_jax.storage import Found
from filip_jax.walk import HIDDEN

KINDS = 64  # most kinds of members that a shard's index holds
KEY_BYTES = 200
NO_TAR, NOTHING, NO_IMAGE = "no tar", "tar without a member", "no image"
JOINED = "another tar behind the end of one, as `cat` joins them: unpack them with tar -i"
LINK = "link, of which a tar has no content: pack with tar --dereference --hard-dereference"
SPARSE = "sparse file: pack without tar -S"
DOTTED = "no image, but one with dots in its name: keys=last_dot reads it"
BESIDE = "no image, but one in its folder: keys=folder reads them"


class Place(NamedTuple):
    """Where a member stands: its offset in units of 512 bytes, its size, and the digest of a text."""

    offset: int
    size: int
    digest: bytes


NO_PLACE = Place(0, 0, b"")


@dataclass(frozen=True)
class Shard:
    """What the index knows of one tar.

    Attributes:
        name: of the tar, below the data's folder.
        size, stamp: of the tar: its bytes, and its time or what the bucket says; others are another tar's.
        rows: the samples that have an image, in the order of the tar.
        kinds: of members, in the order of a row's columns, each with how many samples have it.
        key_bytes: width of a row's key.
        problems: counts of what was left out: "no image", "duplicate", "cut off", "not a file" …
        digest: of the table.
        texts: of each kind that is no image the digest of its members' bytes, which a caption may stand in.
    """

    name: str
    size: int
    stamp: str
    rows: int
    kinds: tuple[tuple[str, int], ...]
    key_bytes: int
    problems: dict[str, int]
    digest: str
    texts: dict[str, str]

    @property
    def layout(self) -> struct.Struct:
        """Of one row of the shard's table: offset and size of each kind, then the key."""
        return _layout(len(self.kinds), self.key_bytes)


def row_type(kinds: int, key_bytes: int) -> np.dtype:
    """The same for numpy."""
    return np.dtype([("members", "<u4", (kinds, 2)), ("key", f"S{key_bytes}")])


@lru_cache
def _layout(kinds: int, key_bytes: int) -> struct.Struct:
    return struct.Struct(f"<{2 * kinds}I{key_bytes}s")


def index_shard(file: Found, name: str, keys: str = FIRST_DOT) -> tuple[Shard, bytes]:
    """The index of one tar: what index.json says of it, and its table.

    A tar that is damaged is read as far as it goes. Links, devices and folders are no members; a
    member's name is only ever compared, so it may be anything.

    Args:
        keys: how a member's name is split, see member_names.py.

    Raises:
        UserError: the tar is compressed, or another kind of archive.
    """
    samples, problems = _read(file, keys)
    if not samples and problems[HIDDEN]:  # a folder that is packed with its hidden name, as .cache/data, is wanted
        samples, problems = _read(file, keys, _top(file))
    whole = {key: members for key, members in samples.items() if any(kind in IMAGES for kind in members)}
    alone = Counter(key.rpartition("/")[0] for key, members in whole.items() if set(members) <= {*IMAGES, "json"})
    for key in (key for key in samples if key not in whole):
        dotted = any(kind.rpartition(".")[2] in IMAGES for kind in samples[key])
        folder = key.rpartition("/")[0]
        problems[DOTTED if dotted else BESIDE if folder and alone[folder] == 1 else NO_IMAGE] += 1
    counts = Counter(kind for members in whole.values() for kind in members)
    kinds = sorted(counts.items(), key=lambda item: (item[0] not in IMAGES, -item[1], item[0]))
    problems[f"of kinds beyond {KINDS}"] += sum(count for _, count in kinds[KINDS:])
    del kinds[KINDS:]
    keys = [_short(key) for key in whole]
    key_bytes = max(map(len, keys), default=1)
    table = np.zeros(len(whole), row_type(len(kinds), key_bytes))
    table["key"] = keys
    for column, (kind, _) in enumerate(kinds):
        table["members"][:, column] = [members.get(kind, NO_PLACE)[:2] for members in whole.values()]
    texts = {
        kind: digest(members.get(kind, NO_PLACE).digest for members in whole.values())
        for kind, _ in kinds
        if kind not in IMAGES
    }
    data = table.tobytes()
    shard = Shard(
        name,
        file.size,
        file.stamp,
        len(whole),
        tuple(kinds),
        key_bytes,
        dict(+problems),
        hashlib.md5(data, usedforsecurity=False).hexdigest(),
        texts,
    )
    return shard, data


def _read(file: Found, keys: str, top: str = "") -> tuple[dict[str, dict[str, Place]], Counter[str]]:
    """Return {key: {kind: place}} and what is left out; the names of folders in `top` do not count."""
    samples: dict[str, dict[str, Place]] = {}
    problems: Counter[str] = Counter()
    is_tar = False
    with storage.open_stream(file.path) as stream:
        refuse_packed(stream.read(PACKED_BYTES), file.path)
        try:
            for member in read_members(stream, file.size):
                is_tar = True
                _add(member, file.size, samples, problems, keys, stream, top)
        except JoinedTar:
            problems[JOINED] += 1
        except DamagedTar:
            problems["damaged or empty from some point on" if is_tar or not file.size else NO_TAR] += 1
    problems[NOTHING] += not samples and not problems
    return samples, problems


def _top(file: Found) -> str:
    """The folders that all members lie in."""
    top: list[str] | None = None
    with storage.open_stream(file.path) as stream, suppress(DamagedTar, JoinedTar):
        for member in read_members(stream, file.size):
            if member.isreg():
                folders = member.name.split("/")[:-1]
                top = folders if top is None else list(os.path.commonprefix([top, folders]))  # noqa: RUF071 - of lists
    return "/".join(top or [])


def _add(member: Member, size: int, samples: dict, problems: Counter, keys: str, stream, top: str = "") -> None:
    key, kind = split(member.name, keys)
    if member.is_about_others():
        return
    if member.is_link():
        problems[LINK] += 1
    elif member.issparse():
        problems[SPARSE] += 1
    elif not member.isreg():
        problems["not a file"] += 1
    elif reason := why_name_left_out(member.name.removeprefix(top)):
        problems[reason] += 1
    elif not key or not kind:
        problems["a name without key or ending"] += 1
    elif member.offset_data + member.size > size:
        problems["cut off"] += 1
    elif member.size >= 1 << 32 or member.offset_data // 512 >= 1 << 32:
        problems["beyond what an index holds: 4 GiB, or 2 TiB into the tar"] += 1
    elif member.size == 0:
        problems["empty"] += 1
    else:
        members = samples.setdefault(key, {})
        if kind in members:
            problems["duplicate"] += 1
        else:
            members[kind] = Place(member.offset_data // 512, member.size, _digest_of(member, kind, stream))


def _digest_of(member: Member, kind: str, stream) -> bytes:
    """Of what a caption may stand in; what is too large for one is known by its size, as images are."""
    if kind in IMAGES or member.size > (METADATA_BYTES if kind == "json" else CAPTION_BYTES):
        return b""
    stream.seek(member.offset_data)
    return hashlib.md5(stream.read(member.size), usedforsecurity=False).digest()


def _short(key: str) -> bytes:
    """The key in UTF-8; of a very long one the beginning and a hash."""
    data = key.encode("utf-8", "surrogateescape").replace(b"\0", b"")
    if len(data) <= KEY_BYTES:
        return data
    return data[: KEY_BYTES - 32] + hashlib.md5(data, usedforsecurity=False).hexdigest().encode()
