"""FILIP's objective: contrast by token-wise late interaction."""

from dataclasses import replace

from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.contrast import (
    CLIP_SCALE,
    MAX_SCALE,
    advise_against_selection,
    make_scale,
    softmax_objective,
)
from filip_jax.objectives.objective import Objective


def filip(
    *,
    logit_scale_init: float = CLIP_SCALE,
    min_logit_scale: float = 1.0,
    max_logit_scale: float = MAX_SCALE,
    logit_scale_from_first_batch: bool = False,
    positives: str = "pair",
    label_smoothing: float = 0.0,
    keep_tokens: float = 1.0,
    selection: str = "batch",
    dtype: str = "float32",
    implementation: str = "auto",
    exchange: str = "auto",
    indices: str = "auto",
) -> Objective:
    """Return FILIP's objective (Yao et al. 2022, section 3.1, equations 1 to 5).

    Args:
        logit_scale_init, min_logit_scale, max_logit_scale, logit_scale_from_first_batch: see `make_scale`.
        positives: "pair": an image's own texts are right; "image": those of all images of its group, with equal
            probability (table 10's soft targets).
        label_smoothing, keep_tokens, selection, dtype, implementation, exchange, indices: see `filip_loss`.

    Raises:
        UserError: an option that cannot be.
    """
    similarity = TokenWise("tokens", keep_tokens, selection, dtype, implementation, exchange, indices)
    scale = make_scale(logit_scale_init, min_logit_scale, max_logit_scale, logit_scale_from_first_batch, similarity)
    objective = softmax_objective(similarity, scale, positives, label_smoothing)
    return replace(objective, advice=advise_against_selection(keep_tokens))
