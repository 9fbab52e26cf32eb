"""The data sources by name. A new one is a file beside this and a line here."""

from typing import Protocol

from filip_jax.data.emoji_scenes import EmojiScenes
from filip_jax.data.folder import Folder
from filip_jax.data.record import Record
from filip_jax.data.tfds import Tfds
from filip_jax.sections import call, choose

SOURCES = {"emoji_scenes": EmojiScenes, "folder": Folder, "tfds": Tfds}


class Source(Protocol):
    """Random access to records; pure: the same index always gives the same record."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def make_source(*, name: str, **options) -> Source:
    """The source that a config's `source` section describes."""
    return call(choose(SOURCES, name, "source.name"), options, f"source ({name})")
