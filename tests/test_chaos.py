"""The short form of benchmarks/chaos.py: two processes of two devices, broken for real (disks: tests/test_readme.py)."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import chaos
import chaos_folders

pytestmark = pytest.mark.slow

OPTIONS = ("--config.total_steps=30", "--config.optimizer.warmup_steps=3")
# Where no process is lost: other work on the machine may keep one from its turn for longer than a short limit.
PATIENT = (*OPTIONS, "--config.processes.heartbeat_seconds=100", "--config.processes.start_seconds=300")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """One cache of programs for all started processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setattr(chaos, "DEVICES", 2)
        patch.setattr(chaos, "PATIENCE", 900)
        patch.setattr(chaos, "SLACK", 100)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happens to."""
    return chaos.uninterrupted(tmp_path_factory.mktemp("chaos") / "whole", options=PATIENT)


@pytest.mark.long
def test_a_kill_and_the_run_comes_to_the_same(whole, tmp_path):
    outcome = chaos.kills(tmp_path, whole, 1, random.Random(1), OPTIONS)
    kinds = ("at a random moment", "during a save", "finished before the kill")
    assert sum(count for said, count in outcome.items() if said.startswith(kinds)) == 1


@pytest.mark.long
def test_a_stop_in_a_phase_is_saved_and_the_run_comes_to_the_same(whole, tmp_path):
    """In three of the five; in the others the same loop of the trainer looks for a stop."""
    outcome = chaos.stops(tmp_path, whole, 1, random.Random(0), PATIENT, ("compile", "evaluation", "save"))
    assert all(said.startswith("1 of 1 saved, exit 42") for said in outcome.values()), outcome


def test_a_frozen_process_is_named(tmp_path):
    outcome = chaos.freezes(tmp_path, OPTIONS, which=(1,))
    assert re.fullmatch(r"named after [\d.]+ s, exit 43", outcome["process 1 stopped"])


@pytest.mark.long
def test_whatever_happens_to_the_newest_checkpoint_the_one_before_is_taken(whole, tmp_path):
    outcome = chaos.corruption(tmp_path, whole, 1, random.Random(0), PATIENT)
    assert outcome["files deleted"] > 10


def test_a_workdir_that_leads_elsewhere_or_goes_away(tmp_path):
    """The short form of benchmarks/chaos_folders.py."""
    outcome = chaos_folders.moved(tmp_path, OPTIONS, ("moved", "config.json removed"))
    assert outcome["moved"].startswith("exit 2: …/moved was moved or removed"), outcome
    assert outcome["config.json removed"].startswith("exit 0, usable"), outcome


def test_two_containers_on_one_workdir(tmp_path):
    outcome = chaos_folders.twins(tmp_path, OPTIONS)
    assert outcome["two containers"].startswith(("the second, exit 2: another run writes to", "not tried")), outcome


@pytest.mark.long
def test_local_runs_are_restarted_and_give_up(whole, tmp_path):
    """launch/local.sh: killed once, preempted once by a signal to the script, then left to end."""
    workdir = tmp_path / "run"
    command = ["bash", str(ROOT / "launch/local.sh"), "-n", "2", "-d", f"{chaos.DEVICES}", f"--config={chaos.CONFIG}"]
    command += [f"--workdir={workdir}", *OPTIONS]
    environment = os.environ | {"FILIP": f"{sys.prefix}/bin/filip", "XLA_FLAGS": chaos.QUICKLY, "GRACE": "20"}

    def start():
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def reach(step, process):
        while max(chaos.losses(workdir), default=0) < step:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)

    first = start()
    reach(11, first)
    while not chaos.saved_steps(workdir):  # steps go on while they are saved
        time.sleep(0.02)
    listed = subprocess.run(["pgrep", "-f", f"filip train .*--workdir={workdir} "], capture_output=True, text=True)
    os.kill(int(listed.stdout.split()[0]), signal.SIGKILL)
    reach(22, first)
    first.send_signal(signal.SIGTERM)
    output = first.communicate(timeout=chaos.PATIENCE)[0]
    assert first.returncode == 42 and output.count("local.sh: starting again (restart 1 since checkpoint 10)") == 1, (
        output
    )
    second = start()
    output = second.communicate(timeout=chaos.PATIENCE)[0]
    assert second.returncode == 0 and "local.sh: the processes ended with 0 0" in output, output
    chaos.same(workdir, whole)
    wrong = subprocess.run(
        [*command, "--config.seed=-1"], env=environment, capture_output=True, text=True, timeout=chaos.PATIENCE
    )
    assert wrong.returncode == 2 and wrong.stdout.count("seed=-1 must be at least 0") == 2


@pytest.mark.parametrize("options", [["-n", "0"], ["-d", "2"], ["-x", "1"], ["-n"]])
def test_local_says_what_it_takes(options):
    done = subprocess.run(["bash", str(ROOT / "launch/local.sh"), *options], capture_output=True, text=True)
    assert done.returncode == 2 and "-n" in done.stderr
