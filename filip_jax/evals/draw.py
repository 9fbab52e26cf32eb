"""An alignment as a picture that a person understands at a glance."""

import re
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
    top = GAP + LINE
    caption = _caption(alignment, width - 2 * GAP)
    below = top + LARGE + GAP + LINE * (2 + max((line for line, *_ in caption), default=0)) + GAP
    page = Image.new("RGB", (width, below + rows * (SMALL + LINE + GAP) + LINE), PAPER)
    pen = ImageDraw.Draw(page)

    for left, title, picture in (
        (GAP, "picture", _enlarged(alignment.view, LARGE)),
        (LARGE + 2 * GAP, "each patch in the colour of the word below that it matches best", _claims(alignment)),
    ):
        pen.text((left, GAP), title, INK, _font(16))
        page.paste(picture, (left, top))
    for box in boxes:
        edges = [GAP + box[0] * _zoom(alignment), top + box[1] * _zoom(alignment)]
        edges += [GAP + box[2] * _zoom(alignment), top + box[3] * _zoom(alignment)]
        pen.rectangle(edges, outline=INK, width=4)
        pen.rectangle([edges[0] + 1, edges[1] + 1, edges[2] - 1, edges[3] - 1], outline=PAPER, width=2)
    for line, x, piece, colour in caption:
        pen.text((GAP + x, top + LARGE + GAP + line * LINE), piece, colour, _font(22))

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


def _caption(alignment: Alignment, width: float) -> list[tuple[int, float, str, tuple[int, int, int]]]:
    """(line, x, piece, colour) of the text up to where the model stopped reading, wrapped at a width.

    Each word that some patch chose has its colour.
    """
    font, pieces, position = _font(22), [], 0
    for n, (start, end) in enumerate(alignment.words):
        pieces += [(piece, FAINT) for piece in re.findall(r"\s*\S+|\s+", alignment.text[position:start])]
        pieces.append((alignment.text[start:end], _colour(alignment, n)))
        position = end
    pieces += [(piece, FAINT) for piece in re.findall(r"\s*\S+|\s+", alignment.text[position : alignment.read])]
    if alignment.read < len(alignment.text):
        pieces.append((" … (not read: longer than the context)", INK))
    line, x, placed = 0, 0.0, []
    for piece, colour in pieces:
        if x and x + font.getlength(piece) > width:
            line, x, piece = line + 1, 0.0, piece.lstrip()
        placed.append((line, x, piece, colour))
        x += font.getlength(piece)
    return placed


def missing_glyphs(text: str) -> str:
    """The characters of a text that the pages can not show."""
    font = _font(22)
    unknown = bytes(font.getmask("\uffff"))
    return "".join(sorted({c for c in text if not c.isspace() and bytes(font.getmask(c)) == unknown}))


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
