"""Localisation: do the patches that a phrase matches lie on the thing it names?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float

from filip_jax.data.decode import Box
from filip_jax.data.record import Record, Region
from filip_jax.data.sources import Source
from filip_jax.errors import UserError
from filip_jax.evals.rates import wilson
from filip_jax.evals.records import as_seen, open_picture, prepared, seen_regions
from filip_jax.inference import Embedder
from filip_jax.inference.alignment import Span, align
from filip_jax.progress import Progress

T = TypeVar("T")

RECORDS = 256  # that are held at a time, and so many ahead
SIDE = 1024  # pixels of the view that chance is of; boxes are known to a pixel, and no model says how large its own is
HALF = (0.5,)  # between the darkest and the brightest patch, whatever level a model's similarities have


def evaluate(model: Embedder, source: Source, output: Path, *, examples: int, thresholds: Any = HALF) -> dict:
    """How well the similarity maps of phrases fall on the boxes of the things they name.

    A phrase with several boxes has them all. Boxes are cut at the edges of the centre view; phrases that have none
    in it, or that lie beyond the context, are left out and counted.

    Args:
        thresholds: one or more numbers; a patch is lit if its similarity, scaled from the phrase's least (0) to its best (1), is at
            least this.

    Returns:
        pointing_accuracy: the share of phrases whose best patch has its centre in a box, with the bounds _low and
        _high of its 95 % interval; iou@0.5 …: the mean over the phrases of the area common to lit patches and
        boxes by the area of either.
    """
    _check(thresholds)
    hits, ious, left_out, progress = 0, [], 0, Progress("localising", examples)
    for records in _chunks(source, examples, partial(as_seen, size=model.image_size, framing=model.framing)):
        boxes = [_boxes_of_phrases(record.regions, model.image_size) for record in records]
        phrases, captions = [list(of_record) for of_record in boxes], [record.caption for record in records]
        for here, alignment in zip(boxes, align(model, [record.image for record in records], captions, phrases)):
            seen = {word: here[word] for word in alignment.words if here[word]}
            left_out += len(here) - len(seen)
            for word, scores in zip(alignment.words, alignment.similarity):
                if word in seen:
                    hits += _points_into(seen[word], scores, model.image_size)
                    ious.append([iou(lit(scores, least), seen[word], model.image_size) for least in thresholds])
        progress.advance(len(records))
    if not ious:
        raise UserError("localisation: no phrase of these records has a box in the centre view")
    low, high = wilson(hits, len(ious))
    pointing = {"pointing_accuracy": hits / len(ious), "pointing_accuracy_low": low, "pointing_accuracy_high": high}
    means = zip(thresholds, np.mean(ious, axis=0))
    areas = {f"iou@{least:g}": float(mean) for least, mean in means}
    return pointing | areas | {"phrases": len(ious), "phrases_left_out": left_out}


def baselines(source: Source, *, examples: int, thresholds: Any = HALF) -> dict[str, dict]:
    """Chance: the mean share of the picture that a phrase's boxes cover.

    So often a patch taken at random points into them, and this is the IoU of a map that lights the whole picture;
    one that lights patches at random has less.
    """
    _check(thresholds)
    everything = np.ones((1, 1), bool)
    shares = [
        iou(everything, boxes, SIDE)
        for chunk in _chunks(source, examples, lambda record: seen_regions(record, open_picture(record), SIDE))
        for regions in chunk
        for boxes in _boxes_of_phrases(regions, SIDE).values()
        if boxes
    ]
    names = ["pointing_accuracy", *(f"iou@{least:g}" for least in thresholds)]
    return {"chance": dict.fromkeys(names, float(np.mean(shares)))} if shares else {}


def lit(scores: Float[np.ndarray, "rows columns"], least: float) -> Bool[np.ndarray, "rows columns"]:
    """The patches whose similarity, scaled from the least (0) to the best (1), is at least this; none of a flat map."""
    span = scores.max() - scores.min()
    return scores - scores.min() >= least * span if span > 0 else np.zeros(scores.shape, bool)


def iou(cells: Bool[np.ndarray, "rows columns"], boxes: Sequence[Box], size: float) -> float:
    """The area in both the cells and the boxes, by the area in either; exact, for boxes that overlap too.

    Args:
        cells: of a square view, row by row.
        boxes: in pixels of the view, within it.
        size: pixels of the view's side.
    """
    edges = np.array(boxes)
    counts = cells.shape[::-1]  # along x and y
    lines = [np.linspace(0, size, count + 1) for count in counts]
    x, y = (np.unique(np.concatenate([lines[n], edges[:, n], edges[:, n + 2]])) for n in (0, 1))
    area = np.outer(np.diff(y), np.diff(x))
    x, y = (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2  # the centres of rectangles that no line cuts
    column, row = (np.minimum(line * n / size, n - 1).astype(int) for line, n in zip((x, y), counts))
    of_cells = cells[np.ix_(row, column)]
    of_boxes = np.zeros(area.shape, bool)
    for left, top, right, bottom in boxes:
        of_boxes |= np.outer((top < y) & (y < bottom), (left < x) & (x < right))
    return float(area[of_cells & of_boxes].sum() / area[of_cells | of_boxes].sum())


def _boxes_of_phrases(regions: Sequence[Region], size: int) -> Mapping[Span, list[Box]]:
    """The boxes of each phrase as far as they lie in the centre view."""
    found: dict[Span, list[Box]] = {}
    for region in regions:
        left, top, right, bottom = (float(np.clip(edge, 0, size)) for edge in region.box)
        inside = [(left, top, right, bottom)] if left < right and top < bottom else []
        found.setdefault((region.start, region.end), []).extend(inside)
    return found


def _points_into(boxes: Sequence[Box], scores: np.ndarray, size: int) -> bool:
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    x, y = (column + 0.5) * size / scores.shape[1], (row + 0.5) * size / scores.shape[0]
    inside = any(left <= x < right and top <= y < bottom for left, top, right, bottom in boxes)
    return inside and not np.isnan(scores).any()


def _chunks(source: Source, examples: int, prepare: Callable[[Record], T]) -> Iterator[list[T]]:
    """The first records, prepared, of which so many as are held at a time; those without regions are left out."""
    some, of_regions = False, lambda record: prepare(record) if record.regions else None
    with closing(prepared(source, examples, of_regions, RECORDS)) as found:
        for _ in range(0, examples, RECORDS):
            chunk = [each for each in islice(found, RECORDS) if each is not None]
            if chunk:
                some = True
                yield chunk
    if not some:
        raise UserError("localisation needs a source whose records have regions")


def _check(thresholds: Any) -> None:
    numbers = thresholds if isinstance(thresholds, (list, tuple)) else ()
    if not numbers or not all(isinstance(least, (int, float)) and 0 < least <= 1 for least in numbers):
        raise UserError(f"localisation.thresholds={thresholds!r} must be a list of numbers above 0, at most 1")
