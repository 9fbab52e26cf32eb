"""Why a row was found: which of its patches each word of the text matches, from the stored tokens, without the picture."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from filip_jax.errors import UserError
from filip_jax.features import Features
from filip_jax.features.reader import Numbers
from filip_jax.inference import Embedder
from filip_jax.inference.alignment import Span, words_with_pieces
from filip_jax.search.reductions import token_map


@dataclass(frozen=True)
class Explanation:
    """The similarities of the words of a text with the patches of one image.

    Attributes:
        row: the image's.
        spans: of each word the characters text[start:end].
        words: what the model reads of each.
        similarity: of each word with each patch, the mean over the word's tokens; NaN where no token of the image is stored.
            A mean of neighbors counts for each of them.
    """

    row: int
    spans: list[Span]
    words: list[str]
    similarity: Float[np.ndarray, "words rows columns"]

    def best_patch(self, word: int) -> tuple[int, int] | None:
        """Return (row, column) of the patch that a word matches best, None where the image has none."""
        scores = self.similarity[word]
        if np.isnan(scores).all():
            return None
        row, column = divmod(int(np.nanargmax(scores)), scores.shape[1])
        return row, column


def explain(
    model: Embedder, text: str, features: Features, rows: Numbers, encoded: Float[np.ndarray, "t d"] | None = None
) -> list[Explanation]:
    """Return for each row, of an image, how it matches the words of a text.

    Args:
        encoded: all tokens of the text, if they are known, as of a query.

    Raises:
        UserError: rows of texts or of global vectors, which have no patches; another dimension.
    """
    check_patches(features)
    spans, names, pieces = words_with_pieces(model, text)
    if encoded is None:
        encoded = model.encode_text([text], "tokens")[0][0]
    if encoded.shape[1] != features.manifest.dimension:
        raise UserError(f"the index is of dimension {features.manifest.dimension}, the model of {encoded.shape[1]}")
    # The mean of a word's similarities is that with the mean of its tokens.
    words = np.array([encoded[of_word].mean(axis=0) for of_word in pieces], np.float32).reshape(-1, encoded.shape[1])
    tokens, _ = features.tokens(rows)
    return [
        Explanation(int(row), spans, names, _map(of_row @ words.T, positions, features))
        for row, of_row, positions in zip(rows, tokens, features.positions(rows))
    ]


def check_patches(features: Features) -> None:
    """Raise a UserError for features of texts, or of global vectors, which have no patches."""
    manifest = features.manifest
    if manifest.side == "text":
        raise UserError(f"{features.folder} is of texts: they have no patches")
    if manifest.pooling != "tokens" or manifest.grid is None:
        raise UserError(
            f"{features.folder} holds one vector a picture, of a model with global pooling: it has no patches"
        )


def _map(
    similarity: Float[np.ndarray, "p words"], positions, features: Features
) -> Float[np.ndarray, "words rows columns"]:
    places = token_map(positions, features.manifest)
    return np.where(places >= 0, similarity.T[:, places], np.nan).astype(np.float32)


def patch_tokens(features: Features, row: int, place: tuple[int, int]) -> Float[np.ndarray, "1 d"]:
    """Return the token that stands for a patch of an image, as a query: its place is (row, column) in the grid.

    Raises:
        UserError: there is no such patch, or no token is stored for it.
    """
    manifest = features.manifest
    if manifest.grid is None or not all(0 <= x < side for x, side in zip(place, manifest.grid)):
        raise UserError(f"{features.folder} has no patch {place[0]},{place[1]}; its grid is {manifest.grid}")
    (positions,), (tokens, _) = features.positions([row]), features.tokens([row])
    number = token_map(positions, manifest)[place]
    if number < 0:
        where = f"in row {place[0] + 1}, column {place[1] + 1}"
        raise UserError(f"a reduction dropped the token of the patch {where}: choose another patch")
    if not np.isfinite(tokens[0, number]).all():
        raise UserError(f"row {row} is damaged: its token for the patch {place[0]},{place[1]} holds no finite numbers")
    return tokens[0, number][None]
