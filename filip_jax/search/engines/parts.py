"""The marks by which an engine tells of which features its rows are copies."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from filip_jax.features import Features

MARK = 16  # digits of a part's hash


def marks(features: Features, rows: Int[np.ndarray, " n"]) -> list[str]:
    """Return for each row the beginning of the hash of its part: rows of other features have other marks."""
    parts = np.array([part.sha256[:MARK] for part in features.manifest.parts], dtype=f"<U{MARK}")
    return parts[np.searchsorted(features.ends, rows, side="right")].tolist() if len(rows) else []


def batches(
    features: Features, rows: Int[np.ndarray, " n"], size: int
) -> Iterator[tuple[Int[np.ndarray, " m"], list[Float[np.ndarray, "_ d"]]]]:
    """Yield (rows, the tokens of each), so many rows at a time."""
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        tokens, mask = features.tokens(batch)
        yield batch, [each[present] for each, present in zip(tokens, mask)]
