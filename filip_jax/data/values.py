"""Values of other people's columns, fields and features as texts, labels and images."""

import base64
import binascii
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from filip_jax.data.record import BadRecord, is_caption

# Of an object that stands for a text, as Karpathy and COCO name them.
TEXT_FIELDS = ("raw", "caption", "text", "sentence")
IMAGE_FIELDS = ("bytes", "path")  # of a struct that stands for an image, as Hugging Face names them
MAX_NAME = 64  # characters of a column's name that is worth repeating
MAX_DEPTH = 8  # of lists and objects in each other
ENCODED = ("/9j/", "_9j_", "iVBORw0KGgo", "R0lGOD", "UklGR")  # how JPEG, PNG, GIF and WebP begin in base64
MIN_ENCODED = 64  # characters; a shorter text is a path
LIKELY = {
    "image": ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "pixel", "file", "path"),
    "caption_keys": (
        "caption",
        "text",
        "txt",
        "title",
        "sentence",
        "description",
        "comment",
        "alt",
        "prompt",
        "value",
        "content",
        "label",
        "cls",
    ),
}  # words in the names of columns, the likeliest first


def texts_of(value: Any, depth: int = MAX_DEPTH) -> list[str]:
    """Return the texts that a value holds, stripped; texts beyond CAPTION_BYTES are none.

    A text stands for itself and bytes for their UTF-8. A whole number (3, 3.0) or a truth value (as 1 or 0) is a text
    where it stands alone, for it is a label then. A list holds the texts of its items, an object that of its first
    field among TEXT_FIELDS.

    Raises:
        BadRecord: bytes that are not UTF-8, or a text with half a character, which JSON can bring.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, str | bytes | bytearray):
        text = unicode_of(value)
        return [text.strip()] if is_caption(text) else []
    if isinstance(value, int | float | Decimal):
        return [str(int(value))] if _is_whole(value) else []
    if depth and isinstance(value, list | tuple):
        inner = (each for each in value if isinstance(each, str | bytes | list | tuple | dict | np.ndarray))
        return [text for each in inner for text in texts_of(each, depth - 1)]
    if depth and isinstance(value, dict):
        return next((texts_of(value[name], depth - 1) for name in TEXT_FIELDS if value.get(name) is not None), [])
    return []


def _is_whole(value: int | float | Decimal) -> bool:
    """Whether this is a whole number that a text can hold in a few digits; no infinity is."""
    return -(2**63) < value < 2**63 and value == int(value)


def unicode_of(text: str | bytes | bytearray) -> str:
    """Return the text, or the text that UTF-8 encodes.

    Raises:
        BadRecord: it is not UTF-8, or has lone surrogates.
    """
    try:
        if isinstance(text, str):
            text.isascii() or text.encode("utf-8")
            return text
        return bytes(text).decode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise BadRecord(f"a text that is not UTF-8: {error.reason}") from error


def field_of(value: Any, names: Sequence[str]) -> Any:
    """Return what stands at a.b.c in objects, or in each object of a list; None where it is missing."""
    for name in names:
        if isinstance(value, list | tuple):
            value = [each.get(name) for each in value if isinstance(each, dict)]
        else:
            value = value.get(name) if isinstance(value, dict) else None
    return value


def image_of(value: Any, name: str) -> bytes | str:
    """Return the encoded image or the path that a value holds: alone, in a struct, or as a list's only item.

    Raises:
        BadRecord: there is none, or there are several.
    """
    if isinstance(value, list | tuple):
        if len(value) > 1:
            raise BadRecord(f"{len(value)} images in {name}; one is wanted")
        value = value[0] if value else None
    if isinstance(value, dict):
        value = next((value[field] for field in IMAGE_FIELDS if value.get(field)), None)
    if not isinstance(value, str | bytes) or not value:
        raise BadRecord(f"no {name}")
    return value


def embedded_image(text: str, most: int) -> bytes | None:
    """Return at least the first `most` bytes of an image that a text holds as a data URI or in base64; None if it holds a path.

    Raises:
        BadRecord: a data URI that holds no base64.
    """
    start = 0
    if text.startswith("data:"):
        start = text.find(",", 0, 256) + 1
        if not text[:start].endswith(";base64,"):
            raise BadRecord(f"a data URI without base64: {text[:40]!r}")
    elif not text.startswith(ENCODED) or len(text) < MIN_ENCODED or "." in text:
        return None
    part = text[start : start + 4 * (most // 3 + 1)].rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRecord(f"an image in base64 that is damaged: {error}") from error


def read_json(data: bytes) -> Any:
    """Return what JSON in UTF-8 holds.

    Raises:
        ValueError: it is none, or an object has a key twice.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def read_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in UTF-8.

    Raises:
        ValueError: it is none, or has a key twice.
    """
    found = read_json(data)
    if not isinstance(found, dict):
        raise ValueError(f"JSON that holds {type(found).__name__}, not an object")
    return found


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"an object with the key {name!r} twice")
    return fields


def advice(option: str, names: Iterable[str], are_fit: bool = False) -> str:
    """Return what to say for `image`, `caption_keys` or `key`: "say image=jpg" where a name is likely, else in general.

    Args:
        are_fit: whether the types of these columns are right, so that a single one is likely whatever its name.
    """
    names = [name for name in names if len(name) <= MAX_NAME and "://" not in name]
    for word in LIKELY.get(option, ()):
        if close := [name for name in names if word in name.lower() and "url" not in name.lower()]:
            return f"say {option}={min(close, key=len)}"
    if option == "image" and any("url" in name.lower() for name in names):
        return "images are not downloaded from the web: fetch them first, as with img2dataset"
    return f"say {option}={names[0] if are_fit and len(names) == 1 else 'NAME'}"
