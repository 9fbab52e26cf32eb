"""Launchers of clusters that are not here, against commands that stand for theirs."""

import configparser
import json
import os
import re
import subprocess
import sys
import textwrap
from io import BytesIO

import jsonschema
import pytest
import yaml
from conftest import ROOT
from dockerfile_parse import DockerfileParser

from filip_jax.cli import _parser
from filip_jax.cluster.watch import HUNG, PREEMPTED
from filip_jax.config import load_config

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
    if states[0] in ("NONE", "BROKEN"):
        sys.exit("NOT_FOUND: no such resource" if states[0] == "NONE" else "the network is down")
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
[ "$1" = train ] || exit 1
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
    (cloud / "states").write_text("BROKEN NONE PROVISIONING ACTIVE")
    done = pod(*WORDS, *TRAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (cloud / "calls").read_text().splitlines()
    kinds = [next(word for word in ("describe", "create", "scp", "ssh") if word in call.split()) for call in calls]
    assert kinds == ["describe", "describe", "create", "describe", "describe", "scp", "ssh", "ssh"]
    assert "--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite --spot" in calls[2]
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


def test_a_copy_that_fails_is_no_run(cloud):
    (cloud / "states").write_text("ACTIVE")
    gcloud = cloud / "bin/gcloud"
    gcloud.write_text(gcloud.read_text().replace('elif "scp" in words:', 'elif "scp" in words:\n    sys.exit(1)', 1))
    done = pod(*WORDS, *TRAIN)
    assert done.returncode == 1 and "five attempts in a row have failed" in done.stderr
    assert " ssh " not in (cloud / "calls").read_text()


def test_starts_that_save_nothing_end(cloud):
    (cloud / "states").write_text("ACTIVE")
    (cloud / "filip").write_text('#!/bin/bash\n[ "$1" = train ] || exit 1\necho start; exit 43\n')
    done = pod(*WORDS, *TRAIN)
    assert done.returncode == 43 and done.stdout.count("start\n") == 2 * 5, done.stdout


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


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A function that runs the script as Slurm would, with an srun that ends with a code; gives what came of it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("srun", "scontrol", "filip"):
        (tools / name).write_text(
            f'#!/bin/bash\necho "{name} $@ ($JAX_LOCAL_DEVICE_IDS)"\n[ {name} != srun ] || exit $CODE\n'
        )
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "VENV": "",
        "FILIP": "",
    }

    def run(code=0, tasks=2, nodes=2, gpus=0):
        numbers = {"SLURM_NTASKS": tasks, "SLURM_JOB_NUM_NODES": nodes, "SLURM_GPUS_ON_NODE": gpus, "CODE": code}
        environment = os.environ | job | {name: str(value) for name, value in numbers.items()}
        words = ["bash", str(ROOT / "launch/slurm.sbatch"), "--config=c.py", "--workdir=a run"]
        return subprocess.run(words, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    "code, requeued", [(0, False), (1, False), (2, False), (130, False), (42, True), (43, True), (137, True)]
)
def test_slurm_requeues_what_can_go_on(slurm, code, requeued):
    done = slurm(code)
    assert ("scontrol requeue 7" in done.stdout) == requeued and done.returncode == (0 if requeued else code), (
        done.stderr
    )
    assert "filip train --config=c.py --workdir=a run --distributed" in done.stdout


@pytest.mark.parametrize("file", ["jobset.yaml", "local.sh", "slurm.sbatch", "tpu_pod.sh"])
def test_launchers_know_the_exit_codes_of_runs_that_can_go_on(file):
    assert {str(PREEMPTED), str(HUNG)} <= set(re.findall(r"\b\d+\b", (ROOT / "launch" / file).read_text()))


@pytest.mark.parametrize("tasks, gpus, ids", [(2, 8, "0,1,2,3,4,5,6,7"), (16, 8, ""), (2, 0, ""), (2, 1, "0")])
def test_a_task_has_one_gpu_or_all_of_its_node(slurm, tasks, gpus, ids):
    assert f"--distributed ({ids})" in slurm(tasks=tasks, gpus=gpus).stdout


def test_slurm_gives_up_when_nothing_new_is_saved(slurm):
    codes = [slurm(43).returncode for _ in range(5)]
    assert codes == [0, 0, 0, 0, 43] and slurm(43).returncode == 0
    assert [slurm(42).returncode for _ in range(6)] == [0] * 6  # preemptions are no failures


def test_other_numbers_of_tasks_are_refused(slurm):
    done = slurm(tasks=8, gpus=8)
    assert done.returncode == 2 and "--ntasks-per-node must be 1 or the number of GPUs of a node, 8" in done.stderr


JOBSETS = list(yaml.safe_load_all((ROOT / "launch/jobset.yaml").read_text()))


@pytest.mark.parametrize("jobset", JOBSETS, ids=lambda jobset: jobset["metadata"]["name"])
def test_a_jobset_is_one_and_its_parts_agree(jobset):
    """The schema is that of jobset.x-k8s.io_jobsets.yaml (kubernetes-sigs/jobset 08dfbdf), without descriptions."""
    schema = json.loads((ROOT / "tests/schemas/jobset_v1alpha2.json").read_text())
    jsonschema.validate(jobset, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(jobset | {"spec": jobset["spec"] | {"replicas": 3}}, schema)
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["parallelism"] == spec["completions"] and spec["backoffLimit"] == 0
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [1, 2]}
    arguments, overrides = _parser().parse_known_args(container["args"])
    config = load_config(str(ROOT / arguments.config), overrides)
    assert arguments.distributed and arguments.workdir
    given = {each["name"]: each.get("value") for each in container.get("env", ())}
    if jobset["metadata"]["labels"]["pool"] == "gpu":
        name = f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}"
        assert given["JAX_COORDINATOR_ADDRESS"].partition(":")[0] == name and "JAX_PROCESS_ID" in given
        assert int(given["JAX_NUM_PROCESSES"]) == spec["parallelism"] == config["mesh"]["replica"]
    else:  # JAX hears from GKE who is who
        assert not given and config["mesh"]["replica"] == job["replicas"]


def test_the_image_copies_what_is_there_and_installs_extras_that_exist():
    """No daemon builds it here: its instructions, files and extras are compared with the repository's."""
    parser = DockerfileParser(fileobj=BytesIO((ROOT / "launch/Dockerfile").read_bytes()))
    steps = [(step["instruction"], step["value"]) for step in parser.structure if step["instruction"] != "COMMENT"]
    legal = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT"}
    assert steps[0][0] == "FROM" and {name for name, _ in steps} == legal
    copied = [name for step, value in steps if step == "COPY" for name in value.split()[:-1]]
    assert {"filip_jax", "configs", "setup.cfg"} <= set(copied) and all((ROOT / name).exists() for name in copied)
    assert json.loads(dict(steps)["ENTRYPOINT"]) == ["filip"] and dict(steps)["USER"] == "filip"
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {name for step, value in steps if step == "ARG" for name in value.partition("=")[2].split(",")} | {"tpu"}
    assert extras <= set(setup["options.extras_require"])
