"""All image-text similarities of an evaluation, block by block in bounded memory, on all devices of a mesh."""

from collections.abc import Iterator, Sequence
from functools import cache

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from filip_jax.losses import blocked
from filip_jax.mesh import BATCH_AXES

IMAGES, TEXTS, EIGHT = 1024, 512, 8  # of a block, at most
TOP = (1, 5)  # so many classes may be named
TIE = 1e-6  # similarities that are nearer are equal: what is left is rounding, which other blocks and devices do otherwise

Block = tuple[Int[np.ndarray, " r"], Int[np.ndarray, " c"], Float[np.ndarray, "r c"], Float[np.ndarray, "r c"]]


def similarity_blocks(
    image_tokens: Float[np.ndarray, "i p d"],
    text_tokens: Float[np.ndarray, "j t d"],
    text_mask: Bool[np.ndarray, "j t"],
    mesh: Mesh | None = None,
) -> Iterator[Block]:
    """`token_similarity` of every image with every text: (which images, which texts, image_to_text, text_to_image).

    Texts come sorted by length, and each block only as long as its longest.

    Args:
        mesh: devices that share the images of each block; None is JAX's own first.
    """
    lengths = np.where(text_mask, np.arange(1, text_mask.shape[1] + 1), 0).max(axis=1)
    order, devices = np.argsort(lengths, kind="stable"), mesh.size if mesh else 1
    rows = _size(len(image_tokens), IMAGES, devices)
    for row in range(0, len(image_tokens), rows):
        here = np.arange(row, min(row + rows, len(image_tokens)))
        images = _put(_filled(image_tokens[here], rows).transpose(1, 0, 2), mesh, PartitionSpec(None, BATCH_AXES))
        columns = _size(len(order), TEXTS, 1)
        for column in range(0, len(order), columns):
            those = order[column : column + columns]
            long = min(-(-max(int(lengths[those[-1]]), 1) // EIGHT) * EIGHT, text_mask.shape[1])
            texts, mask = (_filled(x[those, :long], columns) for x in (text_tokens, text_mask))
            both = _block_on(mesh)(images, _put(texts, mesh, PartitionSpec()), _put(mask, mesh, PartitionSpec()))
            to_text, to_image = (np.asarray(x)[: len(those), : len(here)].T for x in both)
            yield here, those, to_text, to_image


def similarity_matrices(
    image_tokens: Float[np.ndarray, "i p d"],
    text_tokens: Float[np.ndarray, "j t d"],
    text_mask: Bool[np.ndarray, "j t"],
    mesh: Mesh | None = None,
) -> tuple[Float[np.ndarray, "i j"], Float[np.ndarray, "i j"]]:
    """`token_similarity` of every image with every text, whole: (image_to_text, text_to_image)."""
    to_text, to_image = (np.empty((len(image_tokens), len(text_tokens)), np.float32) for _ in range(2))
    for rows, columns, *both in similarity_blocks(image_tokens, text_tokens, text_mask, mesh):
        to_text[np.ix_(rows, columns)], to_image[np.ix_(rows, columns)] = both
    return to_text, to_image


@cache
def _block_on(mesh):
    """The program of a block, one for each mesh."""
    return jax.jit(_block, out_shardings=NamedSharding(mesh, PartitionSpec()) if mesh else None)


def _block(images, texts, mask):
    return blocked.forward(images, texts, mask)[:2]


def _put(x, mesh, spec):
    return jax.device_put(x, NamedSharding(mesh, spec)) if mesh else x


def _size(count, most, devices):
    """Of blocks: few distinct sizes, so that few programs are compiled, split evenly over the devices."""
    size = EIGHT
    while size < min(count, most):
        size *= 2
    return -(-size // devices) * devices


def _filled(x, count):
    """Up to so many rows, with zeros."""
    return np.pad(x, [(0, count - len(x))] + [(0, 0)] * (x.ndim - 1))


def ranks(scores: Float[np.ndarray, "n m"], true: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    """The rank, from 1, of the true column in each row; ties, up to TIE, and NaN count against it.

    Args:
        names: of the columns. Those of one name, as ImageNet's two kinds of missile in CLIP's list, are no rivals whom a
            model could tell apart: the first of them is found first.
    """
    bound = scores[np.arange(len(scores)), true][:, None] - TIE
    bound[np.isnan(bound)] = -np.inf
    better = ~(scores < bound)
    if len(set(names)) < len(names):
        numbers = np.unique(np.array(names), return_inverse=True)[1]
        better &= (numbers != numbers[true][:, None]) | (np.arange(len(names)) < true[:, None])
    better[np.arange(len(scores)), true] = True
    return better.sum(axis=1)


def accuracies(rank: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], prefix: str = "") -> dict[str, float]:
    """Return top1 and top5 of ranks, each with the bounds _low and _high of its 95 % interval, and per_class.

    The latter is the mean of the classes' top1.
    """
    metrics: dict[str, float] = {}
    for k in TOP:
        hits = int((rank <= k).sum())
        low, high = wilson(hits, len(rank))
        metrics |= {f"{prefix}top{k}": hits / len(rank), f"{prefix}top{k}_low": low, f"{prefix}top{k}_high": high}
    of_classes = [float((rank[labels == label] == 1).mean()) for label in np.unique(labels)]
    return metrics | {f"{prefix}per_class": float(np.mean(of_classes))}


def interval(right: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> tuple[float, float]:
    """The 95 % interval of the share that is right, of queries that come in groups, as the captions of one image do.

    It is Wilson's for so many independent queries as vary as much as these (Kish 1965): their number where groups do
    not matter, that of the groups where all in one are alike.

    Args:
        groups: the number of each query's group, from 0, none without a query.
    """
    rate, sizes = right.mean(), np.bincount(groups)
    spread = np.bincount(groups, right) - rate * sizes
    if rate in (0, 1):
        count = len(sizes)
    else:
        count = len(right) * min(rate * (1 - rate) * len(right) / max((spread**2).sum(), 1e-9), 1)
    return wilson(rate * count, count)


def wilson(hits: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927)."""
    z, rate = 1.96, hits / count
    centre = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * (rate * (1 - rate) / count + z**2 / (4 * count**2)) ** 0.5 / (1 + z**2 / count)
    return max(centre - half, 0.0), min(centre + half, 1.0)
