"""SigLIP and SigLIP 2 of fixed resolution as the library transformers keeps them: `SiglipModel`."""

from collections.abc import Mapping
from typing import Any

from filip_jax.models.tower import HALF
from filip_jax.weights.dual_names import IGNORED, SHARED, towers
from filip_jax.weights.dual_names import PATCHES as EMBEDDING
from filip_jax.weights.hugging_face import BASE, CONFIG, FILES, config_of
from filip_jax.weights.mapping import FIRST_AXIS_GONE, PATCHES, TRANSPOSED, TWO_AXES_GONE, Rule, linear, norm
from filip_jax.weights.options import agree
from filip_jax.weights.plan import Evidence, Family, ModelSource, Plan
from filip_jax.weights.preprocessing import of_transformers
from filip_jax.weights.sizes import OF_SHAPES, scalar, scale_options
from filip_jax.weights.words import of_siglip

# What transformers takes where config.json is silent: the numbers of B/16.
SIDE = BASE | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
VISION = SIDE | {"image_size": 224, "patch_size": 16}
TEXT = SIDE | {"vocab_size": 32000, "max_position_embeddings": 64}
PREPROCESSING = dict(mean=HALF, std=HALF, resize="squash", interpolation="bicubic")
HEAD, PROBE = "image/map_head", "vision_model.head"
RULES = (
    *linear("image/patch_embedding", EMBEDDING, kernel=PATCHES),
    Rule(f"{HEAD}/probe", (f"{PROBE}.probe",), TWO_AXES_GONE),
    Rule(f"{HEAD}/attention/qkv/kernel", (f"{PROBE}.attention.in_proj_weight",), TRANSPOSED),
    Rule(f"{HEAD}/attention/qkv/bias", (f"{PROBE}.attention.in_proj_bias",)),
    *linear(f"{HEAD}/attention/out", f"{PROBE}.attention.out_proj"),
    *norm(f"{HEAD}/norm", f"{PROBE}.layernorm"),
    *linear(f"{HEAD}/mlp_in", f"{PROBE}.mlp.fc1"),
    *linear(f"{HEAD}/mlp_out", f"{PROBE}.mlp.fc2"),
    *SHARED,
    *linear("text_pooled_projection", "text_model.head"),
    Rule("objectives/siglip/logit_scale", ("logit_scale",), FIRST_AXIS_GONE),
    Rule("objectives/siglip/bias", ("logit_bias",), FIRST_AXIS_GONE),
)


def are_names(tensors: Mapping[str, Any]) -> bool:
    """Return whether these are its names."""
    return {"vision_model.head.probe", "text_model.head.weight"} <= tensors.keys()


def plan(source: ModelSource) -> Plan:
    """Return what to do with such a folder."""
    image, text, shown = towers(source, VISION, TEXT, class_tokens=0)
    config_of(source, "vision_config", {}).only(vision_use_head=(True, None))
    embed_dim = source.shape("text_model.head.weight", 2)[0]
    options = config_of(source, "text_config", {"projection_size": text["width"]})
    agree(options.place, {"projection_size": options.whole("projection_size")}, {"projection_size": embed_dim})
    chosen, evidence, view = of_transformers(source, PREPROCESSING)
    scale, shown_scale = scale_options(source, "logit_scale")
    bias = scalar(source, "logit_bias")
    return Plan(
        image=dict(image, pre_norm=False, patch_bias=True, class_tokens=0, pooling="map", projection="none", **chosen),
        text=dict(text, causal=False, pad_mask=False, pooling="last", projection="biased"),
        embed_dim=embed_dim,
        objectives=dict(siglip=dict(kind="siglip", weight=1.0, bias_init=bias, **scale)),
        rules=RULES,
        evidence=[
            *shown,
            Evidence("image pooling", "MAP head over all patches, no projection", "the family's own"),
            Evidence("text pooling", "the last place, pads seen, projection with bias", "the family's own"),
            OF_SHAPES,
            *evidence,
            shown_scale,
            Evidence("bias", f"{bias:.4g}", "logit_bias of the weights"),
        ],
        words=of_siglip,
        ignored=IGNORED,
        view=view,
    )


FAMILY = Family(CONFIG, ("siglip",), are_names, FILES, plan)
