"""A folder that open_clip loads as local-dir:FOLDER, written."""

import math
from collections.abc import Mapping
from typing import Any

from filip_jax.small_files import read_json
from filip_jax.weights import exported_run
from filip_jax.weights.exported_run import ExportedRun, Target
from filip_jax.weights.families import open_clip as family
from filip_jax.weights.mapping import Rule
from filip_jax.weights.open_clip_config import CONFIG, POOLINGS, TEXT_POOLINGS
from filip_jax.weights.transformers_files import as_json, resize_differences
from filip_jax.weights.words import CLIP_IDS

IMAGE: dict[str, Any] = {
    "class_tokens": (1,), "registers": (0,), "patch_bias": (False,), "pooling": tuple(POOLINGS.values()), "projection": ("linear",),
}  # fmt: skip
QUICK, TANH = "quick_gelu", "gelu_tanh"
EPSILON = 1e-5  # that need not be written
IMAGE_POOLING = {ours: theirs for theirs, ours in POOLINGS.items()}
TEXT_POOLING = {ours: theirs for theirs, ours in TEXT_POOLINGS.items()}  # the last name of each: eos, not argmax
REPAIRED = "texts are repaired (ftfy, signs of HTML) before they are cut"
USAGE = """import open_clip
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")"""


def misfits(run: ExportedRun) -> list[str]:
    """Return the options by which a model of open_clip would compute something else."""
    image, text = run.towers["image"], run.towers["text"]
    lines = exported_run.misfits(run, {"image": IMAGE})
    if not text["causal"] and text["pad_mask"]:
        lines.append("model.text.pad_mask=True without causal (there False)")
    if (image["activation"] == QUICK) != (text["activation"] == QUICK):
        lines.append(
            f"model.image.activation={image['activation']!r} and model.text.activation={text['activation']!r} (there {QUICK!r} in both or in none)"
        )
    return lines


def make(run: ExportedRun) -> Target:
    """Return the folder."""
    image, text = run.towers["image"], run.towers["text"]
    is_custom = _is_custom(run)
    kind = "siglip" if run.bias else "clip"
    scalars = [Rule(f"objectives/{kind}/logit_scale", ("logit_scale",))]
    scalars += [Rule(f"objectives/{kind}/bias", ("logit_bias",))] * run.bias
    texts = run.tokenizer.public_files(text["length"])
    is_clip = text["vocab_size"] == CLIP_IDS  # whose tokenizer open_clip has built in
    model = {
        "embed_dim": run.config["model"]["embed_dim"],
        "vision_cfg": _vision(image),
        "text_cfg": _text(run, {} if is_clip or not texts else {"hf_tokenizer_name": "."}),
        **({"quick_gelu": True} if image["activation"] == QUICK else {}),
        **({"custom_text": True} if is_custom else {}),
        **({"init_logit_bias": 0.0} if run.bias else {}),
    }
    pixels = {name: image[name] for name in ("mean", "std", "interpolation")}
    content = {
        "model_cfg": model,
        "preprocess_cfg": {"size": image["image_size"], "mode": "RGB", **pixels, "resize_mode": image["resize"]},
    }
    return Target(
        family="open_clip",
        weights=family.FILES[0],
        rules=family.rules(image, text, "text." if is_custom else "", scalars),
        files={CONFIG: as_json(content)} | (texts or {}),
        library="open_clip_torch",
        usage=USAGE,
        differs=[
            *resize_differences(image, may_crop=False, crop_start="round"),
            *([REPAIRED] if texts and not is_clip else []),
        ],
        reads_texts=texts is not None,
    )


def _is_custom(run: ExportedRun) -> bool:
    """Return whether the weights came with a text tower of its own, and go so, too."""
    file = run.source / CONFIG if run.source else None
    model = read_json(file).get("model_cfg") if file and file.is_file() else None
    return isinstance(model, dict) and model.get("custom_text") is True


def _vision(image: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image_size": image["image_size"],
        "patch_size": image["patch_size"],
        "width": image["width"],
        "layers": image["depth"],
        "head_width": image["width"] // image["heads"],
        "mlp_ratio": _ratio(image),
        "no_ln_pre": not image["pre_norm"],
        "pool_type": IMAGE_POOLING[image["pooling"]],
        **({} if image["layer_scale"] is None else {"ls_init_value": image["layer_scale"]}),
        **_layers(image),
    }


def _text(run: ExportedRun, tokenizer: Mapping[str, str]) -> dict[str, Any]:
    text, pieces = run.towers["text"], run.tokenizer.pieces
    pooling = TEXT_POOLING[text["pooling"]]
    if (
        pooling == "eos" and pieces.eos == text["vocab_size"] - 1
    ):  # as CLIP's, where older versions look for the largest id
        pooling = "argmax"
    return {
        "context_length": text["length"],
        "vocab_size": text["vocab_size"],
        "width": text["width"],
        "heads": text["heads"],
        "layers": text["depth"],
        "mlp_ratio": _ratio(text),
        "pad_id": text["pad_id"],
        "eos_id": pieces.eos,
        "pool_type": pooling,
        "no_causal_mask": not text["causal"],
        "proj_bias": text["projection"] == "biased",
        "proj_type": "none" if text["projection"] == "none" else "linear",
        **tokenizer,
        **_layers(text),
    }


def _layers(tower: Mapping[str, Any]) -> dict[str, Any]:
    norm = {} if tower["norm_epsilon"] == EPSILON else {"norm_kwargs": {"eps": tower["norm_epsilon"]}}
    return norm | ({"act_kwargs": {"approximate": "tanh"}} if tower["activation"] == TANH else {})


def _ratio(tower: Mapping[str, Any]) -> float:
    """Return the number by which open_clip finds the MLP's width, which it rounds down."""
    ratio = tower["mlp_width"] / tower["width"]
    return ratio if int(tower["width"] * ratio) == tower["mlp_width"] else math.nextafter(ratio, math.inf)
