"""`CLIPModel` of the library transformers, written."""

from typing import Any

from filip_jax.weights import exported_run
from filip_jax.weights.exported_run import ExportedRun, Target
from filip_jax.weights.families.hf_clip import ARGMAX, RULES
from filip_jax.weights.transformers_files import model_folder

IMAGE: dict[str, Any] = {
    "class_tokens": (1,), "registers": (0,), "layer_scale": (None,), "pre_norm": (True,), "patch_bias": (False,),
    "pooling": ("class",), "projection": ("linear",),
}  # fmt: skip
TEXT: dict[str, Any] = {"causal": (True,), "pooling": ("eos",), "projection": ("linear",)}


def misfits(run: ExportedRun) -> list[str]:
    """Return the options by which a CLIPModel would compute something else."""
    lines = exported_run.misfits(run, {"image": IMAGE, "text": TEXT})
    if run.tokenizer.pieces.eos == ARGMAX:
        lines.append(f"the tokenizer's EOS is {ARGMAX}, by which transformers pools at the largest id")
    return lines


def make(run: ExportedRun) -> Target:
    """Return the folder."""
    width = {"projection_dim": run.config["model"]["embed_dim"]}
    return model_folder(
        run, "clip", "CLIPModel", RULES, top=width | {"logit_scale_init_value": 2.6592}, vision=width, text=width
    )
