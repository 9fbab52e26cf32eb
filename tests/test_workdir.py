"""A run's folder on a disk and in a bucket; the buckets are emulated on this machine."""

import json
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager

import fsspec
import pytest
from conftest import free_port

from filip_jax import storage, workdir
from filip_jax.errors import UserError
from filip_jax.workdir import Workdir

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where mirrors are made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def held(url):
    """The bucket's files and their bytes."""
    return {file.path.removeprefix(f"{url}/"): storage.read(file.path) for file in storage.find_all(url)}


def append(run, text, name="metrics.jsonl"):
    (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
    with (run.folder / name).open("a") as file:
        file.write(text)


def pushed(run):
    run.push(now=True)
    run.thread.join()


def test_a_local_folder_is_itself(tmp_path, cache):
    run = Workdir(tmp_path / "run")
    assert (run.folder, run.checkpoints) == (tmp_path / "run", str(tmp_path / "run/checkpoints"))
    for call in (run.push, run.flush, run.share, run.close):
        call()
    assert not cache.exists() and not run.folder.exists()


@pytest.mark.smoke
def test_a_run_begins_goes_on_elsewhere_and_ends(bucket, cache):
    url = f"{bucket}/runs/first"
    run = Workdir(f"{url}/")
    assert run.name == url and run.checkpoints == f"{url}/checkpoints" and list(run.folder.iterdir()) == []
    (run.folder / "config.json").write_text("{}")
    run.share()
    assert held(url) == {"config.json": b"{}"}
    append(run, "one\n")
    append(run, "bytes", "tensorboard/events.1")
    append(run, "half", "evals.json.12.tmp")
    append(run, "of a process that is no more", "quarantine/process_1.jsonl")
    (run.folder / "latest").symlink_to("metrics.jsonl")
    pushed(run)
    first = {"config.json": b"{}", "metrics.jsonl": b"one\n", "tensorboard/events.1": b"bytes"}
    assert held(url) == first | {"quarantine/process_1.jsonl": b"of a process that is no more"}
    storage.write(f"{url}/checkpoints/5/manifest.json", b"large")
    append(run, "lost with the machine\n")

    other = Workdir(url)  # while the first, which was killed, has left its mirror behind
    files = sorted(file.relative_to(other.folder).as_posix() for file in other.folder.rglob("*") if file.is_file())
    assert files == ["config.json", "metrics.jsonl", "quarantine/process_1.jsonl", "tensorboard/events.1"]
    append(other, "two\n")
    other.close()
    assert held(url)["metrics.jsonl"] == b"one\ntwo\n"
    assert run.folder.exists() and not other.folder.exists()
    assert run.folder.is_relative_to(cache / "filip_jax" / url.replace("://", "/"))


def test_mirrors_of_killed_processes_go_and_those_that_could_not_be_uploaded_stay(s3, cache, monkeypatch):
    begin = f"import sys; from filip_jax.workdir import Workdir; run = Workdir('{s3}/runs/killed'); print(run.folder)"
    killed = subprocess.run([sys.executable, "-c", begin], capture_output=True, text=True, check=True).stdout.strip()
    assert os.path.isdir(killed)
    full = Workdir(f"{s3}/runs/killed")
    assert not os.path.isdir(killed)
    append(full, "one\n")
    with monkeypatch.context() as broken, pytest.raises(OSError, match="cannot be uploaded from"):
        broken.setattr(storage, "write", lambda path, data: (_ for _ in ()).throw(OSError("no")))
        full.close()
    os.close(full.lock)
    assert Workdir(f"{s3}/runs/killed").folder.exists() and (full.folder / "metrics.jsonl").exists()


def test_only_what_changed_is_uploaded(bucket, monkeypatch):
    run = Workdir(f"{bucket}/runs/changes")
    for name in "abc":
        append(run, name, name)
    run.flush()
    again = Workdir(f"{bucket}/runs/changes")
    written = []
    write = storage.write
    monkeypatch.setattr(storage, "write", lambda path, data: (written.append(path), write(path, data)))
    append(run, "b", "b")
    run.flush()
    run.flush()
    again.flush()
    assert written == [f"{bucket}/runs/changes/b"]


def test_pushes_are_rare_and_in_the_background(s3, monkeypatch):
    run = Workdir(f"{s3}/runs/rare")
    append(run, "one\n")
    run.push()
    assert not run.thread.is_alive() and held(run.name) == {}  # the run has just begun
    monkeypatch.setattr(workdir, "EVERY_SECONDS", 0.0)
    with run.uploading:  # as if the bucket were slow
        run.push()
        run.push(now=True)
        assert run.thread.is_alive() and held(run.name) == {}
    run.thread.join()
    assert held(run.name) == {"metrics.jsonl": b"one\n"}


@contextmanager
def moto(port):
    """A server at the port; what its buckets hold outlives it, in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield
    server.stop()
    server._server.server_close()


def test_a_bucket_that_goes_away_stops_no_run(s3, monkeypatch):
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # so that the test need not wait
    system = type(fsspec.filesystem("s3"))
    monkeypatch.setattr(system, "retries", 1)
    system.clear_instance_cache()
    try:
        with moto(port):
            run = Workdir(f"{s3}/runs/away")
            append(run, "one\n")
            pushed(run)
        append(run, "two\n")
        append(run, "{}", "evals.json")
        names = r"s3://bucket/runs/away: evals.json, metrics.jsonl cannot be uploaded from .*"
        with pytest.warns(UserWarning, match=rf"^{names}; the run goes on, and the upload is tried again$") as caught:
            pushed(run)
            pushed(run)
        assert len([each for each in caught if each.category is UserWarning]) == 1
        with pytest.raises(OSError, match=f"^{names}"):
            run.close()
        assert (run.folder / "metrics.jsonl").read_text() == "one\ntwo\n"
        with moto(port), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            pushed(run)
            assert held(run.name) == {"evals.json": b"{}", "metrics.jsonl": b"one\ntwo\n"}
    finally:
        system.clear_instance_cache()


def test_a_bucket_that_does_not_exist_is_named(bucket):
    nobody = bucket.replace("bucket", "nobody-made-it")
    with pytest.raises(UserError, match=f"^{nobody}/run: there is no such bucket$"):
        Workdir(f"{nobody}/run")


def test_names_in_a_bucket_do_not_leave_the_mirror(s3, cache):
    fsspec.filesystem("s3").call_s3("put_object", Bucket="bucket", Key="runs/names/../../../escaped", Body=b"x")
    storage.write(f"{s3}/runs/names/fine", b"x")
    run = Workdir(f"{s3}/runs/names")
    assert [file.name for file in run.folder.iterdir()] == ["fine"]
    assert [file.name for file in cache.parent.rglob("*") if file.is_file() and file.suffix != ".lock"] == ["fine"]


TWO = """
import os, sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from filip_jax.workdir import Workdir
run = Workdir(sys.argv[3])
me = jax.process_index()
(run.folder / f"tokenizer.{me}").write_text(f"of {me}")
(run.folder / "quarantine").mkdir(exist_ok=True)
(run.folder / "quarantine" / f"process_{me}.jsonl").write_text(f"bad {me}")
run.share()
assert (run.folder / "tokenizer.0").read_text() == "of 0"
(run.folder / "config.json").write_text(f"of {me}")
run.push(now=True)
run.close()
print("shared", me)
"""


def test_processes_share_what_the_first_writes_and_keep_to_their_own(bucket):
    url, address = f"{bucket}/runs/two", f"127.0.0.1:{free_port()}"
    pipes = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "env": os.environ | {"XLA_FLAGS": ""},
    }
    processes = [subprocess.Popen([sys.executable, "-c", TWO, address, str(n), url], **pipes) for n in range(2)]
    try:
        for number, process in enumerate(processes):
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0 and f"shared {number}" in output, output
    finally:
        for process in processes:
            process.kill()
    quarantine = {f"quarantine/process_{n}.jsonl": b"bad %d" % n for n in range(2)}
    assert held(url) == {"config.json": b"of 0", "tokenizer.0": b"of 0"} | quarantine


def test_a_torn_file_is_mended_by_the_next_push(s3):
    run = Workdir(f"{s3}/runs/torn")
    append(run, '{"step": 1}\n{"st')
    run.flush()
    append(run, 'ep": 2}\n')
    run.flush()
    assert [json.loads(line)["step"] for line in held(run.name)["metrics.jsonl"].splitlines()] == [1, 2]


def test_what_a_run_holds_is_named_without_locks_and_temporary_files(tmp_path):
    for name in ("config.json", ".evals.tmp", "evals.json.1234.tmp", ".nfs0001", "狗.png"):
        (tmp_path / name).touch()
    assert Workdir(tmp_path).names() == ["checkpoints", "config.json", "狗.png"]
    assert Workdir(tmp_path / "gone").names() == ["checkpoints"]
