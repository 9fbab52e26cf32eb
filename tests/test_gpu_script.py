"""The script for a day with a GPU: all its parts, tiny, without the packages that such machines lack; parts that fail or hang."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from environment import QUICKLY

from filip_jax.config import load_config

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import gpu_steps

MISSING = (
    "grain",
    "ml_collections",
    "array_record",
    "tensorflow_datasets",
    "open_clip",
    "simplejpeg",
    "lancedb",
    "torch",
)
MAX_COPY_BYTES = 64 << 20  # of the project, where it is copied to such a machine


def test_the_configs_are_those_that_ship():
    for name, kept in json.loads(gpu_steps.CONFIGS.read_text()).items():
        form, _, variant = name.partition(":")
        config = json.loads(json.dumps(load_config(str(ROOT / f"configs/{form}.py:{variant}"))))
        assert kept == {key: config[key] for key in ("model", "objectives", "optimizer", "total_steps")}


def test_a_copy_of_the_project_is_small():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    if not any(files):
        pytest.skip("this is no git clone")
    assert sum((ROOT / file).lstat().st_size for file in files if (ROOT / file).is_file()) < MAX_COPY_BYTES


@pytest.mark.parametrize(
    "lines, limit, said",
    [
        (["print(row)", "import time", "time.sleep(60)"], 3.0, "stopped after its 3 s"),
        (["print(row)", "raise MemoryError('no room')"], 30.0, "MemoryError: no room"),
        (["print(row)", "import os", "os._exit(7)"], 30.0, "ended with 7"),
        (["print('no row')", "print(row)"], 30.0, None),
    ],
)
def test_a_part_that_hangs_or_fails_costs_its_own_rows_only(tmp_path, monkeypatch, lines, limit, said):
    row = {"part": "loss", "what": "x", "form": "y", "ms": 1.0}
    script = tmp_path / "part.py"
    script.write_text(
        "\n".join([f"row = {json.dumps(row)!r}", *lines[:1], "import sys", "sys.stdout.flush()", *lines[1:]])
    )
    monkeypatch.setattr(sys, "argv", [str(script)])
    rows = list(gpu.rows_of("loss", limit))
    assert rows[0] == row and [each["what"] for each in rows[1:]] == ([said] if said else [])


def test_an_interrupt_ends_the_part_that_runs(tmp_path, monkeypatch):
    script = tmp_path / "part.py"
    script.write_text("import os, time\nprint('{\"pid\": %d}' % os.getpid(), flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(sys, "argv", [str(script)])
    rows = gpu.rows_of("loss", 60.0)
    pid = next(rows)["pid"]
    with pytest.raises(KeyboardInterrupt):
        rows.throw(KeyboardInterrupt())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_output_that_cannot_be_written_is_one_line_before_any_part(tmp_path, monkeypatch):
    output = tmp_path / "none" / "gpu"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--parts=loss", "--commit=abc", f"--output={output}"])
    with pytest.raises(SystemExit, match="--output: .*No such file"):
        gpu.main()


def test_ratios_are_of_the_same_thing_only():
    rows = [
        {"part": "loss", "what": "a", "form": "pallas", "ms": 2.0},
        {"part": "loss", "what": "b", "form": "pallas", "ms": 1.0},
        {"part": "loss", "what": "a", "form": "xla", "ms": 3.0},
        {"part": "loss", "what": "a", "form": "torch"},
    ]
    assert gpu.ratios(rows).split("\n")[2:] == ["| loss | a | xla / pallas | 1.50 |"]


@pytest.mark.slow
@pytest.mark.long
def test_every_part_runs_without_what_is_missing_there(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({MISSING}))\n")
    variables = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": f"{hidden}:{ROOT}", "XLA_FLAGS": QUICKLY}
    words = ["bash", "benchmarks/gpu.sh", "--tiny", "--seconds=2000", "--commit=abc", f"--output={tmp_path / 'gpu'}"]
    done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    found = {name: [row for row in rows if row.get("part") == name and "form" in row] for name in gpu.PARTS}
    for name in gpu.PARTS:
        if "torch" in name:
            assert "No module named 'torch'" in found[name][0]["what"] or "torch halted" in found[name][0]["what"]
        else:
            assert found[name] and all(row["form"] != "-" for row in found[name]), (name, found[name])
    assert {row["unit"] for row in found["resume"]} == {"yes"}
    assert [row["form"] for row in found["step:B/32"] if row["what"] == "clip"] == ["xla", "xla, remat"]
    assert any(row.get("times") == "xla, remat / xla" and row["ratio"] > 0 for row in rows)
    assert "## " not in done.stdout and str(tmp_path) not in (tmp_path / "gpu.md").read_text().split("\n", 1)[1]
