"""The raw-pixel nearest neighbour: what looking alike, pixel by pixel, is worth. The honest baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from filip_jax.data.sources import make_source
from filip_jax.errors import UserError
from filip_jax.evals.records import View, check_records, views

SIZE = 48  # pixels of the side to which all pictures are brought
AHEAD = 64  # pictures
NAME = "pixel neighbour"


def read_references(neighbours: Any) -> list[View]:
    """The training records of an evaluation's option `neighbours`, {source, examples}, as seen at SIZE.

    Raises:
        UserError: it is not that, or the records cannot be read.
    """
    if not isinstance(neighbours, Mapping) or neighbours.keys() != {"source", "examples"}:
        raise UserError(f"neighbours={neighbours!r} is not a section of the keys source and examples")
    source = make_source(neighbours["source"], "neighbours.source")
    check_records(source, neighbours["examples"], "neighbours")
    return list(views(source, neighbours["examples"], SIZE, AHEAD))


def pixel_distances(records: Sequence[View], references: Sequence[View]) -> np.ndarray:
    """Squared pixel distances [records, references], per value, of colours in 0 to 1; of views of SIZE pixels."""
    a, b = _pixels(records), _pixels(references)
    return ((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T) / a.shape[1]


def _pixels(records: Sequence[View]) -> np.ndarray:
    return np.stack([record.image.reshape(-1) / np.float32(255) for record in records])
