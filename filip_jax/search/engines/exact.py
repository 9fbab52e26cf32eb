"""The features themselves, without an engine: candidates are the rows of the nearest pooled vectors."""

import numpy as np
from jaxtyping import Float, Int

from filip_jax.features import Features
from filip_jax.features.writer import unit
from filip_jax.search.engines.parts import marks
from filip_jax.search.filters import Filter, allowed_rows


class Exact:
    """See `Engine`; it holds what the features hold, and takes nothing."""

    candidates: int | None = None

    def __init__(self, features: Features):
        self.features = features

    def held(self) -> tuple[Int[np.ndarray, " n"], list[str]]:
        rows = np.flatnonzero(self.features.live)
        return rows, marks(self.features, rows)

    def add(self, rows: Int[np.ndarray, " n"]) -> None:
        """Do nothing: all rows are there."""

    def delete(self, rows: Int[np.ndarray, " n"]) -> None:
        """Do nothing: removed rows are marked in the features."""

    def finish(self) -> None:
        """Do nothing."""

    def search(self, tokens: Float[np.ndarray, "t d"], k: int, where: Filter | None) -> Int[np.ndarray, " n"]:
        """Return the k rows whose pooled vector is nearest to the mean of the query's tokens."""
        allowed = allowed_rows(self.features, where)
        query = unit(tokens.mean(axis=0))
        scores = [
            chunk.flatten().to_numpy().reshape(-1, len(query)) @ query
            for chunk in self.features.column("pooled").chunks
        ]
        nearness = np.where(allowed, np.concatenate([*scores, np.zeros(0, np.float32)]), -np.inf)
        order = np.argsort(-nearness, kind="stable")[:k]
        return order[nearness[order] > -np.inf]

    def get(self, rows: Int[np.ndarray, " n"]) -> list[Float[np.ndarray, "_ d"]]:
        tokens, mask = self.features.tokens(rows)
        return [each[present] for each, present in zip(tokens, mask)]


def open_exact(features: Features) -> Exact:
    """Return the features as an engine."""
    return Exact(features)
