"""A config section is the keyword arguments of one function: its signature is the schema."""

import difflib
import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from filip_jax.errors import UserError

T = TypeVar("T")
DTYPES = ("float32", "bfloat16")  # of computations, where a section chooses
LARGEST = 2**32  # of whole numbers: no seed, step or record is beyond
# Annotations that are checked, and what may be given.
PLAIN: dict[type, Any] = {str: str, bool: bool, int: int, float: (int, float), dict: Mapping}
SAID = {
    str: "a text",
    bool: "True or False",
    int: "a whole number from -2^32 to 2^32",
    float: "a finite number",
    dict: "a section",
}


def options_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return by name the parameters of a function, or of a class that a section describes."""
    return {name: p for name, p in _signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD}


def keys_of(function: Callable[..., Any]) -> list[str]:
    """Return the parameters that are given by name only: the keys that a section has whatever kind it chooses."""
    return [name for name, option in options_of(function).items() if option.kind is option.KEYWORD_ONLY]


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    # A Flax module's metaclass hides the constructor's signature, so classes are asked for it directly.
    signature = inspect.signature(function.__init__ if inspect.isclass(function) else function)
    return signature.replace(parameters=[p for name, p in signature.parameters.items() if name != "self"])


def check(
    function: Callable[..., Any],
    section: Any,
    key: str,
    given: Iterable[str] = (),
    also: Iterable[str] = (),
) -> None:
    """Raises a UserError if the section lacks a parameter of the function, has one too many or one of another type.

    Args:
        key: where the section stands in the config, for the message.
        given: the parameters that the code passes beside the section.
        also: keys that such a section may have and the caller has taken out, for the message.
    """
    if not isinstance(section, Mapping):
        raise UserError(f"config section {key}: {section!r:.100} is not a section")
    options, given = options_of(function), set(given)
    try:
        _signature(function).bind(**dict.fromkeys(given), **section)
    except TypeError as error:
        legal = [*(name for name in options if name not in given), *also]
        close = "".join(near(name, legal) for name in section if name not in options)
        raise UserError(f"config section {key}: {error}; its keys are {', '.join(legal)}{close}") from error
    for name, value in section.items():
        kind = options[name].annotation if name in options else None
        if isinstance(kind, types.UnionType) and kind.__args__[1:] == (types.NoneType,):
            kind = None if value is None else kind.__args__[0]
        if kind in PLAIN and not _is(value, kind):
            raise UserError(f"config section {key}: {name}={value!r} is not {SAID[kind]}")


def _is(value: Any, kind: type) -> bool:
    """Whether a section may give this value for an annotation of PLAIN."""
    if not isinstance(value, PLAIN[kind]) or (isinstance(value, bool) and kind is not bool):
        return False
    return abs(value) <= LARGEST if isinstance(value, int) else kind is not float or math.isfinite(value)


def call(function: Callable[..., T], section: Any, key: str, **given: Any) -> T:
    """`function(**given, **section)`, the section checked as by `check`."""
    check(function, section, key, given)
    return function(**given, **section)


def at_least(least: float, section: str = "", **values: float) -> None:
    """Raises a UserError that names the first of a section's values that is not finite, or below `least`."""
    for name, value in values.items():
        if not least <= value < math.inf:
            raise UserError(f"{section}{'.' if section else ''}{name}={value} must be at least {least} and finite")


def choose(table: Mapping[str, T], name: Any, key: str) -> T:
    """The entry of a table of choices, or a UserError that lists them."""
    if not isinstance(name, str) or name not in table:
        raise UserError(f"{key}={name!r} is not one of {', '.join(table)}{near(str(name), table)}")
    return table[name]


def one_of(names: Iterable[str], name: Any, key: str) -> str:
    """The name, or a UserError that lists those that there are."""
    return choose({each: each for each in names}, name, key)


def near(name: str, names: Iterable[str]) -> str:
    """Return the end of a message about an unknown name, if others are much like it."""
    close = difflib.get_close_matches(name.lower(), names)
    return f"; did you mean {' or '.join(close)}?" if close else ""
