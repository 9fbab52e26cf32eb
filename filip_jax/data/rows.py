"""Rows of list files as other tools write them: JSON lines or one array, CSV and TSV, packed or in UTF-16."""

import codecs
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from filip_jax import storage
from filip_jax.data.caption_text import MARKS
from filip_jax.data.packed import PACKED_BYTES, refuse_other
from filip_jax.data.record import METADATA_BYTES
from filip_jax.data.separated import TOO_LONG, Row, Separated
from filip_jax.data.values import read_object
from filip_jax.errors import UserError, one_line

PIECE = 1 << 18  # bytes that are read at once
MAX_DOCUMENT_BYTES = 1 << 30  # of a list that is one JSON array
MAX_SHOWN = 200  # characters of a reason
JSON = re.compile(r"\.(jsonl?|ndjson)(\.gz)?$")


def read_rows(path: str, separator: str = "", columns: Sequence[str] = ()) -> Iterator[Row]:
    """Return the rows of a list; blank lines are none.

    Args:
        separator, columns: see `Separated`.

    Raises:
        UserError: a list that is no text or is cut off, or what `Separated` raises.
    """
    with storage.open_stream(path) as stream:
        try:
            pieces = iter(_unpacked(stream, path))
            is_json = JSON.search(path.lower())
            yield from _json_rows(pieces, path) if is_json else Separated(_lines(pieces), path, separator, columns)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path} is damaged: {one_line(str(error))}") from error


def _unpacked(stream: io.IOBase, path: str) -> Iterator[bytes]:
    """The bytes of a file in pieces, out of gzip, and in UTF-8 where its first bytes say that it is UTF-16 or UTF-32."""
    first = _beginning(stream)
    if first[:2] == b"\x1f\x8b":
        stream = gzip.GzipFile(fileobj=stream)
        first = _beginning(stream)
    refuse_other(first, path)
    pieces = iter(lambda: stream.read(PIECE), b"")
    code = next((code for mark, code in MARKS.items() if first.startswith(mark)), "")
    if code in ("utf-16", "utf-32"):
        decoder = codecs.getincrementaldecoder(code)("surrogatepass")
        return (decoder.decode(piece).encode("utf-8", "surrogatepass") for piece in pieces)
    if code:
        stream.read(len(codecs.BOM_UTF8))
    return pieces


def _beginning(stream: io.IOBase) -> bytes:
    first = stream.read(PACKED_BYTES)
    stream.seek(0)
    return first


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes | None]:
    """The lines without their ends, None for one of more than METADATA_BYTES; the first line's end is that of all."""
    rest, end, is_long = b"", b"", False
    for piece in pieces:
        data = rest + piece
        if not end and (match := re.search(rb"\r\n|\n|\r(?=[^\n])", data)):
            end = b"\r" if match[0] == b"\r" else b"\n"
        *whole, rest = data.split(end or b"\n")
        for line in whole:
            yield None if is_long or len(line) > METADATA_BYTES else line.removesuffix(b"\r")
            is_long = False
        if len(rest) > METADATA_BYTES:
            rest, is_long = b"", True
    if is_long or rest:
        yield None if is_long else rest.removesuffix(b"\r")


def _json_rows(pieces: Iterator[bytes], path: str) -> Iterator[Row]:
    first = next(pieces, b"")
    pieces = itertools.chain([first], pieces)
    if first.lstrip().startswith(b"["):
        yield from _array_rows(pieces, path)
        return
    for number, line in enumerate(_lines(pieces), 1):
        place = f"line {number}"
        if line is None:
            yield Row(place, {}, TOO_LONG)
        elif line.strip():
            try:
                yield Row(place, read_object(line))
            except ValueError as error:
                yield Row(place, {}, one_line(str(error))[:MAX_SHOWN])


def _array_rows(pieces: Iterator[bytes], path: str) -> Iterator[Row]:
    """The objects of a list that is one JSON array, as LLaVA's and BLIP's are."""
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) > MAX_DOCUMENT_BYTES:
            raise UserError(
                f"{path} is one JSON array of more than {MAX_DOCUMENT_BYTES} bytes: write an object a line (jq -c '.[]')"
            )
    try:
        objects = json.loads(data.decode("utf-8"), object_pairs_hook=_object_or_none)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} begins as one JSON array, but is none: {one_line(str(error))}") from error
    for number, fields in enumerate(objects, 1):
        is_object = isinstance(fields, dict)
        yield Row(
            f"object {number}", fields if is_object else {}, "" if is_object else "no object, or one with a key twice"
        )


def _object_or_none(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else None
