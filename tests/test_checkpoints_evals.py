"""Evaluations over the checkpoints of runs: which, what is done before, tables, plots, and runs that still go on."""

import json
import re
import shutil
import threading
import time
import xml.etree.ElementTree as xml
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, make_devices_mesh
from hypothesis import given
from hypothesis import strategies as st

from filip_jax.cli import main
from filip_jax.config import load_evals
from filip_jax.errors import UserError
from filip_jax.evals import checkpoints
from filip_jax.evals.checkpoints import evaluate_runs
from filip_jax.evals.choice import Choice, best_step, find_workdirs, short_names
from filip_jax.evals.curves import HEIGHT, POINTS, WIDTH, chart, metric_plot, points
from filip_jax.evals.results import read_results
from filip_jax.evals.run import open_evals
from filip_jax.inference import Run
from filip_jax.train.loop import train

STEPS = [2, 4, 6]


@pytest.fixture(scope="module")
def trained(small_demo, tmp_path_factory):
    """A run with three checkpoints and the evaluations `val` and `unseen`."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    source = small_demo["evals"]["val"]["source"]
    evals = {
        "val": dict(kind="retrieval", source=source, examples=32),
        "seen": dict(kind="zero_shot", source=dict(name="emoji_scenes", split="seen_cells", seed=0, scenes=24), prompts=("a {}",)),
    }  # fmt: skip
    checkpoint = small_demo["checkpoint"] | {"every_steps": 2, "keep_last": 3}
    train(workdir, small_demo | {"total_steps": 6, "evals": evals, "checkpoint": checkpoint})
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "runs/a"))


@pytest.fixture
def evaluated(monkeypatch):
    """The names of the evaluations that were run, in order, with their steps."""
    calls, whole = [], checkpoints.run_evals

    def watched(model, evals, *more):
        calls.extend((model.step, each.name) for each in evals)
        return whole(model, evals, *more)

    monkeypatch.setattr(checkpoints, "run_evals", watched)
    return calls


def test_all_checkpoints_are_evaluated_once(run, evaluated, capsys):
    text = evaluate_runs(str(run), Choice(step="all"))
    assert evaluated == [(step, name) for step in STEPS for name in ("val", "seen")]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in lines[0].split("|")[2:-1]] == ["a, step 2", "a, step 4", "a, step 6", "chance"]
    assert (run / "evals.md").read_text().splitlines()[0] == lines[0]
    plot = xml.fromstring((run / "evals.svg").read_text())
    titles = [text.text for text in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert "val/image_to_text_R@1" in titles and "seen/image_to_text_top1" in titles and "chance" in titles
    before = (run / "evals.json").read_text()
    evaluated.clear()
    assert evaluate_runs(str(run), Choice(step="all")) == text and evaluated == []  # not even baselines change
    assert (run / "evals.json").read_text() == before and "val, seen: done before" in capsys.readouterr().out
    evaluate_runs(str(run), Choice(step="4", again=True))
    assert evaluated == [(4, "val"), (4, "seen")] and json.loads((run / "evals.json").read_text()) == json.loads(before)


def test_what_has_changed_is_evaluated_again(run, evaluated):
    section = json.loads((run / "config.json").read_text())["evals"]
    evaluate_runs(str(run), Choice(), section)
    evaluated.clear()
    section["seen"]["prompts"] = ["the {}"]
    evaluate_runs(str(run), Choice(), section)
    assert evaluated == [(6, "seen")]
    evaluated.clear()
    section["val"]["source"]["seed"] = 5
    evaluate_runs(str(run), Choice(), section)
    assert evaluated == [(6, "val")]
    evaluated.clear()
    config = json.loads((run / "config.json").read_text())
    config["model"]["pooling"] = "global"  # another function of the same parameters
    (run / "config.json").write_text(json.dumps(config))
    evaluate_runs(str(run), Choice(), section)
    assert evaluated == [(6, "val"), (6, "seen")]
    evaluated.clear()
    shutil.rmtree(run / "checkpoints/6")
    shutil.copytree(
        run / "checkpoints/4", run / "checkpoints/6"
    )  # another checkpoint of the same name is not that of before
    with pytest.raises(UserError, match="is the checkpoint of step 4, but not named so"):
        evaluate_runs(str(run), Choice(), section)
    results = read_results(run)
    del results["steps"]["6"]["val/loss"]
    assert set(results["tasks"]["6"]) == {"val", "seen"}
    assert {"checkpoint", "model", "task", "data", "class_names", "prompts"} == set(results["tasks"]["6"]["seen"])


def test_a_task_is_its_data_options_and_files(small_demo, tmp_path):
    section = {"seen": small_demo["evals"]["seen_cells"] | {"prompts": str(tmp_path / "prompts.txt")}}
    (tmp_path / "prompts.txt").write_text("a {}\n")
    first = open_evals(section)[0].task
    assert open_evals(section)[0].task == first
    (tmp_path / "prompts.txt").write_text("the {}\n")
    second = open_evals(section)[0].task
    assert first["task"] != second["task"] and first["prompts"] != second["prompts"] and first["data"] == second["data"]
    section["seen"]["neighbours"] = section["seen"]["neighbours"] | {"examples": 51}
    assert open_evals(section)[0].task["task"] != second["task"]


def test_what_the_training_has_evaluated_is_not_evaluated_again(small_demo, tmp_path, evaluated):
    evals = {"val": small_demo["evals"]["val"] | {"examples": 8}}
    evals["val"].pop("neighbours", None)
    train(tmp_path / "run", small_demo | {"total_steps": 4, "eval_every_steps": 2, "evals": evals})
    before = read_results(tmp_path / "run")["steps"]
    evaluate_runs(str(tmp_path / "run"), Choice(step="all"))
    assert evaluated == [] and read_results(tmp_path / "run")["steps"] == before and list(before) == ["2", "4"]


def test_several_runs_are_one_table_and_one_plot(run, evaluated):
    shutil.copytree(run, run.parent / "b")
    shutil.rmtree(run.parent / "b/checkpoints/2")
    text = evaluate_runs(str(run.parent / "*"), Choice(step="all"))
    assert len(evaluated) == 2 * 5
    header = (run.parent / "evals.md").read_text().splitlines()[0]
    assert [cell.strip() for cell in header.split("|")[2:-1]] == [
        "a, step 2", "a, step 4", "a, step 6", "b, step 4", "b, step 6", "chance",
    ]  # fmt: skip
    assert f"written: {run.parent}/evals.md, {run.parent}/evals.svg" in text


def test_the_best_step_by_a_metric(run, evaluated, capsys):
    with pytest.raises(UserError, match="has no number of any evaluation for the checkpoints that are there: evaluate"):
        evaluate_runs(str(run), Choice(step="best"))
    evaluate_runs(str(run), Choice(step="all"))
    losses = {step: metrics["val/loss"] for step, metrics in read_results(run)["steps"].items()}
    best = min(losses, key=losses.get)
    capsys.readouterr()
    text = evaluate_runs(str(run), Choice(step="best", metric="val/loss"))
    assert (
        f"a, step {best} " in text.splitlines()[0]
        and f"step {best} is the best of 3 by val/loss" in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="has no number of val/R@3 .* known are val/loss, val/image_to_text_R@1"):
        evaluate_runs(str(run), Choice(step="best", metric="val/R@3"))


def test_the_best_of_numbers():
    steps = {"1": {"a/R@1": 0.5, "a/loss": 2.0}, "2": {"a/R@1": float("nan")}, "3": {"a/R@1": 0.9}, "4": {"a/R@1": 0.9}}
    assert best_step("run", steps, [1, 2, 3, 4], "") == 3  # the first of equals
    assert best_step("run", steps, [1, 2], "") == 1 and best_step("run", steps, [1, 3], "a/loss") == 1
    with pytest.raises(UserError, match="no number of a/R@1"):
        best_step("run", steps, [2, 5], "a/R@1")


def test_a_damaged_checkpoint_keeps_nothing_from_the_others(run, evaluated, capsys):
    file = next((run / "checkpoints/4").rglob("manifest.ocdbt"))
    file.write_bytes(b"torn")
    with pytest.raises(UserError, match="the checkpoint of step 4 is damaged: .*manifest.ocdbt has 4 bytes"):
        evaluate_runs(str(run), Choice(step="all"))
    assert {step for step, _ in evaluated} == {2, 6} and "| a, step 6 " in capsys.readouterr().out
    assert set(read_results(run)["steps"]) == {"2", "6"}


def test_a_watch_evaluates_each_checkpoint_that_comes_and_ends_with_the_run(run, evaluated, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "POLL", 0.05)
    aside = run.parent.parent / "aside"
    (run / "checkpoints").rename(aside)
    (run / "checkpoints").mkdir()
    ended = []
    thread = threading.Thread(target=lambda: ended.append(evaluate_runs(str(run), Choice(watch=True))))
    thread.start()
    for step in STEPS:
        time.sleep(0.3)
        shutil.copytree(aside / str(step), run / "checkpoints" / f"{step}.tmp")
        (run / "checkpoints" / f"{step}.tmp").rename(run / "checkpoints" / str(step))  # whole or absent
    thread.join(60)
    assert [step for step, name in evaluated if name == "val"] == STEPS and "a, step 6" in ended[0]
    assert "waiting for a checkpoint: " in capsys.readouterr().out


def test_a_watch_from_the_newest_leaves_out_what_was_before_and_ends_when_nothing_comes(run, evaluated, monkeypatch):
    monkeypatch.setattr(checkpoints, "POLL", 0.01)
    shutil.rmtree(run / "checkpoints/6")
    evaluate_runs(str(run), Choice(watch=True, idle_minutes=1e-3))
    assert {step for step, _ in evaluated} == {4}
    evaluate_runs(str(run), Choice(watch=True, step="all", idle_minutes=1e-3))
    assert {step for step, _ in evaluated} == {2, 4}
    assert evaluate_runs(str(run.parent / "none*"), Choice(watch=True, idle_minutes=1e-3)) == ""


MISTAKES = {
    ("--step=best", "--watch"): "--step=best: --watch evaluates new checkpoints: take latest or all",
    ("--metric=val/loss",): "--metric=val/loss is for --step=best, not latest",
    ("--idle_minutes=3",): "--idle_minutes is for --watch",
    ("--watch", "--idle_minutes=-1"): "--idle_minutes=-1.0 must be at least 0 and finite",
    ("--batch_size=0",): "--batch_size=0 must be at least 1",
    ("--step=5",): "has no checkpoint of step 5; it has steps 2, 4, 6",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_mistakes_are_one_line(trained, words, capsys):
    assert main(["eval", f"--workdir={trained}", *words]) == 2
    error = capsys.readouterr().err
    assert MISTAKES[words] in error and error.count("\n") == 1


@pytest.mark.parametrize("pooling", ["tokens", "global"])
def test_devices_and_batch_sizes_change_no_number(run, small_demo, tmp_path, pooling):
    """The same checkpoint on 1, 2 and 8 devices, in batches of 8 to 64."""
    config = json.loads((run / "config.json").read_text())
    config["model"]["pooling"] = pooling
    (run / "config.json").write_text(json.dumps(config))
    evals = open_evals({
        "val": dict(kind="retrieval", source=small_demo["evals"]["val"]["source"], examples=30, captions=0),
        "seen": small_demo["evals"]["seen_cells"] | {"prompts": ("a {}", "the {} here")},
        "pointing": small_demo["evals"]["pointing"],
    })  # fmt: skip
    found = []
    for devices, batch_size in ((1, 64), (2, 16), (8, 8)):
        model = Run(run, make_devices_mesh(1, devices), batch_size).load()
        of_each = [each.kind.evaluate(model, each.source, tmp_path, **each.options) for each in evals]
        found.append({f"{each.name}/{k}": v for each, numbers in zip(evals, of_each) for k, v in numbers.items()})
    for other in found[1:]:
        assert other.pop("val/loss") == pytest.approx(found[0]["val/loss"], rel=1e-5)
        assert other == {key: value for key, value in found[0].items() if key != "val/loss"}
    assert len(found[0]) > 20


def test_workdirs_and_their_names(run):
    shutil.copytree(run, run.parent / "deep/a")
    (run.parent / "no_run").mkdir()
    assert find_workdirs(str(run.parent / "*")) == [str(run)] and find_workdirs(f"{run}/") == [str(run)]
    both = find_workdirs(str(run.parent / "*")) + find_workdirs(str(run.parent / "deep/*"))
    assert short_names(both) == ["runs/a", "deep/a"] and short_names(both[:1]) == ["a"]
    assert short_names(["gs://b/x/run", "gs://b/y/run"]) == ["x/run", "y/run"]


@pytest.mark.parametrize("jobs", ["--run", None])
def test_an_eval_sweep_evaluates_each_point(run, jobs, capsys):
    file = run.parent.parent / "prompts.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "  source = dict(name='emoji_scenes', split='seen_cells', seed=0, scenes=8)\n"
        "  return ConfigDict(dict(evals=dict(seen=dict(kind='zero_shot', source=source, prompts='p.txt'))))\n"
        "def sweep():\n"
        "  for n in (1, 2):\n"
        f"    yield {{'evals.seen.prompts': f'{run.parent}/{{n}}.txt'}}\n"
    )
    for n in (1, 2):
        (run.parent / f"{n}.txt").write_text("a {}\n" * n)
    words = ["sweep", f"--config={file}", f"--workdir={run.parent}/*", *filter(None, [jobs])]
    assert main(words) == 0
    output, error = capsys.readouterr()
    names = [
        name
        for name in load_evals(str(file))
        if re.fullmatch(r"seen prompts=.{91}_[0-9a-f]{8}|seen prompts=.{1,92}", name)
    ]
    assert len(set(names)) == 2 and not any("/" in name for name in names)
    if jobs:
        assert all(f"| {name}/image_to_text_top1 " in output for name in names)
        assert {name.split("/")[0] for name in read_results(run)["steps"]["6"]} == set(names)
    else:
        assert output.startswith("filip eval '--workdir=") and all(name in error for name in names)


def test_the_shipped_sweep_of_prompts(run, capsys):
    assert main(["sweep", f"--config={ROOT}/configs/eval/prompts.py", f"--workdir={run}", "--run"]) == 0
    found = read_results(run)["steps"]["6"]
    names = dict.fromkeys(name.split("/")[0] for name in found)
    assert list(names)[1] == "emoji prompts=('a {}',)" and len(names) == 5
    assert "| emoji prompts=('a {}',)/image_to_text_top1 " in capsys.readouterr().out


def test_charts_are_whole_svg_whatever_the_numbers():
    lines = {"one": [(1, 0.5)], "none": [], "long & <odd>": [(x, x**2) for x in range(5000)]}
    root = xml.fromstring(chart("a < b", lines, {"chance": 0.1, "odd": float("nan")}))
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "one", "long & <odd>", "chance"} <= set(texts) and "odd" not in texts
    longest = max((path.get("d") for path in root.iter("{http://www.w3.org/2000/svg}path")), key=len)
    assert longest.count("L") < POINTS
    assert metric_plot({"run": {"1": {"val/loss": 1.0}}}, {}, {"val"}) == ""
    assert points({"3": {"m": 1.0}, "1": {"m": 2}, "2": {"m": float("inf")}, "4": {}}, "m") == [(1.0, 2.0), (3.0, 1.0)]


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(-1e12, 1e12)), min_size=1, max_size=20))
def test_every_point_of_a_chart_lies_inside_of_it(line):
    root = xml.fromstring(chart("x", {"line": sorted(line)}))
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(dots) == len(line) and all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in dots)


def test_eight_devices_are_used(trained):
    run = checkpoints._Session(str(trained), Choice(), None)
    run._find_runs()
    (found,) = run.runs.values()
    assert found.embedder.mesh.size == jax.local_device_count() == 8 and found.embedder.batch_size == 512
    assert np.isfinite(found.load().logit_scale)
