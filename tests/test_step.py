"""The training step on meshes: born sharded, equal to one device, frozen towers, EMA, the clamp."""

import copy
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_devices_mesh, slow, small
from jax.sharding import PartitionSpec

from filip_jax import paths
from filip_jax.errors import UserError
from filip_jax.mesh import check_batch_size, global_batch, make_mesh, parameter_spec, replicated
from filip_jax.models import make_model
from filip_jax.objectives.total import make_objectives
from filip_jax.sections import call
from filip_jax.train import step
from filip_jax.train.encode import with_noise
from filip_jax.train.optimizer import make_optimizer
from filip_jax.train.setup import batch_of, make_setup
from filip_jax.train.step import make_init, make_train_step, state_shardings

STEPS = 4


def batches(config):
    """With several captions each sample has the first, and the others or not."""
    rng, count = np.random.default_rng(0), config["data"]["captions_per_image"]
    size, length = config["data"]["image_size"], config["data"]["text_length"]
    for _ in range(STEPS):
        lengths = rng.integers(3, length, size=(config["batch_size"], count, 1))
        ids = rng.integers(4, 500, (config["batch_size"], count, length)) * (np.arange(length) < lengths)
        image = rng.integers(0, 256, (config["batch_size"], size, size, 3), dtype=np.uint8)
        if count == 1:
            yield {"image": image, "ids": ids[:, 0].astype(np.int32)}
        else:
            weight = (np.arange(count) == 0) | (rng.random((config["batch_size"], count)) < 0.5)
            ids = (ids * weight[..., None]).astype(np.int32)
            yield {"image": image, "ids": ids, "caption_weight": weight.astype(np.float32)}


def run(config, mesh, ema_decay=0.0, steps=STEPS, logit_scale=None, **options):
    """Return (losses, the first state, the last state) of some steps on a mesh.

    Args:
        logit_scale: that the run begins with, inside its bounds or not.
        options: of the objective.
    """
    objectives = make_objectives({"filip": config["objectives"]["filip"] | options})
    model = make_model(objectives.needs, **config["model"])
    optimizer = make_optimizer(model.metadata | objectives.metadata, config["total_steps"], **config["optimizer"])
    init = make_init(model, objectives, optimizer, ema_decay)
    shardings = state_shardings(mesh, jax.eval_shape(init, jax.random.key(0)), optimizer)
    train_step = make_train_step(
        model, objectives, optimizer, ema_decay, config["total_steps"], seed=0, microbatches=config["microbatches"]
    )
    losses = []
    with jax.set_mesh(mesh):
        first = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
        if logit_scale:
            scale = jax.device_put(jnp.float32(math.log(logit_scale)), replicated(mesh))
            first["params"]["objectives"]["filip"]["logit_scale"] = scale
        state = first
        train_step = jax.jit(train_step, out_shardings=(shardings, replicated(mesh)))
        given = [global_batch(mesh, batch) for batch in itertools.islice(batches(config), steps)]
        train_step = train_step.lower(state, given[0]).compile()  # which takes arrays of one layout only
        for batch in given:
            state, metrics = train_step(state, batch)
            losses.append(float(metrics["train/loss"]))
    return losses, first, state


@pytest.fixture(scope="module")
def config(demo_config):
    changes = {
        "model.image.width": 64,
        "model.text.width": 64,
        "model.scan": True,
        "optimizer.name": "lamb",
        "optimizer.eps": 1e-4,
    }
    return small(demo_config, **changes)


@pytest.fixture(scope="module")
def one_device(config):
    return run(config, make_devices_mesh(1, 1))


def assert_same_beginning(x, y):
    """The same bits, but for one rounding: the compiler of JAX 0.10 joins the operations of an init otherwise when it is sharded."""
    np.testing.assert_allclose(x, y, rtol=2**-23, atol=0)


@pytest.mark.parametrize("replica, data", [slow(2, 4), slow(8, 1)])
def test_every_mesh_equals_one_device(config, one_device, replica, data):
    losses, first, last = run(config, make_devices_mesh(replica, data))
    assert losses == pytest.approx(one_device[0], rel=1e-5)
    assert len(set(losses)) == STEPS
    jax.tree.map(assert_same_beginning, first, one_device[1])
    for path, leaf in paths.flatten(last["params"]).items():
        expected = np.asarray(paths.flatten(one_device[2]["params"])[path])
        assert np.abs(np.asarray(leaf) - expected).max() <= 1e-4 * np.abs(expected).max(), path


def test_parameters_and_their_moments_are_sharded_alike(config):
    _, first, last = run(config, make_devices_mesh(2, 4))
    for state in (first, last):
        specs = {path: leaf.sharding.spec for path, leaf in paths.flatten(state["params"]).items()}
        assert specs["text/token_embedding"] == PartitionSpec("data")
        assert specs["image/transformer/blocks/mlp_in/kernel"] == PartitionSpec(None, None, "data")
        assert specs["objectives/filip/logit_scale"] == PartitionSpec()
        moments = paths.flatten(state["opt_state"][1].mu)
        assert {path: leaf.sharding.spec for path, leaf in moments.items()} == specs


def operations(jaxpr):
    """All operations of a program, those of its functions and loops among them, each written once."""
    for operation in jaxpr.eqns:
        yield operation
        for value in jax.tree.leaves(list(operation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            yield from operations(inner) if hasattr(inner, "eqns") else ()


@pytest.mark.parametrize("locked", ["image", slow("text")])
def test_a_locked_tower_has_neither_a_backward_pass_nor_state(demo_config, locked):
    """Its products of matrices are those of one forward pass, also with remat, and in microbatches behind a fresh projection."""
    widths = {"image": 44, "text": 52}
    sizes = {f"model.{side}.mlp_width": width for side, width in widths.items()}
    frozen = {"optimizer.learning_rate_rules": ((f"{locked}/.*", 0.0),)}
    changes = sizes | frozen | {"microbatches": 2, "model.remat": True}
    setup, products = call(make_setup, small(demo_config, **changes), "top"), {}
    with jax.set_mesh(setup.mesh):
        program = jax.jit(setup.train_step).trace(setup.shapes, batch_of(setup)).jaxpr.jaxpr
    for side, width in widths.items():
        products[side] = sum(
            any(width in x.aval.shape for x in (*each.invars, *each.outvars))
            for each in operations(program) if each.primitive.name == "dot_general"
        )  # fmt: skip
    assert products.pop(locked) == 2 and products.popitem()[1] > 6
    paths_of_state = {
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(setup.shapes["opt_state"])
    }
    assert paths_of_state and not any(f"['{locked}']" in path for path in paths_of_state)


@pytest.mark.slow
@pytest.mark.smoke
def test_a_frozen_tower_stays_and_the_average_follows(config):
    frozen = small(config, **{"optimizer.learning_rate_rules": (("image/.*", 0.0), (".*", 1.0))})
    _, first, last = run(frozen, make_devices_mesh(1, 1), ema_decay=0.9, steps=1)
    for path, leaf in paths.flatten(last["params"]).items():
        moved = not np.array_equal(leaf, paths.flatten(first["params"])[path])
        assert moved != path.startswith("image/"), path
    scalar = "objectives/filip/logit_scale"
    start, average, end = (
        np.asarray(paths.flatten(tree)[scalar]) for tree in (first["params"], last["ema"], last["params"])
    )
    np.testing.assert_allclose(average, 0.9 * start + 0.1 * end, rtol=1e-5, atol=1e-7)
    assert np.abs(end - start).max() > 1e-4


@pytest.mark.parametrize(
    "start, end, options",
    [
        (1000.0, 100.0, {}),  # CLIP's bound
        slow(0.1, 1.0, {}),
        (1 / 0.07, 10.0, {"logit_scale_init": 5.0, "max_logit_scale": 10.0}),
    ],
)
def test_the_logit_scale_is_clamped_after_every_step(config, start, end, options):
    _, first, last = run(config, make_devices_mesh(1, 1), steps=1, logit_scale=start, **options)
    scales = [float(jnp.exp(state["params"]["objectives"]["filip"]["logit_scale"])) for state in (first, last)]
    assert scales == pytest.approx([start, end])


def test_the_shape_rule_splits_the_largest_divisible_dimension_of_big_arrays():
    assert parameter_spec((49408, 512), 8) == PartitionSpec("data")
    assert parameter_spec((50, 768), 8) == PartitionSpec(None, "data")
    assert parameter_spec((8192, 64, 96), 8, stacked=True) == PartitionSpec(None, None, "data")
    assert parameter_spec((8192, 64, 96), 8) == PartitionSpec("data")
    assert parameter_spec((16, 8), 8, stacked=True) == PartitionSpec()
    assert parameter_spec((1001, 1003), 8) == PartitionSpec()
    assert parameter_spec((49408, 512), 1) == PartitionSpec()


def test_meshes_and_batches_that_do_not_fit_are_refused():
    assert dict(make_mesh(replica=2, data=-1).shape) == {"replica": 2, "data": 4}
    with pytest.raises(UserError, match="replica=3 x data=-1 does not fit 8 devices"):
        make_mesh(replica=3, data=-1)
    with pytest.raises(UserError, match="at most one may be -1"):
        make_mesh(replica=-1, data=-1)
    with pytest.raises(UserError, match="batch_size=130 is not divisible by the 8 devices .*; nearest: 128 or 136"):
        check_batch_size(130, make_mesh(1, 8))


@pytest.fixture(scope="module")
def dropping(config):
    """Of SGD, whose step is the gradient; with remat, dropped patches and two captions an image."""
    return small(
        config,
        **{
            "model.image.width": 64, "model.text.width": 64, "model.remat": True, "model.image.patch_dropout": 0.5,
            "optimizer.name": "adamw", "optimizer.eps": 1.0, "optimizer.peak_learning_rate": 1.0,
            "data.captions_per_image": 2,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(dropping):
    return run(dropping, make_devices_mesh(1, 1), steps=1)


@pytest.mark.parametrize(
    "replica, data, microbatches, options",
    [
        slow(1, 1, 4, {}),
        *(slow(replica, 8 // replica, 1, {}) for replica in (1, 4)),
        slow(2, 4, 2, {"exchange": "ring", "indices": "recompute"}),
    ],
)
def test_meshes_and_microbatches_give_the_gradients_of_the_whole_batch(
    dropping, whole, replica, data, microbatches, options
):
    """With length groups and every exchange."""
    pieces = copy.deepcopy(dropping) | {"microbatches": microbatches}
    pieces["model"]["text"]["length_groups"] = 2
    ours = run(pieces, make_devices_mesh(replica, data), steps=1, **options)
    assert ours[0] == pytest.approx(whole[0], rel=1e-5)
    mine, expected = (paths.flatten(result[2]["opt_state"][1].mu) for result in (ours, whole))
    worst = max(float(jnp.abs(leaf).max()) for leaf in expected.values())
    assert worst > 0
    for path, leaf in expected.items():
        np.testing.assert_allclose(mine[path], leaf, atol=1e-5 * worst, err_msg=path)


@pytest.mark.parametrize("replica, data, pieces", [slow(1, 1, 2), (2, 4, 1), slow(1, 8, 2)])
def test_captions_and_views_are_encoded_each_as_if_alone_on_the_device_of_their_sample(dropping, replica, data, pieces):
    model, rng = make_model({"tokens", "pooled"}, **dropping["model"]), np.random.default_rng(0)
    size, length = dropping["data"]["image_size"], dropping["data"]["text_length"]
    ids = rng.integers(4, 500, (16, 3, length)) * (np.arange(length) < rng.integers(0, length + 1, (16, 3, 1)))
    image = rng.integers(0, 256, (16, 2, size, size, 3), dtype=np.uint8)
    batch = {"image": image, "ids": ids.astype(np.int32), "caption_weight": ids.any(axis=2).astype(np.float32)}
    parameters, mesh = model.init(jax.random.key(0)), make_devices_mesh(replica, data)
    with jax.set_mesh(mesh):
        given = jax.device_put(parameters, replicated(mesh)), with_noise(model, global_batch(mesh, batch), 0, 5)
        encode = jax.jit(lambda parameters, batch: step.encode_batch(model, {"text_ids"}, parameters, batch, pieces))
        encode = encode.lower(*given).compile()
        encoded = jax.device_get(encode(*given))
    assert not re.search("all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter", encode.as_text())
    noise = np.asarray(given[1]["noise"])
    assert len(encoded.views) == 1 and np.array_equal(encoded.text_weight, batch["caption_weight"])
    assert np.array_equal(encoded.text_ids, np.where(model.text.mask(jnp.asarray(batch["ids"])), batch["ids"], -1))
    for n, view in enumerate((encoded, *encoded.views)):
        for name, alone in model.embed_images(parameters, jnp.asarray(image[:, n]), jnp.asarray(noise[:, n])).items():
            np.testing.assert_allclose(getattr(view, name), alone, atol=1e-5)
    for n in range(3):
        for name, alone in model.embed_texts(parameters, jnp.asarray(batch["ids"][:, n])).items():
            np.testing.assert_allclose(getattr(encoded, name)[:, n], alone, atol=1e-5)


def test_microbatches_keep_no_activations():
    """What a deep encoder holds for the backward pass exists for one piece at a time."""

    def encode(weights, batch):
        for weight in weights:
            batch = jnp.tanh(batch @ weight)
        return batch[:, :1]

    def bytes_of(pieces):
        def loss(weights, batch):
            return step.in_pieces(encode, pieces)(weights, batch).sum()

        weights, batch = (
            [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 8,
            jax.ShapeDtypeStruct((4096, 64), jnp.float32),
        )
        return jax.jit(jax.grad(loss)).lower(weights, batch).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(8) < bytes_of(1) / 3


def test_microbatches_that_do_not_fit_are_refused():
    mesh = make_devices_mesh(2, 4)
    check_batch_size(64, mesh, 4)
    with pytest.raises(
        UserError, match="batch_size=80 is not divisible by the 8 devices .* times microbatches=4; nearest: 64 or 96"
    ):
        check_batch_size(80, mesh, 4)
    with pytest.raises(UserError, match="microbatches=0"):
        check_batch_size(80, mesh, 0)
