"""All pairs of some images with some texts, in blocks of texts: no pair's token-token matrix is stored.

Texts come sorted by length; a block is as long as its longest text, in steps of LENGTHS, so pads cost
next to nothing. What happens inside a block stands in tiles.py, and in a kernel per accelerator.

Letters as in similarity.py; here images and texts are all of one device's: i images, j texts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt

from filip_jax.errors import UserError
from filip_jax.losses import pallas_tpu, tiles

EIGHT = 8
LENGTHS = (8, 16, 24, 32, 48, 64)  # and the whole length; each is compiled
TILE_BYTES = {"cpu": 2**21, "gpu": 2**24, "tpu": 2**24}  # of a float32 tile: what stays near the cores
GPU_KERNEL_BYTES = 2**30  # of its tile, which is never stored: enough programs for all multiprocessors, many times

Best = tuple[UInt[jax.Array, "j p i"], UInt[jax.Array, "j t i"]]


def forward(
    images: Float[jax.Array, "p i d"],
    texts: Float[jax.Array, "j t d"],
    mask: Bool[jax.Array, "j t"],
    implementation: str = "xla",
    runs: int = 1,
) -> tuple[Float[jax.Array, "j i"], Float[jax.Array, "j i"], Best]:
    """Both similarities of all pairs, and the indices of the best tokens.

    Args:
        implementation: "xla", "pallas" for the accelerator's kernel (on CPUs the TPU's, interpreted), or
            "auto" for the kernel where it is known to be the faster one: on TPUs.

        runs: texts are so many lists of one length, each sorted.

    Raises:
        UserError: "pallas" where there is no kernel.

    Returns:
        image_to_text, text_to_image: see `token_similarity`, here text first.
        best: for each text and image, the best text token of each image token [j, p, i] and the best
            image token of each text token [j, t, i].
    """
    maxima, tile_bytes = _maxima(implementation, images, texts)
    return _on_each_platform(partial(_forward, runs), maxima, tile_bytes, images, texts, mask)


def backward(
    images: Float[jax.Array, "p i d"],
    texts: Float[jax.Array, "j t d"],
    mask: Bool[jax.Array, "j t"],
    best: Best | None,
    image_to_text: Float[jax.Array, "j i"],
    text_to_image: Float[jax.Array, "j i"],
    implementation: str = "xla",
    runs: int = 1,
) -> tuple[Float[jax.Array, "p i d"], Float[jax.Array, "j t d"]]:
    """Gradients of images and texts, float32, from those of the similarities: two matrix products per block.

    Args:
        best: from `forward`, or None to find them again block by block, so that they are never stored.
        implementation, runs: as in `forward`.
    """
    maxima, tile_bytes = _maxima(implementation, images, texts)
    inner = {platform: (maxima[platform], spread) for platform, spread in _spreads(maxima).items()}
    arrays = (images, texts, mask, best, image_to_text, text_to_image)
    return _on_each_platform(partial(_backward, runs), inner, tile_bytes, *arrays)


def backward_of(
    images: Float[jax.Array, "p i d"],
    texts: Float[jax.Array, "j t d"],
    mask: Bool[jax.Array, "j t"],
    more: Any,
    cotangents: Callable[..., tuple[tuple[jax.Array, jax.Array], Any]],
    like: Any,
    implementation: str = "xla",
) -> tuple[Float[jax.Array, "p i d"], Float[jax.Array, "j t d"], Any]:
    """`backward` where the gradients of the similarities follow from the similarities, block by block.

    Args:
        more: arrays [j, ...] that go with the texts.
        cotangents: (image_to_text [j, i], text_to_image [j, i], more) of some texts -> gradients of both, and of
            parameters.
        like: those parameters, nested.

    Returns:
        gradients of images and texts, float32, and the sum of the parameters' gradients.
    """
    maxima, tile_bytes = _maxima(implementation, images, texts)
    inner = {platform: (maxima[platform], spread) for platform, spread in _spreads(maxima).items()}
    return _on_each_platform(partial(_backward_of, cotangents), inner, tile_bytes, images, texts, mask, more, like)


def highest(
    images: Float[jax.Array, "p i d"],
    texts: Float[jax.Array, "j t d"],
    mask: Bool[jax.Array, "j t"],
    implementation: str = "xla",
) -> tuple[Float[jax.Array, "p i"], Float[jax.Array, "j t"]]:
    """Of every token its best similarity with any token of any sample of the other side.

    "auto" and "pallas" are a kernel on TPUs for bfloat16, XLA elsewhere.
    """
    inner, tile_bytes = dict.fromkeys(TILE_BYTES, tiles.highest), dict(TILE_BYTES)
    (p, i, d), t = images.shape, texts.shape[1]
    if implementation in ("auto", "pallas") and t >= EIGHT and not pallas_tpu.why_not(p, t, d, images.dtype):
        inner["tpu"], tile_bytes["tpu"] = pallas_tpu.highest, _tpu_kernel_bytes(i, t)
    return _on_each_platform(_highest, inner, tile_bytes, images, texts, mask)


def _tpu_kernel_bytes(i, t):
    """A tile for the kernels on TPUs: they fill up fewer texts to those of a program, for nothing."""
    return max(TILE_BYTES["tpu"], 4 * pallas_tpu.TEXTS * t * i)


def by_length(
    texts: Float[jax.Array, "j t d"], mask: Bool[jax.Array, "j t"]
) -> tuple[Float[jax.Array, "j long d"], Bool[jax.Array, "j long"], Int[jax.Array, " j"]]:
    """Texts and mask sorted by length, as every function here likes them, and which text each was.

    Texts of more than eight tokens are padded to a multiple of eight, in which accelerators count.
    """
    t = mask.shape[1]
    long = -(-t // EIGHT) * EIGHT if t > EIGHT else t
    order = jnp.argsort(_lengths(mask))
    return _pad(texts[order], long), _pad(mask[order], long), order


def _maxima(implementation, images, texts):
    """What finds the maxima on each platform, and the bytes of its tile."""
    (p, i, d), t = images.shape, texts.shape[1]
    of_tpu = pallas_tpu.why_not(p, t, d, images.dtype)
    maxima, tile_bytes = dict.fromkeys(TILE_BYTES, tiles.maxima), dict(TILE_BYTES)
    if implementation == "pallas":
        from filip_jax.losses import pallas_gpu  # which takes a quarter of a second

        of_gpu = pallas_gpu.why_not(p, t, d, images.dtype)
        of_mesh = jax.sharding.get_abstract_mesh().abstract_device  # in a plan another than this machine's
        here = getattr(of_mesh, "platform", None) or jax.default_backend()
        refused = of_gpu if here == "gpu" else of_tpu
        if refused:
            raise UserError(f"implementation='pallas' on {here}: {refused}; take auto or xla")
        maxima["cpu"] = pallas_tpu.interpreted
        if not of_gpu:
            maxima["gpu"], tile_bytes["gpu"] = pallas_gpu.maxima, GPU_KERNEL_BYTES
    if implementation == "pallas" or (implementation == "auto" and t >= EIGHT):
        if not of_tpu:
            maxima["tpu"], tile_bytes["tpu"] = pallas_tpu.maxima, _tpu_kernel_bytes(i, t)
    return maxima, tile_bytes


def _on_each_platform(function, inner, tile_bytes, *arrays):
    (_, i, _), (j, t, _) = (x.shape for x in arrays[:2])
    made: dict[tuple, Callable] = {}  # what is alike on two platforms is traced once

    def on(platform):
        key = inner[platform], min(tile_bytes[platform], 4 * t * i * j)
        return made.setdefault(key, partial(function, *key))

    others = {"tpu": on("tpu"), "cuda": on("gpu"), "rocm": on("gpu")}
    others = {name: branch for name, branch in others.items() if branch is not on("cpu")}
    return jax.lax.platform_dependent(*arrays, **others, default=on("cpu")) if others else on("cpu")(*arrays)


def _spreads(maxima):
    """What spreads the gradients on each platform."""
    spreads = {"cpu": tiles.spread, "gpu": tiles.spread, "tpu": tiles.spread_at_once}
    if maxima["gpu"] is not tiles.maxima:
        from filip_jax.losses import pallas_gpu_spread

        spreads["gpu"] = pallas_gpu_spread.spread
    return spreads


def _forward(runs, maxima, tile_bytes, images, texts, mask):
    p, i, _ = images.shape
    longest = texts.shape[1]

    def block(n, carry, arrays):
        texts, mask = (x[:, :n] for x in arrays)
        of_images, of_texts, best_text, best_image = maxima(images, texts, mask)
        length = mask.sum(axis=1)[:, None]
        image_to_text = jnp.where(length > 0, of_images / p, 0.0)
        text_to_image = jnp.where(length > 0, of_texts / jnp.maximum(length, 1), 0.0)
        best_text = best_text.astype(tiles.index_dtype(longest))
        return carry, (image_to_text, text_to_image, best_text, _pad(best_image, longest))

    _, (*similarities, best_text, best_image) = _over_blocks(block, None, (texts, mask), i, tile_bytes, runs)
    return *similarities, (best_text, best_image)


def _backward(runs, inner, tile_bytes, images, texts, mask, best, image_to_text, text_to_image):
    p, i, d = images.shape
    length = mask.sum(axis=1)[:, None]
    of_chosen = jnp.where(length > 0, image_to_text / p, 0.0)
    of_choosers = text_to_image / jnp.maximum(length, 1)
    maxima, spread = inner

    def block(n, to_images, arrays):
        texts, mask, *weights, best = arrays
        texts, mask = texts[:, :n], mask[:, :n]
        best_text, best_image = maxima(images, texts, mask)[2:] if best is None else (best[0], best[1][:, :n])
        to_images, to_texts = spread(to_images, images, texts, mask, best_image, best_text, *weights)
        return to_images, _pad(to_texts, arrays[0].shape[1])

    arrays = (texts, mask, of_chosen, of_choosers, best)
    return _over_blocks(block, jnp.zeros((p, i, d), jnp.float32), arrays, i, tile_bytes, runs)


def _backward_of(cotangents, inner, tile_bytes, images, texts, mask, more, like):
    p, i, d = images.shape
    maxima, spread = inner

    def block(n, carry, arrays):
        to_images, of_parameters = carry
        (texts, mask), more = (x[:, :n] for x in arrays[:2]), arrays[2]
        of_images, of_texts, best_text, best_image = maxima(images, texts, mask)
        length = mask.sum(axis=1)[:, None]
        image_to_text = jnp.where(length > 0, of_images / p, 0.0)
        text_to_image = jnp.where(length > 0, of_texts / jnp.maximum(length, 1), 0.0)
        (to_first, to_second), of_block = cotangents(image_to_text, text_to_image, more)
        weights = jnp.where(length > 0, to_first / p, 0.0), to_second / jnp.maximum(length, 1)
        to_images, to_texts = spread(to_images, images, texts, mask, best_image, best_text, *weights)
        return (to_images, jax.tree.map(jnp.add, of_parameters, of_block)), _pad(to_texts, arrays[0].shape[1])

    start = jnp.zeros((p, i, d), jnp.float32), jax.tree.map(jnp.zeros_like, like)
    (to_images, of_parameters), to_texts = _over_blocks(block, start, (texts, mask, more), i, tile_bytes)
    return to_images, to_texts, of_parameters


def _highest(highest, tile_bytes, images, texts, mask):
    p, i, _ = images.shape

    def block(n, of_images, arrays):
        of_images, of_texts = highest(of_images, images, *(x[:, :n] for x in arrays))
        return of_images, _pad(of_texts, arrays[0].shape[1])

    return _over_blocks(block, jnp.full((p, i), -jnp.inf, jnp.float32), (texts, mask), i, tile_bytes)


def _over_blocks(function, carry, arrays, i, tile_bytes, runs=1):
    """Scans function(n, carry, arrays of some texts) -> (carry, outputs); n tokens hold these texts whole."""
    j, t = arrays[1].shape
    most = min(max(tile_bytes // (4 * t * i), 1), j // runs)
    size = next(n for n in range(most, 0, -1) if j // runs % n == 0)
    if size < most / 2:  # rather some texts of nothing than small tiles
        size = -(-j // -(-j // most))
    blocks = -(-j // size)
    arrays = jax.tree.map(lambda x: _pad(x, blocks * size, axis=0).reshape(blocks, size, *x.shape[1:]), arrays)
    lengths = [n for n in LENGTHS if n < t] + [t]
    which = jnp.searchsorted(jnp.array(lengths), _lengths(arrays[1]).max(axis=1), method="compare_all")

    def step(carry, block):
        return jax.lax.switch(block[0], [partial(function, n) for n in lengths], carry, block[1])

    carry, outputs = jax.lax.scan(step, carry, (which, arrays))
    return carry, jax.tree.map(lambda x: x.reshape(blocks * size, *x.shape[2:])[:j], outputs)


def _lengths(mask):
    """Tokens up to the last that takes part."""
    return jnp.where(mask, jnp.arange(1, mask.shape[-1] + 1), 0).max(axis=-1)


def _pad(x, length, axis=1):
    """Zeros up to this length."""
    return jnp.pad(x, [(0, length - x.shape[n] if n == axis else 0) for n in range(x.ndim)])
