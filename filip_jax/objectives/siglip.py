"""SigLIP's objective: every pair is right or wrong by itself, by pooled vectors or by tokens."""

from filip_jax.errors import UserError
from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.contrast import MAX_SCALE, make_bias, make_scale, sigmoid_objective
from filip_jax.objectives.objective import OUTPUTS, Objective


def siglip(
    *,
    similarity: str = "pooled",
    logit_scale_init: float = 10.0,
    min_logit_scale: float = 1.0,
    max_logit_scale: float = MAX_SCALE,
    bias_init: float = -10.0,
    from_first_batch: bool = False,
    positives: str = "pair",
    dtype: str = "float32",
    implementation: str = "auto",
    exchange: str = "auto",
    indices: str = "auto",
) -> Objective:
    """Return SigLIP's objective (Zhai et al. 2023, arXiv 2303.15343), with a learned bias.

    Args:
        similarity: "pooled", as published, or "tokens": the mean of the losses by s_I and by s_T.
        logit_scale_init, min_logit_scale, max_logit_scale: see `make_scale`.
        bias_init: of a new run; as published for batches of about 22,000.
        from_first_batch: whether scale and bias begin where the first batch puts them, whatever their `init` is: its
            logits spread as CLIP's, and a wrong pair is right with the probability 1 / batch.
        positives: "pair": an image's own texts are right; "image": those of all images of its group.
        dtype, implementation, exchange, indices: see `filip_loss`.

    Raises:
        UserError: an option that cannot be.
    """
    if similarity not in OUTPUTS:
        raise UserError(f"similarity={similarity!r} is not one of {', '.join(OUTPUTS)}")
    compared = TokenWise(similarity, dtype=dtype, implementation=implementation, exchange=exchange, indices=indices)
    scale = make_scale(logit_scale_init, min_logit_scale, max_logit_scale, from_first_batch, compared)
    return sigmoid_objective(compared, scale, make_bias(bias_init, from_first_batch, compared), positives)
