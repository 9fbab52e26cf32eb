"""Evaluations over the checkpoints of runs: which, what is done before, tables, plots, and runs that still go on."""

import json
import os
import re
import shutil
import threading
import xml.etree.ElementTree as xml
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, make_devices_mesh, until, whole_tier
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from filip_jax.cli import main
from filip_jax.config import load_evals
from filip_jax.errors import UserError
from filip_jax.evals import checkpoints, watch
from filip_jax.evals.checkpoints import evaluate_runs
from filip_jax.evals.choice import Choice, best_step, find_workdirs, short_names
from filip_jax.evals.curves import (
    HEIGHT,
    NUMBERS,
    POINTS,
    WIDE,
    WIDTH,
    Bar,
    bar_chart,
    chart,
    metric_charts,
    metric_plot,
    page,
    points,
)
from filip_jax.evals.results import comparable, read_results
from filip_jax.evals.run import open_evals, tasks_of
from filip_jax.inference import Run
from filip_jax.names import make_name
from filip_jax.saved_config import read_config, save_config
from filip_jax.train.loop import train

STEPS = [4, 8, 12]
SVG = "{http://www.w3.org/2000/svg}"  # before the names of its elements


@pytest.fixture(scope="module")
def trained(finished, finished_config, tmp_path_factory):
    """A run with three checkpoints, of which the evaluations `val` and `seen` are asked for and none is made."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    names = ("evals.json", "pictures", "clip_benchmark")
    shutil.copytree(finished[0], workdir, ignore=shutil.ignore_patterns(*names))
    source = finished_config["evals"]["val"]["source"]
    evals = {
        "val": dict(kind="retrieval", source=source, examples=32),
        "seen": dict(kind="zero_shot", source=dict(name="emoji_scenes", split="seen_cells", seed=0, scenes=24), prompts=("a {}",)),
    }  # fmt: skip
    save_config(workdir, finished_config | {"evals": evals})
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
    assert [cell.strip() for cell in lines[0].split("|")[2:-1]] == ["a, step 4", "a, step 8", "a, step 12", "chance"]
    assert (run / "evals.md").read_text().splitlines()[0] == lines[0]
    plot = xml.fromstring((run / "evals.svg").read_text())
    titles = [text.text for text in plot.iter(f"{SVG}text")]
    assert "image_to_text_R@1, val" in titles and "image_to_text_top1, seen" in titles and "chance" in titles
    before = (run / "evals.json").read_text()
    evaluated.clear()
    assert evaluate_runs(str(run), Choice(step="all")) == text and evaluated == []  # not even baselines change
    assert (run / "evals.json").read_text() == before and "val, seen: done before" in capsys.readouterr().out
    evaluate_runs(str(run), Choice(step="8", again=True))
    assert evaluated == [(8, "val"), (8, "seen")] and json.loads((run / "evals.json").read_text()) == json.loads(before)


@pytest.mark.slow
def test_what_has_changed_is_evaluated_again(run, evaluated):
    section = json.loads((run / "config.json").read_text())["evals"]
    evaluate_runs(str(run), Choice(), section)
    evaluated.clear()
    section["seen"]["prompts"] = ["the {}"]
    evaluate_runs(str(run), Choice(), section)
    assert evaluated == [(12, "seen")]
    evaluated.clear()
    section["val"]["source"]["seed"] = 5
    evaluate_runs(str(run), Choice(), section)
    assert evaluated == [(12, "val")]
    evaluated.clear()
    config = json.loads((run / "config.json").read_text())
    config["model"]["eos_in_similarity"] = False  # another function of the same parameters
    (run / "config.json").write_text(json.dumps(config))
    evaluate_runs(str(run), Choice(), section)
    assert evaluated == [(12, "val"), (12, "seen")]
    results = read_results(run)["tasks"]["12"]
    assert set(results) == {"val", "seen"}
    assert set(results["seen"]) == {"checkpoint", "model", "task", "data", "class_names", "prompts"}


@pytest.mark.slow
def test_another_checkpoint_of_the_same_step_is_evaluated_again(run, small_demo, tmp_path, evaluated):
    evaluate_runs(str(run), Choice())
    before = read_results(run)["steps"]["12"]
    config = read_config(run)
    shutil.rmtree(run / "checkpoints")
    train(tmp_path / "other", config | {"seed": 1})
    shutil.copytree(tmp_path / "other/checkpoints", run / "checkpoints")
    evaluated.clear()
    evaluate_runs(str(run), Choice())
    assert evaluated == [(12, "val"), (12, "seen")] and read_results(run)["steps"]["12"] != before


def pictures_of_classes(folder):
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), colour).save(folder / name / "a.png")
    return {
        "kind": "zero_shot",
        "source": {"name": "class_folder", "path": str(folder)},
        "prompts": str(folder / "p.txt"),
    }


def test_a_task_is_its_data_options_and_files(tmp_path):
    """Of what stays as long as it was: nothing but the time and the content of a file differs."""
    section = pictures_of_classes(tmp_path / "data")
    prompts = tmp_path / "data/p.txt"
    prompts.write_text("a {}\n")
    (first,) = open_evals({"x": section})
    assert open_evals({"x": section})[0].task == first.task
    os.utime(prompts, (0, 0))
    assert open_evals({"x": section})[0].task["prompts"] == first.task["prompts"]  # its content alone
    prompts.write_text("b {}\n")
    second = open_evals({"x": section})[0].task
    assert first.task["task"] != second["task"] and first.task["prompts"] != second["prompts"]
    Image.new("RGB", (20, 20), (0, 200, 0)).save(tmp_path / "data/red/a.png")  # as many bytes as before
    third = open_evals({"x": section})[0].task
    assert third["data"] != second["data"] and third["class_names"] == second["class_names"]
    neighbours = {"source": section["source"], "examples": 2}
    (fourth,) = open_evals({"x": section | {"neighbours": neighbours}})
    assert fourth.task == third and fourth.baseline_task != third["task"]  # the model's numbers do not hang on them
    long = open_evals({"x": section | {"prompts": ["a photo of {} " * 400]}})[0].task
    assert long["prompts"] not in (first.task["prompts"], second["prompts"])


def test_what_names_data_that_is_not_here_is_not_recorded_as_done(tmp_path, run, evaluated):
    section = pictures_of_classes(tmp_path / "data")
    (tmp_path / "data/p.txt").write_text("a {}\n")
    absent = {"name": "class_folder", "path": str(tmp_path / "nowhere")}
    (each,) = open_evals({"x": section | {"neighbours": {"source": absent, "examples": 3}}})
    checkpoints_of_run = Run(run).checkpoints
    config = json.loads((run / "config.json").read_text())
    assert set(tasks_of([each], checkpoints_of_run, 12, config)) == {"x"}
    probe = {"kind": "linear_probe", "source": section["source"], "training": absent}
    (each,) = open_evals({"x": probe})
    assert tasks_of([each], checkpoints_of_run, 12, config) == {}
    with pytest.raises(UserError, match="nowhere' is not a folder"):
        evaluate_runs(str(run), Choice(), {"x": probe, "seen": section})
    assert evaluated == [(12, "seen")]  # the others are evaluated


def test_what_the_training_has_evaluated_is_not_evaluated_again(finished, finished_config, tmp_path, evaluated):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints/4")  # before the first evaluation
    section = finished_config["evals"]["val"]
    evals = {"val": {key: value for key, value in section.items() if key != "neighbours"}}
    before = read_results(workdir)["steps"]
    evaluate_runs(str(workdir), Choice(step="all"), evals)
    assert evaluated == [] and read_results(workdir)["steps"] == before and list(before) == ["8", "12"]
    assert len(list((workdir / "clip_benchmark").glob("val_step_*.json"))) == 2


@pytest.mark.slow
def test_several_runs_are_one_table_and_one_plot(run, evaluated):
    shutil.copytree(run, run.parent / "b")
    shutil.rmtree(run.parent / "b/checkpoints/4")
    text = evaluate_runs(str(run.parent / "*"), Choice(step="all"))
    assert len(evaluated) == 2 * 5
    header = (run.parent / "evals.md").read_text().splitlines()[0]
    assert [cell.strip() for cell in header.split("|")[2:-1]] == [
        "a, step 4", "a, step 8", "a, step 12", "b, step 8", "b, step 12", "chance",
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


@pytest.mark.slow
def test_numbers_of_another_task_are_not_compared(run, evaluated, capsys):
    section = json.loads((run / "config.json").read_text())["evals"]
    easy = {"val": section["val"] | {"examples": 2}}
    evaluate_runs(str(run), Choice(step="4"), easy)
    evaluate_runs(str(run), Choice(step="12"), section)
    assert set(comparable(read_results(run))["4"]) == set()
    capsys.readouterr()
    evaluate_runs(str(run), Choice(step="best", metric="val/image_to_text_R@1"), section)
    assert "step 12 is the best of 1 by val/image_to_text_R@1" in capsys.readouterr().out


@pytest.mark.slow
def test_baselines_of_other_data_are_forgotten_and_again_counts_them_anew(run, monkeypatch):
    section = {"val": json.loads((run / "config.json").read_text())["evals"]["val"] | {"examples": 8}}
    neighbours = {"source": section["val"]["source"], "examples": 8}
    evaluate_runs(str(run), Choice(), {"val": section["val"] | {"neighbours": neighbours}})
    assert set(read_results(run)["baselines"]) == {"chance", "pixel neighbour"}
    evaluate_runs(str(run), Choice(), section)
    assert set(read_results(run)["baselines"]) == {"chance"}
    counted, whole = [], checkpoints.run_baselines
    monkeypatch.setattr(checkpoints, "run_baselines", lambda evals: counted.extend(evals) or whole(evals))
    evaluate_runs(str(run), Choice(step="all"), section)
    assert counted == []
    evaluate_runs(str(run), Choice(step="all", again=True), section)
    assert len(counted) == 1  # once for all steps


def test_the_best_of_numbers():
    steps = {"1": {"a/R@1": 0.5, "a/loss": 2.0}, "2": {"a/R@1": float("nan")}, "3": {"a/R@1": 0.9}, "4": {"a/R@1": 0.9}}
    assert best_step("run", steps, [1, 2, 3, 4], "") == 3  # the first of equals
    assert best_step("run", steps, [1, 2], "") == 1 and best_step("run", steps, [1, 3], "a/loss") == 1
    with pytest.raises(UserError, match="no number of a/R@1"):
        best_step("run", steps, [2, 5], "a/R@1")


def test_pictures_alone_have_no_baseline_and_are_drawn_again_where_they_are_gone(run, evaluated):
    section = {
        "pages": {"kind": "pictures", "source": json.loads((run / "config.json").read_text())["source"], "examples": 1}
    }
    assert "| pages/pages | 1 " in evaluate_runs(str(run), Choice(), section)
    evaluate_runs(str(run), Choice(), section)
    assert evaluated == [(12, "pages")]
    shutil.rmtree(run / "pictures")
    evaluate_runs(str(run), Choice(), section)
    assert evaluated == [(12, "pages")] * 2 and (run / "pictures/pages/0_step_0000012.png").exists()


def test_a_damaged_checkpoint_keeps_nothing_from_the_others(run, evaluated, capsys):
    file = next((run / "checkpoints/8").rglob("manifest.ocdbt"))
    file.write_bytes(b"torn")
    with pytest.raises(UserError, match="the checkpoint of step 8 is damaged: .*manifest.ocdbt has 4 bytes"):
        evaluate_runs(str(run), Choice(step="all"))
    assert {step for step, _ in evaluated} == {4, 12} and "| a, step 12 " in capsys.readouterr().out
    assert set(read_results(run)["steps"]) == {"4", "12"}


def test_a_watch_evaluates_each_checkpoint_that_comes_and_ends_with_the_run(run, evaluated, monkeypatch, capsys):
    monkeypatch.setattr(watch, "POLL", 0.05)
    aside = run.parent.parent / "aside"
    (run / "checkpoints").rename(aside)
    (run / "checkpoints").mkdir()
    ended, shown = [], []
    thread = threading.Thread(target=lambda: ended.append(evaluate_runs(str(run), Choice(watch=True))))
    thread.start()
    assert until(lambda: shown.append(capsys.readouterr().out) or "waiting for a checkpoint: " in "".join(shown))
    for step in STEPS:
        shutil.copytree(aside / str(step), run / "checkpoints" / f"{step}.tmp")
        (run / "checkpoints" / f"{step}.tmp").rename(run / "checkpoints" / str(step))  # whole or absent
        assert until(lambda: (step, "val") in evaluated)
    thread.join(120)
    assert [step for step, name in evaluated if name == "val"] == STEPS and "a, step 12" in ended[0]


def test_a_watch_goes_on_over_removed_checkpoints_and_failing_disks(run, monkeypatch, capsys):
    monkeypatch.setattr(watch, "POLL", 0.01)
    session = checkpoints.Session(str(run), Choice(watch=True, step="all"), None)
    calls = []

    def evaluate_step(path, step):
        calls.append(step)
        if step == 4:
            shutil.rmtree(run / "checkpoints/4")
            raise FileNotFoundError("gone")
        if step == 8 and calls.count(8) < 2:
            raise OSError("the network is down")
        if step == 12:
            raise ZeroDivisionError

    listed, times = session.find_runs, iter([OSError("no bucket"), OSError("no bucket")])

    def find_runs():
        for error in times:
            raise error
        listed()

    monkeypatch.setattr(session, "evaluate_step", evaluate_step)
    monkeypatch.setattr(session, "find_runs", find_runs)
    with pytest.warns(UserWarning) as said:
        watch.follow(session)
    assert calls.count(4) == 1 and calls.count(8) == 2 and calls.count(12) == watch.ATTEMPTS
    texts = [str(each.message) for each in said]
    assert sum("no bucket; the watch goes on" in text for text in texts) == 2
    assert any("step 4 was removed before it was evaluated" in text for text in texts)
    assert list(session.failures) == [(str(run), 12, "")] and "it is tried again" in capsys.readouterr().out


def test_a_run_that_goes_back_is_evaluated_anew(run, monkeypatch):
    monkeypatch.setattr(watch, "POLL", 0.01)
    session = checkpoints.Session(str(run), Choice(watch=True, idle_minutes=0.02), None)
    calls = []
    shutil.copytree(run / "checkpoints/12", run.parent / "aside")
    shutil.rmtree(run / "checkpoints/12")

    def find_runs():
        session.runs.setdefault(str(run), Run(run)) if not session.runs else None
        if len(calls) == 1:
            shutil.copytree(run / "checkpoints/8", run.parent / "four")
            shutil.rmtree(run / "checkpoints/8")
            calls.append("back")
        elif calls and calls[-1] == "back" and not (run / "checkpoints/8").exists():
            polls.append(1)
            if len(polls) == 2:
                shutil.copytree(run.parent / "four", run / "checkpoints/8")

    polls = []
    monkeypatch.setattr(session, "evaluate_step", lambda path, step: calls.append(step))
    monkeypatch.setattr(session, "find_runs", find_runs)
    watch.follow(session)
    assert calls == [8, "back", 8]


@pytest.mark.slow
def test_a_watch_from_the_newest_leaves_out_what_was_before_and_ends_when_nothing_comes(run, evaluated, monkeypatch):
    monkeypatch.setattr(watch, "POLL", 0.01)
    shutil.rmtree(run / "checkpoints/12")
    evaluate_runs(str(run), Choice(watch=True, idle_minutes=1e-3))
    assert {step for step, _ in evaluated} == {8}
    evaluate_runs(str(run), Choice(watch=True, step="all", idle_minutes=1e-3))
    assert {step for step, _ in evaluated} == {4, 8}
    assert evaluate_runs(str(run.parent / "none*"), Choice(watch=True, idle_minutes=1e-3)) == ""


MISTAKES = {
    ("--step=best", "--watch"): "--step=best: --watch evaluates new checkpoints: take latest or all",
    ("--metric=val/loss",): "--metric=val/loss is for --step=best, not latest",
    ("--idle_minutes=3",): "--idle_minutes is for --watch",
    ("--watch", "--idle_minutes=-1"): "--idle_minutes=-1.0 must be at least 0 and finite",
    ("--batch_size=0",): "--batch_size=0 must be at least 1",
    ("--step=5",): "has no checkpoint of step 5; it has steps 4, 8, 12",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_mistakes_are_one_line(trained, words, capsys):
    assert main(["eval", f"--workdir={trained}", *words]) == 2
    error = capsys.readouterr().err
    assert MISTAKES[words] in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["tokens", "global"])
def test_devices_and_batch_sizes_change_no_number(run, small_demo, tmp_path, pooling):
    """The same checkpoint on 1, 8 and 2 devices, in batches of 8 to 64."""
    if pooling == "global":
        run = tmp_path / "clip"
        train(run, small_demo | {"objectives": {"clip": {"kind": "clip", "weight": 1.0}}, "total_steps": 4})
    evals = open_evals({
        "val": dict(kind="retrieval", source=small_demo["evals"]["val"]["source"], examples=30, captions=0),
        "seen": small_demo["evals"]["seen_cells"] | {"prompts": ("a {}", "the {} here")},
        "pointing": small_demo["evals"]["pointing"],
    })  # fmt: skip
    found = []
    for devices, batch_size in ((1, 64), (8, 8), (2, 16))[: 3 if whole_tier() else 2]:
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
    names = [name for name in load_evals(str(file)) if re.fullmatch(r"seen prompts=.*_[0-9a-f]{8}", name)]
    assert len(set(names)) == 2 and not any("/" in name for name in names)
    if jobs:
        assert all(f"| {name}/image_to_text_top1 " in output for name in names)
        assert {name.split("/")[0] for name in read_results(run)["steps"]["12"]} == set(names)
    else:
        assert output.startswith("filip eval '--workdir=") and all(name in error for name in names)


def test_points_that_look_alike_have_names_of_their_own(tmp_path):
    file = tmp_path / "alike.py"
    prompts = ["a {}", "a  {}", "a/{}", "一张照片" * 40 + "{}", "一张照片" * 40 + "，{}"]
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "  return ConfigDict(dict(evals=dict(x=dict(kind='retrieval', source={}, prompt=''))))\n"
        "def sweep():\n"
        f"  yield from ({{'evals.x.prompt': prompt}} for prompt in {prompts!r})\n"
    )
    names = load_evals(str(file))
    assert len(names) == 5 and "x prompt=a {}" in names and all(len(name.encode()) <= 100 for name in names)
    assert [section["prompt"] for section in names.values()] == prompts


@pytest.mark.slow
def test_the_shipped_sweep_of_prompts(run, capsys):
    assert main(["sweep", f"--config={ROOT}/configs/eval/prompts.py", f"--workdir={run}", "--run"]) == 0
    found = read_results(run)["steps"]["12"]
    names = dict.fromkeys(name.split("/")[0] for name in found)
    assert list(names)[1] == make_name("emoji prompts=('a {}',)") and len(names) == 5
    assert (
        list(names)[1].startswith("emoji prompts=a {},_")
        and f"| {list(names)[1]}/image_to_text_top1 " in capsys.readouterr().out
    )
    plot = xml.fromstring((run / "evals.svg").read_text())
    texts = [text.text for text in plot.iter(f"{SVG}text")]
    for way in ("image_to_text", "text_to_image"):
        assert texts.count(f"{way}_top1, emoji prompts=…") == 1  # one chart of the five points, by their prompts
        most = max(names, key=lambda name: found[f"{name}/{way}_top1"])
        assert texts[texts.index("95 % interval") - 1] == "chance" and most.removeprefix("emoji prompts=") in texts


BARS = {
    "x/a_top1": 0.25, "x/a_top1_low": 0.125, "x/a_top1_high": 0.5, "y/a_top1": 0.75, "z/a_top1": float("nan"), "z/n": 3,
    "y/R@1": 0.5,
}  # fmt: skip


def test_evaluations_of_one_step_are_bars_sorted_with_intervals_and_baselines():
    baselines = {"chance": {"x/a_top1": 0.5, "y/a_top1": 0.25}, "pixels": {"x/a_top1": float("nan")}}
    runs = {"one": {"7": BARS}, "two": {"9": {"x/a_top1": 0.5}}, "none": {}}
    charts = metric_charts(runs, baselines, {"x", "y", "z"})
    first, second = map(xml.fromstring, charts)
    texts = [text.text for text in first.iter(f"{SVG}text")]
    rows = [text for text in texts if text.split(",")[0] in "xyz"]
    assert rows == ["y, one", "x, two", "x, one"] and "0.250 [0.125, 0.500]" in texts
    assert "chance" in texts and "pixels" not in texts and "95 % interval" in texts
    zero, one = (8, 8 + (WIDE - 8 - NUMBERS) / 0.75)  # where 0 and 1 would be: the longest bar reaches to the numbers
    boxes = [each for each in first.iter(f"{SVG}rect") if each.get("opacity")]
    assert [(float(box.get("x")), float(box.get("width"))) for box in boxes] == [
        (zero, pytest.approx(value * (one - zero), abs=0.06)) for value in (0.75, 0.5, 0.25)
    ]
    lines = [path.get("d") for path in first.iter(f"{SVG}path") if path.get("stroke-dasharray")]
    levels = [float(line[1:].split()[0]) for line in lines if "v" in line]
    assert levels == [pytest.approx(zero + level * (one - zero), abs=0.06) for level in (0.25, 0.5, 0.5)]
    (interval,) = (path.get("d") for path in first.iter(f"{SVG}path") if path.get("stroke-width"))
    ends = [float(part.split()[0]) for part in interval.split("M")[1:]]
    assert ends[1:] == [pytest.approx(zero + bound * (one - zero), abs=0.06) for bound in (0.125, 0.5)]
    assert next(second.iter(f"{SVG}text")).text == "R@1" and "95 % interval" not in charts[1]
    runs["two"]["10"] = {"x/a_top1": 0.5}  # a curve then, and the others stay bars
    names = [xml.fromstring(chart).find(f"{SVG}text").text for chart in metric_charts(runs, baselines, {"x", "y"})]
    assert names == ["a_top1, x", "a_top1", "R@1"]


@given(st.lists(st.tuples(st.text("ab<&>'=…", max_size=200), st.floats(-1e12, 1e12)), min_size=1, max_size=20))
def test_every_bar_lies_inside_of_its_chart_and_charts_apart_from_each_other(rows):
    bars = [Bar(name, value, "0", "#000", (value - 1, value + 2), {"chance": value / 2}) for name, value in rows]
    drawn = bar_chart("x", bars)
    dots = list(xml.fromstring(drawn).iter(f"{SVG}circle"))
    high = int(xml.fromstring(drawn).get("height"))
    assert len(dots) == len(rows) and all(
        0 <= float(c.get("cx")) <= WIDE and 0 <= float(c.get("cy")) < high for c in dots
    )
    whole = xml.fromstring(page([chart("c", {"": [(1, 2)]})] * 2 + [drawn] * 3))
    places = [tuple(map(int, g.get("transform")[10:-1].split())) for g in whole.findall(f"{SVG}g")]
    assert places == [(0, 0), (WIDTH, 0), (0, HEIGHT), (WIDE, HEIGHT), (0, HEIGHT + high)]
    assert (whole.get("width"), whole.get("height")) == (str(2 * WIDE), str(HEIGHT + 2 * high))


def test_charts_are_whole_svg_whatever_the_numbers():
    lines = {"one": [(1, 0.5)], "none": [], "long & <odd>": [(x, x**2) for x in range(5000)]}
    root = xml.fromstring(chart("a < b", lines, {"chance": 0.1, "odd": float("nan")}))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"a < b", "one", "long & <odd>", "chance"} <= set(texts) and "odd" not in texts
    longest = max((path.get("d") for path in root.iter(f"{SVG}path")), key=len)
    assert longest.count("L") < POINTS
    assert metric_plot({"run": {"1": {"val/loss": 1.0}}}, {}, {"val"}) == ""
    assert points({"3": {"m": 1.0}, "1": {"m": 2}, "2": {"m": float("inf")}, "4": {}}, "m") == [(1.0, 2.0), (3.0, 1.0)]


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(-1e12, 1e12)), min_size=1, max_size=20))
def test_every_point_of_a_chart_lies_inside_of_it(line):
    root = xml.fromstring(chart("x", {"line": sorted(line)}))
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{SVG}circle")]
    assert len(dots) == len(line) and all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in dots)


def test_eight_devices_are_used(trained):
    run = checkpoints.Session(str(trained), Choice(), None)
    run.find_runs()
    (found,) = run.runs.values()
    model = found.load()
    assert model.mesh.size == jax.local_device_count() == 8 and model.batch_size == 512
    assert np.isfinite(model.logit_scale)
