"""Small files that somebody else may have written, or a disk has spoilt: read within bounds, as data of known types.

A file that a run cannot go on without is read strictly: anything odd in it is one line. Of all others what is not as we
write it is left out, and one warning names the file and the first of it.
"""

import errno
import hashlib
import json
import math
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeGuard

from filip_jax.errors import UserError, one_line
from filip_jax.plain import MAX_MESSAGE

MAX_JSON_BYTES = 1 << 26  # of one JSON file, or of a line of a file of them
MAX_LINES_BYTES = 1 << 28  # of a file of lines that is held whole
MAX_VALUES = 1 << 22  # in a JSON text: each takes some hundred bytes; a tokenizer of 256,000 pieces has half of it
MAX_DEPTH = 32  # of objects and lists in each other
MAX_DIGITS = 20  # of a whole number; one with more is read as a float, as transformers' model_max_length of 31 digits
MAX_TEXT = MAX_MESSAGE  # of a text among numbers: what an evaluation failed with
MAX_NUMBER = 1e50  # beyond any loss of float32
CONSTANTS = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}  # as metrics.jsonl writes them

Notes = list[str]  # of what was left out


def open_regular(file: str | Path) -> int:
    """Return the descriptor of a regular file, for reading: opening a pipe would wait, reading a device never end.

    Raises:
        OSError: it is something else, or cannot be opened.
    """
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # it was changed meanwhile
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
    return descriptor


def open_own(file: Path) -> BufferedReader:
    """Return a file of a run's folder, opened for reading.

    Raises:
        UserError: it is a link that leads out of its folder.
        OSError: it is no regular file, or cannot be opened.
    """
    if file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(file.parent)):
        raise UserError(f"{file} is a link that leads out of its folder: put a copy of the file in its place")
    return os.fdopen(open_regular(file), "rb")


def read_own(file: Path, most: int = MAX_JSON_BYTES) -> bytes:
    """Return the content of a file of a run's folder.

    Raises:
        UserError: as `open_own`, or it has more than `most` bytes.
        OSError: it cannot be read.
    """
    with open_own(file) as handle:
        size = os.fstat(handle.fileno()).st_size
        data = b"" if size > most else handle.read(most + 1)
    if max(size, len(data)) > most:
        raise UserError(f"{file} is damaged: it has {size} bytes; at most {most} are read")
    return data


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of the content of a file of a run's folder, of any size.

    Raises:
        UserError, OSError: as `open_own`.
    """
    with open_own(file) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def parse(data: bytes, notes: Notes | None = None, most: int = MAX_VALUES) -> Any:
    """Return what JSON holds.

    Args:
        notes: takes up what was left out: keys that stand twice; numbers that are none of ours become texts. Without it
            these are errors. Texts may hold halves of characters, as paths do that are no UTF-8.
        most: values, as far as its signs tell.

    Raises:
        ValueError: it is no JSON, too large, nested too deeply, or holds what only a caller with `notes` takes.
    """

    def odd(text: str) -> str:
        if notes is None:
            raise ValueError(f"{text[:MAX_DIGITS]} is not a number that it may hold")
        return CONSTANTS.get(text, text[:MAX_DIGITS])

    def whole(text: str) -> float | str:
        return int(text) if len(text) <= MAX_DIGITS else broken(text)

    def broken(text: str) -> float | str:
        number = float(text)
        return number if math.isfinite(number) else odd("-Infinity" if number < 0 else "Infinity")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            twice = [name for name, count in Counter(name for name, _ in items).items() if count > 1]
            said = f"the key {twice[0]!r:.100} stands in it twice"
            if notes is None:
                raise ValueError(said)
            notes.append(said)
            found = {name: value for name, value in items if name not in twice}
        return found

    if values_of(data) > most:
        raise ValueError(f"it holds more than {most} values")
    try:
        content = json.loads(
            data.decode("utf-8-sig"),
            parse_constant=odd,
            parse_int=whole,
            parse_float=broken,
            object_pairs_hook=pairs,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_depth(content)
    return content


def values_of(data: bytes) -> int:
    """Return how many values JSON holds, as far as its signs tell."""
    return sum(map(data.count, (b",", b"[", b"{")))


def _check_depth(content: Any) -> None:
    left = [(content, 1)] if isinstance(content, dict | list) else []
    while left:
        value, depth = left.pop()
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        values = value.values() if isinstance(value, dict) else value
        left += [(each, depth + 1) for each in values if isinstance(each, dict | list)]


def is_text(value: Any, most: int = MAX_TEXT) -> TypeGuard[str]:
    """Return whether a value is a text of at most so many characters, none of them a half."""
    return isinstance(value, str) and len(value) <= most and not any("\ud800" <= c <= "\udfff" for c in value)


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number as runs write them."""
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(abs(value) <= MAX_NUMBER)


def is_whole(value: Any, most: int = 1 << 32) -> TypeGuard[int]:
    """Return whether a value is a whole number from 0 to `most`."""
    return type(value) is int and 0 <= value <= most


def read_json(file: Path, notes: Notes | None = None, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the object that a JSON file holds; see `parse`.

    Raises:
        UserError: it holds none, is a link out of its folder, or has more than `most` bytes.
        OSError: it is no regular file, or cannot be read.
    """
    data = read_own(file, most)
    try:
        content = parse(data, notes)
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds {type(content).__name__}, not an object")
    return content


def read_lines(file: Path, typed: Callable[[dict[str, Any], Notes], dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Return the objects of the first MAX_LINES_BYTES of a file; see `objects_of`."""
    return list(objects_of(file, typed, MAX_LINES_BYTES))


def objects_of(
    file: Path, typed: Callable[[dict[str, Any], Notes], dict[str, Any] | None], most: float = math.inf
) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one on each line; a last line torn by a kill is none.

    Args:
        typed: gives the object as its writer writes it, or None, and notes what it leaves out.
        most: bytes of the file that are read.
    """
    notes = Notes()
    for number, line in enumerate(lines_of(file, notes, most), 1):
        before = len(notes)
        content = line_of(line, notes, typed)
        notes[before:] = [f"line {number}: {note}" for note in notes[before:]]
        if content is not None:
            yield content
    warn_of(file, notes)


def line_of(line: bytes, notes: Notes, typed: Callable[[dict[str, Any], Notes], dict[str, Any] | None]) -> Any:
    """Return the object of a line, or None; see `objects_of`."""
    if not line.endswith(b"\n"):
        return None
    try:
        content = parse(line, notes)
    except ValueError as error:
        return notes.append(str(error))
    return typed(content, notes) if isinstance(content, dict) else notes.append("it holds no object")


def lines_of(file: Path, notes: Notes, most: float = math.inf) -> Iterator[bytes]:
    """Yield the lines of a file, none held that has more than MAX_JSON_BYTES; no line where there is no such file.

    Args:
        most: bytes of the file that are read.
    """
    if not os.path.lexists(file):
        return
    try:
        handle = open_own(file)
    except (UserError, OSError) as error:
        notes.append(str(error))
        return
    with handle:
        while line := handle.readline(MAX_JSON_BYTES):
            if handle.tell() > most:
                notes.append(f"all beyond its first {most} bytes")
                return
            if line.endswith(b"\n") or len(line) < MAX_JSON_BYTES:
                yield line
                continue
            notes.append(f"a line of more than {MAX_JSON_BYTES} bytes")
            while line and not line.endswith(b"\n"):
                line = handle.readline(MAX_JSON_BYTES)


_said: set[str] = set()  # files are read many times, and said to be damaged once


def warn_of(file: Path, notes: Notes) -> None:
    """Warn, once, of what was left out of a file."""
    if notes:
        more = f" (and {len(notes) - 1} more)" if len(notes) > 1 else ""
        said = one_line(f"{file}: left out, since it is not as it was written: {notes[0]}{more}")
        if said not in _said:
            _said.add(said)
            warnings.warn(said, stacklevel=3)
