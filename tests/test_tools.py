"""`filip data`: what its commands print and leave, from the command line, and their mistakes."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, until
from pairs import key, picture, tar, write_jsonl, write_webdataset
from PIL import Image
from test_images import encoded, photo

from filip_jax import cli_data
from filip_jax.choices import section_of
from filip_jax.cleaning.filter import filter_source
from filip_jax.cli import main
from filip_jax.data.decode import decode
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError
from filip_jax.tools.bench import STAGES, advice
from filip_jax.tools.convert import convert

SHARDS = [range(0, 9), range(9, 10), range(10, 20)]


@pytest.fixture
def pairs(tmp_path):
    """Tars of 20 pairs and three records that cannot be used."""
    (tmp_path / "data").mkdir()
    write_webdataset(tmp_path / "data", SHARDS)
    large = encoded(photo(900, 600), "JPEG")
    tar(tmp_path / "data/00003.tar", [
        ("100.jpg", large), ("100.txt", b"a large picture of a red square and shapes"),
        ("101.png", b"no picture"), ("101.txt", b"broken"), ("102.png", picture(3)), ("103.png", picture(4)), ("103.txt", b" "),
    ])  # fmt: skip
    return f"path={tmp_path}/data"


def data(capsys, *words):
    """(exit code, output, errors) of `filip data`."""
    code = main(["data", *map(str, words)])
    return code, *capsys.readouterr()


def test_index_says_what_the_tars_hold(pairs, tmp_path, capsys):
    code, output, _ = data(capsys, "index", "webdataset", pairs)
    assert code == 0 and output.startswith("24 records in 4 shards; 4 tars with ")
    assert "txt (23)" in output and "png (23)" in output and (tmp_path / "data/.filip_index/index.json").is_file()


@pytest.mark.smoke
def test_inspect_counts_measures_and_draws(pairs, tmp_path, capsys):
    sheet = tmp_path / "new/sheet.png"
    code, output, _ = data(capsys, "inspect", "webdataset", pairs, "caption_keys=txt,de.txt", f"--output={sheet}")
    assert code == 0
    rows = {line[2:26].strip(): line[26:].split() for line in output.splitlines() if line.startswith("  ")}
    assert rows["shorter side, pixels"] == ["12", "12", "12", "12", "600"]
    assert rows["longer / shorter side"][2] == "1.33" and rows["de.txt, words"][:3] == ["2", "2", "2"]
    assert rows["captions per image"] == ["0", "0", "2", "2", "2"]
    assert "formats: PNG 96%, JPEG 4%" in output and re.search(r"txt: 23 texts, 0 of them repeated; \w\w \d+%", output)
    assert "cannot be used: 2  no caption" in output and "cannot be used: 1  no picture that can be read" in output
    image = np.asarray(Image.open(sheet))
    assert image.shape == (4 * 284 + 12, 6 * 212 + 12, 3)
    assert (image[20:200, 20:200] == image[20, 20]).all() and len(
        np.unique(image)
    ) > 15  # views of one colour, and text


def test_inspect_shows_what_training_sees(pairs, tmp_path, capsys):
    config = f"--config={ROOT}/configs/filip.py:base"
    sheets = []
    for name, change in (("a", "False"), ("b", "True")):
        words = [f"--config.data.augment.auto_augment={change}", f"--output={tmp_path}/{name}.png"]
        code, _, errors = data(capsys, "inspect", "webdataset", pairs, config, *words)
        assert code == 0, errors
        sheets.append(np.asarray(Image.open(tmp_path / f"{name}.png")))
    assert sheets[0].shape == sheets[1].shape and (sheets[0] != sheets[1]).any()


@pytest.mark.smoke
def test_convert_writes_every_usable_record_and_names_the_others(pairs, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["convert", "webdataset", pairs, "caption_keys=txt,de.txt", f"--output={output}", "--short_side=300"]
    code, said, _ = data(capsys, *words, "--records_per_shard=7", "--workers=2")
    assert code == 0 and "wrote 23 records" in said and "1 no picture that can be read" in said
    before, after = (make_source(s) for s in (
        dict(name="webdataset", path=f"{tmp_path}/data", caption_keys=("txt", "de.txt")),
        dict(name="array_record", path=str(output)),
    ))  # fmt: skip
    usable = [n for n in range(24) if before.where(n)[1] != "101"]
    assert len(after) == 23
    for index, n in enumerate(usable):
        old, new = before[n], after[index]
        assert (new.key, new.captions) == (old.key, old.captions)
        assert new.image == old.image or (new.key == "100" and min(decode(new.image).size) == 300)
    bad = [json.loads(line) for file in sorted(output.glob("*.bad.jsonl")) for line in file.read_text().splitlines()]
    assert [(each["shard"], each["key"]) for each in bad] == [("00003.tar", "101")]
    modified = {file: file.stat().st_mtime_ns for file in output.iterdir()}
    (output / "00001.json").unlink()  # as if it had been stopped before this shard was whole
    assert data(capsys, *words, "--records_per_shard=7")[0] == 0
    redone = {file.name for file in output.iterdir() if file.stat().st_mtime_ns != modified.get(file)}
    assert redone == {"00001.array_record", "00001.hashes", "00001.json"} and len(after) == 23
    code, _, errors = data(capsys, *words, "--records_per_shard=8")
    assert code == 2 and "was begun with another records_per_shard (7, now 8)" in errors


def test_convert_killed_and_started_again_ends_as_if_it_had_not_been(tmp_path):
    (tmp_path / "data").mkdir()
    section = write_webdataset(tmp_path / "data", [range(0, 200)])
    options = "--records_per_shard=5 --workers=1".split()
    command = [sys.executable, "-m", "filip_jax", "data", "convert", "webdataset", f"path={section['path']}", *options]
    for _ in range(10):  # until one is killed before its end
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        process = subprocess.Popen(
            [*command, f"--output={tmp_path}/killed"], start_new_session=True, stderr=subprocess.DEVNULL
        )
        assert until(lambda: len(list((tmp_path / "killed").glob("*.array_record"))) >= 3)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if len(list((tmp_path / "killed").glob("0*.json"))) < 40:
            break
    assert not (tmp_path / "killed/00039.json").exists()
    section = {name: value for name, value in section.items() if name != "caption_keys"}
    found = [
        convert(section, tmp_path / name, short_side=0, records_per_shard=5, workers=2) for name in ("killed", "whole")
    ]
    assert found[0] == found[1] and found[0]["records"] == 200
    for file in (tmp_path / "whole").glob("*.array_record"):
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes()


@pytest.mark.smoke
def test_filter_then_train_on_what_is_left(tmp_path, capsys):
    write_jsonl(tmp_path, [range(12)])
    captions = ["the best photo of the day"] * 3 + [f"a dog named {n} in a garden" for n in range(8)] + ["IMG_12.jpg"]
    rows = [json.dumps({"image": f"{key(n)}.png", "caption": text}) for n, text in enumerate(captions)]
    (tmp_path / "00000.jsonl").write_text("\n".join(rows))
    rules = ["--max_repeats=2", "--min_side=12", "--languages=", "--no-person_names"]
    words = ["filter", "jsonl", f"path={tmp_path}", *rules]
    code, output, _ = data(capsys, *words, f"--output={tmp_path}/dry", "--dry_run")
    assert code == 0 and "dry run over 12 of 12" in output and not (tmp_path / "dry/kept.npy").exists()
    code, output, _ = data(capsys, *words, f"--output={tmp_path}/clean")
    assert code == 0 and re.search(r"\| repeated +\| +3 \|", output) and re.search(r"\| kept +\| +8 \|", output)
    source = make_source(dict(name="jsonl", path=str(tmp_path), keep=f"{tmp_path}/clean"))
    assert [source[n].key for n in range(8)] == [f"{key(n)}.png" for n in range(3, 11)]


def test_tokenizer_from_the_command_line(pairs, tmp_path, capsys):
    words = ["tokenizer", "webdataset", pairs, f"--output={tmp_path}/a.model", "--vocab_size=300"]
    code, output, _ = data(capsys, *words)
    assert code == 0 and "pieces from 22 texts" in output and (tmp_path / "a.model").is_file()


def test_bench_says_where_the_time_goes(pairs, capsys):
    config = [f"--config={ROOT}/configs/filip.py:base", "--config.data.workers=0", "--config.data.image_size=32"]
    small = ["--config.batch_size=8", "--config.tokenizer.vocab_size=300", "--samples=40"]
    code, output, errors = data(capsys, "bench", "webdataset", pairs, *config, *small)
    assert code == 0, errors
    stages = {name: float(us) for name, us in re.findall(r"^  (.+?) +(\d+) us +\d+%$", output, re.MULTILINE)}
    assert set(stages) == set(STAGES) and stages["decode and augment"] > 0
    cores = float(re.search(r"images/s on ([\d.]+) busy cores of", output)[1])
    assert 0 < cores <= os.cpu_count() + 0.5 and "advice: " in output


@pytest.mark.parametrize(
    "read, decoding, cores, said",
    [
        (9, 1, 1, "data.shuffle=block"),
        (1, 9, 0, "try more data.workers"),
        (1, 9, 99, "--short_side=258"),
        (4, 5, 99, "no stage"),
    ],
)
def test_advice_is_the_change_that_promises_most(read, decoding, cores, said):
    stages = {"read": read, "decode and augment": decoding, "tokenise": 2, "batch": 1}
    assert said in advice(stages, cores, {"shuffle": "global", "workers": 2, "image_size": 224})


@pytest.mark.parametrize(
    "words, message",
    [
        (["index"], "name a source, as in: webdataset path=/data/cc3m, or a --config"),
        (["index", "webdataset", "/data"], "'/data' is not key=value"),
        (
            ["index", "tars", "path=x"],
            "source.name='tars': that is read by the source webdataset",
        ),
        (["index", "folder", "path=nowhere"], "path='nowhere' is not a folder"),
        (["index", "folder", "path=.", "--nonsense=1"], "unknown argument '--nonsense=1'"),
        (
            ["inspect", "emoji_scenes", "split=val", "seed=0", "scenes=4", "--output=a.jpg"],
            "the contact sheet is a PNG",
        ),
        (
            ["inspect", "emoji_scenes", "split=val", "seed=0", "scenes=4", "--output=a.png", "--records=0"],
            "records=0 must be at least 1",
        ),
        (["convert", "emoji_scenes", "split=val", "seed=0", "scenes=4", "--output=OUT"], "one draws them"),
        (["convert", "emoji_scenes", "split=val", "seed=0", "scenes=4", "--output=OUT", "--workers=0"], "workers=0"),
        (["filter", "emoji_scenes", "split=val", "seed=0", "scenes=4", "--output=OUT", "--min_side=-1"], "min_side=-1"),
        (["tokenizer", "emoji_scenes", "split=val", "seed=0", "scenes=4", "--output=a.txt"], "end in .model"),
        (["bench", "emoji_scenes", "split=val", "seed=0", "scenes=4"], "bench times a config's pipeline"),
        (["bench", f"--config={ROOT}/configs/demo.py", "--samples=0"], "samples=0 must be at least 1"),
        (["index", "emoji_scenes", "split=val", "seed=abc", "scenes=4"], "seed='abc' is not a whole number"),
        (["inspect", "folder", "nonsense", "--output=a.png"], "'nonsense' is not key=value"),
        (
            ["inspect", "webdataset", "path=0.tar", "path=1.tar"],
            "path=1.tar: path stands there twice; braces need quotation marks",
        ),
        (["inspect", "data/cc3m"], "is a path: name a source before it, as in: webdataset path=data/cc3m"),
        (["inspect", "coco", "path=a.json"], "source.name='coco': that is read by the source annotations"),
        (["inspect", "folder", "--output=a.png", "nonsense"], "unknown argument 'nonsense'; see filip data inspect"),
        (
            ["tokenizer", "emoji_scenes", "split=val", "seed=0", "scenes=9", "--output=a.model", "--vocab_size=-1"],
            "vocab_size=-1 must",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, errors = data(capsys, *words)
    assert code == 2 and message in errors.splitlines()[-1] and "Traceback" not in errors


def test_help_names_every_option(capsys):
    for command in ("index", "inspect", "convert", "filter", "tokenizer", "bench"):
        with pytest.raises(SystemExit, match="0"):
            main(["data", command, "--help"])
        assert "SOURCE key=value" in capsys.readouterr().out


def test_an_output_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "data").mkdir(), (tmp_path / "out").mkdir()
    section = write_webdataset(tmp_path / "data", [range(3)])
    (tmp_path / "out/precious.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no convert.json"):
        convert(section, tmp_path / "out", short_side=0, records_per_shard=5, workers=1)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_options_are_those_of_the_functions():
    parameters = inspect.signature(filter_source).parameters.values()
    expected = {each.name: each.default for each in parameters if each.default is not each.empty}
    assert cli_data._options(cli_data._filter_options) == expected
    options = [getattr(cli_data, name) for name in vars(cli_data) if name.endswith("_options") and name != "_options"]
    assert {name for each in options for name in cli_data._options(each)} == set(cli_data.HELP)


def test_sources_on_the_command_line():
    assert section_of("source", ["webdataset", "path=2024", "processes=3", "caption_keys=txt,de.txt"], {}) == dict(
        name="webdataset", path="2024", processes=3, caption_keys=("txt", "de.txt")
    )
    section = section_of("source", ["csv", "image=5", 'caption_keys=[("a", 2.0), "b"]', "keep=7"], {})
    assert section == dict(name="csv", image="5", caption_keys=[("a", 2.0), "b"], keep="7")


def test_without_an_output_no_sheet_is_drawn(pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output, _ = data(capsys, "inspect", "webdataset", pairs)
    assert code == 0 and "txt, words" in output and "wrote" not in output and not list(tmp_path.glob("*.png"))


def test_options_of_the_source_may_stand_behind_others(pairs, tmp_path, capsys):
    code, output, _ = data(capsys, "inspect", "webdataset", pairs, f"--output={tmp_path}/a.png", "caption_keys=de.txt")
    assert code == 0 and "de.txt, words" in output and "  txt, words" not in output


def test_another_choice_of_captions_is_another_conversion_and_another_cleaning(pairs, tmp_path, capsys):
    for command in (["convert"], ["filter", "--languages=", "--no-person_names", "--min_side=0"]):
        words = [*command, "webdataset", pairs, f"--output={tmp_path}/{command[0]}"]
        assert data(capsys, *words, "caption_keys=txt,de.txt")[0] == 0
        code, _, errors = data(capsys, *words, "caption_keys=txt")
        assert code == 2 and "was begun with" in errors


def test_an_interruption_ends_a_conversion_at_once(tmp_path):
    (tmp_path / "data").mkdir()
    section = write_webdataset(tmp_path / "data", [range(0, 256)])
    command = [sys.executable, "-m", "filip_jax", "data", "convert", "webdataset", f"path={section['path']}"]
    options = [f"--output={tmp_path}/out", "--records_per_shard=1", "--workers=2"]
    process = subprocess.Popen([*command, *options], start_new_session=True, stderr=subprocess.PIPE, text=True)
    assert until(lambda: len(list((tmp_path / "out").glob("*.array_record"))) >= 3)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors
    assert len(list((tmp_path / "out").glob("*.array_record"))) < 256


def test_a_shard_that_was_lost_is_converted_again(pairs, tmp_path, capsys):
    words = ["convert", "webdataset", pairs, f"--output={tmp_path}/out", "--records_per_shard=7"]
    assert data(capsys, *words)[0] == 0
    (tmp_path / "out/00001.array_record").unlink()
    (tmp_path / f"out/.filip_{'0' * 16}.tmp").write_bytes(b"of one that was killed")
    (tmp_path / "out/00001.notes.tmp").write_bytes(b"of somebody else")
    code, output, _ = data(capsys, *words)
    assert code == 0 and "wrote 23 records" in output and (tmp_path / "out/00001.array_record").is_file()
    assert [file.name for file in (tmp_path / "out").glob("*.tmp")] == ["00001.notes.tmp"]


def test_pictures_with_large_profiles_and_torn_ones(tmp_path, capsys):
    profile = {"icc_profile": bytes(70_000)}
    webp = encoded(photo(60, 50), "WEBP")
    tar(tmp_path / "0.tar", [
        ("1.jpg", encoded(photo(600, 500), "JPEG", **profile)), ("1.txt", b"a"), ("2.webp", webp[:200]), ("2.txt", b"b"),
    ])  # fmt: skip
    source = f"path={tmp_path}"
    code, output, _ = data(capsys, "convert", "webdataset", source, f"--output={tmp_path}/out", "--short_side=300")
    assert code == 0 and "wrote 1 records" in output and "left out: 1 no picture that can be read" in output
    code, output, _ = data(capsys, "inspect", "webdataset", source, f"--output={tmp_path}/a.png")
    assert code == 0 and "cannot be used: 1  no picture" in output


def test_a_missing_package_is_no_bad_record(tmp_path, capsys, monkeypatch):
    def missing(*_):
        raise ImportError("gs")

    monkeypatch.setattr("fsspec.filesystem", missing)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/list.jsonl").write_text('{"image": "gs://bucket/a.png", "caption": "a dog"}')
    off = ["--languages=", "--no-person_names"]
    for command in (
        ["filter", *off, "--workers=0", f"--output={tmp_path}/f"],
        ["inspect", f"--output={tmp_path}/a.png"],
    ):
        code, _, errors = data(capsys, *command, "jsonl", f"path={tmp_path}/data")
        assert code == 2 and "the package gcsfs is missing" in errors
