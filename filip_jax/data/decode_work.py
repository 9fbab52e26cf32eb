"""Bounds of the work that a picture's bytes ask of its decoder, beside those of its size in decode.py.

A few bytes can ask for much: a JPEG scan, a PNG chunk or a TIFF strip costs a decoder the same whether it holds
anything, and Pillow reads many of them in Python. So the bytes alone are counted here before a decoder sees them;
time is not measured, and the same file is read or refused on every machine. No file that a camera, an editor or the
web makes comes near these numbers; at them a decoder needs about as long as for the pixels of the largest picture.
"""

import re
import struct
from collections.abc import Iterator

from filip_jax.data.record import METADATA_BYTES

PIXELS = 89_478_485  # of one picture, Pillow's own limit
MAX_SCANNED = 24 * PIXELS  # of a JPEG: pixels times the components of all its scans; its writers make up to 24 of them
MAX_SEGMENTS = 512  # of a JPEG before its first scan: 32 MiB
MAX_TABLES = 64  # … of which no APPn and no comment
MAX_BLOCKS = 1 << 16  # PNG chunks; GIF blocks before the first frame; bytes between a JPEG's segments
MAX_PACKED = 256  # PNG chunks that hold a compressed text or profile, of a MiB each unpacked
MAX_TAGS = 4096  # of a TIFF directory
MAX_FRACTIONS = 4096  # in one tag: Python makes an object of each
MAX_NUMBERS = 1 << 18  # of more than a byte in one tag
MAX_STRIPS = 1 << 17  # of a TIFF, and tiles
MAX_TILED = 8 * PIXELS  # of all tiles together: each is unpacked whole, though all but a line lies outside the picture
# Of a run-length BMP: pixels plus two for each byte, all of which go through Python. A photo of 4K fits.
MAX_RLE_WORK = 1 << 25

_SCAN, _END, _COMMENT = 0xDA, 0xD9, 0xFE
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_BARE = {0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}  # JPEG markers after which Pillow expects no length
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # one that can end a scan
_STRIPS, _TILES, _TILE_SIDES = (273, 279, 324, 325), (324, 325), (322, 323)
_DIRECTORIES = (34665, 34853, 40965)  # tags that lead to EXIF, GPS and Interop
_FRACTIONS, _BYTES = (5, 10), (1, 2, 6, 7)  # types


def check_work(image: bytes) -> None:
    """Return if decoding this file costs no more than its size in bytes and pixels lets expect.

    Raises:
        ValueError: it costs more.
    """
    for starts, check in _CHECKS:
        if image.startswith(starts):
            check(image)


def check_exif(info: dict) -> None:
    """Raise a ValueError if the EXIF in Pillow's `info`, which it parses in Python, is longer than METADATA_BYTES."""
    _at_most(len(info.get("exif") or ""), METADATA_BYTES, "bytes of EXIF")
    _at_most(len(info.get("Raw profile type exif") or "") // 2, METADATA_BYTES, "bytes of EXIF")  # in hexadecimal


def _at_most(count: int, most: int, what: str) -> None:
    if count > most:
        raise ValueError(f"{count} {what}; at most {most} are read")


def _check_jpeg(image: bytes) -> None:
    """Count the segments before the first scan as Pillow reads them, which passes over whatever stands between them."""
    at, segments, tables, loose, exif = 3, 0, 0, 0, 0  # the first marker's 0xFF is the third byte
    pixels, layers, progressive = 0, 0, False
    while 0 < at < len(image) and segments <= MAX_SEGMENTS and loose <= MAX_BLOCKS:
        code = image[at]
        at += 1
        if code == 0xFF:
            loose += 1
            continue
        if code == _SCAN:
            if progressive or image[at + 2 : at + 3] != bytes([layers]):  # else a second scan is an error
                _check_scans(image, at - 2, pixels)
            break
        if 0 < code < 0xC0:
            break  # no decoder reads it
        if code in _BARE or not code:
            loose += 1
        else:
            if code in _FRAMES:
                height, width, layers = struct.unpack_from(">HHB", image, at + 3)
                pixels, progressive = height * width, code in _PROGRESSIVE
            length = max(int.from_bytes(image[at : at + 2]), 2)
            segments, tables = segments + 1, tables + (code < 0xE0)
            exif += length if image[at + 2 : at + 6] == b"Exif" else 0
            at += length
        marker = image.find(b"\xff", at)
        loose, at = loose + marker - at, marker + 1
    _at_most(segments, MAX_SEGMENTS, "segments before the first scan")
    _at_most(tables, MAX_TABLES, "tables before the first scan")
    _at_most(loose, MAX_BLOCKS, "bytes between segments")
    _at_most(exif, METADATA_BYTES, "bytes of EXIF")


def _check_scans(image: bytes, at: int, pixels: int) -> None:
    """Each scan passes over all blocks of its components, however few bytes it has."""
    if 4 * image.count(b"\xff\xda", at) * pixels <= MAX_SCANNED:
        return
    components, segments = 0, 0
    for code, start in _markers(image, at):
        segments += 1
        if code == _SCAN:
            components += image[start + 4] if start + 4 < len(image) else 0
        if components * pixels > MAX_SCANNED or segments > MAX_BLOCKS:
            break
    _at_most(components * pixels, MAX_SCANNED, "pixels in all scans")
    _at_most(segments, MAX_BLOCKS, "segments between scans")


def _markers(image: bytes, at: int) -> Iterator[tuple[int, int]]:
    """(marker, where it begins) up to the picture's end; behind it may lie another picture, a film or anything."""
    while (found := _MARKER.search(image, at)) and image[found.start() + 1] != _END:
        yield image[found.start() + 1], found.start()
        at = found.end() + int.from_bytes(image[found.end() : found.end() + 2])


def _check_png(image: bytes) -> None:
    at, chunks, packed = 8, 0, 0
    while at < len(image) and chunks <= MAX_BLOCKS:
        name = image[at + 4 : at + 8]
        if name == b"IEND":
            break
        chunks, packed = chunks + 1, packed + (name in (b"iCCP", b"zTXt", b"iTXt"))
        at += 12 + int.from_bytes(image[at : at + 4])
    _at_most(chunks, MAX_BLOCKS, "chunks")
    _at_most(packed, MAX_PACKED, "compressed texts and profiles")


def _check_gif(image: bytes) -> None:
    """Count blocks up to the first frame, beyond which the decoder is not in Python."""
    flags, at, blocks = image[10], 13, 0
    if flags & 0x80:
        at += 3 << (flags & 7) + 1
    while at < len(image) and image[at] not in b",;" and blocks <= MAX_BLOCKS:
        chains = 0
        if image[at] == ord("!"):
            comment, at = image[at + 1 : at + 2] == bytes([_COMMENT]), at + 2
            # Pillow reads another chain of blocks where the first one of an extension is empty.
            chains = 1 if comment or image[at : at + 1] != b"\0" else 2
        else:
            at += 1
        for _ in range(chains):
            while at < len(image) and image[at] and blocks <= MAX_BLOCKS:
                at, blocks = at + 1 + image[at], blocks + 1
            at += 1
        blocks += 1
    _at_most(blocks, MAX_BLOCKS, "blocks before the first frame")


def _check_bmp(image: bytes) -> None:
    if len(image) < 34:
        return
    header, width, height, _, _, compression = struct.unpack_from("<IiiHHI", image, 14)
    if header >= 40 and compression in (1, 2):
        _at_most(abs(width * height) + 2 * len(image), MAX_RLE_WORK, "pixels and bytes of run lengths")


def _check_tiff(image: bytes) -> None:
    order = "<" if image.startswith(b"I") else ">"
    if image[2] == 43:  # BigTIFF: (number of entries, entry, bytes of its value, the offset that the header holds)
        layout = struct.Struct(f"{order}Q"), struct.Struct(f"{order}HHQ8s"), 8, 8
    else:
        layout = struct.Struct(f"{order}H"), struct.Struct(f"{order}HHL4s"), 4, 4
    _check_directory(image, layout, _number(order, image[layout[3] : layout[3] + layout[2]]), 0)


def _check_directory(image: bytes, layout: tuple, at: int, depth: int) -> None:
    """Count the entries of a TIFF directory, and of those that Pillow reads with it."""
    counter, entry, inline, _ = layout
    if at + counter.size > len(image):
        return
    entries = min(counter.unpack_from(image, at)[0], (len(image) - at) // entry.size)
    _at_most(entries, MAX_TAGS, "tags")
    area, tiles, held = 1, 1, 0
    for start in range(at + counter.size, at + counter.size + entries * entry.size, entry.size):
        if start + entry.size > len(image):
            break
        tag, kind, count, value = entry.unpack_from(image, start)
        number = _number(entry.format[0], value[: 2 if kind == 3 else inline])
        size = count * _SIZES.get(kind, 0)
        held += size if inline < size and number + size <= len(image) else 0
        if kind in _FRACTIONS:
            _at_most(count, MAX_FRACTIONS, f"fractions in tag {tag}")
        if kind not in _BYTES:
            _at_most(count, MAX_NUMBERS, f"numbers in tag {tag}")
        if tag in _STRIPS:
            _at_most(count, MAX_STRIPS, "strips or tiles")
        if tag in _TILES:
            tiles = max(tiles, count)
        if tag in _TILE_SIDES:
            area *= number if size <= inline else _number(entry.format[0], image[number : number + size])
        if tag in _DIRECTORIES and depth < 2:
            _check_directory(image, layout, number, depth + 1)
    _at_most(area, PIXELS, "pixels in a tile")
    _at_most(area * tiles, MAX_TILED, "pixels in all tiles")
    _at_most(held, 2 * len(image), "bytes in all tags")


def _number(order: str, data: bytes) -> int:
    return int.from_bytes(data, "little" if order == "<" else "big")


_SIZES = dict(zip(range(1, 14), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4))) | {16: 8}  # bytes of each type
_CHECKS = (
    ((b"\xff\xd8\xff",), _check_jpeg),
    ((b"\x89PNG\r\n\x1a\n",), _check_png),
    ((b"GIF87a", b"GIF89a"), _check_gif),
    ((b"BM",), _check_bmp),
    ((b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0"), _check_tiff),
)
