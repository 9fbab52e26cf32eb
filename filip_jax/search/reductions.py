"""Fewer tokens of an image, each way an exact change of what is searched, and what it costs in recall on a sample of pairs.

Of an image with fewer tokens the similarities are the definition's over those that are left. A reduction is recorded with
the features; all rows of a folder went through the same ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int16

from filip_jax.errors import UserError
from filip_jax.features import Manifest
from filip_jax.features.manifest import DTYPES
from filip_jax.features.reader import dequantized
from filip_jax.features.writer import quantized, unit
from filip_jax.inference.ranking import TIE
from filip_jax.small_files import is_number

MAX_WORDS = 4096  # tokens of a sample of texts by which others are chosen
RANKS = (1, 5, 10)
NEIGHBORS, SELECT, UNCHOSEN = "neighbors", "select", "unchosen"
NUMBERS = {NEIGHBORS: ("size", 2, 2, 16), SELECT: ("keep", 0.25, 0.01, 1.0)}  # of each its option, default and bounds
BY_WORDS = (SELECT, UNCHOSEN)

Tokens = tuple[Float[np.ndarray, "n q d"], Bool[np.ndarray, "n q"], Int16[np.ndarray, "n q"]]


def parse(text: str) -> dict[str, Any]:
    """Return the reduction that NAME or NAME:NUMBER names, as a manifest notes it, without its losses.

    Raises:
        UserError: there is no such reduction, or its number is out of range.
    """
    name, colon, number = text.partition(":")
    if name not in REDUCTIONS:
        raise UserError(f"--reduce={text}: it is none of {', '.join(REDUCTIONS)}")
    if name not in NUMBERS:
        if colon:
            raise UserError(f"--reduce={text}: {name} takes no number")
        return {"name": name, "options": {}, "losses": {}}
    option, default, least, most = NUMBERS[name]
    try:
        value = type(default)(number) if colon else default
    except ValueError as error:
        raise UserError(f"--reduce={text}: {number!r} is no number") from error
    if not least <= value <= most:
        raise UserError(f"--reduce={text}: {option} must be from {least} to {most}")
    return {"name": name, "options": {option: value}, "losses": {}}


def check_order(reductions: Sequence[Mapping[str, Any]], grid: tuple[int, int] | None) -> None:
    """Raise a UserError for reductions that cannot follow each other, or of tokens without a grid."""
    names = [each["name"] for each in reductions]
    if names and grid is None:
        raise UserError(f"--reduce={names[0]}: only tokens of images are reduced, of a model with pooling 'tokens'")
    if len(set(names)) < len(names) or NEIGHBORS in names[1:]:
        raise UserError(f"--reduce: {', '.join(names)}: each once, and {NEIGHBORS} first")
    for each in reductions:
        check_options(each)


def check_options(reduction: Mapping[str, Any]) -> None:
    """Raise a UserError if the options of a reduction are none that `parse` gives; others may have written them."""
    name, options = reduction["name"], reduction["options"]
    option, default, least, most = NUMBERS.get(name, ("", None, 0, 0))
    value = options.get(option)
    is_sound = not option or (is_number(value) and least <= value <= most and isinstance(value, int | type(default)))
    is_known = name in REDUCTIONS or name in DTYPES
    if options.keys() != ({option} if option else set()) or not is_sound or not is_known:
        raise UserError(f"a reduction {name:.100} with {options!r:.100} is none of filip embed")


def reduced(
    tokens: Float[np.ndarray, "n p d"],
    reductions: Sequence[Mapping[str, Any]],
    grid: tuple[int, int],
    words: Float[np.ndarray, "w d"],
) -> Tokens:
    """Return what is left of the tokens of images: (tokens, mask, positions).

    Args:
        tokens: L2-normalized; the grid's, row by row, behind a pooled one if there is one.
        reductions: as the manifest notes them, in order; names of no reduction, such as the type of numbers, do nothing.
        words: tokens of a sample of texts, by which some reductions choose.
    """
    left = tokens, np.ones(tokens.shape[:2], bool), positions_of(tokens.shape, grid)
    for each in reductions:
        if each["name"] in REDUCTIONS:
            left = REDUCTIONS[each["name"]](*left, grid=grid, words=words, **each["options"])
    return left


def positions_of(shape: Sequence[int], grid: tuple[int, int] | None) -> Int16[np.ndarray, "n p"]:
    """Return the place in the grid of each token, -1 of one before them."""
    n, p = shape[:2]
    places = np.arange(p) - (p - grid[0] * grid[1]) if grid and p >= grid[0] * grid[1] else np.full(p, -1)
    return np.broadcast_to(np.maximum(places, -1).astype(np.int16), (n, p))


def neighbors(tokens, mask, positions, *, grid, words, size: int) -> Tokens:
    """Return the mean of each square of size x size neighbors, L2-normalized, at the place of its first; a pooled token stays."""
    (rows, columns), (n, p, _) = grid, tokens.shape
    first = p - rows * columns
    squares = [-(-side // size) for side in grid]
    squares_of = (np.arange(rows)[:, None] // size * squares[1] + np.arange(columns) // size).reshape(-1)
    members = (np.arange(squares[0] * squares[1])[:, None] == squares_of).astype(np.float32)
    corners = (np.arange(squares[0])[:, None] * size * columns + np.arange(squares[1]) * size).reshape(-1)
    means = np.concatenate([tokens[:, :first], unit(members @ tokens[:, first:])], axis=1)
    at = np.concatenate([positions[:, :first], np.broadcast_to(corners, (n, len(corners)))], axis=1)
    return means, np.ones(means.shape[:2], bool), at.astype(np.int16)


def select(tokens, mask, positions, *, grid, words, keep: float) -> Tokens:
    """Return the tokens whose best similarity with any word of the sample is highest (FILIP, section 3.1)."""
    best = np.where(mask, (tokens @ words.T).max(axis=2), -np.inf)
    counts = np.maximum((mask.sum(axis=1) * keep + 1e-6).astype(int), 1)  # of those that are left
    order = np.argsort(-best, axis=1, kind="stable")
    chosen = np.zeros(mask.shape, bool)
    np.put_along_axis(chosen, order, np.arange(mask.shape[1]) < counts[:, None], axis=1)
    kept = np.argsort(~chosen, axis=1, kind="stable")[:, : counts.max()]  # in their old order
    return (
        np.take_along_axis(tokens, kept[..., None], axis=1),
        np.take_along_axis(chosen, kept, axis=1),
        np.take_along_axis(positions, kept, axis=1),
    )


def unchosen(tokens, mask, positions, *, grid, words) -> Tokens:
    """Return the tokens that are the best match of some word of the sample."""
    similarity = np.where(mask[..., None], tokens @ words.T, -np.inf)
    chosen = np.zeros(mask.shape, bool)
    np.put_along_axis(chosen, similarity.argmax(axis=1), True, axis=1)
    return tokens, mask & chosen, positions


REDUCTIONS: dict[str, Callable[..., Tokens]] = {NEIGHBORS: neighbors, SELECT: select, UNCHOSEN: unchosen}


def token_map(positions: Int16[np.ndarray, " p"], manifest: Manifest) -> Int[np.ndarray, "rows columns"]:
    """Return for each place of the grid which of a row's tokens stands for it, -1 where none does.

    A mean of neighbors stands for all of them.
    """
    if manifest.grid is None:
        raise UserError("tokens of texts have no places in a grid")
    rows, columns = manifest.grid
    size = next((each["options"]["size"] for each in manifest.reductions if each["name"] == NEIGHBORS), 1)
    tokens = np.full((rows, columns), -1)
    for token, place in enumerate(np.asarray(positions, int)):
        if 0 <= place < rows * columns:
            row, column = divmod(int(place), columns)
            tokens[row : row + size, column : column + size] = token
    return tokens


def as_stored(tokens: Float[np.ndarray, "n p d"], dtype: str) -> Float[np.ndarray, "n p d"]:
    """Return the tokens as float32, as they are read back from the type that is stored."""
    if dtype == "int8":
        stored, scales = quantized(tokens.reshape(-1, tokens.shape[-1]))
        return dequantized(stored.reshape(tokens.shape), scales.reshape(tokens.shape[:2]))
    return tokens.astype(dtype).astype(np.float32)


def recalls(images: Sequence[Float[np.ndarray, "_ d"]], texts: Sequence[Float[np.ndarray, "_ d"]]) -> dict[str, float]:
    """Return R@1, R@5 and R@10 both ways, of image n with text n, each its tokens; ties count against them."""
    starts = np.cumsum([0, *(len(text) for text in texts[:-1])])
    lengths, flat = np.array([len(text) for text in texts]), np.concatenate(texts)
    image_to_text, text_to_image = (np.empty((len(images), len(texts)), np.float32) for _ in range(2))
    for n, image in enumerate(images):
        similarity = image @ flat.T
        text_to_image[n] = np.add.reduceat(similarity.max(axis=0), starts) / lengths
        image_to_text[n] = np.maximum.reduceat(similarity, starts, axis=1).mean(axis=0)
    recall: dict[str, float] = {}
    for way, scores in (("image_to_text", image_to_text), ("text_to_image", text_to_image.T)):
        ranks = (scores >= np.diag(scores)[:, None] - TIE).sum(axis=1)
        recall |= {f"{way}_R@{k}": float((ranks <= k).mean()) for k in RANKS}
    return recall


def losses(
    images: Float[np.ndarray, "n p d"],
    texts: Sequence[Float[np.ndarray, "_ d"]],
    manifest: Manifest,
    words: Float[np.ndarray, "w d"],
) -> list[dict[str, Any]]:
    """Return the reductions of a manifest with what recall falls by after each and all before it, of a sample of pairs."""
    whole, measured = recalls(list(images), texts), []
    for n, each in enumerate(manifest.reductions):
        left, mask, words_left = images, np.ones(images.shape[:2], bool), texts
        if manifest.grid is not None:
            left, mask, _ = reduced(images, manifest.reductions[: n + 1], manifest.grid, words)
        if each["name"] == manifest.dtype and manifest.side == "image":
            left = as_stored(left, manifest.dtype)
        elif each["name"] == manifest.dtype:
            words_left = [as_stored(text[None], manifest.dtype)[0] for text in texts]
        now = recalls([tokens[kept] for tokens, kept in zip(left, mask)], words_left)
        fall = {name: round(whole[name] - now[name], 6) for name in whole}
        measured.append({**each, "losses": fall | {"pairs": len(texts)}})
    return measured


def changes(losses: Mapping[str, Any]) -> str:
    """Return the losses of a reduction in words: the change of each recall, below 0 where it falls."""
    if not losses.get("pairs"):
        return "its loss of recall is not measured"
    ways = []
    for way in ("image_to_text", "text_to_image"):
        of_way = ", ".join(f"R@{k} {0 - float(losses.get(f'{way}_R@{k}', 0)):+.4f}" for k in RANKS)
        ways.append(f"{way} {of_way}")
    return f"recall changes by {'; '.join(ways)}, measured on {losses['pairs']} pairs"


def words_of(tokens: Float[np.ndarray, "n t d"], mask: Bool[np.ndarray, "n t"]) -> Float[np.ndarray, "w d"]:
    """Return at most MAX_WORDS tokens of texts, evenly spread."""
    words = tokens[mask]
    return words[np.linspace(0, len(words) - 1, min(len(words), MAX_WORDS)).astype(int)]
