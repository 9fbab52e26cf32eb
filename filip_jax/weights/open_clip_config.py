"""What no shape tells of open_clip's models: from open_clip_config.json, or from the name of the model."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from filip_jax.errors import UserError
from filip_jax.weights.options import Options, agree
from filip_jax.weights.plan import Evidence

CONFIG = "open_clip_config.json"
LIBRARY = "open_clip"
NAME = re.compile(
    r"ViT-(?P<size>[SMBLHge]|bigG)-(?P<patch>\d{1,2})(?P<alt>-alt|-plus)?(-(?P<pixels>\d{3}))?(?P<quick>-quickgelu)?"
)
HEAD_WIDTHS = {"H": 80, "g": 88, "bigG": 104, "e": 112}  # of the image towers; of all others and of texts 64
WIDTHS = {
    1280: "H",
    1408: "g",
    1664: "bigG",
    1792: "e",
}  # of these towers, which 64 divides, too: no other name fits them
HEAD_WIDTH = 64
LAYER_SCALES = {"ViT-M-16-alt": 1e-4}  # of image towers; all others have none
VISION = {
    "layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224,
    "no_ln_pre": False, "pool_type": "tok", "pos_embed_type": "learnable",
}  # fmt: skip
TEXT = {
    "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0, "pad_id": 0,
    "no_causal_mask": False, "pool_type": "argmax", "eos_id": 2, "proj_bias": False, "proj_type": "linear",
}  # fmt: skip
TOP = {
    "embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias", "cast_dtype",
    "nonscalar_logit_scale",
}  # fmt: skip
# Keys that change nothing of what is computed from whole images and texts.
FREE = {
    "patch_dropout", "output_tokens", "timm_drop", "timm_drop_path", "hf_tokenizer_name",
    "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias",
    "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
}  # fmt: skip
# What no tower here computes, or no tokenizer here does, where it is set.
UNSET = (
    "attentional_pool", "final_ln_after_pool", "timm_model_name", "hf_model_name", "embed_cls", "block_type", "qk_norm",
    "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc", "tokenizer_mode", "tokenizer_kwargs",
)  # fmt: skip
EITHER = {"layers", "width", "mlp_ratio", "ls_init_value", "pool_type", "act_kwargs", "norm_kwargs"}
POOLINGS = {"tok": "class", "avg": "mean"}
Described = tuple[dict[str, Any], dict[str, str]]  # options of a tower, and the origins of some of them
TEXT_POOLINGS = {"argmax": "eos", "eos": "eos", "last": "last", "first": "first"}


class Architecture(NamedTuple):
    """The options of both towers that no shape tells, and the evidence for them.

    Attributes:
        eos_id: of `Plan`.
        tokenizer: whether a tokenizer of transformers cuts and fills the texts.
    """

    image: dict[str, Any]
    text: dict[str, Any]
    evidence: list[Evidence]
    eos_id: int | None = None
    tokenizer: bool = False


def of_name(name: str, origin: str, image: Mapping[str, Any], text: Mapping[str, Any]) -> Architecture:
    """Return what a model's name in open_clip tells; "" is OpenAI's ViT of these sizes.

    Raises:
        UserError: it is no ViT of open_clip, or not of these sizes.
    """
    match = NAME.fullmatch(name)
    if name and not match:
        raise UserError(
            f"{origin} is none of the ViTs that are known by name, such as ViT-B-32 or ViT-L-14-336-quickgelu: give --model=FILE.json of open_clip's model_configs"
        )
    named = match.groupdict() if match else {"size": "", "quick": "-quickgelu"}
    stated = {
        key: int(number)
        for key, name in (("patch_size", "patch"), ("image_size", "pixels"))
        if (number := named.get(name))
    }
    agree(origin, stated, image)
    size = str(named["size"])
    if WIDTHS.get(image["width"], size) != size:
        raise UserError(
            f"{origin}, but the weights have the width of a ViT-{WIDTHS[image['width']]}: they are of two models"
        )
    head, activation = HEAD_WIDTHS.get(size, HEAD_WIDTH), "quick_gelu" if named["quick"] else "gelu"
    shared = dict(activation=activation, norm_epsilon=1e-5)
    fitting = dict(class_tokens=1, patch_bias=False, pre_norm=True, layer_scale=LAYER_SCALES.get(name), pooling="class")
    whole = dict(causal=True, pooling="eos", pad_id=0, projection="linear")
    towers = (
        dict(shared, **fitting, heads=_heads(image["width"], head, origin)),
        dict(shared, **whole, heads=_heads(text["width"], HEAD_WIDTH, origin)),
    )
    origins = dict.fromkeys(("activation", "heads"), origin)
    return Architecture(*towers, _evidence(*towers, origins, origins))


def of_config(place: str, content: Any, image: Mapping[str, Any], text: Mapping[str, Any]) -> Architecture:
    """Return what a model's JSON tells, as in open_clip's model_configs.

    Raises:
        UserError: it asks for what no tower computes, or is not of these sizes.
    """
    top = Options(place, content, {"quick_gelu": False}, LIBRARY)
    top.known(TOP)
    (vision, image_origins), (words, text_origins) = _vision(top, image), _text(top, text)
    text_options = _section(top, "text_cfg", TEXT)
    eos_id = text_options.value("eos_id", int) if text_options.value("pool_type", str) == "eos" else None
    evidence = _evidence(vision, words, image_origins, text_origins)
    return Architecture(vision, words, evidence, eos_id, bool(text_options.content.get("hf_tokenizer_name")))


def _vision(top: Options, sizes: Mapping[str, Any]) -> Described:
    options = _section(top, "vision_cfg", VISION)
    options.only(pool_type=tuple(POOLINGS), pos_embed_type=("learnable", "sin_cos_2d"))
    if isinstance(layers := options.content.get("layers"), list):
        raise UserError(
            f"{options.place}: layers={layers!r:.100} are those of a ResNet, which filip_jax has not: take a ViT"
        )
    names = {"width": "width", "layers": "depth", "patch_size": "patch_size", "image_size": "image_size"}
    agree(options.place, {ours: options.whole(theirs) for theirs, ours in names.items()}, sizes)
    shared, origins = _shared(top, options)
    tower = dict(
        shared,
        class_tokens=1,
        patch_bias=False,
        pre_norm=not options.value("no_ln_pre", bool),
        layer_scale=options.value("ls_init_value", float, type(None)),
        pooling=POOLINGS[options.value("pool_type", str)],
        heads=_heads(sizes["width"], options.whole("head_width"), options.place),
    )
    return tower, origins | {"heads": options.origin("head_width")}


def _text(top: Options, sizes: Mapping[str, Any]) -> Described:
    options = _section(top, "text_cfg", TEXT)
    options.only(pool_type=tuple(TEXT_POOLINGS), proj_type=("linear", "none"), ls_init_value=(None,))
    names = {"width": "width", "layers": "depth", "vocab_size": "vocab_size", "context_length": "length"}
    agree(options.place, {ours: options.whole(theirs) for theirs, ours in names.items()}, sizes)
    biased = "biased" if options.value("proj_bias", bool) else "linear"
    shared, origins = _shared(top, options)
    tower = dict(
        shared,
        causal=not options.value("no_causal_mask", bool),
        pad_mask=False,
        heads=options.whole("heads"),
        pooling=TEXT_POOLINGS[options.value("pool_type", str)],
        pad_id=options.value("pad_id", int),
        projection="none" if options.value("proj_type", str) == "none" else biased,
    )
    return tower, origins | {"heads": options.origin("heads"), "attention": options.origin("no_causal_mask")}


def _section(top: Options, name: str, defaults: Mapping[str, Any]) -> Options:
    options = Options(f"{top.place}, {name}", top.content.get(name), defaults, LIBRARY)
    options.only(**dict.fromkeys(UNSET, (None, False, "default", "", {})))
    options.known(defaults.keys() | FREE | set(UNSET) | EITHER)
    return options


def _shared(top: Options, options: Options) -> Described:
    """Return activation and epsilon of a tower, and the origins of both and of its pooling."""
    act, normal = (options.content.get(key) or {} for key in ("act_kwargs", "norm_kwargs"))
    if (
        not isinstance(act, dict)
        or not isinstance(normal, dict)
        or act.keys() - {"approximate"}
        or normal.keys() - {"eps"}
    ):
        raise UserError(f"{options.place}: act_kwargs={act!r:.100} or norm_kwargs={normal!r:.100} are unknown here")
    gelu = "gelu_tanh" if act.get("approximate") == "tanh" else "gelu"
    norms = Options(f"{options.place}, norm_kwargs", normal, {"eps": 1e-5}, LIBRARY)
    quick, chooser = top.value("quick_gelu", bool), options if act else top
    shared = dict(activation="quick_gelu" if quick else gelu, norm_epsilon=float(norms.value("eps", float)))
    return shared, {
        "activation": chooser.origin("act_kwargs" if act else "quick_gelu"),
        "norm_epsilon": norms.origin("eps"),
        "pooling": options.origin("pool_type"),
    }


def _heads(width: int, head_width: int, origin: str) -> int:
    if width % head_width:
        raise UserError(f"{origin}: heads of {head_width} do not make the width {width}")
    return width // head_width


def _evidence(
    image: Mapping[str, Any], text: Mapping[str, Any], image_origins: Mapping[str, str], text_origins: Mapping[str, str]
) -> list[Evidence]:
    default = "open_clip's default"
    evidence = [
        Evidence(f"{side} {key}", f"{tower[key]}", origins.get(key, default))
        for side, tower, origins in (("image", image, image_origins), ("text", text, text_origins))
        for key in ("activation", "norm_epsilon", "heads", "pooling")
    ]
    attention = "causal" if text["causal"] else "of all tokens, pads too"
    return [*evidence, Evidence("text attention", attention, text_origins.get("attention", default))]
