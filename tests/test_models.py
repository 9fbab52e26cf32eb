"""The towers: which tokens take part, what sees what, and that scan and remat change nothing."""

import contextlib
import copy
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import examples, make_devices_mesh, slow, whole_tier
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from filip_jax import paths
from filip_jax.errors import UserError
from filip_jax.losses import filip_loss
from filip_jax.models import make_model
from filip_jax.models.dual_encoder import DualEncoder
from filip_jax.models.linear import Linear
from filip_jax.models.patches import patches
from filip_jax.objectives.total import make_objectives

CONFIG = dict(
    embed_dim=8, dtype="float32", cls_in_similarity=False, bos_in_similarity=True,
    eos_in_similarity=True, attention="xla", scan=True, remat=False,
    image=dict(
        kind="vit", image_size=12, patch_size=4, patch_dropout=0.0, class_tokens=1,
        width=16, depth=2, heads=2, activation="quick_gelu",
    ),
    text=dict(
        kind="transformer", vocab_size=30, length=6, length_groups=1, width=16, depth=2, heads=2, activation="quick_gelu",
    ),
)  # fmt: skip
IDS = jnp.array([[2, 7, 8, 9, 10, 3], [2, 5, 3, 0, 0, 0], [2, 3, 0, 0, 0, 0]])
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8))


def config(**changes):
    changed = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (changed[section] if section else changed)[name] = value
    return changed


def make(needs=("tokens",), **changes):
    return make_model(needs, **config(**changes))


def built(needs=("tokens",), **changes):
    model = make(needs, **changes)
    return model, jax.jit(model.init)(jax.random.key(0))


def test_tokens_are_unit_vectors_in_float32_also_when_computed_in_bfloat16():
    for dtype in ("float32", "bfloat16"):
        model, parameters = built(dtype=dtype)
        images = jax.jit(model.encode_image)(parameters, IMAGES)
        texts, mask = jax.jit(model.encode_text)(parameters, IDS)
        assert images.shape == (3, 9, 8) and texts.shape == (3, 6, 8)
        assert images.dtype == texts.dtype == jnp.float32
        assert np.allclose(jnp.linalg.norm(images, axis=-1), 1, atol=1e-5)
        assert mask.tolist() == (IDS > 0).tolist()
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(parameters))


ACTIVATIONS = {  # in float64
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2,
}


def norm(x, parameters):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * parameters["scale"] + parameters["bias"]


def linear(x, parameters):
    return x @ parameters["kernel"] + parameters["bias"]


def transformed(x, blocks, visible, activation):
    """CLIP's blocks of two heads by their definition: x + attention(norm(x)), then x + mlp(norm(x))."""
    for layer in range(2):
        block = jax.tree.map(lambda leaf: leaf[layer], blocks)
        qkv = linear(norm(x, block["attention_norm"]), block["attention"]["qkv"])
        attended = []
        for head in range(2):
            query, key, value = (qkv[..., n * 16 + head * 8 : n * 16 + head * 8 + 8] for n in range(3))
            weights = np.where(visible, np.exp(query @ key.swapaxes(1, 2) / 8**0.5), 0)
            attended.append(weights / weights.sum(axis=2, keepdims=True) @ value)
        x = x + linear(np.concatenate(attended, axis=2), block["attention"]["out"])
        x = x + linear(ACTIVATIONS[activation](linear(norm(x, block["mlp_norm"]), block["mlp_in"])), block["mlp_out"])
    return x


def projected(x, parameters):
    x = x @ parameters["kernel"]
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def drawn(parameters):
    """(Parameters of which none is zero or one, the same in float64): small, so that what norms add to variances shows."""
    rng = np.random.default_rng(0)
    sizes = {path: 0.4 if path.endswith("kernel") else 0.1 for path in paths.flatten(parameters)}
    leaves = {path: sizes[path] * rng.normal(size=leaf.shape) for path, leaf in paths.flatten(parameters).items()}
    single = paths.unflatten({path: jnp.asarray(leaf, jnp.float32) for path, leaf in leaves.items()})
    return single, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), single)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("patch_dropout", [0.0, 0.5])
def test_image_tokens_are_those_of_the_definition(activation, patch_dropout):
    model = make(image__activation=activation, cls_in_similarity=True, image__patch_dropout=patch_dropout)
    parameters, exact = drawn(jax.eval_shape(model.init, jax.random.key(0)))
    pixels = np.asarray(IMAGES) / 255 - [0.48145466, 0.4578275, 0.40821073]
    pixels /= [0.26862954, 0.26130258, 0.27577711]
    corners = [(row, column) for row in (0, 4, 8) for column in (0, 4, 8)]
    cut = np.stack([pixels[:, row : row + 4, column : column + 4].reshape(3, -1) for row, column in corners], axis=1)
    image = exact["image"]
    x = cut @ image["patch_embedding"]["kernel"] + image["position"][1:]
    noise = np.random.default_rng(1).random((3, 9)).astype(np.float32) if patch_dropout else None
    if patch_dropout:
        x = np.stack([row[np.sort(np.argsort(one)[:4])] for row, one in zip(x, noise)])
    x = np.concatenate([np.tile(image["class_tokens"][0] + image["position"][0], (3, 1, 1)), x], axis=1)
    x = transformed(norm(x, image["pre_norm"]), image["transformer"]["blocks"], True, activation)
    expected = projected(norm(x, image["post_norm"]), exact["image_projection"])
    tokens = model.encode_image(parameters, IMAGES, noise=jnp.asarray(noise) if patch_dropout else None)
    np.testing.assert_allclose(tokens, expected, atol=4e-6)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_tokens_are_those_of_the_definition(activation):
    model = make(text__activation=activation)
    parameters, exact = drawn(jax.eval_shape(model.init, jax.random.key(0)))
    text = exact["text"]
    x = text["token_embedding"][np.asarray(IDS)] + text["position"]
    x = transformed(x, text["transformer"]["blocks"], np.tri(6, dtype=bool), activation)
    expected = projected(norm(x, text["post_norm"]), exact["text_projection"])
    np.testing.assert_allclose(model.encode_text(parameters, IDS)[0], expected, atol=4e-6)


def test_fresh_parameters_spread_as_clips():
    wide = {
        f"{tower}__{name}": value for tower in ("image", "text") for name, value in {"width": 64, "depth": 4}.items()
    }
    leaves = paths.flatten(built(**wide)[1])
    block = {"attention/qkv": 64**-0.5, "attention/out": 512**-0.5, "mlp_in": 128**-0.5, "mlp_out": 512**-0.5}
    spreads = {
        f"{tower}/transformer/blocks/{name}/kernel": std for tower in ("image", "text") for name, std in block.items()
    }
    spreads |= {"image_projection/kernel": 1 / 8, "text_projection/kernel": 1 / 8, "image/position": 1 / 8}
    spreads |= {"text/token_embedding": 0.02, "text/position": 0.01}
    for path, std in spreads.items():
        assert np.std(leaves[path]) == pytest.approx(std, rel=0.1), path
    own = make_objectives({"filip": {"kind": "filip", "weight": 1.0}}).init(jax.random.key(0), {})
    assert float(own["filip"]["logit_scale"]) == pytest.approx(math.log(1 / 0.07))


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_the_text_mask_follows_its_switches_and_never_holds_pads(bos, eos):
    model, parameters = built(bos_in_similarity=bos, eos_in_similarity=eos)
    expected = [[bos, 1, 1, 1, 1, eos], [bos, 1, eos, 0, 0, 0], [bos, eos, 0, 0, 0, 0]]
    assert model.encode_text(parameters, IDS)[1].astype(int).tolist() == np.array(expected, int).tolist()


@pytest.mark.parametrize("cls, bos, eos", [slow(False, True, True), slow(True, False, True), (False, False, False)])
def test_no_gradient_passes_through_an_excluded_token(cls, bos, eos):
    """The loss's gradient with respect to the towers' outputs, at every excluded position."""
    module = DualEncoder(
        needs=frozenset({"tokens"}),
        **config(cls_in_similarity=cls, bos_in_similarity=bos, eos_in_similarity=eos),
        rngs=nnx.Rngs(0),
    )

    def loss(image_features, text_tokens):
        tokens, mask = module.project_text(dataclasses.replace(text_features, tokens=text_tokens), "tokens")
        return filip_loss(module.project_image(image_features, "tokens"), tokens, mask, 14.0)

    text_features = module.text(IDS)
    d_image, d_text = jax.grad(loss, argnums=(0, 1))(module.image(IMAGES), text_features.tokens)
    assert bool(np.asarray(d_image.pooled).any()) == cls and np.asarray(d_image.tokens).any()
    mask = np.asarray(module.project_text(text_features, "tokens")[1])
    assert not np.asarray(d_text)[~mask].any()
    assert np.asarray(d_text)[mask].any()


def test_pads_and_later_tokens_reach_nothing():
    """The text tower is causal: exactly zero gradient from a token's output to every later input."""
    model, parameters = built()

    def token(parameters, ids):
        return model.encode_text(parameters, ids)[0][0, 2].sum()

    table = jax.jit(jax.grad(token))(parameters, IDS)["text"]["token_embedding"]
    seen = set(np.flatnonzero(np.asarray(table).any(axis=1)).tolist())
    assert seen == {2, 7, 8}

    def loss(parameters):
        return filip_loss(model.encode_image(parameters, IMAGES), *model.encode_text(parameters, IDS), 14.0)

    gradient = jax.jit(jax.grad(loss))(parameters)
    assert not np.asarray(gradient["text"]["token_embedding"])[0].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_global_pooling_is_the_class_token_and_the_eos_token():
    model, parameters = built(needs={"pooled"})
    images, (texts, mask) = model.encode_image(parameters, IMAGES), model.encode_text(parameters, IDS)
    assert images.shape == texts.shape == (3, 1, 8) and mask.shape == (3, 1) and mask.all()
    dense, _ = model.encode_text(parameters, IDS, pooling="tokens")
    assert np.allclose(texts[:, 0], dense[np.arange(3), [5, 2, 1]], atol=1e-6)
    of_tokens = {name.replace("_pooled", ""): leaves for name, leaves in parameters.items()}
    with_cls = make(cls_in_similarity=True).encode_image(of_tokens, IMAGES)
    assert np.allclose(images[:, 0], with_cls[:, 0], atol=1e-6)


def test_tokens_and_pooled_vectors_of_one_model_have_projections_of_their_own():
    both, parameters = built(needs={"tokens", "pooled"})
    encoded = both.embed_images(parameters, IMAGES) | both.embed_texts(parameters, IDS)
    assert encoded.keys() == {"image_tokens", "image_pooled", "text_tokens", "text_mask", "text_pooled"}
    for need in ("tokens", "pooled"):
        alone = make(needs={need})
        for name, x in (alone.embed_images(parameters, IMAGES) | alone.embed_texts(parameters, IDS)).items():
            np.testing.assert_array_equal(encoded[name], x, err_msg=name)
    kernels = [leaf for path, leaf in paths.flatten(parameters).items() if path.endswith("projection/kernel")]
    assert len({np.asarray(kernel).tobytes() for kernel in kernels}) == len(kernels) == 4
    single, images, texts = encoded["image_pooled"], both.encode_image, both.encode_text
    assert np.array_equal(images(parameters, IMAGES, pooling="global")[:, 0], single)
    assert np.array_equal(texts(parameters, IDS, pooling="global")[0][:, 0], encoded["text_pooled"])
    assert np.array_equal(images(parameters, IMAGES), encoded["image_tokens"])


@pytest.mark.parametrize("changes", [slow(dict(scan=False)), slow(dict(remat=True)), dict(scan=False, remat=True)])
def test_scan_and_remat_change_neither_parameters_nor_results(changes):
    def outcome(**changes):
        model, parameters = built(**changes)

        def loss(parameters):
            return filip_loss(model.encode_image(parameters, IMAGES), *model.encode_text(parameters, IDS), 14.0)

        return parameters, jax.jit(jax.value_and_grad(loss))(parameters)

    parameters, (loss, gradient) = outcome()
    same_parameters, (same_loss, same_gradient) = outcome(**changes)
    assert jax.tree.all(jax.tree.map(np.array_equal, parameters, same_parameters))
    assert float(loss) == pytest.approx(float(same_loss), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), gradient, same_gradient)


def test_patches_are_cut_row_by_row():
    image = jnp.arange(4 * 6 * 3, dtype=jnp.float32).reshape(1, 4, 6, 3)
    cut = patches(image, 2)
    assert cut.shape == (1, 6, 12)
    assert np.array_equal(cut[0, 1], image[0, :2, 2:4].reshape(-1))
    assert np.array_equal(cut[0, 3], image[0, 2:, :2].reshape(-1))


def test_layers_are_stacked_and_initialised_apart():
    model, parameters = built()
    for path, leaf in paths.flatten(parameters).items():
        assert model.metadata[path].stacked == ("/transformer/" in path)
        if model.metadata[path].stacked:
            assert leaf.shape[0] == 2
            if path.endswith("kernel"):
                assert not np.array_equal(leaf[0], leaf[1])


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(dtype="float16"), "model.dtype='float16' is not one of"),
        (dict(text__activation="relu"), "activation='relu' is not one of gelu, gelu_tanh, quick_gelu"),
        (dict(image__kind="vti"), "model.image.kind='vti' is not one of vit, conv_vit; did you mean vit?"),
        (dict(text__kind="vit"), "model.text.kind='vit' is not one of transformer"),
        (dict(text__kind=None), "config section model.text: kind=None is not a text"),
        (
            dict(image__kind="conv_vit"),
            "config section model.image: .*class_tokens.*; its keys are image_size, patch_size",
        ),
        (dict(attention="flash"), "model.attention='flash' is not one of xla, cudnn"),
        (dict(attention="cudnn"), "needs model.dtype='bfloat16' .*, not float32 and heads of 8"),
        (dict(attention="cudnn", dtype="bfloat16", image__width=20), "not bfloat16 and heads of 10"),
        (dict(image__patch_size=5), "model.image.patch_size=5 does not divide images of 12 x 12 pixels"),
        (dict(image__heads=3), "width=16 does not split into heads=3"),
        (dict(embed_dim=0), "model.embed_dim=0 must be at least 1"),
        (dict(embed_dmi=3), "config section model: got an unexpected keyword argument 'embed_dmi'"),
        (
            dict(text__widht=3),
            "config section model.text: .*widht.*; its keys are vocab_size, length, length_groups, width, .*projection",
        ),
    ],
)
def test_a_model_that_can_not_be_is_refused_by_its_key(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


@pytest.mark.parametrize("mesh", [None, slow((2, 4))])
def test_length_groups_change_no_result(mesh):
    """Texts of every length, in groups that no longer hold the longest ones."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 41, (32, 1))
    ids = jnp.asarray(rng.integers(4, 30, (32, 40)) * (np.arange(40) < lengths), jnp.int32)
    results = []
    for groups in (1, 4 if whole_tier() else 2):
        model = make(**dict(text__length=40, text__length_groups=groups))
        parameters = jax.jit(model.init)(jax.random.key(0))

        def total(parameters):
            tokens, mask = model.encode_text(parameters, ids)
            return (tokens * mask[..., None] * jnp.arange(8)).sum() + (tokens[3, 1] ** 3).sum(), tokens * mask[
                ..., None
            ]

        with jax.set_mesh(make_devices_mesh(*mesh)) if mesh else contextlib.nullcontext():
            results.append(jax.jit(jax.value_and_grad(total, has_aux=True))(parameters))
    (expected, gradients), (ours, our_gradients) = results
    np.testing.assert_allclose(ours[1], expected[1], atol=1e-5)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients))
    for mine, exact in zip(jax.tree.leaves(our_gradients), jax.tree.leaves(gradients)):
        np.testing.assert_allclose(mine, exact, atol=1e-5 * largest)


def test_short_texts_are_encoded_short():
    """The compiled program decides by length: a batch of short texts costs less than one of long texts."""
    model = make(**dict(text__length=64, text__length_groups=2, scan=False))
    parameters = jax.jit(model.init)(jax.random.key(0))
    short = jnp.asarray(np.tile([2, 5, 3] + [0] * 61, (8, 1)), jnp.int32)
    tokens, _ = jax.jit(model.encode_text)(parameters, short)
    dense = make(text__length=64, scan=False).encode_text(parameters, short)[0]
    np.testing.assert_allclose(tokens[:, :3], dense[:, :3], atol=1e-6)
    assert not np.asarray(tokens[:, 16:]).any() and np.asarray(dense[:, 16:]).any()


def test_patch_dropout_keeps_the_patches_of_least_noise():
    model, parameters = built(image__patch_dropout=0.5, cls_in_similarity=True)
    full, _ = built(cls_in_similarity=True)
    noise = jax.random.uniform(jax.random.key(1), (3, 9))
    tokens = model.encode_image(parameters, IMAGES, noise=noise)
    assert model.noise_size == 9 and full.noise_size == 0 and tokens.shape == (3, 1 + 4, 8)  # round(4.5) is 4
    assert np.array_equal(model.encode_image(parameters, IMAGES), full.encode_image(parameters, IMAGES))
    kept = np.sort(np.argsort(noise, axis=1)[:, :4], axis=1)
    other = np.asarray(IMAGES).copy()
    for b in range(3):
        for patch in set(range(9)) - set(kept[b].tolist()):
            row, column = divmod(patch, 3)
            other[b, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = (
                255 - other[b, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            )
    assert np.array_equal(tokens, model.encode_image(parameters, jnp.asarray(other), noise=noise))
    with pytest.raises(UserError, match="model.image.patch_dropout=1.0 must be"):
        make(image__patch_dropout=1.0)


@examples(12)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(1, 9), st.integers(1, 9), st.booleans(),
    st.sampled_from(["float32", "bfloat16"]),
)  # fmt: skip
def test_a_linear_layer_is_that_of_flax(rows, width, out, use_bias, dtype):
    """Forward and gradients, of the layer in float32; in bfloat16 to its precision."""
    x, cotangent = (jax.random.normal(jax.random.key(n), (*rows, size)) for n, size in enumerate((width, out)))
    options = dict(use_bias=use_bias, bias_init=nnx.initializers.normal(1.0))
    plain = nnx.Linear(width, out, rngs=nnx.Rngs(0), **options)
    fast = Linear(width, out, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype), **options)

    def results(layer):
        graph, state = nnx.split(layer)
        value, pull = jax.vjp(lambda state, x: nnx.merge(graph, state)(x), state, x)
        return value, pull(cotangent.astype(value.dtype))

    tolerance = 1e-5 if dtype == "float32" else 0.1
    for ours, theirs in zip(*map(jax.tree.leaves, map(results, (fast, plain))), strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=tolerance, atol=tolerance)
