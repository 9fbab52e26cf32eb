"""From a picture to a tower's pixels, as the files of others state it: channels, resize rule, interpolation."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from filip_jax.errors import UserError
from filip_jax.framing import RESIZES
from filip_jax.models.tower import CLIP_MEAN, CLIP_STD, HALF
from filip_jax.weights.options import Options
from filip_jax.weights.plan import Evidence, ModelSource

TRANSFORMERS, OPEN_CLIP = "preprocessor_config.json", "open_clip_config.json"
WHOLE = "processor_config.json"  # holds it in a section, as newer versions of transformers write it
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
SCALE = 1 / 255
SIDE = 224  # pixels of the picture and of its crop that transformers takes where a file is silent
CLIPS = dict(mean=CLIP_MEAN, std=CLIP_STD, resize="shortest", interpolation="bicubic")
# What transformers takes where a file is silent, by the class that the file names. Those of the shorter side crop.
PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIP": CLIPS,
    "Bit": CLIPS,
    "ViT": dict(mean=HALF, std=HALF, resize="squash", interpolation="bilinear"),
    "Siglip": dict(mean=HALF, std=HALF, resize="squash", interpolation="bicubic"),
}
STATED = ("image_mean", "image_std", "size", "resample", "do_center_crop")  # keys that files of other classes must have
PROCESSOR = re.compile(r"(\w+?)(ImageProcessor|FeatureExtractor)(Fast|Pil)?")
MAX_SIDE = 1 << 16  # pixels

# The options mean, std, resize … of a tower; the evidence for them; the size of the views and its key, if one is stated.
Preprocessing = tuple[dict[str, Any], list[Evidence], tuple[int, str] | None]


def of_transformers(source: ModelSource, default: Mapping[str, Any]) -> Preprocessing:
    """Return what preprocessor_config.json says.

    Args:
        default: the family's options, where there is no such file, or it names no class of `PROCESSORS`.

    Raises:
        UserError: it asks for what is not done here.
    """
    place, content = TRANSFORMERS, source.configs.get(TRANSFORMERS)
    if content is None:
        place, content = f"{WHOLE}, image_processor", source.configs.get(WHOLE, {}).get("image_processor")
    if content is None:
        origin = f"the family's own, since there is neither {TRANSFORMERS} nor {WHOLE}"
        return dict(default, crop_start="floor"), _evidence(default, [origin] * 3), None
    options = Options(place, content, {}, "transformers")
    default = _of_class(options, default)
    scale, resample = options.content.get("rescale_factor"), options.content.get("resample")
    if scale is not None and not (isinstance(scale, float) and abs(scale - SCALE) < 1e-6):
        raise UserError(f"{place}: rescale_factor={scale!r:.100} is not 1/255")
    if resample is not None and (type(resample) is not int or resample not in INTERPOLATIONS):
        raise UserError(f"{place}: resample={resample!r:.100} is neither 2 (bilinear) nor 3 (bicubic)")
    done, never = (True, None), (False, None)
    options.only(do_normalize=done, do_resize=done, do_rescale=done, do_pad=never, do_thumbnail=never, crop_pct=(None,))
    resize, crop, view = _resize(options, default["resize"])
    chosen = dict(
        mean=_channels(options, "image_mean", default["mean"]),
        std=_channels(options, "image_std", default["std"]),
        resize=resize,
        crop=crop,
        crop_start="floor",
        interpolation=default["interpolation"] if resample is None else INTERPOLATIONS[resample],
    )
    origins = [options.origin(key) for key in ("image_mean", "size", "resample")]
    origins[1] += " and crop_size" if view and view[1] == "crop_size" else ""
    return chosen, _evidence(chosen, origins), view and (view[0], options.origin(view[1]))


def _of_class(options: Options, default: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what transformers takes where the file is silent: the family's, unless the file names a class.

    Raises:
        UserError: the class is unknown, and the file is silent.
    """
    kind = options.content.get("image_processor_type") or options.content.get("feature_extractor_type")
    match = PROCESSOR.fullmatch(kind) if isinstance(kind, str) else None
    known = PROCESSORS.get(match[1]) if match else None
    silent = next((key for key in STATED if options.content.get(key) is None), "")
    if kind and known is None and silent:
        raise UserError(
            f"{options.place} lacks {silent}, and what a {kind!r:.60} takes then is unknown here: state it there"
        )
    return known or default


def of_open_clip(source: ModelSource) -> Preprocessing:
    """Return what preprocess_cfg of open_clip_config.json says, whose size open_clip overrides; raises as `of_transformers`."""
    content = source.configs.get(OPEN_CLIP, {}).get("preprocess_cfg")
    options = Options(f"{OPEN_CLIP}, preprocess_cfg", content, {}, "open_clip")
    options.only(mode=("RGB", None), interpolation=(*INTERPOLATIONS.values(), None), resize_mode=(*RESIZES, None))
    chosen = dict(
        mean=_channels(options, "mean", CLIP_MEAN),
        std=_channels(options, "std", CLIP_STD),
        resize=options.content.get("resize_mode") or "shortest",
        interpolation=options.content.get("interpolation") or "bicubic",
    )
    absent = "" if OPEN_CLIP in source.configs else f"OpenAI's, since there is no {OPEN_CLIP}"
    origins = [absent or options.origin(key) for key in ("mean", "resize_mode", "interpolation")]
    return chosen, _evidence(chosen, origins), None


def _evidence(options: Mapping[str, Any], origins: Sequence[str]) -> list[Evidence]:
    mean, deviation = (" ".join(f"{channel:.4g}" for channel in options[key]) for key in ("mean", "std"))
    share = f", the center {crop:.4g} of it" if (crop := options.get("crop", 1.0)) < 1 else ""
    values = (f"mean {mean}, deviation {deviation}", options["resize"] + share, options["interpolation"])
    names = ("channels", "resize", "interpolation")
    return [Evidence(*each) for each in zip(names, values, origins, strict=True)]


def _channels(options: Options, key: str, default: Sequence[float]) -> list[float]:
    channels = options.content.get(key)
    channels = list(default) if channels is None else channels
    if (
        not isinstance(channels, list)
        or len(channels) != 3
        or not all(type(x) in (int, float) and 0 <= x <= 1 for x in channels)
        or ("std" in key and not all(channels))
    ):
        raise UserError(f"{options.place}: {key}={channels!r:.100} are not three numbers from 0 to 1, no deviation 0")
    return [float(x) for x in channels]


def _resize(options: Options, default: str) -> tuple[str, float, tuple[int, str] | None]:
    """Return the resize rule, the view's side by the scaled picture's, and the view's side with the key that states it.

    transformers scales both sides, or the shorter one, of which the center may be cut out.
    """
    size, crop, cropped = (options.content.get(key) for key in ("size", "crop_size", "do_center_crop"))
    cropped = default == "shortest" if cropped is None else cropped
    if size is None and not (cropped and crop):
        return default, 1.0, None
    size, crop = SIDE if size is None else size, SIDE if crop is None else crop
    if {"height", "width"} <= size.keys() if isinstance(size, dict) else default == "squash":
        scaled = _side(options, "size", size)
        if cropped and _side(options, "crop_size", crop) != scaled:
            raise UserError(f"{options.place}: crop_size={crop!r:.100} of a squashed picture is not done here")
        return "squash", 1.0, (scaled, "size")
    if isinstance(size, dict) and {key for key, side in size.items() if side is not None} != {"shortest_edge"}:
        raise UserError(f"{options.place}: size={size!r:.100} is neither height and width nor shortest_edge")
    shorter = _side(options, "size", size)
    if not cropped:
        return "shortest", 1.0, (shorter, "size")
    view = _side(options, "crop_size", crop)
    if view > shorter:  # transformers fills the margin with black
        raise UserError(f"{options.place}: crop_size={crop!r:.100} is larger than size={size!r:.100}")
    return "shortest", view / shorter, (view, "crop_size")


def _side(options: Options, key: str, value: Any) -> int:
    """Return the one side that a size names, as a number or by sides."""
    sides = [side for side in value.values() if side is not None] if isinstance(value, dict) else [value]
    side = next(iter(sides), None)
    if any(other != side for other in sides) or type(side) is not int or not 0 < side <= MAX_SIDE:
        raise UserError(f"{options.place}: {key}={value!r:.100} is not one side in pixels")
    return side
