"""DINOv2 as the library transformers keeps it, with and without registers, by the names that it writes to disk; images alone."""

from collections.abc import Mapping
from typing import Any

from filip_jax.weights.families.hf_vit import LAYERS, OUT, QKV, embedding_rules
from filip_jax.weights.hugging_face import (
    CONFIG,
    FILES,
    block_rules,
    config_of,
    evidence_of,
    evidence_of_type,
    tower_options,
)
from filip_jax.weights.mapping import FIRST_AXIS_GONE, LAYER, Rule, norm
from filip_jax.weights.plan import IMAGENET_MEAN, IMAGENET_STD, Evidence, Family, Found, Plan
from filip_jax.weights.preprocessing import of_transformers
from filip_jax.weights.sizes import OF_SHAPES, image_sizes

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
# What transformers takes where config.json is silent.
DEFAULTS = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 16,
    "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True, "layerscale_value": 1.0, "use_swiglu_ffn": False,
}  # fmt: skip
PREPROCESSING = dict(mean=IMAGENET_MEAN, std=IMAGENET_STD, resize="shortest", interpolation="bicubic")
PREFIXES = ("dinov2_with_registers.", "dinov2.")  # of the model inside a classifier
NORMS, MLP = ("norm1", "norm2"), ("mlp.fc1", "mlp.fc2")
IGNORED = (
    (r"(\w+\.)?embeddings\.mask_token", "stands for hidden patches in the model's own training"),
    (r"classifier\..*", "a classifier of other labels"),
)


def rules(prefix: str, registers: int) -> list[Rule]:
    """Return the table of names behind this prefix, of a model with so many registers."""
    layer, blocks = f"{prefix}{LAYERS}.{LAYER}", "image/transformer/blocks"
    several = [Rule("image/registers", (f"{prefix}embeddings.register_tokens",), FIRST_AXIS_GONE)] if registers else []
    return [
        *embedding_rules(prefix),
        *several,
        *block_rules("image", f"{prefix}{LAYERS}", QKV, OUT, NORMS, MLP),
        Rule(f"{blocks}/attention_scale", (f"{layer}.layer_scale1.lambda1",)),
        Rule(f"{blocks}/mlp_scale", (f"{layer}.layer_scale2.lambda1",)),
        *norm("image/post_norm", f"{prefix}layernorm"),
    ]


def recognize(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return why a folder holds a DINOv2 of transformers, or ""."""
    return evidence_of_type(configs, MODEL_TYPES)


def are_names(tensors: Mapping[str, Any]) -> bool:
    """Return whether these are its names."""
    return any(f"{prefix}{LAYERS}.0.layer_scale1.lambda1" in tensors for prefix in ("", *PREFIXES))


def plan(found: Found) -> Plan:
    """Return what to do with such a folder."""
    prefix = next((each for each in PREFIXES if f"{each}embeddings.cls_token" in found.tensors), "")
    options = config_of(found, "", DEFAULTS)
    options.only(qkv_bias=(True,), use_swiglu_ffn=(False,))
    embeddings = f"{prefix}embeddings"
    image = image_sizes(
        found, f"{embeddings}.patch_embeddings.projection.weight", f"{embeddings}.position_embeddings",
        f"{prefix}{LAYERS}.0.{MLP[0]}.weight", class_tokens=1,
    )  # fmt: skip
    image |= tower_options(found, options, f"{prefix}{LAYERS}.{LAYER}.{NORMS[0]}.weight", image)
    image["layer_scale"] = float(options.value("layerscale_value", float))
    name = f"{embeddings}.register_tokens"
    image["registers"] = registers = found.shape(name, 3)[1] if name in found.tensors else 0
    chosen, evidence, view = of_transformers(found, PREPROCESSING)
    pooling = Evidence("image pooling", "class token behind the last norm", "the family's own")
    several = Evidence("registers", f"{registers}", "the weights")
    return Plan(
        image=dict(image, pre_norm=False, patch_bias=True, class_tokens=1, pooling="class", **chosen),
        text=None,
        embed_dim=image["width"],
        objectives={},
        rules=rules(prefix, registers),
        evidence=[*evidence_of(options, image, "image"), pooling, several, OF_SHAPES, *evidence],
        ignored=IGNORED,
        view=view,
        antialias=found.configs[CONFIG].get("model_type") == MODEL_TYPES[1],
    )


FAMILY = Family(recognize, are_names, FILES, plan)
