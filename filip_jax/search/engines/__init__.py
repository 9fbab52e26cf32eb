"""Engines: what finds the rows worth an exact look where a collection is too large to compare each row with a query.

A new engine is one file and one line in `ENGINES`. It keeps `Engine`.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from filip_jax.features import Features
from filip_jax.search.engines.exact import open_exact
from filip_jax.search.engines.lance import open_lance
from filip_jax.search.engines.qdrant import open_qdrant
from filip_jax.search.filters import Filter
from filip_jax.sections import call, choose


@runtime_checkable
class Engine(Protocol):
    """A copy of the rows of features, or a way to them, that finds candidates for a query. Calls come one at a time.

    Attributes:
        candidates: how many rows are worth an exact look where a search does not say; None: all of them.
    """

    candidates: int | None

    def held(self) -> tuple[Int[np.ndarray, " n"], list[str]]:
        """Return the rows that it holds, and of each the mark of the part that it came from, see `marks`."""

    def add(self, rows: Int[np.ndarray, " n"]) -> None:
        """Take up rows of the features; they are in it when this returns."""

    def delete(self, rows: Int[np.ndarray, " n"]) -> None:
        """Forget rows."""

    def finish(self) -> None:
        """Make the next searches fast: called after rows were added or deleted."""

    def search(self, tokens: Float[np.ndarray, "t d"], k: int, where: Filter | None) -> Int[np.ndarray, " n"]:
        """Return at most about k rows that the filter holds for, which are worth an exact look, the likeliest first."""

    def get(self, rows: Int[np.ndarray, " n"]) -> list[Float[np.ndarray, "_ d"]]:
        """Return the tokens of rows, as the engine has them."""


# Each function takes the features and its options, by name.
ENGINES: dict[str, Callable[..., Engine]] = {"exact": open_exact, "lance": open_lance, "qdrant": open_qdrant}


def open_engine(features: Features, name: str, **options: object) -> Engine:
    """Return an engine of features.

    Raises:
        UserError: there is no such engine or option, its package is not installed, or it cannot be reached.
    """
    return call(choose(ENGINES, name, "engine"), options, f"engine {name}", features=features)
