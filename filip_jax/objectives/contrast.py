"""A learned scale of similarities, and the softmax objective over pairs that FILIP and CLIP share."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from filip_jax.errors import UserError
from filip_jax.losses.moments import moments
from filip_jax.losses.softmax import Softmax
from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.objective import Objective, Pairwise, Parameter

# The right answers, an image's own texts or those of all images of its group: what pairs have in common, and what that needs.
POSITIVES = {"pair": ("image", frozenset[str]()), "image": ("group", frozenset({"groups"}))}
CLIP_SCALE, MAX_SCALE = 1 / 0.07, 100.0
FIRST_SPREAD = (
    0.9  # of the logits of wrong pairs: 1 / 0.07 times 0.0625, the spread of random vectors of 256 dimensions
)


def make_scale(init: float, low: float, high: float, from_first_batch: bool, similarity: TokenWise) -> Parameter:
    """Return the multiplier of similarities, 1 / temperature, as a logarithm.

    Args:
        init: of a new run.
        low, high: bounds.
        from_first_batch: whether it begins so that the logits of the first batch spread as CLIP's do, whatever `init` is.
        similarity: of which.

    Raises:
        UserError: the initial value is outside its bounds, or one of them is not above 0.
    """
    if not 0 < low <= init <= high < math.inf:
        raise UserError(
            f"logit_scale_init={init} must lie from min_logit_scale={low} to max_logit_scale={high}, and all above 0"
        )

    def of_batch(encoded, parameters):
        _, _, spread = moments(similarity, encoded)
        return jnp.clip(jnp.log(FIRST_SPREAD / jnp.maximum(spread, 1e-6)), math.log(low), math.log(high))

    return Parameter(
        lambda key, sizes: jnp.array(math.log(init), jnp.float32),
        low=math.log(low),
        high=math.log(high),
        from_first_batch=of_batch if from_first_batch else None,
    )


def show_scale(parameters: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return what the log shows."""
    return {"logit_scale": jnp.exp(parameters["logit_scale"])}


def check_positives(positives: str) -> tuple[str, frozenset[str]]:
    """Return the information of pairs that `positives` goes by, and what of a batch it needs.

    Raises:
        UserError: there is no such choice.
    """
    if positives not in POSITIVES:
        raise UserError(f"positives={positives!r} is not one of {', '.join(POSITIVES)}")
    return POSITIVES[positives]


def softmax_objective(similarity: TokenWise, scale: Parameter, positives: str, label_smoothing: float) -> Objective:
    """Return the objective of two cross-entropies over the global batch, with a scale of its own."""
    pairs_by, needs = check_positives(positives)
    loss = Softmax(label_smoothing=label_smoothing, pairs_by=pairs_by)
    return Objective(
        needs=needs | {similarity.of},
        parameters={"logit_scale": scale},
        pairwise=Pairwise(similarity, loss, lambda parameters: {"scale": jnp.exp(parameters["logit_scale"])}, "scale"),
        metrics=show_scale,
    )
