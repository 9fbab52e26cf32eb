"""The raw-pixel nearest neighbour: what looking alike, pixel by pixel, is worth. The honest baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from filip_jax.data.record import Record
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError
from filip_jax.evals.records import check_records, first_records, views

SIZE = 48  # pixels of the side to which all pictures are brought
NAME = "pixel neighbour"


def read_references(neighbours: Any) -> list[Record]:
    """The training records of an evaluation's option `neighbours`, {source, examples}.

    Raises:
        UserError: it is not that, or the records can not be read.
    """
    if not isinstance(neighbours, Mapping) or neighbours.keys() != {"source", "examples"}:
        raise UserError(f"neighbours={neighbours!r} is not a section of the keys source and examples")
    source = make_source(neighbours["source"], "neighbours.source")
    check_records(source, neighbours["examples"], "neighbours")
    return list(first_records(source, neighbours["examples"]))


def pixel_distances(records: Sequence[Record], references: Sequence[Record]) -> np.ndarray:
    """Squared pixel distances [records, references], per value, of colours in 0 to 1."""
    a, b = _pixels(records), _pixels(references)
    return ((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T) / a.shape[1]


def _pixels(records: Sequence[Record]) -> np.ndarray:
    return np.stack([view.reshape(-1) / np.float32(255) for view in views(records, SIZE)])
