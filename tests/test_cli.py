"""The command: help worth reading, pictures, tables, and every mistake in one clear line."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from filip_jax.cli import main
from filip_jax.inference import Embedder

DEMO = str(ROOT / "configs/demo.py:quick")


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A run with its last checkpoint and no evaluation, and a picture."""
    folder = tmp_path_factory.mktemp("cli")
    shutil.copytree(finished[0], folder / "run", ignore=shutil.ignore_patterns("4", "8", "evals.json"))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)).save(folder / "picture.jpg")
    (folder / "no_picture.jpg").write_text("this is text")
    return folder


def said(capsys, *arguments):
    """(exit code, standard output, standard error)."""
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def align(run, *changes):
    options = {"workdir": run / "run", "image": run / "picture.jpg", "text": "a red apple", "output": run / "page.png"}
    options |= dict(changes)
    return ["align", *(f"--{name}={value}" for name, value in options.items())]


@pytest.mark.smoke
def test_align_draws_a_page(run, capsys):
    code, output, _ = said(capsys, *align(run, ("output", run / "new/page.png")))
    assert code == 0 and "page.png" in output
    with Image.open(run / "new/page.png") as page:
        assert page.size[0] > 700


@pytest.mark.smoke
def test_align_draws_a_class_name_in_the_papers_prompt(run, capsys):
    arguments = [word for word in align(run, ("output", run / "label.png")) if not word.startswith("--text")]
    code, output, error = said(capsys, *arguments, "--label=top hat")
    assert code == 0 and "label.png" in output and not error
    with Image.open(run / "label.png") as page:
        assert page.size[0] > 700
    for wrong in ([], ["--label=hat", "--text=hat"]):
        with pytest.raises(SystemExit) as stop:
            said(capsys, *arguments, *wrong)
        assert stop.value.code == 2 and "--label" in capsys.readouterr().err


def test_a_label_that_the_context_does_not_reach_is_refused(run, capsys, monkeypatch):
    begin = Embedder.__init__
    monkeypatch.setattr(Embedder, "__init__", lambda *given, **named: begin(*given, **named | {"text_length": 5}))
    arguments = [word for word in align(run) if not word.startswith("--text")]
    code, _, error = said(capsys, *arguments, "--label=hat")
    last = error.splitlines()[-1]
    assert code == 2 and last == "filip: error: --label=hat: the model's context of 5 tokens ends before it"


@pytest.mark.smoke
def test_eval_prints_a_table_beside_the_baselines_and_records_it(run, capsys):
    code, output, _ = said(capsys, "eval", f"--workdir={run / 'r*'}", "--step=all")
    assert code == 0
    header = next(line for line in output.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in header.split("|")[2:-1]] == ["run, step 12", "chance", "pixel neighbour"]
    results = json.loads((run / "run/evals.json").read_text())
    assert {"val/loss", "unseen_cells/image_to_text_top1_low"} <= set(results["steps"]["12"])
    assert "val/image_to_text_R@1" in results["baselines"]["chance"]


def test_several_runs_have_columns_of_their_own_and_one_without_checkpoint_is_left_out(run, capsys):
    for name in ("a/filip", "b/filip", "c/filip"):
        shutil.copytree(run / "run", run / "many" / name)
    shutil.rmtree(run / "many/c/filip/checkpoints")
    (run / "length.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "  source = dict(name='emoji_scenes', split='val', seed=0, scenes=8)\n"
        "  return ConfigDict(dict(evals=dict(few=dict(kind='retrieval', source=source, examples=8))))\n"
    )
    before = json.loads((run / "many/a/filip/evals.json").read_text()) if (run / "run/evals.json").exists() else None
    code, output, error = said(capsys, "eval", f"--workdir={run / 'many/*/filip'}", f"--config={run / 'length.py'}")
    assert code == 0 and "a/filip, step 12" in output and "b/filip, step 12" in output
    assert "filip: warning: " in error and "c/filip has no checkpoint yet" in error
    after = json.loads((run / "many/a/filip/evals.json").read_text())
    assert (
        after["baselines"]["chance"].items() >= (before or {"baselines": {"chance": {}}})["baselines"]["chance"].items()
    )
    assert after["baselines"]["chance"]["few/image_to_text_R@1"] == 1 / 8


def test_eval_takes_other_evaluations_from_a_file_but_never_the_model(run, capsys):
    file = run / "evals.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "  source = dict(name='emoji_scenes', split='val', seed=5, scenes=20)\n"
        "  return ConfigDict(dict(evals=dict(other=dict(kind='retrieval', source=source, examples=10))))\n"
    )
    code, output, _ = said(
        capsys, "eval", f"--workdir={run / 'run'}", f"--config={file}", "--config.evals.other.examples=20"
    )
    assert code == 0 and "other/pairs" in output and "unseen_cells" not in output
    assert json.loads((run / "run/evals.json").read_text())["steps"]["12"]["other/pairs"] == 20


def test_a_long_text_is_cut_counted_and_said(run, capsys):
    code, _, error = said(capsys, *align(run, ("text", "a dog and a cat " * 20)))
    assert code == 0 and error == "filip: warning: 1 of 1 texts are longer than 20 tokens and lose their end\n"


MISTAKES = {
    "unknown key": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.batchsize=3"], 'did you mean batch_size?'),
    "wrong type": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.batch_size=many"], "invalid literal for int"),
    "no config": (["train", "--config=nowhere.py", "--workdir=RUN/x"], "--config=nowhere.py: no such Python file"),
    "indivisible": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.batch_size=130"], "130 is not divisible by the 8 devices"),
    "no folder": (["train", f"--config={ROOT}/configs/filip.py", "--workdir=RUN/x", "--config.mesh.replica=8", "--config.batch_size=8"], "folder: path='' is not a folder"),
    "other config": (["train", f"--config={DEMO}", "--workdir=RUN/run"], "holds a run of another config"),
    "no workdir": (["eval", "--workdir=RUN/nothing"], "nothing holds no run: "),
    "no run matches": (["eval", "--workdir=RUN/n*"], "holds no run"),
    "no step": (["eval", "--workdir=RUN/run", "--step=3"], "has no checkpoint of step 3; it has steps 12"),
    "bad step": (["eval", "--workdir=RUN/run", "--step=last"], "--step=last is not latest, all, best or a number"),
    "stray argument": (["eval", "--workdir=RUN/run", "--config.seed=1"], "unknown argument '--config.seed=1'"),
    "no evals": (["eval", "--workdir=RUN/run", "--config=RUN/empty.py"], "has no section `evals`"),
    "no image": (["align", "--workdir=RUN/run", "--image=RUN/none.png", "--text=x", "--output=RUN/p.png"], "none.png: no such file"),
    "image is text": (["align", "--workdir=RUN/run", "--image=RUN/no_picture.jpg", "--text=x", "--output=RUN/p.png"], "no picture that can be read"),
    "empty text": (["align", "--workdir=RUN/run", "--image=RUN/picture.jpg", "--text= ", "--output=RUN/p.png"], "--text is empty"),
    "empty label": (["align", "--workdir=RUN/run", "--image=RUN/picture.jpg", "--label= ", "--output=RUN/p.png"], "--label is empty"),
    "workdir is a file": (["train", f"--config={DEMO}", "--workdir=RUN/picture.jpg"], "picture.jpg is a file"),
    "output is nowhere": (["align", "--workdir=RUN/run", "--image=RUN/picture.jpg", "--text=x", "--output=RUN/picture.jpg/p.png"], "picture.jpg"),
    "not a png": (["align", "--workdir=RUN/run", "--image=RUN/picture.jpg", "--text=x", "--output=RUN/p.jpg"], "name it so"),
    "no checkpoint": (["align", "--workdir=RUN/bare", "--image=RUN/picture.jpg", "--text=x", "--output=RUN/p.png"], "has no checkpoint yet"),
    "other model": (["eval", "--workdir=RUN/swapped"], "holds another state: params/text/position is "),
    "no tokenizer": (["eval", "--workdir=RUN/mute"], "has no tokenizer"),
    "torn config": (["eval", "--workdir=RUN/torn"], "torn/config.json is damaged"),
    "empty config": (["align", "--workdir=RUN/empty", "--image=RUN/picture.jpg", "--text=x", "--output=RUN/p.png"], "config.json is of an older format"),
    "torn checkpoint": (["eval", "--workdir=RUN/rotten", "--again"], "the checkpoint of step 12 is damaged: "),
    "no word": (["align", "--workdir=RUN/run", "--image=RUN/picture.jpg", "--text=… — !", "--output=RUN/p.png"], "no word to look at"),
    "broken config file": (["train", "--config=RUN/broken.py", "--workdir=RUN/x"], "broken.py, line 2: ZeroDivisionError"),
    "no syntax": (["train", "--config=RUN/syntax.py", "--workdir=RUN/x"], "syntax.py, line 1: SyntaxError"),
    "batch of none": (["train", f"--config={ROOT}/configs/filip.py", "--workdir=RUN/x", "--config.batch_size=0"], "ZeroDivisionError"),
    "seed": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.seed=-1"], "seed=-1 must be at least 0"),
    "ascent": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.optimizer.clip_norm=-1"], "optimizer.clip_norm=-1.0 must be at least 0"),
    "betas": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.optimizer.b1=1"], "optimizer.b1=1.0 must"),
    "scale": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.objectives.filip.logit_scale_init=0"], "objectives.filip.logit_scale_init=0.0 must lie from"),
    "threads": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.data.threads=-1"], "data.threads=-1 must be at least 0"),
    "workers": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.data.workers=-1"], "data.workers=-1 must"),
    "no room for text": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.data.text_length=2"], "data.text_length=2 must be at least 3"),
    "no scenes": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.source.scenes=-2"], "source: emoji_scenes: scenes=-2"),
    "no captions": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.tokenizer.captions=0"], "tokenizer.captions=0"),
    "no such tokenizer": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.tokenizer.path=nowhere"], "tokenizer.path='nowhere': no such file"),
    "too few to evaluate": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.eval_every_steps=5", "--config.evals.val.examples=1000"], "evals.val.examples=1000, but the source has"),
    "no such evaluation": (["train", f"--config={DEMO}", "--workdir=RUN/x", "--config.evals.val.kind=foo"], "evals.val.kind='foo' is not one of"),
}  # fmt: skip


@pytest.fixture(scope="module")
def broken(run):
    """Workdirs that were tampered with."""
    (run / "empty.py").write_text("from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict()\n")
    (run / "broken.py").write_text("def get_config():\n  return 1 / 0\n")
    (run / "syntax.py").write_text("def get_config(:\n")
    for name in ("bare", "swapped", "mute", "torn", "empty", "rotten"):
        shutil.copytree(run / "run", run / name)
    shutil.rmtree(run / "bare/checkpoints")
    (run / "mute/tokenizer.model").unlink()
    (run / "torn/config.json").write_bytes(b"{\xff")
    (run / "empty/config.json").write_text("{}")
    for file in (run / "rotten/checkpoints/12/state").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:100])
    config = json.loads((run / "swapped/config.json").read_text())
    config["model"]["text"]["width"] = 64
    (run / "swapped/config.json").write_text(json.dumps(config))
    return run


@pytest.mark.smoke
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(broken, capsys, name):
    arguments, message = MISTAKES[name]
    if arguments[0] == "train":
        shutil.rmtree(broken / "x", ignore_errors=True)
    code, _, error = said(capsys, *(argument.replace("RUN", str(broken)) for argument in arguments))
    assert code == 2 and message in error
    assert error.startswith("filip: error: ") and error.count("\n") == 1
    assert not (broken / "x").exists()


@pytest.mark.parametrize("command", [[], ["train"], ["eval"], ["align"]])
def test_help_shows_commands_and_options(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and len(text.splitlines()) > 12
    expected = ["--workdir"] if command else ["train", "eval", "align"]
    assert all(word in text for word in expected)


def test_the_module_is_the_command_and_its_help_is_quick():
    """`filip --help` must not wait for JAX."""
    code = "import sys; from filip_jax.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nsys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
    done = subprocess.run([sys.executable, "-m", "filip_jax", "eval", "--workdir=none"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("filip: error: none holds no run")
