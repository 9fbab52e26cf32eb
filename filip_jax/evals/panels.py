"""The pictures on a page of an alignment: what each patch chooses, what each word chooses, and heat maps."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont

from filip_jax.data.decode import Box
from filip_jax.inference.alignment import Alignment

Colour = tuple[int, int, int]
Letters = Callable[[int], ImageFont.FreeTypeFont]  # of so many pixels
INK, PAPER = (33, 33, 33), (255, 255, 255)
FAINT_INK, FAINT_EDGE = (70, 70, 70), (225, 225, 225)  # of numbers on patches
SMALLEST_PATCH = 18  # pixels in which a number of two digits can be read
# Inferno of matplotlib (CC0), in equal steps: its lightness grows evenly, so that equal steps look equal.
INFERNO = np.array(
    [(0, 0, 4), (27, 12, 65), (74, 12, 107), (120, 28, 109), (165, 44, 96), (207, 68, 70), (237, 105, 37),
     (251, 155, 6), (247, 209, 61), (252, 255, 164)]
)  # fmt: skip


def picture_panel(alignment: Alignment, side: int, boxes: Sequence[Box]) -> Image.Image:
    """The view, with what is known of its things as boxes (pixels of the view)."""
    panel = enlarged(alignment.view, side)
    pen, zoom = ImageDraw.Draw(panel), side / len(alignment.view)
    for box in boxes:
        left, top, right, bottom = (edge * zoom for edge in box)
        pen.rectangle([left, top, right, bottom], outline=INK, width=4)
        pen.rectangle([left + 1, top + 1, right - 1, bottom - 1], outline=PAPER, width=2)
    return panel


def patches_panel(
    alignment: Alignment, side: int, words: Int[np.ndarray, "rows columns"], colours: Sequence[Colour], letters: Letters
) -> Image.Image:
    """Each patch with the position of the token it chooses, on the colour of a word.

    Args:
        words: whose colour each patch has, -1 for none; pale where the token is not of that word.
        colours: of the words.
    """
    tint = np.array([*colours, INK], np.uint8)[words]
    own = [np.isin(alignment.chosen_token, pieces) & (words == n) for n, pieces in enumerate(alignment.pieces)]
    own = np.any(own, axis=0)
    mask = np.where(own, 165, np.where(words >= 0, 75, 0)).astype(np.uint8)
    panel = Image.composite(_blocks(tint, side), _grey(alignment.view, side, 0.5, 255), _blocks(mask, side))
    pen, (wide, high) = ImageDraw.Draw(panel), _patch(words.shape, side)
    for row, column in zip(*np.nonzero(words >= 0)):
        _outline(pen, words, row, column, (wide, high), colours[words[row, column]])
    if has_numbers(words.shape, side):
        font = letters(round(min(max(0.42 * min(wide, high), 10), 26)))
        width = 1 if font.size < 16 else 2
        for row, column in np.ndindex(words.shape):
            place, number = ((column + 0.5) * wide, (row + 0.5) * high), str(alignment.chosen_token[row, column])
            ink, edge = (PAPER, colours[words[row, column]]) if own[row, column] else (FAINT_INK, FAINT_EDGE)
            pen.text(place, number, ink, font, anchor="mm", stroke_width=width, stroke_fill=edge)
    return panel


def has_numbers(grid: tuple[int, ...], side: int) -> bool:
    """Return whether patches of a panel are large enough for numbers."""
    return min(_patch(grid, side)) >= SMALLEST_PATCH


def _patch(grid: tuple[int, ...], side: int) -> tuple[float, float]:
    """Return the width and height of a patch of a panel."""
    return side / grid[1], side / grid[0]


def words_panel(
    alignment: Alignment, side: int, colours: Sequence[Colour], names: Sequence[str], letters: Letters
) -> Image.Image:
    """The view with each word at the patch it chooses, where there is room near it."""
    panel = _grey(alignment.view, side, 0.65, 255, colour=0.7)
    pen, patch, font = ImageDraw.Draw(panel), _patch(alignment.chosen.shape, side), letters(16)
    frames = [_best(scores, side) for scores in alignment.similarity]
    chips, taken = [], list(frames)
    for frame, name in zip(frames, names):
        width, height = font.getlength(name) + 12, 24
        chips.append(_free_place(frame, width, height, side, taken))
        taken.append(chips[-1])
    for frame, chip, colour in zip(frames, chips, colours):
        for ink, width in ((PAPER, 5), (colour, 2)):
            x, y = _centre(chip)
            edge = (min(max(x, frame[0]), frame[2]), min(max(y, frame[1]), frame[3]))
            pen.line([edge, (x, y)], fill=ink, width=width)
    for n, (frame, colour) in enumerate(zip(frames, colours)):
        inset = min(4 * frames[:n].count(frame), min(patch) / 2 - 2)  # several words choose this patch
        if inset >= 0:
            _frame(pen, (frame[0] + inset, frame[1] + inset, frame[2] - inset, frame[3] - inset), colour)
    for chip, colour, name in zip(chips, colours, names):
        pen.rounded_rectangle(chip, 6, fill=colour, outline=PAPER)
        pen.text(_centre(chip), name, PAPER, font, anchor="mm")
    return panel


def heat_panel(
    view: np.ndarray, scores: Float[np.ndarray, "rows columns"], side: int, scale: tuple[float, float] | None = None
) -> Image.Image:
    """The view in the colours of one word's similarity, from its least (dark) to its best (bright), which is framed.

    Args:
        scale: the similarities that are dark and bright, instead of the least and the best of this view.
    """
    low, high = scale or (float(scores.min()), float(scores.max()))
    heat = Image.fromarray(((scores - low) / (high - low if high > low else 1)).astype(np.float32))
    heat = np.nan_to_num(np.clip(np.asarray(heat.resize((side, side), Image.Resampling.BICUBIC)), 0, 1))
    panel = Image.blend(_grey(view, side, 0.6, 128), Image.fromarray(inferno(heat)), 0.78)
    _frame(ImageDraw.Draw(panel), _best(scores, side), INK)
    return panel


def inferno(heat: Float[np.ndarray, "h w"]) -> np.ndarray:
    """The colours, uint8 [h, w, 3], of values in 0 to 1."""
    steps = np.linspace(0, 1, len(INFERNO))
    return np.stack([np.interp(heat, steps, channel) for channel in INFERNO.T], axis=-1).round().astype(np.uint8)


def enlarged(view: np.ndarray, side: int) -> Image.Image:
    """The view at this size, its pixels kept apart if they are few."""
    rule = Image.Resampling.NEAREST if 3 * len(view) < side else Image.Resampling.BICUBIC
    return Image.fromarray(view).resize((side, side), rule)


def _best(scores: Float[np.ndarray, "rows columns"], side: int) -> Box:
    """Return the best patch as a box in a panel."""
    (row, column), (wide, high) = divmod(int(scores.argmax()), scores.shape[1]), _patch(scores.shape, side)
    return column * wide, row * high, (column + 1) * wide, (row + 1) * high


def _grey(view: np.ndarray, side: int, strength: float, ground: int, colour: float = 0.0) -> Image.Image:
    """The view without (most of) its colour, on a ground that shines through."""
    picture = enlarged(view, side)
    picture = Image.blend(picture.convert("L").convert("RGB"), picture, colour)
    return Image.blend(Image.new("RGB", picture.size, (ground,) * 3), picture, strength)


def _blocks(of_patch: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(of_patch).resize((side, side), Image.Resampling.NEAREST)


def _outline(pen, chosen: Int[np.ndarray, "rows columns"], row, column, patch, colour) -> None:
    """The edges of a patch at which another word's patches begin."""
    wide, high = patch
    left, top, right, bottom = column * wide, row * high, (column + 1) * wide - 1, (row + 1) * high - 1
    lines = {
        (0, -1): (left, top, left, bottom),
        (0, 1): (right, top, right, bottom),
        (-1, 0): (left, top, right, top),
        (1, 0): (left, bottom, right, bottom),
    }
    for (down, along), line in lines.items():
        r, c = row + down, column + along
        if not (0 <= r < chosen.shape[0] and 0 <= c < chosen.shape[1]) or chosen[r, c] != chosen[row, column]:
            pen.line(line, fill=colour, width=3)


def _frame(pen, box: Box, colour: Colour) -> None:
    """A line in the colour within a white one, so that it is seen on any picture."""
    left, top, right, bottom = box
    pen.rectangle([left - 1, top - 1, right, bottom], outline=PAPER, width=4 if right - left > 12 else 2)
    pen.rectangle([left, top, right - 1, bottom - 1], outline=colour, width=2 if right - left > 12 else 1)


def _free_place(frame: Box, width: float, height: float, side: int, taken: Sequence[Box]) -> Box:
    """Where a word fits: as near to its patch as it may be without covering others; at worst, on its patch."""
    for x, y in _around(_centre(frame), (frame[2] - frame[0]) / 2, height):
        x = min(max(x, width / 2 + 2), side - width / 2 - 2)
        y = min(max(y, height / 2 + 2), side - height / 2 - 2)
        place = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if not any(_meet(place, other) for other in taken):
            return place
    x, y = _centre(frame)
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _around(centre: tuple[float, float], patch: float, height: float) -> Iterator[tuple[float, float]]:
    """Points in growing circles, above and below first."""
    for ring in range(24):
        for turn in sorted(range(24), key=lambda turn: abs(math.cos(2 * math.pi * turn / 24))):
            angle, radius = 2 * math.pi * turn / 24, patch + height * (0.7 + 0.5 * ring)
            yield centre[0] + 1.4 * radius * math.cos(angle), centre[1] + radius * math.sin(angle)


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] + 1 and b[0] < a[2] + 1 and a[1] < b[3] + 1 and b[1] < a[3] + 1


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
