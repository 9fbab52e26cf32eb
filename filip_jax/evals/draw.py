"""An alignment as a page that a person understands at a glance."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from filip_jax.data.decode import Box
from filip_jax.evals.fonts import font_name, sized
from filip_jax.evals.panels import (
    INK,
    PAPER,
    Colour,
    Letters,
    has_numbers,
    heat_panel,
    inferno,
    patches_panel,
    picture_panel,
    words_panel,
)
from filip_jax.inference.alignment import Alignment

PANEL, GAP, TITLE, LINE = 448, 24, 52, 58  # pixels
MAPS = 6  # heat maps in a row; half as many, and larger, if all stand in one row then
WIDTH = 3 * PANEL + 4 * GAP
GREY, PALE = (120, 120, 120), (165, 165, 165)
PALETTE = [
    ImageColor.getrgb(colour)[:3]
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


def draw_alignment(alignment: Alignment, boxes: Sequence[Box] = (), label: int | None = None) -> Image.Image:
    """Draw one page of an alignment.

    It shows the text's tokens with their positions, the picture, the position that each patch chooses (FILIP, section
    4.4), the patch that each word chooses, and each word's similarity with every patch as a heat map.

    Args:
        boxes: in pixels of the view, outlined where they are known.
        label: which of the words is a class name: its patches alone are coloured then.
    """
    letters = partial(sized, font_name(alignment.text))
    of_patches = alignment.chosen
    if label is not None:
        of_patches = np.where(np.isin(alignment.chosen_token, alignment.pieces[label]), label, -1)
    colours = _colours(len(alignment.words), of_patches, label)
    signs = _legend(alignment, letters, WIDTH - 2 * GAP)
    first = GAP + TITLE + (signs[-1].line + 1) * LINE  # where the panels begin
    second = first + TITLE + PANEL + GAP  # and the heat maps
    count = len(alignment.words)
    in_row = MAPS if count > MAPS // 2 else MAPS // 2
    side = (WIDTH - GAP) // in_row - GAP
    page = Image.new("RGB", (WIDTH, second + TITLE + -(-count // in_row) * (side + 66) + GAP), PAPER)
    pen = ImageDraw.Draw(page)

    more = "the tokens as the model reads them, and their positions"
    if alignment.read < len(alignment.text):
        more += "; “…”: the text is cut here, the model's context holds no more of it"
    _title(pen, (GAP, GAP), "text", more, letters)
    for before, sign in zip([None, *signs], signs):
        sign.draw(pen, GAP, GAP + TITLE, before, colours, letters)
    names = _names(alignment, letters)
    panels = (
        picture_panel(alignment, PANEL, boxes),
        patches_panel(alignment, PANEL, of_patches, colours, letters),
        words_panel(alignment, PANEL, colours, names, letters),
    )
    for n, (panel, (title, more)) in enumerate(zip(panels, _titles(of_patches, bool(boxes), label))):
        left = GAP + n * (PANEL + GAP)
        _title(pen, (left, first), title, more, letters)
        page.paste(panel, (left, first + TITLE))

    more = "similarity of each patch, from the word's lowest (dark) to its highest (bright, framed)"
    _title(pen, (GAP, second), "each word: how well every patch matches it", more, letters)
    for n in range(count):
        left, top = GAP + n % in_row * (side + GAP), second + TITLE + n // in_row * (side + 66)
        page.paste(_heat_map(alignment, n, side, colours[n], letters), (left, top))
    return page


def _titles(of_patches: np.ndarray, boxes: bool, label: int | None) -> list[tuple[str, str]]:
    """And what is said below them, of the three panels."""
    numbers = "numbers: positions" if has_numbers(of_patches.shape, PANEL) else "too many for numbers"
    words = "colors: words; pale: another token wins"
    if label is not None:
        words = f"{(of_patches == label).sum()} of {of_patches.size} choose the class name"
    return [
        ("the picture", "framed: the things that the text names" if boxes else "as the model sees it"),
        ("each patch: the token it matches best", f"{numbers}; {words}"),
        (
            "each word: the patch it matches best",
            "framed" + ("; gray: no patch chooses the word" if label is None else ""),
        ),
    ]


def _title(pen, place, title: str, more: str, letters: Letters) -> None:
    pen.text(place, title, INK, letters(19))
    pen.text((place[0], place[1] + 24), more, GREY, letters(14))


def _colours(words: int, of_patches: np.ndarray, label: int | None) -> list[Colour]:
    """Of each word; one that no patch chooses, and that is not the class name, is grey."""
    chosen = [n for n in range(words) if n == label or (of_patches == n).any()]
    return [PALETTE[chosen.index(n) % len(PALETTE)] if n in chosen else GREY for n in range(words)]


def _names(alignment: Alignment, letters: Letters) -> list[str]:
    """What stands for the words where room is scarce: a long one loses its end, many are their positions."""
    if len(alignment.words) > 24:
        return [str(pieces[0]) if len(pieces) == 1 else f"{pieces[0]}-{pieces[-1]}" for pieces in alignment.pieces]
    return [cut(name, PANEL / 3, letters(16)) for name in alignment.names]


def cut(text: str, width: float, font) -> str:
    """The text, or what fits of it."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _heat_map(alignment: Alignment, word: int, side: int, colour: Colour, letters: Letters) -> Image.Image:
    """Of one word: its name, its heat map, and the scale of that."""
    scores = alignment.similarity[word]
    drawn = Image.new("RGB", (side, side + 58), PAPER)
    pen = ImageDraw.Draw(drawn)
    pen.text((0, 11), cut(alignment.names[word], side, letters(18)), colour, letters(18), anchor="lm")
    drawn.paste(heat_panel(alignment.view, scores, side), (0, 24))
    low, high = f"{scores.min():.2f}", f"{scores.max():.2f}"
    pen.text((0, side + 41), low, GREY, letters(13), anchor="lm")
    pen.text((side - 1, side + 41), high, GREY, letters(13), anchor="rm")
    left, right = (round(letters(13).getlength(text)) + 8 for text in (low, high))
    bar = inferno(np.linspace(0, 1, side - left - right)[None].repeat(9, axis=0))
    drawn.paste(Image.fromarray(bar), (left, side + 37))
    return drawn


@dataclass(frozen=True)
class Sign:
    """A token in the legend: its position, or those of the parts of one character, above its text.

    Attributes:
        gap: pixels before it.
        x: where it begins in its line.
        word: index, -1 of none.
    """

    number: str
    text: str
    gap: int
    word: int
    width: float = 0.0
    x: float = 0.0
    line: int = 0

    def draw(self, pen, left: float, top: float, before: "Sign | None", colours: Sequence[Colour], letters: Letters):
        """At these coordinates of the legend's corner; a bar joins it with the sign before, of the same word."""
        x, y = left + self.x, top + self.line * LINE
        colour = colours[self.word] if self.word >= 0 else PALE
        pen.text((x + self.width / 2, y + 8), self.number, GREY, letters(13), anchor="mm")
        pen.text((x + self.width / 2, y + 29), self.text, colour, letters(21), anchor="mm")
        if self.word >= 0:
            joined = before is not None and (before.word, before.line) == (self.word, self.line)
            pen.line([x - self.gap * joined, y + 45, x + self.width, y + 45], fill=colour, width=4)


def _legend(alignment: Alignment, letters: Letters, width: float) -> list[Sign]:
    """The tokens, wrapped at a width."""
    signs, x, line = [], 0.0, 0
    for sign in _signs(alignment):
        wide = max(letters(21).getlength(sign.text), letters(13).getlength(sign.number) + 4) + 2
        if x and x + sign.gap + wide > width:
            x, line = 0.0, line + 1
        x += sign.gap if x else 0
        signs.append(replace(sign, width=wide, x=x, line=line))
        x += wide
    return signs


def _signs(alignment: Alignment) -> Iterator[Sign]:
    """Of the tokens, not yet placed; those that make up one character are one. "…" stands where the text is cut."""
    word_of = {k: n for n, pieces in reversed(list(enumerate(alignment.pieces))) for k in pieces}
    first, before, last = 0, 0, -1
    for k, ((start, end), token) in enumerate(zip(alignment.spans, alignment.tokens)):
        if start == end and alignment.has_bos <= k < len(alignment.spans) - 2:
            continue  # a part of a character
        if k == len(alignment.spans) - 1 and alignment.read < len(alignment.text):
            yield Sign("", "…", 0 if _within_a_word(alignment.text, alignment.read) else 14, -1)
        word = word_of.get(k, -1)
        apart = first <= alignment.has_bos or token == "[EOS]" or alignment.text[before:end][:1].isspace()
        gap = 14 if apart else 0 if word == last else 5
        yield Sign(str(k) if first == k else f"{first}-{k}", token or "·", gap, word)
        first, before, last = k + 1, end, word


def _within_a_word(text: str, place: int) -> bool:
    return re.fullmatch(r"[\w'’-]{2}", text[max(place - 1, 0) : place + 1]) is not None
