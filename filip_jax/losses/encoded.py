"""A batch as objectives see it: what the towers gave, and who belongs to whom."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Encoded:
    """The encoder outputs of a batch of b images with k captions each. What no objective needs is None.

    Fields are arrays, or in a transformation what stands for them, so shapes stand here and not in annotations.

    Attributes:
        image_tokens, text_tokens: [b, p, d] and [b, k, t, d], L2-normalized, in one space.
        text_mask: bool [b, k, t], True for the tokens that take part.
        image_pooled, text_pooled: [b, e] and [b, k, e], one L2-normalized vector each, in one space.
        text_ids: int [b, k, t], token ids, -1 for pads.
        text_weight: [b, k], how much each caption counts; 0 for one that is absent.
        image_weight: [b], how much each image counts in means over images of losses over pairs.
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
    image_weight: Any = None
    group: Any = None
    real: Any = None
    views: tuple["Encoded", ...] = ()
    teacher: "Encoded | None" = None

    @property
    def caption_weight(self) -> Float[Array, "b k"]:
        """How much each caption counts: 0 for one that is absent or belongs to a row that only fills up the batch."""
        texts = next(x for x in (self.text_pooled, self.text_tokens, self.text_ids) if x is not None)
        weight = jnp.ones(texts.shape[:2]) if self.text_weight is None else self.text_weight
        return weight if self.real is None else jnp.where(self.real[:, None], weight, 0.0)


def weighted_mean(values: Float[Array, "*shape"], weight: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Return the mean of numbers by their weights; 0 where none counts. What those of weight 0 are changes nothing."""
    total = weight.sum()
    return jnp.where(weight > 0, weight * values, 0.0).sum() / jnp.where(total > 0, total, 1.0)
