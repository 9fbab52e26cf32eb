"""Word-patch alignment: which patches each word of a text matches (FILIP, section 4.4)."""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from filip_jax.errors import UserError
from filip_jax.inference import Embedder

# Left out of pictures: a causal text tower lets them repeat the word before ("a carrot, a" …).
NO_SPACES = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # kana, Chinese characters, Hangul
FUNCTION_WORDS = frozenset("a an and are as at by for in is it its of on or that the their this to with".split())


@dataclass(frozen=True)
class Alignment:
    """How the patches of one image and the words of one text match.

    Attributes:
        view: the square picture that the image tower saw.
        text: the text.
        read: how many of its characters the model's context holds.
        words: those looked at, as (start, end) in characters; words beyond the context are missing.
        similarity: of each word with each patch, row by row; a word of several pieces is their mean.
        chosen: for each patch the one of these words it matches best, -1 if it matches BOS or EOS
            better; words that are not looked at take no part.
    """

    view: UInt8[np.ndarray, "size size 3"]
    text: str
    read: int
    words: list[tuple[int, int]]
    similarity: Float[np.ndarray, "words grid grid"]
    chosen: Int[np.ndarray, "grid grid"]


def align(model: Embedder, views: list[np.ndarray], texts: list[str], phrases=None) -> list[Alignment]:
    """The alignment of each view with its text.

    Works on global models too: their patches and words go through the same projections.

    Args:
        views: pictures as the image tower sees them, uint8 [size, size, 3].
        phrases: for each text the (start, end) to look at; by default every word but function words.
    """
    images = model.encode_image(views, pooling="tokens")
    tokens, mask = model.encode_text(texts, pooling="tokens")
    grid = int(images.shape[1] ** 0.5)
    patches = images[:, -grid * grid :]  # a class token, where it takes part, stands first
    return [
        _align(view, text, patches[n], tokens[n], mask[n], _spans(model, text), phrases[n] if phrases else None)
        for n, (view, text) in enumerate(zip(views, texts))
    ]


def _spans(model: Embedder, text: str) -> list[tuple[int, int]]:
    return model.tokenizer.spans(text, model.text_length)


def _align(view, text, patches, tokens, mask, spans, phrases) -> Alignment:
    grid = int(len(patches) ** 0.5)
    words = content_words(text) if phrases is None else phrases
    pieces = [[k for k, (start, end) in enumerate(spans) if start < w[1] and end > w[0]] for w in words]
    kept = [n for n, of_word in enumerate(pieces) if of_word]
    if not kept:
        raise UserError(f"no word to look at in {text!r}")
    scores = patches @ tokens.T
    by_word = np.array([scores[:, pieces[n]].mean(axis=1) for n in kept]).reshape(-1, grid, grid)
    ends = [k for k in (0, len(spans) - 1) if mask[k]]
    rest = scores[:, ends].max(axis=1, initial=-np.inf).reshape(1, grid, grid)
    chosen = np.concatenate([rest, by_word]).argmax(axis=0) - 1
    read = max(end for _, end in spans[:-1]) if len(spans) > 2 else 0
    return Alignment(view, text, read, [words[n] for n in kept], by_word, chosen)


def content_words(text: str) -> list[tuple[int, int]]:
    """The words of a text as (start, end), without `FUNCTION_WORDS`; characters where a script has no spaces."""
    words = [
        match.span() for match in re.finditer(rf"[{NO_SPACES}]|[^\W{NO_SPACES}](?:[^\W{NO_SPACES}]|['’-])*|\S", text)
    ]
    words = [(start, end) for start, end in words if any(c.isalnum() or ord(c) > 0x2000 for c in text[start:end])]
    return [(start, end) for start, end in words if text[start:end].lower() not in FUNCTION_WORDS]
