"""ColBERT's objective in one direction: each text finds its image by the best image token of each word."""

import jax.numpy as jnp

from filip_jax.errors import UserError
from filip_jax.losses.hardest_negative import HardestNegative
from filip_jax.losses.pairs import PairLoss
from filip_jax.losses.smooth_maximum import compare_smoothly
from filip_jax.losses.softmax import Softmax
from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.contrast import MAX_SCALE, check_positives, make_scale, show_scale
from filip_jax.objectives.objective import Objective, Pairwise
from filip_jax.sections import choose

MAX_SMOOTHING = 100.0


def maxsim(
    *,
    negatives: str = "all",
    smoothing: float = 0.0,
    logit_scale_init: float = 1 / 0.02,
    min_logit_scale: float = 1.0,
    max_logit_scale: float = MAX_SCALE,
    positives: str = "pair",
    dtype: str = "float32",
    implementation: str = "auto",
    exchange: str = "auto",
    indices: str = "auto",
) -> Objective:
    """Return the objective of late-interaction retrieval: texts are queries, images documents, and only texts are ranked against.

    The similarity is s_T: for each word its best image token, and of these the mean; ColBERT's MaxSim (Khattab and Zaharia
    2020, arXiv 2004.12832, equation 3) divided by the number of words, so that one scale fits texts of all lengths.

    Args:
        negatives: "all": the cross-entropy of each text over all images. "hardest": softplus of the most similar wrong
            image less the right one (ColPali, Faysse et al. 2024, arXiv 2407.01449, section 4.2).
        smoothing: 0 for the maximum. Above, the temperature of a log-sum-exp in its place, which gives all image
            tokens a gradient: 0.1 at first and 0.01 later are common.
        logit_scale_init, min_logit_scale, max_logit_scale: see `make_scale`. ColPali's temperature is 0.02.
        positives: "pair": its own image is right for a text; "image": all images of its group.
        dtype, implementation, exchange, indices: see `filip_loss`. A smooth maximum has no kernel, and goes round in a
            ring unless `exchange` is "gather".

    Raises:
        UserError: an option that cannot be.
    """
    pairs_by, needs = check_positives(positives)
    losses: dict[str, PairLoss] = {
        "all": Softmax(pairs_by=pairs_by, text_to_image_only=True),
        "hardest": HardestNegative(pairs_by=pairs_by),
    }
    loss = choose(losses, negatives, "negatives")
    if not 0 <= smoothing <= MAX_SMOOTHING:
        raise UserError(f"smoothing={smoothing} must be from 0, for the maximum, to {MAX_SMOOTHING}")
    if smoothing and implementation == "pallas":
        raise UserError(f"implementation='pallas' has no smooth maximum, and smoothing={smoothing}: take auto")
    plain = TokenWise("tokens", dtype=dtype, implementation=implementation, exchange=exchange, indices=indices)
    return Objective(
        needs=needs | {"tokens"},
        parameters={"logit_scale": make_scale(logit_scale_init, min_logit_scale, max_logit_scale, False, plain)},
        pairwise=Pairwise(
            compare_smoothly(smoothing, dtype, exchange) if smoothing else plain,
            loss,
            lambda parameters: {"scale": jnp.exp(parameters["logit_scale"])},
            "scale",
        ),
        metrics=show_scale,
    )
