"""The options of towers that public weights need, each by its definition in float64; what is pooled, hidden, frozen and refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from flax import nnx
from jax import export
from test_models import IDS, IMAGES, config, drawn, make
from test_towers import EXECUTION

from filip_jax import paths
from filip_jax.errors import UserError
from filip_jax.models.tower import ImageInput
from filip_jax.models.towers import TOWERS

BODY = dict(width=18, depth=2, heads=3, activation="gelu")
VIT = BODY | dict(image_size=12, patch_size=4)
TEXT = BODY | dict(vocab_size=30, length=6)
HALF = (0.5, 0.5, 0.5)
SIGLIP = dict(
    class_tokens=0, pooling="map", pre_norm=False, patch_bias=True, activation="gelu_tanh", norm_epsilon=1e-6,
    mlp_width=25, mean=HALF, std=[0.5, 0.4, 0.6],
)  # fmt: skip
DINOV2 = dict(registers=3, layer_scale=1e-5, pre_norm=False, patch_bias=True, norm_epsilon=1e-6)
IMAGE_CASES = {
    "siglip": SIGLIP,
    "dinov2": DINOV2,
    "value": dict(tokens="value", activation="quick_gelu", layer_scale=0.1, registers=1),
    "mean": dict(class_tokens=2, registers=1, pooling="mean", norm_epsilon=1e-3),
}
TEXT_CASES = {
    "clip": dict(activation="quick_gelu", mlp_width=7),
    "siglip": dict(causal=False, pad_mask=False, pooling="last", activation="gelu_tanh", norm_epsilon=1e-6),
    "bert": dict(causal=False, pooling="first", norm_epsilon=1e-12),
    "causal last": dict(pooling="last", pad_id=3),
    "bidirectional eos": dict(causal=False),
}
ACTIVATIONS = {
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
}


def tower_of(modality, **options):
    """(A tower's features of its input, its parameters in float64)."""
    kind = {"image": "vit", "text": "transformer"}[modality]
    graphdef, state = nnx.split(TOWERS[modality][kind](**options, execution=EXECUTION, rngs=nnx.Rngs(0)))
    parameters, exact = drawn(nnx.to_pure_dict(state))

    def features(inputs):
        found = nnx.merge(graphdef, parameters)(inputs)
        return found.tokens, found.pooled, found.mask

    return jax.jit(features), exact


def norm(x, parameters, epsilon):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * parameters["scale"] + parameters["bias"]


def linear(x, parameters):
    return x @ parameters["kernel"] + parameters.get("bias", 0)


def qkv(x, parameters, heads):
    """Queries, keys and values [b, heads, n, width of a head]."""
    parts = np.split(linear(x, parameters["qkv"]), 3, axis=-1)
    return [part.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for part in parts]


def joined(x, parameters):
    return linear(x.transpose(0, 2, 1, 3).reshape(len(x), x.shape[2], -1), parameters["out"])


def looked(query, key, value, visible=True):
    weights = np.where(visible, np.exp(query @ key.swapaxes(2, 3) / query.shape[-1] ** 0.5), 0)
    return weights / weights.sum(axis=-1, keepdims=True) @ value


def mlp(x, block, epsilon, activation, name="mlp_norm"):
    return linear(ACTIVATIONS[activation](linear(norm(x, block[name], epsilon), block["mlp_in"])), block["mlp_out"])


def block_of(x, block, epsilon, activation, heads, look):
    """A block in which look(query, key, value) is what tokens see."""
    attended = joined(
        look(*qkv(norm(x, block["attention_norm"], epsilon), block["attention"], heads)), block["attention"]
    )
    x = x + block.get("attention_scale", 1) * attended
    return x + block.get("mlp_scale", 1) * mlp(x, block, epsilon, activation)


def layers(parameters):
    return [jax.tree.map(lambda leaf: leaf[n], parameters["transformer"]["blocks"]) for n in range(2)]


def image_features(image, options):
    """(Tokens, pooled) by the definitions."""
    options = dict(class_tokens=1, registers=0, pooling="class", tokens="last", norm_epsilon=1e-5) | options
    epsilon, body = options["norm_epsilon"], (options["norm_epsilon"], options["activation"], 3)
    pixels = np.asarray(IMAGES) / 255 - options.get("mean", (0.48145466, 0.4578275, 0.40821073))
    pixels = pixels / options.get("std", (0.26862954, 0.26130258, 0.27577711))
    corners = [(row, column) for row in (0, 4, 8) for column in (0, 4, 8)]
    cut = np.stack([pixels[:, row : row + 4, column : column + 4].reshape(3, -1) for row, column in corners], axis=1)
    count = options["class_tokens"]
    x = linear(cut, image["patch_embedding"]) + image["position"][count:]
    leading = [image["class_tokens"] + image["position"][:count]] if count else []
    leading += [image["registers"]] if options["registers"] else []
    for rows in reversed(leading):
        x = np.concatenate([np.tile(rows, (3, 1, 1)), x], axis=1)
    x = norm(x, image["pre_norm"], epsilon) if options.get("pre_norm", True) else x
    first, last = layers(image)
    x = block_of(x, first, *body, looked)
    after = norm(block_of(x, last, *body, looked), image["post_norm"], epsilon)
    tokens = after[:, count + options["registers"] :]
    pooled = {"class": after[:, 0], "mean": tokens.mean(axis=1)}.get(options["pooling"])
    if options["tokens"] == "value":  # MaskCLIP: values alone, no attention
        own = norm(block_of(x, last, *body, lambda query, key, value: value), image["post_norm"], epsilon)
        tokens = own[:, count + options["registers"] :]
    if options["pooling"] == "map":
        head = image["map_head"]
        query = qkv(head["probe"][None, None], head["attention"], 3)[0]
        _, key, value = qkv(after, head["attention"], 3)
        pooled = joined(looked(query, key, value), head["attention"])[:, 0]
        pooled = pooled + mlp(pooled, head, epsilon, options["activation"], "norm")
    return tokens, pooled


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_image_features_are_those_of_the_definition(case):
    options = VIT | IMAGE_CASES[case]
    tower, exact = tower_of("image", **options)
    found, (tokens, pooled) = tower(IMAGES), image_features(exact, options)
    np.testing.assert_allclose(found[0], tokens, atol=4e-6)
    np.testing.assert_allclose(found[1], pooled, atol=4e-6)
    assert np.std(tokens) > 0.02 and np.std(pooled) > 0.02  # the parameters are drawn small


def text_features(text, options):
    """(Tokens, pooled) by the definitions."""
    options = dict(causal=True, pad_mask=True, pooling="eos", pad_id=0, norm_epsilon=1e-5) | options
    body, ids = (options["norm_epsilon"], options["activation"], 3), np.asarray(IDS)
    is_real = np.array([[(row[place:] != options["pad_id"]).any() for place in range(6)] for row in ids])
    visible = np.tri(6, dtype=bool)[None, None] if options["causal"] else np.ones((1, 1, 1, 6), bool)
    if not options["causal"] and options["pad_mask"]:
        visible = is_real[:, None, None]
    x = text["token_embedding"][ids] + text["position"]
    for block in layers(text):
        x = block_of(x, block, *body, lambda query, key, value: looked(query, key, value, visible))
    x = norm(x, text["post_norm"], options["norm_epsilon"])
    place = {"eos": is_real.sum(axis=1) - 1, "last": [5, 5, 5], "first": [0, 0, 0]}[options["pooling"]]
    return x, x[range(3), place], is_real


@pytest.mark.parametrize("case", TEXT_CASES)
def test_text_features_are_those_of_the_definition(case):
    options = TEXT | TEXT_CASES[case]
    tower, exact = tower_of("text", **options)
    found, (tokens, pooled, mask) = tower(IDS), text_features(exact, options)
    np.testing.assert_allclose(found[0], tokens, atol=4e-6)
    np.testing.assert_allclose(found[1], pooled, atol=4e-6)
    np.testing.assert_array_equal(found[2], mask)
    assert np.std(tokens) > 0.02


def test_an_absent_caption_is_a_number_wherever_pads_are_hidden():
    """Attention to no token has no value, and cuDNN's gives NaN: a text of pads sees its first."""
    tower, _ = tower_of("text", **TEXT | TEXT_CASES["bert"])
    ids = jnp.zeros((2, 6), int).at[0, 0].set(2)
    tokens, _, mask = tower(ids)
    assert np.isfinite(tokens).all() and not np.asarray(mask[1]).any()
    np.testing.assert_allclose(tokens[1, 0], tower(ids[1:, :1])[0][0, 0], atol=1e-5)


@pytest.mark.parametrize("kind", ["biased", "none"])
def test_pooled_vectors_have_the_projection_that_is_asked_for(kind):
    """Tokens keep a linear one of their own; without it they take the pooled one."""
    sides = dict(image__projection=kind, text__projection=kind, embed_dim=16)
    model = make(needs={"tokens", "pooled"}, **sides)
    parameters, exact = drawn(jax.eval_shape(model.init, jax.random.key(0)))
    names = {path for path in paths.flatten(parameters) if "projection" in path}
    tokens = {f"{side}_projection/kernel" for side in ("image", "text")}
    pooled = {f"{side}_pooled_projection/{leaf}" for side in ("image", "text") for leaf in ("kernel", "bias")}
    assert names == (tokens | pooled if kind == "biased" else tokens)
    outputs = jax.jit(
        lambda p: (model.image_features(p, IMAGES, "global"), model.embed_images(p, IMAGES)["image_pooled"])
    )
    features, found = outputs(parameters)
    expected = linear(features, exact["image_pooled_projection"]) if kind == "biased" else np.asarray(features)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=-1, keepdims=True), atol=1e-5)
    if kind == "biased":
        return
    alone = make(needs={"pooled"}, **sides)
    given = {name: leaves for name, leaves in parameters.items() if name not in ("image_projection", "text_projection")}
    single, tokens = jax.jit(lambda p: [alone.encode_image(p, IMAGES, pooling) for pooling in ("global", "tokens")])(
        given
    )
    np.testing.assert_allclose(single[:, 0], found, atol=1e-6)
    assert tokens.shape == (3, 9, 16)


def test_patches_can_be_hidden_from_a_model():
    model = make(needs={"tokens", "pooled"}, image__class_tokens=0, image__pooling="map")
    parameters, _ = drawn(jax.eval_shape(model.init, jax.random.key(0)))
    shown, whole = jnp.ones((3, 9), bool).at[:, 4].set(False), jnp.ones((3, 9), bool)
    other = IMAGES.at[:, 4:8, 4:8].set(0)

    @jax.jit
    def encode(images, mask):
        return model.encode_image(parameters, images, patch_mask=mask), model.embed_images(
            parameters, images, patch_mask=mask
        )

    (tokens, hidden), same = encode(IMAGES, shown), encode(other, shown)
    jax.tree.map(np.testing.assert_array_equal, (tokens, hidden), same)
    np.testing.assert_array_equal(tokens, hidden["image_tokens"])
    for name, x in encode(IMAGES, whole)[1].items():
        assert not np.allclose(x, hidden[name], atol=1e-4), name


NEW = dict(
    image__registers=2, image__layer_scale=0.1, image__pooling="map", image__patch_bias=True, image__projection="biased",
)  # fmt: skip


def test_new_parameters_say_how_they_are_trained():
    """Learned tokens, scales and biases do not decay; LAMB has one ratio for each layer's scale."""
    model = make(needs={"pooled"}, **NEW)
    metadata = model.metadata
    learned = ("class_tokens", "registers", "map_head/probe", "patch_embedding/bias")
    fresh = {"image_pooled_projection/bias", *(f"image/{name}" for name in learned)}
    scales = {f"image/transformer/blocks/{name}_scale" for name in ("attention", "mlp")}
    decaying = {f"image/map_head/{name}/kernel" for name in ("attention/qkv", "attention/out", "mlp_in", "mlp_out")}
    assert not any(metadata[path].decay for path in fresh | scales) and all(metadata[path].decay for path in decaying)
    assert {path for path in fresh | scales | decaying if metadata[path].stacked} == scales
    initial = jax.jit(lambda key: model.init(key)["image"]["transformer"]["blocks"])(jax.random.key(0))
    for name in ("attention_scale", "mlp_scale"):
        np.testing.assert_array_equal(initial[name], np.full((2, 16), 0.1, np.float32))


@pytest.mark.parametrize("case", ["siglip", slow("value")])
def test_towers_with_options_are_exported_for_any_number_of_images(case):
    tower, _ = tower_of("image", **VIT | IMAGE_CASES[case])
    (batch,) = export.symbolic_shape("batch")
    exported = export.export(tower)(jax.ShapeDtypeStruct((batch, *IMAGES.shape[1:]), IMAGES.dtype))
    found, expected = exported.call(IMAGES), tower(IMAGES)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(image__class_tokens=0), "model.image.pooling='class' needs class_tokens of at least 1; else take 'mean'"),
        (dict(image__class_tokens=-1), "model.image.class_tokens=-1 must be at least 0"),
        (dict(image__pooling="eos"), "model.image.pooling='eos' is not one of class, mean, map"),
        (dict(image__tokens="values"), "model.image.tokens='values' is not one of last, value; did you mean value?"),
        (dict(image__tokens="value", image__pooling="map"), "model.image.tokens='value' needs pooling='class'"),
        (dict(image__resize="crop"), "model.image.resize='crop' is not one of shortest, squash"),
        (dict(image__interpolation="area"), "model.image.interpolation='area' is not one of bicubic, bilinear"),
        (dict(image__mean=(0.5, 0.5)), r"model.image.mean=\(0.5, 0.5\) must be three finite numbers"),
        (dict(image__std=(0.5, 0.0, 0.5)), "model.image.std=.* must be above 0"),
        (dict(image__layer_scale="small"), "layer_scale='small' is not a finite number"),
        (dict(image__norm_epsilon=-1.0), "norm_epsilon=-1.0 must be at least 0"),
        (dict(image__mlp_width=2.5), "mlp_width=2.5 is not a whole number"),
        (dict(image__mlp_width=0), "model.image.mlp_width=0 must be at least 1"),
        (dict(image__projection="mlp"), "model.image.projection='mlp' is not one of linear, biased, none"),
        (dict(text__projection="none"), "model.text.projection='none' needs width=16 to be model.embed_dim=8"),
        (dict(text__pooling="mean"), "model.text.pooling='mean' is not one of eos, last, first"),
        (dict(text__pad_id=30), "model.text.pad_id=30 must be below vocab_size=30"),
        (dict(text__length_groups=2, text__pooling="last"), "length_groups=2 cuts off pads, .* set it to 1"),
        (dict(text__length_groups=2, text__causal=False, text__pad_mask=False), "length_groups=2 cuts off pads"),
    ],
)
def test_an_option_that_can_not_be_is_refused_by_its_key(changes, message):
    with pytest.raises(UserError, match=message) as error:
        make(needs={"tokens", "pooled"}, **changes)
    assert "\n" not in str(error.value)


def test_options_that_are_not_named_are_clips():
    """A model of a config that names none has the same parameters and input as one that names all."""
    named = config(
        image__registers=0, image__layer_scale=None, image__mlp_width=64, image__norm_epsilon=1e-5, image__tokens="last",
        image__projection="linear", text__causal=True, text__pooling="eos", text__pad_id=0, text__pad_mask=True,
    )  # fmt: skip
    bare, full = config(), make({"pooled"}, **{key: named[key] for key in ("image", "text")})
    del bare["image"]["class_tokens"], bare["image"]["patch_dropout"], bare["text"]["length_groups"]
    short = make({"pooled"}, **{key: bare[key] for key in ("image", "text")})
    assert short.metadata == full.metadata and (short.image, short.text) == (full.image, full.text)
    assert short.image == ImageInput(12, (3, 3)) and dataclasses.replace(short.text, pad_id=1) != short.text
