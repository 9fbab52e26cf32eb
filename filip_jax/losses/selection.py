"""Which tokens take part in the loss, chosen on each device before any of them travels."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from filip_jax.losses import blocked

SELECTIONS = ("batch", "pair")


def select_tokens(
    image_tokens: Float[jax.Array, "b p d"],
    text_tokens: Float[jax.Array, "j t d"],
    text_mask: Bool[jax.Array, "j t"],
    keep_tokens: float,
    selection: str,
    implementation: str = "xla",
) -> tuple[Float[jax.Array, "b kp d"], Float[jax.Array, "j kt d"], Bool[jax.Array, "j kt"]]:
    """The tokens of each image and text that score highest, in their own order; no gradient passes the choice.

    Args:
        keep_tokens: a fraction of p and of t, rounded down, up to 1; above, a number of tokens.
        selection: a token's score. "batch": its best similarity with any token of the other side's
            samples on this device (FILIP section 3.1; 0.25 of the tokens). "pair": its summed
            similarity with the tokens of its own partner, or captions (DeCLIP's code; 16 tokens).
        implementation: of the scores in the batch, see `blocked.highest`.

    Returns:
        Tokens and text mask; a text with fewer tokens than are kept keeps all and some masked ones.
    """
    p, t = image_tokens.shape[1], text_tokens.shape[1]
    if (_count(p, keep_tokens), _count(t, keep_tokens)) == (p, t):
        return image_tokens, text_tokens, text_mask
    tokens = jax.lax.stop_gradient((image_tokens, text_tokens))
    if selection == "batch":
        of_images, of_texts = _best_in_batch(implementation, *tokens, text_mask)
    else:
        of_images, of_texts = _sum_in_pair(*tokens, text_mask)
    patches = _highest(of_images, keep_tokens)
    words = _highest(jnp.where(text_mask, of_texts, -jnp.inf), keep_tokens)
    return _take(image_tokens, patches), _take(text_tokens, words), (words & text_mask[:, None]).any(axis=2)


def _best_in_batch(implementation, image_tokens, text_tokens, text_mask):
    texts, mask, order = blocked.by_length(text_tokens, text_mask)
    of_images, of_texts = blocked.highest(image_tokens.transpose(1, 0, 2), texts, mask, implementation)
    return of_images.T, of_texts[jnp.argsort(order)][:, : text_mask.shape[1]]


def _sum_in_pair(image_tokens, text_tokens, text_mask):
    rows, captions = len(image_tokens), len(text_tokens) // len(image_tokens)
    texts = jnp.where(text_mask[..., None], text_tokens, 0).astype(jnp.float32).sum(axis=1)
    texts = texts.reshape(rows, captions, -1).sum(axis=1)
    images = jnp.repeat(image_tokens.astype(jnp.float32).sum(axis=1), captions, axis=0)
    return jnp.einsum("bpd,bd->bp", image_tokens, texts), jnp.einsum("jtd,jd->jt", text_tokens, images)


def _count(tokens, keep):
    return max(1, int(tokens * keep + 1e-6)) if keep <= 1 else min(tokens, int(keep))  # 0.29 of 100 are 29


def _highest(scores, keep):
    """Which token is the first, second ... of those kept: bool [b, kept, tokens]."""
    count = scores.shape[1]
    chosen = jnp.sort(jax.lax.top_k(scores, _count(count, keep))[1], axis=1)
    return chosen[..., None] == jnp.arange(count)


def _take(tokens, which):
    """The chosen tokens as a matrix product, exact in any dtype: accelerators gather and scatter rows slowly."""
    return jnp.einsum("bkn,bnd->bkd", which.astype(tokens.dtype), tokens, precision="highest")
