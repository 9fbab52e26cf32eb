"""Image tokens grouped by text: for each word, or each text, the sparse weighted mean of the tokens that show it; their contrast."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from filip_jax.errors import UserError
from filip_jax.losses.pairs import LOW

SMALLEST = 1e-6  # spread of similarities, and length of a mean, below which they count as none


def check_threshold(threshold: float | None) -> None:
    """Raise a UserError for a threshold of groups that cannot be."""
    if threshold is not None and not 0 <= threshold < 1:
        raise UserError(
            f"threshold={threshold} must be at least 0 and below 1, or None for 1 / the number of image tokens"
        )


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


def contrast_groups(
    groups: Float[Array, "*rows n d"],
    queries: Float[Array, "*rows n d"],
    mask: Bool[Array, "*rows n"],
    scale: Float[Array, ""],
    dtype: str = "float32",
) -> Float[Array, "*rows n"]:
    """Return the mean of two cross-entropies of each query: against all groups of its row, and of its group against all queries.

    SPARC's (equation 6). Where the mask is False, nothing is compared and the loss is 0.

    Args:
        groups, queries: L2-normalized.
        mask: which queries take part, with their groups.
        scale: of the similarities.
        dtype: of the products.
    """
    products = jnp.einsum(
        "...gd,...qd->...gq", groups.astype(dtype), queries.astype(dtype), preferred_element_type=jnp.float32
    )
    logits = scale * products
    right = jnp.diagonal(logits, axis1=-2, axis2=-1)
    over_queries = jax.nn.logsumexp(jnp.where(mask[..., None, :], logits, LOW), axis=-1)
    over_groups = jax.nn.logsumexp(jnp.where(mask[..., :, None], logits, LOW), axis=-2)
    return jnp.where(mask, (over_queries + over_groups) / 2 - right, 0.0)
