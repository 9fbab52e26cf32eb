"""`CLIPModel` of the library transformers, written."""

from typing import Any

from filip_jax.weights import leaving as out
from filip_jax.weights.families.hf_clip import ARGMAX, RULES
from filip_jax.weights.leaving import Leaving, Target
from filip_jax.weights.preprocessing import TRANSFORMERS
from filip_jax.weights.transformers_files import CONFIG, WEIGHTS, as_json, preprocessor, text_config, vision_config

IMAGE: dict[str, Any] = {
    "class_tokens": (1,), "registers": (0,), "layer_scale": (None,), "pre_norm": (True,), "patch_bias": (False,),
    "pooling": ("class",), "projection": ("linear",),
}  # fmt: skip
TEXT: dict[str, Any] = {"causal": (True,), "pooling": ("eos",), "projection": ("linear",)}
USAGE = """from transformers import AutoTokenizer, CLIPModel
model = CLIPModel.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""


def misfits(leaving: Leaving) -> list[str]:
    """Return the options by which a CLIPModel would compute something else."""
    lines = out.misfits(leaving, {"image": IMAGE, "text": TEXT})
    if leaving.tokenizer.pieces.eos == ARGMAX:
        lines.append(f"the tokenizer's EOS is {ARGMAX}, by which transformers pools at the largest id")
    return lines


def make(leaving: Leaving) -> Target:
    """Return the folder."""
    text = leaving.towers["text"]
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": leaving.config["model"]["embed_dim"],
        "logit_scale_init_value": 2.6592,
        "vision_config": vision_config(leaving, "clip_vision_model"),
        "text_config": text_config(leaving, "clip_text_model"),
    }
    for section in ("vision_config", "text_config"):
        config[section]["projection_dim"] = config["projection_dim"]
    pictures, differs = preprocessor(leaving.towers["image"])
    texts = leaving.tokenizer.public_files(text["length"])
    return Target(
        family="hf_clip",
        weights=WEIGHTS,
        rules=RULES,
        files={CONFIG: as_json(config), TRANSFORMERS: pictures} | (texts or {}),
        library="transformers",
        usage=USAGE,
        differs=differs,
        reads_texts=texts is not None,
    )
