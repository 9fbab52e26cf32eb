"""Files that few bytes make slow, for benchmarks/fuzz.py and the tests: scans, segments, chunks, blocks, tags, bombs.

Each maker of a picture takes how often its one costly thing stands in the file. Beside it stands the limit of
data/decode_work.py that such a file meets. Lists and tables are damaged, nested, or unpack to far more than they are.
"""

import io
import json
import random
import shutil
import struct
import zlib
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
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
    """Return a BMP of run lengths."""
    palette = bytes(4 << bits)
    start = 54 + len(palette)
    compression = {8: 1, 4: 2}[bits]
    head = struct.pack("<IHHIIiiHHIIiiII", start + len(data), 0, 0, start, 40, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)  # fmt: skip
    return b"BM" + head + palette + data


def _tiff(*entries: tuple[int, int, int, int], compression: int = 1, side: int = 16, data: bytes = bytes(256)) -> bytes:
    """A grey TIFF; where `entries` say nothing else, one strip."""
    _, start = TIFF_TAGS
    found = {
        256: (4, 1, side),
        257: (4, 1, side),
        258: (3, 1, 8),
        259: (3, 1, compression),
        262: (3, 1, 1),
        277: (3, 1, 1),
    }
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


def _thin_tiles(count: int, height: int) -> bytes:
    """A picture of one line of tiles of 16 pixels' width, all of them at one place."""
    data = zlib.compress(bytes(16 * height), 9)
    at = TIFF_TAGS[1] + len(data)
    tables = struct.pack("<I", TIFF_TAGS[1]) * count + struct.pack("<I", len(data)) * count
    found = [(256, 4, 1, 16 * count), (257, 4, 1, 1), (322, 4, 1, 16), (323, 4, 1, height)]
    return _tiff(*found, (324, 4, count, at), (325, 4, count, at + 4 * count), compression=8, data=data + tables)


def _tile_elsewhere(side: int) -> bytes:
    """One tile whose sides are numbers of eight bytes, which stand behind it."""
    data = zlib.compress(bytes(side * side), 1)
    data += bytes(-len(data) % 2)
    at = TIFF_TAGS[1] + len(data)
    found = [(322, 16, 1, at), (323, 16, 1, at), (324, 4, 1, TIFF_TAGS[1]), (325, 4, 1, len(data))]
    return _tiff(*found, compression=8, data=data + struct.pack("<Q", side))


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
    "bmp runs": (lambda n: _bmp(10, 10, 8, b"\xff\7" * n + b"\0\1"), 0, 1 << 23),
    "bmp runs of two": (lambda n: _bmp(4096, 4096, 4, b"\xff\x12" * n + b"\0\1"), 0, 1 << 23),
    "tiff tags": (_tags, 4096, 4097),
    "tiff fractions": (lambda n: _tiff((282, 5, n, TIFF_TAGS[1]), data=bytes(256) + struct.pack("<II", 1, 1) * n), 4096, 4097),
    "tiff strips": (lambda n: _tiff((273, 3, n, TIFF_TAGS[1]), (278, 3, 1, 1), (279, 3, n, TIFF_TAGS[1]), data=bytes(256 + 2 * n)), 16, 131_073),
    "tiff tiles": (lambda n: _tiles(n, 32, 1), 15_625, 131_073),
    "tiff packed tiles": (lambda n: _tiles(n, 32, 8), 15_625, 131_073),
    "tiff side of a tile": (_tile, 1600, 9600),
    "tiff tiles far beyond a line": (lambda n: _thin_tiles(n, 1 << 18), 16, 171),
    "tiff side of a tile elsewhere": (_tile_elsewhere, 1600, 9600),
    "tiff numbers": (lambda n: _tiff((320, 3, n, TIFF_TAGS[1]), data=bytes(256 + 2 * n)), 768, (1 << 18) + 1),
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


LINES = (
    "[" * 100_000, '{"a":' * 50_000, '{"image": "a.png", "caption": ' + "9" * 900_000 + "}", '{"image": "a.png", "caption": 1e999}',
    '{"image": "a.png", "caption": "' + "\\u0041" * 20_000 + '"}', '{"image": "a.png", "caption": [' + '"a",' * 9000 + '"a"]}', "x" * 3_000_000,
    '{"image": ["a.png"], "caption": {"raw": "a"}}', "{" + ",".join(f'"{n}": 1' for n in range(20_000)) + "}", "null", "\0", "NaN",
)  # fmt: skip
CELLS = (
    '"',
    '""',
    "a" * 2_000_000,
    '"' + "b\n" * 50_000,
    "\0",
    "\t" * 5000,
    "," * 50_000,
    "'",
    "\r",
    "\ufeff",
    "a,b",
    '"a"b"',
)


def _row(image: bytes, caption) -> dict:
    return {"image": image, "caption": caption}


@cache
def _tables() -> tuple[tuple[str, bytes], ...]:
    """Tables of a picture and a text: as one writes them, with many groups or columns, nested, and bombs."""
    image = saved(Image.new("RGB", (8, 6), "red"), "PNG")
    deep = ["a"]
    for _ in range(50):
        deep = [deep]
    plain = pa.Table.from_pylist([_row(image, "a dog")] * 50)
    wide = pa.table({"image": [image], "caption": ["a"], **{f"c{n}": [n] for n in range(3000)}})
    # A word of a megabyte, so many times that the whole would be gigabytes; and zeros.
    word = pa.DictionaryArray.from_arrays(pa.array([0] * 6000, pa.int32()), pa.array([bytes(1 << 20)]))
    found = [plain, wide, pa.Table.from_pylist([_row(image, deep)]), pa.table({"image": word, "caption": ["a"] * 6000})]
    zeros = pa.table({"image": [bytes(1 << 20)] * 40, "caption": ["b" * 60_000] * 40})
    made = [("parquet", _parquet(table, compression="zstd")) for table in found]
    made += [
        ("parquet", _parquet(plain, row_group_size=1)),
        ("parquet", _parquet(zeros, compression="gzip", use_dictionary=False)),
    ]
    for table in (*found[:3], zeros):
        for compression in (None, "zstd", "lz4"):
            out = io.BytesIO()
            with pa.ipc.new_file(out, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as file:
                file.write_table(table)
            made.append(("arrow", out.getvalue()))
    return tuple(made)


def _parquet(table: pa.Table, **options) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


class Lists:
    """Lists, annotations and tables: (kind of source, content)."""

    def __init__(self, folder: Path):
        from filip_jax.data import sources  # noqa: F401 - the first case shall not wait for it

        self.folder, self.number = folder, 0

    def make(self, rng: random.Random) -> tuple[str, bytes]:
        from fuzz_files import damage

        kind = rng.choice(("jsonl", "csv", "tsv", "annotations", "table", "table"))
        if kind == "table":
            kind, data = rng.choice(_tables())
        elif kind == "jsonl":
            lines = ['{"image": "a.png", "caption": "a dog"}'] * 3
            lines[rng.randrange(3)] = rng.choice(LINES)
            data = "\n".join(lines).encode()
        elif kind == "annotations":
            images = [{"id": n, "file_name": "a.png"} for n in range(3)]
            whole = {"images": images, "annotations": [{"image_id": n % 3, "id": n, "caption": "a"} for n in range(9)]}
            data = rng.choice((json.dumps(whole), json.dumps(whole).replace("9", rng.choice(LINES)), *LINES)).encode()
        else:
            mark = "," if kind == "csv" else "\t"
            rows = [["image", "caption"], *([f"a{n}.png", "a dog"] for n in range(4))]
            rows[rng.randrange(5)][rng.randrange(2)] = rng.choice(CELLS)
            data = "\n".join(map(mark.join, rows)).encode()
        return kind, damage(rng, data, rng.choice((0, 0, 1, 3, 10)))

    def run(self, case: tuple[str, bytes]) -> None:
        from filip_jax.data.record import BadRecord
        from filip_jax.data.sources import make_source

        kind, data = case
        self.number += 1
        folder = self.folder / f"list{self.number}"
        folder.mkdir()
        ending = {"annotations": "json", "csv": "csv", "tsv": "tsv"}.get(kind, kind)
        (folder / f"list.{ending}").write_bytes(data)
        (folder / "a.png").write_bytes(saved(Image.new("RGB", (8, 6)), "PNG"))
        name = {"csv": "csv", "tsv": "csv"}.get(kind, kind)
        options = dict(images=str(folder)) if kind in ("annotations", "csv", "tsv", "jsonl") else {}
        try:
            source = make_source(dict(name=name, path=str(folder / f"list.{ending}"), **options))
            bad = 0
            for index in range(min(len(source), 60)):
                try:
                    source.where(index), source.captions(index), source[index]
                except BadRecord as error:
                    bad, reason = bad + 1, str(error)
            if bad and bad == min(len(source), 60):
                raise BadRecord(reason)
        finally:
            shutil.rmtree(folder)
