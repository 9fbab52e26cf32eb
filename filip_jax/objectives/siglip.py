"""SigLIP's objective: every pair is right or wrong by itself, by pooled vectors or by tokens."""

import jax.numpy as jnp

from filip_jax.errors import UserError
from filip_jax.losses.moments import moments
from filip_jax.losses.sigmoid import Sigmoid
from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.contrast import MAX_SCALE, check_positives, make_scale, show_scale
from filip_jax.objectives.objective import OUTPUTS, Objective, Pairwise, Parameter


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
    pairs_by, needs = check_positives(positives)

    def bias_of_batch(encoded, parameters):
        wrong, mean, _ = moments(compared, encoded)
        return -jnp.log(jnp.maximum(wrong, 1.0)) - jnp.exp(parameters["logit_scale"]) * mean

    def of_loss(parameters):
        return {"scale": jnp.exp(parameters["logit_scale"]), "bias": parameters["bias"]}

    scale = make_scale(logit_scale_init, min_logit_scale, max_logit_scale, from_first_batch, compared)
    bias = Parameter(
        lambda key, sizes: jnp.array(bias_init, jnp.float32),
        from_first_batch=bias_of_batch if from_first_batch else None,
    )
    return Objective(
        needs=needs | {similarity},
        parameters={"logit_scale": scale, "bias": bias},
        pairwise=Pairwise(compared, Sigmoid(1 if similarity == "pooled" else 2, pairs_by), of_loss, "scale"),
        metrics=lambda parameters: show_scale(parameters) | {"bias": parameters["bias"]},
    )
