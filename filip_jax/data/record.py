"""What every data source yields: one image with its texts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from filip_jax.errors import one_line

CAPTION_BYTES = 1 << 16  # of one text; a longer one is no caption
METADATA_BYTES = 1 << 20  # of one JSON file beside an image
IMAGE_BYTES = 1 << 26  # of one encoded image
HEAD_BYTES = 1 << 16  # of an encoded image, enough to know its size


def is_caption(text: Any) -> bool:
    """Whether this is a text that is no longer than CAPTION_BYTES in UTF-8."""
    return isinstance(text, str) and (
        4 * len(text) <= CAPTION_BYTES or len(text.encode("utf-8", "replace")) <= CAPTION_BYTES
    )


class BadRecord(Exception):
    """A record that cannot be used, and why in one line; training puts another in its place and names it."""

    def __init__(self, reason: str):
        super().__init__(one_line(reason))


def kind_of(reason: str) -> str:
    """Return what a BadRecord's reason has in common with others, by which they are counted."""
    return re.sub(r"""'[^']*'|"[^"]*"|(?<!at most )(?<!more than )(?<![\w-])[0-9]+""", "…", reason.split(": ")[0])[:80]


@dataclass(frozen=True)
class Caption:
    """One text of an image.

    Attributes:
        origin: where it comes from: a column, a member's suffix, a field, a side file's name for it.
        weight: how often it is drawn, beside the image's other texts.
        key: the text's own name, where the data gives it one.
    """

    text: str
    origin: str = "caption"
    weight: float = 1.0
    key: str = ""


def that_say(captions: Sequence[Caption]) -> tuple[Caption, ...]:
    """The texts that are not blank and have no lone surrogates, as JSON may bring them."""
    return tuple(caption for caption in captions if caption.text.strip() and _is_unicode(caption.text))


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any(0xD800 <= ord(character) < 0xE000 for character in text)


@dataclass(frozen=True)
class Region:
    """A phrase of the first caption and where the thing it names stands in the image.

    Attributes:
        start, end: the phrase is caption[start:end].
        box: left, top, right, bottom in pixels of the stored image.
    """

    start: int
    end: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Record:
    """One image with its texts.

    Attributes:
        key: the record's own name, unique in its source as far as the data's maker saw to it.
        image: encoded bytes (JPEG, PNG, WebP …) or decoded uint8 [h, w, 3].
        captions: at least one; evaluations take the first that is not blank.
        shard: the file that the record lies in, for people.
        label: index into the source's `class_names`, if it has them.
        regions: phrases with their boxes, where the source knows them.
    """

    key: str
    image: bytes | np.ndarray
    captions: tuple[Caption, ...]
    shard: str = ""
    label: int | None = None
    regions: tuple[Region, ...] = ()

    @property
    def caption(self) -> str:
        """The first of the texts that is not blank."""
        return (*that_say(self.captions), *self.captions)[0].text
