"""Options in the JSON files of others: typed reading, and where each value was found."""

from collections.abc import Mapping
from typing import Any

from filip_jax.errors import UserError

MAX_SIZE = 1 << 20  # of a whole number in them
# Activations by the names that others give to them.
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


class Options:
    """A section of a JSON file.

    Args:
        place: how it is called in messages, as "config.json, text_config".
        content: the section; None where it is absent.
        defaults: values of absent keys, which the library that wrote the file takes without a word.
        library: this library.
    """

    def __init__(self, place: str, content: Any, defaults: Mapping[str, Any], library: str):
        if not isinstance(content, dict | None):
            raise UserError(f"{place} is no section but {type(content).__name__}")
        self.place, self.content, self.defaults, self.library = place, content or {}, defaults, library

    def origin(self, key: str) -> str:
        """Return where the value of a key comes from."""
        absent = f"{self.library}'s default, since {self.place} lacks {key}"
        return f"{self.place}: {key}" if self.content.get(key) is not None else absent

    def value(self, key: str, *kinds: type) -> Any:
        """Return the value of a key, its default where it is absent or null.

        Raises:
            UserError: it is of none of these types, or a number out of range.
        """
        value = self.content.get(key)
        value = self.defaults.get(key) if value is None else value
        if type(value) not in kinds and not (float in kinds and type(value) is int):
            raise UserError(f"{self.place}: {key}={value!r:.100} is not of the type {kinds[0].__name__}")
        if isinstance(value, int | float) and not abs(value) <= MAX_SIZE:
            raise UserError(f"{self.place}: {key}={value!r:.100} is out of range")
        return value

    def whole(self, key: str) -> int:
        """Return a whole number of at least 1."""
        value = self.value(key, int)
        if value < 1:
            raise UserError(f"{self.place}: {key}={value} must be at least 1")
        return value

    def activation(self, key: str) -> str:
        """Return our name of an activation."""
        value = self.value(key, str)
        if value not in ACTIVATIONS:
            raise UserError(
                f"{self.place}: {key}={value!r:.100} is none of {', '.join(ACTIVATIONS)}, which a tower can have"
            )
        return ACTIVATIONS[value]

    def only(self, **allowed: Any) -> None:
        """Raise a UserError for the first key whose value is none of those that filip_jax computes; None allows an absent key."""
        for key, values in allowed.items():
            value = self.content.get(key, self.defaults.get(key))
            if value not in values:
                raise UserError(f"{self.place}: {key}={value!r:.100} asks for what filip_jax does not compute")

    def known(self, names: set[str]) -> None:
        """Raise a UserError for a key that is not among these names."""
        if strange := sorted(self.content.keys() - names):
            raise UserError(
                f"{self.place}: {strange[0]!r:.100} is unknown here, so this model may compute something else"
            )


def agree(place: str, stated: Mapping[str, int], actual: Mapping[str, Any]) -> None:
    """Raise a UserError for the first size that a file states and its weights contradict."""
    for name, size in stated.items():
        if name in actual and size != actual[name]:
            raise UserError(f"{place} says {name}={size}, but the weights have {actual[name]}: they are of two models")
