"""An alignment as a picture that a person understands at a glance."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from filip_jax.evals.alignment import Alignment

LARGE, SMALL, GAP, LINE = 336, 160, 16, 26  # pixels
PER_ROW = 6
INK, PAPER, FAINT = (30, 30, 30), (255, 255, 255), (150, 150, 150)
PALETTE = [
    ImageColor.getrgb(colour)
    for colour in (
        "#e6194b",
        "#0072b2",
        "#2e9e3f",
        "#f58231",
        "#911eb4",
        "#00a6a6",
        "#b58900",
        "#c2185b",
        "#5c6bc0",
        "#6d4c41",
    )
]


def draw_alignment(alignment: Alignment, boxes: Sequence[tuple[float, float, float, float]] = ()) -> Image.Image:
    """One page: the picture, each patch in the colour of the word it chooses, and what each word sees.

    Args:
        boxes: (left, top, right, bottom) in pixels of the view, outlined where they are known.
    """
    rows = -(-len(alignment.words) // PER_ROW)
    width = max(2 * LARGE + 3 * GAP, PER_ROW * (SMALL + GAP) + GAP)
    below = LARGE + 3 * LINE + 3 * GAP
    page = Image.new("RGB", (width, below + rows * (SMALL + LINE + GAP) + LINE), PAPER)
    pen = ImageDraw.Draw(page)

    top = GAP + LINE
    for left, title, picture in (
        (GAP, "picture", _enlarged(alignment.view, LARGE)),
        (LARGE + 2 * GAP, "each patch in the colour of the word it matches best", _claims(alignment)),
    ):
        pen.text((left, GAP), title, INK, _font(16))
        page.paste(picture, (left, top))
    for box in boxes:
        edges = [GAP + box[0] * _zoom(alignment), top + box[1] * _zoom(alignment)]
        edges += [GAP + box[2] * _zoom(alignment), top + box[3] * _zoom(alignment)]
        pen.rectangle(edges, outline=INK, width=4)
        pen.rectangle([edges[0] + 1, edges[1] + 1, edges[2] - 1, edges[3] - 1], outline=PAPER, width=2)
    _write_caption(pen, alignment, GAP, top + LARGE + GAP, width)

    pen.text(
        (GAP, below - LINE), "what each word sees: bright patches match it, the best one is framed", INK, _font(16)
    )
    for n, (start, end) in enumerate(alignment.words):
        left = GAP + n % PER_ROW * (SMALL + GAP)
        top = below + n // PER_ROW * (SMALL + LINE + GAP)
        pen.text((left, top), alignment.text[start:end], _colour(alignment, n), _font(18))
        page.paste(_spotlight(alignment, n), (left, top + LINE))
    return page


def _claims(alignment: Alignment) -> Image.Image:
    picture = _enlarged(alignment.view, LARGE).convert("L").convert("RGB")
    grid = len(alignment.chosen)
    tint, alpha = np.zeros((grid, grid, 3), np.uint8), np.zeros((grid, grid), np.uint8)
    for n in range(len(alignment.words)):
        tint[alignment.chosen == n] = _colour(alignment, n)
        alpha[alignment.chosen == n] = 130
    tint, alpha = (Image.fromarray(a).resize((LARGE, LARGE), Image.Resampling.NEAREST) for a in (tint, alpha))
    return Image.composite(tint, picture, alpha)


def _spotlight(alignment: Alignment, word: int) -> Image.Image:
    scores = alignment.similarity[word]
    grid = len(scores)
    span = scores.max() - scores.min()
    light = (scores - scores.min()) / (span if span > 0 else 1)
    mask = Image.fromarray((255 * (0.12 + 0.88 * light**2)).astype(np.uint8))
    picture = _enlarged(alignment.view, SMALL)
    lit = Image.composite(picture, Image.new("RGB", picture.size), mask.resize(picture.size, Image.Resampling.NEAREST))
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    patch = SMALL / grid
    frame = [column * patch, row * patch, (column + 1) * patch - 1, (row + 1) * patch - 1]
    ImageDraw.Draw(lit).rectangle(frame, outline=_colour(alignment, word), width=3)
    return lit


def _write_caption(pen: ImageDraw.ImageDraw, alignment: Alignment, left: int, top: int, width: int) -> None:
    """The text, each word that some patch chose in its colour, wrapped at the page's width."""
    font, x, y, position = _font(22), left, top, 0
    for n, (start, end) in enumerate(alignment.words):
        for piece, colour in (
            (alignment.text[position:start], FAINT),
            (alignment.text[start:end], _colour(alignment, n)),
        ):
            length = pen.textlength(piece, font)
            if x + length > width - GAP and piece.strip():
                x, y, piece = left, y + LINE, piece.lstrip()
            pen.text((x, y), piece, colour, font)
            x += pen.textlength(piece, font)
        position = end
    pen.text((x, y), alignment.text[position:], FAINT, font)


def _colour(alignment: Alignment, word: int) -> tuple[int, int, int]:
    """The word's colour, faint if no patch chose it; the same word in the text has the same colour."""
    chosen = [n for n in range(len(alignment.words)) if (alignment.chosen == n).any()]
    return PALETTE[chosen.index(word) % len(PALETTE)] if word in chosen else FAINT


def _enlarged(view: np.ndarray, size: int) -> Image.Image:
    rule = Image.Resampling.NEAREST if len(view) < size else Image.Resampling.BICUBIC
    return Image.fromarray(view).resize((size, size), rule)


def _zoom(alignment: Alignment) -> float:
    return LARGE / len(alignment.view)


def _font(size: int):
    return ImageFont.load_default(size)
