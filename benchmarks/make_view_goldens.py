"""Make tests/golden/views.npz: views of photographs as the public code of each family makes them.

    python benchmarks/make_view_goldens.py FOLDER

FOLDER holds scikit-image's photographs (skimage/data). It needs open_clip_torch, torchvision and transformers, which the tests do not.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from open_clip.transform import image_transform
from PIL import Image
from transformers import BitImageProcessor, CLIPImageProcessor, SiglipImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

ROOT = Path(__file__).resolve().parent.parent
SIZE = 56
PHOTOGRAPHS = {"chelsea.png": None, "coffee.png": (200, 0, 420, 400)}  # and the part of each that is taken
PLAIN = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
BARE = dict(do_normalize=False, do_rescale=False)


def open_clips(**options):
    transform = image_transform(SIZE, is_train=False, **PLAIN, **options)
    return lambda picture: (transform(picture) * 255).round().permute(1, 2, 0).numpy()


def transformers_(processor, **options):
    made = processor(**BARE, **options)
    return lambda picture: np.asarray(made(picture, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)


def points(mode):
    """Torch's interpolation without antialiasing, as of tensors in old torchvision."""

    def view(picture):
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
        scaled = torch.nn.functional.interpolate(pixels, (SIZE, SIZE), mode=mode, align_corners=False)
        return scaled.clamp(0, 255).round()[0].permute(1, 2, 0).numpy()

    return view


SQUARE = {"size": {"height": SIZE, "width": SIZE}}
SHORT = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
DINO = {"size": {"shortest_edge": round(SIZE * 256 / 224)}, "crop_size": {"height": SIZE, "width": SIZE}, "resample": 3}
CASES = {  # by its maker: the options of `Framing` that name the same view
    "open_clip-shortest": (open_clips(), dict()),
    "open_clip-shortest-bilinear": (open_clips(interpolation="bilinear"), dict(interpolation="bilinear")),
    "open_clip-squash": (open_clips(resize_mode="squash"), dict(resize="squash")),
    "open_clip-squash-bilinear": (
        open_clips(resize_mode="squash", interpolation="bilinear"), dict(resize="squash", interpolation="bilinear"),
    ),
    "transformers-pil-clip": (transformers_(CLIPImageProcessorPil, **SHORT), dict()),
    "transformers-clip": (transformers_(CLIPImageProcessor, **SHORT), dict()),
    "transformers-pil-siglip": (transformers_(SiglipImageProcessorPil, **SQUARE), dict(resize="squash")),
    "transformers-siglip": (transformers_(SiglipImageProcessor, **SQUARE), dict(resize="squash")),
    "transformers-dinov2": (transformers_(BitImageProcessor, **DINO), dict(crop=0.875)),
    "torch-points-bilinear": (points("bilinear"), dict(resize="squash", interpolation="bilinear", antialias=False)),
    "torch-points-bicubic": (points("bicubic"), dict(resize="squash", antialias=False)),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    packages = ("torch", "torchvision", "transformers", "open_clip_torch", "pillow")
    about = {"made_with": {name: version(name) for name in packages}, "size": SIZE, "photographs": PHOTOGRAPHS}
    about["framings"] = {name: framing for name, (_, framing) in CASES.items()}
    arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    for name, box in PHOTOGRAPHS.items():
        picture = Image.open(folder / name).convert("RGB")
        picture = picture.crop(box) if box else picture
        for case, (view, _) in CASES.items():
            pixels = view(picture)
            if pixels.shape != (SIZE, SIZE, 3) or not np.array_equal(pixels, pixels.astype(np.uint8)):
                raise SystemExit(f"{case} of {name}: {pixels.dtype} {pixels.shape} are no pixels")
            arrays[f"{name} {case}"] = pixels.astype(np.uint8)
    np.savez_compressed(ROOT / "tests/golden/views.npz", **arrays)


if __name__ == "__main__":
    main()
