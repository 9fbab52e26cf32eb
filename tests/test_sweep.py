"""Several runs of one config: what each is called, what is skipped, and the table of all."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import unicodedata

import pytest
from conftest import small
from environment import QUICKLY
from test_plain import is_plain

from filip_jax.cli import main
from filip_jax.errors import UserError
from filip_jax.tools import sweep
from filip_jax.tools.sweep import open_sweep

STEPS = 3


@pytest.fixture(scope="module")
def file(small_demo, tmp_path_factory):
    """A config of three steps and its sweep of two points."""
    config = small(small_demo, total_steps=STEPS, eval_every_steps=2, batch_size=16)
    config["optimizer"]["warmup_steps"] = 1
    path = tmp_path_factory.mktemp("sweep") / "config.py"
    path.write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({config!r})\n"
        "def sweep():\n  for rate in (0.001, 0.002):\n    yield {'optimizer.peak_learning_rate': rate, 'seed': 0}\n"
    )
    return path


@pytest.mark.slow
def test_points_are_commands_then_runs_then_a_table_and_failures_are_named(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", QUICKLY)
    names = ["peak_learning_rate=0.001,seed=0", "peak_learning_rate=0.002,seed=0"]
    words = ["sweep", f"--config={file}", f"--workdir={tmp_path}", "--config.log_every_steps=1"]
    assert main(words) == 0
    output, said = capsys.readouterr()
    listed = [shlex.split(line) for line in output.splitlines()]
    assert [line[:2] for line in listed] == [["filip", "train"]] * 2 and "0 of 2 runs are finished" in said
    assert listed[0][2:] == [
        f"--config={file}", f"--workdir={tmp_path}/{names[0]}", "--config.log_every_steps=1",
        "--config.optimizer.peak_learning_rate=0.001", "--config.seed=0",
    ]  # fmt: skip
    (tmp_path / names[0]).write_text("in the way")
    assert main([*words, "--run", "--jobs=2"]) == 2
    said = capsys.readouterr().err
    assert "1 of 2 runs are finished" in said and said.count(" ...") == 2
    assert f"error: {names[0]} ended with 2: filip: error: --workdir=" in said
    (tmp_path / names[0]).unlink()
    assert main(words) == 0
    output, said = capsys.readouterr()
    assert shlex.split(output) == listed[0] and "1 of 2 runs are finished" in said
    assert main([*words, "--run"]) == 0
    output, said = capsys.readouterr()
    assert "2 of 2 runs are finished" in said and said.count(" ...") == 1
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert [row["point"] for row in rows] == names and [row["step"] for row in rows] == [str(STEPS)] * 2
    for row, rate in zip(rows, ("0.001", "0.002")):
        results = json.loads((tmp_path / row["point"] / "evals.json").read_text())["steps"][str(STEPS)]
        assert row["optimizer.peak_learning_rate"] == rate
        assert float(row["val/image_to_text_R@1"]) == results["val/image_to_text_R@1"]
    assert (tmp_path / "sweep.md").read_text() == output and f"| {names[1]} |" in output.splitlines()[0]
    assert main([*words, "--run", "--config.log_every_steps=2"]) == 0  # nothing is left to do
    assert main([*words, "--config.batch_size=8"]) == 2
    assert "holds a run of another config (batch_size: 16 -> 8)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_is_handed_on_and_the_same_command_goes_on(file, tmp_path):
    words = [
        sys.executable,
        "-m",
        "filip_jax",
        "sweep",
        f"--config={file}",
        f"--workdir={tmp_path}",
        "--run",
        "--jobs=2",
    ]
    words += ["--config.total_steps=100000", "--config.eval_every_steps=0", "--config.log_every_steps=1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | {"XLA_FLAGS": QUICKLY}) as sweep:
        folders = [tmp_path / f"peak_learning_rate={rate},seed=0" for rate in ("0.001", "0.002")]
        while not all(
            (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size for folder in folders
        ):
            assert sweep.poll() is None, sweep.stderr.read()
            time.sleep(0.1)
        sweep.send_signal(signal.SIGTERM)
        try:
            assert sweep.wait(300) == 130
        finally:
            sweep.kill()
    for folder in folders:
        assert "is saved; the same command goes on; exit 42" in folder.with_name(f"{folder.name}.log").read_text()


@pytest.mark.parametrize(
    "body, message",
    [
        ("", "has no function sweep"),
        ("def sweep():\n  return []", "gives no point"),
        ("def sweep():\n  yield 3", r"yields 3, which is not \{config key: value\}"),
        ("def sweep():\n  yield {'sede': 1}", "unknown config key sede: no sede; did you mean seed"),
        ("def sweep():\n  yield {'seed': 1}\n  yield {'seed': 1}", "gives seed=1 twice"),
        ("def sweep():\n  yield 1 / 0", "line 4: ZeroDivisionError"),
    ],
)
def test_a_sweep_that_can_not_be(body, message, tmp_path):
    config = tmp_path / "config.py"
    begin = "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict(dict(seed=0))\n"
    config.write_text(begin + body)
    with pytest.raises(UserError, match=message):
        open_sweep(str(config), str(tmp_path))


def test_names_are_folders_whatever_the_values(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(): return ConfigDict(dict(a=dict(path='', n=1), b=dict(path='')))\n"
        "def sweep():\n  for path in ('../x', '/x', 'y' * 300, 'é'):\n    yield {'a.path': path, 'b.path': 'z', 'a.n': 2}\n"
    )
    names = [point.name for point in open_sweep(str(config), str(tmp_path))]
    assert len(set(names)) == 4 and all("/" not in name and len(name) <= 100 and "n=2" in name for name in names[:2])
    assert names[3] == "a.path=é,b.path=z,n=2"


VALUES = (
    "狗" * 90, "狗" * 89 + "猫", "A", "a", "a.log", "Ａ", "é", "e\u0301", "", " ", ".", "..", "/", "-x", "x\ny", "\x1b[2J", "\u202ex", "|`<b>", "'", '"', "$(exit 1)", "`exit 1`",
    "; exit 1", "*", "~", "a b", "\\", "\t", "👨‍👩‍👧", "\udcff", "%s", "!x", "#", "=", "y" * 300, "con", "a:b", "a\\nb",
)  # fmt: skip


@pytest.fixture
def odd(tmp_path):
    """Points without values, and with each of VALUES as a text."""
    config = tmp_path / "it's a config.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(): return ConfigDict(dict(t='', n=0, total_steps=9, eval_every_steps=0))\n"
        f"def sweep():\n  yield {{}}\n  yield from ({{'t': value}} for value in {VALUES!a})\n"
    )
    return open_sweep(str(config), str(tmp_path / "runs $(exit 1)\n狗"), ["--config.n=1"])


def test_each_point_has_a_folder_of_its_own_on_any_disk(odd, tmp_path):
    names = [point.name for point in odd]
    assert names[0] == "unchanged" and len(names) == len(VALUES) + 1 and all(map(is_plain, names))
    folders = [unicodedata.normalize("NFD", name).casefold() for each in names for name in (each, f"{each}.log")]
    assert len(set(folders)) == len(folders) and all(len(name.encode()) <= 150 for name in folders)
    for name in names:
        assert set(name) - set('/\\:*?"<>|\n ') == set(name) and name not in (".", "..") and not name.startswith("-")
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.log").touch()
    assert "t=A" in names and "t=é" in names and any(name.startswith("t=狗狗") for name in names)


def test_printed_commands_can_be_pasted(odd, tmp_path):
    """Into bash, in one line each, where each `filip` receives the words of its point."""
    printed = sweep.commands(odd)
    assert all(map(is_plain, printed.split("\n"))) and printed.count("\n") == len(VALUES)
    script = f"filip() {{ printf '%s\\0' \"$@\" END; }}\nset -e\n{printed}\n"
    said = subprocess.run(
        ["bash", "-c", script.encode("utf-8", "surrogateescape")], capture_output=True, check=True
    ).stdout
    words = said.decode("utf-8", "surrogateescape").split("\0END\0")[:-1]
    assert [line.split("\0") for line in words] == [list(point.words) for point in odd]
    for point, value in zip(odd[1:], VALUES):
        assert point.config["t"] == value and point.words[-1] == f"--config.t={value}"


@pytest.mark.parametrize("value", ["a\0b", "half \ud800"])
def test_what_can_stand_in_no_command_is_refused(value, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict(dict(t=''))\n"
        f"def sweep():\n  yield {{'t': {value!a}}}\n"
    )
    with pytest.raises(UserError, match="NUL and halves of characters stand in no command"):
        open_sweep(str(config), str(tmp_path))


@pytest.mark.parametrize("given, legal", [(None, ["0", "1"]), ("3,5", ["3", "5"])])
def test_jobs_have_a_gpu_each_and_no_more_than_there_are(monkeypatch, given, legal):
    devices = [sweep.Path(f"/dev/nvidia{n}") for n in (0, 1)]
    monkeypatch.setattr(sweep.Path, "glob", lambda self, pattern: devices if "nvidia" in pattern else [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweep._gpus() == []  # JAX_PLATFORMS=cpu
    monkeypatch.delenv("JAX_PLATFORMS")
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert sweep._gpus() == legal
    with pytest.raises(UserError, match="--jobs=3 must be at most 2, the number of GPUs"):
        sweep.run_points([], 3)
    assert sweep.run_points([], 2) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert sweep._gpus() == []


def test_tpus_are_one_processes(monkeypatch):
    monkeypatch.setattr(sweep.Path, "glob", lambda self, pattern: ["/dev/accel0"] if "accel" in pattern else [])
    assert sweep.run_points([], 2) == []  # JAX_PLATFORMS=cpu
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(UserError, match="--jobs=2: on TPUs one process takes all chips"):
        sweep.run_points([], 2)


def test_a_bucket_is_no_place_for_a_sweep(file):
    with pytest.raises(UserError, match="--workdir=gs://bucket/x: a sweep gathers its runs in a local folder"):
        open_sweep(str(file), "gs://bucket/x")
