"""The contrastive loss over the global batch: two softmax cross-entropies on late-interaction similarities.

`filip_loss` is one function everywhere. Without a mesh it is the definition. Under a mesh each
device keeps its images, gathers all texts (the smaller side) and owns the rows of its images; the
softmax over images is completed across devices from one number per text.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from filip_jax.losses.similarity import Array, check_tokens, token_similarity
from filip_jax.mesh import context_batch_axes


def filip_loss(
    image_tokens: Float[Array, "b p d"],
    text_tokens: Float[Array, "b t d"],
    text_mask: Bool[Array, "b t"],
    logit_scale: Float[Array, ""] | float | int,
) -> Float[jax.Array, ""]:
    """FILIP's loss of a global batch of pairs (section 3.1, equations 1 and 2), float32.

    The mean of the cross-entropy of each image against all texts by s_I and of each text against
    all images by s_T. Call it on global arrays, eager or jitted: under `jax.set_mesh(mesh)` with
    Auto axes it runs as one shard_map over those of the axes `replica`, `data` that the mesh has.

    Args:
        image_tokens: L2-normalised by the caller; image k belongs to text k.
        text_tokens: L2-normalised by the caller.
        text_mask: True for the tokens that take part.
        logit_scale: the multiplier of the similarities (1 / temperature), not its logarithm.

    Raises:
        ValueError: shapes that are no batch of pairs; the batch is not divisible by the devices of these axes; a call inside a
            shard_map; a mesh with Explicit axes.
    """
    axes = context_batch_axes()
    check_tokens(image_tokens, text_tokens, text_mask)
    if len(image_tokens) != len(text_tokens) or len(image_tokens) == 0:
        raise ValueError(f"{len(image_tokens)} images and {len(text_tokens)} texts are not a batch of pairs")
    if jnp.ndim(logit_scale):
        raise ValueError(f"logit_scale must be a scalar, but has shape {jnp.shape(logit_scale)}")
    if not axes:
        return similarity_loss(*token_similarity(image_tokens, text_tokens, text_mask), logit_scale)
    shape = jax.sharding.get_abstract_mesh().shape
    devices = math.prod(shape[axis] for axis in axes)
    if len(image_tokens) % devices:
        sizes = " x ".join(f"{axis}={shape[axis]}" for axis in axes)
        raise ValueError(f"a batch of {len(image_tokens)} pairs is not divisible by {devices} devices ({sizes})")
    return _sharded(image_tokens, text_tokens, text_mask, logit_scale, axes)


def clip_loss(
    image_embedding: Float[Array, "b d"],
    text_embedding: Float[Array, "b d"],
    logit_scale: Float[Array, ""] | float | int,
) -> Float[jax.Array, ""]:
    """CLIP's loss (Radford et al. 2021, figure 3): `filip_loss` with one token per side.

    The embeddings are L2-normalised by the caller; logit_scale, result and errors are `filip_loss`'s.
    """
    mask = jnp.ones((len(text_embedding), 1), bool)
    return filip_loss(image_embedding[:, None], text_embedding[:, None], mask, logit_scale)


def similarity_loss(
    image_to_text: Float[Array, "b b"], text_to_image: Float[Array, "b b"], logit_scale: Float[Array, ""] | float | int
) -> Float[jax.Array, ""]:
    """Equations 1 and 2 on the two similarity matrices of one batch, both indexed image, text."""
    over_texts = jax.nn.log_softmax(logit_scale * image_to_text, axis=1)
    over_images = jax.nn.log_softmax(logit_scale * text_to_image, axis=0)
    return -(jnp.diagonal(over_texts).mean() + jnp.diagonal(over_images).mean()) / 2


@partial(jax.jit, static_argnames="axes")
def _sharded(image_tokens, text_tokens, text_mask, logit_scale, axes):
    def of_local_images(image_tokens, text_tokens, text_mask, logit_scale):
        local = len(image_tokens)
        gather = partial(jax.lax.all_gather, axis_name=axes, tiled=True)
        image_to_text, text_to_image = token_similarity(image_tokens, gather(text_tokens), gather(text_mask))
        over_texts, over_images = logit_scale * image_to_text, logit_scale * text_to_image

        first = jax.lax.axis_index(axes) * local
        own = partial(jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=local, axis=1)
        matched = jnp.diagonal(own(over_texts)) + jnp.diagonal(own(over_images))
        log_sum_texts = jax.nn.logsumexp(over_texts, axis=1)
        peak = jax.lax.pmax(jax.lax.stop_gradient(over_images.max(axis=0)), axes)
        log_sum_images = peak + jnp.log(jax.lax.psum(jnp.exp(over_images - peak).sum(axis=0), axes))
        return (jax.lax.pmean((log_sum_texts - matched).mean(), axes) + log_sum_images.mean()) / 2

    split = PartitionSpec(axes)
    in_specs = (split, split, split, PartitionSpec())
    run = jax.shard_map(of_local_images, in_specs=in_specs, out_specs=PartitionSpec(), axis_names=set(axes))
    return run(image_tokens, text_tokens, text_mask, jnp.asarray(logit_scale, jnp.float32))
