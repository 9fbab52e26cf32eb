"""The image tower: a vision transformer in CLIP's form, every token out."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, UInt8

from filip_jax.errors import UserError
from filip_jax.models.transformer import TOKENS, Transformer

# CLIP's channel statistics in units of 1/255; FILIP and Wukong use the same.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder(nnx.Module):
    """Patches -> tokens (FILIP table 1: ViT-B/32 or ViT-L/14).

    Args:
        image_size: pixels of the square input.
        patch_size: pixels of the square patches; must divide image_size.
        class_token: whether a learned token joins the patches, as token 0 of the output.
        patch_dropout: share of the patches that training leaves out, anew in each step and image
            (FLIP, arXiv 2212.00794); the tower and the loss see the others only.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        patch_dropout: float,
        width: int,
        depth: int,
        heads: int,
        class_token: bool,
        activation: str,
        attention: str,
        scan: bool,
        remat: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if image_size % patch_size:
            raise UserError(f"model.image.patch_size={patch_size} does not divide image_size={image_size}")
        if (image_size // patch_size) ** 2 >= TOKENS:
            raise UserError(
                f"model.image: image_size={image_size} in patches of patch_size={patch_size} gives "
                f"{(image_size // patch_size) ** 2} patches; a tower takes fewer than {TOKENS} tokens"
            )
        if not 0 <= patch_dropout < 1:
            raise UserError(f"model.image.patch_dropout={patch_dropout} must be at least 0 and below 1")
        self.patch_size, self.dtype = patch_size, dtype
        count = (image_size // patch_size) ** 2
        self.kept_patches = max(1, round(count * (1 - patch_dropout)))
        count += class_token
        normal = nnx.initializers.normal(width**-0.5)
        self.patch_embedding = nnx.Linear(3 * patch_size**2, width, use_bias=False, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(normal(rngs.params(), (width,))) if class_token else None
        self.position = nnx.Param(normal(rngs.params(), (count, width)))
        self.pre_norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.transformer = Transformer(
            width=width,
            depth=depth,
            heads=heads,
            causal=False,
            activation=activation,
            attention=attention,
            scan=scan,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.post_norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: UInt8[jax.Array, "b h w 3"], noise: Float[jax.Array, "b patches"] | None = None
    ) -> Float[jax.Array, "b n width"]:
        """Tokens in the order class token (if any), patches row by row; normalised by `post_norm`.

        With noise, independent random numbers, the patches with the smallest are kept.
        """
        pixels = (images / 255.0 - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD)
        x = patches(pixels.astype(self.dtype), self.patch_size)
        position = self.position[...].astype(self.dtype)
        token, position = position[: len(position) - x.shape[1]], position[len(position) - x.shape[1] :]
        if noise is None:
            x = self.patch_embedding(x) + position
        else:
            kept = jnp.sort(jnp.argsort(noise, axis=1)[:, : self.kept_patches], axis=1)
            x = self.patch_embedding(jnp.take_along_axis(x, kept[..., None], axis=1)) + position[kept]
        if self.class_token is not None:
            token = jnp.broadcast_to(token + self.class_token[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([token, x], axis=1)
        return self.post_norm(self.transformer(self.pre_norm(x)))


def patches(pixels: Float[jax.Array, "b h w 3"], size: int) -> Float[jax.Array, "b n features"]:
    """The image cut into size x size squares, row by row, each flattened as (row, column, channel)."""
    batch, height, width, channels = pixels.shape
    grid = pixels.reshape(batch, height // size, size, width // size, size, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


def resize_positions(position: Float[jax.Array, "old w"], rows: int, class_token: bool) -> Float[jax.Array, "{rows} w"]:
    """Position embeddings of a square grid of patches, resized to another: bicubic, antialiased.

    Args:
        rows: of the result.
        class_token: whether the first row, of both, is the class token's own, which stays.
    """
    token, grid = position[: int(class_token)], position[int(class_token) :]
    old, new, width = math.isqrt(len(grid)), math.isqrt(rows - class_token), position.shape[1]
    resized = jax.image.resize(grid.reshape(old, old, width), (new, new, width), "bicubic", antialias=True)
    return jnp.concatenate([token, resized.reshape(-1, width)])
