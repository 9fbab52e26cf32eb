"""How a picture of any shape becomes the square view of an image tower."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from filip_jax.errors import UserError
from filip_jax.sections import one_of

RESIZES = ("shortest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear")
CROP_STARTS = ("round", "floor")
MIN_CROP = 0.1


@dataclass(frozen=True)
class Framing:
    """The rule of evaluation's views; the defaults are CLIP's.

    Attributes:
        resize: "shortest" scales the shorter side to the view's and keeps the picture's shape; "squash" scales both sides
            to the view's, as SigLIP does. The center of the scaled picture is the view.
        interpolation: "bicubic" or "bilinear".
        antialias: whether the filter widens with the scale, as Pillow's always does; False samples the picture at single
            points, as `torch.nn.functional.interpolate` does by default.
        crop: the view's side by the scaled picture's: 0.875 scales to 256 pixels for a view of 224, as DINOv2 does.
        crop_start: where the view begins if an odd number of pixels is left over: half of it "round", to even numbers, as
            torchvision does, or "floor", as transformers does.

    Raises:
        UserError: another value, as an option of `model.image`.
    """

    resize: str = "shortest"
    interpolation: str = "bicubic"
    antialias: bool = True
    crop: float = 1.0
    crop_start: str = "round"

    def __post_init__(self):
        one_of(RESIZES, self.resize, "model.image.resize")
        one_of(INTERPOLATIONS, self.interpolation, "model.image.interpolation")
        one_of(CROP_STARTS, self.crop_start, "model.image.crop_start")
        if not isinstance(self.antialias, bool):
            raise UserError(f"model.image.antialias={self.antialias!r} must be True or False")
        if not isinstance(self.crop, int | float) or not MIN_CROP <= self.crop <= 1:
            raise UserError(f"model.image.crop={self.crop!r} must be at least {MIN_CROP} and at most 1")


CLIP_FRAMING = Framing()


def framing_of(section: Mapping[str, Any]) -> Framing:
    """Return the framing that a config's `model.image` names; what it does not name is CLIP's."""
    return Framing(**{field.name: section[field.name] for field in fields(Framing) if field.name in section})
