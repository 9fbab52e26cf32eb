"""Checkpoints: whole or absent, exact, onto any mesh, and never into another model."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
import pytest
from conftest import make_devices_mesh, slow, small
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from filip_jax import __version__, paths
from filip_jax.checkpoint import Checkpoints, CheckpointWriter, abstract, writer
from filip_jax.errors import UserError
from filip_jax.models import make_model
from filip_jax.objectives.total import make_objectives
from filip_jax.train.optimizer import make_optimizer
from filip_jax.train.step import make_init, state_shardings

BY = {"filip_jax_version": __version__}  # which each checkpoint says


def make_writer(workdir, **options):
    return CheckpointWriter(
        workdir, **dict(every_steps=1, every_minutes=0.0, keep_last=2, keep_every_steps=0) | options
    )


def state_on(config, mesh, ema_decay=0.0):
    """(an initial state with noise in its moments, its shapes, its shardings)."""
    objectives = make_objectives(config["objectives"])
    model = make_model(objectives.needs, **config["model"])
    optimizer = make_optimizer(model.metadata | objectives.metadata, config["total_steps"], **config["optimizer"])
    init = make_init(model, objectives, optimizer, ema_decay)
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
    writer = make_writer(workdir)
    for step in (1, 2, 3):
        writer.save(step, state, {"samples_seen": 16 * step}, {"seed": 7})
    writer.wait()
    return workdir, state, shapes


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b))


@pytest.mark.parametrize("replica, data", [slow(1, 8), slow(1, 4), (1, 1), (2, 4), slow(8, 1)])
def test_a_state_comes_back_exactly_on_any_mesh(config, saved, replica, data):
    workdir, state, _ = saved
    _, shapes, shardings = state_on(config, make_devices_mesh(replica, data), ema_decay=0.5)
    restored = Checkpoints(workdir).restore(3, abstract(shapes, shardings))
    assert equal(restored, state) and jax.tree.structure(restored) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, restored, shardings))


def test_the_newest_stay_with_their_meta_and_parts(saved):
    checkpoints = Checkpoints(saved[0])
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.meta(3) == BY | {"samples_seen": 48}
    assert checkpoints.has(3, "ema") and not checkpoints.has(3, "teacher")


@pytest.mark.parametrize("most, sliced", [(writer.MIN_SLICE_BYTES, 0), (0, 8)], ids=["small", "large"])
def test_replicas_share_the_writing_of_large_arrays_only(tmp_path, monkeypatch, most, sliced):
    """A slice is compiled for each shape and device: a run's first save would wait for dozens of programs."""
    slices, cut = [], jax.lax.slice_in_dim
    monkeypatch.setattr(jax.lax, "slice_in_dim", lambda *a, **options: slices.append(a) or cut(*a, **options))
    monkeypatch.setattr(writer, "MIN_SLICE_BYTES", most)
    everywhere = NamedSharding(make_devices_mesh(1, 8), PartitionSpec())
    state = {"params": {"x": jax.device_put(np.arange(80.0, dtype=np.float32).reshape(16, 5), everywhere)}}
    checkpoints = make_writer(tmp_path)
    checkpoints.save(1, state, {}, {})
    checkpoints.wait()
    assert len(slices) == sliced
    np.testing.assert_array_equal(Checkpoints(tmp_path).read(1, state)["params"]["x"], state["params"]["x"])


def test_parameters_alone(saved):
    workdir, state, shapes = saved
    here = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes["params"])
    restored = Checkpoints(workdir).restore(3, {"params": abstract(shapes["params"], here)})
    assert list(restored) == ["params"] and equal(restored["params"], state["params"])


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model.text.width": 32},
            r"params/text/position is float32 \(20, 64\), this run's is float32 \(20, 32\).* more$",
        ),
        (
            {"model.text.depth": 3},
            r"params/text/transformer/blocks/.* is float32 \(2, .*\), this run's is float32 \(3, ",
        ),
        (
            {"model.image.class_tokens": 0, "model.image.pooling": "mean"},
            "params/image/class_tokens is not of this run",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_the_paths(config, saved, changes, message):
    changed = small(config, **{"model.image.width": 64, "model.text.width": 64, **changes})
    model = make_model({"tokens"}, **changed["model"])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    here = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes)
    with pytest.raises(UserError, match=message):
        Checkpoints(saved[0]).restore(3, {"params": abstract(shapes, here)})


def test_an_optimiser_of_another_run_is_refused_with_the_paths(config, saved):
    _, shapes, shardings = state_on(config, make_devices_mesh(1, 1), ema_decay=0.0)
    target = abstract(shapes, shardings)
    target["opt_state"] = target["opt_state"][:2]
    with pytest.raises(UserError, match=r"holds another state: opt_state/.* is not of this run"):
        Checkpoints(saved[0]).restore(3, target)


def test_the_manifest_says_what_the_checkpoint_holds(saved):
    workdir, state, _ = saved
    manifest = Checkpoints(workdir).manifest(3)
    assert manifest["step"] == 3 and manifest["config"] == {"seed": 7} and manifest["meta"] == BY | {"samples_seen": 48}
    position = state["params"]["text"]["position"]
    assert manifest["tree"]["params/text/position"] == {"shape": list(position.shape), "dtype": "float32"}
    written = {
        str(f.relative_to(workdir / "checkpoints/3")) for f in (workdir / "checkpoints/3").rglob("*") if f.is_file()
    }
    assert written == {*manifest["files"], "manifest.json"}


def ways_to_damage(file):
    """(name, function) of each way in which a file may be spoilt."""
    data = file.read_bytes()
    flipped = bytearray(data)
    if data:
        flipped[len(data) // 2] ^= 0x10
        yield "flipped", lambda: file.write_bytes(flipped)
        yield "truncated", lambda: file.write_bytes(data[: len(data) // 2])
    yield "longer", lambda: file.write_bytes(data + b"x")
    yield "deleted", file.unlink


def test_whatever_happens_to_any_file_is_noticed(saved, tmp_path):
    """Each file in each way: the step is invisible, or found damaged with the file's name."""
    shutil.copytree(saved[0], tmp_path / "run")
    checkpoints, folder = Checkpoints(tmp_path / "run"), tmp_path / "run/checkpoints/3"
    assert checkpoints.damage(3) == "" and all(checkpoints.damage(3, n, 3) == "" for n in range(3))
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        for way, spoil in ways_to_damage(file):
            spoil()
            if file.name == "manifest.json" and way == "deleted":
                assert checkpoints.steps() == [2]
            else:
                assert str(file) in checkpoints.damage(3), way
                assert [bool(checkpoints.damage(3, n, 3)) for n in range(3)].count(True) in (1, 3), way
            file.write_bytes(whole)
    assert checkpoints.damage(3) == ""


def test_nothing_but_what_a_manifest_lists_is_ever_removed(tmp_path):
    """Foreign files and folders, a copy without manifest, a damaged checkpoint: all stay when old steps go."""
    state = {"params": {"x": jax.numpy.arange(5.0)}}
    folder = tmp_path / "checkpoints"
    foreign = [folder / "2/notes.txt", folder / "2/state/mine", folder / "12/state/d/part", folder / "backup/1/data"]
    for file in foreign:
        file.parent.mkdir(parents=True)
        file.write_text("mine")
    writer = make_writer(tmp_path, keep_last=1, keep_every_steps=4)
    writer.clean()
    for step in (2, 3, 4, 5, 6):
        writer.save(step, state, {}, {})
        if step == 5:
            writer.wait()
            writer.set_aside(5)
    writer.wait()
    assert writer.steps() == [4, 6]
    assert all(file.read_text() == "mine" for file in foreign) and (folder / "5/state/_METADATA").exists()
    assert not (folder / "3").exists()


def test_the_remains_of_a_kill_are_cleared_away_and_a_damaged_step_is_saved_again(tmp_path):
    state = {"params": {"x": jax.numpy.arange(5.0)}}
    writer = make_writer(tmp_path)
    writer.save(1, state, {}, {})
    writer.wait()
    folder = tmp_path / "checkpoints"
    (folder / "2/state.orbax-checkpoint-tmp/d").mkdir(parents=True)
    (folder / "2/state.orbax-checkpoint-tmp/d/1").write_text("torn")
    (folder / "2/saving.json").write_text('{"state": "state"}')
    shutil.copytree(folder / "1/state", folder / "3/state")  # renamed, but killed before its manifest
    (folder / "3/saving.json").write_text('{"state": "state"}')
    (folder / "1/saving.json").write_text('{"state": "state"}')  # killed behind its manifest
    (folder / "4/other").mkdir(parents=True)
    (folder / "4/saving.json").write_text("not ours")
    (folder / "5").mkdir()
    (folder / "5/saving.json").write_text('{"state": "../1"}')  # nothing that we wrote
    make_writer(tmp_path).clean()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "4", "5"] and writer.damage(1) == ""
    writer.set_aside(1)
    assert writer.steps() == [] and (folder / "1/state/_METADATA").exists()
    writer.save(1, state, {"again": 1}, {})
    writer.wait()
    assert writer.steps() == [1] and writer.meta(1) == BY | {"again": 1} and writer.damage(1) == ""


def test_a_save_that_fails_is_raised_at_the_next_look(tmp_path, monkeypatch):
    state = {"params": {"x": jax.numpy.arange(5.0)}}
    writer = make_writer(tmp_path)
    writer.save(1, state, {}, {})
    writer.wait()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("filip_jax.checkpoint.writer.write_manifest", full)
    writer.save(2, state, {}, {})
    with pytest.raises(
        UserError, match="2 could not be saved: .*No space left.*; the newest whole checkpoint is of step 1"
    ):
        writer.wait()
    writer.check_saves()  # said once
    assert Checkpoints(tmp_path).steps() == [1]


def test_a_save_that_fails_with_the_disk_is_not_forgotten(tmp_path, monkeypatch):
    """What puts the failure into words fails, too."""
    writer = make_writer(tmp_path)

    def gone(*_, **__):
        raise OSError("unreachable")

    writer.save(1, {"params": {"x": jax.numpy.arange(5.0)}}, {}, {})
    monkeypatch.setattr("filip_jax.checkpoint.writer.write_manifest", gone)
    monkeypatch.setattr("filip_jax.folders.matches", gone)
    with pytest.raises((UserError, OSError), match="unreachable"):
        writer.wait()


def test_a_damaged_old_checkpoint_does_not_keep_new_ones_from_being_saved(tmp_path):
    state = {"params": {"x": jax.numpy.arange(5.0)}}
    writer = make_writer(tmp_path, keep_last=1)
    writer.save(1, state, {}, {})
    writer.wait()
    (tmp_path / "checkpoints/1/manifest.json").write_text("{")
    writer.save(2, state, {}, {})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        writer.wait()
    assert any("old checkpoint of step 1 is left where it is" in str(each.message) for each in said)
    assert writer.damage(2) == ""


def test_a_removal_that_was_cut_off_is_ended_and_a_renamed_checkpoint_is_none(tmp_path):
    state = {"params": {"x": jax.numpy.arange(5.0)}}
    writer = make_writer(tmp_path, keep_last=3)
    for step in (1, 2):
        writer.save(step, state, {}, {})
    writer.wait()
    folder = tmp_path / "checkpoints/1"
    files = list(writer.manifest(1)["files"])
    (folder / "saving.json").write_text(json.dumps({"state": "state", "files": files}))
    (folder / "manifest.json").unlink()
    (folder / "state/mine").write_text("mine")
    make_writer(tmp_path).clean()
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["mine"]
    shutil.copytree(tmp_path / "checkpoints/2", tmp_path / "checkpoints/7")
    assert "is the checkpoint of step 2, but not named so" in writer.damage(7)
    writer.set_aside(7)
    (tmp_path / "checkpoints/7/saving.json").write_text('{"state": "state"}')
    make_writer(tmp_path).clean()
    assert (tmp_path / "checkpoints/7/state/_METADATA").exists()  # set aside, so it stays


def test_saves_by_the_clock(tmp_path, monkeypatch):
    writer = make_writer(tmp_path, every_minutes=0.5)
    now = writer.since
    monkeypatch.setattr("time.monotonic", lambda: now)
    assert not writer.is_due_by_clock()
    now += 31
    assert writer.is_due_by_clock() and not make_writer(tmp_path).is_due_by_clock()


def test_reading_makes_no_folder(tmp_path):
    assert Checkpoints(tmp_path).steps() == []
    assert not list(tmp_path.iterdir())


SAVE_FOREVER = """
import sys, jax.numpy as jnp
from pathlib import Path
from filip_jax.checkpoint import CheckpointWriter
writer = CheckpointWriter(Path(sys.argv[1]), every_steps=1, every_minutes=0.0, keep_last=3, keep_every_steps=0)
for step in range(1, 10_000):
    writer.save(step, {"params": {"x": jnp.full((2000, 1000), float(step))}}, {"samples_seen": step}, {})
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
        assert checkpoints.meta(step) == BY | {"samples_seen": step}


def test_paths_flatten_and_unflatten_are_inverse():
    tree = {"b": {"c": 1, "a": {"d": 2}}, "a": 3}
    assert paths.flatten(tree) == {"a": 3, "b/a/d": 2, "b/c": 1}
    assert paths.unflatten(paths.flatten(tree)) == tree
