"""The wheel and the source distribution: what they hold, the demo from a wheel without a clone, tests from the source."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow
IGNORED = [".git", ".*_cache", *(line.strip("/") for line in (ROOT / ".gitignore").read_text().split())]
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which names a clone, perhaps
SCRIPTS = {"env.sh", "jobset.yaml", "local.sh", "slurm.sbatch"}  # those that need no clone


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository; building writes into it."""
    folder = tmp_path_factory.mktemp("copy") / "filip_jax"
    return shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*IGNORED))


@pytest.fixture(scope="module")
def built(copy, tmp_path_factory):
    """The folder with the source distribution and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    words = [sys.executable, "-m", "build", "--no-isolation", f"--outdir={folder}", "."]
    done = subprocess.run(words, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def source(built, tmp_path_factory):
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(next(built.glob("*.tar.gz"))) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A fresh environment with the wheel; what the wheel requires it borrows from this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    words = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*words, next(built.glob("*.whl"))], check=True, env=CLEAN)
    (site,) = folder.glob("lib/python*/site-packages")
    # Python does not follow .pth files there, so an editable install of a clone does not count.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def test_the_source_distribution_is_the_repository(copy, source):
    tracked = {name for name in files_of(copy) if not name.startswith("filip_jax.egg-info")}
    assert tracked <= files_of(source), tracked - files_of(source)


def test_the_wheel_has_configs_and_launch_scripts_and_no_tests(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        for file in (ROOT / "configs").rglob("*.py"):
            assert wheel.read(f"filip_jax/{file.relative_to(ROOT)}") == file.read_bytes()
    assert all(name.startswith("filip_jax/") for name in names)
    assert {Path(name).name for name in names if name.startswith("filip_jax/launch/")} == SCRIPTS
    package = {name for name in files_of(ROOT / "filip_jax") if name.endswith(".py")}
    assert {f"filip_jax/{name}" for name in package} <= set(names)


def test_a_tree_without_links_gives_the_same_wheel_or_says_what_lacks(copy, built, tmp_path):
    """As pip unpacks a zip, or git on Windows: in place of a link is a file with its text."""
    tree = shutil.copytree(
        copy, tmp_path / "a tree", ignore=shutil.ignore_patterns("build", "*.egg-info"), symlinks=True
    )
    for name in ("configs", "launch"):
        (tree / "filip_jax" / name).unlink()
        (tree / "filip_jax" / name).write_text(f"../{name}")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*build, f"--wheel-dir={tmp_path}", tree], check=True)
    names = [set(zipfile.ZipFile(next(folder.glob("*.whl"))).namelist()) for folder in (built, tmp_path)]
    assert names[0] == names[1]
    editable = f"import setuptools.build_meta as backend; backend.build_editable({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", editable], cwd=tree, capture_output=True, text=True)
    assert done.returncode and "filip_jax/configs is no link to ../configs" in done.stderr


@pytest.mark.long
def test_a_wheel_runs_the_quick_demo_without_a_clone(installed, tmp_path):
    def filip(*words):
        words = [installed / "bin/filip", *words]
        done = subprocess.run(words, cwd=tmp_path, env=CLEAN, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert re.match(rf"filip_jax \S+ from {re.escape(str(installed))}/\S+/filip_jax \(Python ", filip("--version"))
    listed = filip("configs")
    assert "| demo " in listed and "| eval/retrieval " in listed
    scripts = [Path(path) for path in re.findall(r"^\| (/\S+)", listed, re.MULTILINE)]
    assert {path.name for path in scripts} == SCRIPTS and all(installed in path.parents for path in scripts)
    assert "step 60/60" in filip("train", "--config=demo:quick", "--workdir=runs/quick")
    rows = dict(re.findall(r"^\| (\S+) +\| (.*) \|$", filip("eval", "--workdir=runs/quick"), re.MULTILINE))
    ours, chance, _ = (float(cell.split()[0]) for cell in rows["val/image_to_text_R@1"].split("|"))
    assert ours > 4 * chance > 0


def test_the_tests_run_from_the_source_distribution(source, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(source)}
    pytest_here = [sys.executable, "-m", "pytest", "-qq", f"--basetemp={tmp_path / 'run'}"]
    for words in (["--collect-only"], ["tests/test_structure.py", "tests/test_package.py"]):
        done = subprocess.run([*pytest_here, *words], cwd=source, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr
