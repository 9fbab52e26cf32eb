"""A contact sheet of hits: each picture, and beside it where each word of the text is found in it."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from filip_jax.evals.draw import cut
from filip_jax.evals.fonts import font_name, sized
from filip_jax.evals.panels import INK, PAPER, enlarged, heat_panel
from filip_jax.features import Features
from filip_jax.inference import Embedder
from filip_jax.search.explain import explain
from filip_jax.search.index import Hit

SIDE, GAP, LINE = 176, 12, 24  # pixels
HEAD = 2 * GAP + 3 * LINE  # of the text, its words and their scales
MAX_WORDS, MAX_HITS = 8, 50  # on a sheet
GREY = (120, 120, 120)


def draw_sheet(
    model: Embedder,
    text: str,
    features: Features,
    hits: Sequence[Hit],
    view_of: Callable[[int], UInt8[np.ndarray, "size size 3"] | None],
) -> Image.Image:
    """Return the sheet of the first MAX_HITS hits: a row each, the view, and a heat map for each of MAX_WORDS words.

    The maps of a word are on one scale, which stands below it, so that those of several hits can be compared.

    Args:
        view_of: gives the square view that the model saw of a row, None of a picture that cannot be read.

    Raises:
        UserError: hits without patches, see `explain`.
    """
    hits = hits[:MAX_HITS]
    explained = explain(model, text, features, [hit.row for hit in hits]) if hits else []
    words = explained[0].words[:MAX_WORDS] if explained else []
    letters = partial(sized, font_name(text + "".join(hit.key for hit in hits)))
    width = max((len(words) + 1) * (SIDE + GAP) + GAP, 3 * (SIDE + GAP) + GAP)
    page = Image.new("RGB", (width, HEAD + len(hits) * (SIDE + LINE + GAP)), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((GAP, GAP), cut(text, width - 2 * GAP, letters(18)), INK, letters(18))
    maps = [np.stack([_filled(each.similarity[k]) for each in explained]) for k in range(len(words))]
    scales = [(float(of_word.min()), float(of_word.max())) for of_word in maps]
    for n, (word, (low, high)) in enumerate(zip(words, scales), 1):
        left, top = GAP + n * (SIDE + GAP), 2 * GAP + LINE
        pen.text((left, top), cut(word, SIDE, letters(16)), INK, letters(16))
        pen.text((left, top + LINE), f"dark {low:.2f}, bright {high:.2f}", GREY, letters(13))
    for n, hit in enumerate(hits):
        top = HEAD + n * (SIDE + LINE + GAP)
        view = view_of(hit.row)
        grey = view if view is not None else np.full((SIDE, SIDE, 3), 200, np.uint8)
        page.paste(enlarged(grey, SIDE), (GAP, top))
        for k in range(len(words)):
            page.paste(heat_panel(grey, maps[k][n], SIDE, scales[k]), (GAP + (k + 1) * (SIDE + GAP), top))
        lost = "" if view is not None else "; the picture cannot be read"
        label = f"{n + 1}. {hit.score:.3f}  {hit.key}{lost}"
        pen.text((GAP, top + SIDE + 3), cut(label, width - 2 * GAP, letters(14)), GREY, letters(14))
    return page


def _filled(scores: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
    """Return a map in which a patch without a token is as cold as the coldest."""
    if np.isnan(scores).all():
        return np.zeros_like(scores)
    return np.where(np.isnan(scores), np.nanmin(scores), scores)
