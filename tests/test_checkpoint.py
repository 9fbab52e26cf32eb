"""Checkpoints: whole or absent, exact, onto any mesh, and never into another model."""

import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import make_devices_mesh, small
from jax.sharding import SingleDeviceSharding

from filip_jax import paths
from filip_jax.checkpoint import Checkpoints, CheckpointWriter, abstract
from filip_jax.errors import UserError
from filip_jax.models import make_model
from filip_jax.train.optimizer import make_optimizer
from filip_jax.train.step import make_init, state_shardings


def state_on(config, mesh, ema_decay=0.0):
    """(an initial state with noise in its moments, its shapes, its shardings)."""
    model = make_model(**config["model"])
    optimizer = make_optimizer(
        jax.eval_shape(model.init, jax.random.key(0)), config["total_steps"], **config["optimizer"]
    )
    init = make_init(model, optimizer, ema_decay)
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = state_shardings(mesh, shapes, optimizer)

    def noisy(key):
        state = init(key)
        state["opt_state"] = jax.tree.map(lambda x: x + 1, state["opt_state"])
        return state

    with jax.set_mesh(mesh):
        return jax.jit(noisy, out_shardings=shardings)(jax.random.key(1)), shapes, shardings


@pytest.fixture(scope="module")
def config(demo_config):
    return small(demo_config, **{"model.image.width": 64, "model.text.width": 64})


@pytest.fixture(scope="module")
def saved(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    state, shapes, _ = state_on(config, make_devices_mesh(2, 4), ema_decay=0.5)
    writer = CheckpointWriter(workdir, every_steps=1, keep_last=2)
    for step in (1, 2, 3):
        writer.save(step, state, {"samples_seen": 16 * step})
    writer.close()
    return workdir, state, shapes


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b))


@pytest.mark.parametrize("replica, data", [(1, 8), (1, 4), (1, 1), (2, 4), (8, 1)])
def test_a_state_comes_back_exactly_on_any_mesh(config, saved, replica, data):
    workdir, state, _ = saved
    _, shapes, shardings = state_on(config, make_devices_mesh(replica, data), ema_decay=0.5)
    restored = Checkpoints(workdir).restore(3, abstract(shapes, shardings))
    assert equal(restored, state) and jax.tree.structure(restored) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, restored, shardings))


def test_the_newest_stay_with_their_meta_and_parts(saved):
    checkpoints = Checkpoints(saved[0])
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.meta(3) == {"samples_seen": 48}
    assert checkpoints.has(3, "ema") and not checkpoints.has(3, "teacher")


def test_parameters_alone(saved):
    workdir, state, shapes = saved
    here = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes["params"])
    restored = Checkpoints(workdir).restore(3, {"params": abstract(shapes["params"], here)})
    assert list(restored) == ["params"] and equal(restored["params"], state["params"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.text.width": 32}, r"text/position is float32 \(20, 64\), the model's is float32 \(20, 32\).* more$"),
        ({"model.text.depth": 3}, r"text/transformer/blocks/.* is float32 \(2, .*\), the model's is float32 \(3, "),
        ({"model.class_token": False}, "image/class_token is not of this model"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_the_paths(config, saved, changes, message):
    model = make_model(**small(config, **{"model.image.width": 64, "model.text.width": 64, **changes})["model"])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    here = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes)
    with pytest.raises(UserError, match=message):
        Checkpoints(saved[0]).restore(3, {"params": abstract(shapes, here)})


def test_reading_makes_no_folder(tmp_path):
    assert Checkpoints(tmp_path).steps() == []
    assert not list(tmp_path.iterdir())


SAVE_FOREVER = """
import sys, jax.numpy as jnp
from pathlib import Path
from filip_jax.checkpoint import CheckpointWriter
writer = CheckpointWriter(Path(sys.argv[1]), every_steps=1, keep_last=3)
for step in range(1, 10_000):
    writer.save(step, {"params": {"x": jnp.full((2000, 1000), float(step))}}, {"samples_seen": step})
    print(step, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1])
def test_a_kill_while_saving_leaves_only_whole_checkpoints(tmp_path, delay):
    command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"XLA_FLAGS": ""}) as process:
        while int(process.stdout.readline()) < 4:
            pass
        time.sleep(delay)
        process.kill()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps()
    here = SingleDeviceSharding(jax.devices()[0])
    target = {"params": {"x": jax.ShapeDtypeStruct((2000, 1000), np.float32, sharding=here)}}
    for step in checkpoints.steps():
        assert (np.asarray(checkpoints.restore(step, target)["params"]["x"]) == step).all()
        assert checkpoints.meta(step) == {"samples_seen": step}


def test_paths_flatten_and_unflatten_are_inverse():
    tree = {"b": {"c": 1, "a": {"d": 2}}, "a": 3}
    assert paths.flatten(tree) == {"a": 3, "b/a/d": 2, "b/c": 1}
    assert paths.unflatten(paths.flatten(tree)) == tree
