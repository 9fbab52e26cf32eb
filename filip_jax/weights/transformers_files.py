"""The small files of the library transformers, written: sections of config.json, preprocessor_config.json."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from filip_jax.weights.exported_run import ExportedRun, Target
from filip_jax.weights.mapping import Rule
from filip_jax.weights.options import ACTIVATIONS
from filip_jax.weights.preprocessing import INTERPOLATIONS, SCALE, TRANSFORMERS

WEIGHTS, CONFIG = "model.safetensors", "config.json"
ACTIVATION_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
RESAMPLE = {name: number for number, name in INTERPOLATIONS.items()}
USAGE = """from transformers import AutoTokenizer, CLASS
model = CLASS.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""


def model_folder(
    run: ExportedRun, kind: str, architecture: str, rules: Sequence[Rule], *, vision: dict[str, Any],
    text: dict[str, Any], top: Mapping[str, Any] | None = None, usage_note: str = "",
) -> Target:  # fmt: skip
    """Return the folder of a model of two towers.

    Args:
        kind: its model_type.
        architecture: its class.
        top, vision, text: what config.json and its two sections say beside what those of all such models do.
        usage_note: at the end of the code that loads it.
    """
    config = {
        "architectures": [architecture],
        "model_type": kind,
        "dtype": "float32",
        **(top or {}),
        "vision_config": vision_config(run, f"{kind}_vision_model") | vision,
        "text_config": text_config(run, f"{kind}_text_model") | text,
    }
    pictures, differs = preprocessor(run.towers["image"])
    texts = run.tokenizer.public_files(run.towers["text"]["length"])
    return Target(
        family=f"hf_{kind}",
        weights=WEIGHTS,
        rules=rules,
        files={CONFIG: as_json(config), TRANSFORMERS: pictures} | (texts or {}),
        library="transformers",
        usage=USAGE.replace("CLASS", architecture) + usage_note,
        differs=differs,
        reads_texts=texts is not None,
    )


def as_json(content: Mapping[str, Any]) -> bytes:
    """Return the text of a JSON file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def tower_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what sections of both towers say alike."""
    return {
        "hidden_size": options["width"],
        "intermediate_size": options["mlp_width"],
        "num_hidden_layers": options["depth"],
        "num_attention_heads": options["heads"],
        "hidden_act": ACTIVATION_NAMES[options["activation"]],
        "layer_norm_eps": options["norm_epsilon"],
        "attention_dropout": 0.0,
    }


def vision_config(run: ExportedRun, model_type: str) -> dict[str, Any]:
    """Return the section vision_config."""
    image = run.towers["image"]
    sizes = {"image_size": image["image_size"], "patch_size": image["patch_size"], "num_channels": 3}
    return {"model_type": model_type, **tower_config(image), **sizes}


def text_config(run: ExportedRun, model_type: str) -> dict[str, Any]:
    """Return the section text_config."""
    text, pieces = run.towers["text"], run.tokenizer.pieces
    ids = {"bos_token_id": pieces.bos, "eos_token_id": pieces.eos, "pad_token_id": pieces.pad}
    sizes = {"vocab_size": text["vocab_size"], "max_position_embeddings": text["length"]}
    return {"model_type": model_type, **tower_config(text), **sizes, **ids}


def preprocessor(image: Mapping[str, Any]) -> tuple[bytes, list[str]]:
    """Return preprocessor_config.json of an image tower's options, and what is done otherwise there."""
    size, crop = image["image_size"], image["crop"]
    whole = round(size / crop)
    squash = image["resize"] == "squash"
    content = {
        "image_processor_type": "SiglipImageProcessor" if squash else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size} if squash else {"shortest_edge": whole},
        "resample": RESAMPLE[image["interpolation"]],
        "do_rescale": True,
        "rescale_factor": SCALE,
        "do_normalize": True,
        "image_mean": list(image["mean"]),
        "image_std": list(image["std"]),
    }
    if not squash:
        content |= {"do_center_crop": True, "crop_size": {"height": size, "width": size}}
    return as_json(content), resize_differences(image, may_crop=not squash, crop_start="floor")


def resize_differences(image: Mapping[str, Any], may_crop: bool, crop_start: str) -> list[str]:
    """Return what the preprocessing of others does otherwise: pixels between those of the picture, and the view's margin."""
    lines = [] if image["antialias"] else ["pictures are scaled with antialias, here without (model.image.antialias)"]
    if image["crop"] != 1 and not may_crop:
        lines.append(f"the view is the whole picture, here the center {image['crop']:.4g} of it (model.image.crop)")
    if image["resize"] == "shortest" and image["crop_start"] != crop_start:
        start = f"model.image.crop_start={image['crop_start']!r}, there {crop_start!r}"
        lines.append(f"the view of a picture that is 3, 7, 11 ... pixels too long begins a pixel beside ours ({start})")
    return lines
