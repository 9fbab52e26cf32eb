"""Learned scales and biases of similarities, and the two objectives over pairs that others share: softmax and sigmoid."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from filip_jax.errors import UserError
from filip_jax.losses.moments import moments
from filip_jax.losses.sigmoid import Sigmoid
from filip_jax.losses.softmax import Softmax
from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.objective import Objective, Pairwise, Parameter

# The right answers, an image's own texts or those of all images of its group: what pairs have in common, and what that needs.
POSITIVES = {"pair": ("image", frozenset[str]()), "image": ("group", frozenset({"groups"}))}
CLIP_SCALE, MAX_SCALE = 1 / 0.07, 100.0
MIN_BATCH_OF_SELECTION = 512  # pairs; below it keep_tokens throws away what few pairs need
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


def make_bias(init: float, from_first_batch: bool, similarity: TokenWise) -> Parameter:
    """Return what is added to scaled similarities; the objective has a parameter `logit_scale`, too.

    Args:
        init: of a new run.
        from_first_batch: whether it begins so that in the first batch a wrong pair is right with the probability
            1 / batch, whatever `init` is.
        similarity: of which.
    """

    def of_batch(encoded, parameters):
        wrong, mean, _ = moments(similarity, encoded)
        return -jnp.log(jnp.maximum(wrong, 1.0)) - jnp.exp(parameters["logit_scale"]) * mean

    return Parameter(
        lambda key, sizes: jnp.array(init, jnp.float32), from_first_batch=of_batch if from_first_batch else None
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


def advise_against_selection(keep_tokens: float) -> Callable[[int], str]:
    """Return the function from the global batch's size to a warning where `keep_tokens` leaves too little of it."""

    def advice(batch_size: int) -> str:
        if keep_tokens >= 1 or batch_size >= MIN_BATCH_OF_SELECTION:
            return ""
        return f"keep_tokens={keep_tokens} at batch_size={batch_size}: set it to 1.0, which costs little at this size and learns more"

    return advice


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


def sigmoid_objective(
    similarity: TokenWise, scale: Parameter, bias: Parameter, positives: str, share: float = 1.0
) -> Objective:
    """Return the objective in which each pair is right or wrong by itself; of tokens the mean of the losses by s_I and s_T.

    Args:
        share: of the loss, where it is one of several of an objective.
    """
    pairs_by, needs = check_positives(positives)
    loss = Sigmoid(1 if similarity.of == "pooled" else 2, pairs_by, share)
    return Objective(
        needs=needs | {similarity.of},
        parameters={"logit_scale": scale, "bias": bias},
        pairwise=Pairwise(similarity, loss, scale_and_bias, "scale"),
        metrics=lambda parameters: show_scale(parameters) | {"bias": parameters["bias"]},
    )


def scale_and_bias(parameters: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return the parameters of `Sigmoid`."""
    return {"scale": jnp.exp(parameters["logit_scale"]), "bias": parameters["bias"]}
