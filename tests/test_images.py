"""Pictures: what is decided for every kind, only ValueError for rubbish, CLIP's view, fast views near the slow ones."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from conftest import examples, slow, whole_tier
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from filip_jax.data import decode as decoding
from filip_jax.data.auto_augment import OPERATIONS, POLICY, imagenet_policy
from filip_jax.data.decode import (
    FORMATS,
    PIXELS,
    decode,
    decode_regions,
    divisor_of,
    image_format,
    image_size,
    orientation,
    whole_pixels,
)
from filip_jax.data.preprocess import box_in_centre_view, centre_view, check_augment, random_box, training_views
from filip_jax.data.resize import resize
from filip_jax.errors import UserError

PLAIN = dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False)
ORIENTATION = 0x0112


def photo(width, height, seed=0):
    """Something like a photograph: smooth shapes, edges, a little noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    array = np.asarray(coarse).astype(int) + rng.normal(0, 4, (height, width, 1)).astype(int)
    array[height // 3 : height // 2, width // 4 : width // 2] = (200, 40, 30)
    return Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))


def encoded(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def colour(image):
    return decode(image).getpixel((0, 0))


def png(width, height, kind=b"\x08\x02\0\0\0", chunks=()):
    """A PNG from its chunks, with right checksums; the pixels are missing."""
    found = b"\x89PNG\r\n\x1a\n"
    for name, data in [(b"IHDR", struct.pack(">II", width, height) + kind), *chunks]:
        found += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return found


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_rotation_is_undone(format, orientation):
    upright = photo(48, 32)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation: the transposition that makes it
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    if format in ("GIF", "BMP"):
        stored, exif = upright, Image.Exif()
    image = encoded(stored, format, exif=exif) if len(exif) else encoded(stored, format)
    assert decode(image).size == (48, 32) == image_size(image)
    error = np.abs(np.asarray(decode(image)).astype(int) - np.asarray(upright))
    assert error.mean() < (15 if format in ("GIF", "JPEG", "WEBP") else 0.01)
    np.testing.assert_array_equal(
        decode(decode(image)), decode(image)
    )  # it is turned once, however often it is decoded
    view = decode_regions(image, 16, lambda width, height: [(0, 0, 32, 32)] if (width, height) == (48, 32) else [])[0]
    assert np.abs(np.asarray(view).astype(int) - np.asarray(upright.resize((16, 16), box=(0, 0, 32, 32)))).mean() < 15


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_rotation_that_xmp_tells_is_undone_once(format):
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", packet.decode())
    image = encoded(photo(48, 32), format, **({"pnginfo": text} if format == "PNG" else {"xmp": packet}))
    assert format == "WEBP" or image_size(image) == (32, 48)  # whose XMP stands behind its pixels
    (region,) = decode_regions(image, 16, lambda *size: [(0, 0, *size)])
    np.testing.assert_array_equal(
        region, decode_regions(np.asarray(decode(image)), 16, lambda *size: [(0, 0, *size)])[0]
    )
    assert decode(image).size == decode(decode(image)).size == (32, 48)


def test_no_pixels_are_read_for_an_orientation_that_a_file_does_not_tell(monkeypatch):
    told = {format: encoded(photo(48, 32), format) for format in ("JPEG", "PNG", "GIF", "BMP")}
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    turned = encoded(photo(48, 32), "PNG", exif=exif)
    behind = turned.replace(chunk := turned[turned.index(b"eXIf") - 4 :][: exif_size(turned)], b"")
    assert (
        orientation(behind[:-12] + chunk + behind[-12:]) == orientation(turned) == 8
    )  # chunks may stand behind the pixels
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda picture: pytest.fail("pixels are read"))
    assert {format: orientation(image) for format, image in told.items()} == dict.fromkeys(told, 1)


def exif_size(image):
    at = image.index(b"eXIf") - 4
    return 12 + int.from_bytes(image[at : at + 4])


def test_transparency_is_laid_on_white():
    clear, half = Image.new("RGBA", (4, 4), (0, 0, 0, 0)), Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert colour(encoded(clear)) == (255, 255, 255) and colour(encoded(clear, "WEBP", lossless=True)) == (
        255,
        255,
        255,
    )
    assert colour(encoded(half)) == (255, 127, 127)
    assert colour(encoded(Image.new("LA", (4, 4), (0, 0)))) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 0, 200, 0])
    assert colour(encoded(palette, transparency=1)) == (255, 255, 255) and colour(encoded(palette)) == (0, 200, 0)
    assert colour(encoded(palette, transparency=bytes([0, 255]))) == (0, 200, 0)


def test_every_kind_of_pixel_becomes_rgb():
    assert colour(encoded(Image.new("L", (8, 8), 70), "JPEG")) == (70, 70, 70)
    assert colour(encoded(Image.new("1", (8, 8), 1))) == (255, 255, 255)
    red = colour(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert red[0] > 240 and max(red[1:]) < 20
    deep = Image.fromarray(np.full((4, 4), 0x8040, np.uint16))
    assert colour(encoded(deep)) == (128, 128, 128) and colour(encoded(deep, "TIFF")) == (128, 128, 128)
    assert decode(encoded(photo(40, 30), "JPEG", progressive=True)).size == (40, 30)
    assert colour(encoded(Image.new("RGB", (8, 8), "red"), "JPEG", icc_profile=b"no profile"))[0] > 250
    with pytest.raises(ValueError, match="floating point"):
        decode(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))


def test_of_an_animation_the_first_frame():
    frames = [Image.new("RGB", (6, 6), name) for name in ("red", "green", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        image = encoded(
            frames[0],
            format,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if format == "WEBP" else {}),
        )
        assert colour(image) == (255, 0, 0) and image_size(image) == (6, 6)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_a_truncated_file_is_bad_but_its_size_is_known(format):
    image = encoded(photo(90, 70), format)
    for read in (decode, lambda cut: decode_regions(cut, 16, lambda width, height: [(0, 0, width, height)])):
        with pytest.raises(ValueError, match="no picture that can be read"):
            read(image[: len(image) * 2 // 3])
    if format != "TIFF":
        assert image_size(image[: len(image) * 2 // 3]) == (90, 70)


def test_too_many_pixels_or_bytes_are_refused_before_they_are_decoded(monkeypatch):
    for size in ((30_000, 30_000), (PIXELS // 1000 + 1, 1000)):
        image = png(*size, chunks=[(b"IDAT", b"x")])
        for read in (decode, image_size):
            with pytest.raises(ValueError, match=r"pixels"):
                read(image)
    with pytest.raises(ValueError, match="no picture that can be read"):
        decode(png(4, 4, chunks=[(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 200_000_000, 9)), (b"IDAT", b"x")]))
    monkeypatch.setattr(decoding, "IMAGE_BYTES", 1000)
    with pytest.raises(ValueError, match="at most 1000 are read"):
        decode(encoded(photo(90, 90)))


def test_readers_that_call_other_programs_are_not_used():
    assert not {"EPS", "WMF", "FPX", "MIC"} & set(FORMATS)
    with pytest.raises(ValueError, match="no picture that can be read"):
        decode(encoded(photo(20, 20), "EPS"))


@pytest.mark.parametrize("array", [np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0, 3), np.uint8)])
def test_no_pixels_are_no_picture(array):
    with pytest.raises(ValueError, match="a picture of"):
        decode(array)


WHOLE = [encoded(photo(64, 48), format) for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")]
WHOLE += [
    encoded(photo(64, 48), "JPEG", progressive=True, exif=Image.Exif()),
    encoded(photo(9, 9).convert("P"), "PNG", transparency=3),
]


@pytest.mark.filterwarnings("ignore::Warning:PIL")
@examples(300)
@given(
    image=st.sampled_from(WHOLE),
    place=st.integers(0, 900),
    noise=st.binary(max_size=8),
    cut=st.integers(0, 200),
    keep=st.booleans(),
)
def test_whatever_the_bytes_only_valueerror_comes_out(image, place, noise, cut, keep):
    damaged = image[:place] + noise + image[place + (len(noise) if keep else 0) : len(image) - cut]
    for read in (
        decode,
        image_size,
        lambda data: training_views(data, 16, np.random.default_rng(0), **PLAIN | {"min_area": 0.5}),
    ):
        with contextlib.suppress(ValueError):
            read(damaged)


@given(data=st.binary(max_size=100))
def test_nor_from_any_bytes(data):
    for read in (decode, image_size):
        with pytest.raises(ValueError):
            read(b"\xff\xd8\xff" + data)


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 64))
def test_the_centre_view_is_square_and_boxes_follow_it(width, height, size):
    view = centre_view(Image.new("RGB", (width, height), (10, 20, 30)), size)
    assert view.shape == (size, size, 3) and (view == (10, 20, 30)).all()
    left, top, right, bottom = box_in_centre_view((0, 0, width, height), (width, height), size)
    assert left <= 0.5 and top <= 0.5 and right >= size - 0.5 and bottom >= size - 0.5


@given(width=st.integers(8, 200), height=st.integers(8, 200), size=st.integers(4, 64))
def test_the_centre_view_is_clips(width, height, size):
    """CLIP: torchvision's Resize(size, BICUBIC) and CenterCrop(size), put down here by their documentation."""
    picture = photo(width, height)
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = size, int(size * long / short)
    new_width, new_height = (new_short, new_long) if width <= height else (new_long, new_short)
    resized = picture.resize((new_width, new_height), Image.Resampling.BICUBIC)
    top, left = round((new_height - size) / 2.0), round((new_width - size) / 2.0)
    assert np.array_equal(centre_view(picture, size), np.asarray(resized)[top : top + size, left : left + size])


def test_a_box_stays_on_its_thing():
    picture = np.zeros((60, 100, 3), np.uint8)
    picture[20:40, 50:70] = 255
    view = centre_view(Image.fromarray(picture), 30)
    left, top, right, bottom = (round(edge) for edge in box_in_centre_view((50, 20, 70, 40), (100, 60), 30))
    inside = np.zeros((30, 30), bool)
    inside[top:bottom, left:right] = True
    assert view[inside].mean() > 200 and view[~inside].mean() < 10


@given(
    width=st.integers(1, 400), height=st.integers(1, 400), min_area=st.floats(0.05, 0.99), seed=st.integers(0, 2**16)
)
def test_a_crop_lies_inside_and_keeps_its_share(width, height, min_area, seed):
    left, top, right, bottom = random_box(width, height, min_area, np.random.default_rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    if min(width, height) >= 100:
        assert min_area - 0.03 <= (right - left) * (bottom - top) / (width * height) <= 1
        ratio = (right - left) / (bottom - top)
        assert 0.7 < ratio < 1.4 or right - left == width or bottom - top == height


@pytest.mark.smoke
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("side", [256, slow(384), 512, slow(800), slow(1500)])
def test_fast_views_are_near_the_slow_ones(side, format):
    """At least 46 dB from full decoding and Pillow's antialiased bicubic filter."""
    errors = []
    for seed in range(6 if whole_tier() else 2):
        picture = photo(side * 4 // 3, side, seed)
        image, rng = encoded(picture, format, quality=90), np.random.default_rng(seed)
        box = random_box(*picture.size, 0.3, rng)
        exact = whole_pixels(box, divisor_of(box, 224) if format == "JPEG" else 1)
        slow = decode(image).resize((224, 224), Image.Resampling.BICUBIC, box=exact)
        (fast,) = decode_regions(image, 224, lambda width, height: [box])
        errors.append(np.mean((np.asarray(slow).astype(float) - np.asarray(fast)) ** 2))
    assert 10 * np.log10(255**2 / np.mean(errors)) > 46


@pytest.mark.parametrize("width, height", [(900, 300), (300, 900), (1000, 224), (224, 224), (100, 500), (60, 40)])
def test_views_of_any_shape_are_near_the_slow_ones(width, height):
    image = encoded(photo(width, height), "PNG")
    slow = decode(image).resize((224, 224), Image.Resampling.BICUBIC)
    (fast,) = decode_regions(image, 224, lambda width, height: [(0, 0, width, height)])
    assert np.mean((np.asarray(slow).astype(float) - fast) ** 2) < 255**2 / 10**3.8  # 38 dB


@pytest.mark.parametrize("side", [240, 280, 320, 400, 500, 620, 700, 1300])
def test_noise_is_smoothed_as_pillow_does(side):
    """The hardest of all pictures: what is not smoothed enough has less than 31 dB, what is right 34 or more."""
    noise = np.random.default_rng(0).normal(128, 30, (side, side, 3))
    pixels = np.clip(noise, 0, 255).astype(np.uint8)
    slow = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)).astype(float)
    assert np.mean((resize(pixels, 224) - slow) ** 2) < 255**2 / 10**3.4


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), size=st.integers(1, 500), seed=st.integers(0, 99))
def test_a_box_moves_by_less_than_a_pixel_of_the_view(width, height, size, seed):
    box = random_box(width, height, 0.05, np.random.default_rng(seed))
    divisor = divisor_of(box, size)
    moved = whole_pixels(box, divisor)
    scale = min(box[2] - box[0], box[3] - box[1]) / size
    assert 0 <= min(np.subtract(box, moved)) and max(np.subtract(box, moved)) < divisor <= max(scale, 1)
    assert moved[0] < moved[2] and moved[1] < moved[3] and (divisor > 1 or moved == box)


def test_large_jpegs_are_decoded_small(monkeypatch):
    shapes, whole = [], decoding.simplejpeg.decode_jpeg
    monkeypatch.setattr(
        decoding.simplejpeg,
        "decode_jpeg",
        lambda *given, **named: shapes.append((found := whole(*given, **named)).shape) or found,
    )
    image = encoded(photo(1600, 1200), "JPEG")
    for boxes, expected in (
        ([(0, 0, 1600, 1200)], (300, 400)),
        ([(0, 0, 800, 600)], (600, 800)),
        ([(0, 0, 900, 900)], (300, 400)),
        ([(0, 0, 400, 300)], (1200, 1600)),
        ([(0, 0, 1600, 1200), (0, 0, 800, 600)], (600, 800)),
    ):
        assert len(decode_regions(image, 224, lambda width, height: boxes)) == len(boxes)
        assert shapes.pop()[:2] == expected and not shapes


@pytest.mark.parametrize(
    "change", [{}, {"min_area": 0.3}, {"flip": True}, {"colour_jitter": 0.4}, {"auto_augment": True}]
)
def test_views_are_functions_of_the_generator(change):
    image = encoded(photo(60, 50), "JPEG")
    views = [
        training_views(image, 24, np.random.default_rng(seed), **PLAIN | change)[0] for seed in (1, 1, *range(2, 12))
    ]
    assert all(view.shape == (24, 24, 3) and view.dtype == np.uint8 for view in views)
    assert np.array_equal(views[0], views[1])
    assert any(not np.array_equal(views[0], view) for view in views) == bool(change)


@pytest.mark.parametrize("format, decoder", [("JPEG", "_scaled_jpeg"), ("PNG", "decode")])
def test_views_of_one_image_are_independent_and_it_is_decoded_once(monkeypatch, format, decoder):
    calls, whole, image = [], getattr(decoding, decoder), encoded(photo(60, 50), format)
    monkeypatch.setattr(decoding, decoder, lambda *given: calls.append(given) or whole(*given))
    varied = PLAIN | {"min_area": 0.3, "flip": True}
    views = training_views(image, 32, np.random.default_rng(3), 8, **varied)
    assert len(calls) == 1
    rng = np.random.default_rng(3)
    boxes = [random_box(60, 50, 0.3, rng) for _ in views]
    expected = [decode_regions(image, 32, lambda width, height, box=box: [box])[0] for box in boxes]
    flips = [-1 if rng.random() < 0.5 else 1 for _ in views]
    assert set(flips) == {-1, 1} and len({view.tobytes() for view in views}) == 8
    assert all(np.array_equal(view, plain[:, ::flip]) for view, plain, flip in zip(views, expected, flips))


def test_half_of_the_views_are_mirrored():
    picture = np.zeros((20, 20, 3), np.uint8)
    picture[:, :10] = 255
    left = [
        view[0, 0, 0] for view in training_views(picture, 20, np.random.default_rng(0), 400, **PLAIN | {"flip": True})
    ]
    assert 160 < np.count_nonzero(left) < 240


def test_jitter_changes_brightness_contrast_and_saturation_within_its_bounds():
    grey = np.full((8, 8, 3), 100, np.uint8)
    jitter = PLAIN | {"colour_jitter": 0.3}
    means = [view.mean() for view in training_views(grey, 8, np.random.default_rng(0), 200, **jitter)]
    assert 69 <= min(means) < 75 and 125 < max(means) <= 131
    red = np.zeros((8, 8, 3), np.uint8) + np.array([150, 50, 50], np.uint8)
    views = [view[0, 0].astype(int) for view in training_views(red, 8, np.random.default_rng(0), 200, **jitter)]
    assert len({view[0] - view[1] for view in views}) > 20


def test_the_policy_is_that_of_the_paper():
    assert len(POLICY) == 25 and {name for pair in POLICY for name, *_ in pair} == set(OPERATIONS)
    assert all(0 <= probability <= 1 and 0 <= magnitude <= 9 for pair in POLICY for _, probability, magnitude in pair)
    view = photo(40, 40)
    drawn = {imagenet_policy(view, np.random.default_rng(n)).tobytes() for n in range(300)}
    assert len(drawn) > 40


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_operations_do_nothing_at_zero_and_more_with_more(name, sign):
    view = photo(64, 64)
    array = np.asarray(view).astype(int)
    change = [np.abs(np.asarray(OPERATIONS[name](view, m, sign)).astype(int) - array).mean() for m in range(10)]
    if name in ("auto_contrast", "equalize", "invert"):
        assert len(set(change)) == 1
    else:
        assert change[0] <= 1 and change[9] > change[3] > 0
    if name == "invert":
        assert np.array_equal(np.asarray(OPERATIONS[name](view, 5, sign)), 255 - array)


def test_magnitudes_are_those_of_the_paper():
    """Posterize to 4 bits at 9, solarize above 0 at 9, shear by 0.3, rotate by 30 degrees, enhance by 0.9."""
    view = photo(64, 64)
    array = np.asarray(view)
    assert np.array_equal(np.asarray(OPERATIONS["posterize"](view, 9, 1)), array & 0xF0)
    assert np.array_equal(np.asarray(OPERATIONS["solarize"](view, 9, 1)), 255 - array)
    assert (
        np.abs(
            np.asarray(OPERATIONS["colour"](view, 9, -1)).astype(int) - np.asarray(view.convert("L"))[..., None]
        ).mean()
        < 12
    )
    line = Image.new("RGB", (101, 101), "white")
    line.paste("black", (50, 0, 51, 101))
    sheared = np.asarray(OPERATIONS["shear_x"](line, 9, 1))[:, :, 0]
    assert 50 - sheared[100].argmin() == pytest.approx(30, abs=1) and sheared[0].argmin() == pytest.approx(50, abs=1)
    turned = np.asarray(OPERATIONS["rotate"](line, 9, 1))[:, :, 0]
    assert turned[90].argmin() - turned[50].argmin() == pytest.approx(40 * np.tan(np.pi / 6), abs=2)


@pytest.mark.parametrize(
    "change", [{"min_area": 0.0}, {"min_area": 1.1}, {"colour_jitter": -0.1}, {"colour_jitter": 1.1}]
)
def test_what_is_no_augmentation(change):
    check_augment(**PLAIN)
    with pytest.raises(UserError, match=f"data.augment.{next(iter(change))}="):
        check_augment(**PLAIN | change)


def test_only_the_formats_that_are_named_are_read():
    for format in ("PPM", "ICO", "TGA"):
        for read in (decode, image_size):
            with pytest.raises(ValueError, match="no picture that can be read"):
                read(encoded(photo(20, 20), format))


@pytest.mark.parametrize("kind, start", {
    "HEIC": b"\0\0\0\x18ftypheic", "AVIF": b"\0\0\0\x1cftypavif", "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n",
}.items())  # fmt: skip
def test_formats_that_are_not_read_are_named(kind, start):
    """Whatever the name of their file says, as of a phone's picture.jpg."""
    for read in (decode, image_size):
        with pytest.raises(ValueError, match=f"no picture that can be read: it is of the format {kind}: convert it"):
            read(start + bytes(100))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_sizes_beyond_the_cap_or_of_nothing_are_no_sizes(format, monkeypatch):
    image = encoded(photo(60, 50), format)
    assert image_size(image) == (60, 50) and image_format(image) == format
    monkeypatch.setattr(decoding, "PIXELS", 2999)
    for read in (
        image_size,
        decode,
        lambda image: decode_regions(image, 8, lambda width, height: [(0, 0, width, height)]),
    ):
        with pytest.raises(ValueError, match="pixels"):
            read(image)


def test_a_webp_of_nothing_or_too_much():
    head = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\x3f\x42\x0f" * 2 + b"\0" * 8
    with pytest.raises(ValueError, match="1000000 x 1000000 pixels"):
        image_size(head)
    with pytest.raises(ValueError, match="0 x 20 pixels"):
        image_size(b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a\0\0\x14\0")
