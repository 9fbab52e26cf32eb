"""A run that goes on on other devices, or in more or fewer processes, is the same run."""

import json
import shutil
import subprocess

import pytest
from conftest import free_port, make_devices_mesh, slow, small
from runs import command, environment, logged

from filip_jax.checkpoint import Checkpoints
from filip_jax.train.loop import train

ELASTIC = {
    "optimizer.eps": 1e-2,
    "total_steps": 20,
    "checkpoint.every_steps": 8,
    "checkpoint.keep_last": 9,
    "log_keys": True,
    "eval_every_steps": 0,
}


@pytest.fixture(scope="module")
def elastic(small_demo, tmp_path_factory):
    """A run of 20 steps on eight devices, saved at 8, 16 and 20, and its config."""
    config = small(small_demo, **ELASTIC)
    workdir = tmp_path_factory.mktemp("elastic") / "whole"
    train(workdir, config)
    return workdir, config


@pytest.mark.parametrize("replica, data", [slow(1, 1), slow(2, 4), (1, 8)])
def test_a_run_goes_on_alike_on_any_devices(elastic, tmp_path, monkeypatch, replica, data):
    """From step 8 of eight devices: the same samples, the same losses to 1e-5, bit for bit on eight again."""
    whole, config = elastic
    shutil.copytree(whole, tmp_path / "run")
    for step in Checkpoints(whole).steps():
        if step > 8:
            shutil.rmtree(tmp_path / f"run/checkpoints/{step}")
    monkeypatch.setattr("filip_jax.train.setup.make_mesh", lambda **_: make_devices_mesh(replica, data))
    train(tmp_path / "run", config | {"mesh": {"replica": replica, "data": data}})
    assert (tmp_path / "run/keys/process_0.jsonl").read_text() == (whole / "keys/process_0.jsonl").read_text()
    got, expected = (dict(logged(run)) for run in (tmp_path / "run", whole))
    assert list(got) == list(range(1, 21))
    assert list(got.values()) == pytest.approx(list(expected.values()), rel=1e-5)
    assert (got == expected) == (data == 8)


@pytest.mark.slow
def test_two_processes_go_on_alike_and_one_after_them(elastic, tmp_path):
    """From step 8 of one process by two, from their step 16 by one."""
    whole, config = elastic
    run = tmp_path / "run"
    shutil.copytree(whole, run)

    def forget(beyond):
        for step in Checkpoints(run).steps():
            if step > beyond:
                shutil.rmtree(run / f"checkpoints/{step}")

    def check():
        rows = {}
        for line in "".join(file.read_text() for file in sorted((run / "keys").glob("*.jsonl"))).splitlines():
            entry = json.loads(line)
            rows.setdefault(entry["step"], {})[entry["first_row"]] = entry["keys"]
        found = {step: [key for first in sorted(parts) for key in parts[first]] for step, parts in rows.items()}
        lines = map(json.loads, (whole / "keys/process_0.jsonl").read_text().splitlines())
        assert found == {line["step"]: line["keys"] for line in lines}
        got, expected = (dict(logged(each)) for each in (run, whole))
        assert list(got) == list(range(1, 21))
        assert list(got.values()) == pytest.approx(list(expected.values()), rel=1e-5)

    forget(8)
    cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    words = command(run, config, "--distributed")
    environments = [environment(4, JAX_PROCESS_ID=str(index), **cluster) for index in range(2)]
    processes = [subprocess.Popen(words, env=each, **pipes) for each in environments]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0] and "resuming at step 8" in outputs[0], outputs
    check()
    forget(16)
    train(run, config)
    check()
