"""`SiglipModel` of the library transformers, written."""

from typing import Any

from filip_jax.weights import leaving as out
from filip_jax.weights.families.hf_siglip import RULES
from filip_jax.weights.leaving import Leaving, Target
from filip_jax.weights.preprocessing import TRANSFORMERS
from filip_jax.weights.transformers_files import CONFIG, WEIGHTS, as_json, preprocessor, text_config, vision_config

IMAGE: dict[str, Any] = {
    "class_tokens": (0,), "registers": (0,), "layer_scale": (None,), "pre_norm": (False,), "patch_bias": (True,),
    "pooling": ("map",), "projection": ("none",),
}  # fmt: skip
TEXT: dict[str, Any] = {"causal": (False,), "pad_mask": (False,), "pooling": ("last",), "projection": ("biased",)}
USAGE = """from transformers import AutoTokenizer, SiglipModel
model = SiglipModel.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")  # texts: padding="max_length", truncation=True, max_length=LENGTH"""


def misfits(leaving: Leaving) -> list[str]:
    """Return the options by which a SiglipModel would compute something else."""
    return out.misfits(leaving, {"image": IMAGE, "text": TEXT})


def make(leaving: Leaving) -> Target:
    """Return the folder."""
    text = leaving.towers["text"]
    projected = {"projection_size": leaving.config["model"]["embed_dim"]}
    config = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": "float32",
        "vision_config": vision_config(leaving, "siglip_vision_model") | {"vision_use_head": True},
        "text_config": text_config(leaving, "siglip_text_model") | projected,
    }
    pictures, differs = preprocessor(leaving.towers["image"])
    texts = leaving.tokenizer.public_files(text["length"])
    return Target(
        family="hf_siglip",
        weights=WEIGHTS,
        rules=RULES,
        files={CONFIG: as_json(config), TRANSFORMERS: pictures} | (texts or {}),
        library="transformers",
        usage=USAGE.replace("LENGTH", str(text["length"])),
        differs=differs,
        reads_texts=texts is not None,
    )
