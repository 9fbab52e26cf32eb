"""Localisation: does the patch that a phrase matches best lie on the thing it names?"""

from pathlib import Path

import numpy as np

from filip_jax.data.decode import decode
from filip_jax.data.preprocess import box_in_centre_view
from filip_jax.data.record import Record
from filip_jax.data.sources import Source
from filip_jax.errors import UserError
from filip_jax.evals.alignment import align
from filip_jax.evals.records import first_records, views
from filip_jax.inference import Embedder


def evaluate(model: Embedder, source: Source, output: Path, *, examples: int) -> dict:
    """Pointing accuracy: the share of phrases whose best patch has its centre in the phrase's box."""
    records = _with_regions(source, examples)
    phrases = [[(region.start, region.end) for region in record.regions] for record in records]
    hits = []
    for record, alignment in zip(
        records, align(model, list(views(records, model.image_size)), [r.caption for r in records], phrases)
    ):
        boxes = {
            (region.start, region.end): box for region, box in zip(record.regions, view_boxes(record, model.image_size))
        }
        for word, scores in zip(alignment.words, alignment.similarity):
            hits.append(_points_into(boxes[word], scores, model.image_size))
    return {"pointing_accuracy": float(np.mean(hits)), "phrases": len(hits)}


def baselines(source: Source, *, examples: int) -> dict[str, dict]:
    """Chance: the mean share of the picture that a phrase's box covers."""
    shares = []
    for record in _with_regions(source, examples):
        for left, top, right, bottom in view_boxes(record, size=1):
            width, height = (min(b, 1) - max(a, 0) for a, b in ((left, right), (top, bottom)))
            shares.append(max(width, 0) * max(height, 0))
    return {"chance": {"pointing_accuracy": float(np.mean(shares))}}


def view_boxes(record: Record, size: int) -> list[tuple[float, float, float, float]]:
    """The boxes of a record's regions in pixels of its centre view of this size."""
    shape = decode(record.image).size
    return [box_in_centre_view(region.box, shape, size) for region in record.regions]


def _points_into(box, scores: np.ndarray, size: int) -> bool:
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    patch = size / len(scores)
    x, y = (column + 0.5) * patch, (row + 0.5) * patch
    left, top, right, bottom = box
    return bool(left <= x < right and top <= y < bottom)


def _with_regions(source: Source, examples: int) -> list[Record]:
    records = list(first_records(source, examples))
    if not any(record.regions for record in records):
        raise UserError("localisation needs a source whose records have regions")
    return records
