"""The maxima of a block of texts as a kernel for Hopper GPUs: the tile never leaves the registers.

Like tiles.py with packed indices. A program holds the tokens of some texts in shared memory and streams
the tokens of ROWS images past them, one token of each image at a time. Its GROUPS warpgroups have texts
of their own: while one looks for maxima, the other multiplies. One more warpgroup loads.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Bool, Float

from filip_jax.losses.tiles import LIFT, LOW, Maxima, pack, unpack, up

MOST_TOKENS = 2**8  # of an image: their indices are 8 bits
MOST_DIM = 256  # of a token: what a matrix product of the gradient gives at once
ROWS = 64  # images of a program: the rows of a warpgroup's matrix product
GROUPS = 2
COLUMNS = 160  # of a warpgroup, text tokens: two float32 tiles fit its registers
TEXTS = 8  # of a warpgroup: each has sums and indices in registers
SWIZZLED = 64  # bfloat16 numbers in a row of the layout in shared memory
SHARED_BYTES = 220 * 2**10
REGISTERS = {"compute": 232, "load": 40}  # of a thread


def why_not(p: int, t: int, d: int, dtype: jnp.dtype) -> str:
    """Why the kernel cannot compare such tokens; empty if it can."""
    if not hasattr(plgpu, "InterpretGPUParams"):
        return f"its kernel for GPUs needs JAX 0.11 or newer, but this is {jax.__version__}"
    if dtype != jnp.bfloat16:
        return f"its kernels multiply bfloat16 (the objective's dtype), but these tokens are {dtype}"
    if p > MOST_TOKENS or t > COLUMNS or d > MOST_DIM:
        return (
            f"its kernel for GPUs takes up to {MOST_TOKENS} image tokens and {COLUMNS} text tokens of dimension up to "
            f"{MOST_DIM}, but these are {p} and {t} of {d}"
        )
    device = jax.devices()[0]
    if device.platform == "gpu" and device.compute_capability != "9.0":
        return f"its kernel is for GPUs of compute capability 9.0 (Hopper), but this is {device.compute_capability}"
    return ""


def maxima(
    images: Float[jax.Array, "p i d"],
    texts: Float[jax.Array, "j t d"],
    mask: Bool[jax.Array, "j t"],
    interpret: bool = False,
) -> Maxima:
    """`tiles.maxima` of bfloat16 tokens, as many as `why_not` allows; similarities as for bfloat16 there."""
    p, i, d = images.shape
    j, t, _ = texts.shape
    long, deep, wide = up(t, 8), up(d, SWIZZLED), up(i, ROWS)
    together = min(COLUMNS // long, TEXTS)
    many, columns = up(j, GROUPS * together), together * long
    images = jnp.pad(images, ((0, 0), (0, wide - i), (0, deep - d)))
    rows = jnp.pad(texts, ((0, many - j), (0, long - t), (0, deep - d))).reshape(many * long, deep)
    real = jnp.pad(mask, ((0, many - j), (0, long - t))).reshape(many * long).astype(jnp.float32)
    chunk = 2 * SWIZZLED if deep % (2 * SWIZZLED) == 0 else SWIZZLED
    stages = min((SHARED_BYTES // 2 - GROUPS * columns * deep) // (ROWS * chunk), p * deep // chunk)
    layout = (plgpu.TilingTransform((8, SWIZZLED)), plgpu.SwizzleTransform(2 * SWIZZLED))

    def program(*arrays):
        pl.run_scoped(
            lambda *scratch: _kernel(*arrays, *scratch, long=long, together=together),
            plgpu.SMEM((stages, ROWS, chunk), jnp.bfloat16, transforms=layout),
            plgpu.SMEM((GROUPS, columns, deep), jnp.bfloat16, transforms=layout),
            plgpu.SMEM((GROUPS, columns), jnp.float32),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_arrivals=2 * GROUPS),
            plgpu.Barrier(num_arrivals=GROUPS, num_barriers=stages),
            collective_axes="group",
        )

    of_images, of_texts, best_text, best_image = plgpu.kernel(
        program,
        out_type=[
            jax.ShapeDtypeStruct((many, wide), jnp.float32),
            jax.ShapeDtypeStruct((many, wide), jnp.float32),
            jax.ShapeDtypeStruct((many, p, wide), jnp.uint8),
            jax.ShapeDtypeStruct((wide, many * long), jnp.uint8),
        ],
        grid=(wide // ROWS, many // (GROUPS * together)),
        grid_names=("image", "text"),
        num_threads=GROUPS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **({"interpret": plgpu.InterpretGPUParams()} if interpret else {}),
    )(images, rows, real)
    best_image = best_image.reshape(wide, many, long).transpose(1, 2, 0)
    return of_images[:j, :i], of_texts[:j, :i], best_text[:j, :, :i], best_image[:j, :t, :i]


def interpreted(images, texts, mask):
    """The kernel without its chip, for tests."""
    return maxima(images, texts, mask, interpret=True)


def _store(ref, value):
    """Single bytes: JAX 0.12 wants it said that this is no fast store."""
    if hasattr(plgpu, "store"):
        plgpu.store(ref, value, optimized=False)
    else:
        ref[...] = value


def _kernel(
    images, rows, real, of_images, of_texts, best_text, best_image,
    image_tokens, text_tokens, text_real, image_ready, texts_ready, image_free, *, long, together,
):  # fmt: skip
    """The outputs of `maxima`, best_image but for its layout: images x text tokens."""
    group, text_block = jax.lax.axis_index("group"), jax.lax.axis_index("text")
    here = pl.ds(jax.lax.axis_index("image") * ROWS, ROWS)
    p = images.shape[0]

    @pl.when(group < GROUPS)
    def _():
        plgpu.set_max_registers(REGISTERS["compute"], action="increase")
        texts = (text_block * GROUPS + group) * together

        def write(k, tokens):
            for n, token in enumerate(tokens):
                _store(best_text.at[texts + n, k, here], token.astype(jnp.uint8))

        tile_of = partial(_similarities, image_tokens, text_tokens.at[group], image_ready, image_free)
        plgpu.barrier_wait(texts_ready)
        peak, chosen, sums, takes_part = _compare(tile_of, text_real.at[group], write, p, long, together)
        _store(best_image.at[here, pl.ds(texts * long, together * long)], chosen.astype(jnp.uint8))
        for n, x in enumerate(_of_each_text(peak * takes_part, long)):
            of_images[texts + n, here] = sums[n]
            of_texts[texts + n, here] = x.sum(axis=1)

    @pl.when(group == GROUPS)
    def _():
        plgpu.set_max_registers(REGISTERS["load"], action="decrease")
        columns = together * long
        for n in range(GROUPS):
            span = pl.ds((text_block * GROUPS + n) * columns, columns)
            plgpu.copy_gmem_to_smem(rows.at[span], text_tokens.at[n], texts_ready)
            plgpu.copy_gmem_to_smem(real.at[span], text_real.at[n], texts_ready)
        _stream(images, here, image_tokens, image_ready, image_free)


def _compare(tile_of, text_real, write, p, long, together):
    """(best similarities of text tokens, which image tokens those are, sums of image tokens' best, who takes part)."""
    columns = together * long
    position = plgpu.broadcasted_iota(jnp.int32, (ROWS, columns), 1, layout=plgpu.Layout.WGMMA)

    def takes_part():
        row = plgpu.load(text_real, layout=plgpu.Layout.WGMMA.reduce(0))
        return jax.lax.broadcast_in_dim(row, (ROWS, columns), (1,))

    def of_image_token(k, carry):
        running, sums = carry
        tile = tile_of(k) + LIFT
        running = jnp.maximum(running, pack(tile, k, p))
        packed = pack(tile + (takes_part() - 1.0) * -LOW, position, columns)  # read anew: registers are full
        found = [unpack(x.max(axis=1), columns) for x in _of_each_text(packed, long)]
        write(k, [chosen - n * long for n, (_, chosen) in enumerate(found)])
        return running, tuple(total + best for total, (best, _) in zip(sums, found))

    lowest = plgpu.layout_cast(jnp.full((ROWS, columns), -jnp.inf, jnp.float32), plgpu.Layout.WGMMA)
    zero = plgpu.layout_cast(jnp.zeros(ROWS, jnp.float32), plgpu.Layout.WGMMA.reduce(1))
    running, sums = jax.lax.fori_loop(0, p, of_image_token, (lowest, (zero,) * together))
    return *unpack(running, p), sums, takes_part()


def _of_each_text(x, long):
    count = x.shape[1] // long
    return [x[:, n * long : (n + 1) * long] if count > 1 else x for n in range(count)]


def _similarities(image_tokens, text_tokens, ready, free, k):
    """The tile of image token k, ROWS images x text tokens; each chunk of dimensions is freed once multiplied."""
    stages, _, chunk = image_tokens.shape
    chunks = text_tokens.shape[1] // chunk

    def product(tile):
        stage: Any = None
        for n in range(chunks):
            before, stage = stage, jax.lax.rem(k * chunks + n, jnp.int32(stages))
            plgpu.barrier_wait(ready.at[stage])
            depth = text_tokens.at[:, pl.ds(n * chunk, chunk)]
            plgpu.wgmma(tile, image_tokens.at[stage], depth.transpose((1, 0)))
            if n:
                plgpu.wgmma_wait(1)
                plgpu.barrier_arrive(free.at[before])
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(free.at[stage])
        return tile[...]

    return pl.run_scoped(product, plgpu.ACC((ROWS, text_tokens.shape[0]), jnp.float32))


def _stream(images, here, image_tokens, ready, free):
    """Loads the chunks of these images, one token of all after the other, into stages that are free."""
    stages, _, chunk = image_tokens.shape
    chunks = images.shape[2] // chunk
    steps = images.shape[0] * chunks

    def fetch(step, stage):
        depth = pl.ds(jax.lax.rem(step, jnp.int32(chunks)) * chunk, chunk)
        source = images.at[jax.lax.div(step, jnp.int32(chunks)), here, depth]
        plgpu.copy_gmem_to_smem(source, image_tokens.at[stage], ready.at[stage])

    for step in range(stages):
        fetch(jnp.int32(step), step)

    @pl.loop(0, steps - stages)
    def fetch_when_free(step):
        stage = jax.lax.rem(step, jnp.int32(stages))
        plgpu.barrier_wait(free.at[stage])
        fetch(step + stages, stage)

    for step in range(steps - stages, steps):  # a program must not end before all is done
        plgpu.barrier_wait(free.at[step % stages])
