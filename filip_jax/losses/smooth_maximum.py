"""Late interaction by a smooth maximum, for `pair_losses`: all image tokens of a pair have a gradient."""

import jax
import jax.numpy as jnp

from filip_jax.losses.block_function import BlockFunction
from filip_jax.sections import DTYPES, one_of

BYTES = 12  # of each token of a text with each token of an image: product, exponential and gradient


def compare_smoothly(smoothing: float, dtype: str, exchange: str) -> BlockFunction:
    """Return s_T with smoothing * log(sum(exp(x / smoothing))) in place of the maximum over image tokens.

    It is at most smoothing * log(p) above the maximum for p image tokens. A text without tokens has the similarity 0.

    Args:
        smoothing: above 0, a temperature.
        dtype: of the products.
        exchange: "gather" or else a ring.

    Raises:
        UserError: no such dtype or exchange.
    """
    one_of(DTYPES, dtype, "dtype")

    def compare(parameters, images, texts):
        tokens, mask = texts
        products = jnp.einsum(
            "jtd,ipd->jtip", tokens.astype(dtype), images.astype(dtype), preferred_element_type=jnp.float32
        )
        best = smoothing * jax.nn.logsumexp(products / smoothing, axis=-1)
        taken = mask > 0
        lengths = jnp.maximum(taken.sum(axis=1), 1)[:, None]
        return (jnp.where(taken[..., None], best, 0.0).sum(axis=1) / lengths,)

    def take(encoded):  # a block's arrays have gradients, and so are floats
        return encoded.image_tokens, (encoded.text_tokens, encoded.text_mask.astype(jnp.float32))

    def bytes_per_pair(images, texts):
        return BYTES * images.shape[1] * texts[0].shape[1]

    return BlockFunction(compare, take, bytes_per_pair, "ring" if exchange == "auto" else exchange)
