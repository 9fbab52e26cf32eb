"""SigLIP's loss as a `PairLoss`: each pair by itself, right or wrong."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Sigmoid:
    """-log sigmoid(±(scale s + bias)) of all pairs, + where text and image belong together (Zhai et al. 2023, arXiv 2303.15343).

    Summed over the images of each text, mean over texts by their weights: with one caption per image the published sum over
    all pairs divided by the batch, and no larger with several.

    Attributes:
        sides: 2 for the mean of the losses by s_I and s_T, 1 where these are the same.
        pairs_by: "group" or "image": what right pairs have in common.
        share: of the loss, where it is one of several of an objective.
    """

    sides: int = 2
    pairs_by: str = "group"
    share: float = 1.0

    def counts(self, images, texts):
        """Return none: pairs do not compete."""
        return {}

    def terms(self, similarities, images, texts, parameters):
        """Return log sigmoid of all pairs that count."""
        sign = jnp.where(texts[self.pairs_by] == images[self.pairs_by], 1.0, -1.0)
        counted = texts["real"] & images["real"]
        logits = [parameters["scale"] * s + parameters["bias"] for s in similarities[: self.sides]]
        mean = sum(jax.nn.log_sigmoid(sign * x) for x in logits) / self.sides
        return {"over_images": {"sum": jnp.where(counted, mean, 0.0)}}

    def losses(self, over_texts, over_images):
        """Return the negative sums."""
        return None, -self.share * over_images["sum"]
