"""Exact scores of queries with stored features: the definition's similarities, block by block, in bounded memory, on any device.

Letters of shapes: q queries of t tokens, n rows of p tokens, d embedding dimension. Of a query and a row,

    to_row    is the mean over the query's tokens of their best match among the row's,
    to_query  is the mean over the row's tokens of their best match among the query's.

With a text as the query and images as rows these are text_to_image and image_to_text of `token_similarity`.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from filip_jax.features import Features
from filip_jax.features.reader import Block

BLOCK_BYTES = 1 << 26  # of the stored tokens of a block; two are in memory
MIN_ROWS, MAX_ROWS = 8, 4096  # of a block: powers of two, so that few programs are compiled
TILE_BYTES = {"cpu": 1 << 20, "gpu": 1 << 27, "tpu": 1 << 26}  # of tokens in float32 at once: what stays near the cores
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
) -> list[Int[np.ndarray, " k"]]:
    """Return for each query the k rows of the highest score, best first; of equal ones the first.

    Args:
        queries: the tokens of each.
        allowed: which rows may be found; removed ones never are.
        like: the score is the mean of both similarities instead of `to_row`.

    Raises:
        UserError: a part of the features is damaged.
    """
    found: list[Int[np.ndarray, " k"]] = []
    for start in range(0, len(queries), MAX_QUERIES):
        some = queries[start : start + MAX_QUERIES]
        best = np.full((len(some), 0), -np.inf, np.float32)
        indices = np.zeros((len(some), 0), np.int64)
        for rows, (to_row, to_query) in _scores(some, _blocks(features, allowed), both=like):
            scores = np.where(allowed[rows], (to_row + to_query) / 2 if like else to_row, -np.inf)
            best = np.concatenate([best, np.where(np.isnan(scores), -np.inf, scores)], axis=1)
            indices = np.concatenate([indices, np.broadcast_to(rows, scores.shape)], axis=1)
            order = np.lexsort((indices, -best))[:, :k]
            best, indices = (np.take_along_axis(x, order, axis=1) for x in (best, indices))
        found += [row[score > -np.inf] for row, score in zip(indices, best)]
    return found


def scores_of(features: Features, query: Float[np.ndarray, "t d"], rows: Int[np.ndarray, " n"]) -> Scores:
    """Return (to_row, to_query) of one query with some rows, each [1, n]."""
    whole = np.zeros((1, len(rows)), np.float32), np.zeros((1, len(rows)), np.float32)
    places = np.arange(len(rows))
    for some, both in _scores([query], _chosen(features, rows, places), both=True):
        for all_of, part in zip(whole, both):
            all_of[:, some] = part
    return whole


def block_rows(features: Features) -> int:
    """Return the rows of a block: few distinct sizes, and at most BLOCK_BYTES of them."""
    manifest, size = features.manifest, MIN_ROWS
    bytes_of_one = manifest.max_tokens * manifest.dimension * np.dtype(manifest.dtype).itemsize
    while size < min(len(features), MAX_ROWS) and 2 * size * bytes_of_one <= BLOCK_BYTES:
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
    """Yield (rows, their scores) of each block; the next one is read while a device works. Without `both`, to_query is to_row."""
    long = -(-max(map(len, queries)) // EIGHT) * EIGHT
    count = 1 if len(queries) == 1 else MAX_QUERIES
    tokens = np.zeros((count, long, queries[0].shape[1]), np.float32)
    mask = np.zeros((count, long), bool)
    for n, query in enumerate(queries):
        tokens[n, : len(query)], mask[n, : len(query)] = query, True
    asked = jnp.asarray(tokens), jnp.asarray(mask)
    before: tuple[Int[np.ndarray, " n"], tuple[jax.Array, jax.Array]] | None = None
    for block in blocks:
        after = block[0], _program_of(*block[1:])(*asked, *_filled(*block[1:]), both=both)
        if before is not None:
            yield _read(before, len(queries))
        before = after
    if before is not None:
        yield _read(before, len(queries))


def _read(found, queries: int) -> tuple[Int[np.ndarray, " n"], Scores]:
    rows, (to_row, to_query) = found
    first, second = (np.asarray(x)[:queries, : len(rows)] for x in (to_row, to_query))
    return rows, (first, second)


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


def _program_of(tokens, scales, mask):
    """Return the program for a block, with as many rows in a tile as fit."""
    _, p, d = tokens.shape
    tile = MIN_ROWS
    while 2 * tile * p * d * 4 <= TILE_BYTES.get(jax.default_backend(), 1 << 26):
        tile *= 2
    return partial(_block, tile=tile)


@partial(jax.jit, static_argnames=("both", "tile"))
def _block(queries, query_mask, tokens, scales, mask, *, both: bool, tile: int):
    """The scores [q, n] of a block, tile by tile: only a tile of the tokens is ever there in float32."""
    n = len(tokens)
    tile = min(tile, n)
    tiles = jax.tree.map(lambda x: x.reshape(n // tile, tile, *x.shape[1:]), (tokens, scales, mask))
    found = jax.lax.map(lambda each: _tile(queries, query_mask, *each, both=both), tiles)
    return tuple(jnp.moveaxis(x, 0, 1).reshape(len(queries), n) for x in found)


def _tile(queries, query_mask, tokens, scales, mask, both):
    with jax.default_matmul_precision("highest"):
        similarity = jnp.einsum("npd,qtd->qtnp", tokens.astype(jnp.float32), queries)
    if scales is not None:
        similarity *= scales
    among = similarity if mask is None else jnp.where(mask, similarity, -jnp.inf)
    length = query_mask.sum(axis=1)[:, None]
    to_row = jnp.where(query_mask[..., None], among.max(axis=3), 0.0).sum(axis=1) / length
    if not both:
        return to_row, to_row
    best = jnp.where(query_mask[..., None, None], similarity, -jnp.inf).max(axis=1)
    counted = jnp.ones(best.shape, bool) if mask is None else mask
    return to_row, jnp.where(counted, best, 0.0).sum(axis=2) / jnp.maximum(counted.sum(axis=-1), 1)
