"""Numbers that tell how stable a comparison of pairs is: how similarities spread and which tokens win, of some rows of a batch."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from filip_jax.losses.encoded import Encoded
from filip_jax.losses.moments import moments
from filip_jax.losses.token_wise import TokenWise
from filip_jax.mesh import batch_devices, constrain_batch, constrain_whole

MAX_ROWS = 64  # of a sample; on more devices it has one row of each


def sample_rows(encoded: Encoded) -> Encoded:
    """Return up to MAX_ROWS rows of the global batch without gradient, evenly spread, equally many of each device.

    They are the same on any number of devices that divides theirs, and each stays on its device.
    """
    encoded = replace(encoded, views=(), teacher=None)
    rows, devices = len(jax.tree.leaves(encoded)[0]), batch_devices()
    most = min(rows, max(MAX_ROWS, devices))
    count = next(n for n in range(most, 0, -1) if rows % n == 0 and n % devices == 0)

    def take(x):
        return constrain_batch(jax.lax.stop_gradient(x).reshape(count, -1, *x.shape[1:])[:, 0])

    return jax.tree.map(take, encoded)


def similarity_metrics(similarity: Any, encoded: Encoded, parameters: Any = None) -> dict[str, Float[Array, ""]]:
    """Return the numbers of a sample by name; those of tokens, see `token_choices`, where tokens are compared.

    `mean` and `spread` are mean and standard deviation of the similarities of wrong pairs, see `moments`.

    Args:
        similarity: see `pair_losses`.
        encoded: see `sample_rows`.
        parameters: of the similarity.
    """
    by_tokens = isinstance(similarity, TokenWise) and similarity.of == "tokens"
    if isinstance(similarity, TokenWise):  # the kernels and the ring are for more rows than these
        similarity = replace(similarity, implementation="xla", exchange="gather")
    _, mean, spread = moments(similarity, encoded, parameters)
    return {"mean": mean, "spread": spread} | (token_choices(encoded) if by_tokens else {})


def token_choices(encoded: Encoded) -> dict[str, Float[Array, ""]]:
    """Return how the maxima of late interaction fall (FILIP section 3.1, equations 3 and 4), over all tokens of all pairs.

    `image_tokens_never_chosen` is the share of image tokens that are the best match of no word of any text, and
    `image_tokens_always_chosen` of those that are the best match of some word of every text; `text_tokens_…` are the same of
    words and images. `image_choices_in_bfloat16` is the share of image tokens' choices that stay the same where tokens are
    rounded to bfloat16 and their products summed in float32, `text_choices_in_bfloat16` that of words' choices.

    Args:
        encoded: few rows: one text at a time meets all images.
    """
    images, texts = encoded.image_tokens, encoded.text_tokens
    real = jnp.ones(len(images), bool) if encoded.real is None else encoded.real
    weight = jnp.ones(texts.shape[:2]) if encoded.text_weight is None else encoded.text_weight
    mask = encoded.text_mask & ((weight > 0) & real[:, None])[..., None]
    texts, mask = (constrain_whole(x.reshape(-1, *x.shape[2:])) for x in (texts, mask))

    def choose(images, text, mask):
        s = jnp.einsum("ipd,td->ipt", images, text, precision="highest", preferred_element_type=jnp.float32)
        return jnp.argmax(jnp.where(mask, s, -jnp.inf), axis=2), jnp.argmax(s, axis=1)

    def meet(text):
        tokens, mask = text
        words, patches = choose(images.astype(jnp.float32), tokens.astype(jnp.float32), mask)  # [i, p] and [i, t]
        rounded = choose(images.astype(jnp.bfloat16), tokens.astype(jnp.bfloat16), mask)
        by_words = ((patches[:, None] == jnp.arange(images.shape[1])[:, None]) & mask).any(axis=2)
        by_patches = (words[..., None] == jnp.arange(len(mask))).any(axis=1)
        return by_words, by_patches, (words == rounded[0]).sum(axis=1), ((patches == rounded[1]) & mask).sum(axis=1)

    by_words, by_patches, same_words, same_patches = jax.lax.map(
        meet, (texts, mask)
    )  # [j, i, p], [j, i, t], [j, i] twice
    pairs, lengths = mask.any(axis=1)[:, None] & real, mask.sum(axis=1)[:, None]
    patches = jnp.broadcast_to(real[:, None], by_words.shape[1:])
    return {
        **_never_and_always("image_tokens", by_words, pairs[..., None], 0, patches),
        **_never_and_always("text_tokens", by_patches, pairs[..., None], 1, mask),
        "image_choices_in_bfloat16": _ratio(same_words, pairs, by_words.shape[2] * pairs),
        "text_choices_in_bfloat16": _ratio(same_patches, pairs, lengths * pairs),
    }


def _never_and_always(name, chosen, pairs, axis, tokens: Bool[Array, "rows tokens"]):
    """Return the shares of tokens that no pair and that every pair chooses, along an axis of all pairs."""
    never, always = ~(chosen & pairs).any(axis=axis), (chosen | ~pairs).all(axis=axis)
    return {f"{name}_{word}_chosen": _ratio(x, tokens, tokens) for word, x in (("never", never), ("always", always))}


def _ratio(x, counted, of):
    return jnp.where(counted, x, 0).sum(dtype=jnp.float32) / jnp.maximum(of.sum(dtype=jnp.float32), 1.0)
