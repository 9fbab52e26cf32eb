"""Every tower keeps the contract of towers: shapes, masks, grids, pads, statistics, export; a new one is trained rightly."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_devices_mesh, slow, small
from flax import nnx
from jax import export
from test_models import CONFIG, IDS, IMAGES
from test_optimizer import OPTIONS, lamb
from test_optimizer import run as optimized
from test_step import assert_same_beginning, run

from filip_jax import paths
from filip_jax.mesh import parameter_spec
from filip_jax.models import make_model
from filip_jax.models.tower import Execution
from filip_jax.models.towers import TOWERS
from filip_jax.train.optimizer import make_optimizer

SMALL = dict(width=16, depth=1, heads=2, activation="gelu")
IMAGE = SMALL | dict(image_size=12, patch_size=4, patch_dropout=0.0)
TEXT = SMALL | dict(vocab_size=30, length=6)
OPTIONS_OF = {  # a new tower has its options here, and is tested
    "image": {"vit": IMAGE, "conv_vit": IMAGE},
    "text": {"transformer": TEXT},
}
RICH = dict(class_tokens=2, registers=1, layer_scale=0.1, pooling="map", patch_bias=True, pre_norm=False, mlp_width=20)
EXECUTION = Execution(jnp.dtype("float32"), "xla", scan=True, remat=False)


def built(modality, kind, **options):
    return TOWERS[modality][kind](**OPTIONS_OF[modality][kind] | options, execution=EXECUTION, rngs=nnx.Rngs(0))


def model_of(image, text, **options):
    sections = dict(
        image=OPTIONS_OF["image"][image] | dict(kind=image), text=OPTIONS_OF["text"][text] | dict(kind=text) | options
    )
    return make_model({"tokens", "pooled"}, **CONFIG | sections)


def test_every_tower_is_tested():
    assert {modality: set(kinds) for modality, kinds in TOWERS.items()} == {m: set(k) for m, k in OPTIONS_OF.items()}


@pytest.mark.parametrize("kind, options", [*((kind, {}) for kind in TOWERS["image"]), slow("vit", RICH)])
def test_an_image_tower_gives_what_it_says(kind, options):
    """Its own grid and others, patches that are dropped or hidden, its statistics of channels."""
    tower = built("image", kind, patch_dropout=0.5, **options)
    assert tower.input.size == 12 and tower.input.grid == (3, 3) and tower.noise_size == 9
    assert built("image", kind, **options).noise_size == 0
    pixels = (np.asarray(IMAGES) / 255 - tower.input.mean) / tower.input.std
    np.testing.assert_allclose(tower.input.normalize(IMAGES), pixels, atol=1e-6)

    features = tower(IMAGES)
    assert features.tokens.shape == (3, 9, tower.width) and features.pooled.shape == (3, tower.width)
    assert features.mask is None and features.grid == (3, 3)
    dropped = tower(IMAGES, jax.random.uniform(jax.random.key(0), (3, 9)))
    assert dropped.tokens.shape == (3, 4, tower.width) and dropped.grid is None
    wide = tower(jnp.concatenate([IMAGES, IMAGES], axis=2))
    assert wide.tokens.shape == (3, 18, tower.width) and wide.grid == (3, 6)

    shown = jnp.ones((3, 9), bool).at[:, 4].set(False)
    other = IMAGES.at[:, 4:8, 4:8].set(255 - IMAGES[:, 4:8, 4:8])
    hidden = [tower(images, patch_mask=shown).tokens for images in (IMAGES, other)]
    np.testing.assert_array_equal(*hidden)
    np.testing.assert_array_equal(tower(IMAGES, patch_mask=jnp.ones((3, 9), bool)).tokens, features.tokens)
    assert not np.allclose(hidden[0], features.tokens, atol=1e-3)
    assert not np.allclose(tower(other).tokens, features.tokens, atol=1e-3)
    tower.input = dataclasses.replace(tower.input, mean=(0.0, 0.0, 0.0))
    assert not np.allclose(tower(IMAGES).tokens, features.tokens, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"causal": False}])
@pytest.mark.parametrize("kind", TOWERS["text"])
def test_a_text_tower_gives_what_it_says(kind, options):
    """No real token depends on pads, and on later ones only where the tower says so."""
    tower = built("text", kind, **options)
    assert (tower.input.vocab_size, tower.input.length, tower.input.pad_id) == (30, 6, 0)
    features = tower(IDS)
    mask = np.asarray(features.mask)
    assert mask.tolist() == (np.asarray(IDS) > 0).tolist() and features.grid is None
    assert features.tokens.shape == (3, 6, tower.width) and features.pooled.shape == (3, tower.width)
    short = tower(IDS[1:, :3])
    np.testing.assert_allclose(short.tokens, features.tokens[1:, :3], atol=1e-5)
    np.testing.assert_allclose(short.pooled, features.pooled[1:], atol=1e-5)
    changed = np.asarray(tower(IDS.at[0, 4].set(11)).tokens[0] != features.tokens[0]).any(axis=1)
    assert changed.tolist() == [not tower.input.causal] * 4 + [True, True]
    grouped = built("text", kind, length_groups=3, **options)(IDS)
    np.testing.assert_allclose(grouped.tokens[mask], features.tokens[mask], atol=1e-5)


@pytest.mark.parametrize("modality, kind", [(modality, kind) for modality in TOWERS for kind in TOWERS[modality]])
def test_encoders_are_exported_for_any_number_of_images_or_texts(modality, kind):
    model = model_of(**{"image": "vit", "text": "transformer", modality: kind}, length_groups=2)
    parameters = jax.jit(model.init)(jax.random.key(0))
    (batch,) = export.symbolic_shape("batch")
    encode, rows = (model.encode_image, IMAGES) if modality == "image" else (model.encode_text, IDS)
    shape = jax.ShapeDtypeStruct((batch, *rows.shape[1:]), rows.dtype)
    exported = export.export(jax.jit(encode))(jax.eval_shape(lambda: parameters), shape)
    for given, expected in zip(*map(jax.tree.leaves, (exported.call(parameters, rows), encode(parameters, rows)))):
        np.testing.assert_allclose(given, expected, atol=1e-5)


@pytest.mark.slow
def test_a_list_of_blocks_is_not_taken_for_stacked_layers():
    """Each kernel of the stem has a trust ratio of its own, and may be split along any axis."""
    model = model_of("conv_vit", "transformer")
    parameters = paths.flatten(jax.jit(model.init)(jax.random.key(0)))
    path = "image/blocks/1/conv/kernel"
    assert not model.metadata[path].stacked and model.metadata["image/transformer/blocks/mlp_in/kernel"].stacked
    assert parameter_spec((256, 8, 64), 8, model.metadata[path].stacked)[0] == "data"
    rng = np.random.default_rng(0)
    gradients = {name: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for name, leaf in parameters.items()}
    optimizer = make_optimizer(model.metadata, **OPTIONS)
    moved, _ = optimized(optimizer, paths.unflatten(parameters), [paths.unflatten(gradients)])
    for name in (path, "image/blocks/1/norm/scale", "image/transformer/blocks/mlp_in/kernel", "text/position"):
        decay, stacked = 0.01 * name.endswith("kernel"), "/transformer/" in name
        expected = lamb(np.asarray(parameters[name]), [np.asarray(gradients[name])], [0.1], decay, stacked=stacked)
        np.testing.assert_allclose(moved[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_other_towers_are_trained_alike_on_one_device_and_on_eight(demo_config):
    changes = {"model.image.width": 64, "model.text.width": 64, "optimizer.name": "lamb", "optimizer.eps": 1e-4}
    config = small(copy.deepcopy(demo_config), **changes)
    config["model"]["image"]["kind"], config["model"]["text"]["causal"] = "conv_vit", False
    (one, first, _), (eight, same, last) = (run(config, make_devices_mesh(*mesh)) for mesh in ((1, 1), (2, 4)))
    assert one == pytest.approx(eight, rel=1e-4) and len(set(one)) == len(one) and np.isfinite(one).all()
    jax.tree.map(assert_same_beginning, first, same)
    for path, leaf in paths.flatten(last["params"]).items():
        assert not np.array_equal(leaf, paths.flatten(first["params"])[path]), path
