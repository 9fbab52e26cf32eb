"""The sections of a config that choose a kind of something, and how words on the command line choose another.

    --optimizer adamw b2=0.98    or    --config.optimizer='adamw b2=0.98'

is the section dict(name="adamw", b2=0.98). Options that are not named take the kind's defaults; those that have none keep
the config's value. A section that chooses is one line in `CHOICES`. The tables are imported when they are asked for.
"""

import ast
import inspect
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from filip_jax.errors import UserError
from filip_jax.sections import near, options_of

OPTION = re.compile(r"[A-Za-z]\w*(-\w+)*")  # a name, or what people write for one
TRUTH = {"true": True, "1": True, "false": False, "0": False}  # as absl reads it in a config's other values


@dataclass(frozen=True)
class Choice:
    """The kinds that a section chooses from. Options are arguments that are given by name only.

    Attributes:
        kinds: by name, the function or class that takes the options of this kind.
        common: the function that takes those of every kind.
        key: the key of the section that names the kind.
    """

    kinds: Mapping[str, Callable[..., Any]]
    common: Callable[..., Any] = dict
    key: str = "name"

    def options(self, kind: str) -> dict[str, inspect.Parameter]:
        """Return the options of a kind by name, its own first. An unknown kind has those of every kind."""
        functions = (self.kinds[kind], self.common) if kind in self.kinds else (self.common,)
        options = {name: p for function in functions for name, p in options_of(function).items()}
        return {name: p for name, p in options.items() if p.kind is p.KEYWORD_ONLY and name != self.key}

    def section(self, words: Sequence[str], old: Mapping[str, Any]) -> dict[str, Any]:
        """Return the section for "KIND key=value …". Options without a default come from the old section.

        Raises:
            UserError: an option where the kind belongs, a word that is no key=value, or a key twice, as a shell makes of a
                path whose braces it spreads.
        """
        kind, options = words[0], self.options(words[0])
        if "=" in kind:
            raise UserError(
                f"{kind!r} stands where the kind belongs: name one of {', '.join(self.kinds)} before its options"
            )
        section = {self.key: kind}
        for word in words[1:]:
            name, equals, text = word.partition("=")
            if not equals or not OPTION.fullmatch(name):
                raise UserError(f"{word!r} is not key=value, as in: {kind} {self._example(kind, word)}")
            if name in section:
                is_text = name in options and options[name].annotation is str
                braces = "; braces need quotation marks: 'path=DATA/{0..9}.tar'" if is_text else ""
                raise UserError(f"{word}: {name} stands there twice{braces}")
            section[name] = self.value(kind, name, text)
        required = [name for name, p in options.items() if p.default is p.empty]
        return {name: old[name] for name in required if name in old} | section

    def _example(self, kind: str, word: str) -> str:
        """Return how an option is written, with the word that stands in its place where it may be a part of it."""
        options = self.options(kind)
        first = next(iter(options), "key")
        if word in options:
            return f"{word}=VALUE"
        is_value = "=" not in word and first in options and options[first].annotation is str
        return f"{first}={word}" if is_value else f"{first}=VALUE"

    def value(self, kind: str, name: str, text: str) -> Any:
        """Return the value of an option given as text: what the kind takes of texts, words and truth values, else a literal."""
        option = self.options(kind).get(name)
        takes = None if option is None else option.annotation
        if takes is str:
            return text
        if takes is bool and text.lower() in TRUTH:
            return TRUTH[text.lower()]
        is_list = text[:1] in ("(", "[")
        if takes == Sequence[str] and not is_list:
            return _parts(text)
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # of Python's parser, for what is nested deeply
            is_plain = is_list and not set(text[1:-1]) & set("()[]")  # a list whose quotation marks a shell has eaten
            return _parts(text[1:-1]) if takes == Sequence[str] and is_plain else text


def _parts(text: str) -> tuple[str, ...]:
    """Return what stands between commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _sources() -> Choice:
    from filip_jax.data.sources import SOURCES, open_kind

    return Choice(SOURCES, open_kind)


def _tokenizers() -> Choice:
    from filip_jax.data.tokenizer import TOKENIZERS, make_tokenizer

    return Choice({name: kind.make for name, kind in TOKENIZERS.items()}, make_tokenizer)


def _optimizers() -> Choice:
    from filip_jax.train.optimizer import OPTIMIZERS, make_optimizer

    return Choice(OPTIMIZERS, make_optimizer)


def _towers(modality: str) -> Choice:
    from filip_jax.models.dual_encoder import make_tower
    from filip_jax.models.towers import TOWERS

    return Choice(TOWERS[modality], make_tower, "kind")


def _objectives() -> Choice:
    from filip_jax.objectives import OBJECTIVES
    from filip_jax.objectives.total import make_objective

    return Choice(OBJECTIVES, make_objective, "kind")


def _evals() -> Choice:
    from filip_jax.evals.run import KINDS, open_eval

    return Choice({name: kind.evaluate for name, kind in KINDS.items()}, open_eval, "kind")


# By the key of the section, * for any name. Below such a key several are chosen at once: "KIND … + NAME=KIND …".
CHOICES: Mapping[str, Callable[[], Choice]] = {
    "source": _sources,
    "tokenizer": _tokenizers,
    "optimizer": _optimizers,
    "model.image": partial(_towers, "image"),
    "model.text": partial(_towers, "text"),
    "objectives.*": _objectives,
    "evals.*": _evals,
    "evals.*.source": _sources,
}
FLAGS = [key.removesuffix(".*") for key in CHOICES if not key.startswith(("evals", "model"))]
KEYS = ("name", "kind")  # of which a section has one, that names its kind


def _find(key: str) -> Callable[[], Choice] | None:
    names = key.split(".")
    for pattern, table in CHOICES.items():
        parts = pattern.split(".")
        if len(parts) == len(names) and all(part in ("*", name) for part, name in zip(parts, names)):
            return table
    return None


def choice_of(key: str) -> Choice | None:
    """Return what the section of this key chooses from; None if it does not choose."""
    table = _find(key)
    return table() if table else None


def is_choice(key: str) -> bool:
    """Return whether words may stand for the section of this key: for one kind, or for several by name."""
    return bool(_find(key) or _find(f"{key}.*"))


def split_words(text: str) -> list[str]:
    """Return the words of a text, as a shell parts them.

    Raises:
        UserError: a quotation mark is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{text!r}: {error}") from error


def section_of(key: str, words: Sequence[str], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section that words choose in place of an old one; `key` must be one of which `is_choice` is true.

    Raises:
        UserError: no word, a name stands there twice, an unknown kind where there may be several, or as `Choice.section`.
    """
    words = [*split_words(words[0]), *words[1:]] if words else []  # a kind has no blank: its options are quoted with it
    if not words:
        raise UserError(f"--config.{key}: name a kind, and its options behind it as key=value")
    if choice := choice_of(key):
        return choice.section(words, old)
    choice, sections = CHOICES[f"{key}.*"](), dict[str, Any]()
    words = [part for word in words for part in ([word] if "=" in word else re.findall(r"\+|[^+]+", word))]
    for part in (list(part) for is_plus, part in groupby(words, "+".__eq__) if not is_plus):
        name, _, kind = part[0].rpartition("=")
        together = f"several stand with + between them, as in: {' + '.join([*choice.kinds][:2])}"
        if kind not in choice.kinds:
            close = near(kind, choice.kinds)
            raise UserError(f"--config.{key}: {kind!r} is not one of {', '.join(choice.kinds)}{close}; {together}")
        if strays := [word for word in part[1:] if word in choice.kinds]:
            raise UserError(f"--config.{key}: {strays[0]!r} is no option of {kind}; {together}")
        if (name := name or kind) in sections:
            raise UserError(f"--config.{key}: {name} stands there twice; name one of them, as in other={kind}")
        sections[name] = choice.section([kind, *part[1:]], old.get(name, {}))
    return sections


def step_number(step: str) -> int | None:
    """The number of a step, None for "latest"; raises a UserError for anything else."""
    if step == "latest":
        return None
    if not step.isdecimal():
        raise UserError(f"--step={step} is not latest or a number")
    return int(step)
