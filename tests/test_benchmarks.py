"""The benchmarks run, small; programs for TPUs and GPUs compile where their compilers are installed."""

import gzip
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from conftest import ROOT
from environment import QUICKLY

from filip_jax.losses import pallas_gpu


def benchmark(*arguments, script="loss.py"):
    command = [sys.executable, f"benchmarks/{script}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": QUICKLY}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_loss_beside_the_definition():
    small = ("--batch=16", "--patches=4", "--text_length=12", "--dim=8", "--lengths=3-9", "--repeat=1")
    output = benchmark(*small, "--forms=xla,reference")
    rows = re.findall(r"^\| (xla|reference) +\|.* ([\d.]+) \| +([\d.]+) \|$", output, re.MULTILINE)
    assert [form for form, *_ in rows] == ["xla", "reference"]
    assert [float(x) for x in rows[0][1:]] == pytest.approx([float(x) for x in rows[1][1:]], rel=1e-4)
    assert "benchmarks/loss.py" in output and "jax" in output


@pytest.mark.slow
def test_a_form_that_can_not_run_is_named():
    output = benchmark("--largest", "--batch=8", "--forms=pallas")
    assert "implementation='pallas' on cpu: its kernels multiply bfloat16" in output
    assert output.splitlines()[-1] == "pallas: largest batch below 8"


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    ["--topology=v5e:3x3", "--topology=v9:1", "--topology=h200:0", "--forms=foo", "--lengths=25-10", "--repeat=0"],
)
def test_what_can_not_be_measured_is_said_in_one_line(wrong):
    if "v5e" in wrong:
        pytest.importorskip("libtpu")
    done = subprocess.run([sys.executable, "benchmarks/loss.py", wrong], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and wrong.split("=")[0] in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_loss_compiles_for_tpus():
    pytest.importorskip("libtpu")
    output = benchmark("--topology=v5e:2x2", "--batch=128", "--text_length=16", "--forms=auto", "--dtype=bfloat16")
    assert "4 chips, global batch 512, 49 x 16 x 256 bfloat16" in output
    rows = re.findall(r"^\| +(\d+) \| +([\d.]+) \| +([\d.]+) \|", output, re.MULTILINE)
    assert [int(length) for length, *_ in rows] == [8, 16]
    assert all(0 < float(ideal) < float(estimated) for _, ideal, estimated in rows)


@pytest.mark.slow
def test_the_kernels_compile_for_gpus():
    pytest.importorskip("jax_cuda13_plugin")
    if refused := pallas_gpu.why_not(49, 77, 256, jnp.dtype(jnp.bfloat16)):
        pytest.skip(refused)
    output = benchmark("--topology=h200:2", "--batch=128", "--text_length=40", "--forms=pallas", "--dtype=bfloat16")
    assert "2 chips, global batch 256, 49 x 40 x 256 bfloat16" in output
    assert "calls of our kernels in the program: 15" in output  # 8, 16, 24, 32, 40 tokens; three kernels


@pytest.mark.slow
@pytest.mark.long
def test_a_step_beside_clips():
    small = [
        f"--config.model.{tower}.{key}" for tower in ("image", "text") for key in ("width=32", "depth=1", "heads=2")
    ]
    smaller = ["--config.data.image_size=64", "--config.data.text_length=8", "--config.tokenizer.vocab_size=99"]
    few = ["--batch=8", "--repeat=1", "--patch_sizes=32", "--forms=clip,filip_exact,open_clip", *small, *smaller]
    output = benchmark(*few, script="train_step.py")
    rows = dict(re.findall(r"^\| (\w+) \| 32 \| (.*) \|$", output, re.MULTILINE))
    for form in ("clip", "filip_exact"):
        ms, of_threads, rate, ratio, measured, makers, _ = rows[form].split(" | ")
        assert float(rate.replace(",", "")) == pytest.approx(8e3 / float(ms), rel=0.1) and makers == "-"
        assert float(of_threads) > 0 and float(ratio.rstrip("x")) > 0 and 0 < float(measured.rstrip(" %")) < 100
    if importlib.util.find_spec("torch") is None:  # said, as one line, and no number made up
        assert rows["open_clip"] == "ModuleNotFoundError: No module named 'torch'"
    assert "measured" in output.splitlines()[-1]
    table = benchmark(*few, "--trace=clip", script="train_step.py")
    shares = [float(share) for share in re.findall(r"^\| .* \| ([\d.]+) % \|$", table, re.MULTILINE)]
    assert len(shares) > 5 and shares == sorted(shares, reverse=True) and sum(shares) <= 101


def test_a_loop_is_not_counted_with_its_body(tmp_path):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from trace_table import table

    def event(name, start, duration):
        return {"ph": "X", "pid": 1, "tid": 2, "ts": start, "dur": duration, "name": name, "args": {"hlo_op": name}}

    events = [event("while.1", 0, 100), event("dot.1", 10, 30), event("dot.2", 50, 40), event("add.3", 100, 50)]
    (tmp_path / "a.trace.json.gz").write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) % \|$", table(tmp_path, 1), re.MULTILINE)
    assert rows == [("dot", "0.07", "46.7"), ("add", "0.05", "33.3"), ("while", "0.03", "20.0")]


@pytest.mark.slow
def test_what_the_trainer_adds_to_its_program():
    output = benchmark("--steps=200", script="dispatch.py")
    trainer, program, added = map(
        float, re.search(r"^\| ([\d.]+) ms \| ([\d.]+) ms \| (-?[\d.]+) ms \|$", output, re.MULTILINE).groups()
    )
    assert trainer > 0 < program and added == pytest.approx(trainer - program, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("reduce", ["", "neighbors:2", "select"])
def test_the_disk_that_a_search_needs_is_said(reduce, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import search

    a = SimpleNamespace(
        items=1024, tokens=36, dim=64, queries=1, dtype="float16", reduce=reduce, engines="exact", peers="ours"
    )
    search.write(a, tmp_path / "index", a.dtype)
    for _, dtype in search.forms(a):
        search.write(a, tmp_path / dtype, dtype)
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.arrow"))
    assert search.disk(a) == pytest.approx(written, rel=0.2)


@pytest.mark.slow
def test_search_beside_its_peers():
    small = ("--items=1100", "--tokens=9", "--dim=16", "--queries=2", "--rounds=1", "--engines=exact,pooled")
    output = benchmark(*small, script="search.py")
    assert re.search(r"^needs about [\d.]+ GB .* and [\d.]+ hours$", output, re.MULTILINE)
    rows = re.findall(
        r"^\| (exact|pooled) \| (\w+) \| .* \| ([\d.]+) \| ([\d.]+) \| [\d.]+ \| [\d.]+ \| [\d.]+ \|$",
        output,
        re.MULTILINE,
    )
    assert rows[0] == ("exact", "all", "1.000", "1.000") and len(rows) == 3
    assert re.search(r"^\| ours \| float32 \| \d+ \| \d+ \| [\d.]+ \| 1.000 \|$", output, re.MULTILINE)
    assert re.search(r"^\| numpy \| float32 \| \d+ \| \d+ \| [\d.]+ \| 1.000 \|$", output, re.MULTILINE)
    output = benchmark(*small, "--scoring", "--items=4096", script="search.py")
    assert len(re.findall(r"^\| (?:float32|float16|int8) \| [\d.]+ \| \d+ \| .* \|$", output, re.MULTILINE)) == 6


@pytest.mark.slow
def test_a_table_of_plans():
    pytest.importorskip("libtpu")
    output = benchmark("loss", "--pairs=8", "--shapes=2x2", script="plans.py")
    assert re.search(
        r"^\| v5e:2x2 \| 32 \| [\d.]+ \| `python benchmarks/loss.py --topology=v5e:2x2 ", output, re.MULTILINE
    )


@pytest.mark.slow
def test_the_cleaning_rules():
    output = benchmark("--records=300", "--repeat=1", script="filter.py")
    speeds = re.findall(r"^\| (all|size, aspect) +\| +([\d.]+) \| +([\d.]+) \|$", output, re.MULTILINE)
    assert [name for name, *_ in speeds] == ["size, aspect", "all"]
    scores = re.findall(
        r"^\| (en kept at 0.12|names), alt_texts\w* +\| +\d+ \| +([\d.]+) \| +([\d.]+) \|", output, re.MULTILINE
    )
    assert len(scores) == 4 and all(0.5 < float(x) <= 1 for _, *pair in scores for x in pair)


@pytest.mark.slow
def test_the_input_beside_its_peers():
    output = benchmark("--sides=300", "--forms=ours,grain", "--batches=1", "--rounds=1", script="input.py")
    rows = dict(re.findall(r"^\| 300 \| (\w+) \| (.*) \|$", output, re.MULTILINE))
    assert float(re.search(r"([\d.]+) dB", rows["ours"])[1]) > 35
    assert re.fullmatch(r"\d+ \| \d+ \| [\d.]+x \|", rows["grain"].strip())


@pytest.mark.slow
def test_the_inputs_memory():
    output = benchmark("--memory=640", script="input.py")
    assert len(re.findall(r"^\d+: \d+ MB$", output, re.MULTILINE)) > 5


@pytest.mark.slow
def test_many_shards():
    output = benchmark("--shards=3", "--records=5", "--reads=20", script="shards.py")
    assert "15 in 3 shards" in output and len(re.findall(r"\d/s +\|$", output, re.MULTILINE)) == 6


@pytest.mark.slow
def test_pictures_for_evaluations():
    output = benchmark("--images=6", "--repeat=1", "--busy=8", script="evals_input.py")
    rows = re.findall(r"^\| (on a disk|30 ms away) \|.*?\|((?: \d+ \|){5})$", output, re.MULTILINE)
    assert len(rows) == 4 and all(int(number) > 0 for _, row in rows for number in re.findall(r"\d+", row))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb")
def test_cleaning_a_package_of_drawings(tmp_path):
    drawings = tmp_path / "package/usr/share/openclipart/svg"
    drawings.mkdir(parents=True), (tmp_path / "package/DEBIAN").mkdir()
    (tmp_path / "package/DEBIAN/control").write_text(
        "Package: drawings\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: drawings\n"
    )
    for name, title in (("a", "a red balloon over the sea"), ("b", "untitled"), ("broken", "")):
        (drawings / f"{name}.svg").write_text(DRAWING.format(title=title) if title else "<svg")
    subprocess.run(
        ["dpkg-deb", "--build", tmp_path / "package", tmp_path / "drawings.deb"], check=True, capture_output=True
    )
    output = benchmark(
        str(tmp_path / "drawings.deb"), f"--folder={tmp_path / 'out'}", "--workers=1", script="openclipart.py"
    )
    assert "3 drawings, 1 of them unusable" in output
    assert re.search(r"\| meaningless: placeholder +\| +0 \| .* \| +1 \|", output) and re.search(
        r"\| kept +\| +2 \| .* \| +3 \|", output
    )


DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" width="300" height="220"><metadata>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns="http://web.resource.org/cc/"
xmlns:dc="http://purl.org/dc/elements/1.1/"><Work><dc:title>{title}</dc:title>
<dc:subject><rdf:Bag><rdf:li>toys in the air</rdf:li></rdf:Bag></dc:subject></Work></rdf:RDF></metadata>
<rect width="200" height="100" fill="red"/></svg>"""
