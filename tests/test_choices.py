"""Sections of a config that choose a kind of something: as words in a command, options and all, and a third kind is one line."""

import copy
import json
import re
import shlex
from collections.abc import Sequence

import jax.numpy as jnp
import optax
import pytest
from conftest import ROOT
from memory_source import Memory

from filip_jax import cli
from filip_jax.choices import CHOICES, FLAGS, Choice, section_of
from filip_jax.cli_plan import apart, chosen
from filip_jax.config import load_config, settings
from filip_jax.data.tokenizer import TOKENIZERS, Kind, Tokenizer, make_tokenizer
from filip_jax.errors import UserError
from filip_jax.paths import Metadata
from filip_jax.saved_config import check_same_run, save_config
from filip_jax.sections import call
from filip_jax.train.optimizer import OPTIMIZERS, make_optimizer

NO_SOURCE = Memory([("unread",)])
DEMO = str(ROOT / "configs/demo.py")
ADAMW = load_config(DEMO)["optimizer"]
COMMON = {name: value for name, value in ADAMW.items() if name not in ("name", "b1", "b2", "eps")}
VAL = load_config(DEMO)["evals"]["val"]


@pytest.mark.parametrize(
    "overrides, key, section",
    [
        (["optimizer=lamb eps=1e-3"], "optimizer", COMMON | {"name": "lamb", "eps": 1e-3}),
        (["optimizer=lamb clip_norm=0"], "optimizer", COMMON | {"name": "lamb", "clip_norm": 0}),
        (["optimizer.name=lamb"], "optimizer", COMMON | {"name": "lamb"}),
        (["optimizer.name=adamw"], "optimizer", ADAMW),
        (["optimizer.b1=0.5", "optimizer.name=lamb"], "optimizer", COMMON | {"name": "lamb", "b1": 0.5}),
        (["tokenizer=clip"], "tokenizer", {"name": "clip"}),
        (["tokenizer.name=bert", "tokenizer.path=7"], "tokenizer", {"name": "bert", "path": "7"}),
        (["tokenizer=sentencepiece"], "tokenizer", {"name": "sentencepiece", "vocab_size": 800}),
        (["tokenizer=sentencepiece", "model.text.vocab_size=300"], "tokenizer", {"name": "sentencepiece", "vocab_size": 300}),
        (["source=csv 'path=/a b' images=5 columns=a,b"], "source", {"name": "csv", "path": "/a b", "images": "5", "columns": ("a", "b")}),
        (["source=tfds split=3 \"caption_keys=[('a',2.0)]\""], "source", {"name": "tfds", "split": "3", "caption_keys": [("a", 2.0)]}),
        (["source.each_caption=True"], "source.each_caption", True),
        (["model.image=conv_vit patch_size=4"], "model.image", {"kind": "conv_vit", "patch_size": 4, "image_size": 48, "width": 128, "depth": 3, "heads": 4, "activation": "quick_gelu"}),
        (["objectives=filip + clip weight=0.5"], "objectives", {"filip": {"kind": "filip"}, "clip": {"kind": "clip", "weight": 0.5}}),
        (["objectives.filip.weight=((0,1),(1,0.5))"], "objectives.filip.weight", ((0, 1), (1, 0.5))),
        (["objectives.filip.weight=0.5"], "objectives.filip.weight", 0.5),
        (["objectives.filip=clip dtype=float32"], "objectives", {"filip": {"kind": "clip", "dtype": "float32"}}),
        (["objectives=filip+clip weight=0.5"], "objectives", {"filip": {"kind": "filip"}, "clip": {"kind": "clip", "weight": 0.5}}),
        (["objectives=siglip from_first_batch=true + other=siglip from_first_batch=0"], "objectives.siglip", {"kind": "siglip", "from_first_batch": True}),
        (["source=folder path=x 'caption_keys=[a, b]' each_caption=FALSE"], "source", {"name": "folder", "path": "x", "caption_keys": ("a", "b"), "each_caption": False}),
        (["source=folder path=x 'caption_keys=a, b'"], "source.caption_keys", ("a", "b")),
        (["evals.val=pictures"], "evals.val", {"kind": "pictures", "source": VAL["source"], "examples": 256}),
        (["evals.val.prompt=a {}"], "evals.val", VAL | {"prompt": "a {}"}),
        (["evals.val.source=folder path=x"], "evals.val.source", {"name": "folder", "path": "x"}),
    ],
)  # fmt: skip
def test_words_choose_a_kind(overrides, key, section):
    found = load_config(DEMO, [f"--config.{override}" for override in overrides])
    for name in key.split("."):
        found = found[name]
    assert found == section


@pytest.mark.parametrize(
    "override, message",
    [
        ("source=folder /data", "'/data' is not key=value, as in: folder path=/data"),
        ("source=webdataset path=1.tar path=2.tar", "path=2.tar: path stands there twice; braces need quotation marks"),
        ("objectives=filip weight=1 weight=2", "weight=2: weight stands there twice$"),
        ("objectives=siglip bias_init -10", "'bias_init' is not key=value, as in: siglip bias_init=VALUE"),
        ("source=folder +path=x", "'+path=x' is not key=value, as in: folder path=VALUE"),
        ("source=folder source.path=x", "'source.path=x' is not key=value, as in: folder path=VALUE"),
        ("source=folder __class__=x", "'__class__=x' is not key=value, as in: folder path=VALUE"),
        ("optimizer=name=lamb", "'name=lamb' stands where the kind belongs: name one of lamb, adamw before its options"),
        ("source=path=/data", "'path=/data' stands where the kind belongs: name one of emoji_scenes, folder,"),
        ("objectives=filip clip", "'clip' is no option of filip; several stand with + between them, as in: filip + clip"),
        ("objectives=filip,clip", "'filip,clip' is not one of filip, clip, siglip, "),
        ("objectives=CLIP weight=1", "'CLIP' is not one of filip, clip, siglip, "),
        ("optimizer=", "--config.optimizer: name a kind, and its options behind it as key=value"),
        ("optimizer='adamw", "No closing quotation"),
        ("optimizer.b3=1", "no b3; there are b1, b2, clip_norm, decay_rules, eps, learning_rate_rules, name, peak_learning_rate,"),
        ("source.caption_key=a", "no caption_key; did you mean each_caption?; --source KIND key=value … chooses another"),
        ("evals.val.exampels=3", "no exampels; did you mean examples?"),
        ("source.kind=folder", "no kind; there are name, scenes, seed, split,"),
        ("model=large", "Failed to parse 'large' as a ConfigDict"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen(override, message):
    with pytest.raises(UserError, match=re.escape(message).replace(r"\$", "$")):
        load_config(DEMO, [f"--config.{override}"])


@pytest.mark.parametrize("key", CHOICES)
def test_any_kind_is_chosen_by_its_name_and_any_option_by_its_text(key):
    choice = CHOICES[key]()
    for kind in choice.kinds:
        assert section_of(key, [kind], {}) == {choice.key: kind}
        defaults = {name: p for name, p in choice.options(kind).items() if p.default is not p.empty}
        for name, p in defaults.items():
            words = p.annotation == Sequence[str] and p.default is not None
            text = ",".join(p.default) if words else str(p.default)
            assert section_of(key, [kind, f"{name}={text}"], {})[name] == p.default


def test_several_are_chosen_with_names_of_their_own(monkeypatch):
    def weighted(*, weight: float = 1.0) -> None: ...
    def first(*, scale: float) -> None: ...
    def second(*, bias: float = 0.0) -> None: ...

    monkeypatch.setitem(CHOICES, "aims.*", lambda: Choice({"first": first, "second": second}, weighted, "kind"))
    words = shlex.split("first + second weight=0.5 + other=second bias=-1")
    assert section_of("aims", words, {"first": {"scale": 2.0, "weight": 3.0}}) == {
        "first": {"kind": "first", "scale": 2.0},
        "second": {"kind": "second", "weight": 0.5},
        "other": {"kind": "second", "bias": -1},
    }
    with pytest.raises(UserError, match="first stands there twice; name one of them, as in other=first"):
        section_of("aims", ["first", "+", "first"], {})


@pytest.mark.parametrize(
    "key, value", [("optimizer", "lamb eps=1e-3"), ("optimizer.name", "lamb"), ("optimizer.b2", "0.5"), ("seed", "3")]
)
def test_a_value_may_stand_behind_its_key(key, value):
    """As absl has it: the same as with "=", whatever the key."""
    assert load_config(DEMO, [f"--config.{key}", value]) == load_config(DEMO, [f"--config.{key}={value}"])
    assert load_config(DEMO, ["--config.log_keys", f"--config.{key}={value}"])["log_keys"]


@pytest.mark.parametrize("words, section", [
    (["--optimizer=lamb", "eps=1e-3"], {"name": "lamb", "eps": 1e-3}),
    (["--optimizer=lamb eps=1e-3"], {"name": "lamb", "eps": 1e-3}),
    (["--optimizer", "lamb eps=1e-3", "b1=0.5"], {"name": "lamb", "eps": 1e-3, "b1": 0.5}),
])  # fmt: skip
def test_words_of_a_choice_are_written_in_any_way(words, section):
    arguments, rest = cli._parser().parse_known_args(apart(["train", "--config=demo", "--workdir=w", *words]))
    assert not rest and load_config(DEMO, chosen(arguments))["optimizer"] == COMMON | section


@pytest.mark.parametrize("words, message", [
    (["--objectives", "filip", "--objectives", "clip"], "--objectives is given 2 times; give it once, several with + between them"),
    (["--optimizer=lamb", "--optimizer=adamw"], "--optimizer is given 2 times; give it once"),
    (["--source"], "--config.source: name a kind, and its options behind it as key=value"),
    (["--source="], "--config.source: name a kind, and its options behind it as key=value"),
    (["--source", "folder", "--path=x"], "unknown argument '--path'; overrides read --config.key=value, and options of a kind stand behind it"),
    (["--config.source=folder", "path=x"], "unexpected argument 'path=x'; overrides read --config.key=value, and options of a kind stand behind it"),
    (["--batch-size=4"], "unknown argument '--batch-size'; overrides read --config.key=value: did you mean --config.batch_size?"),
    (["config.seed=4"], "unexpected argument 'config.seed=4'; overrides read --config.key=value: did you mean --config.seed?"),
    (["--optimizer.name=lamb"], "did you mean --config.optimizer.name?"),
    (["--optimiser", "lamb"], "did you mean --optimizer?"),
    (["optimizer=lamb"], "unexpected argument 'optimizer=lamb'; overrides read --config.key=value: did you mean --optimizer?"),
])  # fmt: skip
def test_what_people_write_by_habit_is_answered_with_what_is_meant(tmp_path, capsys, words, message):
    assert cli.main(["train", "--config=demo", f"--workdir={tmp_path}/run", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("command", ["train", "plan", "sweep"])
def test_options_of_a_command_are_overrides(command):
    words = [
        command,
        "--config=demo",
        "--workdir=w",
        "--topology=t",
        "--source",
        "folder",
        "path=/a b",
        "--config.seed=1",
    ]
    words += ["--optimizer", "lamb", "eps=1e-3"]
    arguments, rest = cli._parser().parse_known_args(words)
    assert chosen(arguments) == ["--config.source=folder 'path=/a b'", "--config.optimizer=lamb eps=1e-3"]
    assert "--config.seed=1" in rest and {"source", "tokenizer", "optimizer"} <= set(FLAGS)


def test_words_behind_words_are_options_of_their_own(tmp_path, capsys):
    """An override of several words is not taken for the last word of the source before it."""
    words = ["--source", "folder", "path=/a b", "--config.optimizer=none b2=0.9", "--config.seed=1"]
    assert cli.main(["train", "--config=demo", f"--workdir={tmp_path}/run", *words]) == 2
    assert "optimizer.name='none' is not one of" in capsys.readouterr().err


def test_a_section_that_a_config_lacks_is_chosen(tmp_path):
    file = tmp_path / "bare.py"
    file.write_text("from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict(dict(seed=1))\n")
    found = load_config(str(file), ["--config.source=folder path=x", "--config.seed=2"])
    assert found == {"seed": 2, "source": {"name": "folder", "path": "x"}}


def test_a_point_of_a_sweep_chooses():
    point = {"optimizer": "lamb eps=0.5", "source": "folder path='a b'"}
    found = load_config(DEMO, settings(point))
    assert found["optimizer"]["eps"] == 0.5 and found["source"]["path"] == "a b"


def test_a_third_optimizer_is_a_function_and_a_line(monkeypatch):
    def momentum(*, decay: float = 0.9):
        return optax.trace(decay), lambda metadata, update, parameter: update

    monkeypatch.setitem(OPTIMIZERS, "momentum", momentum)
    parameters = {"a": jnp.ones(3)}
    section, metadata = load_config(DEMO, ["--config.optimizer=momentum decay=0.5"])["optimizer"], {"a": Metadata()}
    optimizer = call(make_optimizer, section, "optimizer", metadata=metadata, total_steps=100)
    assert optimizer.transform.init(parameters)[1].trace["a"].shape == (3,)
    with pytest.raises(
        UserError, match=r"optimizer \(momentum\): .*'b1'; its keys are decay, name, peak_learning_rate"
    ):
        call(make_optimizer, section | {"b1": 0.5}, "optimizer", metadata=metadata, total_steps=100)


class Letters:
    """Each letter is a piece."""

    bos, eos, pad, size = 1, 2, 0, 300

    def __init__(self, model):
        self.model = model

    def ids(self, text):
        return [ord(letter) for letter in text]


def test_a_third_tokenizer_is_a_file_and_a_line(monkeypatch):
    def make(source, path, *, greeting: str = "") -> bytes:
        return b'{"name": "letters", "greeting": "%s"}' % greeting.encode()

    monkeypatch.setitem(TOKENIZERS, "letters", Kind(make, Letters))
    section = load_config(DEMO, ["--config.tokenizer=letters greeting=5"])["tokenizer"]
    assert section == {"name": "letters", "greeting": "5"}
    tokenizer = Tokenizer(make_tokenizer(source=NO_SOURCE, **section))
    assert tokenizer.vocab_size == 300 and tokenizer.encode(["abc"], 6)[0].tolist() == [[1, 97, 98, 99, 2, 0]]


def test_a_run_begins_with_the_model_of_another(tmp_path):
    donor = load_config(DEMO, ["--config.model.image.width=64", "--config.data.text_length=12"])
    save_config(tmp_path, donor)
    overrides = ["--config.data.image_size=64", f"--config.init_from={tmp_path}", "--config.model.dtype=bfloat16"]
    config = load_config(f"{ROOT}/configs/filip.py:base", overrides)
    model = copy.deepcopy(donor["model"]) | {key: config["model"][key] for key in ("attention", "scan", "remat")}
    model["dtype"], model["image"]["image_size"] = "bfloat16", 64  # its positions are resized
    assert config["model"] == model and config["data"]["image_size"] == 64 and config["data"]["text_length"] == 12
    assert config["tokenizer"] == {"name": "kept", "path": f"{tmp_path}/tokenizer.model"}
    assert config["init_from"]["path"] == str(tmp_path) and config["objectives"].keys() == {"filip"}


def test_a_run_that_goes_on_needs_not_the_one_it_began_with(tmp_path):
    """The same command gives the same config once what --init_from names has moved; another name is refused."""
    for name in ("donor", "run"):
        (tmp_path / name).mkdir()
    save_config(tmp_path / "donor", load_config(DEMO, ["--config.model.image.width=64"]))
    overrides = [f"--config.init_from={tmp_path}/donor", "--config.data.image_size=64", "--config.model.text.depth=2"]
    config = load_config(DEMO, overrides, f"{tmp_path}/run")
    save_config(tmp_path / "run", config)
    (tmp_path / "donor").rename(tmp_path / "away")
    again = load_config(DEMO, overrides, f"{tmp_path}/run")
    check_same_run(tmp_path / "run", again)
    assert again["model"] == json.loads(json.dumps(config["model"])) and again["tokenizer"] == config["tokenizer"]
    for donor, workdir in (("donor", "other"), ("elsewhere", "run")):
        with pytest.raises(UserError, match=f"{donor} holds no run"):
            load_config(DEMO, [f"--config.init_from={tmp_path}/{donor}"], f"{tmp_path}/{workdir}")


def test_a_folder_that_is_no_run_gives_no_model(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        load_config(DEMO, [f"--config.init_from={tmp_path}/nothing"])
    public = ROOT / "tests/weights/hf_clip_gelu"
    with pytest.raises(UserError, match=f"filip import {public} --output=DIR, and begin with DIR"):
        load_config(DEMO, [f"--config.init_from={public}"])
    save_config(tmp_path, load_config(DEMO))
    with pytest.raises(UserError, match="the config or that run's has no such section"):
        load_config(f"{ROOT}/configs/eval/prompts.py", [f"--config.init_from={tmp_path}"])
