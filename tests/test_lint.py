"""Ruff finds nothing in the repository, and its rules find what they are there for."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

BAD = """
import pickle
from marshal import loads
import dill as d
import subprocess
import yaml
from urllib.request import urlopen
import tarfile
eval("1")
exec(x)
breakpoint()
os.system("a")
os.popen("a")
os.execv("a", [])
os.spawnlp(a)
os.posix_spawn(a)
os.fork()
tarfile.open(fileobj=a, mode="r:*")
subprocess.run(a, shell=True)
subprocess.run(["ls"])
subprocess.Popen(words)
subprocess.getoutput(a)
importlib.import_module(m)
importlib.util.spec_from_file_location(m)
marshal.loads(a)
torch.load(a)
Image.open(a)
tokenizers.Tokenizer.from_str(a)
hashlib.md5(a)
"""
IMPORTS = "import hashlib, importlib.util, marshal, os, subprocess, tarfile, tokenizers, torch; from PIL import Image"


@pytest.fixture(scope="session")
def ruff(pytestconfig):
    """Return a function that runs ruff from the root of the repository, with a cache that the next session finds."""

    def run(*words, **options):
        folder = pytestconfig.cache.mkdir("ruff")
        command = [sys.executable, "-m", "ruff", *words, f"--cache-dir={folder}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)

    return run


@pytest.mark.parametrize("words", [("check", "--no-fix"), ("format", "--check")], ids=lambda words: words[0])
def test_ruff_finds_nothing(ruff, words):
    process = ruff(*words, ".")
    assert process.returncode == 0, process.stdout + process.stderr


def test_no_code_of_the_package_may_run_what_it_reads(ruff):
    lines = [IMPORTS, *BAD.strip().splitlines()]
    place = ("--stdin-filename", str(ROOT / "filip_jax/data/new.py"))
    process = ruff("check", "--no-fix", "--output-format=json", *place, "-", input="\n".join(lines))
    problems = [problem for problem in json.loads(process.stdout) if problem["code"].startswith(("S", "T"))]
    assert {lines[problem["location"]["row"] - 1] for problem in problems} == set(lines)
