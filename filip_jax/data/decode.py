"""From encoded bytes to RGB pictures. Whatever the bytes are, only ValueError leaves this file.

What is decided: a camera's rotation is undone; transparency is laid on white; CMYK becomes RGB; 16 bits
become 8; of an animation the first frame is taken; a truncated file, one of more than PIXELS pixels, SIDE pixels
a side or IMAGE_BYTES bytes, one of floating point numbers and one of another format than FORMATS cannot be read.
"""

import io
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from filip_jax.data.decode_work import MAX_SEGMENTS, PIXELS, check_exif, check_work
from filip_jax.data.record import HEAD_BYTES, IMAGE_BYTES
from filip_jax.data.resize import resize

SIDE = 65_535  # pixels of its longer side, JPEG's own limit; of one thin line, millions of rows take seconds
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow's other readers are not needed, some are risky
# The endings of their files.
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jpe", ".jfif", ".apng")
# What is not read begins so at its fifth byte (ISO/IEC 14496-12, 4.3), by its brand.
UNREAD = {b"ftyp" + brand: kind for kind, brands in (
    ("HEIC", (b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1")), ("AVIF", (b"avif", b"avis")),
) for brand in brands} | {b"jP  \r\n\x87\n": "JPEG 2000", b"JXL \r\n\x87\n": "JPEG XL"}  # fmt: skip
ORIENTATION = 0x0112  # the EXIF tag
PNG = b"\x89PNG"
PNG_TURNS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # the chunks of a PNG that may tell one
XMP_TURN = b"tiff:Orientation"  # in XMP, where Pillow looks for an orientation that EXIF lacks
JPEG = b"\xff\xd8\xff"
SWAPPED = (5, 6, 7, 8)  # orientations that lay the picture on its side
TURNS = dict(zip(range(2, 9), map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2))))  # what undoes each
# Where Pillow's `getexif` looks for a picture's orientation.
ORIENTATION_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")

Box = tuple[float, float, float, float]  # left, top, right, bottom

warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")  # on damaged EXIF and the like: counted as bad or harmless


def image_size(head: bytes) -> tuple[int, int]:
    """Width and height as shown, from the first HEAD_BYTES of a file; no pixel is decoded.

    Raises:
        ValueError: no picture, or one of too many pixels.
    """
    head = head[:HEAD_BYTES]
    jpeg = _jpeg_size(head)
    size = jpeg[:2] if jpeg and not jpeg[2] else _webp_size(head) or _guarded(lambda: _shown_size(_open(head)))
    _check_size(*size)
    return size


def image_format(image: bytes) -> str:
    """One of FORMATS.

    Raises:
        ValueError: no picture.
    """
    return _guarded(lambda: _open(image).format)


def orientation(image: bytes) -> int:
    """Return the EXIF orientation of a file, 1 to 8, which `decode` undoes; 1 if it says none.

    Raises:
        ValueError: no picture.
    """
    picture = _guarded(lambda: _open(image))
    if image.startswith(PNG) and not any(sign in image for sign in PNG_TURNS):
        return 1  # Pillow would read all pixels, behind which it may stand
    found = _orientation(picture)
    return found if found in TURNS else 1


def decode(image: bytes | np.ndarray | Image.Image) -> Image.Image:
    """Return the RGB picture of encoded bytes, of an array of pixels or of a PIL image, a lazy one included.

    A camera's rotation is undone once: a picture that was decoded may be decoded again.

    Args:
        image: as an array uint8 or uint16, [h, w] or [h, w, c] of gray, gray and alpha, RGB or RGBA.

    Raises:
        ValueError: it cannot be read, is an array of another kind, or has no pixel or too many.
    """
    if isinstance(image, np.ndarray):
        return _rgb(_of_pixels(image))
    return _guarded(lambda: _rgb(_upright(image if isinstance(image, Image.Image) else _open(image))))


def _of_pixels(pixels: np.ndarray) -> Image.Image:
    if 0 in pixels.shape:
        raise ValueError(f"a picture of {' x '.join(map(str, pixels.shape[:2]))} pixels")
    if pixels.dtype.kind != "u" or pixels.itemsize > 2 or pixels.ndim not in (2, 3) or pixels.shape[2:] > (4,):
        raise ValueError(
            f"{pixels.dtype} {list(pixels.shape)} is no array of pixels: give uint8 or uint16, [h, w] or [h, w, channels] "
            "of 1 to 4 channels"
        )
    _check_size(pixels.shape[1], pixels.shape[0])  # before it is copied: a view or a file may be larger than memory
    pixels = pixels if pixels.itemsize == 1 else (pixels >> 8).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def decode_regions(
    image: bytes | np.ndarray, size: int, choose: Callable[[int, int], Sequence[Box]]
) -> list[UInt8[np.ndarray, "{size} {size} 3"]]:
    """Return the parts of a picture that choose(width, height) names, each scaled to size x size; antialiased.

    The picture is decoded once: JPEG at a half, a quarter or an eighth of its size where each part still has so many
    pixels; their edges then move to whole pixels of what was decoded, see `whole_pixels`. Bytes that need more care
    go through `decode`.

    Raises:
        ValueError: it cannot be read.
    """
    boxes = pixels = None
    if isinstance(image, bytes) and (shape := _plain_jpeg_size(image)):
        boxes = choose(*shape)
        divisor = min(divisor_of(box, size) for box in boxes)
        pixels = _scaled_jpeg(image, divisor, shape)
    if boxes is None or pixels is None:
        picture, divisor = decode(image), 1
        pixels, boxes = np.asarray(picture), boxes or choose(*picture.size)
    regions = []
    for box in boxes:
        left, top, right, bottom = (edge // divisor for edge in whole_pixels(box, divisor))
        regions.append(resize(pixels[top:bottom, left:right], size))
    return regions


def divisor_of(box: Box, size: int) -> int:
    """By which of 1, 2, 4, 8 a JPEG's sides are divided in decoding, so that the box keeps `size` pixels a side."""
    side = min(box[2] - box[0], box[3] - box[1])
    return next((divisor for divisor in (8, 4, 2) if side >= divisor * size), 1)


def whole_pixels(box: Box, divisor: int) -> tuple[int, int, int, int]:
    """The box with its edges moved back to multiples of the divisor, by less than a pixel of the view."""
    left, top, right, bottom = (int(edge // divisor) * divisor for edge in box)
    return left, top, right, bottom


def _scaled_jpeg(image: bytes, divisor: int, shape: tuple[int, int]) -> np.ndarray | None:
    """The pixels, one for `divisor` a side; None if libjpeg-turbo finds anything wrong.

    Other fractions than 1/2, 1/4 and 1/8 have no fast code in it and take longer than the whole.
    """
    width, height = (-(-side // divisor) for side in shape)
    try:
        return simplejpeg.decode_jpeg(image, min_width=width, min_height=height, min_factor=1)
    except ValueError:
        return None


def _plain_jpeg_size(image: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that libjpeg-turbo alone decodes rightly; None for all else."""
    if not image.startswith(JPEG) or len(image) > IMAGE_BYTES:
        return None
    try:
        check_work(image)
        height, width, colours, _ = simplejpeg.decode_jpeg_header(image, strict=False)
    except Exception:  # Pillow may still make something of it
        return None
    if colours not in ("RGB", "YCbCr", "Gray") or not 0 < width * height <= PIXELS:
        return None
    size = _jpeg_size(image)
    if size is None or (size[2] and _guarded(lambda: _orientation(_open(image))) != 1):
        return None
    return width, height


def _jpeg_size(image: bytes) -> tuple[int, int, bool] | None:
    """Width, height and whether EXIF or XMP may turn it, by the file's segments (ITU-T T.81, B.2); None where they are not plain."""
    at, size, turned = 2, None, False
    for _ in range(MAX_SEGMENTS):
        if image[:3] != JPEG or image[at : at + 1] != b"\xff" or at + 9 > len(image):
            return None
        marker, length = image[at + 1], int.from_bytes(image[at + 2 : at + 4])
        if marker == 0xDA and size:  # the scan begins
            return *size, turned
        if 0xC0 <= marker <= 0xC2 and size is None:
            size = int.from_bytes(image[at + 7 : at + 9]), int.from_bytes(image[at + 5 : at + 7])
        elif marker < 0xC4 or 0xD0 <= marker <= 0xDA:
            return None
        end = at + 2 + max(length, 2)
        turned |= marker == 0xE1 and (image[at + 4 : at + 10] == b"Exif\0\0" or image.find(XMP_TURN, at, end) >= 0)
        at = end
    return None


def _open(image: bytes) -> Image.Image:
    if len(image) > IMAGE_BYTES:
        raise ValueError(f"{len(image)} bytes; at most {IMAGE_BYTES} are read")
    if kind := UNREAD.get(image[4:12]):
        raise ValueError(f"it is of the format {kind}: convert it to JPEG, PNG or WebP")
    check_work(image)
    picture = Image.open(io.BytesIO(image), formats=FORMATS)  # noqa: TID251 - of these formats
    _check_size(*picture.size)
    return picture


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= PIXELS or max(width, height) > SIDE:
        raise ValueError(f"{width} x {height} pixels; 1 to {PIXELS} are read, at most {SIDE} a side")


def _upright(picture: Image.Image) -> Image.Image:
    _check_size(*picture.size)
    picture.load()
    check_exif(picture.info)
    turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
    if turn is None:
        return picture
    upright = picture.transpose(turn)
    for name in ORIENTATION_KEYS:  # else whoever decodes the picture again turns it again
        upright.info.pop(name, None)
    return upright


def _orientation(picture: Image.Image) -> int:
    try:
        check_exif(picture.info)
        return picture.getexif().get(ORIENTATION, 1)
    except Exception:  # EXIF that is damaged turns nothing
        return 1


def _shown_size(picture: Image.Image) -> tuple[int, int]:
    swapped = picture.format != "TIFF" and _orientation(picture) in SWAPPED  # Pillow turns TIFF by itself
    return picture.size[::-1] if swapped else picture.size


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP without EXIF, which Pillow only opens whole (container specification, 2.5-2.7)."""
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return None
    kind, bits = head[12:16], int.from_bytes(head[21:25], "little")
    if kind == b"VP8X" and not head[20] & 0x08:
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L" and head[20] == 0x2F:
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise ValueError("floating point pixels")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        picture = Image.fromarray(np.clip(np.asarray(picture) >> 8, 0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture.load()
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _guarded(read: Callable):
    """What `read` gives; all that decoders of foreign bytes may raise becomes a ValueError of one line."""
    try:
        return read()
    except Image.UnidentifiedImageError as error:
        raise ValueError("no picture that can be read") from error
    except Exception as error:
        raise ValueError(f"no picture that can be read: {' '.join(str(error).split())[:200]}") from error
