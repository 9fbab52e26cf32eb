"""What the rules make of one record: kept, kept with other texts, or dropped, and by which rule."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from filip_jax.cleaning.languages import Languages
from filip_jax.cleaning.meaningless import meaningless
from filip_jax.cleaning.names import Names
from filip_jax.cleaning.rules import Rules, shape_reason, text_hash
from filip_jax.cleaning.words import SensitiveWords
from filip_jax.data.decode import decode, image_size
from filip_jax.data.record import BadRecord, Caption
from filip_jax.data.sources import Source
from filip_jax.errors import UserError

UNREADABLE, BARE, REPEATED, SENSITIVE, LANGUAGE, NAMED = (
    "unreadable",
    "no caption",
    "repeated",
    "sensitive",
    "language",
    "person_names",
)
SHAPES = ("min_side", "max_aspect")


@dataclass
class Verdict:
    """The outcome for one record.

    Attributes:
        reason: the rule that dropped the record, "" if it is kept.
        kept: the captions that are left, names replaced.
        changed: whether `kept` differs from what the record had.
        hits: (rule, example) of every caption that a rule dropped or changed, and of the record if its
            picture or its reading was at fault.
        languages: the language of each caption that was asked for it.
    """

    reason: str = ""
    kept: tuple[Caption, ...] = ()
    changed: bool = False
    captions: int = 0
    hits: list[tuple[str, str]] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)


class Judge:
    """Applies the rules to one record after another, cheap ones first.

    A rule about texts drops the caption; a record without captions left is dropped for the rule that its
    first caption broke. Only then is the picture looked at. A caption is counted for the first rule that
    it breaks: meaningless, repeated, sensitive, language; names are replaced in what is left.

    Raises:
        UserError: an extra is not installed, an unknown language, an unusable list of words.
    """

    def __init__(self, rules: Rules):
        self.rules = rules
        self.sensitive = SensitiveWords(rules.sensitive_words) if rules.sensitive_words else None
        self.languages = Languages(rules.languages, rules.language_probability) if rules.languages else None
        self.names = Names() if rules.person_names else None

    def record(self, source: Source, index: int, repeats: Mapping[int, int]) -> Verdict:
        """The verdict on source[index].

        Args:
            repeats: how often a text is in the data, by its hash, for those that are there too often.
        """
        try:
            captions = source.captions(index)
        except BadRecord as error:
            return Verdict(UNREADABLE, hits=[(UNREADABLE, str(error))])
        verdict = Verdict(captions=len(captions))
        kept, reasons = [], []
        for caption in captions:
            reason, note = self._text(caption.text, repeats, verdict.languages)
            if reason:
                reasons.append(reason)
                verdict.hits.append((reason, f"{note}: {caption.text}" if note else caption.text))
            else:
                kept.append(caption)
        if not captions:
            return Verdict(BARE, hits=[(BARE, "")])
        if not kept:
            verdict.reason = reasons[0]
            return verdict
        if (self.rules.min_side or self.rules.max_aspect) and (hit := self._picture(source, index)):
            verdict.reason = hit[0]
            verdict.hits.append(hit)
            return verdict
        verdict.kept = tuple(_named(self.names, caption, verdict) for caption in kept) if self.names else tuple(kept)
        verdict.changed = verdict.kept != captions
        return verdict

    def _text(self, text: str, repeats: Mapping[int, int], languages: list[str]) -> tuple[str, str]:
        """The rule that a text breaks, or "", and a note for people."""
        if self.rules.meaningless and (kind := meaningless(text)):
            return f"meaningless: {kind}", ""
        if repeats and (count := repeats.get(text_hash(text))):
            return REPEATED, f"{count} x"
        if self.sensitive and (word := self.sensitive.find(text)):
            return SENSITIVE, word
        if self.languages:
            wanted, code = self.languages.judge(text)
            languages.append(code)
            if not wanted:
                return LANGUAGE, code
        return "", ""

    def _picture(self, source: Source, index: int) -> tuple[str, str] | None:
        """The rule that the picture breaks, with its size, if it breaks one."""
        try:
            width, height = picture_size(source, index)
        except UserError:
            raise
        except (BadRecord, ValueError) as error:
            return UNREADABLE, str(error)
        reason = shape_reason(width, height, self.rules.min_side, self.rules.max_aspect)
        return (reason, f"{width} x {height}") if reason else None


def picture_size(source: Source, index: int) -> tuple[int, int]:
    """Width and height in pixels: from the head of the file, or else from the whole file.

    Raises:
        BadRecord: the source cannot read the record.
        ValueError: no picture that can be read.
    """
    if hasattr(source, "image_head"):
        try:
            return image_size(source.image_head(index))
        except ValueError:  # the size may stand behind a large preview or colour profile
            pass
    image = source[index].image
    return image.shape[1::-1] if isinstance(image, np.ndarray) else decode(image).size


def _named(names: Names, caption: Caption, verdict: Verdict) -> Caption:
    text = names.replace(caption.text)
    if text == caption.text:
        return caption
    verdict.hits.append((NAMED, f"{text} <- {caption.text}"))
    return replace(caption, text=text)
