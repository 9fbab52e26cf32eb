"""Disks that are full or read-only: the message names the path that was written and the file system that it lies on."""

import contextlib
import errno
import os
import threading

import numpy as np
import pytest

from filip_jax import folders, storage
from filip_jax.checkpoint import CheckpointWriter
from filip_jax.errors import UserError
from filip_jax.files import named, write_atomically
from filip_jax.train.input_log import _append
from filip_jax.train.metrics import MetricWriter
from filip_jax.train.tensorboard import Scalars
from filip_jax.workdir import Workdir

FULL = [errno.ENOSPC, errno.EDQUOT, errno.EROFS]


@pytest.mark.parametrize("number", FULL)
def test_an_error_of_a_disk_names_it_once(number, tmp_path):
    for own, file in [(None, "x"), ("beside", "x"), ("other", "other")]:
        error = OSError(number, "any words", own and str(tmp_path / own))
        for _ in range(2):
            error = named(error, tmp_path / "x", tmp_path / "beside")
        assert error.filename == str(tmp_path / file) and error.errno == number
        said = str(error)
        assert said.count("the file system at /") == 1 and os.strerror(number) in said and " MiB left" in said
        mount = said.partition("the file system at ")[2].partition(" has ")[0]
        assert os.path.ismount(mount) and str(tmp_path).startswith(mount)


def test_other_errors_are_left_as_they_are(tmp_path):
    denied = named(PermissionError(errno.EACCES, "Permission denied"), tmp_path / "x")
    assert (
        isinstance(denied, PermissionError)
        and denied.filename == str(tmp_path / "x")
        and "file system" not in str(denied)
    )
    unreachable = OSError("gs://b cannot be reached")
    assert named(unreachable, tmp_path / "x") is unreachable


def refuse(number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    return refused


def mirror(folder, patch):
    patch.setenv("XDG_CACHE_HOME", str(folder))
    patch.setattr("tempfile.mkdtemp", refuse.full)
    Workdir("gs://bucket/run")


def lines(folder, patch):
    writer = MetricWriter(folder, step=0, evaluated=False)
    patch.setattr("filip_jax.train.metrics.json.dumps", refuse.full)  # where the line is made: an open file names none
    with contextlib.closing(writer):
        writer.write(1, {"train/loss": 1.0})


def scalars(folder, patch):
    writer = Scalars(folder / "tensorboard", 1)
    patch.setattr(writer.events, "write_event", refuse.full)
    with contextlib.closing(writer):
        writer.add(1, {"train/loss": 1.0})


def keys(folder, patch):
    patch.setattr("filip_jax.train.input_log.open_to_append", refuse.full)
    _append(folder / "keys/process_0.jsonl", [{"step": 1}])


def index(folder, patch):
    patch.setattr("os.makedirs", refuse.full)
    folders.local_folder(str(folder / "index"), "source")


def small_file(folder, patch):
    patch.setattr("os.replace", refuse.full)
    storage.write(str(folder / "evals.json"), b"{}")


def whole_file(folder, patch):
    patch.setattr("os.fsync", refuse.full)
    write_atomically(folder / "tokenizer.model", b"1")


WRITERS = {
    mirror: "filip_jax/gs/bucket/run",
    lines: "metrics.jsonl",
    scalars: "tensorboard",
    keys: "keys/process_0.jsonl",
    index: "index",
    small_file: "evals.json",
    whole_file: "tokenizer.model",
}


@pytest.mark.parametrize("number", FULL)
@pytest.mark.parametrize("write", WRITERS)
def test_whoever_writes_names_the_path_and_its_disk(write, number, tmp_path, monkeypatch):
    monkeypatch.setattr(refuse, "full", refuse(number), raising=False)
    with pytest.raises((OSError, UserError)) as failure:
        write(tmp_path, monkeypatch)
    monkeypatch.undo()
    assert str(tmp_path / WRITERS[write]) in str(failure.value) and "; the file system at /" in str(failure.value)


def test_no_thread_stands_between_metrics_and_the_disk(tmp_path):
    """One that a full disk had ended would leave the run waiting for ever."""
    before = threading.active_count()
    scalars = Scalars(tmp_path / "tensorboard", 1)
    scalars.add(1, {"train/loss": 1.0})
    assert threading.active_count() == before
    scalars.close()


@pytest.mark.parametrize("number", FULL)
def test_a_checkpoint_says_which_disk_is_full_whoever_writes_it(number, tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, every_steps=1, every_minutes=0.0, keep_last=1, keep_every_steps=0)

    def full(*_, **__):
        raise ValueError(
            f'RESOURCE_EXHAUSTED: writing "a/d/{"0" * 300}": no room [os_error_code=\'{number}\'] "{"x" * 300}"'
        )

    monkeypatch.setattr(writer.orbax, "save", full)
    with pytest.raises(
        UserError, match=f"1 could not be saved: .*{os.strerror(number)}; the file system at /.* MiB left"
    ):
        writer.save(1, {"params": {"x": np.zeros(2)}}, {}, {})
