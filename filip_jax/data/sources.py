"""The data sources by name. A new one is a file beside this and a line here."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from filip_jax.data.emoji_scenes import EmojiScenes
from filip_jax.data.folder import Folder
from filip_jax.data.record import Record
from filip_jax.data.tfds import Tfds
from filip_jax.errors import UserError
from filip_jax.sections import check, choose

SOURCES = {"emoji_scenes": EmojiScenes, "folder": Folder, "tfds": Tfds}


@runtime_checkable
class Source(Protocol):
    """Random access to records; pure: the same index always gives the same record.

    `caption(index)` is the record's caption, without its image where that is cheaper. A source of
    labelled images has `class_names`, too.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def caption(self, index: int) -> str: ...


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
