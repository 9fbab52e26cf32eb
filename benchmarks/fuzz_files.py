"""What benchmarks/fuzz.py tries as bytes: images and tars."""

import contextlib
import gzip
import io
import pickle
import random
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from fuzz_slow import slow_picture
from PIL import Image

SHAPES = ((1, 1), (1, 300), (300, 1), (40, 30), (17, 23), (2000, 3), (640, 480))
LYING = (0, 1, 2, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x00FFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


ENDINGS = ("pickle", "pyd", "npy", "tar", "a b", "x" * 150, "j\nk", "\x1b[31m", "\udcff", "cls")


def damage(rng: random.Random, data: bytes, times: int) -> bytes:
    """The bytes with some changed, gone, doubled or overwritten by numbers that lie."""
    data = bytearray(data)
    for _ in range(times):
        at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 64) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + rng.randint(1, 32)]
        elif kind == 3:
            data[at:at] = data[rng.randrange(len(data) + 1) :][: rng.randint(1, 64)]
        elif kind == 4:
            number = rng.choice(LYING)
            packed = rng.choice(("<I", ">I", "<H", ">H"))
            data[at : at + struct.calcsize(packed)] = struct.pack(
                packed, number & (0xFFFF if packed[1] == "H" else 0xFFFFFFFF)
            )
        else:
            data[at : at + 16] = rng.randbytes(rng.randint(0, 16))
    return bytes(data)


def saved(picture: Image.Image, form: str, **options) -> bytes:
    """The picture in a file's bytes."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    """A camera's word on how it was held."""
    found = Image.Exif()
    found[0x0112] = orientation
    return found


class Images:
    """Files of pictures: whole ones of every kind, damaged ones, and some that were made to do harm."""

    def __init__(self, folder: Path):
        from filip_jax.data import preprocess  # noqa: F401 - the first case shall not wait for it

        rng = np.random.default_rng(0)
        self.whole = [file for shape in SHAPES for file in _pictures(rng, *shape)]
        self.bombs = _bombs()

    def make(self, rng: random.Random) -> bytes:
        pick = rng.random()
        if pick < 0.07:
            return slow_picture(rng)
        if pick < 0.1:
            return rng.choice(self.bombs)
        if pick < 0.2:
            return damage(rng, rng.choice(self.bombs), 1)
        if pick < 0.25:
            start = rng.choice(
                (
                    b"\xff\xd8\xff",
                    b"\x89PNG\r\n\x1a\n",
                    b"GIF89a",
                    b"BM",
                    b"II*\0",
                    b"MM\0*",
                    b"RIFF\xff\xff\xff\xffWEBPVP8X",
                    b"",
                )
            )
            return start + rng.randbytes(rng.choice((0, 1, 40, 3000)))
        return damage(rng, rng.choice(self.whole), rng.choice((0, 1, 1, 2, 5, 20)))

    def run(self, data: bytes) -> None:
        from filip_jax.data.decode import decode, image_format, image_size
        from filip_jax.data.preprocess import centre_view, training_views
        from filip_jax.data.record import HEAD_BYTES, BadRecord

        views, refused = 0, ""
        for read in (
            lambda: image_size(data[:HEAD_BYTES]),
            lambda: image_format(data),
            lambda: centre_view(decode(data), 32),
            lambda: _view(training_views, data, 1.0, True, 0.4),
            lambda: _view(training_views, data, 0.3, False, 0.0),
        ):
            try:
                view = read()
            except ValueError as error:  # what decoding promises, and the pipeline makes a BadRecord of
                refused = str(error)
                continue
            if isinstance(view, np.ndarray):
                views += 1
                assert view.shape == (32, 32, 3) and view.dtype == np.uint8
        assert views in (0, 3), f"{views} of 3 views: {refused}"
        if not views:
            raise BadRecord(refused)


def _view(training_views, data: bytes, min_area: float, flip: bool, jitter: float) -> np.ndarray:
    options = dict(min_area=min_area, flip=flip, colour_jitter=jitter, auto_augment=flip)
    return training_views(data, 32, np.random.default_rng(0), **options)[0]


def _pictures(rng: np.random.Generator, width: int, height: int) -> list[bytes]:
    """One picture in every format and mode that is read, and in some that are not."""
    rgb = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    grey, rgba, deep = (
        rgb.convert("L"),
        rgb.convert("RGBA"),
        Image.fromarray(rng.integers(0, 1 << 16, (height, width), np.uint16)),
    )
    rgba.putalpha(grey)
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=17)
    frames = [rgb, rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT), rgb]
    found = [
        saved(rgb, "JPEG", quality=q, exif=exif(o), progressive=o % 2) for q, o in ((90, 1), (30, 6), (75, 8), (50, 99))
    ]
    found += [saved(rgb.convert(mode), "JPEG") for mode in ("L", "CMYK")] + [
        saved(rgb, "JPEG", subsampling=2, optimize=True)
    ]
    found += [
        saved(picture, "PNG") for picture in (rgb, grey, rgba, deep, palette, rgb.convert("1"), grey.convert("LA"))
    ]
    found += [
        saved(palette, "PNG", transparency=3),
        saved(rgb, "PNG", transparency=(1, 2, 3)),
        saved(deep, "PNG", transparency=5),
    ]
    found += [
        saved(rgb, "PNG", save_all=True, append_images=frames),
        saved(rgb, "PNG", exif=exif(5), icc_profile=b"no profile"),
    ]
    found += [
        saved(rgba, "WEBP", lossless=True),
        saved(rgb, "WEBP", exif=exif(3)),
        saved(rgb, "WEBP", save_all=True, append_images=frames),
    ]
    found += [saved(palette, "GIF", transparency=2), saved(rgb, "GIF", save_all=True, append_images=frames, loop=0)]
    found += [saved(picture, "BMP") for picture in (rgb, grey, palette, rgb.convert("1"), rgba)]
    found += [
        saved(rgb, "TIFF", compression=name) for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    ]
    found += [
        saved(picture, "TIFF")
        for picture in (deep, rgba, palette, rgb.convert("CMYK"), rgb.convert("1"), rgb.convert("LAB"))
    ]
    found += [
        saved(grey.convert("F"), "TIFF"),
        saved(grey.convert("I"), "TIFF"),
        saved(rgb, "TIFF", exif=exif(7)),
        saved(rgb, "TIFF", save_all=True, append_images=frames),
    ]
    return found + [saved(rgb, form) for form in ("PPM", "TGA", "PCX", "JPEG2000", "EPS")]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, data: bytes, *more: bytes, depth: int = 8, colour: int = 2) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _bombs() -> list[bytes]:
    """Few bytes that claim or become many."""
    zeros = zlib.compress(bytes(50_000_000), 9)
    text = _chunk(b"zTXt", b"a\0\0" + zeros), _chunk(b"iCCP", b"a\0\0" + zeros), _chunk(b"iTXt", b"a\0\1\0\0\0" + zeros)
    found = [
        _png(*shape, zeros)
        for shape in (
            (60_000, 60_000),
            (9_400, 9_400),
            (89_478_485, 1),
            (1, 89_478_485),
            (0x7FFFFFFF, 0x7FFFFFFF),
            (0, 5),
            (4_000, 4_000),
        )
    ]
    found += [_png(3, 3, zlib.compress(bytes(30)), chunk) for chunk in text] + [
        _png(3, 3, zeros),
        _png(9_000, 9_000, zeros, depth=16, colour=6),
    ]
    found += [_png(3, 3, zlib.compress(bytes(30)), *[_chunk(b"tEXt", b"a\0b")] * 20_000)]
    found += [
        b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\2\2\x4c\1\0;"
    ]
    found += [
        b"GIF89a"
        + struct.pack("<HHBBB", 9000, 9000, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
        + b"\2\2\x4c\1\0;"
    ]
    found += [
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, w, h, 1, bits, 0, 0, 0, 0, 0, 0)
        for w, h, bits in ((1 << 30, 1 << 30, 24), (9000, -9000, 32), (-5, 5, 24), (9000, 9000, 1))
    ]
    found += [
        b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff" * 6,
        b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0\x2f\xff\xff\xff\xff" + bytes(9),
    ]
    jpeg = saved(Image.new("RGB", (16, 16)), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    found += [
        jpeg[:at] + struct.pack(">HH", h, w) + jpeg[at + 4 :]
        for h, w in ((65535, 65535), (9000, 9000), (0, 16), (65500, 1))
    ]
    tiff = saved(Image.new("L", (16, 16)), "TIFF")
    found += [
        tiff.replace(struct.pack("<HHII", tag, kind, 1, 16), struct.pack("<HHII", tag, 4, 1, most))
        for tag in (256, 257)
        for kind in (3, 4)
        for most in (9000, 1 << 31)
    ]
    ring = (
        struct.pack("<HI", 1, 8) + struct.pack("<HHII", 256, 4, 1, 5) + struct.pack("<I", 10)
    )  # its next directory is itself
    return [*found, b"II*\0" + struct.pack("<I", 8) + ring, b"II+\0\x08\0\0\0" + struct.pack("<Q", 1 << 62), jpeg * 200]


class Canary:
    """Writes a file when it is unpickled, which must never be."""

    def __init__(self, file: str):
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


class Tars:
    """Tars: whole ones, damaged ones, and some that were made to do harm."""

    def __init__(self, folder: Path):
        from filip_jax.data import sources  # noqa: F401 - the first case shall not wait for it

        self.folder, self.number, self.canary = folder, 0, folder / "canary"
        self.image = saved(Image.new("RGB", (8, 6), "red"), "PNG")
        self.pickle = pickle.dumps(Canary(str(self.canary)))

    def make(self, rng: random.Random) -> bytes:
        out = io.BytesIO()
        form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
            for n in range(rng.choice((0, 1, 2, 5))):
                for name, data in self._members(rng, n):
                    _add(tar, _info(rng, name, data), data)
        data = self._hostile(rng, out.getvalue()) if rng.random() < 0.5 else out.getvalue()
        if rng.random() < 0.4:
            data = damage(rng, data, rng.choice((1, 2, 10)))
        if rng.random() < 0.2:
            data = data[: rng.randrange(len(data) + 1)]
        return gzip.compress(data) if rng.random() < 0.03 else data

    def _members(self, rng: random.Random, n: int) -> list[tuple[str, bytes]]:
        texts = (
            b"a dog",
            b"",
            b"\xff\xfe",
            b"a\0b",
            b"{}",
            b"x" * 70_000,
            b'"\\ud800"',
            b"[" * 100_000,
            self.pickle,
            rng.randbytes(50),
        )
        stem = rng.choice((f"{n:09d}", f"{n:09d}", "000000000", *NAMES))
        found = [
            (
                f"{stem}.{rng.choice(('png', 'png', 'jpg', 'PNG', 'webp'))}",
                rng.choice((self.image, self.image, self.pickle, b"", rng.randbytes(99))),
            )
        ]
        found += [
            (f"{stem}.txt", rng.choice((b"a dog", *texts))),
            (f"{stem}.json", rng.choice((b'{"caption": ["a", 1, null]}', *texts))),
        ]
        found += [
            (
                f"{stem}.{rng.choice(ENDINGS)}",
                rng.choice((self.pickle, b"1")),
            )
        ]
        return rng.sample(found, rng.randint(1, len(found)))

    def _hostile(self, rng: random.Random, data: bytes) -> bytes:
        """The tar with a header that lies before, within or behind it."""
        at = 512 * rng.randint(0, len(data) // 512)
        return data[:at] + rng.choice(HOSTILE)(rng) + data[at:]

    def run(self, data: bytes) -> None:
        from filip_jax.data.record import BadRecord
        from filip_jax.data.sources import make_source

        self.number += 1
        folder = self.folder / f"case{self.number}"
        folder.mkdir()
        (folder / "00000.tar").write_bytes(data)
        try:
            section = dict(name="webdataset", path=str(folder))
            for keys in (("txt",), ("txt", "json.caption"), ("json.caption",)):
                try:
                    source = make_source(section | dict(caption_keys=keys))
                    break
                except ValueError as error:
                    refused = error
            else:
                raise refused
            assert source.seen.isprintable(), source.seen
            for index in range(len(source)):
                source.where(index)
                for read in (source.captions, source.image_head, source.__getitem__):
                    with contextlib.suppress(BadRecord):
                        read(index)
        finally:
            assert not self.canary.exists(), "something was unpickled"
            shutil.rmtree(folder)
        if not len(source):
            raise BadRecord("no records")


NAMES = (
    "../../etc/passwd",
    "/etc/cron.d/a",
    "C:\\a",
    "a/../b",
    ".",
    "..",
    ".hidden",
    "a" * 99,
    "d/" * 120 + "e",
    "\u72d7",
    "\udcff\udcfe",
    "a\nb",
    "\x1b[2J",
    " ",
    "-rf",
    "a\tb",
)
KINDS = (
    tarfile.REGTYPE,
    tarfile.REGTYPE,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CONTTYPE,
    tarfile.AREGTYPE,
    b"Z",
)


def _info(rng: random.Random, name: str, data: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    if rng.random() < 0.1:
        info.type, info.linkname = rng.choice(KINDS), rng.choice(("/etc/passwd", "../../a", "000000000.png", ""))
    if rng.random() < 0.1:
        info.pax_headers = {
            rng.choice(
                ("size", "path", "GNU.sparse.major", "GNU.sparse.map", "mtime", "comment", "hdrcharset")
            ): rng.choice(PAX)
        }
    return info


PAX = ("-1", "1e400", "nan", "x" * 300, "9" * 40, "../../a.png", "", "\u72d7", "1,2,3", "BINARY")


def _add(tar: tarfile.TarFile, info: tarfile.TarInfo, data: bytes) -> None:
    try:
        tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    except (ValueError, UnicodeError):  # a name that the format cannot hold
        info.name = "a.png"
        tar.addfile(info, io.BytesIO(data) if info.isreg() else None)


def header(
    name: bytes = b"000000000.png",
    size: bytes = b"00000000010",
    kind: bytes = b"0",
    checksum: bool = True,
    magic: bytes = b"ustar\x0000",
    goes_on: bool = False,
) -> bytes:
    """One header of 512 bytes, whatever it says."""
    fields = (
        name[:100].ljust(100, b"\0")
        + b"0000644\0" * 1
        + b"0000000\0" * 2
        + size[:12].ljust(12, b"\0")
        + b"00000000000\0"
    )
    block = (fields + b" " * 8 + kind + bytes(100) + magic).ljust(482, b"\0")[:482]
    block = (block + bytes([goes_on])).ljust(512, b"\0")
    total = b"%06o\0 " % sum(block) if checksum else b"000000\0 "
    return block[:148] + total + block[156:]


def base256(number: int) -> bytes:
    """A size as GNU tar writes those that octal digits cannot hold, negative ones too."""
    return bytes([0xFF if number < 0 else 0x80]) + (number % (1 << 88)).to_bytes(11, "big")


def _pax(records: bytes, kind: bytes = b"x", size: int | None = None) -> bytes:
    padded = records + bytes(-len(records) % 512)
    return header(b"pax", b"%011o" % (len(records) if size is None else size), kind) + padded


def _record(key: bytes, text: bytes) -> bytes:
    length = len(key) + len(text) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, key, text)


SIZES = (
    -1,
    -512,
    -513,
    -(1 << 40),
    1 << 31,
    1 << 32,
    1 << 40,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    (1 << 87) - 1,
    -(1 << 87),
)
HOSTILE = (
    lambda rng: header(size=base256(rng.choice(SIZES)), kind=rng.choice((b"0", b"L", b"K", b"x", b"g", b"S", b"5", b"1", b"7"))),
    lambda rng: header(size=rng.choice((b"77777777777", b"-0000000001", b"xyz", b" 1 2 3", b"\x80", b"\xff" * 12, b""))),
    lambda rng: header(checksum=False),
    lambda rng: header(kind=bytes([rng.randrange(256)])),
    lambda rng: header(kind=rng.choice((b"L", b"x", b"g")), size=b"%011o" % 0) * rng.choice((1, 10, 3000)),
    lambda rng: (header(b"././@LongLink", b"%011o" % 20, b"L") + b"a.png".ljust(512, b"\0")) * rng.choice((1, 2000)),
    lambda rng: _pax(rng.choice((b"", b"x", b"999 a=b\n", b"-5 a=b\n", b"0 a=b\n", b"5 =\n", b"9" * 5000, b"1" * 30_000, rng.randbytes(100)))),
    lambda rng: _pax(_record(b"size", rng.choice((b"-1", b"-513", b"9" * 30, b"1e9", b"nan", b"0x10")))) + header(),
    lambda rng: _pax(_record(b"path", rng.choice((b"../../x.png", b"/x.png", b"\xff\xfe.png", b"a" * 60_000 + b".png", b"\0.png")))) + header(),
    lambda rng: _pax(_record(b"GNU.sparse.major", b"1") + _record(b"GNU.sparse.minor", b"0")) + header() + rng.choice((b"9" * 20 + b"\n", b"3\n1\n", b"-1\n", b"x\n")).ljust(512, b"\0"),
    lambda rng: _pax(_record(b"GNU.sparse.map", rng.choice((b"1,2", b"1,2,3", b"a,b", b",," * 900)))) + header(),
    lambda rng: _pax(b"", kind=rng.choice((b"x", b"g", b"L")), size=rng.choice((1 << 20, 1 << 30, (1 << 33) - 1))),
    lambda rng: _pax(_record(b"comment", b"1" * rng.choice((1000, 60_000, 900_000)))),
    lambda rng: header(kind=b"S", magic=b"ustar  \0") + rng.randbytes(512),
    lambda rng: _pax(b"".join(_record(b"%x" % n, b"") for n in range(6000)), b"g") * rng.choice((1, 20)) + header(b"1.png", b"0") * 500,
    lambda rng: (_pax(b"".join(_record(b"%x" % n, b"") for n in range(6000))) + header()) * rng.choice((1, 20)),
    lambda rng: _pax(b"3 a" * 20_000 + b"=\n"),  # each record looks for its sign to the end
    lambda rng: header(size=b"0") * rng.choice((10, 20_000)),
    lambda rng: header(kind=b"S", magic=b"ustar  \0", goes_on=True) + (bytes(504) + b"\1" + bytes(7)) * rng.choice((1, 20_000)),
    lambda rng: _pax(_record(b"GNU.sparse.major", b"1") + _record(b"GNU.sparse.minor", b"0")) + header() + b"1" * 512 * rng.choice((1, 9000)),
    lambda rng: bytes(512 * rng.choice((1, 2, 50))),
    lambda rng: rng.randbytes(512 * rng.choice((1, 2, 50))),
)  # fmt: skip
