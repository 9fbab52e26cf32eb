"""`filip data` on what others may hand over: hostile names and captions, and data of which nothing can be used."""

import csv
import json
import re

import pytest
from conftest import ROOT
from pairs import picture, tar
from test_plain import HOSTILE, READABLE, is_plain

from filip_jax.cli import main
from filip_jax.data.record import kind_of
from filip_jax.data.sources import make_source
from filip_jax.evals import fonts
from filip_jax.tools import inspect

TEXTS = [re.sub("[\ud800-\udfff]", "?", text[:1000]) for text in (*HOSTILE, *READABLE)]
NAMES = [re.sub(r"[/.\0]", "", text)[:40] or "none" for text in TEXTS]
OFF = ["--languages=", "--no-person_names", "--min_side=0", "--workers=0"]


def write_tars(folder):
    """Each name is a key, a text, and the ending of a member that nobody knows; one picture of three is none."""
    members = []
    for n, (name, text) in enumerate(zip(NAMES, TEXTS)):
        key = f"{n}{name}"
        members += [
            (f"{key}.png", picture(n) if n % 3 else b"bad"),
            (f"{key}.txt", text.encode()),
            (f"{key}.{name}", b""),
        ]
    tar(folder / "a.tar", members)
    return "webdataset"


def write_folder(folder):
    for n, (name, text) in enumerate(zip(NAMES, TEXTS)):
        (folder / f"{n}{name}").mkdir()
        (folder / f"{n}{name}/{name}.png").write_bytes(picture(n) if n % 3 else b"bad")
        (folder / f"{n}{name}/{name}.txt").write_bytes(text.encode())
    return "folder"


def write_classes(folder):
    write_folder(folder)
    return "class_folder"


def write_list(folder):
    rows = [{"image": f"{n}.png", "caption": text, "key": text, text: "x"} for n, text in enumerate(TEXTS)]
    for n in range(len(rows)):
        (folder / f"{n}.png").write_bytes(picture(n) if n % 3 else b"bad")
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "jsonl"


@pytest.mark.parametrize("write", [write_tars, write_folder, write_classes, write_list])
def test_hostile_data_is_shown_as_plain_lines(write, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    source, out = [write(tmp_path / "data"), f"path={tmp_path}/data"], f"--output={tmp_path}/\x1b[31m\nout"
    commands = {
        "index": [],
        "inspect": [f"{out}.png"],
        "convert": [f"{out}_converted"],
        "filter": [f"{out}_filtered", *OFF],
        "tokenizer": [f"{out}.model", "--vocab_size=600"],
    }
    counts = {"index": 2, "inspect": 40, "convert": 6, "filter": 14, "tokenizer": 4}
    for command, options in commands.items():
        code = main(["data", command, *source, *options])
        output, errors = capsys.readouterr()
        assert code == 0, errors
        lines = [*output.split("\n"), *errors.split("\n")]
        assert all(map(is_plain, lines)) and 1 < len(lines) <= counts[command] + 4, (command, lines)
        assert max(map(len, lines)) < 4200
        if command == "filter":
            rows = [re.sub(r"\\.", "", line) for line in lines if line.startswith("|")]
            assert rows and {row.count("|") for row in rows} == {6} and not any(set(row) & set("<`[*") for row in rows)


def test_workers_repeat_no_warning(tmp_path, capfd):
    (tmp_path / "data").mkdir()
    write_folder(tmp_path / "data")
    (tmp_path / "data/bare.png").write_bytes(picture(1))
    assert main(["data", "convert", "folder", f"path={tmp_path}/data", f"--output={tmp_path}/out", "--workers=1"]) == 0
    output, errors = capfd.readouterr()
    assert errors.count("have no caption") == 1 and "UserWarning" not in errors and "train on it with: " in output


def write_bad(folder, kind):
    """Data in which no record can be used, of one kind each."""
    if kind == "no pictures":
        tar(folder / "a.tar", [(f"{n}.{end}", b"bad") for n in range(9) for end in ("jpg", "txt")])
        return ["webdataset", f"path={folder}"]
    if kind == "no captions":
        tar(
            folder / "a.tar",
            [(f"{n}.{end}", data) for n in range(9) for end, data in (("png", picture(n)), ("txt", b" "))],
        )
        return ["webdataset", f"path={folder}"]
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["image", "caption"], *([f"{n}.png", f"a {n}"] for n in range(9 * (kind == "no files")))]
        )
    return ["csv", f"path={folder}/a.csv"]


@pytest.mark.parametrize("kind", ["no pictures", "no captions", "no files", "no rows"])
def test_data_of_which_nothing_can_be_used_ends_non_zero(kind, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    source = write_bad(tmp_path / "data", kind)
    said = {}
    for command, options in {"index": [], "inspect": [".png"], "convert": ["_c"], "filter": ["_f", *OFF]}.items():
        words = [f"--output={tmp_path}/out{options[0]}", *options[1:]] if options else []
        code = main(["data", command, *source, *words])
        said[command], errors = capsys.readouterr()
        usable = kind == "no captions" and command == "convert"  # whose pictures are whole: captions may come beside it
        assert code == (0 if usable else 2), (command, errors)
        assert usable or (errors.splitlines()[-1].startswith("filip: error: ") and "Traceback" not in errors)
    if kind != "no rows":
        reason = {"no pictures": "no picture that can be read", "no captions": "no caption", "no files": "no such file"}
        assert (
            f"cannot be used: 9  {reason[kind]}" in said["inspect"] and said["inspect"].count("cannot be used: ") == 1
        )
        assert "9 looked at: " in said["inspect"] and "9 records cannot be used" in said["inspect"]


def test_a_tokenizer_needs_captions(tmp_path, capsys):
    assert main(["data", "tokenizer", *write_bad(tmp_path, "no captions"), f"--output={tmp_path}/a.model"]) == 2
    assert "none of 9 records has a caption. The data is 1 tar with" in capsys.readouterr().err
    assert not (tmp_path / "a.model").exists()


def test_a_filter_that_keeps_nothing_names_the_rules(tmp_path, capsys):
    tar(
        tmp_path / "a.tar",
        [(f"{n}.{end}", data) for n in range(9) for end, data in (("png", picture(n)), ("txt", b"a dog"))],
    )
    rules = ["--languages=", "--no-person_names", "--workers=0", "--max_repeats=0"]
    for more in ([], ["--dry_run"]):
        assert (
            main(["data", "filter", "webdataset", f"path={tmp_path}", f"--output={tmp_path}/out", *rules, *more]) == 2
        )
        output, errors = capsys.readouterr()
        assert (
            "filip: error: filter: no record is left; most were dropped by min_side 9: " in errors
            and "| min_side" in output
        )


@pytest.mark.parametrize("command", ["bench", "train"])
def test_neither_bench_nor_training_begins_without_usable_records(command, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    source, config = write_bad(tmp_path / "data", "no pictures"), f"--config={ROOT}/configs/demo.py:quick"
    words = ["data", "bench", *source, config] if command == "bench" else ["train", config, f"--workdir={tmp_path}/run"]
    assert main([*words, *(["--source", *source] if command == "train" else [])]) == 2
    assert "none of 9 records looked at can be used: no picture that can be read (9)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "one, other",
    [
        ("no such file: 'a b.jpg'", "no such file: 'c'"),
        (
            "an image of 71000000 bytes; at most 67108864 are read",
            "an image of 67200000 bytes; at most 67108864 are read",
        ),
        ("label='dog, cat' names several classes", "label='pig' names several classes"),
        ("json cannot be read: Expecting value: line 1", "json cannot be read: Extra data: line 2"),
    ],
)
def test_reasons_are_counted_by_kind(one, other):
    assert (kind_of(one) == kind_of(other) and "…" in kind_of(one)) or ":" in one
    assert kind_of(one) != kind_of("no caption")


@pytest.mark.parametrize("text", [*TEXTS, *(text * 40 for text in READABLE)], ids=range(len(TEXTS) + len(READABLE)))
def test_captions_fit_below_their_views(text):
    text = inspect._shown(text)
    font = fonts.sized(fonts.font_name(text), inspect.LETTERS)
    lines = list(inspect._broken(text, font))
    assert len(lines) <= inspect.LINES and all(font.getlength(line) <= inspect.SIDE + inspect.GAP for line in lines)
    shown, whole = "".join("".join(lines).split()), "".join(text.split())  # lines break at blanks of any width
    assert shown == whole or (shown[-1] == "…" and whole.startswith(shown[:-1]))


def test_the_contact_sheet_shows_all_parts_of_the_data_and_names_signs_without_a_glyph(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fonts, "SYSTEM", ())
    (tmp_path / "data").mkdir()
    for count, first, last in ((5, 0, 4), (4000, 0, 3800)):
        (tmp_path / "data/0.png").write_bytes(picture(1))
        rows = [json.dumps({"image": "0.png", "caption": f"{n} 狗"}) for n in range(count)]
        (tmp_path / "data/list.jsonl").write_text("\n".join(rows))
        source = make_source({"name": "jsonl", "path": f"{tmp_path}/data"})
        views = inspect.sample_views(source, 16, dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False))
        shown = [int(caption.split()[0]) for _, caption in views]
        assert len(set(shown)) == len(shown) == min(count, 24) and min(shown) == first and max(shown) >= last
    assert main(["data", "inspect", "jsonl", f"path={tmp_path}/data", f"--output={tmp_path}/a.png"]) == 0
    assert "warning: no font that is installed here knows 狗: the sheet has boxes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, near",
    [(["csv", "img=a"], "image or images"), (["csv", "caption=a"], "caption_keys"), (["webdatset"], "webdataset")],
)
def test_a_name_that_is_nearly_right_is_answered_with_the_right_one(words, near, capsys):
    assert main(["data", "index", words[0], "path=x", *words[1:]]) == 2
    assert near in capsys.readouterr().err.partition("; did you mean ")[2]
