"""The data sources by name. A new one is a file beside this and a line here."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from filip_jax.data.emoji_scenes import EmojiScenes
from filip_jax.data.folder import Folder
from filip_jax.data.record import Record
from filip_jax.data.tfds import Tfds
from filip_jax.errors import UserError
from filip_jax.sections import call, choose

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


def first_records(source: Source, count: int) -> list[Record]:
    """Records 0 to count - 1.

    Raises:
        UserError: the source has fewer.
    """
    if count > len(source):
        raise UserError(f"examples={count}, but the source has only {len(source)} records")
    return [source[index] for index in range(count)]


def make_source(section: Mapping[str, Any], key: str = "source") -> Source:
    """The source that a config's `source` section describes: its name and its options.

    Raises:
        UserError: an unknown name or option, or data that can not be opened.
    """
    return call(_make, section, key)


def _make(*, name: str, **options: Any) -> Source:
    return call(choose(SOURCES, name, "source.name"), options, f"source ({name})")
