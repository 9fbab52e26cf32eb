"""`filip report`: one page about a run that holds all it shows and loads nothing."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import signed
from PIL import Image
from test_plain import HOSTILE, is_plain

from filip_jax.cli import main
from filip_jax.evals.checkpoints import evaluate_runs
from filip_jax.evals.choice import Choice
from filip_jax.saved_config import save_config
from filip_jax.tools.report import report

VOID = {"meta", "img", "br", "rect", "path", "circle"}
LOADS = ("src", "href", "xlink:href", "data", "action", "poster", "srcset")


class Page(HTMLParser):
    """What stands in a page: texts, elements that are left open, and whatever it would load."""

    def __init__(self, html):
        super().__init__()
        self.texts, self.open, self.loads, self.tags = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]
        self.loads += [value for name, value in attributes if name in LOADS]
        self.loads += [
            found for name, value in attributes if name == "style" for found in re.findall(r"url\((.*?)\)", value)
        ]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def run(finished, finished_config, tmp_path_factory):
    """A run with evaluations at two steps, one of them a published task, and pictures."""
    workdir = tmp_path_factory.mktemp("report") / "a <run>"
    shutil.copytree(finished[0], workdir, ignore=shutil.ignore_patterns("4", "evals.json", "pictures"))
    evals = {"alignment": finished_config["evals"]["alignment"], "cifar10": finished_config["evals"]["seen_cells"]}
    save_config(workdir, finished_config | {"evals": evals})
    evaluate_runs(str(workdir), Choice(step="all"))
    return workdir


def read(path):
    with open(path, encoding="utf-8") as file:
        html = file.read()
    page = Page(html)
    assert page.open == [] and all(load.startswith("data:image/webp;base64,") for load in page.loads)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert "default-src 'none'" in html and "@import" not in html and "url(" not in html
    assert set(re.findall(r"https?://[^\"'< ]*", html)) <= {"http://www.w3.org/2000/svg"}
    return page


def test_the_page_holds_what_the_run_has(run, capsys):
    assert main(["report", f"--workdir={run}"]) == 0
    assert capsys.readouterr().out == f"wrote {run}/report.html\n"
    page = read(run / "report.html")
    assert {"a <run>", "12", "100 %", "loss", "pairs per second", "optimizer.peak_learning_rate", "chance"} <= set(
        page.texts
    )
    assert {"Evaluations", "Training", "Where the time went", "What words see", "The data", "Config"} <= set(page.texts)
    assert "FILIP base" in page.texts and "cifar10" in page.texts
    results = json.loads((run / "evals.json").read_text())["steps"]["12"]
    assert f"{results['cifar10/image_to_text_top1']:.3f}" in map(str.strip, page.texts)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-2])  # the last line is the evaluation's
    assert f"{last['train/loss']:.4g}" in page.texts
    assert page.tags.count("img") == 2 + 1 and page.tags.count("svg") == 2 + 6  # pages and contact sheet; charts
    with Image.open(io.BytesIO(base64.b64decode(page.loads[0].partition(",")[2]))) as picture:
        assert picture.size[0] > 700


def test_a_page_of_a_run_that_has_nothing_yet(run, tmp_path):
    (tmp_path / "new").mkdir()
    config = json.loads((run / "config.json").read_text())
    config["source"] = {"name": "folder", "path": "/nowhere/<b>"}
    (tmp_path / "new/config.json").write_text(json.dumps(config))
    page = read(report(str(tmp_path / "new"), str(tmp_path / "out/page.html")))
    assert "None yet: filip eval makes them." in page.texts and "No step is logged yet." in page.texts
    assert any(
        "It cannot be shown here: source: folder: path='/nowhere/<b>' is not a folder" in text for text in page.texts
    )


def test_what_is_damaged_is_named(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "checkpoints/12/manifest.json").write_text("torn")
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "train/loss": Infinity, "train/lr": 0.25}\n{"step')
    (copy / "pictures/alignment/0_step_0000012.png").write_bytes(b"no picture")
    page = read(report(str(copy)))
    assert any("0_step_0000012.png cannot be read" in text for text in page.texts)
    assert any("manifest.json is damaged" in text for text in page.texts)
    assert "inf" in page.texts  # the newest loss


def test_what_comes_from_elsewhere_is_text(run, tmp_path):
    """Names and values of a checkpoint, of evaluations and of a config that somebody else has made."""
    copy, evil = shutil.copytree(run, tmp_path / "run"), '<meta http-equiv="refresh" content="0;url=https://evil/">'
    manifest = json.loads((copy / "checkpoints/12/manifest.json").read_text())
    manifest["meta"] |= {evil: evil}
    (copy / "checkpoints/12/manifest.json").write_text(signed(manifest))
    results = json.loads((copy / "evals.json").read_text())
    results["steps"]["12"] |= {f"{evil}/top1": 0.5, "cifar10/text": evil}
    results["baselines"][evil] = {f"{evil}/top1": 0.25}
    results["tasks"]["12"][evil] = {evil: evil}
    (copy / "evals.json").write_text(json.dumps(results))
    config = json.loads((copy / "config.json").read_text())
    config["source"] = {"name": evil, evil: evil}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "pictures" / "<b>").mkdir()
    with pytest.warns(UserWarning, match="evals.json: left out, since it is not as it was written: "):
        page = Page(Path(report(str(copy))).read_text())
    assert page.tags.count("meta") == 3 and "b" not in page.tags[page.tags.index("section") :] and page.open == []
    assert sum(evil in text for text in page.texts) > 3


def hostile_run(run, folder):
    """A copy of a run of which all names and values that nothing checks are hostile texts."""
    copy, evil = shutil.copytree(run, folder / "run"), [text[:2000] for text in HOSTILE]
    manifest = json.loads((copy / "checkpoints/12/manifest.json").read_text())
    manifest["meta"] |= dict(zip(evil, reversed(evil)))
    manifest["config"] |= dict(zip(evil, reversed(evil)))
    (copy / "checkpoints/12/manifest.json").write_text(signed(manifest))
    results = json.loads((copy / "evals.json").read_text())
    for n, text in enumerate(evil):
        results["steps"]["12"] |= {f"{text}/top1": 0.5, f"cifar10/{n}{text}": text, f"eval/{n}/error": text}
        results["baselines"][text] = {"cifar10/top1": 0.25, f"{text}/top1": 0.25}
        results["tasks"]["12"][text] = {text: text}
    (copy / "evals.json").write_text(json.dumps(results))
    config = json.loads((copy / "config.json").read_text())
    config |= dict(zip(evil, reversed(evil))) | {"source": {"name": "folder", "path": evil[4]}}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_a_hostile_run_is_shown_as_plain_lines(run, tmp_path, capsys):
    copy = hostile_run(run, tmp_path)
    for words in (["inspect", str(copy)], ["eval", f"--workdir={copy}"], ["report", f"--workdir={copy}"]):
        assert main(words) == 0
        output, errors = capsys.readouterr()
        assert all(map(is_plain, output.split("\n"))) and all(map(is_plain, errors.split("\n"))), words
        assert words[0] != "inspect" or "\nfilip: error" not in output
    rows = [re.sub(r"\\.", "", line) for line in (copy / "evals.md").read_text().split("\n") if line.startswith("|")]
    assert len(rows) > 5 and not any(set(row) & set("<`*") for row in rows)
    # Published models stand in a table of their own.
    own = rows[: [row.startswith("| model") for row in rows].index(True)]
    assert len({row.count("|") for row in own}) == 1
    ElementTree.parse(copy / "evals.svg")
    html = (copy / "report.html").read_text()
    page = Page(html)
    assert all(map(is_plain, html.split("\n"))) and page.open == [] and "script" not in page.tags
    assert all(load.startswith("data:image/webp;base64,") for load in page.loads)


def test_each_evaluation_has_its_newest_step(run, tmp_path):
    """Evaluations at an earlier step, as of --step=best, stand beside those of the newest."""
    copy = shutil.copytree(run, tmp_path / "run")
    results = json.loads((copy / "evals.json").read_text())
    results["steps"]["8"] |= {"imagenet/image_to_text_top1": 0.5, "eval/probe/error": "no memory"}
    (copy / "evals.json").write_text(json.dumps(results))
    page = read(report(str(copy)))
    assert "imagenet/image_to_text_top1" in page.texts and "0.500" in page.texts and "50.0" in page.texts
    assert "no memory" in page.texts


@pytest.mark.parametrize(
    "words, said",
    [
        (["--workdir=/nowhere/run"], "/nowhere/run holds no run: config.json is missing"),
        (["--workdir=RUN", "--output=page.pdf"], "--output=page.pdf: the page is HTML; name it FILE.html"),
    ],
)
def test_mistakes_are_one_line(run, words, said, capsys):
    assert main(["report", *(word.replace("RUN", str(run)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
