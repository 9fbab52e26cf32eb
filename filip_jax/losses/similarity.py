"""Token-wise late interaction: how alike an image and a text are, by their tokens.

Letters of every shape in this package: i images, j texts, b pairs of a batch, p image tokens,
t text tokens, d embedding dimension.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

Array = jax.Array | np.ndarray
MAX_DENSE_BYTES = 2**31  # of the similarities of all tokens that `token_similarity` makes at once


def token_similarity(
    image_tokens: Float[Array, "i p d"], text_tokens: Float[Array, "j t d"], text_mask: Bool[Array, "j t"]
) -> tuple[Float[jax.Array, "i j"], Float[jax.Array, "i j"]]:
    """The plain definition of FILIP's two similarities (section 3.1, equations 3 to 5).

    s_I[i, j] is the mean over the tokens of image i of their best match among the tokens of text j;
    s_T[i, j] is the mean over the tokens of text j of their best match among the tokens of image i.

    Args:
        image_tokens: L2-normalised by the caller.
        text_tokens: L2-normalised by the caller.
        text_mask: True for the tokens that take part. A text without any has similarity 0 both
            ways and no gradient.

    Where several tokens are equally good, the first of them takes the gradient.

    Raises:
        ValueError: tokens of different dimensions, a mask that is not boolean [j, t], or arrays with more than
            MAX_DENSE_BYTES of similarities between tokens; inside `jax.jit` their number is not limited.

    Returns:
        (image_to_text, text_to_image): s_I and s_T in float32, both indexed image, text.
    """
    check_tokens(image_tokens, text_tokens, text_mask)
    if not any(isinstance(x, jax.core.Tracer) for x in (image_tokens, text_tokens)):
        _check_dense(4 * math.prod(image_tokens.shape[:2] + text_tokens.shape[:2]))
    s = jnp.einsum("ipd,jtd->ijpt", image_tokens, text_tokens, preferred_element_type=jnp.float32)
    best_text = _first_max(jnp.where(text_mask[None, :, None, :], s, -jnp.inf), 3)
    best_image = _first_max(s, 2)
    length = text_mask.sum(axis=1)
    image_to_text = jnp.where(length > 0, best_text.mean(axis=2), 0.0)
    text_to_image = jnp.where(text_mask, best_image, 0.0).sum(axis=2) / jnp.maximum(length, 1)
    return image_to_text, text_to_image


def _check_dense(needed: int) -> None:
    if needed > MAX_DENSE_BYTES:
        raise ValueError(
            f"the similarities of all these tokens would take {needed / 2**30:,.1f} GiB, and token_similarity makes at "
            f"most {MAX_DENSE_BYTES / 2**30:g} GiB at once: call filip_jax.inference.similarity_matrices, which goes "
            "block by block"
        )


def _first_max(x, axis):
    return jnp.take_along_axis(x, jnp.argmax(x, axis, keepdims=True), axis).squeeze(axis)


def check_tokens(image_tokens: Array, text_tokens: Array, text_mask: Array) -> None:
    """Raises a ValueError unless these are tokens of one dimension and the mask of the texts'."""
    shapes = f"image_tokens {image_tokens.shape}, text_tokens {text_tokens.shape}, text_mask {text_mask.shape}"
    if image_tokens.ndim != 3 or text_tokens.ndim != 3 or image_tokens.shape[2] != text_tokens.shape[2]:
        raise ValueError(f"tokens must be [i, p, d] and [j, t, d] with the same d, but are {shapes}")
    if not image_tokens.shape[1] or not text_tokens.shape[1]:
        raise ValueError(f"images and texts must have tokens, but are {shapes}")
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (image_tokens, text_tokens)):
        raise ValueError(f"tokens must be floating point, but are {image_tokens.dtype} and {text_tokens.dtype}")
    for x in (image_tokens, text_tokens):
        if not x.dtype.isnative or x.dtype.itemsize > 8:  # a compiled function would take other bytes for numbers
            raise ValueError(f"JAX has no tokens of {x.dtype!r}: convert them with .astype('float32')")
    if text_mask.shape != text_tokens.shape[:2]:
        raise ValueError(f"text_mask must be [j, t], but the shapes are {shapes}")
    if text_mask.dtype != bool:
        raise ValueError(f"text_mask must be boolean, but is {text_mask.dtype}")
