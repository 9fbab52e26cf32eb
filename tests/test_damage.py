"""A damaged checkpoint at every door: one line that names its step and the file, whatever happened to which file."""

import os
import shutil
from functools import partial
from itertools import product

import jax
import pytest
from conftest import slow, whole_tier

from filip_jax import load_model, storage
from filip_jax.checkpoint import Checkpoints, CheckpointWriter
from filip_jax.checkpoint.manifest import write_manifest
from filip_jax.errors import UserError
from filip_jax.evals.checkpoints import evaluate_runs
from filip_jax.evals.choice import Choice
from filip_jax.models import make_model
from filip_jax.objectives.total import init_parameters, make_objectives
from filip_jax.saved_config import read_config
from filip_jax.train import start
from filip_jax.train.init_from import open_donors

STEP = 12


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory):
    """A run of one device with its last checkpoint alone."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    return shutil.copytree(finished[0], workdir, ignore=shutil.ignore_patterns("4", "8", "evals.json", "pictures"))


def load(workdir, config):
    load_model(workdir, STEP)


def evaluate(workdir, config):
    source = config["evals"]["val"]["source"]
    evaluate_runs(str(workdir), Choice(), {"val": dict(kind="retrieval", source=source, examples=8)})


def begin_from(workdir, config):
    objectives = make_objectives(config["objectives"])
    model = make_model(objectives.needs, **config["model"])
    shapes = jax.eval_shape(partial(init_parameters, model, objectives), jax.random.key(0))
    metadata = model.metadata | objectives.metadata
    [donor] = open_donors({"path": str(workdir), "rules": ()}, {"params": shapes}, metadata)
    donor.check(donor.tokenizer_sha256)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    donor.checkpoints.read(STEP, {"params": jax.tree.map(lambda x: x.update(sharding=here), shapes)})


def begin_from_the_folder(workdir, config):
    begin_from(workdir / "checkpoints" / str(STEP), config)


def resume(workdir, config):
    writer = CheckpointWriter(workdir, every_steps=1, every_minutes=0.0, keep_last=1, keep_every_steps=0)
    step = start.newest_sound(writer, workdir, read_config(workdir))
    writer.read(STEP, _target(writer))
    assert step == STEP


def _target(checkpoints):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = checkpoints.manifest(STEP)["tree"]
    name, leaf = next((path, leaf) for path, leaf in tree.items() if path.startswith("params/"))
    target = jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"], sharding=here)
    for part in reversed(name.split("/")):
        target = {part: target}
    return target


DOORS = [load, resume, *map(slow, (evaluate, begin_from, begin_from_the_folder))]


def remove(file):
    file.unlink()


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def empty(file):
    file.write_bytes(b"")


def grow(file):
    os.truncate(file, 1 << 40)  # of holes: nobody reads them to the end


def fold(file):
    file.unlink()
    file.mkdir()


def pipe(file):
    file.unlink()
    os.mkfifo(file)  # which blocks whoever opens it


def loop(file):
    file.unlink()
    file.symlink_to(file)


WAYS = [remove, cut, flip, empty, grow, fold, pipe, loop]


def files_of(trained):
    """One file of each kind of a checkpoint."""
    folder = trained / "checkpoints" / str(STEP)
    kinds = ("manifest.json", "state/_METADATA", "state/_sharding", "state/manifest.ocdbt", "state/d/*",
             "state/ocdbt.process_0/manifest.ocdbt", "state/ocdbt.process_0/d/*", "state/_CHECKPOINT_METADATA")  # fmt: skip
    return [max(folder.glob(kind), key=lambda file: file.stat().st_size).relative_to(trained) for kind in kinds]


def refused(door, workdir, config):
    with pytest.raises(UserError) as refusal:
        door(workdir, config)
    said = str(refusal.value)
    assert "\n" not in said and "Traceback" not in said
    return said


@pytest.mark.filterwarnings("ignore:.* has no manifest.json")
@pytest.mark.parametrize("door", DOORS)
def test_any_damage_of_any_file_is_one_line_that_names_it(door, trained, small_demo, tmp_path):
    """Every way with every file for a model that is loaded, in the whole tier; else every way, and every file."""
    files, workdir = files_of(trained), tmp_path / "run"
    for file, way in product(files, WAYS) if door is load and whole_tier() else zip(files, WAYS, strict=True):
        shutil.copytree(trained, workdir)
        way(workdir / file)
        said = refused(door, workdir, small_demo)
        if file.name == "manifest.json" and way in (remove, fold, pipe, loop):
            assert "checkpoint" in said, (file, way)  # there is none any more
        else:
            assert f"checkpoints/{STEP}/" in said and file.name in said, (file, way, said)
        shutil.rmtree(workdir)


@pytest.mark.parametrize("door", DOORS)
def test_what_may_not_be_read_is_named(door, trained, small_demo, monkeypatch):
    opened = storage.open_stream
    for file in files_of(trained):

        def denied(path, file=file):
            if path.endswith(str(file)):
                raise PermissionError(13, "Permission denied", path)
            return opened(path)

        monkeypatch.setattr(storage, "open_stream", denied)
        said = refused(door, trained, small_demo)
        assert str(file) in said and "Permission denied" in said
    assert Checkpoints(trained).steps() == [STEP]  # it is not set aside


@pytest.mark.parametrize("way", [remove, slow(cut), empty, slow(fold)])
@pytest.mark.parametrize("door", [load, slow(begin_from), resume])
def test_what_a_manifest_certifies_but_cannot_be_opened_is_one_line(door, way, trained, small_demo, tmp_path, capfd):
    """As an earlier version wrote it into a folder with brackets: every file is as its manifest says."""
    for file in files_of(trained)[1:5]:
        if file.name == "_sharding" or (file.name == "_METADATA" and way in (cut, empty)):
            continue  # shardings are given; Orbax's own JSON is not read twice
        workdir = tmp_path / "run"
        shutil.copytree(trained, workdir)
        way(workdir / file)
        manifest = Checkpoints(workdir).manifest(STEP)
        content = {name: manifest[name] for name in ("step", "tree", "meta", "config")}
        write_manifest(Checkpoints(workdir).folder(STEP), content, "state")
        said = refused(door, workdir, small_demo)
        assert f"the checkpoint of step {STEP} is damaged: {workdir}/checkpoints/{STEP}/state: " in said
        shutil.rmtree(workdir)
    assert "Event loop" not in capfd.readouterr().err
