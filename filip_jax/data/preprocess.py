"""From stored pictures to the square uint8 views that the image tower sees (Pillow only)."""

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

View = UInt8[np.ndarray, "size size 3"]


def decode(image: bytes | np.ndarray) -> Image.Image:
    """An RGB picture from encoded bytes or from decoded uint8 [h, w, 3].

    Raises:
        ValueError: the bytes are no picture that Pillow can read.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    try:
        return Image.open(io.BytesIO(image)).convert("RGB")
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
    """A random crop of 50 to 100 % of the area and a side ratio of 3/4 to 4/3, mirrored half of the time."""
    width, height = picture.size
    area = width * height * rng.uniform(0.5, 1.0)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
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
