"""The maxima of a block of texts as TPU kernels: the tile never leaves the core's own memory.

Like tiles.py with packed indices. A program holds all tokens of some images and meets TEXTS texts:
per image token one matrix product with some of the texts, the maximum over their tokens, and the
running maximum over image tokens.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Bool, Float

from filip_jax.losses.tiles import LIFT, LOW, Maxima, dot, index_dtype, pack, unpack, up

MOST_TOKENS = 2**8  # of a side: their indices are 8 bits
LANES, SUBLANES = 128, 8  # of a register: images and text tokens
MOST_LANES = 512
TEXTS = 32  # of a program: a whole tile of their 8-bit indices
ROWS = 96  # a matrix product's least, so that loading the image tokens into the unit pays
IMAGE_BYTES = 2**24  # of a program's image tokens, if LANES of them are no more
MOST_BYTES = 48 * 2**20  # of all that a program holds


def why_not(p: int, t: int, d: int, dtype: jnp.dtype) -> str:
    """Why the kernel cannot compare such tokens; empty if it can."""
    if dtype != jnp.bfloat16:
        return f"its kernels multiply bfloat16 (the objective's dtype), but these tokens are {dtype}"
    if max(p, t) > MOST_TOKENS:
        return f"its kernel takes up to {MOST_TOKENS} tokens a side, but these are {p} and {t}"
    rows = TEXTS * up(t, SUBLANES)
    needed = 4 * _most_lanes(2 * p * d) * (p * d + rows) + 4 * rows * (d + LANES)  # what is copied, twice
    if needed > MOST_BYTES:
        return f"its kernel has room for {MOST_BYTES} bytes, but {p} and {t} tokens of dimension {d} need {needed}"
    return ""


def maxima(
    images: Float[jax.Array, "p i d"],
    texts: Float[jax.Array, "j t d"],
    mask: Bool[jax.Array, "j t"],
    interpret: bool | pltpu.InterpretParams = False,
) -> Maxima:
    """`tiles.maxima` of bfloat16 tokens, up to 256 a side."""
    (p, i, d), (j, t, _) = images.shape, texts.shape
    images, rows, real, lanes = _padded(images, texts, mask)
    wide, many, long = images.shape[1], up(j, TEXTS), up(t, SUBLANES)

    def by_text(length):
        return pl.BlockSpec((length, lanes), lambda i, j: (j, i))

    of_images, of_texts, best_text, best_image = pl.pallas_call(
        partial(_kernel, long=long, p=p),
        grid=(wide // lanes, many // TEXTS),
        in_specs=_in_specs(p, lanes, d, long),
        out_specs=[
            by_text(TEXTS),
            by_text(TEXTS),
            pl.BlockSpec((p, TEXTS, lanes), lambda i, j: (0, j, i)),
            by_text(TEXTS * long),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((many, wide), jnp.float32),
            jax.ShapeDtypeStruct((many, wide), jnp.float32),
            jax.ShapeDtypeStruct((p, many, wide), jnp.uint8),
            jax.ShapeDtypeStruct((many * long, wide), jnp.uint8),
        ],
        scratch_shapes=[pltpu.VMEM((TEXTS * long, lanes), jnp.float32), pltpu.VMEM((TEXTS, lanes), jnp.float32)],
        compiler_params=_parameters("parallel", "parallel"),
        interpret=interpret,
    )(images, rows, real)
    best_text, best_image = best_text.swapaxes(0, 1)[:j, :, :i], best_image.reshape(many, long, wide)[:j, :t, :i]
    best = (best.astype(index_dtype(n)) for best, n in ((best_text, t), (best_image, p)))
    return of_images[:j, :i], of_texts[:j, :i], *best


def highest(
    of_images: Float[jax.Array, "p i"],
    images: Float[jax.Array, "p i d"],
    texts: Float[jax.Array, "j t d"],
    mask: Bool[jax.Array, "j t"],
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[Float[jax.Array, "p i"], Float[jax.Array, "j t"]]:
    """`tiles.highest`."""
    (p, i, d), (j, t, _) = images.shape, texts.shape
    images, rows, real, lanes = _padded(images, texts, mask)
    wide, many, long = images.shape[1], up(j, TEXTS), up(t, SUBLANES)
    narrow = lanes if lanes % LANES else LANES
    best_images, best_texts = pl.pallas_call(
        partial(_highest_kernel, long=long, p=p),
        grid=(wide // lanes, many // TEXTS),
        in_specs=_in_specs(p, lanes, d, long),
        out_specs=[
            pl.BlockSpec((p, lanes), lambda i, j: (0, i)),
            pl.BlockSpec((TEXTS * long, narrow), lambda i, j: (j, i)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((p, wide), jnp.float32),
            jax.ShapeDtypeStruct((many * long, wide // lanes * narrow), jnp.float32),
        ],
        scratch_shapes=[pltpu.VMEM((TEXTS * long, lanes), jnp.float32)],
        compiler_params=_parameters("parallel", "arbitrary"),
        interpret=interpret,
    )(images, rows, real)
    best_texts = best_texts.max(axis=1).reshape(many, long)[:j, :t]
    return jnp.maximum(of_images, best_images[:, :i]), best_texts


def _padded(images, texts, mask):
    """Images and texts filled up to whole programs, texts as rows, which rows take part, images of a program."""
    (p, i, d), (j, t, _) = images.shape, texts.shape
    lanes = _lanes(i, p * d * images.dtype.itemsize)
    wide, many, long = up(i, lanes), up(j, TEXTS), up(t, SUBLANES)
    images = jnp.pad(images, ((0, 0), (0, wide - i), (0, 0)))
    rows = jnp.pad(texts, ((0, many - j), (0, long - t), (0, 0))).reshape(many * long, d)
    real = jnp.pad(mask, ((0, many - j), (0, long - t))).reshape(many * long, 1).astype(jnp.float32)
    return images, rows, real, lanes


def _in_specs(p, lanes, d, long):
    return [
        pl.BlockSpec((p, lanes, d), lambda i, j: (0, i, 0)),
        pl.BlockSpec((TEXTS * long, d), lambda i, j: (j, 0)),
        pl.BlockSpec((TEXTS * long, 1), lambda i, j: (j, 0)),
    ]


def _parameters(*dimension_semantics):
    return pltpu.CompilerParams(dimension_semantics=dimension_semantics, vmem_limit_bytes=4 * IMAGE_BYTES)


def _lanes(images, bytes_each):
    """Images of a program: all if they fit, else as many registers full as fit and divide them best."""
    most = _most_lanes(bytes_each)
    if images <= most:
        return images
    return LANES * min(range(1, most // LANES + 1), key=lambda n: (-images % (n * LANES), -n))


def interpreted(images, texts, mask):
    """The kernel without its chip."""
    return maxima(images, texts, mask, interpret=True)


def simulated(images, texts, mask):
    """The same with the chip's memory and its copies simulated; slower, and only where nothing else runs."""
    return maxima(images, texts, mask, interpret=pltpu.InterpretParams())


def highest_simulated(of_images, images, texts, mask):
    """`highest` in the same way."""
    return highest(of_images, images, texts, mask, interpret=pltpu.InterpretParams())


def _kernel(images, rows, real, of_images, of_texts, best_text, best_image, running, row, *, long, p):
    """The outputs of `maxima`; running [TEXTS * long, lanes] and row [TEXTS, lanes] hold packed maxima."""
    lanes = images.shape[1]
    together, groups = _groups(long)
    position = jax.lax.broadcasted_iota(jnp.int32, (together, long, lanes), 1).reshape(together * long, lanes)
    running[...] = jnp.full(running.shape, -jnp.inf, jnp.float32)
    of_images[...] = jnp.zeros(of_images.shape, jnp.float32)

    @pl.loop(0, p)
    def of_image_token(k):
        image = images[k]
        for first, here in groups:
            tile = dot(rows[here, :], image, 1, 1) + LIFT
            running[here, :] = jnp.maximum(running[here, :], pack(tile, k, p))
            packed = pack(jnp.where(real[here, :] > 0, tile, LOW), position, long)
            row[pl.ds(first, together), :] = packed.reshape(together, long, lanes).max(axis=1)
        best, chosen = unpack(row[...], long)
        of_images[...] += best
        best_text[k] = chosen.astype(jnp.uint8)

    for first, here in groups:
        peak, chosen = unpack(running[here, :], p)
        best_image[here, :] = chosen.astype(jnp.uint8)
        of_texts[pl.ds(first, together), :] = (peak * real[here, :]).reshape(together, long, lanes).sum(axis=1)


def _highest_kernel(images, rows, real, of_images, of_texts, running, *, long, p):
    """The outputs of `highest`, of texts LANES at a time; running [TEXTS * long, lanes] holds their maxima."""
    lanes = images.shape[1]
    groups = _groups(long)[1]
    running[...] = jnp.full(running.shape, -jnp.inf, jnp.float32)

    @pl.when(pl.program_id(1) == 0)
    def _():
        of_images[...] = jnp.full(of_images.shape, -jnp.inf, jnp.float32)

    @pl.loop(0, p)
    def of_image_token(k):
        image, best = images[k], of_images[pl.ds(k, 1), :]
        for _, here in groups:
            tile = dot(rows[here, :], image, 1, 1)
            running[here, :] = jnp.maximum(running[here, :], tile)
            taking_part = jnp.where(real[here, :] > 0, tile, -jnp.inf)
            best = jnp.maximum(best, taking_part.max(axis=0, keepdims=True))
        of_images[pl.ds(k, 1), :] = best

    narrow = of_texts.shape[1]
    parts = [running[:, start : start + narrow] for start in range(0, lanes, narrow)]
    of_texts[...] = reduce(jnp.maximum, parts)


def _most_lanes(bytes_each):
    return LANES * min(max(IMAGE_BYTES // bytes_each // LANES, 1), MOST_LANES // LANES)


def _groups(long):
    """Texts of a matrix product, and for each of a program's products its first text and its rows."""
    together = next(n for n in (1, 2, 4, 8) if n * long >= ROWS or n == 8)
    return together, [(first, pl.ds(first * long, together * long)) for first in range(0, TEXTS, together)]
