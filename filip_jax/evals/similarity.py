"""All image-text similarities of an evaluation, block by block in bounded memory."""

import jax
import numpy as np
from jaxtyping import Bool, Float

from filip_jax.losses import token_similarity

BLOCK_ELEMENTS = 2**26  # of the token-token tensor of one block: 256 MiB in float32

_block = jax.jit(token_similarity)


def similarity_matrices(
    image_tokens: Float[np.ndarray, "i p d"],
    text_tokens: Float[np.ndarray, "j t d"],
    text_mask: Bool[np.ndarray, "j t"],
) -> tuple[Float[np.ndarray, "i j"], Float[np.ndarray, "i j"]]:
    """`token_similarity` of every image with every text: (image_to_text, text_to_image)."""
    side = max(1, int((BLOCK_ELEMENTS / (image_tokens.shape[1] * text_tokens.shape[1])) ** 0.5))
    shape = (len(image_tokens), len(text_tokens))
    results = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for row in range(0, shape[0], side):
        for column in range(0, shape[1], side):
            here = slice(row, row + side), slice(column, column + side)
            block = _block(image_tokens[here[0]], text_tokens[here[1]], text_mask[here[1]])
            for result, values in zip(results, block):
                result[here] = values
    return results


def ranks(scores: Float[np.ndarray, "n m"], true: np.ndarray) -> np.ndarray:
    """The rank, from 1, of the true column in each row; ties and NaN count against it."""
    return (~(scores < scores[np.arange(len(scores)), true][:, None])).sum(axis=1)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927)."""
    z, rate = 1.96, hits / count
    centre = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * (rate * (1 - rate) / count + z**2 / (4 * count**2)) ** 0.5 / (1 + z**2 / count)
    return max(centre - half, 0.0), min(centre + half, 1.0)
