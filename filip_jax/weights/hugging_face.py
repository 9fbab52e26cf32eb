"""Parts that all families of the library transformers share: config.json, and the names of a layer."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from filip_jax.errors import UserError
from filip_jax.weights.mapping import LAYER, Rule, linear, norm
from filip_jax.weights.options import Options, agree
from filip_jax.weights.plan import Evidence, ModelSource

CONFIG = "config.json"
LIBRARY = "transformers"
# What transformers takes where config.json is silent: the numbers of a ViT-B.
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
REFUSED = {  # keys of config.json by which transformers computes something else than the named model
    "quantization_config": "its weights are quantized: dequantize the model, and save it anew",
    "auto_map": "code of its own computes this model. If transformers' own class does the same, delete the key from a copy",
}
FILES = ("model.safetensors", "pytorch_model.bin")


def config_of(source: ModelSource, section: str, defaults: Mapping[str, Any]) -> Options:
    """Return config.json, or a section of it; where there is an older key, text_config_dict, transformers takes that one whole.

    Raises:
        UserError: there is no config.json, and no shape tells the heads and the activation.
    """
    if CONFIG not in source.configs:
        raise UserError(
            f"{source.place} comes without {CONFIG}, and no weight tells the heads and the activation: name the folder "
            "with both, as the model's repository has them"
        )
    content = source.configs[CONFIG]
    if source.model:
        raise UserError(
            f"--model={source.model} is for weights of open_clip: {source.place} has its own {CONFIG}, leave it out"
        )
    for key, advice in REFUSED.items():
        if content.get(key):
            raise UserError(f"{source.place}: {CONFIG} has {key}: {advice}")
    if not section:
        return Options(CONFIG, content, defaults, LIBRARY)
    own, older = content.get(section), content.get(f"{section}_dict")
    name, options = (section, own) if older is None else (f"{section}_dict", older)
    return Options(f"{CONFIG}, {name}", options, defaults, LIBRARY)


def tower_options(source: ModelSource, options: Options, first_norm: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return depth, heads, activation and epsilon of a tower, and check what its shapes tell, too.

    Args:
        first_norm: name of the weight of a layer's first norm, with {layer}.
        sizes: that the shapes tell.

    Raises:
        UserError: config and weights are of two models, or the config asks for what no tower computes.
    """
    names = {
        "width": "hidden_size", "mlp_width": "intermediate_size", "vocab_size": "vocab_size", "patch_size": "patch_size",
        "length": "max_position_embeddings", "image_size": "image_size",
    }  # fmt: skip
    stated = {ours: options.whole(theirs) for ours, theirs in names.items() if theirs in options.defaults}
    agree(options.place, stated, sizes)
    depth = options.whole("num_hidden_layers")
    numbered = re.compile(re.escape(first_norm).replace(re.escape(LAYER), r"(\d{1,6})"))
    layers = {match[1] for name in source.tensors if (match := numbered.fullmatch(name))}
    agree(options.place, {"depth": depth}, {"depth": len(layers)})
    return dict(
        depth=depth,
        heads=options.whole("num_attention_heads"),
        activation=options.activation("hidden_act"),
        norm_epsilon=float(options.value("layer_norm_eps", float)),
    )


def evidence_of(options: Options, tower: Mapping[str, Any], side: str) -> list[Evidence]:
    """Return the evidence of a tower's activation, epsilon and heads."""
    keys = (("activation", "hidden_act"), ("norm_epsilon", "layer_norm_eps"), ("heads", "num_attention_heads"))
    return [Evidence(f"{side} {name}", f"{tower[name]}", options.origin(key)) for name, key in keys]


def block_rules(
    tower: str, layers: str, attention: Sequence[str], out: str, norms: Sequence[str], mlp: Sequence[str]
) -> list[Rule]:
    """Return the rules of the blocks of a tower.

    Args:
        tower: "image" or "text".
        layers: what stands before the number of a layer there.
        attention: names of query, key and value.
        out, norms, mlp: names of the output of attention, of the norms before attention and MLP, of the MLP's layers.
    """
    blocks, layer = f"{tower}/transformer/blocks", f"{layers}.{LAYER}"
    return [
        *norm(f"{blocks}/attention_norm", f"{layer}.{norms[0]}"),
        *linear(f"{blocks}/attention/qkv", [f"{layer}.{name}" for name in attention]),
        *linear(f"{blocks}/attention/out", f"{layer}.{out}"),
        *norm(f"{blocks}/mlp_norm", f"{layer}.{norms[1]}"),
        *linear(f"{blocks}/mlp_in", f"{layer}.{mlp[0]}"),
        *linear(f"{blocks}/mlp_out", f"{layer}.{mlp[1]}"),
    ]
