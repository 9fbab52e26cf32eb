"""The headers of a tar, one after the other: work and memory in proportion to the bytes that are read.

tarfile applies every global header to every member, keeps what it read, and on some versions of Python takes the
square of a header's length. What an index needs is less: where members stand, and their names. Formats: POSIX's ustar
and pax, GNU's long names and sizes, and the sparse files of both, which are passed over.
"""

import io
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

BLOCK = 512
MAX_END_BYTES = 1 << 20  # that are looked at behind the end; writers fill records of 10 KiB, some of 1 MiB
HEADER_BYTES = 1 << 16  # of an extended header, which is held whole
# Bytes of a name that a global header gives to all members, each of which has a header at least.
MAX_SHARED_NAME = BLOCK
NUMBER_BYTES = 20  # digits of a number in an extended header
FILES, FOLDER, SPARSE, LONG_NAME, LONG_LINK = (b"0", b"\0", b"7"), b"5", b"S", b"L", b"K"
LINKS, LISTING, LABEL = (b"1", b"2"), b"D", b"V"  # the latter of GNU: a folder's names, the name of the tar
GLOBAL, EXTENDED = b"g", (b"x", b"X")
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes, whatever size they claim
SPARSE_KEYS = b"GNU.sparse."
KEYS = (b"path=", b"size=", SPARSE_KEYS)  # what an index needs


class DamagedTar(Exception):
    """What stands in a tar is no header."""


class JoinedTar(Exception):
    """Behind a tar's end stands another, which nobody reads: `cat` makes no tar of two."""


class Member(NamedTuple):
    """A member as its header describes it; the methods are named as those of tarfile.TarInfo."""

    name: str
    kind: bytes
    offset_data: int
    size: int
    sparse: bool

    def isreg(self) -> bool:
        return self.kind in (*FILES, SPARSE)

    def isdir(self) -> bool:
        return self.kind == FOLDER

    def is_link(self) -> bool:
        return self.kind in LINKS

    def is_about_others(self) -> bool:
        """Whether it holds no content of its own: folders, and what GNU notes of them and of the tar."""
        return self.kind in (FOLDER, LISTING, LABEL)

    def issparse(self) -> bool:
        return self.sparse


def read_members(stream: io.IOBase, size: int) -> Iterator[Member]:
    """Yield the members of a tar of `size` bytes up to its end, to the file's end, or to damage.

    Raises:
        DamagedTar: there is damage, or nothing.
        JoinedTar: there is another tar behind the end.
    """
    shared: dict[bytes, bytes] = {}  # of global headers
    own: dict[bytes, bytes] = {}  # of those before a member
    at = 0  # where the next header stands
    while at < size:
        block = _read(stream, at, BLOCK)
        if not any(block):
            _check_end(stream, at)
            break
        _check_sum(block)
        kind, length, at = block[156:157], _number(block[124:136]), at + BLOCK
        if kind == GLOBAL or kind in EXTENDED or kind in (LONG_NAME, LONG_LINK):
            if length > HEADER_BYTES:
                raise DamagedTar(f"a header of {length} bytes")
            data, at = _read(stream, at, length), at + _padded(length)
            if kind == LONG_NAME:
                own[b"path"] = data.partition(b"\0")[0]
            elif kind != LONG_LINK:
                (shared if kind == GLOBAL else own).update(_records(data))
                if len(shared.get(b"path", b"")) > MAX_SHARED_NAME:
                    raise DamagedTar(f"a name of {len(shared[b'path'])} bytes for all members")
            continue
        fields, own = shared | own, {}
        if b"size" in fields:
            length = _decimal(fields[b"size"])
        if kind == SPARSE:
            at = _behind_sparse_map(stream, block, at)
        name = fields.get(b"path") or _name(block)
        if kind == b"\0" and name.endswith(b"/"):  # before POSIX
            kind = FOLDER
        sparse = kind == SPARSE or SPARSE_KEYS in fields
        yield Member(name.rstrip(b"/").decode("utf-8", "surrogateescape"), kind, at, length, sparse)
        at += 0 if kind in WITHOUT_DATA else _padded(length)
    if not size or at > size or own:
        raise DamagedTar("it ends within a member")


def _read(stream: io.IOBase, at: int, size: int) -> bytes:
    stream.seek(at)
    data = stream.read(size)
    if len(data) < size:
        raise DamagedTar("it ends within a header")
    return data


def _check_end(stream: io.IOBase, at: int) -> None:
    """Look for a header behind the blocks of zeros that end a tar, and fill its last record."""
    stream.seek(at)
    rest = stream.read(MAX_END_BYTES)
    start = at + (len(rest) - len(rest.lstrip(b"\0"))) // BLOCK * BLOCK
    block = rest[start - at : start - at + BLOCK]
    with suppress(DamagedTar):
        if len(block) == BLOCK and any(block):
            _check_sum(block)
            raise JoinedTar(f"another tar at byte {start}")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _check_sum(block: bytes) -> None:
    """Compare the header's checksum, which some writers make of signed bytes."""
    field = block[148:156]
    total, written = sum(block) - sum(field) + sum(b" " * 8), _number(field)
    if written != total and written != total - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise DamagedTar("a wrong checksum")


def _number(field: bytes) -> int:
    """Return a number in octal digits, or in GNU's form for large ones."""
    if field[0] in (0x80, 0xFF):
        number = int.from_bytes(field[1:]) - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    else:
        try:
            number = int(field.partition(b"\0")[0].strip() or b"0", 8)
        except ValueError:
            raise DamagedTar(f"the number {field!r}") from None
    if number < 0:
        raise DamagedTar(f"the number {number}")
    return number


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > NUMBER_BYTES:
        raise DamagedTar(f"the number {digits[: 2 * NUMBER_BYTES]!r}")
    return int(digits)


def _name(block: bytes) -> bytes:
    name, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
    return prefix + b"/" + name if prefix and block[156:157] != SPARSE else name


def _records(data: bytes) -> dict[bytes, bytes]:
    """Return what an index needs of an extended header's records, each of which is its length, a key and a text."""
    found, at = dict[bytes, bytes](), 0
    if not any(b" " + key in data for key in KEYS):  # most have nothing, and a record takes Python as long as a block
        return found
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + NUMBER_BYTES + 1)
        end = at + _decimal(data[at : max(space, at)])
        key, equals, text = data[space + 1 : end - 1].partition(b"=")
        if not equals or data[end - 1 : end] != b"\n":
            raise DamagedTar("an extended header that cannot be read")
        if key in (b"path", b"size"):
            found[key] = text
        elif key.startswith(SPARSE_KEYS):
            found[SPARSE_KEYS] = b""
        at = end
    return found


def _behind_sparse_map(stream: io.IOBase, block: bytes, at: int) -> int:
    """Return where the data of an old GNU sparse file begins: its map goes on for as many blocks as say so."""
    more = block[482]
    while more:
        more, at = _read(stream, at, BLOCK)[504], at + BLOCK
    return at
