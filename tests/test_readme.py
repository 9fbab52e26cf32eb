"""Every command block of README and the pages is exercised: run on the quick demo where it is short, else built abstractly."""

import argparse
import functools
import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from conftest import ROOT, slow
from documents import PAGES, all_blocks, blocks, commands
from environment import QUICKLY
from pairs import write_webdataset

from filip_jax.choices import FLAGS
from filip_jax.cli import main
from filip_jax.config import load_config
from filip_jax.data.sources import COMMON, SOURCES, make_source
from filip_jax.evals.run import check_evals, open_evals
from filip_jax.losses.encoded import Encoded
from filip_jax.sections import call, check
from filip_jax.train.setup import make_setup

COMMANDS = {command: page for page, text in blocks("bash") for command in commands(text)}  # each once
PYTHON = {text: page for page, text in blocks("python")}
ELSEWHERE = {  # commands that need what is not here, and what that is
    "pip install xprof": "an environment of its own",
    "xprof --logdir=runs/traced/profile": "XProf, which is no dependency",
    "hf download openai/clip-vit-base-patch32 --local-dir=clip-vit-base-patch32": "the Hub, and its command",
}
EXTRAS = re.findall(
    r"^([a-z0-9]+) =$", (ROOT / "setup.cfg").read_text().split("[options.extras_require]")[1], re.MULTILINE
)


def scripts(*arguments, runs, venv=sys.prefix, cwd="/", flags=""):
    """A launch script, started from another folder as a newcomer might."""
    environment = os.environ | {"RUNS": str(runs), "VENV": str(venv), "XLA_FLAGS": flags, "PYTHON": ""}
    command = ["bash", str(ROOT / arguments[0]), *arguments[1:]]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The folder of `launch/demo.sh --quick`, really run."""
    runs = tmp_path_factory.mktemp("runs")
    done = scripts("launch/demo.sh", "--quick", runs=runs)
    assert done.returncode == 0, done.stdout + done.stderr
    (runs / "output.txt").write_text(done.stdout)
    return runs


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A folder with one image and its caption."""
    folder = tmp_path_factory.mktemp("pairs")
    from PIL import Image

    Image.new("RGB", (30, 20)).save(folder / "dog.jpg")
    (folder / "dog.txt").write_text("a dog")
    return folder


@pytest.fixture(scope="session")
def scenes(demo, tmp_path_factory):
    """The index that docs/search.md embeds first."""
    index = tmp_path_factory.mktemp("scenes") / "scenes.index"
    command = next(command for command in COMMANDS if re.match(r"filip embed .*--output=runs/scenes.index ", command))
    words = command.replace("runs/demo", f"{demo}/quick").replace("runs/scenes.index", str(index)).split()
    assert main(words[1:]) == 0
    return index


WEIGHTS = {  # what stands for public weights
    "clip-vit-base-patch32": "hf_clip_gelu",
    "epoch_32.pt": "open_clip_epoch/epoch_1.pt",
    "my_model.json": "open_clip_epoch/open_clip_config.json",
    "tokenizer.json": "open_clip_epoch/tokenizer.json",
}


IMPORTS = {"clip": "hf_clip_gelu", "siglip": "hf_siglip_one", "dinov2": "hf_dinov2_small"}  # workdirs of public weights


@pytest.fixture(scope="session")
def imported(tmp_path_factory):
    """A function that gives the workdir of one of IMPORTS."""
    runs = tmp_path_factory.mktemp("imported")

    @functools.cache
    def run(name):
        assert main(["import", str(ROOT / "tests/weights" / IMPORTS[name]), f"--output={runs / name}"]) == 0
        return str(runs / name)

    return run


KEEPING = ["--min_side=0", "--no-meaningless", "--languages=en,de"]  # the small pictures "picture 3" and "Bild 3"


@pytest.fixture(scope="session")
def tars(tmp_path_factory):
    """Tars of 24 pictures with two captions each, and what README makes of them."""
    folder = tmp_path_factory.mktemp("tars")
    numbers = [range(0, 12), range(12, 24)]
    (folder / "tars").mkdir()
    write_webdataset(folder / "tars", numbers)
    section = ["webdataset", f"path={folder}/tars"]
    assert main(["data", "convert", *section, f"--output={folder}/tars_256", "--short_side=256"]) == 0
    assert main(["data", "filter", *section, f"--output={folder}/clean", *KEEPING]) == 0
    return folder


@pytest.mark.slow
def test_the_quick_demo_trains_evaluates_draws_and_closes_with_a_table(demo):
    output, workdir = (demo / "output.txt").read_text(), demo / "quick/filip"
    steps = [
        float(loss) for loss in re.findall(r"^step \d+/60 .*? loss ([\d.]+) .*samples/s.*ETA", output, re.MULTILINE)
    ]
    assert len(steps) == 12 and steps[-1] < steps[0] - 1
    rows = dict(re.findall(r"^\| (\S+) +\| (.*) \|$", output, re.MULTILINE))
    ours, chance, neighbour = (float(cell.split()[0]) for cell in rows["val/image_to_text_R@1"].split("|"))
    assert ours > 4 * chance > 0 and neighbour >= 0
    for name in (
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "evals.json",
        "evals.svg",
        "report.html",
    ):
        assert (workdir / name).exists()
    assert len(list((workdir / "pictures/alignment").glob("*_step_*.png"))) == 8
    assert str(workdir.parent) in output.splitlines()[-1]


@pytest.mark.slow
def test_the_other_demos_train_what_they_say(tmp_path):
    """The commands of --clip and of no option, through an environment whose `filip` only prints."""
    (tmp_path / "venv/bin").mkdir(parents=True)
    for name, text in (("python", "exit 0"), ("filip", 'echo "filip $*"')):
        (tmp_path / "venv/bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "venv/bin" / name).chmod(0o755)
    for options, variants in (([], ["filip"]), (["--clip"], ["filip", "clip"])):
        done = scripts("launch/demo.sh", *options, runs=tmp_path, venv=tmp_path / "venv")
        commands = [line for line in done.stdout.splitlines() if line.startswith("filip ")]
        training, after = commands[: len(variants)], commands[len(variants) :]
        assert [c.split("demo.py:")[1].split()[0] for c in training] == variants
        assert after[0] == f"filip eval --workdir={tmp_path}/demo/* --step=latest"
        assert after[1:-1] == [f"filip report --workdir={tmp_path}/demo/{variant}" for variant in variants]
        source = "emoji_scenes split=val seed=0 scenes=1000"
        assert after[-1] == f"filip embed --workdir={tmp_path}/demo/filip --output={tmp_path}/demo.index {source}"
        for command in training:
            built(shlex.split(command)[2:])
    assert scripts("launch/demo.sh", "--nonsense", runs=tmp_path, venv=tmp_path / "venv").returncode == 2


def built(arguments):
    """A train command's config, resolved and built abstractly, its data opened."""
    config = next(a.removeprefix("--config=") for a in arguments if a.startswith("--config="))
    assert any(a.startswith("--workdir=") for a in arguments)
    overrides = [
        a.replace("--init_from=", "--config.init_from=")
        for a in arguments
        if a.startswith(("--config.", "--init_from="))
    ]
    for key in (key for key in FLAGS if f"--{key}" in arguments):
        words = arguments[arguments.index(f"--{key}") + 1 :]
        words = itertools.takewhile(lambda word: not word.startswith("--"), words)
        overrides.append(f"--config.{key}={shlex.join(words)}")
    setup = call(make_setup, load_config(str(ROOT / config), overrides), config)
    make_source(setup.source)
    if setup.eval_every_steps:
        open_evals(setup.evals)


SMALL = {  # options that make a benchmark short
    "benchmarks/fuzz.py": ["--cases=40", "--limit=60"],
    "benchmarks/chaos.py": ["--only=disks", "--steps=12"],
    "benchmarks/retrieval.py": ["--images=40", "--captions=80"],
    "benchmarks/zero_shot.py": ["--classes=10", "--prompts=2", "--images=4"],
}
MEASURED = [
    f"benchmarks/{name}.py" for name in ("dispatch", "filter", "input", "loss", "shards")
]  # by test_benchmarks.py


class Parsed(Exception):
    """Raised when a script has parsed its options."""


def check_options(words):
    """Let a script parse its options, and no more."""
    parse = argparse.ArgumentParser.parse_args

    def parsed(self, *arguments):
        parse(self, *arguments)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        patch.setattr(sys, "argv", words)
        patch.syspath_prepend(ROOT / "benchmarks")
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def check_benchmark(words):
    """Parse the options of a benchmark that other tests run; run any other with small inputs."""
    if words[0] in MEASURED:
        return check_options(words)
    words = words + SMALL.get(words[0], [])
    environment = os.environ | {"XLA_FLAGS": QUICKLY}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^\| (all|images|classes) |^\| disks .* one line, exit 2: ",
        done.stdout,
        re.MULTILINE,
    ), done.stdout


def check_local(words, folder, monkeypatch):
    """Start processes by launch/local.sh that print what they are asked for; test_chaos.py lets it start real ones."""
    for name, text in (("filip", 'echo "filip $*"'), ("python", f'exec {sys.executable} "$@"')):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("FILIP", str(folder / "filip"))
    done = scripts(*words, runs=folder, cwd=ROOT)
    assert done.returncode == 0 and "ended with 0 0" in done.stdout, done.stdout + done.stderr
    commands = re.findall(r"filip train (.*)$", done.stdout, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        built(shlex.split(command))


def check_pip(targets):
    """Installing is tested elsewhere; here, that what is named can be installed, with extras that there are."""
    for target in targets:
        extras = re.fullmatch(r"\.(?:\[([a-z0-9,]+)\])?", target)
        assert extras and set((extras[1] or "demo").split(",")) <= set(EXTRAS), target


def check_page(words, capsys):
    """A page of scenes: it finds some by words, shows one, and ends by an interrupt."""
    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    asked = []

    def run(app, sockets):
        client = TestClient(app, f"http://127.0.0.1:{sockets[0].getsockname()[1]}")
        asked.append(client.post("/api/search", json={"text": "a dog"}).json())
        asked.append(client.get(asked[0]["hits"][0]["picture"]))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("filip_jax.search.page.serve.make_server", lambda app: SimpleNamespace(run=partial(run, app)))
        assert main([*words, "--port=0"]) == 0
    answer, picture = asked
    assert len(answer["hits"]) == 24 and answer["query"]["parts"] == ["dog"] and len(answer["hits"][0]["maps"][0]) == 36
    assert picture.status_code == 200 and picture.headers["content-type"] == "image/jpeg"
    assert "http://127.0.0.1:" in capsys.readouterr().out


def named(command):
    return f"{COMMANDS[command]}: {command}"


def tier(text):
    """Return a command or block, marked as slow if it starts a process or reads the demo's run, and as long by its name."""
    if re.search(r"benchmarks/chaos\.py|--step=all", text):
        return pytest.param(text, marks=(pytest.mark.slow, pytest.mark.long))
    if re.search(r"runs/(demo|clip|siglip|dinov2|scenes|\*)", text) or re.match(
        r"(\w+=\S+ )*(bash|python|filip plan) ", text
    ):
        return slow(text)
    return text


RUN = [command for command in COMMANDS if command not in ELSEWHERE and not command.startswith("bash launch/demo.sh")]


@pytest.mark.parametrize("command", [tier(command) for command in RUN], ids=named)
def test_commands(command, request, imported, pairs, tars, tmp_path, monkeypatch, capsys):
    if "runs/demo" in command:
        command = command.replace("runs/demo", f"{request.getfixturevalue('demo')}/quick")
    for name in IMPORTS:
        if re.match(rf"filip (align|eval|export|train) .*runs/{name}\b", command):
            command = command.replace(f"runs/{name}", imported(name))
    if "runs/scenes.index" in command and not command.startswith("filip embed"):
        command = command.replace("runs/scenes.index", str(request.getfixturevalue("scenes")))
    if '"runs/*"' in command:
        command = command.replace("runs/*", f"{Path(imported('clip')).parent}/*")
    words = shlex.split(command.replace("PAIRS", str(pairs)).replace("runs/", f"{tmp_path}/"))
    words = [word.replace("TARS", f"{tars}/tars") for word in words]
    words = words[next(n for n, word in enumerate(words) if "=" not in word) :]
    if words[:2] == ["bash", "launch/local.sh"]:
        check_local(words[1:], tmp_path, monkeypatch)
    elif words[0] == "bash":
        assert words[1] == "launch/test.sh"
        done = scripts(*words[1:], "--collect-only", "-q", "tests/test_losses.py", runs=tmp_path)
        assert done.returncode == 0 and "test_losses.py::test_" in done.stdout, done.stdout + done.stderr
    elif words[:2] == ["filip", "data"]:
        words = [word.replace(f"path={tmp_path}/tars_256", f"path={tars}/tars_256") for word in words]
        small = [
            "--config.data.image_size=32",
            "--config.data.workers=0",
            "--config.tokenizer.vocab_size=300",
            "--samples=9",
        ]
        assert main(words[1:] + {"bench": small, "filter": KEEPING}.get(words[2], [])) == 0
        assert re.search("wrote|images/s|records", capsys.readouterr().out)
    elif words[0] == "pip":
        assert words[1] == "install"
        check_pip([word for word in words[2:] if not word.startswith("-")])
    elif words[0] == "python":
        check_benchmark(words[1:])
    elif words[1] == "embed":
        assert main(words[1:]) == 0 and re.search(r" new rows?; ", capsys.readouterr().out)
    elif words[1] == "inspect":
        assert main(words[1:]) == 0 and "verified: " in capsys.readouterr().out
    elif words[1] in ("search", "index"):
        if "--engine=lance" in words:
            pytest.importorskip("lancedb")
        assert main(words[1:]) == 0
        shown = capsys.readouterr().out
        found = r"^\| rank |^{\"rank\": 1|the engine holds all 256|recall@10 1.0|as it was written"
        assert re.search(found, shown, re.MULTILINE)
    elif words[1] == "serve":
        check_page(words[1:], capsys)
    elif words[1] == "import":
        for name, place in WEIGHTS.items():
            words = [re.sub(rf"(^|=){name}$", rf"\g<1>{ROOT}/tests/weights/{place}", word) for word in words]
        assert main(words[1:]) == 0 and "mapped: " in capsys.readouterr().out
    elif words[1] == "export":
        assert main(words[1:]) == 0 and "read back: text features" in capsys.readouterr().out
    elif words[1] == "plan":
        pytest.importorskip("libtpu")
        small = ["--config.model.image.depth=1", "--config.model.text.depth=1", "--config.batch_size=32"]
        plan = [sys.executable, "-m", "filip_jax", *words[1:], *small]
        done = subprocess.run(plan, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "it fits: " in done.stdout, done.stderr
    elif words[1] == "sweep" and "configs/eval/" in words[2]:
        monkeypatch.chdir(ROOT)
        assert main(words[1:]) == 0 and capsys.readouterr().out.count("/image_to_text_top1 ") == 5
    elif words[1] == "sweep":
        monkeypatch.chdir(ROOT)
        assert main(words[1:]) == 0 and capsys.readouterr().out.count("filip train --config=configs/demo.py") == 6
    elif words[1] == "train":
        for word in words:
            if word.startswith("--config.tokenizer.path="):  # of a run that is not there
                (tmp_path / "filip_large").mkdir()
                Path(word.split("=", 1)[1]).write_bytes(b"")
        built([word.replace(f"keep={tmp_path}/clean", f"keep={tars}/clean") for word in words[2:]])
    else:
        monkeypatch.chdir(ROOT)
        assert words[0] == "filip" and main(words[1:]) == 0
        output = capsys.readouterr().out
        assert "| val/loss " in output or Path(output.split()[-1]).is_file()


@pytest.mark.parametrize(
    "block", [tier(block) for block in PYTHON], ids=lambda block: f"{PYTHON[block]}: {block.count(chr(10))} lines"
)
def test_python_blocks(block, request, imported, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names, page = {}, PYTHON[block]
    if "runs/demo" in block:
        block = block.replace("runs/demo", f"{request.getfixturevalue('demo')}/quick")
    if '"runs/scenes.index"' in block:
        block = block.replace("runs/scenes.index", str(request.getfixturevalue("scenes")))
    if '"runs/clip"' in block:
        block = block.replace("runs/clip", imported("clip"))
    exec(compile(block.replace('"runs/', f'"{tmp_path}/'), page, "exec"), names)
    if "image_to_text" in names:
        shape = len(names["image_tokens"]), 2
        assert names["image_to_text"].shape == names["text_to_image"].shape == shape and capsys.readouterr().out
    elif "VARIANTS" in names:
        for variant in names["VARIANTS"]:
            call(make_setup, names["get_config"](variant).to_dict(), variant)
    elif "model" in names:
        assert capsys.readouterr().out
    elif "get_config" in names:
        config = names["get_config"]().to_dict()
        if "source" not in config:
            return check_evals(config["evals"])
        source = config["source"]
        assert source.pop("name") == "mixture"
        for section in source.values():  # the paths are not there: nothing but the options can be checked
            options = {k: v for k, v in section.items() if k not in ("name", "weight", "caption_keys", *COMMON)}
            check(SOURCES[section["name"]], options | {"caption_keys": ("txt",)}, "source")
    elif "close" in names:
        encoded = Encoded(image_pooled=jnp.eye(2), text_pooled=jnp.eye(2)[:, None], real=jnp.array([True, False]))
        loss, state, metrics = names["close"](margin=1.5).local({}, {}, encoded, {})
        assert (loss, state, metrics["similarity"]) == (0.5, {}, 1.0)
    elif "features" in names:
        assert len(names["features"].manifest.reductions) == 1 and capsys.readouterr().out
    elif "why" in names:
        assert len(names["hits"]) == 5 and [*names["why"].words] == ["a", "red", "car"]
    elif "make_objectives" not in names:  # whose block looks at its own result
        assert names["sharded"].shape == () and len(names["gradient"].shape) == 3


def test_no_block_is_left_out():
    """Each fence is a block that runs, or a text that holds no command; each exception is still on a page."""
    for page in PAGES:
        text = (ROOT / page).read_text()
        found = [language for other, language, _ in all_blocks() if other == page]
        assert len(re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE)) == 2 * len(found), f"{page}: an indented fence"
        assert set(found) <= {"bash", "python", "text"}, f"{page}: a block in another language"
    for page, text in blocks("text"):
        assert not re.search(r"^\W*(bash|filip|pip|python|git|docker) ", text, re.MULTILINE), page
    assert ELSEWHERE.keys() <= COMMANDS.keys()


def test_the_file_tree_is_the_tree():
    tree = (ROOT / "docs/structure.md").read_text().split("```")[1]
    for path in (ROOT / "filip_jax").iterdir():
        if path.name not in ("__init__.py", "__main__.py", "__pycache__"):
            assert f"  {path.name}{'/' * path.is_dir()}" in tree, path
    for name in re.findall(r"^  (\S+)", tree, re.MULTILINE):
        assert (ROOT / "filip_jax" / name).exists(), name
