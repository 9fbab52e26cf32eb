"""AutoAugment's policy for ImageNet (Cubuk et al., CVPR 2019, table 9), with Pillow."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

GREY = (128, 128, 128)  # fills what a shear or a rotation lays bare

# Sub-policies: two operations (name, probability, magnitude from 0 to 9).
POLICY = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("colour", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("colour", 1.0, 2)),
    (("colour", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("colour", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("posterize", 0.6, 3)),
)


def imagenet_policy(view: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One sub-policy drawn at random; each of its operations happens with its probability."""
    for name, probability, magnitude in POLICY[rng.integers(len(POLICY))]:
        happens, sign = rng.random() < probability, 1 if rng.random() < 0.5 else -1
        if happens:
            view = OPERATIONS[name](view, magnitude, sign)
    return view


def _enhance(enhancer) -> Callable[[Image.Image, int, int], Image.Image]:
    return lambda view, magnitude, sign: enhancer(view).enhance(1 + sign * 0.9 * magnitude / 9)


def _shear_x(view: Image.Image, magnitude: int, sign: int) -> Image.Image:
    shear = sign * 0.3 * magnitude / 9
    return view.transform(view.size, Image.Transform.AFFINE, (1, shear, 0, 0, 1, 0), fillcolor=GREY)


OPERATIONS: dict[str, Callable[[Image.Image, int, int], Image.Image]] = {
    "shear_x": _shear_x,
    "rotate": lambda view, magnitude, sign: view.rotate(sign * 30 * magnitude / 9, fillcolor=GREY),
    "posterize": lambda view, magnitude, sign: ImageOps.posterize(view, 8 - round(magnitude * 4 / 9)),
    "solarize": lambda view, magnitude, sign: ImageOps.solarize(view, round(255 - 255 * magnitude / 9)),
    "auto_contrast": lambda view, magnitude, sign: ImageOps.autocontrast(view),
    "equalize": lambda view, magnitude, sign: ImageOps.equalize(view),
    "invert": lambda view, magnitude, sign: ImageOps.invert(view),
    "colour": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
}
