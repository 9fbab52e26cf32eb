"""CLIP as the library transformers keeps it: `CLIPModel`, of OpenAI's, LAION's, MetaCLIP's and DFN's weights."""

from collections.abc import Mapping
from typing import Any

from filip_jax.models.tower import CLIP_MEAN, CLIP_STD
from filip_jax.weights.dual_names import IGNORED, SHARED, towers
from filip_jax.weights.dual_names import PATCHES as EMBEDDING
from filip_jax.weights.hugging_face import BASE, CONFIG, FILES, config_of
from filip_jax.weights.mapping import AS_ROW, PATCHES, Rule, linear, norm
from filip_jax.weights.plan import Evidence, Family, ModelSource, Plan
from filip_jax.weights.preprocessing import of_transformers
from filip_jax.weights.sizes import OF_SHAPES, clip_objective
from filip_jax.weights.words import of_clip

# What transformers takes where config.json is silent: the numbers of ViT-B/32.
VISION = BASE | {"image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
TEXT = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8, "vocab_size": 49408,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 49407,
}  # fmt: skip
ARGMAX = 2  # an eos_token_id by which transformers pools at the largest id instead, as in the first files of CLIP
PREPROCESSING = dict(mean=CLIP_MEAN, std=CLIP_STD, resize="shortest", interpolation="bicubic")
RULES = (
    Rule("image/patch_embedding/kernel", (f"{EMBEDDING}.weight",), PATCHES),
    Rule("image/class_tokens", ("vision_model.embeddings.class_embedding",), AS_ROW),
    *norm("image/pre_norm", "vision_model.pre_layrnorm"),  # the typo is the name
    *SHARED,
    *linear("image_pooled_projection", "visual_projection", bias=False),
    *linear("text_pooled_projection", "text_projection", bias=False),
    Rule("objectives/clip/logit_scale", ("logit_scale",)),
)


def are_names(tensors: Mapping[str, Any]) -> bool:
    """Return whether these are its names."""
    return {"vision_model.pre_layrnorm.weight", "text_model.final_layer_norm.weight"} <= tensors.keys()


def plan(source: ModelSource) -> Plan:
    """Return what to do with such a folder."""
    image, text, shown = towers(source, VISION, TEXT, class_tokens=1)
    chosen, evidence, view = of_transformers(source, PREPROCESSING)
    eos_id = config_of(source, "text_config", TEXT).value("eos_token_id", int)
    objectives, scale = clip_objective(source, "logit_scale")
    return Plan(
        image=dict(image, pre_norm=True, patch_bias=False, class_tokens=1, pooling="class", **chosen),
        text=dict(text, causal=True, pooling="eos", pad_id=0),
        embed_dim=source.shape("visual_projection.weight", 2)[0],
        objectives=objectives,
        rules=RULES,
        evidence=[
            *shown,
            Evidence("image pooling", "class token, projection without bias", "the family's own"),
            Evidence("text pooling", "EOS, causal attention, projection without bias", "the family's own"),
            OF_SHAPES,
            *evidence,
            scale,
        ],
        words=of_clip,
        eos_id=None if eos_id == ARGMAX else eos_id,
        ignored=IGNORED,
        view=view,
    )


FAMILY = Family(CONFIG, ("clip",), are_names, FILES, plan)
