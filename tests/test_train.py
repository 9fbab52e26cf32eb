"""Whole runs of a shrunk shipped config: trained, killed, resumed, evaluated, refused."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from conftest import ROOT, free_port, make_devices_mesh, small
from runs import command, environment, logged
from tensorboardX.proto import event_pb2

from filip_jax import load_model
from filip_jax.checkpoint import Checkpoints, CheckpointWriter
from filip_jax.config import load_config
from filip_jax.errors import UserError
from filip_jax.losses import token_similarity
from filip_jax.train.loop import train
from filip_jax.train.metrics import StepLog

STEPS, SAVE_EVERY = 12, 4


@pytest.fixture(scope="module")
def config(finished_config):
    return finished_config


@pytest.fixture
def one_device(monkeypatch):
    """A run in this process takes one device, as the finished run did, and compiles in half the time."""
    monkeypatch.setattr("filip_jax.train.setup.make_mesh", lambda **_: make_devices_mesh(1, 1))


@pytest.mark.smoke
def test_a_run_leaves_what_it_promises(finished):
    workdir, output = finished
    for name in (
        "config.json",
        "tokenizer.model",
        "metrics.jsonl",
        "evals.json",
        "tensorboard",
        "checkpoints",
        "pictures",
    ):
        assert (workdir / name).exists(), name
    assert [step for step, _ in logged(workdir)] == list(range(1, STEPS + 1))
    assert sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir()) == [4, 8, 12]
    results = json.loads((workdir / "evals.json").read_text())
    assert sorted(results["steps"], key=int) == ["8", "12"]
    assert {"val/loss", "val/image_to_text_R@1", "pointing/pointing_accuracy"} <= set(results["steps"]["12"])
    assert len(list((workdir / "pictures/alignment").glob("*_step_0000012.png"))) == 2
    assert "ETA" in output and "samples/s" in output and f"step {STEPS}/{STEPS}" in output


def test_metrics_have_the_fields_names_in_both_files(finished):
    workdir, _ = finished
    line = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[3])
    expected = {
        f"train/{n}"
        for n in (
            "loss",
            "lr",
            "grad_norm",
            "param_norm",
            "filip/loss",
            "filip/logit_scale",
            "filip/logit_scale_at_bound",
            "samples_per_second",
            "samples_seen",
        )
    }
    assert expected <= set(line) and line["train/samples_seen"] == 4 * 16
    assert line["train/filip/logit_scale"] == pytest.approx(1 / 0.07, rel=0.1)
    (events,) = (workdir / "tensorboard").iterdir()
    data, tags, position = events.read_bytes(), {}, 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 8], "little")
        event = event_pb2.Event.FromString(data[position + 12 : position + 12 + size])
        tags |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        position += size + 16
    assert tags[4, "train/loss"] == pytest.approx(line["train/loss"]) and (12, "val/loss") in tags


@pytest.mark.smoke
def test_the_run_learns(finished):
    losses = [loss for _, loss in logged(finished[0])]
    assert np.mean(losses[-3:]) < losses[0] - 0.1


@pytest.mark.slow
def test_killed_again_and_again_the_run_ends_as_if_nothing_had_happened(finished, config, tmp_path):
    """SIGKILL in the start-up, at steps, and while saving: the losses are equal bit for bit."""
    workdir = tmp_path / "killed"

    def saving():
        return any((workdir / "checkpoints").glob("*/saving.json"))

    def steps(number):
        return lambda: len(logged(workdir)) >= number

    moments = [(workdir / "config.json").exists, saving, steps(SAVE_EVERY + 1)]
    killed = []  # a test that does not get its turn may come after the end
    for moment in moments:
        process = subprocess.Popen(
            command(workdir, config), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        while process.poll() is None and not moment():
            time.sleep(0.001)
        process.kill()
        output = process.communicate()[0].decode()
        assert process.returncode in (0, -signal.SIGKILL), output
        killed.append(len(logged(workdir)) < STEPS)
    assert sum(killed) > 1
    done = subprocess.run(command(workdir, config), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert logged(workdir) == logged(finished[0])
    steps = [json.loads((run / "evals.json").read_text())["steps"] for run in (workdir, finished[0])]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_no_evaluation_is_missed_or_kept_where_the_run_goes_back(finished, config, one_device, tmp_path):
    """What is evaluated is saved first: evaluations every 6 steps, checkpoints every 4, stopped at 7, back at 6."""
    workdir = tmp_path / "run"
    config = config | {"eval_every_steps": 6, "evals": {"val": config["evals"]["val"]}}
    with pytest.MonkeyPatch.context() as patch:
        push = StepLog.push
        patch.setattr(StepLog, "push", lambda self, step, *more: push(self, step, *more) if step < 8 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(workdir, config)
    results = json.loads((workdir / "evals.json").read_text())
    assert list(results["steps"]) == ["6"] and Checkpoints(workdir).steps() == [4, 6]
    first = results["steps"]["6"]
    results["steps"]["6"] = {"other/number": 1.0}  # of another config, or from before
    (workdir / "evals.json").write_text(json.dumps(results))
    train(workdir, config)
    assert json.loads((workdir / "evals.json").read_text())["steps"]["6"] == first | {"other/number": 1.0}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/loss" in line] == [6, 12]
    assert_same_losses(workdir, finished[0])


def test_a_finished_run_started_again_only_says_so(finished, config, tmp_path, capsys):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    train(workdir, config)
    assert "resuming at step 12 of 12" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_text() == (finished[0] / "metrics.jsonl").read_text()


def assert_same_losses(a, b):
    """Of runs whose sums were rounded in other orders: Adam makes ever more of the last digits."""
    losses, expected = ([loss for _, loss in logged(run)] for run in (a, b))
    assert losses[:6] == pytest.approx(expected[:6], rel=1e-5) and losses == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.long  # test_elastic.py has two processes, too
def test_two_processes_train_what_one_does(finished, config, tmp_path):
    workdir = tmp_path / "run"
    cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            command(workdir, config | {"eval_every_steps": 12}, "--distributed"), env=environment(4, JAX_PROCESS_ID=str(index), **cluster),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_same_losses(workdir, finished[0])
    assert "step 12/12" in outputs[0] and "step 12/12" not in outputs[1]
    tokens = [load_model(run).encode_text(["a dog"])[0] for run in (workdir, finished[0])]
    np.testing.assert_allclose(*tokens, atol=1e-2)


@pytest.mark.slow
def test_a_mistake_on_one_process_stops_all_of_them_at_once(config, tmp_path):
    """Only the first of two processes trains the tokenizer, which cannot be as small as this."""
    cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    wrong = config | {"tokenizer": config["tokenizer"] | {"vocab_size": 20}}
    processes = [
        subprocess.Popen(
            command(tmp_path / "run", wrong, "--distributed"), env=environment(4, JAX_PROCESS_ID=str(index), **cluster),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs
    assert all("filip: error: tokenizer.vocab_size=20" in output for output in outputs), outputs


LATE = """
import os, sys, time
class Late:
    def find_spec(self, name, path=None, target=None):
        if name == "filip_jax.train.loop" and os.environ["JAX_PROCESS_ID"] == "1":
            time.sleep(5)
sys.meta_path.insert(0, Late())
"""


@pytest.mark.slow
def test_a_mistake_ends_no_process_before_the_last_has_come(config, tmp_path):
    """Process 0 would take the others with it, with a crash of JAX's that a cluster takes for a reason to try again."""
    cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    words = command(tmp_path / "run", config | {"seed": -1}, "--distributed")
    file = tmp_path / "run.py"
    file.write_text(LATE + file.read_text())
    processes = [
        subprocess.Popen(
            words, env=environment(1, JAX_PROCESS_ID=str(index), **cluster), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs
    assert all("filip: error: seed=-1 must be at least 0" in output for output in outputs), outputs


@pytest.mark.slow
def test_a_reader_that_is_gone_stops_no_run(config, tmp_path):
    """As where an ssh session or a terminal is lost: the pipe breaks, the run goes on to its end."""
    words = command(tmp_path / "run", config | {"eval_every_steps": 0})
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(200) == 0
    assert Checkpoints(tmp_path / "run").steps()[-1] == STEPS


@pytest.mark.smoke
def test_load_model_embeds_pictures_of_any_size_and_texts(finished):
    model = load_model(finished[0])
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((48, 48), (60, 100), (200, 48))]
    tokens = model.encode_image(pictures)
    assert tokens.shape == (3, 36, 16) and tokens.dtype == np.float32 and model.step == 12
    np.testing.assert_allclose(model.encode_image(np.stack(pictures[:1]))[0], tokens[0], atol=1e-6)
    texts, mask = model.encode_text(["a dog", "a red apple on a white background"])
    assert texts.shape == (2, 20, 16) and mask.dtype == bool and mask[0].sum() < mask[1].sum()
    s_i, s_t = token_similarity(tokens, texts, mask)
    assert s_i.shape == s_t.shape == (3, 2)
    earlier = load_model(finished[0], step=8)
    assert earlier.step == 8 and not np.array_equal(earlier.encode_text(["a dog"])[0], model.encode_text(["a dog"])[0])
    many = model.encode_text([f"a {n}" for n in range(150)])[0]
    np.testing.assert_allclose(many[149], model.encode_text(["a 149"])[0][0], atol=1e-5)
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 20 tokens"):
        model.encode_text(["a dog", "a dog and " * 20])
    with pytest.raises(UserError, match="text 1 is empty"):
        model.encode_text(["a dog", " "])
    with pytest.raises(UserError, match=r"takes a list of texts; for one text write \['a dog'\]"):
        model.encode_text("a dog")
    with pytest.raises(UserError, match="pooling='mean' is not one of tokens, global"):
        model.encode_text(["a dog"], pooling="mean")
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        np.testing.assert_array_equal(model.encode_text(["a dog"])[0], model.encode_text(["a dog"])[0])
    with pytest.raises(UserError, match=r"image 0: float32 \[4, 4, 3\] is no array of pixels: give uint8 or uint16"):
        model.encode_image(np.zeros((1, 4, 4, 3), np.float32))


def test_evaluations_use_the_average_where_the_run_has_one(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    parameters = load_model(workdir).parameters
    average = jax.tree.map(lambda leaf: leaf / 2, parameters)
    writer = CheckpointWriter(workdir, every_steps=1, every_minutes=0.0, keep_last=9, keep_every_steps=0)
    writer.save(16, {"params": parameters, "ema": average}, writer.meta(STEPS), {})
    writer.wait()
    model = load_model(workdir)
    assert model.step == 16
    jax.tree.map(np.testing.assert_array_equal, model.parameters, average)


@pytest.mark.slow
@pytest.mark.long
def test_the_paper_config_trains_on_a_folder(demo_config, tmp_path, capsys):
    """configs/filip.py and clip.py with small towers: LAMB, bfloat16, scan, remat, crops and flips."""
    from filip_jax.data.decode import decode
    from filip_jax.data.sources import make_source

    scenes = make_source(demo_config["source"])
    (tmp_path / "pairs").mkdir()
    for n in range(40):
        decode(scenes[n].image).save(tmp_path / f"pairs/{n}.png")
        (tmp_path / f"pairs/{n}.txt").write_text(scenes[n].caption)
    (tmp_path / "pairs/.DS_Store").touch()
    for name in ("filip", "clip"):
        changes = {
            "source.path": str(tmp_path / "pairs"), "evals.val.source.path": str(tmp_path / "pairs"), "evals.val.examples": 16,
            "eval_every_steps": 3, "total_steps": 3, "optimizer.warmup_steps": 1, "data.workers": 0,
            "tokenizer.vocab_size": 500, "model.text.vocab_size": 500, "model.dtype": "bfloat16", "log_every_steps": 1,
        }  # fmt: skip
        config = small(load_config(str(ROOT / f"configs/{name}.py")), **changes)
        with pytest.warns(match="keep_tokens=0.25 at batch_size=16") if name == "filip" else contextlib.nullcontext():
            train(tmp_path / name, config)
        train(tmp_path / name, config)  # who goes on is not warned again
        assert "data: 40 records; images with .txt; left out: hidden (1)" in capsys.readouterr().out
        losses = [loss for _, loss in logged(tmp_path / name)]
        assert len(losses) == 3 and np.isfinite(losses).all()
        metrics = json.loads((tmp_path / name / "evals.json").read_text())["steps"]["3"]
        assert 0 <= metrics["val/image_to_text_R@1"] <= 1
        assert load_model(tmp_path / name).encode_text(["a dog"])[0].shape == (1, 77 if name == "filip" else 1, 16)
    (tmp_path / "pairs").rename(tmp_path / "staged")  # as on the disk of another node
    config["source"]["path"] = config["evals"]["val"]["source"]["path"] = str(tmp_path / "staged")
    train(tmp_path / name, config)
    (tmp_path / "staged/3.txt").write_text(scenes[3].caption.upper())
    with pytest.raises(
        UserError, match=r"the data of .*clip is not what the run began with \(what differs: captions\)"
    ):
        train(tmp_path / name, config)


@pytest.mark.slow
def test_data_workers_leave_nothing_behind(config, tmp_path):
    """At the end of a run, of one that is stopped, and of one that has nothing left to do."""
    config = config | {"data": config["data"] | {"workers": 2}, "eval_every_steps": 0, "total_steps": 3}
    for _ in range(2):
        arguments = command(tmp_path / "whole", config)
        done = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0 and not re.search("leaked|Traceback", done.stderr), done.stderr
        assert [step for step, _ in logged(tmp_path / "whole")] == [1, 2, 3]
    arguments = command(tmp_path / "stopped", config | {"total_steps": 10**5})
    with subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        while run.poll() is None and len(logged(tmp_path / "stopped")) < 3:
            time.sleep(0.2)
        run.terminate()
        said = run.stderr.read()  # to the last word of Python's resource tracker, which outlives the run
    assert run.returncode == 42 and "leaked" not in said, said


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_named_and_end_the_run_in_the_end(config, tmp_path, capsys):
    hot = json.loads(json.dumps(config)) | {"guards": {"max_skipped": 3, "spike_sigmas": 0.0}}
    hot["optimizer"] |= {"peak_learning_rate": 1e30, "warmup_steps": 0}
    hot["checkpoint"] |= {"every_steps": 1, "keep_last": 9}
    with pytest.raises(UserError, match=r"^3 steps in a row were skipped, the last is step \d+ .*guards.max_skipped=3"):
        train(tmp_path / "run", hot)
    lines = [json.loads(line) for line in (tmp_path / "run/skipped/process_0.jsonl").read_text().splitlines()]
    first = lines[0]["step"]
    assert [line["step"] for line in lines] == [first, first + 1, first + 2]
    assert all(len(line["keys"]) == 16 and line["keys"][0].startswith("source//train/") for line in lines)
    assert f"step {first} is skipped (loss " in capsys.readouterr().out
    tokens = load_model(tmp_path / "run").encode_text(["a dog"])[0]  # saved after a skipped step, it is as before
    assert np.isfinite(tokens).all()


@pytest.mark.slow
def test_an_evaluation_that_fails_is_logged_and_training_goes_on(config, tmp_path, monkeypatch):
    from filip_jax.evals import localisation

    def fails(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(localisation, "evaluate", fails)
    with monkeypatch.context() as patch:  # the real check wants the real signature
        patch.setattr("filip_jax.evals.run.check_evals", lambda _: None)
        patch.setattr("filip_jax.train.setup.check_evals", lambda _: None)
        train(tmp_path / "run", config | {"total_steps": 4, "eval_every_steps": 4})
        recorded = json.loads((tmp_path / "run/evals.json").read_text())["steps"]["4"]
        assert recorded["eval/pointing/error"] == "MemoryError: no room" and "val/loss" in recorded
        lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["eval/pointing/error"] == "MemoryError: no room"
        with pytest.raises(UserError, match="evaluation pointing at step 4: MemoryError: no room"):
            train(tmp_path / "fatal", config | {"total_steps": 4, "eval_every_steps": 4, "evals_fatal": True})
        assert Checkpoints(tmp_path / "fatal").steps() == [4]
    assert not (tmp_path / "run/evaluating.json").exists()


@pytest.mark.slow
def test_an_evaluation_that_ends_the_process_three_times_is_given_up(config, tmp_path):
    config = config | {"total_steps": 4, "eval_every_steps": 4}
    train(tmp_path / "run", config | {"eval_every_steps": 0})
    (tmp_path / "run/evaluating.json").write_text('{"step": 4, "attempts": {"pointing": 3}}')
    train(tmp_path / "run", config)
    recorded = json.loads((tmp_path / "run/evals.json").read_text())["steps"]["4"]
    assert recorded["eval/pointing/error"] == "it ended the process 3 times" and "val/loss" in recorded
    assert "pointing/pointing_accuracy" not in recorded and not (tmp_path / "run/evaluating.json").exists()


@pytest.mark.slow
def test_the_time_of_a_run_is_counted_over_its_restarts_and_the_cache_spares_compilation(config, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    plain = config | {"eval_every_steps": 0}
    outputs = []
    for start in (1, 2):
        done = subprocess.run(command(tmp_path / "run", plain), env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
        if start == 1:  # as if it had been killed before its last save
            shutil.rmtree(tmp_path / f"run/checkpoints/{STEPS}")
    assert "the compile cache spared" in outputs[1] and "the compile cache spared" not in outputs[0]
    rows = dict(re.findall(r"^\| (\w+) +\| +([\d.]+) \|", outputs[1], re.MULTILINE))
    assert float(rows["lost_by_rollback"]) > 0 and float(rows["start"]) > 0 and float(rows["restore"]) >= 0
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["time/lost_by_rollback_seconds"] == pytest.approx(float(rows["lost_by_rollback"]), abs=0.1)
    assert (tmp_path / "run/compiled").stat().st_mode & 0o077 == 0


def test_another_tokenizer_or_config_does_not_go_on(finished, config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    with pytest.raises(UserError, match="holds a run of another config .*seed: 0 -> 1.*another --workdir"):
        train(workdir, config | {"seed": 1})
    from filip_jax.data.sentence_pieces import train_sentence_pieces

    (workdir / "tokenizer.model").write_bytes(train_sentence_pieces(["other words"] * 9, 300))
    for attempt in (lambda: train(workdir, config), lambda: load_model(workdir)):
        with pytest.raises(UserError, match="is not the tokenizer of this checkpoint"):
            attempt()
