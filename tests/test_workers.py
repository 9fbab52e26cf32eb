"""Processes that a command needs and that are gone: one line with the likely cause, exit code 43."""

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT
from deadly import broken, by_itself, by_signal, endless, out_of_memory, refuse
from pairs import write_webdataset
from runs import command, environment, logged

from filip_jax import workers
from filip_jax.cli import main
from filip_jax.cluster.roll_call import roll_call
from filip_jax.cluster.watch import HUNG, Watch
from filip_jax.data import pipeline
from filip_jax.data.pipeline import batches
from filip_jax.data.sources import make_source
from filip_jax.data.tokenizer import Tokenizer, make_tokenizer
from filip_jax.errors import ProcessLost, UserError
from filip_jax.train.feed import Feed

sys.path.insert(0, str(ROOT / "benchmarks"))
import chaos_workers

ENDINGS = {
    signal.SIGKILL: r"killed by SIGKILL: out of memory\? Then lower --workers",
    signal.SIGBUS: r"killed by SIGBUS: no room left in /dev/shm .*--shm-size.* Then lower --workers",
    signal.SIGSEGV: "killed by SIGSEGV: a crash in native code",
    signal.SIGABRT: "killed by SIGABRT: a crash in native code",
    signal.SIGTERM: r"killed by SIGTERM: who sent it\?",
}


@pytest.mark.parametrize("number", ENDINGS)
def test_a_worker_of_a_pool_ends_in_one_line(number):
    with pytest.raises(ProcessLost, match=f"a worker process was {ENDINGS[number]}") as caught:
        list(workers.run(by_signal, (int(number),), range(4), 2))
    assert "\n" not in str(caught.value)


def test_a_worker_that_leaves_by_itself():
    with pytest.raises(ProcessLost, match="a worker process ended with exit code 5; what it wrote stands above"):
        list(workers.run(by_itself, (5,), [0], 1))


@pytest.mark.parametrize("count", [0, 2])
def test_a_worker_that_cannot_begin_says_why(count, capfd):
    """As where the data was moved since the command began."""
    with pytest.raises(UserError, match="^it is gone$"):
        list(workers.run(refuse, ("it is gone",), range(4), count))
    assert "Traceback" not in capfd.readouterr().err


def test_a_defect_in_a_worker_keeps_its_traceback():
    with pytest.raises(KeyError) as caught:
        list(workers.run(broken, (), range(4), 2))
    assert "deadly.py" in str(caught.value.__cause__)


def kill_the_first_child(number=signal.SIGKILL):
    """Kills a process that this one starts, as soon as it is there."""

    def kill():
        while not (found := multiprocessing.active_children()):
            time.sleep(0.01)
        os.kill(found[0].pid, number)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_a_worker_that_is_killed_while_others_are_started():
    killer = kill_the_first_child()
    with pytest.raises(ProcessLost, match="a worker process was killed by SIGKILL"):
        list(workers.run(endless, (), range(8), 8))
    killer.join()
    assert not multiprocessing.active_children()


def test_a_process_that_indexes_tars(tmp_path, monkeypatch):
    source = write_webdataset(tmp_path, [range(4), range(4, 8)])
    with (
        monkeypatch.context() as patch,
        pytest.raises(ProcessLost, match=r"a worker process was killed by SIGKILL.*lower processes"),
    ):
        patch.setattr("filip_jax.data.tar_store._maker", out_of_memory)
        make_source(source | dict(processes=2))
    assert len(make_source(source | dict(processes=2))) == 8


def rows(workers, source=None):
    source = source or make_source(dict(name="emoji_scenes", split="train", seed=0, scenes=64))
    tokenizer = Tokenizer(make_tokenizer(source=source, name="sentencepiece", path="", vocab_size=300, captions=50))
    augment = dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False)
    return batches(
        source, tokenizer, batch_size=8, image_size=64, text_length=16, augment=augment, shuffle="global",
        block_size=8, max_bad_fraction=0.0, seed=0, workers=workers, threads=1, start=0, process_index=0, process_count=1,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=str)
def test_a_data_worker_is_lost_in_one_line_and_votes_for_saving(number):
    """Grain's own words are looked for: a version of it that says otherwise fails here."""
    killer, feed, watch = kill_the_first_child(number), Feed(rows(1)), Watch()
    try:
        decision = roll_call(watch, 0, feed.ready, lambda: False)
        killer.join()
        while not decision.lost:  # batches that were made before
            feed.take()
            decision = roll_call(watch, 0, feed.ready, lambda: False)
    finally:
        feed.close()
    assert decision.lost.startswith(f"a data worker was killed by {number.name}: ") and not decision.error
    assert ("lower data.workers" in decision.lost) == (number == signal.SIGKILL)


class Short:
    """Batches of which the first raises."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        return self

    def __next__(self):
        raise self.error

    def close(self):
        pass


SHORTAGES = [
    (MemoryError(), "failed .Cannot allocate memory.: out of memory"),
    (OSError(errno.ENOMEM, "no"), "failed .Cannot allocate memory.: out of memory"),
    (OSError(errno.ENOSPC, "no", "/psm_1234"), "failed .No space left on device.: no room left in /dev/shm"),
    (OSError(errno.ENOSPC, "no"), "failed .No space left on device.: no room left in /dev/shm"),
]


@pytest.mark.parametrize("error, said", SHORTAGES)
def test_what_a_worker_lacks_is_said(error, said):
    with pytest.raises(ProcessLost, match=said):
        next(pipeline.Batches(Short(error)))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), RuntimeError("exit"), UserError("bad"), KeyError(1)])
def test_other_errors_of_the_data_stay_what_they_are(error):
    with pytest.raises(type(error)):
        next(pipeline.Batches(Short(error)))


def test_a_feed_whose_thread_is_ended_says_so():
    feed = Feed(Short(SystemExit(3)))
    with pytest.raises(SystemExit):
        while not feed.ready(1.0):
            pass
    feed.close()


def test_a_watch_that_fails_ends_the_run(monkeypatch, capsys):
    """Without it nobody would hear a signal."""
    watch, left = Watch(), []
    watch.leave = lambda code, line: left.append((code, line))
    watch.look = lambda: 1 / 0
    watch.begin()
    watch._thread.join(10)
    watch.end()
    assert left == [
        (HUNG, "filip: the thread that watches the run failed: ZeroDivisionError: division by zero; exit 43")
    ]


@pytest.mark.slow
def test_a_run_without_its_worker_saves_and_goes_on(small_demo, tmp_path):
    """The short form of benchmarks/chaos_workers.py; its steps are more than are made while the test waits for its turn."""
    config = small_demo | {"total_steps": 200, "checkpoint": small_demo["checkpoint"] | {"every_steps": 1000}}
    config |= {"data": small_demo["data"] | {"workers": 1}}
    process = subprocess.Popen(
        command(tmp_path / "run", config),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    while not logged(tmp_path / "run"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(chaos_workers.children(process.pid, "--multiprocessing-fork")[0], signal.SIGKILL)
    output = process.communicate(timeout=600)[0]
    found = re.search(
        r"filip: a data worker was killed by SIGKILL: .*; step (\d+) of 200 is saved; .*goes on; exit 43", output
    )
    assert process.returncode == HUNG and found and "Traceback" not in output, output
    assert int(found[1]) == logged(tmp_path / "run")[-1][0] and (tmp_path / f"run/checkpoints/{found[1]}").is_dir()
    process = subprocess.run(
        command(tmp_path / "run", config), capture_output=True, text=True, env=environment(), timeout=600
    )
    assert process.returncode == 0 and f"resuming at step {found[1]} of 200" in process.stdout, process.stderr
    assert [step for step, _ in logged(tmp_path / "run")] == list(range(1, 201))


def test_the_command_says_that_it_can_be_started_again(monkeypatch, capsys, tmp_path):
    def gone(*arguments, **options):
        raise ProcessLost("a worker process was killed by SIGKILL: out of memory?")

    monkeypatch.setattr("filip_jax.tools.convert.make_source", gone)
    assert main(["data", "convert", "folder", f"path={tmp_path}", f"--output={tmp_path / 'out'}"]) == HUNG
    assert capsys.readouterr().err == (
        "filip: a worker process was killed by SIGKILL: out of memory?; the same command goes on; exit 43\n"
    )
