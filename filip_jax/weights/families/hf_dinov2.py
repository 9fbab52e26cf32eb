"""DINOv2 as the library transformers keeps it, with and without registers, by the names that it writes to disk; images alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from filip_jax.weights.families.hf_vit import LAYERS, SIZES, image_plan, prefix_of
from filip_jax.weights.hugging_face import CONFIG, FILES, config_of
from filip_jax.weights.mapping import FIRST_AXIS_GONE, LAYER, Rule
from filip_jax.weights.plan import Evidence, Family, ModelSource, Plan

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
# What transformers takes where config.json is silent. The MLP's width is a ratio there.
DEFAULTS = SIZES | {"layer_norm_eps": 1e-6, "layerscale_value": 1.0, "use_swiglu_ffn": False}
del DEFAULTS["intermediate_size"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING = dict(mean=IMAGENET_MEAN, std=IMAGENET_STD, resize="shortest", interpolation="bicubic")
PREFIXES = ("dinov2_with_registers.", "dinov2.")  # of the model inside a classifier
LAYER_NAMES = ("norm1", "norm2"), ("mlp.fc1", "mlp.fc2")
SCALES = {"attention_scale": "layer_scale1", "mlp_scale": "layer_scale2"}


def are_names(tensors: Mapping[str, Any]) -> bool:
    """Return whether these are its names."""
    return any(f"{prefix}{LAYERS}.0.layer_scale1.lambda1" in tensors for prefix in ("", *PREFIXES))


def plan(source: ModelSource) -> Plan:
    """Return what to do with such a folder."""
    prefix = prefix_of(source, PREFIXES)
    options = config_of(source, "", DEFAULTS)
    options.only(use_swiglu_ffn=(False,))
    name, layer = f"{prefix}embeddings.register_tokens", f"{prefix}{LAYERS}.{LAYER}"
    registers = source.shape(name, 3)[1] if name in source.tensors else 0
    rules = [Rule(f"image/transformer/blocks/{ours}", (f"{layer}.{its}.lambda1",)) for ours, its in SCALES.items()]
    rules += [Rule("image/registers", (name,), FIRST_AXIS_GONE)] if registers else []
    vit = image_plan(source, prefix, LAYER_NAMES, DEFAULTS, PREPROCESSING)
    layer_scale = float(options.value("layerscale_value", float))
    return dataclasses.replace(
        vit,
        image=vit.image | dict(layer_scale=layer_scale, registers=registers),
        rules=[*vit.rules, *rules],
        evidence=[*vit.evidence, Evidence("registers", f"{registers}", "the weights")],
        antialias=source.configs[CONFIG].get("model_type") == MODEL_TYPES[1],
    )


FAMILY = Family(CONFIG, MODEL_TYPES, are_names, FILES, plan)
