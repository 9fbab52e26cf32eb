"""What happens in a block of texts, in plain XLA.

The loop over image tokens is the innermost. Its tile, one token of every image against all tokens of
the texts, feeds both maxima: over text tokens inside the tile, over image tokens as a running maximum.
Images stand last, so each maximum is elementwise or over an axis in front of it, on every platform.

Ties: of float32 tokens that are equally good the first is the best. Of bfloat16 tokens the similarity
is cut to 14 bits of mantissa or more to make room for the index (`pack`), and any of those that then are
equal is the best; that is far below what rounding the tokens did.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, UInt

TOKENS_AT_ONCE = 4  # of an image, whose gradients are found together
MOST_PACKED = 2**9  # tokens whose index leaves 14 bits of mantissa
LOW = -1e9  # finite, so that its bits can hold an index
LIFT = 2.0**-100  # added to what is packed: an index in a zero would be a denormal number, which chips flush
Maxima = tuple[Float[jax.Array, "j i"], Float[jax.Array, "j i"], UInt[jax.Array, "j p i"], UInt[jax.Array, "j t i"]]


def maxima(images: Float[jax.Array, "p i d"], texts: Float[jax.Array, "j t d"], mask: Bool[jax.Array, "j t"]) -> Maxima:
    """The sums over image tokens and over text tokens of their best similarities, and which tokens those were.

    Returns:
        (sum over image tokens, sum over text tokens that take part, best text token of each image
        token, best image token of each text token). The sums of a text without tokens have no meaning.
    """
    p, i, d = images.shape
    j, t, _ = texts.shape
    rows = texts.reshape(j * t, d)
    allowed = jnp.broadcast_to(mask[:, :, None], (j, t, i))
    position = jax.lax.broadcasted_iota(jnp.int32, (j, t, i), 1)
    exact = images.dtype == jnp.float32 or max(p, t) > MOST_PACKED
    step = _exact_step if exact else _packed_step(p)

    def of_image_token(k, carry):
        total, best_text, running = carry
        tile = dot(rows, images[k], 1, 1).reshape(j, t, i)
        best, chosen, running = step(k, tile, allowed, position, running)
        return total + best, best_text.at[:, k].set(chosen.astype(best_text.dtype)), running

    lowest = jnp.full((j, t, i), -jnp.inf, jnp.float32)
    running = (lowest, jnp.zeros((j, t, i), index_dtype(p))) if exact else lowest
    start = jnp.zeros((j, i), jnp.float32), jnp.zeros((j, p, i), index_dtype(t)), running
    total, best_text, running = jax.lax.fori_loop(0, p, of_image_token, start)
    peak, best_image = running if exact else unpack(running, p)
    return total, jnp.where(allowed, peak, 0.0).sum(axis=1), best_text, best_image.astype(index_dtype(p))


def _exact_step(k, tile, allowed, position, running):
    real = jnp.where(allowed, tile, -jnp.inf)
    best = real.max(axis=1)
    first = jnp.where(real == best[:, None], position, tile.shape[1]).min(axis=1)
    peak, best_image = running
    better = tile > peak
    return best, first, (jnp.where(better, tile, peak), jnp.where(better, k.astype(best_image.dtype), best_image))


def _packed_step(p):
    def step(k, tile, allowed, position, running):
        t, tile = tile.shape[1], tile + LIFT
        best, chosen = unpack(pack(jnp.where(allowed, tile, LOW), position, t).max(axis=1), t)
        return best, chosen, jnp.maximum(running, pack(tile, k, p))

    return step


def pack(x: jax.Array, index: jax.Array, count: int) -> jax.Array:
    """float32 but no zero, whose lowest bits are an index below `count`: a maximum finds the value and where it was."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & _high(count)
    return jax.lax.bitcast_convert_type(bits | index, jnp.float32)


def unpack(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """(value, index) of what `pack` made, or of a maximum of such."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jax.lax.bitcast_convert_type(bits & _high(count), jnp.float32), bits & ~_high(count)


def _high(count):
    return -(1 << (count - 1).bit_length())


def index_dtype(count: int) -> jnp.dtype:
    """The smallest unsigned integer that numbers so many tokens."""
    return jnp.dtype(jnp.uint8 if count <= 2**8 else jnp.uint16)


def spread(
    to_images: Float[jax.Array, "p i d"],
    images: Float[jax.Array, "p i d"],
    texts: Float[jax.Array, "j t d"],
    mask: Bool[jax.Array, "j t"],
    best_image: UInt[jax.Array, "j t i"],
    best_text: UInt[jax.Array, "j p i"],
    of_chosen: Float[jax.Array, "j i"],
    of_choosers: Float[jax.Array, "j i"],
) -> tuple[Float[jax.Array, "p i d"], Float[jax.Array, "j t d"]]:
    """(to_images plus the gradient of the images, the gradient of the texts): two matrix products per tile.

    Each tile is the sparse matrix of who was best for whom; it is made where it is used. It is of several image tokens: the
    gradient of the texts, as large as the tile, is read and written once for each tile.

    Args:
        of_chosen: what each image token sends its best text token, of_choosers: what each text token
            sends its best image token, by text and image.
    """
    p, i, d = images.shape
    j, t, _ = texts.shape
    rows = texts.reshape(j * t, d)
    position = jax.lax.broadcasted_iota(best_text.dtype, (j, t, 1, i), 1)

    def of_image_tokens(count, k, carry):
        to_images, to_texts = carry
        tokens, own = (jax.lax.dynamic_slice_in_dim(x, k, count) for x in (images, to_images))
        number = (k + jax.lax.broadcasted_iota(jnp.int32, (1, 1, count, 1), 2)).astype(best_image.dtype)
        chosen = jax.lax.dynamic_slice_in_dim(best_text, k, count, 1)[:, None] == position
        chose = (best_image[:, :, None] == number) & mask[:, :, None, None]
        weights = jnp.where(chosen, of_chosen[:, None, None], 0.0) + jnp.where(chose, of_choosers[:, None, None], 0.0)
        weights = weights.astype(texts.dtype).reshape(j * t, count * i)
        own += dot(weights, rows, 0, 0).reshape(count, i, d)
        to_texts += dot(weights, tokens.reshape(count * i, d), 1, 0)
        return jax.lax.dynamic_update_slice_in_dim(to_images, own, k, 0), to_texts

    some, rest = min(TOKENS_AT_ONCE, p), p % min(TOKENS_AT_ONCE, p)
    carry = to_images, jnp.zeros((j * t, d), jnp.float32)
    carry = jax.lax.fori_loop(0, p // some, lambda n, carry: of_image_tokens(some, n * some, carry), carry)
    to_images, to_texts = of_image_tokens(rest, p - rest, carry) if rest else carry
    return to_images, to_texts.reshape(j, t, d)


def spread_at_once(to_images, images, texts, mask, best_image, best_text, of_chosen, of_choosers):
    """`spread` with one tile for all image tokens, images first: XLA on TPUs makes it inside the products.

    Each product makes its own: a tile that both shared would be stored.
    """
    p, t = len(images), texts.shape[1]

    def weights(best_image, best_text, of_chosen, of_choosers):
        position = jax.lax.broadcasted_iota(best_text.dtype, (1, 1, 1, t), 3)
        k = jax.lax.broadcasted_iota(best_image.dtype, (1, p, 1, 1), 1)
        chosen = jnp.where(best_text[..., None] == position, of_chosen[:, None, :, None], 0.0)
        chose = jnp.where((best_image[:, None] == k) & mask, of_choosers[:, None, :, None], 0.0)
        return (chosen + chose).astype(texts.dtype)  # [i, p, j, t]

    sources = best_image.transpose(2, 0, 1), best_text.transpose(2, 1, 0), of_chosen.T, of_choosers.T
    rows = jax.lax.optimization_barrier(texts.reshape(-1, texts.shape[2]))  # else XLA puts t first, and stores the tile
    texts = rows.reshape(texts.shape)
    more = jnp.einsum("ipjt,jtd->ipd", weights(*sources), texts, preferred_element_type=jnp.float32)
    again = weights(*jax.lax.optimization_barrier(sources))
    of_texts = jnp.einsum("ipjt,ipd->jtd", again, images.swapaxes(0, 1), preferred_element_type=jnp.float32)
    return to_images + more.swapaxes(0, 1), of_texts


def highest(
    of_images: Float[jax.Array, "p i"],
    images: Float[jax.Array, "p i d"],
    texts: Float[jax.Array, "j t d"],
    mask: Bool[jax.Array, "j t"],
) -> tuple[Float[jax.Array, "p i"], Float[jax.Array, "j t"]]:
    """Of every token its best similarity with any other's: of image tokens at least `of_images`."""
    j, t, d = texts.shape
    rows = texts.reshape(j * t, d)

    def of_image_token(k, carry):
        of_images, of_texts = carry
        tile = dot(rows, images[k], 1, 1)
        best = jnp.where(mask.reshape(j * t, 1), tile, -jnp.inf).max(axis=0)
        return of_images.at[k].max(best), jnp.maximum(of_texts, tile.max(axis=1))

    start = of_images, jnp.full(j * t, -jnp.inf, jnp.float32)
    of_images, of_texts = jax.lax.fori_loop(0, len(images), of_image_token, start)
    return of_images, of_texts.reshape(j, t)


def up(n: int, multiple: int) -> int:
    """The next multiple."""
    return -(-n // multiple) * multiple


def dot(x: jax.Array, y: jax.Array, over_x: int, over_y: int) -> jax.Array:
    """The matrix product over these axes, accumulated in float32."""
    return jax.lax.dot_general(x, y, (((over_x,), (over_y,)), ((), ())), preferred_element_type=jnp.float32)
