"""SuperClass's objective: the words of an image's captions are its classes."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filip_jax.losses.encoded import weighted_mean
from filip_jax.losses.token_wise import TokenWise
from filip_jax.mesh import constrain_batch
from filip_jax.objectives.contrast import CLIP_SCALE, MAX_SCALE, make_scale, show_scale
from filip_jax.objectives.objective import Objective, Parameter


def superclass(
    *, logit_scale_init: float = CLIP_SCALE, min_logit_scale: float = 1.0, max_logit_scale: float = MAX_SCALE
) -> Objective:
    """Return SuperClass's objective (Huang et al. 2024, arXiv 2411.03313): cross-entropy over the vocabulary.

    A linear head names the tokens of an image's captions from its pooled vector. Its target is the bag of these tokens,
    each once, times ln((n + 1/b) / (f + 1/b)), divided by the sum: n counts the batches so far, f adds up the share
    of a batch's images that have the token, b is the number of images in a batch. So tokens of all captions, such as BOS
    and EOS, have no weight, and pads are left out. Several captions are one bag, in which a token counts by the largest weight of
    a caption with it. An image without a caption, or with nothing but tokens of no weight, does not count.

    The publication's head sees features of any length, this one pooled vectors of length 1; therefore its logits have a scale.

    Args:
        logit_scale_init, min_logit_scale, max_logit_scale: see `make_scale`.

    Raises:
        UserError: an option that cannot be.
    """
    scale = make_scale(logit_scale_init, min_logit_scale, max_logit_scale, False, TokenWise("pooled"))

    def make_kernel(key, sizes):
        return jax.random.normal(key, (sizes["embed_dim"], sizes["vocab_size"])) * sizes["embed_dim"] ** -0.5

    def local(parameters, state, encoded, teacher):
        bags = bags_of_tokens(encoded.text_ids, encoded.caption_weight, parameters["kernel"].shape[1])
        state, weight = weigh_tokens(state, bags)
        targets = bags * weight
        totals = targets.sum(axis=1)
        products = constrain_batch(encoded.image_pooled @ parameters["kernel"])
        logits = jnp.exp(parameters["logit_scale"]) * products + parameters["bias"]
        chosen = (targets * logits).sum(axis=1) / jnp.where(totals > 0, totals, 1.0)
        counts = (totals > 0).astype(jnp.float32)
        return weighted_mean(jax.nn.logsumexp(logits, axis=1) - chosen, counts), state, {}

    return Objective(
        needs=frozenset({"pooled", "text_ids"}),
        parameters={
            "kernel": Parameter(make_kernel, decay=True),
            "bias": Parameter(lambda key, sizes: jnp.zeros(sizes["vocab_size"])),
            "logit_scale": scale,
        },
        local=local,
        state={"batches": 0.0, "frequency": lambda sizes: jnp.zeros(sizes["vocab_size"])},
        metrics=show_scale,
    )


def bags_of_tokens(
    ids: Int[Array, "b k t"], weight: Float[Array, "b k"], vocab_size: int
) -> Float[Array, "b vocab_size"]:
    """Return for each image the largest weight of a caption with each token; 0 for tokens of none, and for pads, -1."""
    weights = jnp.where(ids >= 0, weight[:, :, None], 0.0)

    def bag(ids, weights):
        return jnp.zeros(vocab_size).at[ids].max(weights)

    flat = (x.reshape(len(x), -1) for x in (ids, weights))
    return constrain_batch(jax.vmap(bag)(*flat))


def weigh_tokens(
    state: Mapping[str, Array], bags: Float[Array, "b vocab_size"]
) -> tuple[dict[str, Array], Float[Array, " vocab_size"]]:
    """Return the state with the frequencies of a batch added, and the weight of each token by it."""
    images = (bags > 0).any(axis=1).sum()
    share = jnp.maximum(images, 1)
    batches = state["batches"] + (images > 0)
    frequency = state["frequency"] + (bags > 0).sum(axis=0) / share
    weight = jnp.log((batches + 1 / share) / (frequency + 1 / share))
    return {"batches": batches, "frequency": frequency}, jnp.maximum(weight, 0.0)
