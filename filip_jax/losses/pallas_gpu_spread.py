"""The gradient of a block of texts as a kernel for Hopper GPUs: the sparse tile never leaves the chip.

Like tiles.py's `spread`, whose two matrix products are one kernel called twice: what images get from
texts, and with sides swapped what texts get from images. Letters of the kernel: the rows get, the
samples s with tokens n give; o is a token of the rows. A program has ROWS rows; each of its GROUPS
warpgroups has a token of theirs, writes who chose whom into shared memory and multiplies it with the
tokens of one sample after the other, which one more warpgroup loads.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Bool, Float, UInt8

from filip_jax.losses.pallas_gpu import GROUPS, REGISTERS, ROWS, SHARED_BYTES, SWIZZLED
from filip_jax.losses.tiles import up

DEPTH = 16  # tokens of a step of the matrix product
MOST_AT_ONCE = 128  # tokens of a sample: more are cut into pieces, of which several fit
MOST_STAGES = 4


def spread(
    to_images: Float[jax.Array, "p i d"],
    images: Float[jax.Array, "p i d"],
    texts: Float[jax.Array, "j t d"],
    mask: Bool[jax.Array, "j t"],
    best_image: UInt8[jax.Array, "j t i"],
    best_text: UInt8[jax.Array, "j p i"],
    of_chosen: Float[jax.Array, "j i"],
    of_choosers: Float[jax.Array, "j i"],
    interpret: bool = False,
) -> tuple[Float[jax.Array, "p i d"], Float[jax.Array, "j t d"]]:
    """`tiles.spread` of bfloat16 tokens."""
    real = jnp.where(mask[..., None], texts, 0)  # a token that takes no part gives nothing and gets nothing
    more = _gradient(best_text, of_chosen, best_image.transpose(2, 0, 1), of_choosers, real, interpret)
    of_texts = _gradient(
        best_image.transpose(2, 1, 0),
        of_choosers.T,
        best_text.transpose(0, 2, 1),
        of_chosen.T,
        images.swapaxes(0, 1),
        interpret,
    )
    return to_images + more, jnp.where(mask[..., None], of_texts.swapaxes(0, 1), 0)


interpreted = partial(spread, interpret=True)  # the kernel without its chip, for tests


def _gradient(
    chosen: UInt8[jax.Array, "s o r"],
    of_chosen: Float[jax.Array, "s r"],
    choice: UInt8[jax.Array, "r s n"],
    of_choosers: Float[jax.Array, "s r"],
    values: Float[jax.Array, "s n d"],
    interpret: bool,
) -> Float[jax.Array, "o r d"]:
    """Token o of row r gets of_chosen times the token of s that it chose, and of_choosers times all that chose it."""
    (s, o, r), (n, d) = chosen.shape, values.shape[1:]
    pieces = -(-n // MOST_AT_ONCE)
    tokens, rows, long, deep = up(o, GROUPS), up(r, ROWS), up(-(-n // pieces), DEPTH), up(d, SWIZZLED)
    starts = long * jnp.arange(pieces, dtype=jnp.uint8)[:, None, None]
    chosen = (chosen[:, None] - starts).reshape(s * pieces, o, r)  # those of other pieces wrap beyond its end
    chosen = jnp.pad(chosen, ((0, 0), (0, tokens - o), (0, rows - r)))
    weights = jnp.repeat(jnp.stack([of_chosen, of_choosers], axis=1), pieces, axis=0)
    weights = jnp.pad(weights, ((0, 0), (0, 0), (0, rows - r)))
    choice = jnp.pad(choice, ((0, rows - r), (0, 0), (0, pieces * long - n))).reshape(rows, s * pieces, long)
    values = jnp.pad(values, ((0, 0), (0, pieces * long - n), (0, deep - d))).reshape(s * pieces, long, deep)
    own = GROUPS * ROWS * long * 2
    stages = min((SHARED_BYTES - own) // (2 * long * deep + ROWS * (long + 16)), s * pieces, MOST_STAGES)
    swizzled = max(size for size in (DEPTH, 2 * DEPTH, 4 * DEPTH) if long % size == 0)
    layout = (plgpu.TilingTransform((8, swizzled)), plgpu.SwizzleTransform(2 * swizzled))

    def program(*arrays):
        pl.run_scoped(
            lambda *scratch: _kernel(*arrays, *scratch),
            plgpu.SMEM((stages, GROUPS, ROWS), jnp.uint8),
            plgpu.SMEM((stages, 2, ROWS), jnp.float32),
            plgpu.SMEM((stages, ROWS, long), jnp.uint8),
            plgpu.SMEM((stages, long, deep), jnp.bfloat16, transforms=layout),
            plgpu.SMEM((GROUPS, ROWS, long), jnp.bfloat16, transforms=layout),
            plgpu.Barrier(num_arrivals=4, num_barriers=stages),
            plgpu.Barrier(num_arrivals=GROUPS, num_barriers=stages),
            collective_axes="group",
        )

    gradient = plgpu.kernel(
        program,
        out_type=jax.ShapeDtypeStruct((tokens, rows, deep), jnp.float32),
        grid=(rows // ROWS, tokens // GROUPS),
        grid_names=("rows", "tokens"),
        num_threads=GROUPS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **({"interpret": plgpu.InterpretGPUParams()} if interpret else {}),
    )(chosen, weights, choice, values)
    return gradient[:o, :r, :d]


def _kernel(chosen, weights, choice, values, out, *scratch):
    *staged, tile, ready, free = scratch
    group, tokens = jax.lax.axis_index("group"), jax.lax.axis_index("tokens") * GROUPS
    here = pl.ds(jax.lax.axis_index("rows") * ROWS, ROWS)
    samples, stages = chosen.shape[0], staged[0].shape[0]

    @pl.when(group < GROUPS)
    def _():
        plgpu.set_max_registers(REGISTERS["compute"], action="increase")
        multiply = partial(_multiply, staged, tile.at[group], ready, free, samples, group, tokens + group)
        out[tokens + group, here, :] = pl.run_scoped(multiply, plgpu.ACC((ROWS, values.shape[2]), jnp.float32))

    @pl.when(group == GROUPS)
    def _():
        plgpu.set_max_registers(REGISTERS["load"], action="decrease")

        def fetch(s, stage):
            sources = (
                chosen.at[s, pl.ds(tokens, GROUPS), here],
                weights.at[s, :, here],
                choice.at[here, s],
                values.at[s],
            )
            for source, target in zip(sources, staged):
                plgpu.copy_gmem_to_smem(source, target.at[stage], ready.at[stage])

        for s in range(stages):
            fetch(jnp.int32(s), s)

        @pl.loop(0, samples - stages)
        def _(s):
            stage = jax.lax.rem(s, jnp.int32(stages))
            plgpu.barrier_wait(free.at[stage])
            fetch(s + stages, stage)

        for s in range(samples - stages, samples):  # a program must not end before all is done
            plgpu.barrier_wait(free.at[s % stages])


def _multiply(staged, tile, ready, free, samples, group, token, total):
    """The sum over samples of (who chose whom) times (their tokens)."""
    chosen, weights, choice, values = staged
    stages, rows, long = choice.shape
    layout = plgpu.Layout.WGMMA
    by_row = layout.reduce(1)
    position = plgpu.broadcasted_iota(jnp.int32, (rows, long), 1, layout=layout)
    zeros = plgpu.layout_cast(jnp.zeros((rows, long), jnp.float32), layout)

    def spread(row):
        return jax.lax.broadcast_in_dim(row, (rows, long), (0,))

    @pl.loop(0, samples)
    def _(s):
        stage = jax.lax.rem(s, jnp.int32(stages))
        plgpu.barrier_wait(ready.at[stage])
        mine = spread(plgpu.load(chosen.at[stage, group], layout=by_row, optimized=False).astype(jnp.int32))
        theirs = plgpu.load(choice.at[stage], layout=layout, optimized=False).astype(jnp.int32)
        of_chosen, of_choosers = (spread(plgpu.load(weights.at[stage, n], layout=by_row)) for n in range(2))
        sparse = jnp.where(mine == position, of_chosen, zeros) + jnp.where(theirs == token, of_choosers, zeros)
        tile[...] = sparse.astype(jnp.bfloat16)
        plgpu.commit_smem()
        plgpu.wgmma(total, tile, values.at[stage])
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(free.at[stage])

    return total[...]
