"""ViT as the library transformers keeps it: `ViTModel`, by the names that it writes to disk; images alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from filip_jax.models.tower import HALF
from filip_jax.weights.hugging_face import BASE, CONFIG, FILES, block_rules, config_of, evidence_of, tower_options
from filip_jax.weights.mapping import FIRST_AXIS_GONE, LAYER, PATCHES, Rule, linear, norm
from filip_jax.weights.plan import Evidence, Family, ModelSource, Plan
from filip_jax.weights.preprocessing import of_transformers
from filip_jax.weights.sizes import OF_SHAPES, image_sizes

# What transformers takes where config.json is silent: the numbers of B/16.
SIZES = BASE | {"image_size": 224, "patch_size": 16, "hidden_act": "gelu", "qkv_bias": True}
DEFAULTS = SIZES | {"layer_norm_eps": 1e-12}
PREPROCESSING = dict(mean=HALF, std=HALF, resize="squash", interpolation="bilinear")
PREFIXES = ("vit.",)  # of the model inside a classifier
LAYERS = "encoder.layer"
QKV = [f"attention.attention.{name}" for name in ("query", "key", "value")]
LAYER_NAMES = ("layernorm_before", "layernorm_after"), ("intermediate.dense", "output.dense")
LayerNames = tuple[tuple[str, str], tuple[str, str]]  # of the norms and of the MLP of a layer
IGNORED = (
    (r"(\w+\.)?pooler\..*", "a layer behind the class token, which no tower has"),
    (r"(\w+\.)?embeddings\.mask_token", "stands for hidden patches in the model's own training"),
    (r"classifier\..*", "a classifier of other labels"),
)


def prefix_of(source: ModelSource, prefixes: Sequence[str]) -> str:
    """Return which of the prefixes the model's names have; "" if none."""
    return next((each for each in prefixes if f"{each}embeddings.cls_token" in source.tensors), "")


def rules(prefix: str, names: LayerNames) -> list[Rule]:
    """Return the table of names behind this prefix; DINOv2 names the norms and the MLP of a layer otherwise."""
    return [
        *linear("image/patch_embedding", f"{prefix}embeddings.patch_embeddings.projection", kernel=PATCHES),
        Rule("image/class_tokens", (f"{prefix}embeddings.cls_token",), FIRST_AXIS_GONE),
        Rule("image/position", (f"{prefix}embeddings.position_embeddings",), FIRST_AXIS_GONE),
        *block_rules("image", f"{prefix}{LAYERS}", QKV, "attention.output.dense", *names),
        *norm("image/post_norm", f"{prefix}layernorm"),
    ]


def are_names(tensors: Mapping[str, Any]) -> bool:
    """Return whether these are its names."""
    return any(f"{prefix}{LAYERS}.0.layernorm_before.weight" in tensors for prefix in ("", *PREFIXES))


def image_plan(
    source: ModelSource, prefix: str, names: LayerNames, defaults: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> Plan:
    """Return what to do with a folder of a ViT or DINOv2.

    Args:
        prefix: of its names.
        names: of the norms and of the MLP of a layer.
        defaults: what transformers takes where config.json is silent.
        preprocessing: the family's own.
    """
    options = config_of(source, "", defaults)
    options.only(qkv_bias=(True,))
    norms, mlp = names
    embeddings, layer = f"{prefix}embeddings", f"{prefix}{LAYERS}"
    patches, positions = f"{embeddings}.patch_embeddings.projection.weight", f"{embeddings}.position_embeddings"
    image = image_sizes(source, patches, positions, f"{layer}.0.{mlp[0]}.weight", class_tokens=1)
    image |= tower_options(source, options, f"{layer}.{LAYER}.{norms[0]}.weight", image)
    chosen, evidence, view = of_transformers(source, preprocessing)
    pooling = Evidence("image pooling", "class token behind the last norm", "the family's own")
    return Plan(
        image=dict(image, pre_norm=False, patch_bias=True, class_tokens=1, pooling="class", **chosen),
        text=None,
        embed_dim=image["width"],
        objectives={},
        rules=rules(prefix, names),
        evidence=[*evidence_of(options, image, "image"), pooling, OF_SHAPES, *evidence],
        ignored=IGNORED,
        view=view,
    )


def plan(source: ModelSource) -> Plan:
    """Return what to do with such a folder."""
    return image_plan(source, prefix_of(source, PREFIXES), LAYER_NAMES, DEFAULTS, PREPROCESSING)


FAMILY = Family(CONFIG, ("vit",), are_names, FILES, plan)
