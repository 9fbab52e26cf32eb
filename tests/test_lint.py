"""Ruff and mypy find nothing in the repository, and ruff's rules find what they are there for."""

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
print(a)
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
def run(pytestconfig):
    """Return a function that runs a checker from the root of the repository, with a cache that later sessions find."""

    def run(checker, *words, **options):
        command = [sys.executable, "-m", checker, *words, f"--cache-dir={pytestconfig.cache.mkdir(checker)}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, **options)

    return run


@pytest.mark.parametrize("words", [("ruff", "check", "--no-fix", "."), ("ruff", "format", "--check", "."), ("mypy",)])
def test_the_checkers_find_nothing(run, words):
    process = run(*words)
    assert process.returncode == 0, process.stdout + process.stderr


def test_no_code_of_the_package_may_run_what_it_reads(run):
    lines = [IMPORTS, *BAD.strip().splitlines()]
    place = ("--stdin-filename", str(ROOT / "filip_jax/data/new.py"))
    process = run("ruff", "check", "--no-fix", "--output-format=json", *place, "-", input="\n".join(lines))
    problems = [problem for problem in json.loads(process.stdout) if problem["code"].startswith(("S", "T"))]
    assert {lines[problem["location"]["row"] - 1] for problem in problems} == set(lines)
