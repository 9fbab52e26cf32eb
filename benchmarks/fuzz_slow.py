"""Files that few bytes make slow, for benchmarks/fuzz.py and the tests: scans, segments, chunks, blocks, tags, bombs.

Each maker takes how often its one costly thing stands in the file. Beside it stands the limit of data/decode_work.py
that such a file meets.
"""

import io
import random
import struct
import zlib
from functools import cache

from PIL import Image

SIDE = 9400  # pixels of the largest square
TIFF_TAGS = 1000, 1300  # where the values and the data of a TIFF stand


def saved(picture: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def segment(marker: int, data: bytes) -> bytes:
    """A JPEG segment."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def chunk(name: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def directory(*entries: tuple[int, int, int, int]) -> bytes:
    """A TIFF of one directory, of (tag, type, count, value)."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)


def fractions(count: int) -> bytes:
    """EXIF whose orientation is so many fractions."""
    return directory((0x0112, 5, count, 30)).ljust(30, b"\0") + struct.pack("<II", 1, 1) * count


@cache
def _jpeg() -> bytes:
    return saved(Image.new("RGB", (16, 16)), "JPEG")


def _in_jpeg(data: bytes) -> bytes:
    return _jpeg()[:2] + data + _jpeg()[2:]


@cache
def _progressive(side: int) -> tuple[bytes, bytes, bytes]:
    """A grey progressive JPEG in three parts; the second is a scan that says of all blocks that they are unchanged."""
    data = saved(Image.new("L", (side, side), 128), "JPEG", progressive=True, quality=50)
    start = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)][1]
    end = data.index(b"\xff\xc4", start)
    return data[:start], data[start:end], data[end:]


def scans(count: int, side: int = SIDE) -> bytes:
    """A JPEG with about so many scans."""
    head, scan, rest = _progressive(side)
    return head + scan * count + rest


def _png(*chunks: bytes, after: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 3, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(30)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + data + after + chunk(b"IEND", b"")


def _gif(before: bytes) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x4c\1\0;"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + before + frame


def _bmp(width: int, height: int, bits: int, data: bytes) -> bytes:
    """Of run lengths."""
    palette = bytes(4 << bits)
    start = 54 + len(palette)
    compression = {8: 1, 4: 2}[bits]
    head = struct.pack("<IHHIIiiHHIIiiII", start + len(data), 0, 0, start, 40, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)  # fmt: skip
    return b"BM" + head + palette + data


def _tiff(*entries: tuple[int, int, int, int], compression: int = 1, side: int = 16, data: bytes = bytes(256)) -> bytes:
    """A grey TIFF; where `entries` say nothing else, one strip."""
    values, start = TIFF_TAGS
    found = {256: (4, 1, side), 257: (4, 1, side), 258: (3, 1, 8), 259: (3, 1, compression), 262: (3, 1, 1), 277: (3, 1, 1)}
    if not any(entry[0] == 324 for entry in entries):
        found |= {273: (4, 1, start), 279: (4, 1, len(data))}
    found |= {tag: rest for tag, *rest in entries}
    return directory(*((tag, *rest) for tag, rest in found.items())).ljust(start, b"\0")[:start] + data


def _tags(count: int) -> bytes:
    """A BigTIFF, whose directories have no other end than the file's."""
    entries = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 256)]
    entries += [(9, 3, 1, 8)] * (count - len(entries))
    packed = b"".join(struct.pack("<HHQQ", *entry) for entry in entries)
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, count) + packed + bytes(8)


def _tiles(count: int, side: int, compression: int) -> bytes:
    """Tiles of side x side pixels, all at one place."""
    data = bytes(2 * side * side) if compression == 1 else zlib.compress(bytes(side * side))
    at = TIFF_TAGS[1] + len(data)
    tables = struct.pack("<H", TIFF_TAGS[1]) * count + struct.pack("<H", min(len(data), 65535)) * count
    found = [(322, 4, 1, side), (323, 4, 1, side), (324, 3, count, at), (325, 3, count, at + 2 * count)]
    return _tiff(*found, compression=compression, side=4000, data=data + tables)


def _tile(side: int) -> bytes:
    """One tile, far larger than its picture."""
    data = zlib.compress(bytes(side * side), 1)
    found = [(322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, TIFF_TAGS[1]), (325, 4, 1, len(data))]
    return _tiff(*found, compression=8, data=data)


def _frames(count: int) -> bytes:
    """An animated WebP."""
    frames = [Image.new("RGB", (16, 16), (90 * n, 0, 0)) for n in range(3)]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    start = data.index(b"ANMF")
    body = data[12:start] + data[start : data.index(b"ANMF", start + 4)] * count
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _webp_chunks(count: int) -> bytes:
    data = saved(Image.new("RGB", (16, 16)), "WEBP", exif=fractions(1))
    return b"RIFF" + struct.pack("<I", len(data) - 8 + 8 * count) + data[8:] + b"abcd\0\0\0\0" * count


_ZEROS = zlib.compress(bytes(1 << 20), 9)[:-4] + b"oops"  # a MiB unpacked, and then an error
_EXIF = b"Exif\0\0" + bytes(65_000)
PICTURES = {  # name: (maker, a count that is read or 0, one that is refused)
    "jpeg scans": (scans, 5, 24),
    "jpeg comments": (lambda n: _in_jpeg(segment(0xFE, b"") * n), 400, 513),
    "jpeg tables": (lambda n: _in_jpeg(segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * n), 50, 65),
    "jpeg frames": (lambda n: _in_jpeg(segment(0xC0, struct.pack(">BHHB", 8, 16, 16, 3) + bytes(65_000)) * n), 0, 65),
    "jpeg filling": (lambda n: _in_jpeg(b"\xff" * n), 60_000, 65_537),
    "jpeg restarts": (lambda n: _in_jpeg(b"\xff\xd0" * n), 30_000, 65_537),
    "jpeg rubbish": (lambda n: _in_jpeg(b"\xff\xd0" + bytes(n)), 60_000, 65_537),
    "jpeg exif": (lambda n: _in_jpeg(segment(0xE1, _EXIF) * n), 16, 17),
    "png chunks": (lambda n: _png(*[chunk(b"abCd", b"")] * n), 60_000, 65_537),
    "png chunks behind": (lambda n: _png(after=chunk(b"abCd", b"") * n), 60_000, 65_537),
    "png empty data": (lambda n: _png(*[chunk(b"IDAT", b"")] * n), 60_000, 65_537),
    "png profiles": (lambda n: _png(*[chunk(b"iCCP", b"a\0\0" + _ZEROS)] * n), 20, 257),
    "png texts": (lambda n: _png(*[chunk(b"zTXt", b"a\0\0" + _ZEROS)] * n), 20, 257),
    "png exif": (lambda n: _png(chunk(b"eXIf", fractions(n))), 10_000, 1 << 18),
    "png exif as text": (lambda n: _png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  9\n" + fractions(n).hex().encode())), 9000, 1 << 18),
    "gif extensions": (lambda n: _gif(b"!\1\1a\0" * n), 20_000, 65_537),
    "gif comment": (lambda n: _gif(b"!\xfe" + b"\1a" * n + b"\0"), 60_000, 65_537),
    "gif empty extensions": (lambda n: _gif(b"!\1\0" + b"\1a" * n + b"\0"), 60_000, 65_537),
    "gif rubbish": (lambda n: _gif(b"x" * n), 60_000, 65_537),
    "bmp ends of lines": (lambda n: _bmp(4096, n, 8, b"\1\7\0\0" * n + b"\0\1"), 400, 8192),
    "bmp runs": (lambda n: _bmp(10, 10, 8, b"\xff\7" * n + b"\0\1"), 0, 1 << 22),
    "bmp runs of two": (lambda n: _bmp(4096, 4096, 4, b"\xff\x12" * n + b"\0\1"), 0, 1 << 22),
    "tiff tags": (_tags, 4096, 4097),
    "tiff fractions": (lambda n: _tiff((282, 5, n, TIFF_TAGS[1]), data=bytes(256) + struct.pack("<II", 1, 1) * n), 4096, 4097),
    "tiff strips": (lambda n: _tiff((273, 3, n, TIFF_TAGS[1]), (278, 3, 1, 1), (279, 3, n, TIFF_TAGS[1]), data=bytes(256 + 2 * n)), 16, 131_073),
    "tiff tiles": (lambda n: _tiles(n, 32, 1), 15_625, 131_073),
    "tiff packed tiles": (lambda n: _tiles(n, 32, 8), 15_625, 131_073),
    "tiff side of a tile": (_tile, 1600, 9600),
    "webp exif": (lambda n: saved(Image.new("RGB", (16, 16)), "WEBP", exif=fractions(n)), 10_000, 1 << 18),
}  # fmt: skip
FREE = {"webp frames": (_frames, 10_000), "webp chunks": (_webp_chunks, 1 << 20)}  # fast at any number


def slow_picture(rng: random.Random) -> bytes:
    """One of them, at, below or far beyond its limit."""
    name = rng.choice((*PICTURES, *FREE))
    if name in FREE:
        make, most = FREE[name]
        return make(rng.randint(1, most))
    make, read, refused = PICTURES[name]
    return make(rng.choice((0, 1, read, refused - 1, refused, 2 * refused)))
