"""SigLIP's loss as a `PairLoss`: each pair by itself, right or wrong."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Sigmoid:
    """-log sigmoid(±(scale s + bias)) of all pairs, + where text and image belong together (Zhai et al. 2023, arXiv 2303.15343).

    Summed over texts, mean over images; the same over images for s_T. With k captions an image has k times as many pairs,
    and its loss grows with them: it is not divided by k.

    Attributes:
        sides: 2 for the mean of both similarities' losses, 1 where they are the same.
        pairs_by: "group" or "image": what right pairs have in common.
    """

    sides: int = 2
    pairs_by: str = "group"

    def counts(self, images, texts):
        """Return none: pairs do not compete."""
        return {}

    def terms(self, similarities, images, texts, parameters):
        """Return log sigmoid of all pairs that count."""
        sign = jnp.where(texts[self.pairs_by] == images[self.pairs_by], 1.0, -1.0)
        counted = texts["real"] & images["real"]

        def of_side(similarity, weight):
            logits = parameters["scale"] * similarity + parameters["bias"]
            return {"sum": jnp.where(counted, weight * jax.nn.log_sigmoid(sign * logits), 0.0)}

        of_images = {"over_texts": of_side(similarities[0], texts["weight"])}
        return of_images | ({"over_images": of_side(similarities[1], 1.0)} if self.sides == 2 else {})

    def losses(self, over_texts, over_images):
        """Return the negative sums."""
        return -over_texts["sum"], -over_images["sum"] if over_images else None
