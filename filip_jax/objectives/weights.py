"""The weight of an objective in a sum: a number, or points over the run with straight lines between them."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from filip_jax.errors import UserError

MAX_WEIGHT = 2.0**32
Weight = float | Sequence[Sequence[float]]  # of a sum; or (share of the run, weight) points


def weight_at(weight: Weight, progress: Float[Array, ""] | float) -> Array | float:
    """Return the weight when this share of the run is done."""
    if isinstance(weight, (int, float)):
        return weight
    places, values = zip(*weight)
    return jnp.interp(progress, jnp.array(places), jnp.array(values))


def check_weight(weight: Any, key: str) -> Weight:
    """Return the weight, checked.

    Args:
        key: of its section, for messages.

    Raises:
        UserError: it is none.
    """
    points = weight if isinstance(weight, (tuple, list)) else ((0.0, weight),)
    if not points or not all(isinstance(point, (tuple, list)) and _is_pair(point) for point in points):
        raise UserError(f"{key}.weight={weight!r:.100} is neither a number nor (share of the run, weight) points")
    shares, values = ([float(x) for x in numbers] for numbers in zip(*points))
    if min(values) < 0 or shares != sorted(set(shares)) or not 0 <= shares[0] <= shares[-1] <= 1:
        raise UserError(f"{key}.weight={weight!r:.100}: weights must be at least 0, shares of the run rise from 0 to 1")
    return weight if points is not weight else tuple(zip(shares, values))


def _is_pair(point):
    """Return whether this is a pair of numbers."""
    numbers = [x for x in point if isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) <= MAX_WEIGHT]
    return len(point) == len(numbers) == 2
