"""FILIP's late interaction with SigLIP's loss: every pair is right or wrong by itself, by its tokens."""

from dataclasses import replace

from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.contrast import advise_against_selection, make_bias, make_scale, sigmoid_objective
from filip_jax.objectives.objective import Objective

MAX_TOKEN_SCALE = (
    403.0  # e^6, DeCLIP's bound for FILIP: similarities of sets of tokens spread less than those of two vectors
)


def filip_sigmoid(
    *,
    logit_scale_init: float = 10.0,
    min_logit_scale: float = 1.0,
    max_logit_scale: float = MAX_TOKEN_SCALE,
    bias_init: float = -10.0,
    from_first_batch: bool = True,
    positives: str = "pair",
    keep_tokens: float = 1.0,
    selection: str = "batch",
    dtype: str = "float32",
    implementation: str = "auto",
    exchange: str = "auto",
    indices: str = "auto",
) -> Objective:
    """Return the sigmoid of token-wise late interaction: the mean of SigLIP's losses by s_I and by s_T.

    The similarities are FILIP's (Yao et al. 2022, arXiv 2111.07783, equations 3 to 5), the loss SigLIP's (Zhai et al. 2023,
    arXiv 2303.15343). It has no publication of its own. Similarities of tokens lie far from zero, by how much depends on
    the number of tokens, and spread little: so scale and bias begin where the first batch puts them.

    Args:
        logit_scale_init, min_logit_scale, max_logit_scale: see `make_scale`.
        bias_init: see `make_bias`.
        from_first_batch: whether scale and bias begin where the first batch puts them, whatever their `init` is.
        positives: "pair": an image's own texts are right; "image": those of all images of its group.
        keep_tokens, selection, dtype, implementation, exchange, indices: see `filip_loss`.

    Raises:
        UserError: an option that cannot be.
    """
    similarity = TokenWise("tokens", keep_tokens, selection, dtype, implementation, exchange, indices)
    scale = make_scale(logit_scale_init, min_logit_scale, max_logit_scale, from_first_batch, similarity)
    bias = make_bias(bias_init, from_first_batch, similarity)
    objective = sigmoid_objective(similarity, scale, bias, positives)
    return replace(objective, advice=advise_against_selection(keep_tokens))
