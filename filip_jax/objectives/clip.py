"""CLIP's objective: contrast of one pooled vector per image and text."""

from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.contrast import CLIP_SCALE, MAX_SCALE, make_scale, softmax_objective
from filip_jax.objectives.objective import Objective


def clip(
    *,
    logit_scale_init: float = CLIP_SCALE,
    min_logit_scale: float = 1.0,
    max_logit_scale: float = MAX_SCALE,
    positives: str = "pair",
    label_smoothing: float = 0.0,
    dtype: str = "float32",
    implementation: str = "auto",
    exchange: str = "auto",
    indices: str = "auto",
) -> Objective:
    """Return CLIP's objective (Radford et al. 2021, figure 3).

    Args:
        logit_scale_init, min_logit_scale, max_logit_scale: see `make_scale`.
        positives: "pair": an image's own texts are right; "image": those of all images of its group.
        label_smoothing, dtype, implementation, exchange, indices: see `filip_loss`.

    Raises:
        UserError: an option that cannot be.
    """
    similarity = TokenWise("pooled", dtype=dtype, implementation=implementation, exchange=exchange, indices=indices)
    scale = make_scale(logit_scale_init, min_logit_scale, max_logit_scale, False, similarity)
    return softmax_objective(similarity, scale, positives, label_smoothing)
