"""What an image tower sees in evaluation is what the public code of its family makes, on photographs; CLIP's bit for bit.

The golden numbers are torchvision's and open_clip's, which are no dependencies; tests/golden/clip_preprocessing.json says how they
were made, benchmarks/make_view_goldens.py makes those of other families. Pillow scales for all of us: if a release of it
scales otherwise, these tests say so.
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
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from filip_jax.data.decode import decode
from filip_jax.data.preprocess import box_in_centre_view, centre_view, training_views
from filip_jax.errors import UserError
from filip_jax.framing import CLIP_FRAMING, Framing, framing_of
from filip_jax.inference.images import views
from filip_jax.models.tower import ImageInput

GOLDEN = json.loads((ROOT / "tests/golden/clip_preprocessing.json").read_text())
VIEWS = np.load(ROOT / "tests/golden/views.npz")
ABOUT = json.loads(VIEWS["about"].tobytes())
# Grey levels, at most and on average: torchvision's filter of tensors rounds otherwise than Pillow's.
TOLERANCES = {"open_clip": (0, 0.0), "transformers-pil": (0, 0.0), "transformers": (2, 0.15), "torch": (1, 0.15)}
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


@pytest.mark.parametrize("case", ABOUT["framings"])
@pytest.mark.parametrize("photograph", ABOUT["photographs"])
def test_views_are_those_of_other_families(photograph, case):
    box, framing = ABOUT["photographs"][photograph], Framing(**ABOUT["framings"][case])
    picture = decode((PHOTOGRAPHS / photograph).read_bytes())
    picture = picture.crop(box) if box else picture
    difference = np.abs(centre_view(picture, ABOUT["size"], framing).astype(int) - VIEWS[f"{photograph} {case}"])
    most, mean = next(bounds for maker, bounds in TOLERANCES.items() if case.startswith(maker))
    assert difference.max() <= most and difference.mean() <= mean
    others = [Framing(**other) for other in ABOUT["framings"].values() if Framing(**other) != framing]
    nearest = min(
        np.abs(centre_view(picture, ABOUT["size"], other).astype(int) - VIEWS[f"{photograph} {case}"]).mean()
        for other in others
    )
    assert nearest > 0.5, "no other framing passes for it"


PLAIN = dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False)
FRAMINGS = st.fixed_dictionaries(
    {
        "resize": st.sampled_from(["shortest", "squash"]),
        "interpolation": st.sampled_from(["bicubic", "bilinear"]),
        "antialias": st.booleans(),
        "crop": st.floats(0.5, 1),
        "crop_start": st.sampled_from(["round", "floor"]),
    }
)


@given(framing=FRAMINGS, width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40))
def test_views_of_any_framing_are_square_and_boxes_follow_them(framing, width, height, size):
    framing = Framing(**framing)
    view = centre_view(Image.new("RGB", (width, height), (10, 20, 30)), size, framing)
    assert view.shape == (size, size, 3) and (view == (10, 20, 30)).all()
    left, top, right, bottom = box_in_centre_view((0, 0, width, height), (width, height), size, framing)
    assert left <= 0.5 and top <= 0.5 and right >= size - 0.5 and bottom >= size - 0.5
    if framing.resize == "squash":
        assert (right - left, bottom - top) == pytest.approx((round(size / framing.crop),) * 2)


@given(framing=FRAMINGS)
def test_training_and_inference_see_the_view_of_evaluation(framing):
    framing, pixels = Framing(**framing), np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    expected = centre_view(Image.fromarray(pixels), 16, framing)
    (trained,) = training_views(pixels, 16, np.random.default_rng(0), 1, framing, **PLAIN)
    (embedded,) = views([pixels], 16, 1, framing)
    assert np.array_equal(trained, expected) and np.array_equal(embedded, expected)
    (again,) = views([expected], 16, 1, framing)
    assert np.array_equal(again, expected), "a view is not framed twice"


def test_a_thing_stays_in_its_box_where_a_picture_is_squashed():
    picture = np.zeros((60, 100, 3), np.uint8)
    picture[20:40, 50:70] = 255
    for framing in (Framing(resize="squash"), Framing(resize="squash", crop=0.8), Framing(crop=0.8, antialias=False)):
        view = centre_view(Image.fromarray(picture), 40, framing)
        left, top, right, bottom = (
            round(edge) for edge in box_in_centre_view((50, 20, 70, 40), (100, 60), 40, framing)
        )
        inside = np.zeros((40, 40), bool)
        inside[top:bottom, left:right] = True
        assert view[inside].mean() > 200 and view[~inside].mean() < 12


def test_the_center_of_a_strip_without_antialiasing_is_near_that_of_the_whole(monkeypatch):
    rows = np.linspace(0, 255, 4000).astype(np.uint8)
    strip = Image.fromarray(np.broadcast_to(rows[:, None, None], (4000, 2, 3)).copy())
    framing = Framing(antialias=False, interpolation="bilinear")
    whole = centre_view(strip, 32, framing)
    monkeypatch.setattr("filip_jax.data.preprocess.PIXELS", 1000)
    assert np.abs(centre_view(strip, 32, framing).astype(int) - whole).max() <= 2


def test_framings_that_cannot_be():
    assert (
        framing_of({"kind": "vit", "resize": "squash"}) == Framing(resize="squash") and framing_of({}) == CLIP_FRAMING
    )
    for wrong, message in (
        ({"resize": "longest"}, "model.image.resize='longest' is not one of shortest, squash"),
        ({"interpolation": "cubic"}, "model.image.interpolation='cubic' is not one of bicubic, bilinear"),
        ({"crop": 0.0}, "model.image.crop=0.0 must be at least 0.1 and at most 1"),
        ({"crop": float("nan")}, "model.image.crop=nan"),
        ({"crop_start": "ceil"}, "model.image.crop_start='ceil' is not one of round, floor"),
    ):
        with pytest.raises(UserError, match=message):
            Framing(**wrong)
