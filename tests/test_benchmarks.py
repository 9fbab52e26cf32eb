"""The benchmarks run, small; and programs for TPUs compile where libtpu is installed."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT


def benchmark(*arguments):
    command = [sys.executable, "benchmarks/loss.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_loss_beside_the_definition():
    small = ("--batch=16", "--patches=4", "--text_length=12", "--dim=8", "--lengths=3-9", "--repeat=1")
    output = benchmark(*small, "--forms=xla,reference")
    rows = re.findall(r"^\| (xla|reference) +\|.* ([\d.]+) \|$", output, re.MULTILINE)
    assert [form for form, _ in rows] == ["xla", "reference"]
    assert float(rows[0][1]) == pytest.approx(float(rows[1][1]), rel=1e-5)
    assert "benchmarks/loss.py" in output and "jax" in output


@pytest.mark.parametrize("topology", ["v5e:2x2"])
def test_the_loss_compiles_for_tpus(topology):
    pytest.importorskip("libtpu")
    output = benchmark(f"--topology={topology}", "--batch=128", "--text_length=16", "--forms=auto", "--dtype=bfloat16")
    assert "4 chips, global batch 512, 49 x 16 x 256 bfloat16" in output
    rows = re.findall(r"^\| +(\d+) \| +([\d.]+) \| +([\d.]+) \|", output, re.MULTILINE)
    assert [int(length) for length, *_ in rows] == [8, 16]
    assert all(0 < float(ideal) < float(estimated) for _, ideal, estimated in rows)
