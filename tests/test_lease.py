"""A workdir has one run at a time."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
from conftest import until

from filip_jax.errors import UserError
from filip_jax.train import lease
from filip_jax.train.lease import Lease

HOLD = """
import sys, time
from filip_jax.train.lease import Lease
Lease(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_a_living_run_of_this_host_is_refused_and_a_dead_one_gives_way(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"another run writes to {tmp_path}: process {other.pid} on .*running.json"):
            Lease(str(tmp_path))
        other.kill()
    mine = Lease(str(tmp_path))
    assert json.loads((tmp_path / "running.json").read_text())["pid"] == os.getpid()
    mine.close()
    assert not (tmp_path / "running.json").exists()


def test_the_clock_of_a_killed_start_is_known_to_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    killed = Lease(str(tmp_path))
    killed.clock = lambda: 1234.5
    file = tmp_path / "running.json"
    assert until(lambda: json.loads(file.read_text())["seconds"] == 1234.5)
    with killed.turn:
        killed.ended.set()  # as a SIGKILL does: the file stays
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": 2**22 + 1}))
    second = Lease(str(tmp_path))
    assert second.reached == 1234.5 and second.clock() >= 1234.5
    second.close()
    assert Lease(str(tmp_path)).reached == 0.0


@pytest.mark.parametrize("alive", [False, True])
def test_a_run_of_another_host_is_watched_for_a_while(tmp_path, monkeypatch, alive):
    monkeypatch.setattr(lease, "BEAT", 0.4)
    file = tmp_path / "running.json"
    other = {"host": "elsewhere", "pid": 1, "began": "5", "beat": 7}
    file.write_text(json.dumps(other))
    if not alive:
        Lease(str(tmp_path)).close()
        return
    sleep = lease.time.sleep

    def meanwhile(seconds):
        file.write_text(json.dumps(other | {"beat": 8}))
        sleep(seconds)

    monkeypatch.setattr(lease.time, "sleep", meanwhile)
    with pytest.raises(UserError, match="process 1 on elsewhere"):
        Lease(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"host": 3, "pid": "x"}'])
def test_a_file_that_nobody_understands_holds_nothing(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lease, "BEAT", 0.2)
    (tmp_path / "running.json").write_text(content)
    Lease(str(tmp_path)).close()


def test_a_lease_stays_alive_and_is_written_again_where_somebody_removes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    held, file = Lease(str(tmp_path)), tmp_path / "running.json"
    first = json.loads(file.read_text())["beat"]
    assert until(lambda: json.loads(file.read_text())["beat"] > first)
    file.unlink()
    assert until(file.exists)
    held.close()
    assert not file.exists()


def moved(folder):
    folder.rename(folder.with_name("elsewhere"))


def made_anew(folder):
    moved(folder)
    folder.mkdir()


def taken(folder):
    made_anew(folder)
    Lease(str(folder)).ended.set()  # a run of somebody else's, in the same process


def copied_in_its_place(folder):
    """As to a larger disk, with the lease; what this process has opened stays behind."""
    moved(folder)
    shutil.copytree(folder.with_name("elsewhere"), folder)


@pytest.mark.parametrize("happens", [moved, shutil.rmtree, made_anew, taken, copied_in_its_place])
def test_a_workdir_that_is_gone_is_noticed_at_once_and_by_the_clock(tmp_path, monkeypatch, happens):
    folder, said = tmp_path / "run", []
    folder.mkdir()
    held = Lease(str(folder))
    held.check()
    happens(folder)
    with pytest.raises(UserError, match=f"{folder} was moved or removed|another run began to write to {folder}"):
        held.check()
    left = sorted(folder.rglob("*")) if folder.exists() else None
    monkeypatch.setattr(lease, "BEAT", 0.01)
    held.lost = said.append
    held._run()
    held.close()
    assert len(said) == 1 and str(folder) in said[0]
    assert (sorted(folder.rglob("*")) if folder.exists() else None) == left  # nothing is made anew, or taken away


@pytest.mark.parametrize("differs", ["namespace", "boot", "host"])
@pytest.mark.parametrize("alive", [False, True])
def test_a_process_of_another_container_is_watched_though_its_id_is_free_here(tmp_path, monkeypatch, differs, alive):
    """Containers have the same host name and the same process ids: only its beats say that a run lives."""
    monkeypatch.setattr(lease, "BEAT", 0.4)
    other, file = Lease(str(tmp_path)), tmp_path / "running.json"
    other.ended.set()
    written = other.me | {differs: "another"}
    file.write_text(json.dumps(written))
    if not alive:
        mine = Lease(str(tmp_path))
        assert mine.me["token"] != written["token"]
        return mine.close()
    sleep = lease.time.sleep

    def meanwhile(seconds):
        file.write_text(json.dumps(written | {"beat": 8}))
        sleep(seconds)

    monkeypatch.setattr(lease.time, "sleep", meanwhile)
    with pytest.raises(UserError, match="another run writes"):
        Lease(str(tmp_path))


def test_a_copy_of_a_folder_in_which_a_run_goes_on_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(lease.Lease, "_is_alive", lambda *_: True)
    (tmp_path / "run").mkdir()
    first = Lease(str(tmp_path / "run"))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="another run writes"):  # the folder itself, under another name
        Lease(str(tmp_path / "moved"))
    Lease(str(tmp_path / "copy")).close()
    first.close()


@pytest.mark.parametrize("began", [None, "0"])
def test_a_process_is_watched_where_nobody_says_when_it_began(tmp_path, monkeypatch, began):
    """As in a namespace without a /proc of its own."""
    monkeypatch.setattr(lease, "BEAT", 0.4)
    other, file = Lease(str(tmp_path)), tmp_path / "running.json"
    other.ended.set()
    written = other.me | {"pid": os.getppid(), "began": began}
    file.write_text(json.dumps(written))
    monkeypatch.setattr(lease, "_began", lambda pid: None)
    sleep = lease.time.sleep
    monkeypatch.setattr(lease.time, "sleep", lambda s: (file.write_text(json.dumps(written | {"beat": 8})), sleep(s)))
    with pytest.raises(UserError, match="another run writes"):
        Lease(str(tmp_path))


def test_a_restart_on_the_same_host_does_not_wait(tmp_path, monkeypatch):
    killed = Lease(str(tmp_path))
    killed.ended.set()
    (tmp_path / "running.json").write_text(json.dumps(killed.me | {"pid": 2**22 + 1}))
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: pytest.fail("it waits"))
    Lease(str(tmp_path)).close()


def test_of_runs_that_begin_in_the_same_moment_one_writes(tmp_path):
    """Sixteen at once: one has the workdir, the others say so."""
    begin, held, refused = threading.Barrier(16), [], []

    def start():
        begin.wait()
        try:
            held.append(Lease(str(tmp_path)))
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(16)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease.Lease, "_is_alive", lambda *_: True)  # they are of one process, which sees itself as ended
        [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert len(held) == 1 and len(refused) == 15
    assert json.loads((tmp_path / "running.json").read_text())["token"] == held[0].me["token"]
    held[0].close()


def test_a_beat_that_waited_while_the_lease_was_given_back_writes_nothing(tmp_path):
    held, file = Lease(str(tmp_path)), tmp_path / "running.json"
    beat = threading.Thread(target=held.check)
    with held.turn:
        beat.start()
        held.ended.set()
        file.unlink()
    beat.join()
    assert not file.exists()


def test_a_lease_of_another_run_is_not_taken_away(tmp_path):
    mine, file = Lease(str(tmp_path)), tmp_path / "running.json"
    file.write_text('{"host": "elsewhere", "pid": 1, "began": "5", "beat": 0}')
    mine.close()
    assert file.exists()


def test_a_run_that_began_in_the_same_moment_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    said, held = [], Lease(str(tmp_path))
    held.lost = said.append
    other = json.dumps({"host": "elsewhere", "pid": 1, "began": "5", "beat": 0})
    with held.turn:
        (tmp_path / "running.json").write_text(other)
    assert until(lambda: said)
    assert len(said) == 1 and "process 1 on elsewhere; this one ends" in said[0]
    assert (tmp_path / "running.json").read_text() == other  # the other's is left alone
