"""What every data source yields: one image with its caption."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Region:
    """A phrase of the caption and where the thing it names stands in the image.

    Attributes:
        start, end: the phrase is caption[start:end].
        box: left, top, right, bottom in pixels of the stored image.
    """

    start: int
    end: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Record:
    """One pair.

    Attributes:
        key: names the record for people, unique in its source.
        image: encoded bytes (JPEG, PNG, WebP …) or decoded uint8 [h, w, 3].
        caption: the text.
        label: index into the source's `class_names`, if it has them.
        regions: phrases with their boxes, where the source knows them.
    """

    key: str
    image: bytes | np.ndarray
    caption: str
    label: int | None = None
    regions: tuple[Region, ...] = ()
