"""The data sources by name. A new one is a file beside this and a line here."""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from filip_jax.data.emoji_scenes import EmojiScenes
from filip_jax.data.folder import Folder
from filip_jax.data.record import Caption, Record
from filip_jax.data.tfds import Tfds
from filip_jax.errors import UserError
from filip_jax.sections import check, choose

SOURCES = {"emoji_scenes": EmojiScenes, "folder": Folder, "tfds": Tfds}


@runtime_checkable
class Source(Protocol):
    """Random access to records; pure: the same index always gives the same record.

    Where a record can not be read, `[index]` and `captions` raise BadRecord. `captions` spares the
    image where that is cheaper. A source of labelled images has `class_names`, too; one of encoded
    images may have `image_head(index)`, their first bytes.

    Attributes:
        shard_sizes: records of each piece that is best read together, in order; sums to the length.
        identity: a text that differs if the data does.
        seen: what the data holds, for the message that none of it can be used.
    """

    shard_sizes: np.ndarray
    identity: str
    seen: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def captions(self, index: int) -> tuple[Caption, ...]: ...


def make_source(section: Mapping[str, Any], key: str = "source") -> Source:
    """The source that a config's `source` section describes: its name and its options.

    Raises:
        UserError: an unknown name or option, or data that can not be opened.
    """
    name, options = dict(section).get("name", ""), {k: v for k, v in section.items() if k != "name"}
    kind = choose(SOURCES, name, f"{key}.name")
    check(kind, options, f"{key} ({name})")
    try:
        return kind(**options)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def fingerprint(source: Source) -> str:
    """A hash of what the source is; a run refuses to go on with other data."""
    return hashlib.sha256(f"{source.identity} {len(source)}".encode()).hexdigest()
