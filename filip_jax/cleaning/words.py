"""Sensitive words: the user's list, found as whole words."""

import re
import unicodedata
from pathlib import Path

from filip_jax.errors import UserError

# Scripts written without spaces: each character is a word, so that a listed word is found anywhere in a line.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+|[^\w\s'’-]")


class SensitiveWords:
    """A list of words and phrases, one per line of a UTF-8 file.

    A text is searched in one walk over its words, so the list may have many thousands of lines. Case and
    the width of letters do not count; white space, hyphens and apostrophes separate words. Other signs
    are words of their own: "18+" is not found in "18 candles". In scripts without spaces (Chinese,
    Japanese, Thai, Lao, Khmer, Burmese) an entry is found within a line.

    Raises:
        UserError: the file is not UTF-8, is empty, or has a line without a letter, a digit or a sign.
    """

    def __init__(self, path: str):
        try:
            lines = Path(path).read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"filter: sensitive_words={path!r} is not UTF-8: {error}") from error
        self.words: set[str] = set()
        self.phrases: dict[str, list[list[str]]] = {}
        for number, line in enumerate(lines, start=1):
            words = _words(line)
            if len(words) == 1:
                self.words.add(words[0])
            elif words:
                self.phrases.setdefault(words[0], []).append(words)
            elif line.strip():
                raise UserError(f"filter: sensitive_words={path!r}, line {number}: {line!r} holds no word")
        if not self.words and not self.phrases:
            raise UserError(f"filter: sensitive_words={path!r} holds no words")

    def find(self, text: str) -> str:
        """The first listed word or phrase that the text holds, or ""."""
        words = _words(text)
        if not self.words.isdisjoint(words):
            return next(word for word in words if word in self.words)
        for start, word in enumerate(words):
            for phrase in self.phrases.get(word, ()):
                if words[start : start + len(phrase)] == phrase:
                    return " ".join(phrase)
        return ""


def _words(text: str) -> list[str]:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return WORD.findall(text.casefold())
