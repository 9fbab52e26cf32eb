"""From stored pictures to the square uint8 views that the image tower sees."""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance

from filip_jax.data.auto_augment import imagenet_policy
from filip_jax.data.decode import PIXELS, Box, decode, decode_regions
from filip_jax.data.resize import sample
from filip_jax.errors import UserError
from filip_jax.framing import CLIP_FRAMING, Framing

View = UInt8[np.ndarray, "size size 3"]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def centre_view(picture: Image.Image, size: int, framing: Framing = CLIP_FRAMING) -> View:
    """Return the evaluation view: the picture scaled as the model's framing says, the center of it cut out."""
    shape, left, top = _centre(picture.size, size, framing)
    if shape[0] * shape[1] > PIXELS:  # of a strip a thousand times as long as wide only the centre is scaled
        x, y = picture.width / shape[0], picture.height / shape[1]
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        picture = _scaled(picture, (size, size), framing, box)
    elif not picture.size == shape == (size, size):
        picture = _scaled(picture, shape, framing).crop((left, top, left + size, top + size))
    return np.asarray(picture)


def _scaled(picture: Image.Image, shape: tuple[int, int], framing: Framing, box: Box | None = None) -> Image.Image:
    """Return the picture, or the part of it in a box, as `shape` (width, height) pixels."""
    if framing.antialias:
        return picture.resize(shape, FILTERS[framing.interpolation], box)
    if box is not None:  # of a strip: to whole pixels
        left, top = int(box[0]), int(box[1])
        picture = picture.crop((left, top, max(round(box[2]), left + 1), max(round(box[3]), top + 1)))
    return Image.fromarray(sample(np.asarray(picture), shape, framing.interpolation))


def box_in_centre_view(box: Box, shape: tuple[int, int], size: int, framing: Framing = CLIP_FRAMING) -> Box:
    """A box of a picture of `shape` (width, height), in pixels of its centre view."""
    (width, height), left, top = _centre(shape, size, framing)
    x, y = width / shape[0], height / shape[1]
    return (box[0] * x - left, box[1] * y - top, box[2] * x - left, box[3] * y - top)


def _centre(shape: tuple[int, int], size: int, framing: Framing) -> tuple[tuple[int, int], int, int]:
    """The scaled shape, and where the centre starts in it."""
    short = round(size / framing.crop)
    keeps = framing.resize == "shortest"
    width, height = (int(short * side / min(shape)) if keeps and side != min(shape) else short for side in shape)
    start = round if framing.crop_start == "round" else math.floor
    return (width, height), start((width - size) / 2), start((height - size) / 2)


def training_views(
    image: bytes | np.ndarray,
    size: int,
    rng: np.random.Generator,
    count: int = 1,
    framing: Framing = CLIP_FRAMING,
    *,
    min_area: float,
    flip: bool,
    colour_jitter: float,
    auto_augment: bool,
) -> list[View]:
    """Return independent views as training sees them, a function of the generator's state; the image is decoded once.

    Args:
        image: encoded, or uint8 [h, w, 3].
        size: pixels of a side.
        count: how many views.
        framing: of the evaluation view. A random crop is scaled to the square whatever its shape, by `resize`.
        min_area: of the random crop, as a share of the picture; 1 crops nothing: the evaluation view.
        flip: whether half of the views are mirrored.
        colour_jitter: brightness, contrast and saturation each change by a factor of 1 +- this.
        auto_augment: whether a sub-policy of AutoAugment for ImageNet follows (FILIP, section 4.1).

    Raises:
        ValueError: the image cannot be read.
    """

    def boxes(width: int, height: int) -> list[Box]:
        return [random_box(width, height, min_area, rng) for _ in range(count)]

    views = [centre_view(decode(image), size, framing)] * count if min_area == 1 else decode_regions(image, size, boxes)
    for n, view in enumerate(views):
        if flip and rng.random() < 0.5:
            view = view[:, ::-1]
        if colour_jitter:
            view = np.asarray(_jitter(Image.fromarray(view), colour_jitter, rng))
        if auto_augment:
            view = np.asarray(imagenet_policy(Image.fromarray(view), rng))
        views[n] = view
    return views


def check_augment(*, min_area: float, flip: bool, colour_jitter: float, auto_augment: bool) -> None:
    """Raises a UserError for an augmentation that cannot be."""
    if not 0 < min_area <= 1:
        raise UserError(f"data.augment.min_area={min_area} must be above 0 and at most 1")
    if not 0 <= colour_jitter <= 1:
        raise UserError(f"data.augment.colour_jitter={colour_jitter} must be in [0, 1]")


def random_box(width: int, height: int, min_area: float, rng: np.random.Generator) -> Box:
    """A random crop of min_area to all of the area, in whole pixels.

    Its side ratio is 3/4 to 4/3, or as near to it as a crop of this area can be in a longer picture.
    """
    share = rng.uniform(min_area, 1.0)
    area = width * height * share
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    ratio = np.clip(ratio, share * width / height, width / (share * height))
    crop_width = max(1, min(width, round(np.sqrt(area * ratio))))
    crop_height = max(1, min(height, round(np.sqrt(area / ratio))))
    left, top = int(rng.integers(0, width - crop_width + 1)), int(rng.integers(0, height - crop_height + 1))
    return (left, top, left + crop_width, top + crop_height)


def _jitter(view: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Torchvision's colour jitter without its hue, in random order."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for n in rng.permutation(3):
        view = enhancers[n](view).enhance(rng.uniform(1 - strength, 1 + strength))
    return view
