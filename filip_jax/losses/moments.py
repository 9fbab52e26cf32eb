"""Mean and spread of the similarities of wrong pairs, over the global batch: where a scale or a bias can begin."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from filip_jax.losses.encoded import Encoded
from filip_jax.losses.pairs import pair_losses


@dataclass(frozen=True)
class Moment:
    """The sum of a power of the similarities of each text with all images of others, less a shift, as a `PairLoss`."""

    power: int

    def counts(self, images, texts):
        """Return none."""
        return {}

    def terms(self, similarities, images, texts, parameters):
        """Return the powers of the mean of both similarities."""
        wrong = texts["real"] & images["real"] & (texts["group"] != images["group"])
        distance = sum(similarities) / len(similarities) - parameters["shift"]
        return {"over_images": {"sum": jnp.where(wrong, distance**self.power, 0.0)}}

    def losses(self, over_texts, over_images):
        """Return the sums."""
        return None, over_images["sum"]


def moments(
    similarity: Any, encoded: Encoded, parameters: Any = None
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Return the number of wrong images of a text, and mean and standard deviation of their similarities.

    The spread is that of distances from the mean, from a second pass: the difference of two large sums would lose it.

    Args:
        similarity: see `pair_losses`.
        parameters: of the similarity.
    """

    def sums(shift, *powers):
        owned = {"losses": {str(power): {"shift": shift} for power in powers}, "similarity": parameters}
        return pair_losses({str(power): Moment(power) for power in powers}, similarity, encoded, owned).values()

    number, total = sums(jnp.float32(0), 0, 1)
    count = jnp.maximum(number, 1.0)
    mean = total / count
    rest, squares = (x / count for x in sums(mean, 1, 2))
    return number, mean + rest, jnp.sqrt(jnp.maximum(squares - rest**2, 0.0))
