"""ViT as the library transformers keeps it: `ViTModel`, by the names that it writes to disk; images alone."""

from collections.abc import Mapping
from typing import Any

from filip_jax.weights.hugging_face import FILES, block_rules, config_of, evidence_of, evidence_of_type, tower_options
from filip_jax.weights.mapping import FIRST_AXIS_GONE, LAYER, PATCHES, Rule, linear, norm
from filip_jax.weights.plan import HALF, Evidence, Family, Found, Plan
from filip_jax.weights.preprocessing import of_transformers
from filip_jax.weights.sizes import OF_SHAPES, image_sizes

MODEL_TYPES = ("vit",)
# What transformers takes where config.json is silent: the numbers of B/16.
DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
    "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True,
}  # fmt: skip
PREPROCESSING = dict(mean=HALF, std=HALF, resize="squash", interpolation="bilinear")
PREFIX = "vit."  # of the model inside a classifier
LAYERS = "encoder.layer"
QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
OUT = "attention.output.dense"
NORMS = ("layernorm_before", "layernorm_after")
MLP = ("intermediate.dense", "output.dense")
IGNORED = (
    (r"(vit\.)?pooler\..*", "a layer behind the class token, which no tower has"),
    (r"(vit\.)?embeddings\.mask_token", "stands for hidden patches in the model's own training"),
    (r"classifier\..*", "a classifier of other labels"),
)


def embedding_rules(prefix: str) -> list[Rule]:
    """Return the rules of what stands before the first block, which DINOv2 has, too."""
    return [
        *linear("image/patch_embedding", f"{prefix}embeddings.patch_embeddings.projection", kernel=PATCHES),
        Rule("image/class_tokens", (f"{prefix}embeddings.cls_token",), FIRST_AXIS_GONE),
        Rule("image/position", (f"{prefix}embeddings.position_embeddings",), FIRST_AXIS_GONE),
    ]


def rules(prefix: str) -> list[Rule]:
    """Return the table of names behind this prefix."""
    blocks = block_rules("image", f"{prefix}{LAYERS}", QKV, OUT, NORMS, MLP)
    return [*embedding_rules(prefix), *blocks, *norm("image/post_norm", f"{prefix}layernorm")]


def recognize(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return why a folder holds a ViT of transformers, or ""."""
    return evidence_of_type(configs, MODEL_TYPES)


def are_names(tensors: Mapping[str, Any]) -> bool:
    """Return whether these are its names."""
    return any(f"{prefix}{LAYERS}.0.{NORMS[0]}.weight" in tensors for prefix in ("", PREFIX))


def plan(found: Found) -> Plan:
    """Return what to do with such a folder."""
    prefix = PREFIX if f"{PREFIX}embeddings.cls_token" in found.tensors else ""
    options = config_of(found, "", DEFAULTS)
    options.only(qkv_bias=(True,))
    embeddings = f"{prefix}embeddings"
    image = image_sizes(
        found, f"{embeddings}.patch_embeddings.projection.weight", f"{embeddings}.position_embeddings",
        f"{prefix}{LAYERS}.0.{MLP[0]}.weight", class_tokens=1,
    )  # fmt: skip
    image |= tower_options(found, options, f"{prefix}{LAYERS}.{LAYER}.{NORMS[0]}.weight", image)
    chosen, evidence, view = of_transformers(found, PREPROCESSING)
    pooling = Evidence("image pooling", "class token behind the last norm", "the family's own; its pooler is left out")
    return Plan(
        image=dict(image, pre_norm=False, patch_bias=True, class_tokens=1, pooling="class", **chosen),
        text=None,
        embed_dim=image["width"],
        objectives={},
        rules=rules(prefix),
        evidence=[*evidence_of(options, image, "image"), pooling, OF_SHAPES, *evidence],
        ignored=IGNORED,
        view=view,
    )


FAMILY = Family(recognize, are_names, FILES, plan)
