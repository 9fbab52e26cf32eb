"""A batch as objectives see it: what the towers gave, and who belongs to whom."""

from dataclasses import dataclass
from functools import partial

import jax
from jaxtyping import Array, Bool, Float, Int


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class Encoded:
    """The encoder outputs of a batch of b images with k captions each. What no objective needs is None.

    Attributes:
        image_tokens, text_tokens: L2-normalized, in the shared space.
        text_mask: True for the tokens that take part.
        image_pooled, text_pooled: one L2-normalized vector of each image and text, in a shared space.
        text_ids: token ids.
        text_weight: how much each caption counts; 0 for one that is absent.
        group: images of one group show the same.
        real: False for rows that only fill up the batch.
        views: further views of the same images, without texts.
        teacher: the same batch by another model, without gradient.
    """

    image_tokens: Float[Array, "b p d"] | None = None
    image_pooled: Float[Array, "b e"] | None = None
    text_tokens: Float[Array, "b k t d"] | None = None
    text_mask: Bool[Array, "b k t"] | None = None
    text_pooled: Float[Array, "b k e"] | None = None
    text_ids: Int[Array, "b k t"] | None = None
    text_weight: Float[Array, "b k"] | None = None
    group: Int[Array, " b"] | None = None
    real: Bool[Array, " b"] | None = None
    views: tuple["Encoded", ...] = ()
    teacher: "Encoded | None" = None
