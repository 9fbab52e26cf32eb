"""What a run removes and overwrites lies in its own folder, whatever links, names and special files lie there."""

import contextlib
import json
import os
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from filip_jax import files, folders
from filip_jax.checkpoint import Checkpoints, CheckpointWriter
from filip_jax.cluster.watch import Watch
from filip_jax.errors import UserError
from filip_jax.files import locked, open_to_append, remove_abandoned, replacing, write_atomically
from filip_jax.saved_config import save_config
from filip_jax.train.start import newest_sound, open_workdir
from filip_jax.workdir import WRITTEN, Workdir

CONFIG = {"model": {"width": 1}, "objectives": {}, "data": {"image_size": 8, "text_length": 4}, "evals": {}}
STATE = {"params": {"x": np.arange(5.0, dtype=np.float32)}}


def everything(folder):
    """{path: bytes, target of a link or kind} of all that lies in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "special"
    return found


@pytest.fixture
def victim(tmp_path):
    """A folder of somebody else's, in which everything that a run might remove has its name."""
    folder = tmp_path / "victim"
    for name in (
        "thesis",
        "state/d/0",
        "state/_METADATA",
        "state/d/deep/0",
        "d/0",
        "saving.json",
        "manifest.json",
        "0",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"state": "state"}')
    (folder / "empty/empty").mkdir(parents=True)
    (folder / "state/empty").mkdir(parents=True)
    before = everything(folder)
    yield folder
    assert everything(folder) == before


def make_writer(workdir, keep_last=1):
    return CheckpointWriter(workdir, every_steps=1, every_minutes=0.0, keep_last=keep_last, keep_every_steps=0)


def save(writer, *steps):
    for step in steps:
        writer.save(step, STATE, {}, CONFIG)
        writer.wait()


CLAIMS = [
    {"state": "state"},
    {"state": "state", "files": ["state/d/0", "state/_METADATA", "state/d/deep/0", "state/../thesis", "state//0"]},
    {"state": "state", "files": ["state/../../../../victim/thesis", "state/\0", "state/\ud800", "state/.", "/thesis"]},
    {"state": "../../../victim/state"},
    {"state": "state", "files": 3},
]


@pytest.mark.filterwarnings("ignore:what a save that was cut off")
@pytest.mark.parametrize("claim", CLAIMS, ids=range(len(CLAIMS)))
@pytest.mark.parametrize("link", ["checkpoints", "checkpoints/5", "checkpoints/5/state", "checkpoints/5/state/d"])
def test_cleaning_removes_nothing_behind_a_link(tmp_path, victim, link, claim):
    place = tmp_path / "run" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(victim)
    for folder in (tmp_path / "run/checkpoints/5", tmp_path / "run/checkpoints"):
        if folder.is_dir() and not folder.resolve().is_relative_to(victim):
            (folder / "saving.json").write_text(json.dumps(claim))
    make_writer(tmp_path / "run").clean()
    assert place.is_symlink()


@pytest.mark.filterwarnings("ignore:the old checkpoint of step 1 is left")
@pytest.mark.parametrize("part", ["", "state", "state/d", "manifest.json"])
def test_old_checkpoints_behind_a_link_are_read_and_never_removed(tmp_path, part):
    """As clusters have it: a step, or a part of it, lies in an archive."""
    writer = make_writer(tmp_path / "run", keep_last=1)
    save(writer, 1)
    (tmp_path / "archive").mkdir()
    place, archived = tmp_path / "run/checkpoints/1" / part, tmp_path / "archive/kept"
    place.rename(archived)
    place.symlink_to(archived)
    before = everything(tmp_path / "archive")
    assert writer.damage(1) == "" and writer.steps() == [1]
    save(writer, 2, 3)
    assert everything(tmp_path / "archive") == before
    assert 3 in writer.steps() and 2 not in writer.steps()


NAMES = ["..", ".", "", "a", "link", "victim", "empty", "\0", "\ud800", "x" * 300]


@example(["..", "victim", "a"])
@example(["a", "..", "..", "empty"])
@example(["link", "a"])
@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5))
def test_no_name_of_a_foreign_file_leaves_the_root(tmp_path_factory, names):
    top = tmp_path_factory.getbasetemp() / "names"
    (top / "victim").mkdir(parents=True, exist_ok=True), (top / "root/a").mkdir(parents=True, exist_ok=True)
    (top / "victim/a").touch(), (top / "empty").mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (top / "root/link").symlink_to(top / "victim")
    for action in (lambda path: folders.remove([path], str(top / "root")),
                   lambda path: folders.remove_empty_folders(path, str(top / "root"))):  # fmt: skip
        with contextlib.suppress(UserError, OSError):
            action(f"{top}/root/{'/'.join(names)}")
    assert (top / "victim/a").exists() and (top / "empty").is_dir() and (top / "root").is_dir()


def test_the_way_to_the_workdir_may_hold_links(tmp_path):
    (tmp_path / "scratch/run").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "scratch")
    (tmp_path / "run").symlink_to(tmp_path / "link/run")
    _, lease = open_workdir(tmp_path / "run", Watch())
    writer = make_writer(tmp_path / "run")
    save(writer, 1, 2)
    lease.close()
    assert Checkpoints(tmp_path / "run").steps() == Checkpoints(tmp_path / "scratch/run").steps() == [2]
    assert sorted(path.name for path in (tmp_path / "scratch/run").iterdir()) == ["checkpoints"]


def linked(place, victim):
    place.symlink_to(victim)


def with_link(place, victim):
    (place / "deep").mkdir(parents=True)
    (place / "deep/file").symlink_to(victim / "thesis")


def with_fifo(place, victim):
    place.mkdir()
    os.mkfifo(place / "process_0.jsonl")


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("spoil", [linked, with_link, with_fifo])
def test_a_workdir_that_leads_elsewhere_is_refused_before_anything_is_written(tmp_path, victim, name, spoil):
    run = tmp_path / "run"
    run.mkdir()
    (run / "mine").symlink_to(victim)  # where nothing is written, a link is no matter
    spoil(run / name, victim)
    before = everything(run)
    if spoil is not linked and name in ("checkpoints", "wandb"):
        return Workdir(run).check_links()
    with pytest.raises(UserError, match=f"{run}/{name}.* is (a symbolic link|no regular file).*remove"):
        open_workdir(run, Watch())
    assert everything(run) == before


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_where_a_folder_is_written_is_refused_at_the_start(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} is a file where a folder is written"):
        open_workdir(tmp_path, Watch())
    assert everything(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("name", ["tokenizer.model", "metrics.jsonl", "evals.json"])
def test_a_new_run_replaces_no_file_of_somebody_else(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{tmp_path} holds {name}, but no config.json of a run"):
        newest_sound(make_writer(tmp_path), tmp_path, CONFIG)
    save_config(tmp_path, CONFIG)
    assert newest_sound(make_writer(tmp_path), tmp_path, CONFIG) is None


@pytest.mark.parametrize("source", ["folder", "class_folder", "jsonl", "csv"])
def test_a_new_run_does_not_lie_in_its_data(tmp_path, source):
    config = CONFIG | {"source": {"name": "mixture", "a": {"name": source, "path": str(tmp_path)}}}
    for workdir in (tmp_path, tmp_path / "runs/one", tmp_path / "runs/.."):
        with pytest.raises(UserError, match=f"--workdir={workdir} lies in path={tmp_path}"):
            newest_sound(make_writer(workdir), workdir, config)
    assert newest_sound(make_writer(tmp_path.with_name("run")), tmp_path.with_name("run"), config) is None


def test_what_others_leave_in_a_state_is_no_part_of_its_checkpoint(tmp_path):
    """NFS, file managers and sync tools put hidden files there, and take them away again."""
    hidden = [tmp_path / "checkpoints/1/state" / name for name in (".nfs01", "._d", ".DS_Store", "d/.nfs02", ".sync/x")]

    def leave():
        hidden[-1].parent.mkdir()
        [file.write_text("theirs") for file in hidden]

    writer = make_writer(tmp_path)
    writer.before_manifest = leave
    save(writer, 1)
    [file.unlink() for file in hidden]
    assert writer.damage(1) == ""


def test_cleaning_waits_until_the_run_is_known_to_be_ours(tmp_path):
    """Remains of a kill, in a folder of no run, of a run of another config, and of this run."""
    step = tmp_path / "checkpoints/5"
    (step / "state").mkdir(parents=True)
    (step / "state/part").touch(), (step / "saving.json").write_text('{"state": "state"}')
    before = everything(tmp_path / "checkpoints")
    assert newest_sound(make_writer(tmp_path), tmp_path, CONFIG) is None
    assert everything(tmp_path / "checkpoints") == before
    save_config(tmp_path, CONFIG | {"model": {"width": 2}})
    assert newest_sound(make_writer(tmp_path), tmp_path, CONFIG) is None
    assert everything(tmp_path / "checkpoints") == before
    (tmp_path / "config.json").write_text('{"name": "of another program"}')
    with pytest.raises(UserError, match="config.json"):
        newest_sound(make_writer(tmp_path), tmp_path, CONFIG)
    save_config(tmp_path, CONFIG)
    assert newest_sound(make_writer(tmp_path), tmp_path, CONFIG) is None
    assert not step.exists()


@pytest.mark.filterwarnings("ignore:.* is a symbolic link. it is read")
def test_with_checkpoints_of_another_config_nothing_is_removed_or_set_aside(tmp_path):
    writer = make_writer(tmp_path, keep_last=9)
    save(writer, 1, 2)
    (tmp_path / "checkpoints/2/state/_METADATA").write_text("damaged")
    (tmp_path / "checkpoints/7/state").mkdir(parents=True)
    (tmp_path / "checkpoints/7/saving.json").write_text('{"state": "state"}')
    before = everything(tmp_path)
    with pytest.raises(UserError, match="holds a run of another config"):
        newest_sound(writer, tmp_path, CONFIG | {"model": {"width": 2}})
    assert everything(tmp_path) == before
    with pytest.warns(UserWarning, match="STEP 2 IS DAMAGED"):
        assert newest_sound(writer, tmp_path, CONFIG) == 1
    assert not (tmp_path / "checkpoints/7").exists()
    (tmp_path / "checkpoints/7").symlink_to(tmp_path / "checkpoints/2")
    with pytest.raises(UserError, match="checkpoints/7 is a symbolic link where this run would save"):
        newest_sound(writer, tmp_path, CONFIG)
    with pytest.raises(UserError, match="checkpoints/7 is a symbolic link, through which no checkpoint is saved"):
        save(writer, 7)


def test_the_step_that_a_run_goes_on_from_stays_though_its_removal_had_begun(tmp_path):
    writer = make_writer(tmp_path, keep_last=9)
    save(writer, 1)
    files_of = list(writer.manifest(1)["files"])
    (tmp_path / "checkpoints/1/saving.json").write_text(json.dumps({"state": "state", "files": files_of}))
    assert newest_sound(writer, tmp_path, CONFIG) == 1
    assert writer.damage(1) == "" and not (tmp_path / "checkpoints/1/saving.json").exists()


def test_what_is_written_replaces_links_and_special_files(tmp_path, victim):
    (tmp_path / "link").symlink_to(victim / "thesis"), (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "loop", "fifo", "new"):
        write_atomically(tmp_path / name, "mine")
        assert not (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == "mine"
    (tmp_path / "link").unlink(), (tmp_path / "link").symlink_to(victim / "thesis"), os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=name):
            open_to_append(tmp_path / name)
    with pytest.raises(OSError, match="/folder'"):
        (tmp_path / "folder").mkdir(), write_atomically(tmp_path / "folder", "mine")
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_processes_of_one_number_write_one_file(tmp_path):
    """Threads have one process id, as the processes of several containers may."""
    errors = []

    def write(content):
        try:
            for _ in range(50):
                write_atomically(tmp_path / "file", content * 1000)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcdefgh"]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert not errors and len(set((tmp_path / "file").read_text())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_killed_processes_left_goes_and_what_others_write_stays(tmp_path, victim):
    names = [f".filip_{number:016x}.tmp" for number in range(4)]
    for name in (*names[:2], "config.json.12.tmp", "mine.tmp", ".filip_1.tmp"):
        (tmp_path / name).touch()
    (tmp_path / names[2]).symlink_to(victim / "thesis"), os.mkfifo(tmp_path / names[3])
    old = time.time() - 2 * files.MIN_ABANDONED_SECONDS
    for path in tmp_path.iterdir():
        if path.name != names[0]:
            os.utime(path, (old, old), follow_symlinks=False)
    with replacing(tmp_path / "living"):
        before = {path.name for path in tmp_path.iterdir()}
        remove_abandoned(tmp_path)
        assert before - {path.name for path in tmp_path.iterdir()} == {names[1]}
    assert (tmp_path / "living").exists()
    remove_abandoned(tmp_path, 0.0)
    assert not (tmp_path / names[0]).exists() and (tmp_path / "mine.tmp").exists()


def test_a_lock_has_one_holder_and_ends_with_it(tmp_path):
    file = tmp_path / "lock"
    for _ in range(2):
        with locked(file, "it is taken"):
            with pytest.raises(UserError, match="it is taken"), locked(file, "it is taken"):
                pass
            assert file.exists()
        assert not file.exists()
    file.symlink_to(Path("elsewhere"))
    with pytest.raises(OSError, match="lock"), locked(file, "it is taken"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_save_does_not_go_into_a_link_that_lies_in_its_step(tmp_path, victim):
    (tmp_path / "run/checkpoints/1").mkdir(parents=True)
    (tmp_path / "run/checkpoints/1/state").symlink_to(victim)
    (tmp_path / "run/checkpoints/1/state_1").symlink_to("nowhere")
    (tmp_path / "run/checkpoints/1/state_2.orbax-checkpoint-tmp").symlink_to(victim)
    writer = make_writer(tmp_path / "run")
    save(writer, 1)
    assert writer.damage(1) == "" and writer.manifest(1)["state"] == "state_3"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {"params": {"x": jax.ShapeDtypeStruct((5,), np.float32, sharding=here)}}
    assert (np.asarray(writer.restore(1, target)["params"]["x"]) == STATE["params"]["x"]).all()
