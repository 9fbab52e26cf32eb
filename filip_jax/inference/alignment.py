"""Word-patch alignment: which patches each word of a text matches (FILIP, section 4.4)."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from filip_jax.errors import UserError
from filip_jax.inference.embedder import Embedder, check_texts, checked_text

PROMPT = "a photo of a {}."  # of the paper's pictures
NO_SPACES = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # kana, Chinese characters, Hangul
# Left out of pictures: a causal text tower lets them repeat the word before ("a carrot, a" …).
FUNCTION_WORDS = frozenset("a an and are as at by for in is it its of on or that the their this to with".split())
Span = tuple[int, int]


@dataclass(frozen=True)
class Alignment:
    """How the patches of one image and the words of one text match.

    Attributes:
        view: the square picture that the image tower saw.
        text: the text.
        read: how many of its characters the model reads; fewer than all where its context cuts the text.
        spans: of each token from BOS or the first one to EOS, the characters text[start:end] that it stands for; none of those two,
            and none of what is only a part of a character that the token behind it completes.
        words: those looked at, as (start, end) in characters; words beyond the context are missing, one that it cuts is
            whole here.
        pieces: of each word, the indices of its tokens.
        similarity: of each word with each patch, row by row; a word of several pieces is their mean.
        chosen_token: for each patch the index of the token it matches best among all that take part, BOS being 0.
        chosen: for each patch the one of these words that has the token it matches best, -1 if BOS or EOS match
            better; words that are not looked at take no part.
        has_bos: whether the first token is BOS.
    """

    view: UInt8[np.ndarray, "size size 3"]
    text: str
    read: int
    spans: list[Span]
    words: list[Span]
    pieces: list[list[int]]
    similarity: Float[np.ndarray, "words rows columns"]
    chosen_token: Int[np.ndarray, "rows columns"]
    chosen: Int[np.ndarray, "rows columns"]
    has_bos: bool = True

    @property
    def tokens(self) -> list[str]:
        """The text of each token without spaces around it, "[BOS]" and "[EOS]" of these."""
        pieces = [self.text[start:end].strip() for start, end in self.spans[self.has_bos : -1]]
        return [*["[BOS]"] * self.has_bos, *pieces, "[EOS]"]

    @property
    def names(self) -> list[str]:
        """What the model reads of each word, with "…" behind one that its context cuts."""
        return _names(self.text, self.words, self.read)


def align(
    model: Embedder,
    images: Iterable[Any],
    texts: Iterable[str],
    phrases: Sequence[Sequence[Span]] | None = None,
) -> list[Alignment]:
    """Return the alignment of each image with its text.

    Works on global models too: their patches and words go through the same projections.

    Args:
        images: of any kind and size, as of `Embedder.encode_image`; the alignment is of their center views.
        phrases: for each text the (start, end) to look at; by default every word but function words.

    Raises:
        UserError: no phrases are given and a text has no word to look at; images and texts are not equally many.
    """
    check_texts(texts)
    views, texts = list(model.views(images)), list(texts)
    if len(views) != len(texts):
        raise UserError(f"align: {len(views)} images, but {len(texts)} texts; it takes pairs")
    patches = model.encode_image(views, pooling="tokens")
    tokens, mask = model.encode_text(texts, pooling="tokens")
    rows, columns = model.grid
    patches = patches[:, -rows * columns :]  # a pooled token, where it takes part, stands first
    found = []
    for n, (view, text) in enumerate(zip(views, texts)):
        spans, read = _spans(model, text)
        words = _whole_words(text, spans) if phrases is None else phrases[n]
        scores = (patches[n] @ tokens[n].T).reshape(rows, columns, -1)
        found.append(_align(view, text, read, spans, words, scores, mask[n], model.tokenizer.has_bos))
        if phrases is None and not found[-1].words:
            raise UserError(f"no word to look at in {text!r}")
    return found


def _spans(model: Embedder, text: str) -> tuple[list[Span], int]:
    """Of the tokens in the model's context, and how many characters they stand for: all, if there is no further token."""
    spans = model.tokenizer.spans(text, model.text_length + 1)
    if len(spans) <= model.text_length:
        return spans, len(text)
    after, _ = spans.pop(-2)  # where the first that is not read begins, perhaps within a character
    return spans, min(after, max((end for _, end in spans[:-1]), default=0))


def words_with_pieces(model: Embedder, text: str) -> tuple[list[Span], list[str], list[list[int]]]:
    """Return the words of a text to look at, as (start, end), what the model reads of each, and the indices of its tokens.

    Words are those of `align`; those beyond the context are missing.

    Raises:
        UserError: the text cannot be encoded.
    """
    spans, read = _spans(model, checked_text(0, text))
    words = _whole_words(text, spans)
    both = [(word, of_word) for word, of_word in zip(words, _pieces(spans, words, model.tokenizer.has_bos)) if of_word]
    words = [word for word, _ in both]
    return words, _names(text, words, read), [of_word for _, of_word in both]


def _pieces(spans: list[Span], words: Sequence[Span], has_bos: bool) -> list[list[int]]:
    return [[k for k in range(has_bos, len(spans) - 1) if _is_part(spans[k], word)] for word in words]


def _names(text: str, words: Sequence[Span], read: int) -> list[str]:
    return [text[start : min(end, read)] + "…" * (end > read) for start, end in words]


def _align(view, text, read, spans, words, scores, mask, has_bos) -> Alignment:
    """`scores`: of each patch with each token, [rows, columns, tokens]; `mask`: which tokens take part."""
    pieces = _pieces(spans, words, has_bos)
    kept = [n for n, of_word in enumerate(pieces) if of_word]
    by_word = np.array([scores[..., pieces[n]].mean(axis=-1) for n in kept]).reshape(-1, *scores.shape[:2])
    word_of = np.full(len(mask), -1)
    for word, n in reversed(list(enumerate(kept))):
        word_of[pieces[n]] = word
    ends = np.isin(np.arange(len(mask)), (0 if has_bos else -1, len(spans) - 1)) & mask
    chosen_token, chosen = (np.where(among, scores, -np.inf).argmax(-1) for among in (mask, ends | (word_of >= 0)))
    return Alignment(
        view=view,
        text=text,
        read=read,
        spans=spans,
        words=[words[n] for n in kept],
        pieces=[pieces[n] for n in kept],
        similarity=by_word.astype(np.float32),
        chosen_token=chosen_token,
        chosen=word_of[chosen],
        has_bos=has_bos,
    )


def _whole_words(text: str, spans: list[Span]) -> list[Span]:
    """The content words; those that one token covers, as of a script without spaces, are one."""
    words: list[Span] = []
    for word in content_words(text):
        if words and any(_is_part(span, words[-1]) and _is_part(span, word) for span in spans[:-1]):
            words[-1] = (words[-1][0], word[1])
        else:
            words.append(word)
    return words


def _is_part(token: Span, word: Span) -> bool:
    """Whether a token stands for some of the word; the bytes before a character's last have an empty span before it."""
    (start, end), (first, last) = token, word
    return first <= start < last if start == end else start < last and end > first


def label_prompt(label: str) -> tuple[str, list[Span]]:
    """The paper's prompt of a class name, and its content words, of which the last is the whole name."""
    text, start = PROMPT.format(label), PROMPT.index("{}")
    name = (start, start + len(label))
    return text, [word for word in content_words(text) if word[1] <= name[0]] + [name]


def content_words(text: str) -> list[Span]:
    """The words of a text as (start, end), without `FUNCTION_WORDS` if it has others; characters where a script has no spaces."""
    words = [
        match.span() for match in re.finditer(rf"[{NO_SPACES}]|[^\W{NO_SPACES}](?:[^\W{NO_SPACES}]|['’-])*|\S", text)
    ]
    words = [(start, end) for start, end in words if any(map(_says, text[start:end]))]
    return [(start, end) for start, end in words if text[start:end].lower() not in FUNCTION_WORDS] or words


def _says(character: str) -> bool:
    """Whether it is a letter, a number or a picture, and no punctuation."""
    return character.isalnum() or (ord(character) > 0x2000 and unicodedata.category(character)[0] not in "PZC")
