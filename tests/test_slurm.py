"""launch/slurm.sbatch under the real scheduler: slurmctld and two nodes on this machine (Debian's packages, as root).

    bash launch/test.sh -m slurm

Debian's slurmd allows one for each host name, so each runs in a namespace of its own, with another name.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, free_port

sys.path.insert(0, str(ROOT / "benchmarks"))
import chaos

pytestmark = pytest.mark.slurm

CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname=n1 Port={ports[1]} CPUs=2
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname=n2 Port={ports[2]} CPUs=2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=120
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF
"""
SHORT = [
    "--config=configs/demo.py:quick",
    "--config.total_steps=40",
    "--config.batch_size=16",
    "--config.log_keys=True",
    "--config.log_every_steps=1",
    "--config.eval_every_steps=20",
    "--config.checkpoint.every_steps=15",
    "--config.tokenizer.captions=500",
    *(f"--config.model.{tower}.{size}" for tower in ("image", "text") for size in ("width=32", "depth=2", "heads=2")),
]


def run(*words, **options):
    return subprocess.run(words, check=True, capture_output=True, text=True, **options).stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Starts munged, slurmctld and two slurmd; gives their folder. SLURM_CONF is set meanwhile."""
    if os.geteuid():
        pytest.fail("Slurm's daemons need root")
    if not shutil.which("slurmctld") or not shutil.which("munged"):
        install = ["apt-get", "install", "--yes", "--no-install-recommends", "slurm-wlm", "munge"]
        if not shutil.which("apt-get") or subprocess.run(install, capture_output=True).returncode:
            pytest.fail("Slurm cannot be installed: " + " ".join(install))
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode:
        pytest.fail("this root may not make namespaces")
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    (folder / "state").mkdir()
    (folder / "key").write_bytes(os.urandom(256))
    (folder / "key").chmod(0o400)
    files = [f"--{name}={folder}/{name}" for name in ("key-file", "socket", "pid-file", "log-file", "seed-file")]
    files[:2] = [f"--key-file={folder}/key", f"--socket={folder}/munge.sock"]
    run("munged", "--force", *files)
    ports = [free_port() for _ in range(3)]
    (folder / "slurm.conf").write_text(CONF.format(host=socket.gethostname(), folder=folder, ports=ports))
    (folder / "hosts").write_text(Path("/etc/hosts").read_text() + "\n127.0.0.1 n1 n2\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        run("slurmctld", "-c")
        for name in ("n1", "n2"):
            (folder / f"spool_{name}").mkdir()
            begin = f"hostname {name} && mount --bind {folder}/hosts /etc/hosts && exec slurmd"
            run("unshare", "--uts", "--mount", "bash", "-c", begin)
        try:
            until(lambda: run("sinfo", "--noheader", "--format=%D %t", "--partition=low").strip() == "2 idle", 60)
            yield folder
        finally:
            subprocess.run(["scontrol", "shutdown"])
            os.kill(int((folder / "pid-file").read_text()), 15)


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, condition
        time.sleep(0.2)


class SlurmJob:
    """A run that is submitted."""

    def __init__(self, cluster, workdir, *words):
        self.log = workdir.with_suffix(".log")
        filip = Path(sys.prefix) / "bin/filip"
        environment = os.environ | {
            "FILIP": str(filip),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        }
        sbatch = ["sbatch", "--parsable", "--nodes=2", f"--output={self.log}", "launch/slurm.sbatch"]
        self.id = run(*sbatch, *SHORT, f"--workdir={workdir}", *words, cwd=ROOT, env=environment).strip()

    def state(self):
        """The scheduler's word for what the job does, and how often it was started again."""
        fields = dict(field.partition("=")[::2] for field in run("scontrol", "show", "job", self.id).split())
        return fields["JobState"], int(fields["Restarts"])

    def is_ending(self):
        """Whether a node still has a process of Slurm's that will say how the last start ended."""
        return (
            subprocess.run(["pgrep", "--full", rf"^slurmstepd: \[{self.id}\."], stdout=subprocess.DEVNULL).returncode
            == 0
        )

    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, seconds=400):
        until(lambda: self.state()[0] in ("COMPLETED", "FAILED", "CANCELLED"), seconds)
        return self.state()


@pytest.fixture(scope="module")
def whole(cluster, tmp_path_factory):
    """A run that nothing happens to."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    job = SlurmJob(cluster, workdir)
    assert job.wait() == ("COMPLETED", 0), job.said()
    assert "n1 " in job.said() and "n2 " in job.said() and "job " in job.said()  # the table of processes
    return workdir


def test_a_preempted_job_is_requeued_and_comes_to_the_same(whole, cluster, tmp_path):
    workdir = tmp_path / "run"
    job = SlurmJob(cluster, workdir)
    until(lambda: max(chaos.losses(workdir), default=0) >= 18, 300)
    other = run(
        "sbatch",
        "--parsable",
        "--partition=high",
        "--nodes=2",
        "--exclusive",
        f"--output={tmp_path}/other.log",
        "--wrap=srun hostname",
    ).strip()
    until(lambda: job.state() == ("PENDING", 1) and not job.is_ending(), 100)
    # Slurm lets it wait for two minutes, for the end of a batch script that it hears of late is taken for the next one's.
    run("scontrol", "update", f"jobid={job.id}", "StartTime=now")
    assert job.wait() == ("COMPLETED", 1), job.said()
    assert re.search("saving step|everything is saved", job.said()) and "slurm.sbatch: ended with 42" in job.said()
    assert "start 2: 2 tasks on n[1-2]" in job.said() and "resuming at step" in job.said()
    assert sorted((tmp_path / "other.log").read_text().split()) == ["n1", "n2"], other
    chaos.same(workdir, whole)


def test_a_cancelled_job_and_a_mistake_are_not_requeued(whole, cluster, tmp_path):
    workdir = tmp_path / "run"
    job = SlurmJob(cluster, workdir)
    until(lambda: max(chaos.losses(workdir), default=0) >= 2, 300)
    run("scancel", job.id)
    assert job.wait(60) == ("CANCELLED", 0), job.said()
    time.sleep(3)
    assert job.state() == ("CANCELLED", 0) and "is saved" in job.said()
    wrong = SlurmJob(cluster, tmp_path / "wrong", "--config.seed=-1")
    assert wrong.wait(100) == ("FAILED", 0) and "seed=-1 must be at least 0" in wrong.said()
    assert json.loads((workdir / "config.json").read_text())["seed"] == 0
