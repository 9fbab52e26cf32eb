"""The names that `CLIPModel` and `SiglipModel` of transformers share."""

from collections.abc import Mapping
from typing import Any

from filip_jax.weights.hugging_face import block_rules, config_of, evidence_of, tower_options
from filip_jax.weights.mapping import LAYER, Rule, norm
from filip_jax.weights.plan import Evidence, ModelSource
from filip_jax.weights.sizes import image_sizes, text_sizes

VISION, TEXT = "vision_model", "text_model"
LAYERS = "encoder.layers"
PATCHES, IMAGE_POSITIONS = f"{VISION}.embeddings.patch_embedding", f"{VISION}.embeddings.position_embedding.weight"
TOKENS, TEXT_POSITIONS = f"{TEXT}.embeddings.token_embedding.weight", f"{TEXT}.embeddings.position_embedding.weight"
IGNORED = ((r"(text|vision)_model\.embeddings\.position_ids", "positions from 0, no weights"),)


def tower_rules(tower: str, theirs: str) -> list[Rule]:
    """Return the rules of the blocks of a tower."""
    attention = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
    norms, mlp = ("layer_norm1", "layer_norm2"), ("mlp.fc1", "mlp.fc2")
    return block_rules(tower, f"{theirs}.{LAYERS}", attention[:3], attention[3], norms, mlp)


SHARED = (
    Rule("image/position", (IMAGE_POSITIONS,)),
    *tower_rules("image", VISION),
    *norm("image/post_norm", f"{VISION}.post_layernorm"),
    Rule("text/token_embedding", (TOKENS,)),
    Rule("text/position", (TEXT_POSITIONS,)),
    *tower_rules("text", TEXT),
    *norm("text/post_norm", f"{TEXT}.final_layer_norm"),
)


def towers(
    source: ModelSource, vision: Mapping[str, Any], text: Mapping[str, Any], class_tokens: int
) -> tuple[dict[str, Any], dict[str, Any], list[Evidence]]:
    """Return the options of both towers that config.json and shapes tell, and their evidence.

    Args:
        vision, text: what transformers takes where config.json is silent.
        class_tokens: of the image tower.
    """
    layer = f"{LAYERS}.0.mlp.fc1.weight"
    image = image_sizes(source, f"{PATCHES}.weight", IMAGE_POSITIONS, f"{VISION}.{layer}", class_tokens)
    texts = text_sizes(source, TOKENS, TEXT_POSITIONS, f"{TEXT}.{layer}")
    evidence = list[Evidence]()
    for side, sizes, theirs, defaults in (("image", image, VISION, vision), ("text", texts, TEXT, text)):
        options = config_of(source, f"{theirs.removesuffix('_model')}_config", defaults)
        sizes |= tower_options(source, options, f"{theirs}.{LAYERS}.{LAYER}.layer_norm1.weight", sizes)
        evidence += evidence_of(options, sizes, side)
    return image, texts, evidence
