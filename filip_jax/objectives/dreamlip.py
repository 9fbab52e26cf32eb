"""DreamLIP's objective: several captions of an image are right for it, and each for the image tokens that show it."""

from dataclasses import replace

import jax.numpy as jnp

from filip_jax.losses.encoded import weighted_mean
from filip_jax.losses.grouping import check_threshold, contrast_groups, group_image_tokens
from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.contrast import CLIP_SCALE, MAX_SCALE, make_scale, show_scale, softmax_objective
from filip_jax.objectives.objective import Objective
from filip_jax.sections import at_least


def dreamlip(
    *,
    logit_scale_init: float = CLIP_SCALE,
    min_logit_scale: float = 1.0,
    max_logit_scale: float = MAX_SCALE,
    groups_weight: float = 1.0,
    threshold: float | None = None,
    through_weights: bool = True,
    positives: str = "pair",
    dtype: str = "float32",
    implementation: str = "auto",
    exchange: str = "auto",
    indices: str = "auto",
) -> Objective:
    """Return DreamLIP's objective (Zheng et al. 2024, arXiv 2403.17007, section 3): a sum of two contrasts.

    One is CLIP's with all captions of an image as right answers, which share the probability by their weights. In the
    other each caption makes a group of its own image's tokens, as words do in `sparc`; captions and groups of one image
    are contrasted both ways, a mean over captions by their weights. Each has a scale of its own.

    Args:
        logit_scale_init, min_logit_scale, max_logit_scale: see `make_scale`; of both scales.
        groups_weight: of the second contrast.
        threshold: below which normalized similarities are 0; None for 1 / the number of image tokens.
        through_weights: whether the gradient flows through the weights of a group.
        positives: "pair": an image's own texts are right; "image": those of all images of its group.
        dtype, implementation, exchange, indices: see `filip_loss`; the last three of pooled vectors.

    Raises:
        UserError: an option that cannot be.
    """
    check_threshold(threshold)
    at_least(0, groups_weight=groups_weight)
    pooled = TokenWise("pooled", dtype=dtype, implementation=implementation, exchange=exchange, indices=indices)

    def local(parameters, state, encoded, teacher):
        texts, weight = encoded.text_pooled, encoded.caption_weight
        groups = group_image_tokens(encoded.image_tokens, texts, threshold, through_weights, dtype)
        of_captions = contrast_groups(groups, texts, weight > 0, jnp.exp(parameters["groups_logit_scale"]), dtype)
        loss = weighted_mean(of_captions, weight)
        return groups_weight * loss, state, {"groups_loss": loss}

    scale, of_groups = (make_scale(logit_scale_init, min_logit_scale, max_logit_scale, False, pooled) for _ in range(2))
    of_pooled = softmax_objective(pooled, scale, positives, label_smoothing=0.0)
    return replace(
        of_pooled,
        needs=of_pooled.needs | {"tokens", "captions"},
        parameters={**of_pooled.parameters, "groups_logit_scale": of_groups},
        local=local,
        metrics=lambda parameters: (
            show_scale(parameters) | {"groups_logit_scale": jnp.exp(parameters["groups_logit_scale"])}
        ),
    )
