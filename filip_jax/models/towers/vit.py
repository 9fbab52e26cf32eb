"""The image tower of FILIP and CLIP: a vision transformer."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, UInt8

from filip_jax.models.patches import fit_positions, grid_of, hide, kept_count, kept_patches, patches
from filip_jax.models.tower import Execution, Features, ImageInput
from filip_jax.models.transformer import Transformer


class Vit(nnx.Module):
    """Patches -> tokens (FILIP table 1: ViT-B/32 or ViT-L/14).

    Args:
        image_size: pixels of the square input.
        patch_size: pixels of the square patches; must divide image_size.
        patch_dropout: share of the patches that training leaves out, anew in each step and image
            (FLIP, arXiv 2212.00794); the tower and the loss see the others only.
        class_token: whether a learned token joins the patches; it is pooled, instead of their mean.
        width, depth, heads, activation: of the `Transformer`.
    """

    def __init__(
        self,
        execution: Execution,
        rngs: nnx.Rngs,
        *,
        image_size: int,
        patch_size: int,
        patch_dropout: float,
        class_token: bool,
        width: int,
        depth: int,
        heads: int,
        activation: str,
    ):
        rows, columns = grid = grid_of(image_size, image_size, patch_size)
        self.input, self.width, self.dtype = ImageInput(image_size, grid), width, execution.dtype
        self.patch_size, self.kept = patch_size, kept_count(patch_dropout, grid)
        self.noise_size = rows * columns if patch_dropout else 0
        normal = nnx.initializers.normal(width**-0.5)
        self.patch_embedding = nnx.Linear(3 * patch_size**2, width, use_bias=False, dtype=self.dtype, rngs=rngs)
        self.class_token = nnx.Param(normal(rngs.params(), (width,))) if class_token else None
        position = normal(rngs.params(), (class_token + rows * columns, width))
        self.position = nnx.Param(position, decay=False, positions=grid)
        self.pre_norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=self.dtype, rngs=rngs)
        self.transformer = Transformer(width, depth, heads, activation, execution, rngs, causal=False)
        self.post_norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=self.dtype, rngs=rngs)

    def __call__(
        self,
        images: UInt8[jax.Array, "b h w 3"],
        noise: Float[jax.Array, "b patches"] | None = None,
        patch_mask: Bool[jax.Array, "b patches"] | None = None,
    ) -> Features:
        """Return the tokens of the patches, normalized by `post_norm`.

        With noise, independent random numbers, the patches with the smallest are kept. Where `patch_mask` is False a
        patch is hidden: its token begins as its position alone.
        """
        pixels = self.input.normalize(images).astype(self.dtype)
        _, height, width, _ = pixels.shape
        grid = grid_of(height, width, self.patch_size)
        x = patches(pixels if patch_mask is None else hide(pixels, patch_mask, self.patch_size), self.patch_size)
        position = fit_positions(self.position[...], self.input.grid, grid).astype(self.dtype)
        token, position = position[: -x.shape[1]], position[-x.shape[1] :]
        if noise is None:
            x = self.patch_embedding(x) + position
        else:
            kept = kept_patches(noise, self.kept)
            x = self.patch_embedding(jnp.take_along_axis(x, kept[..., None], axis=1)) + position[kept]
        if self.class_token is not None:
            token = jnp.broadcast_to(token + self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
            x = jnp.concatenate([token, x], axis=1)
        x = self.post_norm(self.transformer(self.pre_norm(x)))
        pooled, x = (x.mean(axis=1), x) if self.class_token is None else (x[:, 0], x[:, 1:])
        return Features(x, pooled, grid=grid if noise is None else None)
