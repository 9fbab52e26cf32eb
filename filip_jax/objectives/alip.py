"""ALIP's objective: CLIP's contrast with a raw and with a synthetic caption, weighted by how far the three agree."""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filip_jax.errors import UserError
from filip_jax.losses.encoded import Encoded, weighted_mean
from filip_jax.losses.pairs import pair_losses
from filip_jax.losses.softmax import Softmax
from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.contrast import CLIP_SCALE, MAX_SCALE, check_positives, make_scale, show_scale
from filip_jax.objectives.objective import Objective
from filip_jax.sections import at_least

CAPTIONS = ("raw", "synthetic")  # in the order of the captions of an image


def alip(
    *,
    logit_scale_init: float = CLIP_SCALE,
    min_logit_scale: float = 1.0,
    max_logit_scale: float = MAX_SCALE,
    momentum: float = 0.99,
    image_gamma: float = 2.0,
    pair_gamma: float = 2.0,
    positives: str = "pair",
    dtype: str = "float32",
    implementation: str = "auto",
    exchange: str = "auto",
    indices: str = "auto",
) -> Objective:
    """Return ALIP's objective (Yang et al. 2023, arXiv 2308.08428, equations 1 to 6): a sum of two contrasts.

    Each image has two captions, the first raw and the second synthetic, and each kind a contrast of its own, in which the
    losses of a pair, both ways, are multiplied by its gates. With h, the running mean of a similarity s over batches,
    that of an image is exp(image_gamma (s - h)) of the similarity of its captions, at most 1; where it is below 1, that of a
    pair is exp(pair_gamma (s - h)) of its own similarity, which may be above 1, else 1. Gates have no gradient. The mean is over
    the images that have a caption of the kind; one with a single caption has gates of 1.

    Args:
        logit_scale_init, min_logit_scale, max_logit_scale: see `make_scale`.
        momentum: of the running means, which begin at 1; as in the publication's code.
        image_gamma, pair_gamma: how steep the gates are.
        positives: "pair": an image's own text of the kind is right; "image": those of all images of its group.
        dtype, implementation, exchange, indices: see `filip_loss`.

    Raises:
        UserError: an option that cannot be; or, for a batch, not two captions of an image.
    """
    if not 0 <= momentum < 1:
        raise UserError(f"momentum={momentum} must be at least 0 and below 1")
    at_least(0, image_gamma=image_gamma, pair_gamma=pair_gamma)
    similarity = TokenWise("pooled", dtype=dtype, implementation=implementation, exchange=exchange, indices=indices)
    pairs_by, needs = check_positives(positives)

    def local(parameters, state, encoded, teacher):
        if (count := encoded.text_pooled.shape[1]) != len(CAPTIONS):
            raise UserError(
                f"kind=alip compares a raw and a synthetic caption, but an image has {count}: set data.captions_per_image=2"
            )
        weight = encoded.caption_weight
        state, gates, numbers = gate(state, encoded, weight, momentum, image_gamma, pair_gamma)
        owned = {"losses": {"contrast": {"scale": jnp.exp(parameters["logit_scale"])}}, "similarity": None}
        total = jnp.float32(0)
        for n, name in enumerate(CAPTIONS):
            gated, texts = weight[:, n] * gates[:, n], encoded.text_pooled[:, n : n + 1]
            part = replace(encoded, text_pooled=texts, text_weight=gated[:, None], image_weight=gated)
            mean_gate = weighted_mean(gates[:, n], weight[:, n])  # the contrast divides by the sum of what is gated
            contrast = pair_losses({"contrast": Softmax(pairs_by=pairs_by)}, similarity, part, owned)["contrast"]
            total += mean_gate * contrast
            numbers[f"{name}_gate"] = mean_gate
        return total, state, numbers

    return Objective(
        needs=needs | {"pooled", "captions"},
        parameters={"logit_scale": make_scale(logit_scale_init, min_logit_scale, max_logit_scale, False, similarity)},
        local=local,
        state=dict.fromkeys(("captions", *CAPTIONS), 1.0),
        metrics=show_scale,
        multiplier=lambda parameters: jnp.exp(parameters["logit_scale"]),
    )


def gate(
    state: Mapping[str, Array],
    encoded: Encoded,
    weight: Float[Array, "b 2"],
    momentum: float,
    image_gamma: float,
    pair_gamma: float,
) -> tuple[dict[str, Array], Float[Array, "b 2"], dict[str, Array]]:
    """Return the next running means, the gates of all pairs, and what the log shows of them.

    Args:
        weight: of each caption; 0 for one that is absent.
    """
    image, texts = jax.lax.stop_gradient((encoded.image_pooled, encoded.text_pooled))
    of_captions, of_pairs = (texts[:, 0] * texts[:, 1]).sum(axis=1), jnp.einsum("bd,bkd->bk", image, texts)
    both = (weight > 0).all(axis=1)

    def follow(mean, similarities, counted):
        present = weighted_mean(similarities, counted.astype(jnp.float32))
        return jnp.where(counted.any(), momentum * mean + (1 - momentum) * present, mean)

    captions = follow(state["captions"], of_captions, both)
    pairs = {name: follow(state[name], of_pairs[:, n], weight[:, n] > 0) for n, name in enumerate(CAPTIONS)}
    of_images = jnp.where(both, jnp.minimum(jnp.exp(image_gamma * (of_captions - captions)), 1.0), 1.0)
    means = jnp.stack(list(pairs.values()))
    gates = jnp.where(of_images[:, None] < 1, jnp.exp(pair_gamma * (of_pairs - means)), 1.0) * of_images[:, None]
    shown = {"images_with_both": weighted_mean(both.astype(jnp.float32), (weight > 0).any(axis=1).astype(jnp.float32))}
    shown |= {"image_gate": weighted_mean(of_images, both.astype(jnp.float32))}
    return {"captions": captions} | pairs, gates, shown
