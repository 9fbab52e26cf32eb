"""Several commands on one output, and outputs that hold what is not theirs: refused in words, or harmless."""

import json
import os
import pickle
import threading

import pytest
from conftest import slow
from memory_source import Memory
from pairs import write_csv, write_jsonl, write_webdataset
from PIL import Image

from filip_jax.cleaning.filter import filter_source
from filip_jax.cli import main
from filip_jax.data.side_captions import SideCaptions
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError
from filip_jax.files import LOCK, locked, write_png
from filip_jax.tools import convert as convert_module
from filip_jax.tools.convert import convert
from filip_jax.tools.sweep import Point, _start

OFF = {"languages": (), "person_names": False}  # the rules that need models


def filtered(folder, output, **options):
    source = Memory([f"a dog number {n}" for n in range(30)], [(300, 300)] * 30)
    return filter_source(source, output, **OFF, **options)


def converted(folder, output):
    folder.mkdir(exist_ok=True)
    section = write_webdataset(folder, [range(0, 9)])
    return convert(section, output, short_side=0, records_per_shard=4, workers=1)


def write_side(folder, shards):
    rows = [{"key": f"{n:06d}", "origin": "x", "caption": "a dog"} for n in range(5000)]
    (folder / "side.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "side.jsonl"


def at_once(action, count=8):
    """What each of several threads, which have one process id, raises."""
    begin, errors = threading.Barrier(count), []

    def run():
        begin.wait()
        try:
            action()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    return errors


@pytest.mark.parametrize("command", [filtered, converted])
def test_a_second_command_on_one_output_is_refused_and_the_next_one_is_not(tmp_path, command):
    output = tmp_path / "out"
    output.mkdir()
    with locked(output / LOCK, "no"), pytest.raises(UserError, match=f"{output}.*: another process .* into it; wait"):
        command(tmp_path / "data", output)
    assert list(output.iterdir()) == []
    first = command(tmp_path / "data", output)
    assert command(tmp_path / "data", output) == first
    assert not (output / LOCK).exists() and not list(output.glob(".filip*"))


@pytest.mark.parametrize("write", [write_webdataset, *map(slow, (write_jsonl, write_csv, write_side))])
def test_indices_that_are_made_in_the_same_moment_by_processes_of_one_number(tmp_path, write):
    for round in range(3):
        folder = tmp_path / str(round)
        folder.mkdir()
        section = write(folder, [range(n, n + 5) for n in range(0, 100, 5)])
        make = (lambda: SideCaptions(str(section))) if write is write_side else lambda: make_source(section)
        assert at_once(make) == []
        make()
        assert not list((folder / ".filip_index").glob("*.tmp"))


@pytest.mark.parametrize("write", [write_webdataset, write_jsonl, write_side])
def test_an_index_goes_through_no_link_that_came_with_the_data_but_is_read_there(tmp_path, write):
    (tmp_path / "victim").mkdir(), (tmp_path / "data").mkdir()
    (tmp_path / "victim/index.json").write_text('{"version": "of another program"}')
    section = write(tmp_path / "data", [range(0, 5)])
    (tmp_path / "data/.filip_index").symlink_to(tmp_path / "victim")
    make = (lambda: SideCaptions(str(section))) if write is write_side else lambda: make_source(section)
    with pytest.raises(UserError, match=".filip_index is a symbolic link, .* set `index`"):
        make()
    assert (tmp_path / "victim/index.json").read_text() == '{"version": "of another program"}'
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["index.json"]
    (tmp_path / "data/.filip_index").unlink()
    make()
    (tmp_path / "data/.filip_index").rename(tmp_path / "archive")
    (tmp_path / "data/.filip_index").symlink_to(tmp_path / "archive")
    make()


def as_folder(place, victim):
    place.mkdir()
    (place / "00000000.json").write_text("mine"), (place / "notes").write_text("mine")


def as_link(place, victim):
    victim.mkdir()
    (victim / "notes").write_text("mine")
    place.symlink_to(victim)


@pytest.mark.parametrize("name, options", [("work", {}), ("dry_run", {"dry_run": True})])
@pytest.mark.parametrize("make", [as_folder, as_link])
def test_a_filter_takes_no_folder_for_its_own_that_is_not(tmp_path, name, options, make):
    output = tmp_path / "out"
    output.mkdir()
    make(output / name, tmp_path / "victim")
    with pytest.raises(UserError, match=f"{name} is there, but no filter made it"):
        filtered(None, output, **options)
    assert all(file.read_text() == "mine" for file in (output / name).iterdir()) and any((output / name).iterdir())


@pytest.mark.parametrize("name", ["kept.npy", "captions.arrow"])
def test_a_filter_overwrites_no_result_that_is_not_of_a_filter(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="not of a filter"):
        filtered(None, tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_dry_run_overwrites_no_report_that_is_not_of_a_filter(tmp_path):
    (tmp_path / "dry_run.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="holds a dry_run.json, but not of a filter"):
        filtered(None, tmp_path, dry_run=True)
    assert (tmp_path / "dry_run.json").read_text() == '{"mine": 1}'


COMMANDS = {
    "inspect": ("sheet.png", ["folder", "class_folder"]),
    "convert": ("out", ["array_record", "jsonl", "csv", "annotations"]),
    "filter": ("out", ["arrow", "annotations"]),
}


@pytest.mark.parametrize("command, source", [(name, each) for name, (_, kinds) in COMMANDS.items() for each in kinds])
def test_no_output_lies_where_it_would_be_read_as_data(tmp_path, capsys, command, source):
    (tmp_path / "data").mkdir(), (tmp_path / "link").symlink_to("data")
    output = COMMANDS[command][0]
    for folder in ("data", "data/deep", "link", "data/deep/.."):
        words = [source, f"path={tmp_path}/data", f"--output={tmp_path}/{folder}/{output}"]
        assert main(["data", command, *words]) == 2
        assert "would be read as data: name another outside" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []
    assert main(["data", command, source, f"path={tmp_path}/data", f"--output={tmp_path}/{output}"]) == 2  # no data
    assert "lies in path" not in capsys.readouterr().err


def test_workers_convert_the_source_that_was_opened(tmp_path, monkeypatch):
    """To open it again would read all captions in each worker, and might find other data than was begun with."""
    section, given = write_webdataset(tmp_path, [range(0, 9)]), []

    def in_this_process(make, arguments, items, workers):
        given.append(pickle.loads(pickle.dumps(arguments)))
        monkeypatch.setattr(convert_module, "make_source", None)
        return map(make(*given[0]), items)

    monkeypatch.setattr(convert_module, "run", in_this_process)
    assert convert(section, tmp_path / "out", short_side=0, records_per_shard=4, workers=2)["records"] == 9


def test_hidden_files_make_no_folder_full(tmp_path):
    (tmp_path / "out").mkdir(), (tmp_path / "out/.DS_Store").touch()
    assert converted(tmp_path / "data", tmp_path / "out")["records"] == 9


def test_the_picture_that_is_looked_at_is_not_overwritten(tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    before = (tmp_path / "a.png").read_bytes()
    for output in ("a.png", "b.png"):
        words = [f"--workdir={tmp_path}", f"--image={tmp_path}/a.png", "--text=x", f"--output={tmp_path}/{output}"]
        assert main(["align", *words]) == 2
        assert "is the picture that is looked at" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before


def test_pictures_and_logs_go_through_no_link(tmp_path):
    (tmp_path / "victim").write_text("mine")
    for name in ("page.png", "a.log"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    write_png(Image.new("RGB", (4, 4)), tmp_path / "page.png")
    with pytest.raises(OSError, match="a.log"):
        _start(Point("a", {}, {}, tmp_path / "a", []), "")
    (tmp_path / "b").symlink_to(tmp_path)
    with pytest.raises(UserError, match="b is a symbolic link"):
        _start(Point("b", {}, {}, tmp_path / "b", []), "")
    assert (tmp_path / "victim").read_text() == "mine" and not os.path.islink(tmp_path / "page.png")
