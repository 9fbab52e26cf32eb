"""From stored pictures to the square uint8 views that the image tower sees (Pillow only)."""

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

View = UInt8[np.ndarray, "size size 3"]


def decode(image: bytes | np.ndarray) -> Image.Image:
    """An RGB picture from encoded bytes or from decoded uint8 [h, w, 3].

    A camera's rotation is undone, transparency is laid on white.

    Raises:
        ValueError: the bytes are no picture that Pillow can read, or there is not a pixel.
    """
    if isinstance(image, np.ndarray):
        if 0 in image.shape:
            raise ValueError(f"a picture of {image.shape[0]} x {image.shape[1]} pixels")
        return Image.fromarray(image)
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(image)))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError("no picture that Pillow can read") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"no picture that Pillow can read: {error}") from error


def centre_view(picture: Image.Image, size: int) -> View:
    """CLIP's evaluation view: the shorter side scaled to `size` (bicubic), the centre cut out."""
    scale, left, top = _centre(picture.size, size)
    if picture.size != (size, size):
        width, height = (max(size, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        picture = picture.crop((left, top, left + size, top + size))
    return np.asarray(picture)


def box_in_centre_view(
    box: tuple[float, float, float, float], shape: tuple[int, int], size: int
) -> tuple[float, float, float, float]:
    """A box (left, top, right, bottom) of a picture of `shape` (width, height), in pixels of its centre view."""
    scale, left, top = _centre(shape, size)
    return tuple(edge * scale - offset for edge, offset in zip(box, (left, top, left, top)))


def _centre(shape: tuple[int, int], size: int) -> tuple[float, int, int]:
    scale = size / min(shape)
    width, height = (max(size, round(side * scale)) for side in shape)
    return scale, (width - size) // 2, (height - size) // 2


def plain(picture: Image.Image, size: int, rng: np.random.Generator) -> View:
    """No augmentation: the evaluation view."""
    return centre_view(picture, size)


def crop_flip(picture: Image.Image, size: int, rng: np.random.Generator) -> View:
    """A random crop of 50 to 100 % of the area, mirrored half of the time.

    Its side ratio is 3/4 to 4/3, or as near to it as a crop of this area can be in a longer picture.
    """
    width, height = picture.size
    share = rng.uniform(0.5, 1.0)
    area = width * height * share
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    ratio = np.clip(ratio, share * width / height, width / (share * height))
    crop_width = min(width, round(np.sqrt(area * ratio)))
    crop_height = min(height, round(np.sqrt(area / ratio)))
    left, top = rng.integers(0, width - crop_width + 1), rng.integers(0, height - crop_height + 1)
    box = (int(left), int(top), int(left + crop_width), int(top + crop_height))
    view = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return view[:, ::-1] if rng.random() < 0.5 else view


AUGMENTATIONS: dict[str, Callable[[Image.Image, int, np.random.Generator], View]] = {
    "none": plain,
    "crop_flip": crop_flip,
}


def training_view(
    image: bytes | np.ndarray, size: int, rng: np.random.Generator, *,
    min_area: float, flip: bool, colour_jitter: float, auto_augment: bool,
) -> View:  # fmt: skip
    """STAND-IN until the images branch lands."""
    picture = decode(image)
    return plain(picture, size, rng) if min_area == 1 else crop_flip(picture, size, rng)


def check_augment(*, min_area: float, flip: bool, colour_jitter: float, auto_augment: bool) -> None:
    """STAND-IN until the images branch lands."""
