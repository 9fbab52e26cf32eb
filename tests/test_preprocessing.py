"""What an image tower sees in evaluation is what published CLIP preprocessing makes, bit for bit, on photographs.

The golden numbers are torchvision's and open_clip's, which are no dependencies; tests/golden/clip_preprocessing.json says how they
were made. Pillow scales for all of us: if a release of it scales otherwise, these tests say so.
"""

import hashlib
import importlib.util
import io
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import PIL
import pytest
from conftest import ROOT
from PIL import Image

from filip_jax.data.decode import decode
from filip_jax.data.preprocess import centre_view
from filip_jax.models.tower import ImageInput

GOLDEN = json.loads((ROOT / "tests/golden/clip_preprocessing.json").read_text())
PHOTOGRAPHS = Path(importlib.util.find_spec("skimage").origin).parent / "data"


def name(view):
    return f"{view['photograph']}-{view['box'] or 'whole'}-{view['size']}".replace(" ", "")


def clips(picture, size):
    """CLIP's definition in Pillow alone, to tell a change of Pillow from one of ours."""
    width, height = (
        size if side == min(picture.size) else int(size * side / min(picture.size)) for side in picture.size
    )
    picture = picture if min(picture.size) == size else picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return np.asarray(picture)[top : top + size, left : left + size]


def sha256(pixels):
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


@pytest.mark.parametrize("view", GOLDEN["views"], ids=name)
def test_views_are_clips(view):
    data = (PHOTOGRAPHS / view["photograph"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == GOLDEN["photographs"][view["photograph"]], (
        "scikit-image has another photograph now"
    )
    picture, size = decode(data), view["size"]
    if view["box"]:
        picture = picture.crop(view["box"])
    plain = Image.open(io.BytesIO(data)).convert("RGB").crop(view["box"] or (0, 0, *picture.size))
    made_with = ", ".join(GOLDEN["made_with"]["Pillow (all alike)"])
    assert sha256(clips(plain, size)) == view["sha256"], f"Pillow {PIL.__version__} scales otherwise than {made_with}"
    pixels = centre_view(picture, size)
    assert sha256(pixels) == view["sha256"]
    seen = np.asarray(ImageInput(size, (1, 1)).normalize(jnp.array(pixels[None]))[0])
    for place, values in view["normalised"].items():
        np.testing.assert_allclose(seen[tuple(map(int, place.split(",")))], values, rtol=0, atol=1e-6)
