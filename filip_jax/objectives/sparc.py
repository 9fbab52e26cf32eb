"""SPARC's objective: each word of a caption finds the image tokens that show it, among the caption's other words."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from filip_jax.losses.encoded import weighted_mean
from filip_jax.losses.grouping import check_threshold, contrast_groups, group_image_tokens
from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.contrast import CLIP_SCALE, MAX_SCALE, make_scale, show_scale
from filip_jax.objectives.objective import Objective
from filip_jax.sections import DTYPES, one_of


def sparc(
    *,
    logit_scale_init: float = CLIP_SCALE,
    min_logit_scale: float = 1.0,
    max_logit_scale: float = MAX_SCALE,
    threshold: float | None = None,
    through_weights: bool = True,
    repeated_words: bool = True,
    dtype: str = "float32",
) -> Objective:
    """Return SPARC's fine-grained objective (Bica et al. 2024, arXiv 2401.09865, equations 2 to 6).

    The words of a caption are contrasted with the groups that they make of their image's tokens, both ways; no other image or
    caption takes part. It is the mean over the words of a caption, then over captions by their weights; one without
    words does not count. The paper adds it to CLIP's, which has the weight 0.5 there, and this one 0.5 to 10. Words are the
    tokens of late interaction: `model.bos_in_similarity=False` and `model.eos_in_similarity=False` leave out the ends.

    Args:
        logit_scale_init, min_logit_scale, max_logit_scale: see `make_scale`. The paper learns the scale, too.
        threshold: below which normalized similarities are 0; None for 1 / the number of image tokens.
        through_weights: whether the gradient flows through the weights of a group.
        repeated_words: whether tokens that the caption has had before take part, as published. They are wrong answers
            that are right; without them each token counts once.
        dtype: of the products.

    Raises:
        UserError: an option that cannot be.
    """
    check_threshold(threshold)
    one_of(DTYPES, dtype, "dtype")
    scale = make_scale(logit_scale_init, min_logit_scale, max_logit_scale, False, TokenWise("tokens"))

    def local(parameters, state, encoded, teacher):
        words, mask = encoded.text_tokens, encoded.text_mask
        mask = mask if repeated_words else first_of_each(encoded.text_ids, mask)
        groups = group_image_tokens(encoded.image_tokens, words, threshold, through_weights, dtype)
        of_words = contrast_groups(groups, words, mask, jnp.exp(parameters["logit_scale"]), dtype)
        counts = mask.sum(axis=2)
        weight = jnp.where(counts > 0, encoded.caption_weight, 0.0)
        return weighted_mean(of_words.sum(axis=2) / jnp.maximum(counts, 1), weight), state, {}

    needs = {"tokens"} | (set() if repeated_words else {"text_ids"})
    return Objective(frozenset(needs), {"logit_scale": scale}, local=local, metrics=show_scale)


def first_of_each(ids: Int[Array, "b k t"], mask: Bool[Array, "b k t"]) -> Bool[Array, "b k t"]:
    """Return which tokens that take part are the first of their kind in their text."""
    same = (ids[..., :, None] == ids[..., None, :]) & mask[..., None, :]
    return mask & ~jnp.tril(same, -1).any(axis=-1)
