"""Names of persons in a text, found by lists of names and the case of letters, and put as "<person>".

FILIP (section 4) replaces them; by what means, it does not say. These rules ask for a first name and
a last name, both in capitals, in Latin script. A first name alone, a nickname, a name in lower case and
most Asian names stay.
"""

import importlib
import inspect
import pkgutil
import re
from functools import cache
from importlib import resources

from filip_jax.extras import extra_folder, extra_module

PERSON = "<person>"
NEEDS = "the rule for names of persons needs"
LONGEST_MIDDLE = 2  # words between first and last name

_NOBLE = {"king", "queen", "prince", "princess"}  # of one name, which the lists give as first names
_TITLES = re.compile(
    r"(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor|Sir|Lord|Lady|President|Senator|Captain|Sergeant|Rev|Judge)\.?"
)
_PARTICLES = {
    "van",
    "von",
    "der",
    "den",
    "de",
    "del",
    "della",
    "di",
    "da",
    "dos",
    "la",
    "le",
    "bin",
    "ibn",
    "al",
    "ten",
    "ter",
}
_SUFFIXES = {"jr", "sr", "ii", "iii", "iv"}
_SUFFIX = re.compile(r",? (?:Jr\b\.?|Sr\b\.?|(?:II|III|IV)\b)")
_SMALL = set(
    "a an and as at by de for from in into is la le no of on or the to vs with".split()
)  # small in titles, too
# A word with the sign of an initial, or what stands between words and ends a name.
_TOKEN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*\.?|\S")
# Words are looked at from their beginning only: else a long one takes the square of its length.
_CANDIDATE = re.compile(r"(?<![\w.'’-])[^\W\d_a-z][\w.'’-]* (?:[^\W\d_]|[a-z]+ [^\W\d_a-z])")


class Names:
    """Finds and replaces names of persons.

    Raises:
        UserError: the extra `clean` is not installed.
    """

    def __init__(self):
        self.first, self.last, ordinary = _lists()
        exceptions = _exceptions()
        self.endings = exceptions["words that end no name"]
        self.words = exceptions["first names that are words"] | self.endings | ordinary
        self.common = self.words | exceptions["last names that are words"]
        self.places = exceptions["words before a place"]
        self.brands = exceptions["brands and places"]

    def replace(self, text: str) -> str:
        """The text with each name as "<person>"; the same text if there is none."""
        if not _CANDIDATE.search(text):
            return text
        parts, done = [], 0
        for start, end in self.find(text):
            parts += [text[done:start], PERSON]
            done = end
        return "".join([*parts, text[done:]]) if parts else text

    def find(self, text: str) -> list[tuple[int, int]]:
        """The spans text[start:end] of names, in order."""
        tokens = [(m.start(), m.end(), m.group()) for m in _TOKEN.finditer(text)]
        words = [word for _, _, word in tokens]
        sentence = _is_sentence(words)
        spans, at = [], 0
        while at < len(tokens) - 1:
            count = self._name_at(words, at, sentence)
            if count:
                start, end = tokens[at][0], tokens[at + count - 1][1]
                end -= text[start:end].endswith(("'s", "’s")) * 2 + text[start:end].endswith(".")
                suffix = _SUFFIX.match(text, end)
                spans.append((start, suffix.end() if suffix else end))
            at += count or 1
        return spans

    def _name_at(self, words: list[str], at: int, sentence: bool) -> int:
        """How many words from `at` on are a person's name, 0 for none."""
        before = words[at - 1] if at else ""
        titled = bool(_TITLES.fullmatch(before))
        first = _bare(words[at])
        if not _capital(words[at]) or first in self.places or _bare(before) in self.places:
            return 0
        if first not in self.first and not titled:
            return 0
        best = 0
        for count in range(2, min(LONGEST_MIDDLE + 2, len(words) - at) + 1):
            middle, last = words[at + 1 : at + count - 1], words[at + count - 1]
            if not self._middle(middle, sentence) or f"{first}-{_bare(last)}" in self.brands:
                break
            suffixed = at + count < len(words) and _bare(words[at + count]) in _SUFFIXES
            if _capital(last) and self._last(first, _bare(last), middle, sentence or titled or suffixed):
                best = count
        after = words[at + best] if at + best < len(words) else "."
        return 0 if _capital(after) and after.lower() in self.endings else best

    def _middle(self, words: list[str], sentence: bool) -> bool:
        """Whether words may stand between first and last name: initials, particles, other first names."""
        return all(
            word.lower() in _PARTICLES
            or _initial(word)
            or (_capital(word) and (_bare(word) in self.first or (sentence and _bare(word) in self.last)))
            for word in words
        )

    def _last(self, first: str, last: str, middle: list[str], sentence: bool) -> bool:
        """Whether `last` ends a name that begins with `first`."""
        if len(last) < 2 or last in self.endings or last in _PARTICLES or last in _SUFFIXES:
            return False
        if first in self.words:
            return last in self.last and last not in self.common and (sentence or any(map(_initial, middle)))
        if last in self.common:
            return last in self.last and sentence
        return last in self.last or sentence or bool(_PARTICLES.intersection(middle))


def _is_sentence(words: list[str]) -> bool:
    """Whether a capital marks a name here; in A Title Like This it marks nothing."""
    small = sum(word.islower() and len(word) > 1 and word not in _SMALL for word in words)
    return small >= max(1, sum(map(_capital, words[1:])) / 4)


def _initial(word: str) -> bool:
    return len(word.rstrip(".")) == 1 and word[0].isupper()


def _capital(word: str) -> bool:
    return word[0].isupper() and (not word.isupper() or len(word.rstrip(".")) == 1)


def _bare(word: str) -> str:
    """The word as it stands in the lists: lower case, no point, no genitive."""
    return word.lower().rstrip(".").removesuffix("'s").removesuffix("’s")


@cache
def _lists() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """First names, last names, and the ordinary words of English, lower case.

    From Faker's providers of all countries and from the US census of 1990 in the package `names`.
    """
    person = extra_module("faker.providers.person", "clean", NEEDS)
    census = extra_folder("names", "clean", NEEDS)
    first, last = set[str](), set[str]()
    for module in pkgutil.iter_modules(person.__path__):
        provider = importlib.import_module(f"{person.__name__}.{module.name}").Provider  # noqa: TID251 - of Faker's folder
        for name, value in inspect.getmembers(provider, lambda value: not isinstance(value, property)):
            if name.startswith(("first_names", "last_names")):
                (first if name.startswith("first") else last).update(map(str.lower, value))
    for file, names in (("dist.male.first", first), ("dist.female.first", first), ("dist.all.last", last)):
        names.update(line.split()[0].lower() for line in (census / file).read_text("ascii").splitlines())
    ordinary = extra_module("faker.providers.lorem.en_US", "clean", NEEDS).Provider.word_list
    return frozenset(first - _NOBLE), frozenset(last), frozenset(ordinary)


@cache
def _exceptions() -> dict[str, frozenset[str]]:
    """The sections of assets/name_exceptions.txt by their headings."""
    text = resources.files("filip_jax").joinpath("assets/name_exceptions.txt").read_text("utf-8")
    sections: dict[str, set[str]] = {}
    for line in text.splitlines():
        if heading := re.match(r"# \[(.*)\]", line):
            words = sections.setdefault(heading[1], set())
        elif not line.startswith("#"):
            words.update(line.split())
    return {heading: frozenset(words) for heading, words in sections.items()}
