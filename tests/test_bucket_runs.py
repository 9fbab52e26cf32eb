"""A whole run whose workdir is a bucket, emulated on this machine."""

import json
import shutil

import pytest
from conftest import ROOT, make_devices_mesh

from filip_jax import load_model, storage
from filip_jax.checkpoint import Checkpoints
from filip_jax.cluster.watch import PREEMPTED, Watch
from filip_jax.config import load_config
from filip_jax.data.sentence_pieces import with_options
from filip_jax.data.tokenizer import make_tokenizer
from filip_jax.errors import UserError
from filip_jax.evals.checkpoints import evaluate_runs
from filip_jax.evals.choice import Choice
from filip_jax.saved_config import save_config
from filip_jax.tools.report import report
from filip_jax.train.evaluation import FILE, MOST_ATTEMPTS, EvalGuard
from filip_jax.train.loop import train
from filip_jax.train.metrics import StepLog
from filip_jax.workdir import Workdir

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_a_run_in_a_bucket_is_the_run_on_a_disk(small_demo, kind, request, tmp_path, monkeypatch):
    """Stopped at step 7 and gone on with elsewhere: checkpoints, metrics, TensorBoard and evaluations are the same."""
    config = small_demo | {"eval_every_steps": 8, "log_keys": True}
    config["evals"] = {"val": config["evals"]["val"]}
    url = f"{request.getfixturevalue(kind)}/runs/trained"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("filip_jax.train.setup.make_mesh", lambda **_: make_devices_mesh(1, 1))
    train(tmp_path / "disk", config)
    with pytest.MonkeyPatch.context() as patch:
        push = StepLog.push
        patch.setattr(StepLog, "push", lambda self, step, *more: push(self, step, *more) if step < 8 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(url, config)
    shutil.rmtree(tmp_path / "cache")
    train(url, config)
    assert Checkpoints(url).steps() == [8, 12] and all(Checkpoints(url).damage(step) == "" for step in (8, 12))
    for name in ("metrics.jsonl", "keys/process_0.jsonl", "evals.json"):
        mine, expected = storage.read(f"{url}/{name}"), (tmp_path / "disk" / name).read_bytes()
        if name == "evals.json":  # whose hashes of checkpoints differ
            mine, expected = (json.loads(text)["steps"] for text in (mine, expected))
        elif name == "metrics.jsonl":
            mine, expected = (
                [
                    (line["step"], line.get("train/loss"), line.get("val/loss"))
                    for line in map(json.loads, text.splitlines())
                ]
                for text in (mine, expected)
            )
        assert mine == expected, name
    names = [file.path.removeprefix(f"{url}/") for file in storage.find_all(url)]
    assert any(name.startswith("tensorboard/") for name in names) and "config.json" in names
    assert not any(name.startswith("compiled/") for name in names)
    assert load_model(url).step == 12
    kept = {"name": "kept", "path": f"{url}/tokenizer.model"}
    one_step = {"total_steps": 1, "optimizer": config["optimizer"] | {"warmup_steps": 0}, "eval_every_steps": 0}
    train(tmp_path / "second", config | one_step | {"tokenizer": kept, "init_from": {"path": url, "rules": ()}})
    assert (tmp_path / "second/tokenizer.model").read_bytes() == storage.read(kept["path"])
    few = {"few": config["evals"]["val"] | {"examples": 8}}
    mirrors = tmp_path / "cache/filip_jax"
    said = evaluate_runs(f"{url.removesuffix('trained')}t*", Choice(step="all"), few)
    assert f"written: {url}/evals.md, {url}/evals.svg" in said and "| trained, step 12 " in said
    recorded = json.loads(storage.read(f"{url}/evals.json"))
    assert recorded["steps"]["8"]["few/pairs"] == 8 and "val/loss" in recorded["steps"]["8"]
    assert storage.exists(f"{url}/clip_benchmark/few_step_12.json")
    assert report(url) == f"{url}/report.html" and b"few/image_to_text_R@1" in storage.read(f"{url}/report.html")
    assert not any(path.is_dir() for path in mirrors.rglob("process_*"))  # nothing is left behind


def test_a_run_begins_with_the_model_of_one_in_a_bucket(gs, tmp_path):
    save_config(tmp_path, load_config("demo", ["--config.model.image.width=64"]))
    words = (ROOT / "tests/weights/hf_siglip_one/spiece.model").read_bytes()
    url, words = f"{gs}/runs/donor", with_options(words, canonicalize=True, bos=False, eos_as_pad=True)
    with pytest.raises(UserError, match=f"{url} holds no run"):
        load_config("demo", [f"--config.init_from={url}"])
    storage.write(f"{url}/config.json", (tmp_path / "config.json").read_bytes())
    storage.write(f"{url}/tokenizer.model", words)
    config = load_config("demo", [f"--config.init_from={url}/"])
    assert config["model"]["image"]["width"] == 64
    assert config["tokenizer"] == {"name": "kept", "path": f"{url}/tokenizer.model"}
    assert make_tokenizer(source=None, **config["tokenizer"]) == words
    with pytest.raises(UserError, match="nothing.model': no such file"):
        make_tokenizer(source=None, name="kept", path=f"{url}/nothing.model")


def test_a_stop_in_an_evaluation_is_not_blamed_on_it_though_the_bucket_remembers(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"{s3}/runs/stopped"
    for _ in range(MOST_ATTEMPTS + 2):  # each start is another one, with another mirror
        guard = EvalGuard(Workdir(url), Watch(), fatal=True)
        assert guard._attempt("val") == 1 and b'"val": 1' in storage.read(f"{url}/{FILE}")
        guard._excuse(PREEMPTED, "")
    for number in range(MOST_ATTEMPTS):  # those that died in it count
        assert EvalGuard(Workdir(url), Watch(), fatal=True)._attempt("val") == number + 1
