"""FLAIR's objective: each text sees the image in its own way, and each pair is right or wrong by itself."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filip_jax.losses.encoded import Encoded
from filip_jax.losses.pairs import pair_losses
from filip_jax.losses.sigmoid import Sigmoid
from filip_jax.losses.text_conditioned import PROJECTED, TextConditioned
from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.contrast import (
    MAX_SCALE,
    check_positives,
    make_bias,
    make_scale,
    scale_and_bias,
    sigmoid_objective,
)
from filip_jax.objectives.objective import Objective, Parameter
from filip_jax.sections import one_of

SHARE = 0.5  # of each of the two losses


def flair(
    *,
    heads: int = 8,
    logit_scale_init: float = 10.0,
    min_logit_scale: float = 1.0,
    max_logit_scale: float = MAX_SCALE,
    bias_init: float = -10.0,
    from_first_batch: bool = False,
    positives: str = "pair",
    dtype: str = "float32",
    implementation: str = "auto",
    exchange: str = "ring",
    indices: str = "recompute",
) -> Objective:
    """Return FLAIR's objective (Xiao et al. 2025, arXiv 2412.03561, section 3.3): the mean of two sigmoid losses.

    One compares pooled vectors, of all captions with all images, as SigLIP's. The other compares each text with the image
    pooled for it (`TextConditioned`): an image meets its K captions and the first one of each other image, B + K - 1 texts. The
    sum over all images and their texts is divided by that number; captions count by their weights, also in it.

    Args:
        heads: of the attention that pools; they divide `model.embed_dim`.
        logit_scale_init, min_logit_scale, max_logit_scale: see `make_scale`; both losses share it.
        bias_init, from_first_batch: see `make_bias`; the first batch's pooled vectors decide.
        positives: "pair": an image's own texts are right; "image": those of all images of its group.
        dtype: of the products.
        implementation, indices: of pooled vectors, see `filip_loss`.
        exchange: "gather" or "ring", of both.

    Raises:
        UserError: an option that cannot be.
    """
    one_of(("gather", "ring"), exchange, "exchange")
    pooling = TextConditioned(heads, dtype)
    pooled = TokenWise("pooled", dtype=dtype, implementation=implementation, exchange=exchange, indices=indices)
    scale = make_scale(logit_scale_init, min_logit_scale, max_logit_scale, from_first_batch, pooled)
    of_pooled = sigmoid_objective(pooled, scale, make_bias(bias_init, from_first_batch, pooled), positives, SHARE)
    pairs_by, _ = check_positives(positives)

    def local(parameters, state, encoded, teacher):
        loss = conditioned_loss(pooling, pairs_by, exchange, parameters, encoded)
        captions = (encoded.caption_weight > 0).sum() / _images(encoded)
        return SHARE * loss, state, {"conditioned_loss": loss, "captions_per_image": captions}

    attention = {
        name: Parameter(partial(_init, pooling, name), decay=name.endswith("kernel")) for name in pooling.names
    }
    return replace(
        of_pooled,
        needs=of_pooled.needs | {"tokens", "captions"},
        parameters={**of_pooled.parameters, **attention},
        local=local,
    )


def conditioned_loss(
    pooling: TextConditioned, pairs_by: str, exchange: str, parameters: Mapping[str, Array], encoded: Encoded
) -> Float[Array, ""]:
    """Return the sigmoid loss of images that are pooled for texts, divided by the number of texts that an image meets.

    The first captions of all images go round as the texts of pairwise losses do; the others meet their own image only.

    Args:
        pairs_by: "group" or "image": what right pairs have in common.
        exchange: see `BlockFunction`.
    """
    project = partial(pooling.project, parameters)
    images = tuple(project(name, encoded.image_tokens) for name in PROJECTED[1:])
    texts = project(PROJECTED[0], encoded.text_pooled), encoded.text_pooled
    first, further = jax.tree.map(lambda x: x[:, :1], texts), jax.tree.map(lambda x: x[:, 1:], texts)
    weight, scales = encoded.caption_weight, scale_and_bias(parameters)
    met = Encoded(text_weight=weight[:, :1], group=encoded.group, real=encoded.real)
    owned = {"losses": {"met": scales}, "similarity": parameters}
    of_met = pair_losses({"met": Sigmoid(1, pairs_by)}, pooling.of_pairs(images, first, exchange), met, owned)["met"]
    logits = scales["scale"] * pooling.of_own(parameters, images, further) + scales["bias"]
    of_further = jnp.where(weight[:, 1:] > 0, -weight[:, 1:] * jax.nn.log_sigmoid(logits), 0.0).sum()
    number = weight[:, 0].sum() + weight[:, 1:].sum() / _images(encoded)
    return (of_met * weight[:, 0].sum() + of_further) / jnp.where(number > 0, number, 1.0)


def _images(encoded):
    """Return the number of images that count, at least 1."""
    return len(encoded.image_tokens) if encoded.real is None else jnp.maximum(encoded.real.sum(), 1)


def _init(pooling, name, key, sizes):
    return pooling.init(key, name, sizes["embed_dim"])
