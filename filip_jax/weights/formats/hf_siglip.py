"""`SiglipModel` of the library transformers, written."""

from typing import Any

from filip_jax.weights import exported_run
from filip_jax.weights.exported_run import ExportedRun, Target
from filip_jax.weights.families.hf_siglip import RULES
from filip_jax.weights.transformers_files import model_folder

IMAGE: dict[str, Any] = {
    "class_tokens": (0,), "registers": (0,), "layer_scale": (None,), "pre_norm": (False,), "patch_bias": (True,),
    "pooling": ("map",), "projection": ("none",),
}  # fmt: skip
TEXT: dict[str, Any] = {"causal": (False,), "pad_mask": (False,), "pooling": ("last",), "projection": ("biased",)}


def misfits(run: ExportedRun) -> list[str]:
    """Return the options by which a SiglipModel would compute something else."""
    return exported_run.misfits(run, {"image": IMAGE, "text": TEXT})


def make(run: ExportedRun) -> Target:
    """Return the folder."""
    note = f'  # texts: padding="max_length", truncation=True, max_length={run.towers["text"]["length"]}'
    text = {"projection_size": run.config["model"]["embed_dim"]}
    return model_folder(
        run, "siglip", "SiglipModel", RULES, vision={"vision_use_head": True}, text=text, usage_note=note
    )
