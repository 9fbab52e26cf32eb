"""The marks by which an engine tells of which features its rows are copies."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from filip_jax.errors import UserError
from filip_jax.features import Features

MARK = 16  # digits of a part's hash


def marks(features: Features, rows: Int[np.ndarray, " n"]) -> list[str]:
    """Return for each row the beginning of the hash of its part: rows of other features have other marks."""
    parts = np.array([part.sha256[:MARK] for part in features.manifest.parts], dtype=f"<U{MARK}")
    return parts[np.searchsorted(features.ends, rows, side="right")].tolist() if len(rows) else []


def held_rows(
    features: Features, rows: Int[np.ndarray, " n"], parts: Sequence[str]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Return the rows of features that an engine holds, in order, and how often it holds each.

    Args:
        rows, parts: as `Engine.held` gives them.

    Raises:
        UserError: one of them is not of these features. Rows beyond them were added after the features were opened.
    """
    known = rows < len(features)
    rows, parts = rows[known], [part for part, is_known in zip(parts, known) if is_known]
    if (rows < 0).any() or marks(features, rows) != parts:
        raise UserError(
            f"the engine holds rows of other features than {features.folder}: name another place for it, or remove what lies "
            "there and run filip index build"
        )
    return np.unique(rows, return_counts=True)


def batches(
    features: Features, rows: Int[np.ndarray, " n"], size: int
) -> Iterator[tuple[Int[np.ndarray, " m"], list[Float[np.ndarray, "_ d"]]]]:
    """Yield (rows, the tokens of each), so many rows at a time."""
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        tokens, mask = features.tokens(batch)
        yield batch, [each[present] for each, present in zip(tokens, mask)]
