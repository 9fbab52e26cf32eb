"""Paths as users write them: ~, URLs, and signs that make patterns only where nothing is named so literally.

The rule of patterns: the longest part of a path, from its beginning to a "/" or to its end, that exists under exactly
this name is taken literally. Only what follows it is read as a pattern with * ? [ ] or braces.
"""

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from filip_jax.errors import UserError

PATHS = 1 << 20  # that the braces of one path stand for
SIGNS = re.compile(r"[*?\[{]")  # what may make a pattern of a path
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_remote(path: str) -> bool:
    """Whether the path is a URL."""
    return SCHEME.match(path) is not None


def from_user(path: str | Path) -> str:
    """Return the path with the home folder in place of its first ~ or ~user, as a shell would write it.

    Each door through which users' paths come calls it: the commands, configs and functions that are given some. A folder that is itself named so is reached as ./~, and so is a Path, which stands for itself in Python.

    Raises:
        UserError: there is no such user, or the path holds a character NUL, which no path can.
    """
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} holds a character NUL, which no path can")
    if not str(path).startswith("~"):
        return str(path)
    if isinstance(path, Path):
        return f"./{path}"
    found = os.path.expanduser(path)
    if found == path:
        user = path.split("/")[0]
        raise UserError(f"{path}: there is no home folder of {user}; write ./{path} for a folder that is named so")
    return found


def absolute(path: str) -> str:
    """Return a local path from the root on, written in one way; a URL stays as it is.

    Links are resolved only where the path goes up by "..": the disk alone knows what lies above a link.
    """
    if is_remote(path):
        return path
    path = os.path.join(os.getcwd(), path)
    return os.path.realpath(path) if ".." in path.split("/") else "/" + os.path.normpath(path).lstrip("/")


class Named(NamedTuple):
    """A path that a user's path stands for; with a `pattern` of the module `glob` all that match it."""

    path: str
    pattern: str = ""


def spread(path: str, exists: Callable[[str], bool]) -> Iterator[Named]:
    """The paths and patterns that a path stands for, by the module's rule.

    Args:
        exists: whether there is a file or folder of exactly this name.

    Raises:
        UserError: its braces stand for more than PATHS.
    """
    path = path.rstrip("/") if is_remote(path) else plain(path)
    literal, rest = _split(path, exists)
    for tail in expand_braces(rest):
        path = literal + tail
        if not glob.has_magic(tail):
            yield Named(path)
            continue
        folder, pattern = _split(path, exists)  # what braces stand for may exist literally, too
        yield Named(path, glob.escape(folder) + pattern if pattern else "")


def plain(path: str) -> str:
    """Return the local path without doubled slashes, "." and a slash at its end."""
    names = [name for name in path.split("/") if name not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(names) or path[:1]


def _split(path: str, exists: Callable[[str], bool]) -> tuple[str, str]:
    """(the longest part that exists as it is written, the rest); a part without signs need not exist."""
    if not (first := SIGNS.search(path)):
        return path, ""
    ends = [end.start() for end in re.finditer("/|$", path) if end.start() > first.start()]
    end = next((end for end in reversed(ends) if exists(path[:end])), path.rfind("/", 0, first.start()) + 1)
    return path[:end], path[end:]


def expand_braces(path: str) -> list[str]:
    """The paths that {a,b} and {000..127} stand for, as in a shell.

    Raises:
        UserError: there are more than PATHS.
    """
    paths = [""]
    for n, piece in enumerate(re.split(r"\{([^{}]*)\}", path)):  # every second one stood in braces
        numbers = choices = piece.split(",") if n % 2 else [piece]
        if n % 2 and (span := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", piece)):
            width = len(span[1]) if span[1].startswith("0") else 0
            numbers = range(int(span[1]), int(span[2]) + 1)
            choices = (f"{number:0{width}d}" for number in numbers)
        if len(paths) * len(numbers) > PATHS:
            raise UserError(f"{path}: its braces stand for more than {PATHS} paths")
        paths = [a + b for a, b in itertools.product(paths, choices)]
    return paths
