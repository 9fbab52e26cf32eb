"""Exact scores of queries with stored features: the definition's similarities, block by block, in bounded memory, on any device.

Letters of shapes: q queries of t tokens, n rows of p tokens, d embedding dimension. Of a query and a row,

    to_row    is the mean over the query's tokens of their best match among the row's,
    to_query  is the mean over the row's tokens of their best match among the query's.

With a text as the query and images as rows these are text_to_image and image_to_text of `token_similarity`.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import cycle

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from filip_jax.ahead import in_order
from filip_jax.features import Features
from filip_jax.features.reader import Block

BLOCK_BYTES = 1 << 24  # of the stored tokens of a block
LARGE_BLOCK_BYTES = 1 << 26  # of one that NumPy compares where it lies: in smaller ones threads wait for each other
AHEAD = min((os.cpu_count() or 1) + 1, 8)  # blocks that threads compare at once
MIN_ROWS, MAX_ROWS = 8, 4096  # of a block: powers of two, so that few programs are compiled
# Bytes of tokens, and of similarities, in float32 at once: what stays near the cores.
TILE_BYTES = {"cpu": 1 << 20, "gpu": 1 << 27, "tpu": 1 << 26}
FEW = 128  # rows that NumPy compares at once: their similarities stay there, too
MAX_SIMILARITY_BYTES = 1 << 24  # of a thread's similarities of tokens, where rows and queries have many
EIGHT = 8  # tokens of a query, and of rows that differ in length, are filled up to a multiple of it
MAX_QUERIES = 16  # that are compared with a block at once

Scores = tuple[Float[np.ndarray, "q n"], Float[np.ndarray, "q n"]]


def best_rows(
    features: Features,
    queries: Sequence[Float[np.ndarray, "_ d"]],
    k: int,
    *,
    allowed: Bool[np.ndarray, " rows"],
    like: bool = False,
) -> list[Int[np.ndarray, " _"]]:
    """Return for each query the k rows of the highest score, best first; of equal ones the first.

    Args:
        queries: the tokens of each.
        allowed: which rows may be found; removed ones never are.
        like: the score is the mean of both similarities instead of `to_row`.

    Raises:
        UserError: a part of the features is damaged.
    """
    rows_of_queries: list[Int[np.ndarray, " _"]] = []
    for start in range(0, len(queries), MAX_QUERIES):
        batch = queries[start : start + MAX_QUERIES]
        best = np.full((len(batch), 0), -np.inf, np.float32)
        indices = np.zeros((len(batch), 0), np.int64)
        for rows, (to_row, to_query) in _scores(batch, _blocks(features, allowed), both=like):
            scores = np.where(allowed[rows], (to_row + to_query) / 2 if like else to_row, -np.inf)
            if best.shape[1] == k and not (scores > best[:, -1:]).any():
                continue  # of equal rows the first stays
            best = np.concatenate([best, np.where(np.isnan(scores), -np.inf, scores)], axis=1)
            indices = np.concatenate([indices, np.broadcast_to(rows, scores.shape)], axis=1)
            order = np.lexsort((indices, -best))[:, :k]
            best, indices = (np.take_along_axis(x, order, axis=1) for x in (best, indices))
        rows_of_queries += [row[score > -np.inf] for row, score in zip(indices, best)]
    return rows_of_queries


def scores_of(features: Features, query: Float[np.ndarray, "t d"], rows: Int[np.ndarray, " n"]) -> Scores:
    """Return (to_row, to_query) of one query with some rows, each [1, n]."""
    to_row, to_query = (np.zeros((1, len(rows)), np.float32) for _ in range(2))
    for places, scores in _scores([query], _chosen(features, rows, np.arange(len(rows))), both=True):
        to_row[:, places], to_query[:, places] = scores
    return to_row, to_query


def block_rows(features: Features) -> int:
    """Return the rows of a block: few distinct sizes, and at most BLOCK_BYTES of them, or LARGE_BLOCK_BYTES."""
    manifest, size = features.manifest, MIN_ROWS
    most = LARGE_BLOCK_BYTES if _is_for_numpy(manifest.dtype) else BLOCK_BYTES
    bytes_of_one = manifest.max_tokens * manifest.dimension * np.dtype(manifest.dtype).itemsize
    while size < min(len(features), MAX_ROWS) and 2 * size * bytes_of_one <= most:
        size *= 2
    return size


def _blocks(features: Features, allowed: Bool[np.ndarray, " rows"]) -> Iterable[Block]:
    """Return blocks of all allowed rows: views of the files where most are allowed."""
    wanted = allowed & features.live
    if 2 * wanted.sum() > features.live.sum():
        return features.blocks(block_rows(features))
    rows = np.flatnonzero(wanted)
    return _chosen(features, rows, rows)


def _chosen(features: Features, rows: Int[np.ndarray, " n"], names: Int[np.ndarray, " n"]) -> Iterator[Block]:
    """Yield blocks of some rows; `names` stand in them for the rows."""
    size = block_rows(features)
    for start in range(0, len(rows), size):
        yield names[start : start + size], *features.stored(rows[start : start + size])


def _scores(
    queries: Sequence[Float[np.ndarray, "_ d"]], blocks: Iterable[Block], both: bool
) -> Iterator[tuple[Int[np.ndarray, " n"], Scores]]:
    """Yield (rows, their scores) of each block, in order. Without `both`, to_query is to_row. Devices take turns."""
    score, devices = partial(_score, queries, _padded(queries), both), devices_of_blocks()
    with closing(in_order(score, zip(blocks, cycle(devices)), max(AHEAD, 2 * len(devices)))) as scored:
        yield from scored


def devices_of_blocks() -> list[jax.Device]:
    """Return the devices that compare blocks: all of this process; of CPUs one, which has all cores."""
    return jax.local_devices()[: 1 if jax.default_backend() == "cpu" else None]


def _is_for_numpy(dtype) -> bool:
    """Return whether NumPy compares tokens of this type. XLA would copy those in float32 first, which takes as long."""
    return np.dtype(dtype) == np.float32 and jax.default_backend() == "cpu"


def _score(queries, padded, both: bool, block_on: tuple[Block, jax.Device]) -> tuple[Int[np.ndarray, " n"], Scores]:
    (rows, tokens, scales, mask), device = block_on
    if _is_for_numpy(tokens.dtype):
        return rows, _by_numpy(queries, tokens, mask, both)
    filled = _filled(tokens, scales, mask)
    tile = tile_rows(filled[0].shape, padded[1].size)
    with jax.default_device(device):
        scores = _block(*padded, *filled, both=both, tile=tile)
    to_row, to_query = (np.asarray(x)[: len(queries), : len(rows)] for x in scores)
    return rows, (to_row, to_query)


def _padded(queries: Sequence[Float[np.ndarray, "_ d"]]) -> tuple[Float[np.ndarray, "q t d"], Bool[np.ndarray, "q t"]]:
    """Return (tokens [q, t, d], mask [q, t]) of queries, in few distinct shapes."""
    long = -(-max(map(len, queries)) // EIGHT) * EIGHT
    count = 1 if len(queries) == 1 else MAX_QUERIES
    tokens = np.zeros((count, long, queries[0].shape[1]), np.float32)
    mask = np.zeros((count, long), bool)
    for n, query in enumerate(queries):
        tokens[n, : len(query)], mask[n, : len(query)] = query, True
    return tokens, mask


def _by_numpy(queries, tokens: Float[np.ndarray, "n p d"], mask: Bool[np.ndarray, "n p"], both: bool) -> Scores:
    """Return the scores of a block in float32. Small products need neither another order of the tokens nor several threads."""
    lengths = np.array([len(query) for query in queries])
    words, starts = np.ascontiguousarray(np.concatenate(queries).T), np.cumsum(lengths) - lengths
    to_row, to_query = (np.empty((len(queries), len(tokens)), np.float32) for _ in range(2))
    step = max(1, min(FEW, MAX_SIMILARITY_BYTES // (4 * tokens.shape[1] * words.shape[1])))
    for start in range(0, len(tokens), step):
        span = slice(start, start + step)
        similarity, present = tokens[span] @ words, mask[span]
        if not present.all():
            similarity[~present] = -np.inf
        to_row[:, span] = (np.add.reduceat(similarity.max(axis=1), starts, axis=1) / lengths).T
        if both:
            best = np.where(present[..., None], np.maximum.reduceat(similarity, starts, axis=2), 0)
            to_query[:, span] = (best.sum(axis=1) / np.maximum(present.sum(axis=1), 1)[:, None]).T
    return to_row, to_query if both else to_row


def _filled(
    tokens: Shaped[np.ndarray, "n p d"], scales: Float[np.ndarray, "n p"] | None, mask: Bool[np.ndarray, "n p"]
) -> tuple[Shaped[np.ndarray, "m r d"], Float[np.ndarray, "m r"] | None, Bool[np.ndarray, "m r"] | None]:
    """Return a block whose rows are a power of two and, if they differ in length, whose tokens are a multiple of eight.

    The mask is None where all tokens of a whole block are there.
    """
    n, p = mask.shape
    more = max(MIN_ROWS, 1 << (n - 1).bit_length()) - n
    whole = bool(mask.all())
    long = 0 if whole else -p % EIGHT
    if not more and not long:
        return tokens, scales, None if whole else mask
    wide = ((0, more), (0, long))
    return np.pad(tokens, (*wide, (0, 0))), None if scales is None else np.pad(scales, wide), np.pad(mask, wide)


def tile_rows(shape: tuple[int, ...], words: int) -> int:
    """Return how many rows of a block [n, p, d] are compared at once with so many tokens of queries."""
    n, p, d = shape
    tile = MIN_ROWS
    while tile < n and 2 * tile * p * max(d, words) * 4 <= TILE_BYTES.get(jax.default_backend(), 1 << 26):
        tile *= 2
    return tile


@partial(jax.jit, static_argnames=("both", "tile"))
def _block(queries, query_mask, tokens, scales, mask, *, both: bool, tile: int):
    """The scores [q, n] of a block, tile by tile: only a tile of the tokens is ever there in float32."""
    n = len(tokens)
    tiles = jax.tree.map(lambda x: x.reshape(n // tile, tile, *x.shape[1:]), (tokens, scales, mask))
    scores = jax.lax.map(partial(_tile, queries, query_mask, both), tiles)
    return tuple(jnp.moveaxis(x, 0, 1).reshape(len(queries), n) for x in scores)


def _tile(queries, query_mask, both, tile):
    """The scores [q, n] of a tile. Of all orders of the axes XLA multiplies this one fastest on CPUs, by far."""
    tokens, scales, mask = tile
    with jax.default_matmul_precision("highest"):
        similarity = jnp.einsum("npd,qtd->npqt", tokens.astype(jnp.float32), queries)
    if scales is not None:
        similarity *= scales[..., None, None]
    present = similarity if mask is None else jnp.where(mask[..., None, None], similarity, -jnp.inf)
    to_row = jnp.where(query_mask, present.max(axis=1), 0.0).sum(axis=2) / query_mask.sum(axis=1)
    if not both:
        return to_row.T, to_row.T
    best = jnp.where(query_mask, similarity, -jnp.inf).max(axis=3)
    row_mask = jnp.ones(best.shape[:2], bool) if mask is None else mask
    to_query = jnp.where(row_mask[..., None], best, 0.0).sum(axis=1) / jnp.maximum(row_mask.sum(axis=1), 1)[:, None]
    return to_row.T, to_query.T
