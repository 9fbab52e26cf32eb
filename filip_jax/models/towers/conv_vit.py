"""A vision transformer behind a convolutional stem (Xiao et al. 2021, arXiv 2106.14881), for small images and short runs."""

from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, UInt8

from filip_jax.errors import UserError
from filip_jax.models.linear import Linear
from filip_jax.models.patches import embed, fit_positions, grid_of, kept_count, visible_pixels
from filip_jax.models.tower import HALF, Execution, Features, ImageInput
from filip_jax.models.transformer import Transformer


class StemBlock(nnx.Module):
    """A convolution that halves the sides, a norm over channels and a ReLU."""

    def __init__(self, channels: int, width: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, width, (3, 3), strides=2, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b h2 w2 d"]:
        return jax.nn.relu(self.norm(self.conv(x)))


class ConvVit(nnx.Module):
    """Convolutions that overlap -> a grid of tokens -> a transformer; pooled is the mean, there is no class token.

    Args:
        image_size, patch_dropout: as of `Vit`.
        patch_size: a power of two; each convolution of the stem halves the sides.
        width, depth, heads, activation: of the `Transformer`.
    """

    def __init__(
        self,
        execution: Execution,
        rngs: nnx.Rngs,
        *,
        image_size: int,
        patch_size: int,
        patch_dropout: float = 0.0,
        width: int,
        depth: int,
        heads: int,
        activation: str,
    ):
        rows, columns = grid = grid_of(image_size, image_size, patch_size)
        halvings = patch_size.bit_length() - 1
        if patch_size != 2**halvings or patch_size == 1:
            raise UserError(f"model.image.patch_size={patch_size} of a convolutional stem must be 2, 4, 8, ...")
        self.input, self.dtype = ImageInput(image_size, grid, mean=HALF, std=HALF), execution.dtype
        self.width, self.patch_size, self.kept = width, patch_size, kept_count(patch_dropout, grid)
        self.noise_size = rows * columns if patch_dropout else 0
        channels = [3, *(max(8, width >> n) for n in reversed(range(halvings)))]
        self.blocks = nnx.List([StemBlock(*sizes, self.dtype, rngs) for sizes in pairwise(channels)])
        self.embedding = Linear(channels[-1], width, dtype=self.dtype, rngs=rngs)
        position = nnx.initializers.normal(width**-0.5)(rngs.params(), (rows * columns, width))
        self.position = nnx.Param(position, decay=False, positions=grid)
        self.transformer = Transformer(width, depth, heads, activation, execution, rngs, causal=False)
        self.post_norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=self.dtype, rngs=rngs)

    def __call__(
        self,
        images: UInt8[jax.Array, "b h w 3"],
        noise: Float[jax.Array, "b patches"] | None = None,
        patch_mask: Bool[jax.Array, "b patches"] | None = None,
    ) -> Features:
        """Return the tokens of the patches, normalized by `post_norm`; noise and mask as of `Vit`."""
        pixels, grid = visible_pixels(images, self.input, self.patch_size, patch_mask)
        x = pixels.astype(self.dtype)
        for block in self.blocks:
            x = block(x)
        position = fit_positions(self.position[...], self.input.grid, grid).astype(self.dtype)
        x = embed(x.reshape(x.shape[0], grid[0] * grid[1], x.shape[-1]), self.embedding, position, noise, self.kept)
        x = self.post_norm(self.transformer(x))
        return Features(x, x.mean(axis=1), grid=grid if noise is None else None)
