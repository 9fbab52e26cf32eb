"""Configs: every shipped one is built and its consequences are golden text; mistakes are one line."""

import importlib.util
import json
import os
import re

import pytest
from conftest import ROOT

from filip_jax import paths
from filip_jax.config import load_config
from filip_jax.errors import UserError
from filip_jax.mesh import parameter_spec
from filip_jax.paths import flatten
from filip_jax.saved_config import check_same_run, differences, read_config, save_config
from filip_jax.sections import call, choose
from filip_jax.train.setup import make_setup

GOLDEN = ROOT / "tests/golden"


def shipped():
    """Every variant of every file in configs/."""
    for file in sorted((ROOT / "configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location("config", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield from (f"{file.name}:{variant}" for variant in module.VARIANTS)


@pytest.mark.parametrize("name", list(shipped()))
def test_every_shipped_config_is_built_and_says_what_it_trains(name):
    """Each parameter's shape, decay, learning rate and sharding over 8 devices (UPDATE_GOLDEN=1 rewrites)."""
    config = load_config(str(ROOT / "configs" / name))
    if config["init_from"]["rules"]:  # it begins with a run that the user names
        config["init_from"]["path"] = "runs/imported"
    setup = call(make_setup, config, name)
    lines = [f"{'parameter':<52} {'shape':<18} {'decay':<6} {'rate':<6} sharding"]
    leaves = paths.flatten(setup.shapes["params"])
    for path, leaf in leaves.items():
        spec = parameter_spec(leaf.shape, 8, setup.optimizer.metadata[path].stacked)
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        rate = setup.optimizer.learning_rate[path]
        lines.append(
            f"{path:<52} {shape:<18} {setup.optimizer.decay[path]:<6} {rate:<6} {', '.join(map(str, spec)) or '-'}"
        )
    lines += ["", f"parameters {sum(leaf.size for leaf in leaves.values())}", f"steps {setup.total_steps}"]
    lines += [
        f"learning rate at step {step}: {float(setup.optimizer.schedule(step)):.6g}"
        for step in (0, 3000, setup.total_steps)
    ]
    text, file = "\n".join(lines) + "\n", GOLDEN / f"{name.replace('.py:', '_')}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def test_no_golden_text_is_left_over():
    assert {file.stem for file in GOLDEN.glob("*.txt")} == {name.replace(".py:", "_") for name in shipped()}


@pytest.mark.smoke
def test_the_papers_sizes_and_learning_rates():
    base, large = (load_config(str(ROOT / f"configs/filip.py:{variant}")) for variant in ("base", "large"))
    assert base["optimizer"]["peak_learning_rate"] == pytest.approx(1.79e-2, rel=1e-2)
    assert large["optimizer"]["peak_learning_rate"] == pytest.approx(1.16e-2, rel=1e-2)
    assert base["total_steps"] == pytest.approx(249_000, rel=1e-2) and large["total_steps"] == pytest.approx(
        332_000, rel=1e-2
    )
    halved = load_config(str(ROOT / "configs/filip.py:base"), ["--config.batch_size=20480"])
    assert halved["total_steps"] == pytest.approx(2 * base["total_steps"], rel=1e-4)


DEMO = str(ROOT / "configs/demo.py")


@pytest.mark.parametrize(
    "file, overrides, message",
    [
        (DEMO, ["--config.batchsize=3"], "unknown config key batchsize: no batchsize; did you mean batch_size?"),
        (DEMO, ["--config.model.image.dept=3"], "unknown config key model.image.dept: no dept; did you mean depth?"),
        (
            DEMO,
            ["--config.xyz=3"],
            "unknown config key xyz: no xyz; there are batch_size, checkpoint, compile_cache, data, ",
        ),
        (
            DEMO,
            ["--config.objectives.filip.foo=3"],
            "unknown config key objectives.filip.foo: no foo; there are dtype, exchange, ",
        ),
        (DEMO, ["--config.seed.foo=3"], "unknown config key seed.foo: no foo; there are none below"),
        (DEMO, ["--config.batch_size=1.5"], "--config.batch_size=1.5: invalid literal for int()"),
        (DEMO, ["--config.optimizer.peak_learning_rate=abc"], "could not convert string to float: 'abc'"),
        (DEMO, ["--config.model.scan=7"], "Non-boolean argument to boolean flag"),
        (DEMO, ["--steps=3"], "unknown argument '--steps'; overrides read --config.key=value"),
        (DEMO, ["steps"], "unexpected argument 'steps'"),
        (DEMO + ":huge", [], "no such variant; filip, clip, filip_clip, siglip, quick"),
        ("nowhere.py", [], "no such Python file"),
        (str(ROOT / "README.md"), [], "no such Python file"),
    ],
)
def test_mistakes_on_the_command_line(file, overrides, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_config(file, overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", list(shipped()))
def test_every_number_and_name_can_be_given_on_the_command_line(name):
    file = str(ROOT / "configs" / name)
    config = load_config(file)
    scalars = {path: value for path, value in flatten(config).items() if isinstance(value, (int, float, str))}
    given = {path.replace("/", "."): value for path, value in scalars.items() if not isinstance(value, bool)}
    assert load_config(file, [f"--config.{path}={value}" for path, value in given.items()]) == config


def test_overrides_reach_everything_that_hangs_on_them():
    config = load_config(DEMO, ["--config.data.image_size=64", "--config.total_steps=9", "--noconfig.model.scan"])
    assert config["model"]["image"]["image_size"] == 64 and config["total_steps"] == 9
    assert config["model"]["scan"] is False


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.pop("mesh"), "config section top: missing a required .*mesh"),
        (lambda c: c.update(batch=3), "got an unexpected keyword argument 'batch'; its keys are seed, batch_size"),
        (lambda c: c["data"].update(crop=1), "config section data: .*'crop'; its keys are image_size, text_length"),
        (lambda c: c["data"].pop("image_size"), "config section data: missing a required .*image_size"),
        (lambda c: c["optimizer"].pop("clip_norm"), "config section optimizer: missing a required .*clip_norm"),
        (
            lambda c: c["optimizer"].update(b3=1),
            r"config section optimizer \(adamw\): .*'b3'; its keys are b1, b2, eps, name, ",
        ),
        (lambda c: c.update(loss={}), "got an unexpected keyword argument 'loss'; its keys are seed"),
        (lambda c: c.update(objectives={}), "objectives: name at least one, as filip="),
        (lambda c: c["objectives"].update({"A/b": {}}), "objectives.A/b: names are of small letters, digits and _"),
        (lambda c: c["objectives"].update(filip=3), "objectives.filip=3 is not a section"),
        (lambda c: c["objectives"]["filip"].pop("kind"), "objectives.filip.kind='' is not one of filip, clip"),
        (
            lambda c: c["objectives"]["filip"].update(weight=-1),
            "objectives.filip.weight=-1: weights must be at least 0",
        ),
        (lambda c: c["objectives"]["filip"].update(weight="x"), "objectives.filip.weight='x' is neither a number nor"),
        (
            lambda c: c["objectives"]["filip"].update(weight=((0.5, 1.0), (0.1, 0.0))),
            r"weight=.*: weights must be at least 0, shares of the run rise from 0 to 1",
        ),
        (
            lambda c: c["objectives"]["filip"].update(kind="filp"),
            "objectives.filip.kind='filp' is not one of filip, clip",
        ),
        (
            lambda c: c["objectives"]["filip"].update(logit_scale_init=0),
            "objectives.filip.logit_scale_init=0 must lie from min_logit_scale=1.0 to max_logit_scale=100.0",
        ),
        (lambda c: c["objectives"]["filip"].update(bias=1), "config section objectives.filip: .*'bias'; its keys are"),
        (
            lambda c: c.update(objectives={"siglip": {"kind": "siglip", "weight": 1.0, "similarity": "mean"}}),
            "objectives.siglip.similarity='mean' is not one of tokens, pooled",
        ),
        (lambda c: c["data"].update(text_length=30), "data.text_length=30, but the model is built for 20"),
        (lambda c: c.update(batch_size=100), "batch_size=100 is not divisible by the 8 devices"),
        (lambda c: c.update(ema_decay=1.0), "ema_decay=1.0 must"),
        (lambda c: c["checkpoint"].update(evry=1), "config section checkpoint: .*'evry'; its keys are every_steps"),
        (
            lambda c: c["tokenizer"].update(pth=1),
            r"config section tokenizer \(sentencepiece\): .*'pth'; its keys are vocab_size, .*did you mean path\?",
        ),
        (lambda c: c["evals"]["val"].update(kind="nope"), "evals.val.kind='nope' is not one of retrieval"),
    ],
)
def test_a_config_file_with_a_mistake_is_refused_by_its_key(demo_config, change, message):
    config = json.loads(json.dumps(demo_config))
    change(config)
    with pytest.raises(UserError, match=message):
        call(make_setup, config, "top")


def test_a_started_run_may_only_change_what_changes_no_result(tmp_path, demo_config):
    config = json.loads(json.dumps(demo_config))
    save_config(tmp_path, config)
    assert read_config(tmp_path) == config
    check_same_run(tmp_path, config | {"log_every_steps": 3, "mesh": {"replica": 2, "data": -1}})
    check_same_run(tmp_path, config | {"data": config["data"] | {"workers": 4}})
    parts = {"name": "mixture", "own": {"name": "csv", "path": "/data/a.csv", "index": ""}, "weight": 1.0}
    staged = {
        "name": "mixture",
        "own": {"name": "csv", "path": "/scratch/17/a.csv", "index": "/scratch/17"},
        "weight": 1.0,
    }
    check_same_run(tmp_path, config | {"source": staged}, config | {"source": parts})
    with pytest.raises(UserError, match="source.own.separator: 'absent' -> 'tab'"):
        staged["own"]["separator"] = "tab"
        check_same_run(tmp_path, config | {"source": staged}, config | {"source": parts})
    with pytest.raises(UserError, match="batch_size: 128 -> 64; model.embed_dim: 64 -> 32") as error:
        check_same_run(tmp_path, config | {"batch_size": 64, "model": config["model"] | {"embed_dim": 32}})
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="holds imported weights: .*another --workdir, by --init_from="):
        check_same_run(tmp_path, config, {"model": config["model"], "total_steps": 0})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read_config(tmp_path)


def test_differences_name_the_leaves():
    old, new = {"a": {"b": 1, "c": [1, 2]}, "d": 3}, {"a": {"b": 2, "c": [1, 2]}, "e": 3}
    assert differences(old, new) == ["a.b: 1 -> 2", "d: 3 -> 'absent'", "e: 'absent' -> 3"]


def test_choices_are_listed():
    with pytest.raises(UserError, match="key='c' is not one of a, b"):
        choose({"a": 1, "b": 2}, "c", "key")
