"""The texts of a caption's own file, or of a member of a tar."""

import codecs

from filip_jax.data.record import CAPTION_BYTES, METADATA_BYTES, BadRecord
from filip_jax.data.values import read_json, texts_of

MARKS = {  # UTF-32's first: UTF-16's is the beginning of it
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


def is_json(name: str) -> bool:
    """Return whether a file, or the kind of a member, holds JSON."""
    return f".{name}".lower().endswith(".json")


def most_bytes(name: str) -> int:
    """Return how long a file of this name may be."""
    return METADATA_BYTES if is_json(name) else CAPTION_BYTES


def texts_in(data: bytes, name: str) -> list[str]:
    """Return the texts of a file: of JSON all that `texts_of` finds, which is never a text itself, else the one.

    Raises:
        BadRecord: JSON that is none, or as `caption_text`.
    """
    if not is_json(name):
        return [caption_text(data, name)]
    try:
        return texts_of(read_json(data))
    except ValueError as error:
        raise BadRecord(f"the JSON cannot be read: {name}: {error}") from error


def caption_text(data: bytes, name: str) -> str:
    """Return the text without white space around it: UTF-8, or what a byte order mark says, as editors write it.

    Args:
        name: of the file, for the message.

    Raises:
        BadRecord: it is longer than CAPTION_BYTES or no such text.
    """
    if len(data) > CAPTION_BYTES:
        raise BadRecord(f"a caption of more than {CAPTION_BYTES} bytes: {name}")
    code = next((code for mark, code in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(code)
    except UnicodeDecodeError as error:
        raise BadRecord(f"the caption is not {code.removesuffix('-sig').upper()}: {name}: {error}") from error
    if "\0" in text:
        raise BadRecord(f"the caption holds zero bytes, as UTF-16 without its mark: {name}")
    return text.replace("\r\n", "\n").strip()
