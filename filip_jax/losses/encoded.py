"""A batch as objectives see it: what the towers gave, and who belongs to whom."""

from dataclasses import dataclass
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Encoded:
    """The encoder outputs of a batch of b images with k captions each. What no objective needs is None.

    Fields are arrays, or in a transformation what stands for them, so shapes stand here and not in annotations.

    Attributes:
        image_tokens, text_tokens: [b, p, d] and [b, k, t, d], L2-normalized, in one space.
        text_mask: bool [b, k, t], True for the tokens that take part.
        image_pooled, text_pooled: [b, e] and [b, k, e], one L2-normalized vector each, in one space.
        text_ids: int [b, k, t], token ids.
        text_weight: [b, k], how much each caption counts; 0 for one that is absent.
        group: int [b]; images of one group show the same.
        real: bool [b], False for rows that only fill up the batch.
        views: `Encoded` of further views of the same images, without texts.
        teacher: `Encoded` of the same batch by another model, without gradient.
    """

    image_tokens: Any = None
    text_tokens: Any = None
    text_mask: Any = None
    image_pooled: Any = None
    text_pooled: Any = None
    text_ids: Any = None
    text_weight: Any = None
    group: Any = None
    real: Any = None
    views: tuple["Encoded", ...] = ()
    teacher: "Encoded | None" = None
