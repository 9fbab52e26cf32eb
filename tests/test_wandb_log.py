"""Weights & Biases: what it gets without a network, and that nothing it does stops or delays a run."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
import warnings

import pytest

from filip_jax import extras
from filip_jax.errors import UserError
from filip_jax.train import wandb_log
from filip_jax.train.wandb_log import WandbLog, check_project

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """Without a network and without the settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    import wandb

    wandb.teardown()  # which read the surroundings of the test before
    yield
    wandb.teardown()


@pytest.mark.parametrize("name", ["a/b", "a:b", "x" * 129])
def test_names_that_wandb_does_not_take(name):
    check_project("fine-name_1")
    with pytest.raises(UserError, match="wandb_project=.* must have at most 128 characters, and none of"):
        check_project(name)


def online(monkeypatch, port):
    """As if W&B were a server on this machine."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_log, "BEGIN_SECONDS", 1.0)
    monkeypatch.setattr(wandb_log, "END_SECONDS", 2.0)


def begin(workdir, **changes):
    return WandbLog(workdir, **{"project": "filip", "name": "run", "config": {"model": {"width": 32}}} | changes)


def records(workdir):
    """What `wandb sync` would send: (id, project, config, lines of history) of each start, oldest first."""
    from wandb.proto.wandb_internal_pb2 import Record

    starts = []
    for file in sorted(workdir.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        data, whole, run, history = file.read_bytes(), b"", None, []
        at = 7  # after the header: LevelDB's log format, blocks of 32 KiB
        while at < len(data):
            if 2**15 - at % 2**15 < 7:
                at += 2**15 - at % 2**15
                continue
            _, size, kind = struct.unpack("<IHB", data[at : at + 7])
            whole += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # whole, or the last piece
                record, whole = Record.FromString(whole), b""
                if record.HasField("run"):
                    run = record.run
                if record.HasField("history"):
                    items = {
                        item.key or ".".join(item.nested_key): json.loads(item.value_json)
                        for item in record.history.item
                    }
                    history.append({key: value for key, value in items.items() if not key.startswith("_")})
        config = {item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"}
        starts.append((run.run_id, run.project, config, history))
    return starts


@pytest.mark.smoke
def test_a_run_without_a_network_can_be_sent_later_under_one_id(tmp_path):
    log = begin(tmp_path)
    log.write(1, {"train/loss": 2.5, "train/lr": 1e-3})
    log.write(2, {"train/loss": 2.25})
    log.close()
    log.write(3, {"train/loss": 0.0})  # after the end: nothing
    assert not log.thread.is_alive()
    time.sleep(1.1)  # the folders of starts are named by the second
    again = begin(tmp_path)
    again.write(2, {"train/loss": 2.25})
    again.close()
    (first, second) = records(tmp_path)
    assert first[1:3] == ("filip", {"model": {"width": 32}})
    assert first[3] == [{"step": 1, "train/loss": 2.5, "train/lr": 1e-3}, {"step": 2, "train/loss": 2.25}]
    assert second[3] == [{"step": 2, "train/loss": 2.25}]
    assert first[0] == second[0] == (tmp_path / "wandb_id.txt").read_text().strip() and len(first[0]) == 8


def test_without_a_project_nothing_is_written(tmp_path):
    log = begin(tmp_path, project="")
    log.write(1, {"train/loss": 2.5})
    log.close()
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    def missing(module):
        raise ImportError(module)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(
        UserError,
        match="^wandb_project='filip' needs the package 'wandb', which is not installed: pip install 'wandb>=",
    ):
        begin(tmp_path)


def test_a_server_that_is_not_there_is_one_warning(tmp_path, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # and does not listen: connections are refused
        online(monkeypatch, listener.getsockname()[1])
        with pytest.warns(UserWarning, match="^wandb: CommError: .*; no further metrics are sent there") as caught:
            log = begin(tmp_path)
            log.write(1, {"train/loss": 2.5})
            log.thread.join(60)
            log.write(2, {"train/loss": 2.5})
            log.close()
    assert len(caught) == 1 and KEY not in str(caught[0].message)


def test_a_server_that_never_answers_delays_nothing(tmp_path, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # and accepts nobody
        online(monkeypatch, listener.getsockname()[1])
        monkeypatch.setattr(wandb_log, "BEGIN_SECONDS", 5.0)
        monkeypatch.setattr(wandb_log, "END_SECONDS", 0.5)
        log = begin(tmp_path)
        for step in range(1000):
            log.write(step, {"train/loss": 2.5})
        with pytest.warns(UserWarning, match="^wandb: it does not answer within 0.5 s"):
            log.close()
        assert log.thread.is_alive()  # which waits for the server alone
        monkeypatch.setattr(warnings, "warn", lambda *_, **__: None)  # the second, of the thread that is left over
    log.thread.join(60)


def test_no_key_is_no_question_at_the_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.warns(UserWarning, match="^wandb: UsageError: No API key configured"):
        log = begin(tmp_path)
        log.close()


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_any_error_of_wandb_is_one_warning(tmp_path, monkeypatch, broken):
    import wandb

    def fail(*_, **__):
        raise OSError(f"no space left for {KEY}")

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb if broken == "init" else wandb.Run, broken, fail)
    with pytest.warns(UserWarning, match="^wandb: OSError: no space left for …; no further") as caught:
        log = begin(tmp_path)
        log.write(1, {"train/loss": 2.5})
        log.write(2, {"train/loss": 2.5})
        log.close()
    assert len(caught) == 1


ENDS = """
import sys, time
from pathlib import Path
from filip_jax.train import wandb_log
wandb_log.BEGIN_SECONDS, wandb_log.END_SECONDS = 3.0, 1.0
log = wandb_log.WandbLog(Path(sys.argv[1]), project="filip", name="run", config={})
log.write(1, {"train/loss": 1.0})
log.close()
print("closed")
"""


def test_a_process_ends_though_the_server_never_answers(tmp_path, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        online(monkeypatch, listener.getsockname()[1])
        done = subprocess.run([sys.executable, "-c", ENDS, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "closed\n", done.stderr
    assert KEY not in done.stderr and "Traceback" not in done.stderr


def test_a_long_name_of_a_run_loses_its_beginning(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(WandbLog, "_send", lambda self, wandb, run: names.append(run["name"]))
    begin(tmp_path, name="/scratch/" + "狗" * 200 + "/\x1b\nrun_7").close()
    assert len(names[0]) == 128 and names[0].endswith(r"狗/\x1b run_7")
