"""Orbax's store: found again under every name that a folder may have, and opened before a manifest certifies it."""

import os
import re
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from conftest import make_devices_mesh, slow
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from filip_jax import storage
from filip_jax.checkpoint import Checkpoints, CheckpointWriter, store
from filip_jax.checkpoint.inspect import inspect
from filip_jax.checkpoint.manifest import describe
from filip_jax.checkpoint.reader import find_checkpoint
from filip_jax.checkpoint.store import literal, misfit
from filip_jax.errors import UserError

ALONE = "[]{}*?!~#%:$-"  # what globs, shells or URLs read; the others stand together in one name
OTHERS = "".join(sign for sign in string.punctuation if sign not in ALONE + "/\\") + " \t\n\r\x1büe\u0301漢😀\u202e"
NAMES = [*(f"x{sign}y" for sign in ALONE), *(f"{sign}x" for sign in "-~ ."), "x~", "a:", "s3:x", OTHERS, "lr=[1e-3]", "[a]",
         "{a,b}", "{1..3}", "**", "a**b", "%41", "$HOME", "~root", "..."]  # fmt: skip
REFUSED = ["x\\y", "a\\", "gs:", "logs:", "x\udc80"]  # TensorStore: a slash; Orbax: a bucket; TensorStore: no UTF-8
STATE = {"params": {"x": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, "step": np.int32(3)}


def save(workdir, *steps):
    writer = CheckpointWriter(workdir, every_steps=1, every_minutes=0.0, keep_last=1, keep_every_steps=0)
    for step in steps:
        writer.save(step, jax.tree.map(jax.numpy.asarray, STATE), {}, {})
    writer.wait()
    return writer


def restored(workdir, step=1):
    here = SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), STATE)
    return Checkpoints(workdir).restore(step, target)


def check(workdir):
    save(workdir, 1, 2)  # the old one goes
    assert Checkpoints(workdir).steps() == [2] and Checkpoints(workdir).damage(2) == ""
    assert "verified: " in inspect(str(workdir), verify=True) and find_checkpoint(str(workdir))[1] == 2
    assert (np.asarray(restored(workdir, 2)["params"]["x"]) == STATE["params"]["x"]).all()


def files_of(folder):
    return sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_workdir_of_any_name_holds_its_checkpoints(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    check("run")
    assert os.listdir(tmp_path) == [name]  # nothing was written beside it


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_name_that_is_taken_for_another_one_is_refused_before_anything_is_written(name, tmp_path):
    for workdir in (tmp_path / name, tmp_path / name / "below"):
        with pytest.raises(
            UserError, match="cannot hold checkpoints: .* takes it for .*; name a folder without"
        ) as refusal:
            literal(f"{workdir}/checkpoints")
        assert "\n" not in str(refusal.value)
        with pytest.raises(UserError, match="cannot hold checkpoints"):
            save(workdir)
    assert files_of(tmp_path) == []


@pytest.mark.parametrize("root", ["/gs", "/s3", "/hf", "/az"])
def test_a_folder_that_is_taken_for_a_bucket_is_refused(root):
    with pytest.raises(UserError, match=f"takes it for '{root[1:]}://x/checkpoints'"):
        literal(f"{root}/x/checkpoints")


def test_links_doubled_slashes_and_steps_up_lead_where_the_disk_says(tmp_path, monkeypatch):
    (tmp_path / "far/deep").mkdir(parents=True)
    (tmp_path / "near").mkdir()
    (tmp_path / "near/link").symlink_to(tmp_path / "far/deep")
    monkeypatch.chdir(tmp_path / "near")
    for workdir in (f"{tmp_path}//near/./run/", f"/{tmp_path}/near/run2", "link/run", "link/../run", "../near/run3"):
        check(workdir)
    assert sorted(os.listdir(tmp_path / "far")) == ["deep", "run"] and os.listdir(tmp_path / "far/deep") == ["run"]


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize(
    "bucket, name",
    [
        ("s3", "lr=[1e-3]"), slow("s3", "~é %41:"), slow("gs", "{a,b}*"), slow("gs", "a\\b"),
        slow("gs", "lr=[1e-3]"), slow("gs", "~é %41:"), slow("s3", "{a,b}*"), slow("s3", "a\\b"),
    ],
    indirect=["bucket"],
)  # fmt: skip
def test_so_it_is_in_buckets(name, bucket):
    root = f"{bucket}/paths_{name.encode().hex()}"
    storage.write(f"{root}/other/run/checkpoints/7/manifest.json", b"{}")
    check(f"{root}/{name}/run")
    found = {file.path.removeprefix(f"{root}/").split("/")[0] for file in storage.find_all(root)}
    assert found == {name, "other"}  # nothing was written beside it


@pytest.mark.parametrize(
    "url", ["gs://bucket/a#b", "gs://bucket/a?b", "gs://bucket/a//b", "s3://bucket/a#b", "s3://bucket/a//b"]
)
def test_a_url_that_is_taken_for_another_one_is_refused(url):
    with pytest.raises(UserError, match="cannot hold checkpoints"):
        literal(f"{url}/checkpoints")


def many_kinds():
    """A state with arrays that are whole, split and copied over devices, of several types and shapes."""
    mesh = make_devices_mesh(2, 4)
    x = jnp.arange(16 * 300, dtype=jnp.float32).reshape(16, 300)
    kinds = {"whole": x, "split": ("data",), "both": (("replica", "data"),), "columns": (None, "data"), "copied": ()}
    placed = {
        name: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes))) if isinstance(axes, tuple) else axes
        for name, axes in kinds.items()
    }
    types = {str(kind): jnp.zeros((3, 2), kind) for kind in ("bfloat16", "int8", "uint32", "bool", "float16")}
    return {"params": placed, "opt_state": ({"mu": types}, jnp.float32(3), [jnp.int32(1)]), "empty": {}}


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("place", ["disk", "s3", "gs"])
def test_a_state_of_many_kinds_is_found_as_it_is(place, tmp_path, request):
    workdir = tmp_path if place == "disk" else f"{request.getfixturevalue(place)}/opened"
    state = many_kinds()
    writer = CheckpointWriter(workdir, every_steps=1, every_minutes=0.0, keep_last=1, keep_every_steps=0)
    writer.save(1, state, {}, {})
    writer.wait()
    tree, folder = describe(state), f"{writer.folder(1)}/state"
    assert misfit(folder, tree) == ""
    path, leaf = "params/split", tree["params/split"]
    for wrong, said in [
        ({path: leaf}, "beside the state it holds opt_state.0.mu.bfloat16 and"),
        (tree | {"params/new": leaf}, "it lacks params.new"),
        (tree | {path: leaf | {"dtype": "bfloat16"}}, r"params.split is float32 \(16, 300\), the state's is bfloat16"),
        (
            tree | {path: leaf | {"shape": [16, 301]}},
            r"params.split is float32 \(16, 300\), the state's is float32 \(16, 301",
        ),
    ]:
        assert re.search(said, misfit(folder, wrong))


def test_all_keys_of_a_deep_tree_are_known(tmp_path, monkeypatch):
    """A store so large that its index has several layers."""
    spec = {
        "driver": "ocdbt",
        "base": f"file://{tmp_path}/",
        "config": {"max_decoded_node_bytes": 400, "max_inline_value_bytes": 8},
    }
    kv, written = ts.KvStore.open(spec).result(), {f"a{n % 7}.b/{n}": b"x" * (n % 20) for n in range(300)}
    with ts.Transaction() as together:
        for key, value in written.items():
            kv.with_transaction(together)[key] = value
    found = dict(store._keys(str(tmp_path)))
    assert found.keys() == written.keys()
    assert {key for key, (file, _) in found.items() if file} == {
        key for key, value in written.items() if len(value) > 8
    }
    assert all(os.path.getsize(tmp_path / file) >= end > 0 for file, end in found.values() if file)


def remove(file):
    file.unlink()


def empty(file):
    file.write_bytes(b"")


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def fold(file):
    file.unlink()
    file.mkdir()


LOST = {
    "_METADATA": [remove, fold],
    "manifest.ocdbt": [remove, empty, cut, fold],
    "d/*": [remove, empty, cut, fold],
    "ocdbt.process_0/d/*": [remove, empty, cut, fold],
}


@pytest.mark.parametrize("pattern, spoil", [(pattern, spoil) for pattern, ways in LOST.items() for spoil in ways])
def test_what_cannot_be_opened_is_a_failed_save_that_certifies_and_removes_nothing(pattern, spoil, tmp_path):
    """The store loses a file between its writing and its manifest."""
    state = {"params": {"x": np.random.default_rng(0).random((300, 30), np.float32), "y": np.float32(1)}}
    writer = CheckpointWriter(tmp_path, every_steps=1, every_minutes=0.0, keep_last=1, keep_every_steps=0)
    writer.save(1, jax.tree.map(jnp.asarray, state), {}, {})
    writer.wait()
    writer.before_manifest = lambda: [spoil(file) for file in (tmp_path / "checkpoints/2/state").glob(pattern)]
    writer.save(2, jax.tree.map(jnp.asarray, state), {}, {})
    with pytest.raises(UserError, match="2 could not be saved: .*state, opened again, is not the state: ") as failure:
        writer.wait()
    assert "\n" not in str(failure.value) and "newest whole checkpoint is of step 1" in str(failure.value)
    assert writer.steps() == [1] and writer.damage(1) == ""
    assert not (tmp_path / "checkpoints/2/manifest.json").exists()


def test_stores_that_orbax_did_not_join_are_no_checkpoint(tmp_path, monkeypatch):
    """As where it looked for them by a pattern: it warns, and goes on."""
    monkeypatch.setattr(store.LiteralPath, "glob", lambda self, pattern: iter(()))
    with pytest.raises(UserError, match="1 could not be saved: .*opened again, is not the state: .*anifest"):
        save(tmp_path, 1)
    assert Checkpoints(tmp_path).steps() == []
