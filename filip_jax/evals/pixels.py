"""The raw-pixel nearest neighbour: what looking alike, pixel by pixel, is worth. The honest baseline."""

from collections.abc import Sequence

import numpy as np

from filip_jax.data.record import Record
from filip_jax.evals.records import views

SIZE = 48  # pixels of the side to which all pictures are brought
NAME = "pixel neighbour"


def pixel_distances(records: Sequence[Record], references: Sequence[Record]) -> np.ndarray:
    """Squared pixel distances [records, references], per value, of colours in 0 to 1."""
    a, b = _pixels(records), _pixels(references)
    return ((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T) / a.shape[1]


def _pixels(records: Sequence[Record]) -> np.ndarray:
    return np.stack([view.reshape(-1) / np.float32(255) for view in views(records, SIZE)])
