"""Scores of any number of images with any number of texts, block by block in bounded memory, on any devices.

Late interaction and global embeddings are the same function here: an embedding is a single token.
"""

from collections.abc import Iterator
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from filip_jax.losses import blocked
from filip_jax.losses.similarity import Array, check_tokens
from filip_jax.mesh import BATCH_AXES

MAX_IMAGES, MAX_TEXTS, EIGHT = 1024, 512, 8  # of a block
MAX_BLOCK_BYTES = 2**28  # of the images of a block, and of its texts, in float32

Block = tuple[Int[np.ndarray, " r"], Int[np.ndarray, " c"], Float[np.ndarray, "r c"], Float[np.ndarray, "r c"]]


def similarity_blocks(
    image_tokens: Float[Array, "i p d"],
    text_tokens: Float[Array, "j t d"],
    text_mask: Bool[Array, "j t"],
    mesh: Mesh | None = None,
) -> Iterator[Block]:
    """Yield `token_similarity` of every image with every text: (indices of images, indices of texts, image_to_text, text_to_image).

    Texts come sorted by length, and each block only as long as its longest. Products and sums are of full float32
    precision, whatever the type of the tokens. Beside the tokens only one block is in memory.

    Args:
        image_tokens: L2-normalized; of a `np.memmap` each row is read once. Lists, and arrays of other libraries, serve too.
        text_tokens: L2-normalized.
        text_mask: True for the tokens that take part.
        mesh: devices that share the images of each block; None is JAX's own first.

    Raises:
        ValueError: tokens of different dimensions, or a mask that is not boolean [j, t].
    """
    image_tokens, text_tokens = (x if isinstance(x, Array) else np.asarray(x) for x in (image_tokens, text_tokens))
    text_mask = np.asarray(text_mask)
    check_tokens(image_tokens, text_tokens, text_mask)
    lengths = np.where(text_mask, np.arange(1, text_mask.shape[1] + 1), 0).max(axis=1)
    order, devices = np.argsort(lengths, kind="stable"), mesh.size if mesh else 1
    rows, columns = _size(image_tokens, MAX_IMAGES, devices), _size(text_tokens, MAX_TEXTS, 1)
    for row in range(0, len(image_tokens), rows):
        image_indices = np.arange(row, min(row + rows, len(image_tokens)))
        images = _filled(image_tokens[row : row + rows], rows).transpose(1, 0, 2)
        images = _put(images, mesh, PartitionSpec(None, BATCH_AXES))
        for column in range(0, len(order), columns):
            text_indices = order[column : column + columns]
            long = min(-(-max(int(lengths[text_indices[-1]]), 1) // EIGHT) * EIGHT, text_mask.shape[1])
            texts, mask = (_filled(x[text_indices, :long], columns) for x in (text_tokens, text_mask))
            both = _block_on(mesh)(images, _put(texts, mesh, PartitionSpec()), _put(mask, mesh, PartitionSpec()))
            to_text, to_image = (np.asarray(x)[: len(text_indices), : len(image_indices)].T for x in both)
            yield image_indices, text_indices, to_text, to_image


def similarity_matrices(
    image_tokens: Float[Array, "i p d"],
    text_tokens: Float[Array, "j t d"],
    text_mask: Bool[Array, "j t"],
    mesh: Mesh | None = None,
) -> tuple[Float[np.ndarray, "i j"], Float[np.ndarray, "i j"]]:
    """Return the whole matrices (image_to_text, text_to_image) of `similarity_blocks`, whose arguments these are."""
    to_text, to_image = (np.empty((len(image_tokens), len(text_tokens)), np.float32) for _ in range(2))
    for rows, columns, *both in similarity_blocks(image_tokens, text_tokens, text_mask, mesh):
        to_text[np.ix_(rows, columns)], to_image[np.ix_(rows, columns)] = both
    return to_text, to_image


@cache
def _block_on(mesh):
    """The program of a block, one for each mesh."""
    return jax.jit(_block, out_shardings=NamedSharding(mesh, PartitionSpec()) if mesh else None)


def _block(images, texts, mask):
    with jax.default_matmul_precision("highest"):
        return blocked.forward(images.astype(jnp.float32), texts.astype(jnp.float32), mask)[:2]


def _put(x, mesh, spec):
    return jax.device_put(x, NamedSharding(mesh, spec)) if mesh else x


def _size(tokens, most, devices):
    """Rows of a block: few distinct sizes, so that few programs are compiled, split evenly over the devices."""
    size, bytes_of_one = EIGHT, 4 * tokens.shape[1] * tokens.shape[2]
    while size < min(len(tokens), most) and 2 * size * bytes_of_one <= MAX_BLOCK_BYTES:
        size *= 2
    return -(-size // devices) * devices


def _filled(x, count):
    """Up to so many rows, with zeros."""
    return np.pad(x, [(0, count - len(x))] + [(0, 0)] * (x.ndim - 1))
