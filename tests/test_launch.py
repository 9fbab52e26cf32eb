"""Launchers of clusters that are not here, against commands that stand for theirs."""

import os
import subprocess
import sys
import textwrap

import pytest
from conftest import ROOT

SCRIPT = ROOT / "launch/tpu_pod.sh"
WORDS = ["--name=filip", "--type=v5litepod-8", "--zone=here", "--spot"]
TRAIN = ["--", "--config=configs/filip.py:base", "--workdir=gs://bucket/a run"]

# Two workers, each with a home of its own; the queued resource goes through the states of a file, one at each look.
GCLOUD = """
import os, pathlib, subprocess, sys
here, words = pathlib.Path(os.environ["CLOUD"]), sys.argv[1:]
with (here / "calls").open("a") as file:
    file.write(" ".join(words) + "\\n")
options = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
if "describe" in words:
    states = (here / "states").read_text().split()
    (here / "states").write_text(" ".join(states[1:] or states))
    if states[0] == "NONE":
        sys.exit(1)
    print(states[0])
elif "scp" in words:
    for worker in ("w0", "w1"):
        (here / worker).mkdir(exist_ok=True)
        (here / worker / words[5].partition(":")[2]).write_bytes(pathlib.Path(words[4]).read_bytes())
elif "ssh" in words:
    started = [
        subprocess.Popen(["bash", "-c", options["command"]], cwd=here / worker, env=os.environ | {"HOME": str(here / worker)})
        for worker in ("w0", "w1")
    ]
    sys.exit(max(process.wait() for process in started))
"""
UV = """
mkdir -p .venv/bin && cp "$CLOUD/filip" .venv/bin/filip
"""
FILIP = """
echo "$@" >> "$HOME/starts"
[ "$(wc -l < "$HOME/starts")" -gt 2 ] || exit 42
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A folder with a gcloud, a pip that installs nothing and a filip that is preempted twice."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body, shell in (
        ("gcloud", GCLOUD, sys.executable), ("uv", UV, "/bin/bash"), ("python3", "", "/bin/bash"),
    ):  # fmt: skip
        (tools / name).write_text(f"#!{shell}\n{textwrap.dedent(body)}")
        (tools / name).chmod(0o755)
    (tmp_path / "filip").write_text(f"#!/bin/bash\n{FILIP}")
    (tmp_path / "filip").chmod(0o755)
    monkeypatch.setenv("CLOUD", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("PERIOD", "0.1")
    return tmp_path


def pod(*words):
    return subprocess.run(["bash", str(SCRIPT), *words], capture_output=True, text=True, timeout=100)


def test_a_pod_is_made_installed_and_trained_on_through_preemptions(cloud):
    (cloud / "states").write_text("NONE PROVISIONING ACTIVE")
    done = pod(*WORDS, *TRAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (cloud / "calls").read_text().splitlines()
    kinds = [next(word for word in ("describe", "create", "scp", "ssh") if word in call.split()) for call in calls]
    assert kinds == ["describe", "create", "describe", "describe", "scp", "ssh", "ssh"]
    assert "--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite --spot" in calls[1]
    for worker in ("w0", "w1"):
        starts = (cloud / worker / "starts").read_text().splitlines()
        assert starts == ["train --config=configs/filip.py:base --workdir=gs://bucket/a run --distributed"] * 3
    assert "filip is PROVISIONING" in done.stderr and "ended with 0; filip stays: gcloud" in done.stderr
    assert done.stdout.count("the run ended with 0") == 2


def test_a_lost_slice_is_made_anew(cloud):
    (cloud / "states").write_text("ACTIVE SUSPENDED SUSPENDED NONE ACTIVE")
    (cloud / "filip").write_text("#!/bin/bash\nexit 0\n")
    gcloud = cloud / "bin/gcloud"
    lost = f'if "ssh" in sys.argv and not (lost := pathlib.Path("{cloud}/lost")).exists():\n    lost.touch(); sys.exit(255)\n'
    gcloud.write_text(gcloud.read_text().replace("options = ", lost + "options = ", 1))
    done = pod(*WORDS, *TRAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (cloud / "calls").read_text()
    assert calls.index("delete filip") < calls.index("create filip") and "is lost (filip is SUSPENDED)" in done.stderr


def test_a_run_under_way_is_shown_and_another_is_refused(cloud):
    (cloud / "states").write_text("ACTIVE")
    (cloud / "filip").write_text('#!/bin/bash\necho begun; while [ ! -e "$CLOUD/go" ]; do sleep 0.1; done\n')
    with subprocess.Popen(["bash", str(SCRIPT), *WORDS, *TRAIN], stdout=subprocess.PIPE, text=True) as first:
        while "begun" not in first.stdout.readline():
            assert first.poll() is None
        first.kill()  # its connection is lost; the workers go on
    other = pod(*WORDS, "--", "--config=other.py")
    assert other.returncode == 1 and "another run is under way here: --config=configs/filip.py:base" in other.stdout
    (cloud / "go").touch()
    again = pod(*WORDS, *TRAIN)
    assert again.returncode == 0 and again.stdout.count("begun") >= 2, again.stdout + again.stderr


def test_a_mistake_ends_all(cloud):
    (cloud / "states").write_text("ACTIVE")
    (cloud / "filip").write_text("#!/bin/bash\nexit 2\n")
    assert pod(*WORDS, *TRAIN).returncode == 2


def test_a_dry_run_prints_every_command_and_runs_none(cloud):
    done = pod(*WORDS, "--dry-run", *TRAIN)
    assert done.returncode == 0 and not (cloud / "calls").exists()
    lines = done.stdout.splitlines()
    assert [line.split()[4] for line in lines if line.startswith("gcloud")] == ["create", "scp", "ssh", "ssh", "delete"]
    assert any("git\\ ls-files" in line for line in lines) and "a\\\\\\ run" in done.stdout


@pytest.mark.parametrize("words", [[], WORDS, ["--what", *WORDS, *TRAIN], [*WORDS[1:], *TRAIN]])
def test_words_that_can_not_be_show_the_usage(words):
    done = pod(*words)
    assert done.returncode == 2 and "bash launch/tpu_pod.sh --name=filip" in done.stderr
