"""Check how large an Arrow file becomes before unpacking it: each compressed buffer begins with its unpacked length.

The format is public (arrow.apache.org/docs/format/Columnar.html). Messages are FlatBuffers, which pyarrow verifies; of a
table's slots it has no reader.
"""

import struct
from collections.abc import Iterable, Iterator

import pyarrow as pa

from filip_jax.errors import UserError

OLD_COMPRESSION = b"ARROW:experimental_compression"  # of a message's metadata, before the format had a field for it
DICTIONARY, BATCH = 2, 3  # types of messages
ROOT, HEADER_TYPE, HEADER, DATA, IS_DELTA, BUFFERS, COMPRESSION = 0, 1, 2, 1, 2, 2, 3  # slots of tables
FOOTER_DICTIONARIES, FOOTER_BATCHES = 2, 3
TAIL = struct.Struct("<i6s")  # of a file: its footer's length, and the magic


def check_unpacked(path: str, file: pa.MemoryMappedFile, is_file: bool, most: int) -> None:
    """Raise a UserError if a batch of a file, with its dictionaries, unpacks to more than `most` bytes.

    Args:
        file: that pyarrow has opened, or could open, as Arrow.
        is_file: whether it has a footer; else it is a stream.
        most: 0 takes no compressed file.

    Raises:
        pa.ArrowInvalid: a message is not where the footer says, or not as the format has it.
    """
    try:
        size = _largest(_of_file(file) if is_file else pa.ipc.MessageReader.open_stream(file))
    except (EOFError, IndexError, struct.error) as error:
        raise pa.ArrowInvalid(f"a damaged message: {error}") from error
    if size > most:
        what = f"a batch of {size} bytes unpacked; at most {most} are read: write smaller batches"
        raise UserError(f"{path} has {what}")


def _largest(messages: Iterable[pa.ipc.Message]) -> int:
    """Return the bytes of the largest batch, unpacked, with the dictionaries before it."""
    dictionaries: dict[int, int] = {}
    largest = 0
    for message in messages:
        metadata, body = message.metadata, message.body
        table = _table(metadata, ROOT)
        kind, header = metadata[_slot(metadata, table, HEADER_TYPE)], _table(metadata, _slot(metadata, table, HEADER))
        size = 0
        if kind == BATCH:
            size = _unpacked(metadata, header, body)
        elif kind == DICTIONARY:
            number, is_delta = _slot(metadata, header, ROOT), _slot(metadata, header, IS_DELTA)
            name = struct.unpack_from("<q", metadata, number)[0] if number else 0
            before = dictionaries.get(name, 0) if is_delta and metadata[is_delta] else 0
            dictionaries[name] = before + _unpacked(metadata, _table(metadata, _slot(metadata, header, DATA)), body)
        largest = max(largest, size + sum(dictionaries.values()))
    return largest


def _of_file(file: pa.MemoryMappedFile) -> Iterator[pa.ipc.Message]:
    """Yield the messages that a file's footer names, dictionaries first."""
    whole = pa.py_buffer(file.read_buffer())
    length, _ = TAIL.unpack_from(whole, whole.size - TAIL.size)
    footer = whole.slice(whole.size - TAIL.size - length, length)
    for slot in (FOOTER_DICTIONARIES, FOOTER_BATCHES):
        for start in _vector(footer, _slot(footer, _table(footer, ROOT), slot), 24):
            (offset,) = struct.unpack_from("<q", footer, start)
            yield pa.ipc.read_message(pa.BufferReader(whole.slice(offset)))


def _unpacked(metadata: pa.Buffer, batch: int, body: pa.Buffer | None) -> int:
    """Return the bytes of a batch's buffers, unpacked; those that are not compressed stay in the file and count nothing."""
    if not _slot(metadata, batch, COMPRESSION) and OLD_COMPRESSION not in bytes(metadata):
        return 0
    total = 0
    for start in _vector(metadata, _slot(metadata, batch, BUFFERS), 16):
        offset, length = struct.unpack_from("<qq", metadata, start)
        if body is not None and length >= 8 and 0 <= offset <= body.size - 8:
            total += max(0, struct.unpack_from("<q", body, offset)[0])  # -1 for one that is as it was
    return total


def _table(data: pa.Buffer, at: int) -> int:
    """Return the place of the table that a reference leads to."""
    return at + struct.unpack_from("<I", data, at)[0]


def _slot(data: pa.Buffer, table: int, number: int) -> int:
    """Return the place of a field of a table, 0 if the table has no such field."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    place = 4 + 2 * number
    inside = place < struct.unpack_from("<H", data, fields)[0] and struct.unpack_from("<H", data, fields + place)[0]
    return table + inside if inside else 0


def _vector(data: pa.Buffer, at: int, size: int) -> range:
    """Return the places of a vector's items, each of `size` bytes; none where a table has no such field."""
    start = _table(data, at) if at else 0
    count = struct.unpack_from("<I", data, start)[0] if at else 0
    return range(start + 4, start + 4 + count * size, size)
