"""A run's folder that came from a stranger: its config writes nothing outside of it."""

import json
import os
import shutil

import pytest
from pairs import write_webdataset
from PIL import Image

from filip_jax.cli import main
from filip_jax.config import load_evals
from filip_jax.data.index_folder import sources_of_others
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError
from filip_jax.evals import tasks
from filip_jax.evals.run import check_evals
from filip_jax.names import MAX_NAME_BYTES, is_metric, is_name, make_name
from filip_jax.train.loop import train

BAD = (
    "", " ", ".", "..", ".hidden", "-option", "a/b", "/abs", "../a", "a\\b", "a\0", "a\n", "a\x1b[2J", "a|b", "a*", "a?",
    "[a]", "<b>", "a`b", "a$b", "a;b", "a&b", "a'b", 'a"b', "a:b", "a~", "a#b", "a%b", "a@b", "a\u202eb", "a\u200bb", "\ud800", "a ",
    "a.", "x" * (MAX_NAME_BYTES + 1), "语" * 34,
)  # fmt: skip
GOOD = ("val", "a-b_c.d", "x prompt=a {}", "1", "_a", "prüfung", "हिन्दी", "语" * 33, "a,b+c", "x" * MAX_NAME_BYTES)


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_what_is_no_name(name):
    assert not is_name(name)
    with pytest.raises(UserError, match="evals: .* cannot be a name") as caught:
        check_evals({name: dict(kind="retrieval", source={}, examples=1)})
    assert str(caught.value).isprintable()
    assert not is_metric(f"{name}/x") and not is_metric(f"eval/{name}/error")


@pytest.mark.parametrize("name", GOOD)
def test_what_is_a_name(name):
    assert is_name(name) and make_name(name) == name and is_metric(f"{name}/R@1") and is_metric(f"eval/{name}/error")


def test_any_text_becomes_a_name_of_its_own():
    texts = [*BAD, *GOOD, "a/b ", "a  b", "a\tb"]
    names = list(map(make_name, texts))
    assert len(set(names)) == len(texts) and all(map(is_name, names)), names


def test_points_of_a_sweep_of_evaluations_are_names(tmp_path):
    file = tmp_path / "points.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "  return ConfigDict(dict(evals=dict(x=dict(kind='retrieval', source={}, prompt=''))))\n"
        "def sweep():\n"
        "  yield {}\n"
        "  for text in ('../../a', '|', '\\x1b[2J', '一张照片' * 40, ''):\n"
        "    yield {'evals.x.prompt': text}\n"
    )
    names = list(load_evals(str(file)))
    assert len(names) == 6 and all(map(is_name, names))


@pytest.fixture(scope="module")
def stranger(finished, tmp_path_factory):
    """A finished run without evaluations, and data."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(finished[0], folder / "run", ignore=shutil.ignore_patterns("4", "8", "evals.json", "pictures"))
    config = json.loads((folder / "run/config.json").read_text())
    (folder / "run/config.json").write_text(json.dumps(config | {"evals": {}}))
    (folder / "data").mkdir()
    source = write_webdataset(folder / "data", [range(4)])
    image = next(path for path in folder.rglob("*.tar"))
    (folder / "lists").mkdir()
    shutil.copy(image, folder / "lists")
    (folder / "lists/a.jsonl").write_text(json.dumps({"image": "a.png", "caption": "a dog"}) + "\n")
    return folder, source


def files(folder):
    """All files below a folder, with their times."""
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def hostile(stranger, tmp_path, monkeypatch):
    """A copy to be changed, data beside it, and a cache of one's own."""
    shutil.copytree(stranger[0], tmp_path / "all")
    (tmp_path / "outside").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def sections(folder):
    """Sources of every kind that makes an index, each with one named outside and without."""
    data, lists, outside = (str(folder / name) for name in ("all/data", "all/lists", "outside"))
    for index in ({}, {"index": outside}):
        yield dict(name="webdataset", path=data, **index)
        yield dict(name="jsonl", path=f"{lists}/a.jsonl", **index)


@pytest.mark.parametrize("command", ["eval", "report"])
@pytest.mark.parametrize("number", range(4))
def test_an_index_that_only_a_saved_config_names_is_not_written(hostile, number, command, capsys):
    run = hostile / "all/run"
    section = list(sections(hostile))[number]
    config = json.loads((run / "config.json").read_text())
    config |= {"source": section, "evals": {"val": dict(kind="retrieval", source=section, examples=1)}}
    (run / "config.json").write_text(json.dumps(config))
    before = {name: files(hostile / name) for name in ("outside", "all/data", "all/lists")}
    main([command, f"--workdir={run}"])
    assert "Traceback" not in capsys.readouterr().err
    assert {name: files(hostile / name) for name in before} == before
    assert list((hostile / "cache/filip_jax/indices").rglob("*.json"))
    with sources_of_others():
        again = files(hostile / "cache")
        make_source(section)
        assert files(hostile / "cache") == again  # it is found there


@pytest.mark.parametrize("number", range(4))
def test_an_index_that_is_there_is_read_and_ones_own_lies_anywhere(hostile, number):
    section = list(sections(hostile))[number]
    source = make_source(section)
    made = files(hostile)
    with sources_of_others():
        assert make_source(section).identity == source.identity
    assert files(hostile) == made and any(".filip_index" in str(path) or "outside" in str(path) for path in made)


def test_names_of_a_saved_config_lead_nowhere(hostile, capsys):
    run, outside = hostile / "all/run", hostile / "outside"
    config = json.loads((run / "config.json").read_text())
    source = dict(name="emoji_scenes", split="val", seed=0, scenes=4)
    names = (f"{outside}/abs", "../../../outside/rel", "bad\x1b[2J\x1b]0;owned\x07|x\n<script>alert(1)</script>")
    kinds = {name: dict(kind="pictures", source=source, examples=2) for name in names}
    config["evals"] = kinds | {"good": dict(kind="pictures", source=source, examples=1)}
    (run / "config.json").write_text(json.dumps(config))
    assert main(["eval", f"--workdir={run}"]) == 2
    output = capsys.readouterr()
    assert "\x1b" not in output.out + output.err and output.err.count("cannot be a name") == 3
    assert not os.listdir(outside) and sorted(os.listdir(run / "pictures")) == ["good"]


def test_a_name_of_ones_own_is_refused_before_anything_is_compiled(tmp_path, small_demo):
    evals = {"a/b": small_demo["evals"]["val"]}
    with pytest.raises(UserError, match="'a/b' cannot be a name"):
        train(tmp_path / "run", small_demo | {"evals": evals})
    assert not (tmp_path / "run").exists()


def test_a_report_shows_no_picture_behind_a_link(hostile, capsys):
    run, outside = hostile / "all/run", hostile / "outside"
    (run / "pictures/own").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(run / "pictures/own/0_step_0000001.png")
    shutil.copytree(run / "pictures", outside / "pictures")
    (run / "pictures/theirs").symlink_to(outside / "pictures/own")
    assert main(["report", f"--workdir={run}"]) == 0
    page = (run / "report.html").read_text()
    assert "<h3>own</h3>" in page and "<h3>theirs</h3>" not in page
    shutil.rmtree(run / "pictures")
    (run / "pictures").symlink_to(outside / "pictures")
    assert main(["report", f"--workdir={run}"]) == 0
    assert "<h3>own</h3>" not in (run / "report.html").read_text()


def test_only_options_that_are_paths_are_looked_for_as_files(tmp_path, monkeypatch):
    """A column may be called "/", and a source's name be that of a folder beside."""
    (tmp_path / "jsonl").mkdir()
    (tmp_path / "jsonl/a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    section = dict(name="jsonl", image=str(tmp_path), key=f"{tmp_path}/*/*", split="jsonl")
    assert tasks._stamps(section) == []
    assert [file for file, *_ in tasks._stamps(section | {"path": "jsonl"})] == ["jsonl/a.txt"]


def test_a_file_of_positives_is_hashed_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "FILE_BYTES", 10)
    hashes = []
    for size in (10, 20):
        (tmp_path / "a.json").write_bytes(b"x" * size)
        hashes.append(tasks._file(str(tmp_path / "a.json")))
    assert len(set(hashes)) == 1
