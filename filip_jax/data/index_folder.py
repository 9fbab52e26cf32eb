"""Indices of data: where they lie (beside it, where the config says, or in the user's cache), and what they say."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from filip_jax import storage
from filip_jax.errors import UserError
from filip_jax.small_files import is_whole, read_json

_of_others: ContextVar[bool] = ContextVar("of_others", default=False)


@contextlib.contextmanager
def sources_of_others() -> Iterator[None]:
    """Inside, sources are those of a saved config, which may be a stranger's: where it says nothing is written."""
    token = _of_others.set(True)
    try:
        yield
    finally:
        _of_others.reset(token)


def may_write() -> bool:
    """Return whether anything may be written where a config says, or beside its data."""
    return not _of_others.get()


def index_folder(named: str, whole: Callable[[str], bool]) -> str:
    """Return the folder that an index is read from and, where it is not whole, written to.

    Args:
        named: where a config says, or beside the data.
        whole: whether a folder holds the whole index of this data.
    """
    return named if may_write() or whole(named) else cached_folder(named)


def cached_folder(named: str) -> str:
    """Return the folder in the user's cache that stands for one that may not be written."""
    from filip_jax.workdir import cache_folder  # worker processes need no JAX

    name = hashlib.sha256(named.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return storage.join(str(cache_folder()), f"indices/{name}")


def read_facts(file: str, **kinds: Callable[[Any], bool]) -> dict[str, Any]:
    """Return what the JSON file of an index says.

    Args:
        kinds: for each key that it must have, whether a value can be its.

    Raises:
        UserError: it is not as we write it.
    """
    try:
        facts = read_json(Path(file))
        wrong = next((key for key, fits in kinds.items() if not fits(facts.get(key))), "")
        said = f"{wrong}={facts.get(wrong)!r:.100}"
    except UserError as error:
        wrong = said = str(error)
    if wrong:
        raise UserError(f"{file} is damaged ({said}): remove it, it is then made again")
    return facts


def are_texts(value: Any) -> bool:
    """Return whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def are_counts(value: Any, count: int) -> bool:
    """Return whether a value is a list of so many whole numbers."""
    return isinstance(value, list) and len(value) == count and all(map(is_whole, value))
