"""The image tower of FILIP, CLIP, SigLIP and DINOv2: a vision transformer."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, UInt8

from filip_jax.errors import UserError
from filip_jax.framing import Framing
from filip_jax.models.linear import Linear
from filip_jax.models.map_head import MapHead
from filip_jax.models.patches import embed, fit_positions, grid_of, kept_count, patches, visible_pixels
from filip_jax.models.tower import CLIP_MEAN, CLIP_STD, Execution, Features, ImageInput
from filip_jax.models.transformer import Transformer
from filip_jax.sections import one_of

POOLINGS = ("class", "mean", "map")
TOKENS = ("last", "value")


class Vit(nnx.Module):
    """Patches -> tokens, normalized by `post_norm`; the defaults are FILIP's (table 1: ViT-B/32 or ViT-L/14) and CLIP's.

    Args:
        image_size: pixels of the square input.
        patch_size: pixels of the square patches; must divide image_size.
        patch_dropout: share of the patches that training leaves out, anew in each step and image
            (FLIP, arXiv 2212.00794); the tower and the loss see the others only.
        width, depth, heads, mlp_width, activation, norm_epsilon, layer_scale: of the `Transformer`.
        pre_norm: whether the tokens are normalized before the first block, too.
        patch_bias: whether the embedding of the patches has a bias.
        class_tokens: learned tokens, with positions, that join the patches in front of them.
        registers: more of them, without positions, that are no outputs (arXiv 2309.16588).
        pooling: "class": the first class token; "mean": of the patches; "map": a `MapHead` over all tokens, SigLIP's.
        tokens: "last": the patches after the last block; "value": after a last block in which a patch attends to itself
            alone, so that its value stays its own (MaskCLIP, arXiv 2112.01071), for models trained on pooled vectors.
            What is pooled is the same.
        mean, std: of `ImageInput`.
        resize, interpolation, antialias, crop, crop_start: of `Framing`.
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
        mlp_width: int | None = None,
        activation: str,
        norm_epsilon: float = 1e-5,
        pre_norm: bool = True,
        patch_bias: bool = False,
        class_tokens: int = 1,
        registers: int = 0,
        layer_scale: float | None = None,
        pooling: str = "class",
        tokens: str = "last",
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        resize: str = "shortest",
        interpolation: str = "bicubic",
        antialias: bool = True,
        crop: float = 1.0,
        crop_start: str = "round",
    ):
        self.pooling = one_of(POOLINGS, pooling, "model.image.pooling")
        self.tokens = one_of(TOKENS, tokens, "model.image.tokens")
        if pooling == "class" and not class_tokens:
            raise UserError("model.image.pooling='class' needs class_tokens of at least 1; else take 'mean' or 'map'")
        if tokens == "value" and pooling != "class":
            raise UserError(f"model.image.tokens='value' needs pooling='class': {pooling!r} pools what it changes")
        rows, columns = grid = grid_of(image_size, image_size, patch_size)
        framing = Framing(resize, interpolation, antialias, crop, crop_start)
        self.input = ImageInput(image_size, grid, mean, std, framing)
        self.width, self.dtype, self.leading = width, execution.dtype, class_tokens + registers
        self.patch_size, self.kept = patch_size, kept_count(patch_dropout, grid)
        self.noise_size = rows * columns if patch_dropout else 0
        normal = nnx.initializers.normal(width**-0.5)

        def learned(count, **metadata):
            return nnx.Param(normal(rngs.params(), (count, width)), decay=False, **metadata) if count else None

        def norm():
            return nnx.LayerNorm(width, epsilon=norm_epsilon, dtype=self.dtype, rngs=rngs)

        shared: dict[str, Any] = dict(mlp_width=mlp_width, norm_epsilon=norm_epsilon)
        self.patch_embedding = Linear(3 * patch_size**2, width, use_bias=patch_bias, dtype=self.dtype, rngs=rngs)
        self.class_tokens = learned(class_tokens)
        self.position = learned(class_tokens + rows * columns, positions=grid)
        self.pre_norm = norm() if pre_norm else None
        body = width, depth, heads, activation, execution, rngs
        self.transformer = Transformer(*body, causal=False, layer_scale=layer_scale, **shared)
        self.post_norm = norm()
        self.registers = learned(registers)
        self.map_head = MapHead(width, heads, activation, execution, rngs, **shared) if pooling == "map" else None

    def __call__(
        self,
        images: UInt8[jax.Array, "b h w 3"],
        noise: Float[jax.Array, "b patches"] | None = None,
        patch_mask: Bool[jax.Array, "b patches"] | None = None,
    ) -> Features:
        """Return the tokens of the patches, normalized by `post_norm`.

        With noise, independent random numbers, the patches with the smallest are kept. Where `patch_mask` is False a
        patch is hidden: its token begins as its position, and the bias if there is one.
        """
        pixels, grid = visible_pixels(images, self.input, self.patch_size, patch_mask)
        x = patches(pixels.astype(self.dtype), self.patch_size)
        position = fit_positions(self.position[...], self.input.grid, grid).astype(self.dtype)
        first, position = position[: -x.shape[1]], position[-x.shape[1] :]
        x = embed(x, self.patch_embedding, position, noise, self.kept)
        if self.class_tokens is not None:
            first = first + self.class_tokens[...].astype(x.dtype)
        if self.registers is not None:
            first = jnp.concatenate([first, self.registers[...].astype(x.dtype)])
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], *first.shape)), x], axis=1)
        x = x if self.pre_norm is None else self.pre_norm(x)
        x = self.post_norm(self.transformer(x, visible_last=self._visible_last(x.shape[1])))
        patches_only = x[:, self.leading :]
        if self.map_head is not None:
            pooled = self.map_head(x)
        else:
            pooled = x[:, 0] if self.pooling == "class" else patches_only.mean(axis=1)
        return Features(patches_only, pooled, grid=grid if noise is None else None)

    def _visible_last(self, length: int) -> Bool[jax.Array, "1 1 n n"] | None:
        """Return which tokens each sees in the last block, if not all."""
        if self.tokens == "last":
            return None
        is_leading = jnp.arange(length) < self.leading
        return (jnp.eye(length, dtype=bool) | is_leading[:, None])[None, None]
