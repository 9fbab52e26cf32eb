"""Image tokens grouped by text: for each word, or each text, the sparse weighted mean of the tokens that show it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SMALLEST = 1e-6  # spread of similarities, and length of a mean, below which they count as none


def group_image_tokens(
    image_tokens: Float[Array, "b p d"],
    queries: Float[Array, "b *n d"],
    threshold: float | None = None,
    through_weights: bool = True,
    dtype: str = "float32",
) -> Float[Array, "b *n d"]:
    """Return the group of each query: the weighted mean of the tokens of its own image, L2-normalized.

    SPARC's (Bica et al. 2024, arXiv 2401.09865, equations 2 to 5): similarities are moved to lie from 0 to 1 over the
    tokens, those below the threshold become 0, and the rest, divided by their sum, are the weights. Where all tokens are
    equally similar, all weigh alike. Nothing leaves the device of an image.

    Args:
        image_tokens, queries: L2-normalized.
        threshold: None for 1 / p.
        through_weights: whether the gradient flows through the weights.
        dtype: of the products; sums and weights are float32.
    """
    tokens, queries = image_tokens.astype(dtype), queries.astype(dtype)
    similarities = jnp.einsum("b...d,bpd->b...p", queries, tokens, preferred_element_type=jnp.float32)
    if not through_weights:
        similarities = jax.lax.stop_gradient(similarities)
    low, high = (bound(similarities, axis=-1, keepdims=True) for bound in (jnp.min, jnp.max))
    moved = (similarities - low) / jnp.maximum(high - low, SMALLEST)
    sparse = jnp.where(moved >= (1 / tokens.shape[1] if threshold is None else threshold), moved, 0.0)
    total = sparse.sum(axis=-1, keepdims=True)
    weights = jnp.where(total > 0, sparse / jnp.where(total > 0, total, 1.0), 1 / tokens.shape[1])
    means = jnp.einsum("b...p,bpd->b...d", weights.astype(dtype), tokens, preferred_element_type=jnp.float32)
    return means * jax.lax.rsqrt(jnp.sum(means * means, axis=-1, keepdims=True) + SMALLEST**2)
