"""From a picture to a tower's pixels, as the files of others state it: channels, resize rule, interpolation."""

from collections.abc import Mapping, Sequence
from typing import Any

from filip_jax.errors import UserError
from filip_jax.weights.options import Options
from filip_jax.weights.plan import CLIP_MEAN, CLIP_STD, Evidence, Found

TRANSFORMERS, OPEN_CLIP = "preprocessor_config.json", "open_clip_config.json"
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
SCALE = 1 / 255
RESIZES = ("shortest", "squash")

# The options mean, std, resize and interpolation of a tower; the evidence for them; what is computed otherwise here.
Preprocessing = tuple[dict[str, Any], list[Evidence], list[str]]


def of_transformers(found: Found, size: int, default: Mapping[str, Any]) -> Preprocessing:
    """Return what preprocessor_config.json says.

    Args:
        size: pixels of a side that the tower takes.
        default: the family's options, where there is no such file.

    Raises:
        UserError: it asks for what is not done here.
    """
    if TRANSFORMERS not in found.configs:
        why = f"the family's own, since there is no {TRANSFORMERS}"
        return dict(default), _evidence(default, [why] * 3), []
    options = Options(TRANSFORMERS, found.configs[TRANSFORMERS], {}, "transformers")
    scale, resample = options.content.get("rescale_factor"), options.content.get("resample")
    if scale is not None and not (isinstance(scale, float) and abs(scale - SCALE) < 1e-6):
        raise UserError(f"{TRANSFORMERS}: rescale_factor={scale!r:.100} is not 1/255")
    if resample is not None and (type(resample) is not int or resample not in INTERPOLATIONS):
        raise UserError(f"{TRANSFORMERS}: resample={resample!r:.100} is neither 2 (bilinear) nor 3 (bicubic)")
    options.only(do_normalize=(True, None), do_resize=(True, None), do_rescale=(True, None))
    resize, sides = _resize(options, default["resize"])
    chosen = dict(
        mean=_channels(options, "image_mean", default["mean"]),
        std=_channels(options, "image_std", default["std"]),
        resize=resize,
        interpolation=default["interpolation"] if resample is None else INTERPOLATIONS[resample],
    )
    why = [options.origin(key) for key in ("image_mean", "size", "resample")]
    return chosen, _evidence(chosen, why), _differences(options.place, sides, size)


def of_open_clip(found: Found, size: int) -> Preprocessing:
    """Return what preprocess_cfg of open_clip_config.json says; raises as `of_transformers`."""
    content = found.configs.get(OPEN_CLIP, {}).get("preprocess_cfg")
    options = Options(f"{OPEN_CLIP}, preprocess_cfg", content, {}, "open_clip")
    options.only(mode=("RGB", None), interpolation=(*INTERPOLATIONS.values(), None), resize_mode=(*RESIZES, None))
    chosen = dict(
        mean=_channels(options, "mean", CLIP_MEAN),
        std=_channels(options, "std", CLIP_STD),
        resize=options.content.get("resize_mode") or "shortest",
        interpolation=options.content.get("interpolation") or "bicubic",
    )
    given = options.content.get("size")
    sides = given if isinstance(given, list) else [given]
    why = [options.origin(key) for key in ("mean", "resize_mode", "interpolation")]
    return chosen, _evidence(chosen, why), _differences(options.place, sides, size)


def _evidence(options: Mapping[str, Any], why: Sequence[str]) -> list[Evidence]:
    mean, deviation = (" ".join(f"{channel:.4g}" for channel in options[key]) for key in ("mean", "std"))
    values = (("channels", f"mean {mean}, deviation {deviation}"), *((key, options[key]) for key in ("resize", "interpolation")))
    return [Evidence(what, value, reason) for (what, value), reason in zip(values, why, strict=True)]


def _channels(options: Options, key: str, default: Sequence[float]) -> list[float]:
    found = options.content.get(key)
    found = list(default) if found is None else found
    if not isinstance(found, list) or len(found) != 3 or not all(type(x) in (int, float) and 0 <= x <= 1 for x in found):
        raise UserError(f"{options.place}: {key}={found!r:.100} are not three numbers from 0 to 1")
    return [float(x) for x in found]


def _resize(options: Options, default: str) -> tuple[str, list[Any]]:
    """Return the resize rule and the sides that it names: transformers knows both sides, or the shorter one and a crop."""
    size, crop = options.content.get("size"), options.content.get("crop_size")
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return "squash", [size["height"], size["width"]]
    if size is None:
        return default, []
    shorter = size.get("shortest_edge") if isinstance(size, dict) else size
    cropped = list(crop.values()) if isinstance(crop, dict) else [crop]
    return "shortest", [shorter] if options.content.get("do_center_crop") is False else [shorter, *cropped]


def _differences(place: str, sides: Sequence[Any], size: int) -> list[str]:
    named = [side for side in sides if isinstance(side, int)]
    if all(side == size for side in named):
        return []
    words = " and ".join(map(str, dict.fromkeys(named)))
    return [f"{place} scales and crops to {words} pixels; images are scaled to the {size} of the tower here"]
