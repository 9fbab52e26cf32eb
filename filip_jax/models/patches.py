"""Patches, their selection and their positions, for the towers that cut images into patches."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt8

from filip_jax.errors import UserError
from filip_jax.models.tower import MAX_TOKENS, ImageInput

Grid = tuple[int, int]


def grid_of(height: int, width: int, patch_size: int) -> Grid:
    """Return the rows and columns of patches in an image.

    Raises:
        UserError: its sides do not split into patches, or these are too many for a tower.
    """
    if height % patch_size or width % patch_size:
        raise UserError(f"model.image.patch_size={patch_size} does not divide images of {height} x {width} pixels")
    rows, columns = height // patch_size, width // patch_size
    if rows * columns >= MAX_TOKENS:
        raise UserError(
            f"model.image.patch_size={patch_size} cuts images of {height} x {width} pixels into {rows * columns} "
            f"patches; a tower takes fewer than {MAX_TOKENS} tokens"
        )
    return rows, columns


def kept_count(patch_dropout: float, grid: Grid) -> int:
    """Return how many patches are kept when a share is dropped.

    Raises:
        UserError: the share is out of range.
    """
    if not 0 <= patch_dropout < 1:
        raise UserError(f"model.image.patch_dropout={patch_dropout} must be at least 0 and below 1")
    return max(1, round(grid[0] * grid[1] * (1 - patch_dropout)))


def patches(pixels: Float[jax.Array, "b h w c"], size: int) -> Float[jax.Array, "b n features"]:
    """Return the images cut into size x size squares, row by row, each flattened as (row, column, channel)."""
    batch, height, width, channels = pixels.shape
    rows, columns = grid_of(height, width, size)
    grid = pixels.reshape(batch, rows, size, columns, size, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, size * size * channels)


def visible_pixels(
    images: UInt8[jax.Array, "b h w 3"], tower: ImageInput, size: int, patch_mask: Bool[jax.Array, "b n"] | None
) -> tuple[Float[jax.Array, "b h w 3"], Grid]:
    """Return the normalized pixels, with zeros in the patches of `size` where the mask is False, and the patches' grid."""
    pixels, grid = tower.normalize(images), grid_of(images.shape[1], images.shape[2], size)
    return (pixels if patch_mask is None else hide(pixels, patch_mask, size)), grid


def hide(
    pixels: Float[jax.Array, "b h w c"], patch_mask: Bool[jax.Array, "b n"], size: int
) -> Float[jax.Array, "b h w c"]:
    """Return the pixels with zeros in the patches where the mask is False."""
    batch, height, width, _ = pixels.shape
    shown = patch_mask.reshape(batch, height // size, width // size, 1)
    return jnp.where(shown.repeat(size, axis=1).repeat(size, axis=2), pixels, 0)


def kept_patches(noise: Float[jax.Array, "b n"], count: int) -> Int[jax.Array, "b kept"]:
    """Return the indices of the `count` patches with the least noise of each image, in order."""
    return jnp.sort(jnp.argsort(noise, axis=1)[:, :count], axis=1)


def embed(
    x: Float[jax.Array, "b n features"],
    embedding: Callable[[jax.Array], jax.Array],
    position: Float[jax.Array, "n w"],
    noise: Float[jax.Array, "b n"] | None,
    count: int,
) -> Float[jax.Array, "b kept w"]:
    """Return embedding(x) + position; with noise, of `kept_patches` only."""
    if noise is None:
        return embedding(x) + position
    kept = kept_patches(noise, count)
    return embedding(jnp.take_along_axis(x, kept[..., None], axis=1)) + position[kept]


def fit_positions(
    position: Float[jax.Array, "old w"], trained: tuple[int, ...], grid: tuple[int, ...]
) -> Float[jax.Array, "new w"]:
    """Return the position embeddings of a grid of patches resized to another grid: bicubic, antialiased.

    Args:
        position: of the trained grid, row by row, behind the rows of class tokens, if any, which stay.
        trained, grid: rows and columns.
    """
    if grid == trained:
        return position
    first, width = position.shape[0] - trained[0] * trained[1], position.shape[1]
    resized = jax.image.resize(position[first:].reshape(*trained, width), (*grid, width), "bicubic", antialias=True)
    return jnp.concatenate([position[:first], resized.reshape(-1, width)])
