"""Recall of a fast search against the exact one, on sampled queries."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from filip_jax.errors import UserError
from filip_jax.search.index import Index, Query

RANKS = (10, 100)
WORDS = 12  # tokens of a query that is made of a row's


@dataclass(frozen=True)
class Check:
    """A fast search beside the exact one.

    Attributes:
        queries: how many.
        recall: by k, the mean share of the exact k best rows that are among the fast search's; k is at most its candidates.
        exact_ms, fast_ms: wall time of a query, the first of each left out.
    """

    queries: int
    recall: dict[int, float]
    exact_ms: float
    fast_ms: float


def check(exact: Index, fast: Index, queries: Sequence[Query], candidates: int | None = None) -> Check:
    """Return how a fast search compares with the exact one over the same features.

    Args:
        exact: an index whose search compares all rows.
        candidates: of the fast search.

    Raises:
        UserError: no query, fewer candidates than the recall of ten needs, or as `Index.search`.
    """
    if not queries:
        raise UserError("there is no query to check with")
    ranks = [k for k in RANKS if candidates is None or k <= candidates]
    if not ranks:
        raise UserError(
            f"candidates={candidates} must be {RANKS[0]} or more: recall is that of the best {RANKS[0]} rows"
        )
    rows, times = [], []
    for index, limit in ((exact, None), (fast, candidates)):
        index.search_all(queries[:1], top=ranks[-1], candidates=limit)  # compiles and reads
        began = time.perf_counter()
        hits = [index.search_all([query], top=ranks[-1], candidates=limit)[0] for query in queries]
        times.append(1000 * (time.perf_counter() - began) / len(queries))
        rows.append([[hit.row for hit in of_query] for of_query in hits])
    recall = {
        k: float(
            np.mean([len({*right[:k]} & {*fast_rows[:k]}) / max(len(right[:k]), 1) for right, fast_rows in zip(*rows)])
        )
        for k in ranks
    }
    return Check(len(queries), recall, *times)


def sampled(index: Index, count: int, seed: int = 0) -> list[Query]:
    """Return queries made of the rows themselves: each some tokens of one row, as of the other side."""
    rng, live = np.random.default_rng(seed), np.flatnonzero(index.features.live)
    rows = rng.choice(live, min(count, len(live)), replace=False) if len(live) else live
    return [index.query(tokens=_sample_of(rng, *index.features.tokens([row]))) for row in rows.tolist()]


def _sample_of(rng, tokens, mask) -> Float[np.ndarray, "t d"]:
    of_row = tokens[0][mask[0]]
    return of_row[rng.choice(len(of_row), min(WORDS, len(of_row)), replace=False)]


def captions(index: Index, count: int, seed: int = 0) -> list[str]:
    """Return captions of rows that have one, drawn at random."""
    column = index.features.column("caption").to_pylist()
    captioned, rng = [n for n in np.flatnonzero(index.features.live) if column[n].strip()], np.random.default_rng(seed)
    rows: list[int] = rng.choice(captioned, min(count, len(captioned)), replace=False).tolist() if captioned else []
    return [column[n] for n in rows]
