"""OpenAI's CLIP and open_clip: one set of names, by which MetaCLIP, DFN, LAION, DataComp and runs of open_clip are kept, too."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from filip_jax.errors import UserError
from filip_jax.small_files import read_json
from filip_jax.weights.mapping import (
    AS_ROW,
    FIRST_AXIS_GONE,
    LAYER,
    PATCHES,
    SAME,
    TRANSPOSED,
    Rule,
    count_layers,
    linear,
    norm,
)
from filip_jax.weights.open_clip_config import CONFIG, Architecture, of_config, of_name
from filip_jax.weights.plan import Evidence, Family, ModelSource, Plan
from filip_jax.weights.preprocessing import of_open_clip
from filip_jax.weights.sizes import OF_SHAPES, image_sizes, scalar, scale_options, text_sizes
from filip_jax.weights.words import of_clip

FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin",
)  # fmt: skip
BLOCKS = "transformer.resblocks"
OPENAI = ("input_resolution", "context_length", "vocab_size")  # numbers that only OpenAI's own files hold
IGNORED = (
    (r"input_resolution|context_length|vocab_size", "sizes, no weights"),
    (r"(text\.)?attn_mask", "the causal mask, no weights"),
)
OTHERS = {  # names of what no tower here computes
    "visual.trunk.": "an image tower of timm (SigLIP, EVA, ConvNeXt …): import the model's folder of transformers, if it has one",
    "visual.attnpool.": "a ResNet, which filip_jax has not: take a ViT",
    "visual.attn_pool": "an attentional pooler (CoCa), which filip_jax has not",
    "text.transformer.embeddings.": "a text tower of transformers, which filip_jax has not",
    "text_decoder.": "a captioning model (CoCa), which filip_jax has not",
}


def block_rules(tower: str, prefix: str, layer_scale: bool) -> list[Rule]:
    """Return the rules of the blocks of a tower."""
    blocks, layer = f"{tower}/transformer/blocks", f"{prefix}{BLOCKS}.{LAYER}"
    qkv, scales = f"{blocks}/attention/qkv", (("attention_scale", "ls_1"), ("mlp_scale", "ls_2")) if layer_scale else ()
    return [
        *norm(f"{blocks}/attention_norm", f"{layer}.ln_1"),
        Rule(f"{qkv}/kernel", (f"{layer}.attn.in_proj_weight",), TRANSPOSED),
        Rule(f"{qkv}/bias", (f"{layer}.attn.in_proj_bias",)),
        *linear(f"{blocks}/attention/out", f"{layer}.attn.out_proj"),
        *norm(f"{blocks}/mlp_norm", f"{layer}.ln_2"),
        *linear(f"{blocks}/mlp_in", f"{layer}.mlp.c_fc"),
        *linear(f"{blocks}/mlp_out", f"{layer}.mlp.c_proj"),
        *(Rule(f"{blocks}/{ours}", (f"{layer}.{theirs}.gamma",)) for ours, theirs in scales),
    ]


def rules(image: Mapping[str, Any], text: Mapping[str, Any], prefix: str, scalars: Sequence[Rule]) -> list[Rule]:
    """Return the table of names.

    Args:
        image, text: our sections of the towers; what they do not name has its default.
        prefix: of the text tower's names, "" or "text.".
        scalars: the rules of the objective's numbers.
    """
    projections = {
        "linear": [Rule("text_pooled_projection/kernel", (f"{prefix}text_projection",))],
        "biased": linear("text_pooled_projection", f"{prefix}text_projection"),
        "none": [],
    }
    return [
        Rule("image/patch_embedding/kernel", ("visual.conv1.weight",), PATCHES),
        Rule("image/class_tokens", ("visual.class_embedding",), AS_ROW),
        Rule("image/position", ("visual.positional_embedding",)),
        *(norm("image/pre_norm", "visual.ln_pre") if image.get("pre_norm", True) else []),
        *block_rules("image", "visual.", image.get("layer_scale") is not None),
        *norm("image/post_norm", "visual.ln_post"),
        Rule("image_pooled_projection/kernel", ("visual.proj",)),
        Rule("text/token_embedding", (f"{prefix}token_embedding.weight",)),
        Rule("text/position", (f"{prefix}positional_embedding",)),
        *block_rules("text", prefix, layer_scale=False),
        *norm("text/post_norm", f"{prefix}ln_final"),
        *projections[text.get("projection", "linear")],
        *scalars,
    ]


def are_names(tensors: Mapping[str, Any]) -> bool:
    """Return whether these are names of OpenAI's or open_clip's, of models that are refused, too."""
    return "visual.conv1.weight" in tensors or any(name.startswith(tuple(OTHERS)) for name in tensors)


def plan(source: ModelSource) -> Plan:
    """Return what to do with such a folder or file."""
    for prefix, what in OTHERS.items():
        if any(name.startswith(prefix) for name in source.tensors):
            raise UserError(f"{source.place} has names such as {prefix}…: {what}")
    text = "text." if "text.token_embedding.weight" in source.tensors else ""
    image = image_sizes(
        source,
        "visual.conv1.weight",
        "visual.positional_embedding",
        f"visual.{BLOCKS}.0.mlp.c_fc.weight",
        class_tokens=1,
    )
    texts = text_sizes(
        source, f"{text}token_embedding.weight", f"{text}positional_embedding", f"{text}{BLOCKS}.0.mlp.c_fc.weight"
    )
    image["depth"] = count_layers(source.tensors, f"visual.{BLOCKS}.{LAYER}.ln_1.weight")
    texts["depth"] = count_layers(source.tensors, f"{text}{BLOCKS}.{LAYER}.ln_1.weight")
    architecture = _architecture(source, image, texts)
    chosen, evidence, _ = of_open_clip(source)
    objectives, scalars, shown = _objectives(source)
    image |= architecture.image | chosen
    texts |= architecture.text
    return Plan(
        image=image,
        text=texts,
        embed_dim=source.shape("visual.proj", 2)[1],
        objectives=objectives,
        rules=rules(image, texts, text, scalars),
        evidence=[*architecture.evidence, OF_SHAPES, *evidence, *shown],
        words=partial(of_clip, sees_pads=architecture.tokenizer and not texts["causal"]),
        eos_id=architecture.eos_id,
        ignored=IGNORED,
        antialias=True,
    )


def _architecture(source: ModelSource, image: Mapping[str, Any], text: Mapping[str, Any]) -> Architecture:
    """Return what no shape tells: of open_clip_config.json, of the file or name that --model gives, or of OpenAI's marks."""
    if source.model and CONFIG in source.configs:
        raise UserError(
            f"--model={source.model}: {source.place} has its own {CONFIG}: leave it out, or name the file of weights"
        )
    if source.model.endswith(".json"):
        content = read_json(Path(source.model))
        return of_config(source.model, content.get("model_cfg", content), image, text)
    if source.model:
        return of_name(source.model, f"--model={source.model}", image, text)
    if CONFIG in source.configs:
        return of_config(f"{CONFIG}, model_cfg", source.configs[CONFIG].get("model_cfg"), image, text)
    if source.tensors.keys() >= set(OPENAI):
        origin = f"OpenAI's own file: it holds {', '.join(OPENAI)}"
        return of_name("", origin, image, text)
    beside = source.place.parent / CONFIG
    folder = f"import its folder, whose {CONFIG} tells it, or " if source.folder is None and beside.is_file() else ""
    raise UserError(
        f"{source.place} does not tell its activation: {folder}give --model=ViT-B-32 (GELU: LAION, DataComp, CommonPool), "
        f"--model=ViT-B-32-quickgelu (OpenAI, MetaCLIP, DFN), with the model's own name, or --model=FILE.json of "
        f"open_clip's model_configs"
    )


def _objectives(source: ModelSource) -> tuple[dict[str, Any], list[Rule], list[Evidence]]:
    """Return the section `objectives`, the rules of its numbers, and the evidence: a bias makes it SigLIP's."""
    options, shown = scale_options(source, "logit_scale")
    if "logit_bias" not in source.tensors:
        section = dict(clip=dict(kind="clip", weight=1.0, **options))
        return section, [_scalar_rule(source, "objectives/clip/logit_scale", "logit_scale")], [shown]
    bias = scalar(source, "logit_bias")
    section = dict(siglip=dict(kind="siglip", weight=1.0, bias_init=bias, **options))
    names = (("logit_scale", "logit_scale"), ("bias", "logit_bias"))
    table = [_scalar_rule(source, f"objectives/siglip/{ours}", theirs) for ours, theirs in names]
    return section, table, [shown, Evidence("bias", f"{bias:.4g}", "logit_bias of the weights")]


def _scalar_rule(source: ModelSource, path: str, name: str) -> Rule:
    return Rule(path, (name,), FIRST_AXIS_GONE if source.tensors[name].shape else SAME)


FAMILY = Family(CONFIG, (), are_names, FILES, plan)
