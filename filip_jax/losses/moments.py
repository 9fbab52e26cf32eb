"""Mean and spread of the similarities of wrong pairs, over the global batch: where a scale or a bias can begin."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from filip_jax.losses.encoded import Encoded
from filip_jax.losses.pairs import pair_losses


@dataclass(frozen=True)
class Moment:
    """The sum of a power of the similarities of each image with all texts of other images, as a `PairLoss`."""

    power: int

    def counts(self, images, texts):
        """Return none."""
        return {}

    def terms(self, similarities, images, texts, parameters):
        """Return the powers of the mean of both similarities."""
        wrong = texts["real"] & images["real"] & (texts["group"] != images["group"])
        return {"over_texts": {"sum": jnp.where(wrong, (sum(similarities) / len(similarities)) ** self.power, 0.0)}}

    def losses(self, over_texts, over_images):
        """Return the sums."""
        return over_texts["sum"], None


def moments(
    similarity: Any, encoded: Encoded, parameters: Any = None
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Return the number of wrong texts of an image, and mean and standard deviation of their similarities.

    Args:
        similarity: see `pair_losses`.
        parameters: of the similarity.
    """
    powers = {str(power): Moment(power) for power in range(3)}
    sums = pair_losses(
        powers, similarity, encoded, {"losses": {power: {} for power in powers}, "similarity": parameters}
    )
    count = jnp.maximum(sums["0"], 1.0)
    mean = sums["1"] / count
    return sums["0"], mean, jnp.sqrt(jnp.maximum(sums["2"] / count - mean**2, 0.0))
