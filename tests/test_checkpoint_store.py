"""Checkpoints in folders of every name: each sign is taken as it is, or the start is refused in one line."""

import os
import string

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from filip_jax import folders, storage
from filip_jax.checkpoint import Checkpoints, CheckpointWriter
from filip_jax.checkpoint.inspect import inspect
from filip_jax.checkpoint.reader import find_checkpoint
from filip_jax.checkpoint.store import literal, misfit
from filip_jax.errors import UserError
from filip_jax.workdir import Workdir

SIGNS = [*string.punctuation.replace("/", "").replace("\\", ""), *" \t\n\r\x1b", "ü", "e\u0301", "漢", "😀", "\u202e"]
NAMES = [*(f"x{sign}y" for sign in SIGNS), *(f"{sign}x" for sign in "-~ .#"), *(f"x{sign}" for sign in "~ .:*"),
         "lr=[1e-3]", "[a]", "{a,b}", "{1..3}", "**", "a**b", "%41", "$HOME", "~root", "a:b", "s3:x", "a:", "..."]  # fmt: skip
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
        with pytest.raises(UserError, match="cannot hold checkpoints: .* takes it for .*; name a folder without") as refusal:
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
@pytest.mark.parametrize("name", ["lr=[1e-3]", "{a,b}", "a*b", "a%41 b", "é", "~x", "a:b", "a\\b"])
def test_so_it_is_in_buckets(name, bucket):
    workdir = f"{bucket}/paths/{name}/run"
    storage.write(f"{bucket}/paths/other/run/checkpoints/7/manifest.json", b"{}")
    check(workdir)
    assert all(file.path.startswith((f"{workdir}/", f"{bucket}/paths/")) for file in storage.find_all(f"{bucket}/paths"))
    for step in Checkpoints(workdir).steps():
        folders.remove([file.path for file in storage.find_all(Checkpoints(workdir).folder(step))])
    assert storage.exists(f"{bucket}/paths/other/run/checkpoints/7/manifest.json")


@pytest.mark.parametrize("url", ["gs://bucket/a#b", "gs://bucket/a?b", "gs://bucket/a//b", "s3://bucket/a#b", "s3://bucket/a//b"])
def test_a_url_that_is_taken_for_another_one_is_refused(url):
    with pytest.raises(UserError, match="cannot hold checkpoints"):
        literal(f"{url}/checkpoints")
