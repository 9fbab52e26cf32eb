"""Tar shards as img2dataset and WebDataset make them, read in place and in any order."""

import hashlib
import re
import warnings
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np

from filip_jax import storage
from filip_jax.data.caption_text import is_json, most_bytes, texts_in
from filip_jax.data.identity import digest, identify
from filip_jax.data.index_folder import index_folder
from filip_jax.data.member_names import FIRST_DOT, IMAGES, KEYS
from filip_jax.data.packed import ENDINGS as PACKED
from filip_jax.data.record import (
    HEAD_BYTES,
    IMAGE_BYTES,
    METADATA_BYTES,
    BadRecord,
    Caption,
    Record,
)
from filip_jax.data.tar_index import Shard
from filip_jax.data.tar_store import is_whole, read_index, table_path
from filip_jax.data.values import advice, field_of, read_object, texts_of
from filip_jax.errors import UserError, one_line
from filip_jax.plain import counted
from filip_jax.walk import say_left_out

LOCAL = ("_tables", "_lock", "_paths", "_latest")  # attributes that each process has of its own
TABLES = 1 << 27  # bytes of tables from buckets that a process keeps


class WebDataset:
    """The samples of tars that have an image: members of one key, as 000012.jpg, 000012.txt, 000012.json.

    The first time, every tar is read once to note where its members stand; what lies in `index` then
    makes any record one read away.

    Args:
        path: a folder, a pattern or braces: "/data/cc3m", "gs://bucket/cc3m/{00000..00331}.tar".
        caption_keys: members ("txt", "de.txt") or fields of the JSON member ("json.caption"); each
            holds a text; a JSON field, and a JSON member ("json", "captions.json"), may hold a list of them.
        lines: whether each line of a text member is a text of its own, as CLIP_benchmark's retrieval tars have them
            (its webdataset_builder writes, and its reader splits, lines by `str.splitlines`).
        keys: which part of a member's name is the key that a sample's members share: "first_dot", what stands before its
            first dot, as webdataset has it; "last_dot", before its last, for names as photo.2021.0.jpg; "folder", all
            members of one folder, as 000012/image.jpg and 000012/caption.txt, whose caption key is "caption.txt".
        index: folder of indices, each in a folder of its own; "" is the folder .filip_index beside the tars.
            For tars in a bucket name a local one: then a record is one request.
        processes: that make the index; 0 makes it in this one.

    Raises:
        UserError: no tars, missing ones, an index that cannot be written, or a caption key that no sample has.
    """

    _tables: OrderedDict[str, bytes]
    _lock: Lock
    _paths: dict[str, tuple[str, str]]
    _latest: tuple[int, Any]

    def __init__(
        self,
        *,
        path: str,
        caption_keys: Sequence[str] = ("txt",),
        lines: bool = False,
        index: str = "",
        processes: int = 0,
        keys: str = FIRST_DOT,
    ):
        if keys not in KEYS:
            raise UserError(f"keys={keys!r} is not one of {', '.join(KEYS)}")
        self.left_out = Counter[str]()
        found = _find(path, self.left_out)
        self.root = storage.common_folder([file.path for file in found])
        own = f"{storage.name_of(self.root)}.{hashlib.sha256(_bytes(self.root)).hexdigest()[:8]}"
        named = storage.join(index, own) if index else storage.join(self.root, ".filip_index")
        if keys != FIRST_DOT:
            named = storage.join(named, keys)
        self.index = index_folder(named, lambda folder: is_whole(found, self.root, folder))
        self.caption_keys, self.lines, self.keys = tuple(caption_keys), lines, keys
        self.shards = read_index(found, self.root, self.index, processes, keys)
        self.names = dict(
            zip((shard.name for shard in self.shards), storage.names_below(path, [file.path for file in found]))
        )
        self.shard_sizes = np.array([shard.rows for shard in self.shards], np.int64)
        self.ends = np.cumsum(self.shard_sizes).tolist()
        kinds = _sum(dict(shard.kinds) for shard in self.shards)
        self.left_out += _sum(shard.problems for shard in self.shards)
        self.identity = self._identity()
        self.seen = f"{counted(len(found), 'tar')} with {_listed(kinds) or 'nothing'}{say_left_out(self.left_out)}"
        self._check(kinds, path)
        self._warn_of_gaps()
        self.__setstate__({})

    def _identity(self) -> str:
        kinds = ["json" if key.startswith("json.") else key for key in self.caption_keys]
        return identify(
            names=digest(shard.name for shard in self.shards),
            members=digest(shard.digest for shard in self.shards),
            records=len(self),
            captions=digest(shard.texts.get(kind, "") for shard in self.shards for kind in kinds),
            caption_keys=self.caption_keys,
            lines=self.lines,
            keys=self.keys,
        )

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Record:
        shard, members, key = self._row(index)
        image = self._member(shard, members, self._image_kind(members), IMAGE_BYTES)
        return Record(key, image, self._captions(shard, members), shard=self.names[shard.name])

    def where(self, index: int) -> tuple[str, str]:
        shard, _, key = self._row(index)
        return self.names[shard.name], key

    def captions(self, index: int) -> tuple[Caption, ...]:
        shard, members, _ = self._row(index)
        return self._captions(shard, members)

    def image_head(self, index: int) -> bytes:
        """The first bytes of the encoded image."""
        shard, members, _ = self._row(index)
        offset, size = members[self._image_kind(members)]
        return storage.read(self._tar(shard), offset, min(size, HEAD_BYTES))

    def _row(self, index: int) -> tuple[Shard, dict[str, tuple[int, int]], str]:
        """(shard, {kind: (offset, size)}, key) of a record; the latest one is kept."""
        latest, found = self._latest
        if latest != index:
            found = self._find(index)
            self._latest = index, found
        return found

    def _find(self, index: int) -> tuple[Shard, dict[str, tuple[int, int]], str]:
        number = bisect_right(self.ends, index)
        shard, row = self.shards[number], index - self.ends[number] + self.shards[number].rows
        layout = shard.layout
        try:
            data = self._read_table(self._table(shard), row * layout.size, layout.size)
        except FileNotFoundError:
            data = b""
        if len(data) != layout.size:
            raise UserError(f"the index of {shard.name} in {self.index} is damaged: remove it, it is then made again")
        *numbers, key = layout.unpack(data)
        places = zip(shard.kinds, numbers[::2], numbers[1::2])
        members = {kind: (offset * 512, size) for (kind, _), offset, size in places if size}
        return shard, members, key.rstrip(b"\0").decode("utf-8", "replace")

    def _tar(self, shard: Shard) -> str:
        path = self._paths.get(shard.name)
        if path is None:
            path = self._paths[shard.name] = storage.join(self.root, shard.name), table_path(self.index, shard)
        return path[0]

    def _table(self, shard: Shard) -> str:
        self._tar(shard)
        return self._paths[shard.name][1]

    def _read_table(self, path: str, offset: int, size: int) -> bytes:
        """From disks the one row; from buckets the whole table, which is kept for a while."""
        if not storage.is_remote(path):
            return storage.read(path, offset, size)
        table = self._tables.get(path)
        if table is None:
            table = storage.read(path)
            with self._lock:
                self._tables[path] = table
                while sum(map(len, self._tables.values())) > TABLES and len(self._tables) > 1:
                    self._tables.popitem(last=False)
        return table[offset : offset + size]

    def _image_kind(self, members) -> str:
        for kind in IMAGES:
            if kind in members:
                return kind
        raise BadRecord("no image in the index")

    def _member(self, shard: Shard, members, kind: str, most: int) -> bytes:
        offset, size = members[kind]
        if size > most:
            raise BadRecord(f"{kind} of {size} bytes; at most {most} are read")
        return storage.read(self._tar(shard), offset, size)

    def _captions(self, shard: Shard, members) -> tuple[Caption, ...]:
        found, fields = [], None
        for key in self.caption_keys:
            if key.startswith("json."):
                if fields is None:
                    fields = self._json(shard, members)
                found += [Caption(text, key) for text in texts_of(field_of(fields, key.split(".")[1:]))]
            elif key in members:
                texts = texts_in(self._member(shard, members, key, most_bytes(key)), key)
                if self.lines and not is_json(key):
                    texts = [line for line in texts[0].splitlines() if line.strip()]
                found += [Caption(text.strip(), key) for text in texts]
        return tuple(found)

    def _json(self, shard: Shard, members) -> dict:
        if "json" not in members:
            return {}
        try:
            return read_object(self._member(shard, members, "json", METADATA_BYTES))
        except ValueError as error:
            raise BadRecord(f"json cannot be read: {error}") from error

    def _check(self, kinds: Counter, path: str) -> None:
        missing = [key for key in self.caption_keys if ("json" if key.startswith("json.") else key) not in kinds]
        if missing:
            names = ["json.caption" if kind == "json" else kind for kind in kinds]
            say = f"; {advice('caption_keys', names)}" if names else ""
            raise UserError(f"path={path!r}: no sample has an image and caption_keys={missing[0]!r}; {self.seen}{say}")

    def _warn_of_gaps(self) -> None:
        numbers = [int(found[1]) for shard in self.shards if (found := re.search(r"(\d+)\.tar$", shard.name))]
        if len(set(numbers)) != len(self.shards) or not numbers or max(numbers) - min(numbers) >= 2 * len(numbers):
            return  # they are no running numbers
        gaps = sorted(set(range(min(numbers), max(numbers))) - set(numbers))
        if gaps:
            some = ", ".join(map(str, gaps[:5])) + (" …" if len(gaps) > 5 else "")
            warnings.warn(f"{self.root}: {len(gaps)} shard numbers are missing: {some}", stacklevel=3)

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name not in LOCAL}

    def __setstate__(self, state):
        vars(self).update(state, _tables=OrderedDict(), _lock=Lock(), _paths={}, _latest=(-1, None))


def _find(path: str, left_out: Counter[str]) -> list[storage.Found]:
    """The tars of a path.

    Raises:
        UserError: there are none.
    """
    try:
        return storage.find(path, (".tar",), "path", left_out)
    except UserError as error:
        if not any(left_out[ending] for ending in PACKED):
            raise
        raise UserError(
            f"{error}; members are read in place, so tars must not be compressed: gunzip them (or unzstd, unxz, bunzip2)"
        ) from error


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _sum(counts) -> Counter:
    return sum((Counter(each) for each in counts), Counter())


def _listed(counts: Counter) -> str:
    return one_line(", ".join(f"{kind} ({count})" for kind, count in counts.most_common(12)))
