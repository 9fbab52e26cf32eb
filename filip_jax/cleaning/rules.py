"""The cleaning rules' parameters, and the rules that need nothing but the record: FILIP, section 4."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filip_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The parameters of `filip_jax.cleaning.filter.filter_source`, which describes them."""

    min_side: int
    max_aspect: float
    languages: Sequence[str]
    language_probability: float
    meaningless: bool
    max_repeats: int
    sensitive_words: str
    person_names: bool

    def __post_init__(self):
        for name in ("min_side", "max_repeats"):
            if getattr(self, name) < 0:
                raise UserError(f"filter: {name}={getattr(self, name)} must be at least 1, or 0 for no such rule")
        if self.max_aspect != 0 and not self.max_aspect >= 1:
            raise UserError(f"filter: max_aspect={self.max_aspect} must be at least 1, or 0 for no such rule")
        if not 0 < self.language_probability <= 1:
            raise UserError(f"filter: language_probability={self.language_probability} must lie above 0, up to 1")
        if isinstance(self.languages, str):
            raise UserError(f"filter: languages={self.languages!r} must be a list of ISO codes, such as ('en',)")
        if self.sensitive_words and not Path(self.sensitive_words).is_file():
            raise UserError(f"filter: sensitive_words={self.sensitive_words!r}: no such file")

    def described(self) -> dict:
        """As JSON; of the file of sensitive words its hash, so that a run notices when it changes."""
        words = hashlib.sha256(Path(self.sensitive_words).read_bytes()).hexdigest() if self.sensitive_words else ""
        return vars(self) | {"languages": list(self.languages), "sensitive_words": words}


def shape_reason(width: int, height: int, min_side: int, max_aspect: float) -> str:
    """The rule that a picture of `width` x `height` pixels breaks, or "".

    The shorter side must have `min_side` pixels, the longer one at most `max_aspect` times as many as
    the shorter; 0 asks for nothing.
    """
    short, long = sorted((width, height))
    if short < min_side:
        return "min_side"
    if max_aspect and long > max_aspect * short:
        return "max_aspect"
    return ""


def normalised(text: str) -> str:
    """The text as it is compared with others: case and runs of white space do not count."""
    return " ".join(text.casefold().split())


def text_hash(text: str) -> int:
    """64 bits of the normalised text, by which equal texts are counted.

    Among 300 million different texts, any two share them with a chance of about 0.2 %.
    """
    digest = hashlib.blake2b(normalised(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
