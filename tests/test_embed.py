"""`filip embed`: every record once, killed or not, in any number of processes; what is new, gone, doubled or cannot be read."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
from conftest import slow, unit
from feature_files import manifest_of, tokens_of, write_features
from pairs import tar
from PIL import Image

from filip_jax.cli import main
from filip_jax.data.record import BadRecord
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError
from filip_jax.evals import retrieval
from filip_jax.features import FeatureWriter, open_features
from filip_jax.features.manifest import FILE, PARTS
from filip_jax.inference import load_model
from filip_jax.search import work as module
from filip_jax.search.embed import embed, sample_of
from filip_jax.search.pictures import open_pictures
from filip_jax.search.reductions import check_order, parse, recalls, reduced, token_map, words_of

SCENES = {"name": "emoji_scenes", "split": "val", "seed": 0, "scenes": 24}
QUICK = dict(batch_size=1, part_rows=5, say=lambda line: None)  # eight devices: batches of eight


def picture(number, size=(30, 20), orientation=1, format="JPEG") -> bytes:
    """An encoded picture of its own color, with a darker corner."""
    image = Image.new("RGB", size, (10 * number, 90, 200 - 8 * number))
    image.paste((0, 0, 0), (0, 0, 9, 9))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(file, format, **({"exif": exif} if orientation > 1 else {}))
    return file.getvalue()


@pytest.fixture(scope="module")
def workdir(finished) -> str:
    return str(finished[0])


@pytest.fixture(scope="module")
def model(workdir):
    return load_model(workdir)


def photos(folder: Path) -> dict:
    """A folder of pictures as people have them, and the section of a source that reads it."""
    folder.mkdir()
    (folder / "Ferien 2019").mkdir()
    for number in range(6):
        (folder / "Ferien 2019" / f"IMG {number} ü中.jpg").write_bytes(picture(number, orientation=1 + number))
    (folder / "a.png").write_bytes(picture(9, format="PNG"))
    (folder / "a.txt").write_text("a green field\n")
    (folder / "broken.jpg").write_bytes(picture(3)[:200])
    (folder / "no picture.jpg").write_text("nothing")
    return {"name": "folder", "path": str(folder)}


def contents(folder: Path) -> dict[str, bytes]:
    """The files that rows are read from."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.arrow"))} | {
        FILE: (folder / FILE).read_bytes()
    }


def keys_of(features, rows=None) -> list[str]:
    rows = np.flatnonzero(features.live) if rows is None else rows
    return [each["key"] for each in features.fields(rows)]


def test_a_folder_of_photos_without_captions_is_embedded(workdir, model, tmp_path, capsys):
    section = photos(tmp_path / "my photos")
    words = [section["name"], f"path={section['path']}", "--dtype=float32", "--batch_size=1"]
    assert main(["embed", f"--workdir={workdir}", f"--output={tmp_path}/index", *words]) == 0
    output = capsys.readouterr().out
    assert "7 new rows" in output and "2 records cannot be used" in output
    features = open_features(tmp_path / "index")
    fields = features.fields(range(7))
    assert [each["key"] for each in fields] == [*(f"Ferien 2019/IMG {n} ü中.jpg" for n in range(6)), "a.png"]
    assert {each["shard"] for each in fields} == {""} and [each["caption"] for each in fields] == [""] * 6 + [
        "a green field"
    ]
    assert [each["orientation"] for each in fields] == [1, 2, 3, 4, 5, 6, 1]
    assert [(each["width"], each["height"]) for each in fields] == [(30, 20)] * 4 + [(20, 30)] * 2 + [(30, 20)]
    files = [tmp_path / "my photos" / each["key"] for each in fields]
    np.testing.assert_allclose(features.tokens(range(7))[0], model.encode_image(files), atol=1e-5)
    np.testing.assert_allclose(features.pooled(range(7)), unit(model.encode_image(files).sum(axis=1)), atol=1e-5)
    named = [json.loads(line) for line in (tmp_path / "index/quarantine/process_0.jsonl").read_text().splitlines()]
    assert [each["key"] for each in named] == ["broken.jpg", "no picture.jpg"] and all(each["reason"] for each in named)
    show = open_pictures(features)
    assert show(4).size == (20, 30) and not features.manifest.progress
    assert features.manifest.model == model.origin


def test_texts_are_rows_of_their_own(workdir, model, tmp_path):
    members = [("0.png", picture(0)), ("0.txt", b"a red car"), ("0.de.txt", b"ein rotes Auto"), ("1.png", picture(1))]
    members += [("1.txt", b" "), ("1.de.txt", b"ein " + b"sehr " * 40 + b"blauer Hund")]
    tar(tmp_path / "a.tar", members)
    section = {"name": "webdataset", "path": str(tmp_path), "caption_keys": ("txt", "de.txt")}
    said: list[str] = []
    options = QUICK | {"say": said.append}
    features = embed(workdir, section, tmp_path / "index", side="text", dtype="float32", **options)
    captions = ["a red car", "ein rotes Auto", "ein " + "sehr " * 40 + "blauer Hund"]
    assert features.column("caption").to_pylist() == captions
    assert [(each["key"], each["index"], each["shard"]) for each in features.fields(range(3))] == [
        ("0", 0, "a.tar"), ("0", 0, "a.tar"), ("1", 1, "a.tar"),
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="1 of 3 texts are longer"):
        tokens, mask = model.encode_text(captions)
    found, found_mask = features.tokens(range(3))
    np.testing.assert_array_equal(found_mask, mask[:, : found_mask.shape[1]])
    np.testing.assert_allclose(found[found_mask], tokens[mask], atol=1e-5)
    assert any("1 text longer than the model's" in line for line in said)


class Stop(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("side", ["image", slow("text")])
def test_a_stopped_embedding_goes_on_to_the_same_table(side, workdir, tmp_path, monkeypatch):
    whole = embed(workdir, SCENES, tmp_path / "whole", side=side, dtype="int8", **QUICK)
    assert len(whole) == 24 and len(whole.manifest.parts) == 5
    flush, read, embedded = FeatureWriter.flush, module.read, []

    def noted(*arguments):
        embedded.append(arguments[-1].record)
        return read(*arguments)

    monkeypatch.setattr(module, "read", noted)
    for stop in (1, 3, 2):  # after the losses, in the midst, and in the midst again
        calls = iter(range(stop))

        def stopping(self, *arguments, calls=calls):
            if next(calls, None) is None:
                raise Stop
            flush(self, *arguments)

        monkeypatch.setattr(FeatureWriter, "flush", stopping)
        with pytest.raises(Stop):
            embed(workdir, SCENES, tmp_path / "stopped", side=side, dtype="int8", **QUICK)
    monkeypatch.setattr(FeatureWriter, "flush", flush)
    before = len(open_features(tmp_path / "stopped"))
    assert 0 < before < 24 and before % 5 == 0
    embedded.clear()
    embed(workdir, SCENES, tmp_path / "stopped", side=side, dtype="int8", **QUICK)
    assert sorted(embedded) == list(range(before, 24))
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_table(workdir, tmp_path):
    words = ["emoji_scenes", "split=val", "seed=0", "scenes=200", "--part_rows=16", "--batch_size=8"]
    command = [sys.executable, "-m", "filip_jax", "embed", f"--workdir={workdir}", *words]
    assert subprocess.run([*command, f"--output={tmp_path}/whole"], env=runs.environment()).returncode == 0
    for parts in (1, 4, 9):
        process = subprocess.Popen([*command, f"--output={tmp_path}/killed"], env=runs.environment())
        while process.poll() is None and len(list((tmp_path / "killed" / PARTS).glob("*.arrow"))) < parts:
            pass
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert subprocess.run([*command, f"--output={tmp_path}/killed"], env=runs.environment()).returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    open_features(tmp_path / "killed").verify()


def test_what_is_new_is_added_and_what_is_gone_is_marked(workdir, tmp_path, monkeypatch):
    section = photos(tmp_path / "photos")
    before = embed(workdir, section, tmp_path / "index", **QUICK)
    folder = tmp_path / "photos"
    moved = tmp_path / "moved.jpg"
    shutil.move(folder / "Ferien 2019" / "IMG 2 ü中.jpg", moved)
    (folder / "0 new.jpg").write_bytes(picture(12))
    (folder / "broken.jpg").write_bytes(picture(3))
    (tmp_path / "index/quarantine/process_3.jsonl").write_text("{}\n")  # of four processes, before
    embedded, read = [], module.read
    monkeypatch.setattr(module, "read", lambda *arguments: embedded.append(arguments[-1].record) or read(*arguments))
    after = embed(workdir, section, tmp_path / "index", **QUICK)
    assert len(embedded) == 3 and len(after) == 9 and np.flatnonzero(~after.live).tolist() == [2]
    assert keys_of(after, [7, 8]) == ["0 new.jpg", "broken.jpg"]
    np.testing.assert_array_equal(after.tokens(range(7))[0], before.tokens(range(7))[0])
    left = (tmp_path / "index/quarantine/process_0.jsonl").read_text()
    assert "no picture.jpg" in left and "broken" not in left
    assert os.listdir(tmp_path / "index/quarantine") == ["process_0.jsonl"]
    shutil.move(moved, folder / "Ferien 2019" / "IMG 2 ü中.jpg")
    embedded.clear()
    again = embed(workdir, section, tmp_path / "index", **QUICK)
    assert again.live.all() and len(again) == 9 and len(embedded) == 1  # what cannot be read is tried again
    assert open_pictures(again)(5).size == (20, 30)  # whose number has changed


@pytest.mark.slow
def test_files_of_one_name_in_several_folders_are_told_apart(workdir, tmp_path, monkeypatch):
    """Partitions, splits and downloads have them: rows of one are not taken for those of another that is added before it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    section = {"name": "parquet", "path": str(tmp_path / "data")}
    for name, first in (("b", 2), ("a", 0)):
        (tmp_path / "data" / name).mkdir(parents=True)
        images = [picture(first), picture(first + 1)]
        pq.write_table(pa.table({"image": images, "caption": ["x", "y"]}), tmp_path / "data" / name / "x.parquet")
        features = embed(workdir, section, "~/index", dtype="int8" if name == "b" else "", **QUICK)
    shards = [(each["shard"], each["key"]) for each in features.fields(range(4))]
    assert shards == [("b/x.parquet", "0"), ("b/x.parquet", "1"), ("a/x.parquet", "0"), ("a/x.parquet", "1")]
    show = open_pictures(features)
    assert [show(row).getpixel((20, 15))[0] // 10 for row in range(4)] == [2, 3, 0, 1] and features.live.all()


@pytest.mark.slow
def test_rows_of_a_table_that_have_moved_are_warned_of(workdir, tmp_path):
    """A table without a key has been filtered and written anew: its rows are known by their numbers."""
    section = {"name": "parquet", "path": str(tmp_path / "x.parquet")}
    table = pa.table({"image": [picture(n) for n in range(4)], "caption": [f"the {n}th" for n in range(4)]})
    for rows in (table, pa.concat_tables([table, table.slice(0, 1)])):  # what is only longer is as it was
        pq.write_table(rows, tmp_path / "x.parquet")
        embed(workdir, section, tmp_path / "index", **QUICK)
    pq.write_table(table.slice(1), tmp_path / "x.parquet")
    with pytest.warns(UserWarning, match="3 of 5 records looked at have another caption than .* such as '0'"):
        embed(workdir, section, tmp_path / "index", **QUICK)


def test_a_picture_whose_caption_cannot_be_read_has_none(workdir, tmp_path):
    members = [("0.png", picture(0)), ("0.txt", b"a red car"), ("1.png", picture(1)), ("1.txt", b"caf\xe9")]
    members += [("2.png", picture(2)), ("2.txt", b"x" * 70_000), ("3.png", b"no picture"), ("3.txt", b"\xff")]
    tar(tmp_path / "a.tar", members)
    lines = []
    section = {"name": "webdataset", "path": str(tmp_path / "a.tar")}
    features = embed(workdir, section, tmp_path / "index", **QUICK | {"say": lines.append})
    assert [(each["key"], each["caption"]) for each in features.fields(range(3))] == [
        ("0", "a red car"),
        ("1", ""),
        ("2", ""),
    ]
    assert "2 pictures without a caption" in lines[-2] and lines[-1].startswith(
        "1 record cannot be used: 1 no picture that"
    )
    assert open_pictures(features)(1).size == (30, 20)


@pytest.mark.slow
def test_doubled_keys_are_rows_of_their_own_and_stay_so(workdir, tmp_path):
    (tmp_path / "tars").mkdir()
    for name in ("a", "b"):
        members = [(f"{key}.{end}", data) for key in "01" for end, data in (("png", picture(int(key))), ("txt", b"x"))]
        tar(tmp_path / "tars" / f"{name}.tar", members)
    rows = [{"image": f"{n}.png", "id": "same", "caption": "x"} for n in range(3)]
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for section, count in (
        ({"name": "webdataset", "path": str(tmp_path / "tars")}, 4),
        ({"name": "jsonl", "path": str(tmp_path / "list.jsonl"), "key": "id"}, 3),
    ):
        for _ in range(2):
            features = embed(workdir, section, tmp_path / section["name"], **QUICK)
            assert len(features) == count and features.live.all()
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    features = embed(workdir, section, tmp_path / "jsonl", **QUICK)
    assert len(features) == 3 and features.live.sum() == 2


@pytest.mark.slow
def test_processes_share_the_records(workdir, tmp_path):
    alone = embed(workdir, SCENES, tmp_path / "alone", **QUICK)
    for process in (1, 2, 0):
        shared = embed(workdir, SCENES, tmp_path / "shared", process=process, processes=3, **QUICK)
        assert bool(shared.manifest.progress) == (process != 0)
    order = np.argsort(shared.column("index").to_numpy())
    assert len(shared) == 24
    np.testing.assert_array_equal(shared.tokens(order)[0], alone.tokens(range(24))[0])
    assert len(embed(workdir, SCENES | {"scenes": 30}, tmp_path / "shared", **QUICK)) == 30


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:folder. 8 of 9 images under:UserWarning"
)  # a folder's captions, of which one is there
def test_what_does_not_fit_a_folder_is_one_line(workdir, tmp_path):
    section = photos(tmp_path / "photos")
    embed(workdir, section, tmp_path / "index", **QUICK)
    shutil.copytree(tmp_path / "photos", tmp_path / "elsewhere")
    other = section | {"path": str(tmp_path / "elsewhere")}

    def refused(said, section=section, output=tmp_path / "index", **options):
        with pytest.raises(UserError, match=said) as error:
            embed(workdir, section, output, **QUICK | options)
        assert "\n" not in str(error.value)

    refused("say --moved", other)
    refused("say --moved", SCENES)
    refused("dtype float16, not int8", dtype="int8")
    refused("the reductions", reductions=[parse("neighbors")])
    refused("the reductions", reductions=[parse("select")])
    refused("'foldr' is not one of", section | {"name": "foldr"})
    refused("is not a folder", section | {"path": str(tmp_path / "nowhere")})
    refused("the model's step 12, not 8", step=8)
    refused("side image, not text", section | {"caption_keys": ("txt",)}, side="text")
    refused("process=3 must be from 0 to 2", process=3, processes=3)
    refused("no reduction chooses by words", texts="x.txt")
    refused(
        "no captions by whose words", section | {"caption_keys": ()}, tmp_path / "new", reductions=[parse("select")]
    )
    (tmp_path / "blank.txt").write_text("\n\n")
    chosen = dict(reductions=[parse("select")], texts=str(tmp_path / "blank.txt"))
    refused("has no text by whose words", section, tmp_path / "new", **chosen)
    assert not (tmp_path / "new").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.jpg").write_text("nothing")
    refused("none of the source's 1 records can be used", {"name": "folder", "path": str(empty)}, tmp_path / "none")
    assert len(embed(workdir, other, tmp_path / "index", moved=True, **QUICK)) == 7
    (tmp_path / "list").mkdir()
    shutil.copy(tmp_path / "photos/a.png", tmp_path / "list")
    (tmp_path / "list/a.jsonl").write_text('{"image": "a.png", "caption": "x"}\n')
    refused("would be read as data", {"name": "jsonl", "path": str(tmp_path / "list")}, tmp_path / "list" / "index")


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "name the collection"),
        (["folder"], "missing a required"),
        (["folder", "path=/none"], "is not a folder"),
        (["folder", "path=/none", "--process=2/2"], "is not I/N"),
        (["folder", "path=/none", f"--process=0/{'9' * 5000}"], "is not I/N"),
        (["folder", "path=/none", "--reduce=half"], "none of neighbors, select, unchosen"),
        (["folder", "path=/none", "--reduce=select:2"], "keep must be from 0.01 to 1.0"),
        (["folder", "path=/none", "--reduce=select:x"], "'x' is no number"),
        (["folder", "path=/none", "--reduce=unchosen:2"], "takes no number"),
        (["folder", "path=/none", "--more=2"], "unknown argument '--more=2'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(words, said, tmp_path, capsys):
    assert main(["embed", "--workdir=/none", f"--output={tmp_path}/index", *words]) == 2
    errors = capsys.readouterr().err
    assert said in errors and errors.count("\n") == 1 and not os.listdir(tmp_path)


@pytest.mark.slow
def test_a_source_in_a_bucket(workdir, gs, tmp_path):
    import fsspec

    tar(tmp_path / "a.tar", [("0.png", picture(0)), ("0.txt", b"x"), ("1.png", picture(1)), ("1.txt", b"y")])
    fsspec.filesystem("gs").put(str(tmp_path / "a.tar"), f"{gs}/collection/a.tar")
    section = {"name": "webdataset", "path": f"{gs}/collection", "index": str(tmp_path / "tars")}
    features = embed(workdir, section, tmp_path / "index", **QUICK)
    assert keys_of(features) == ["0", "1"] and open_pictures(features)(1).size == (30, 20)


def test_features_of_a_stranger_write_nothing_where_they_say(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tars").mkdir()
    (tmp_path / "mine").mkdir()
    tar(tmp_path / "tars/a.tar", [("0.png", picture(0)), ("0.txt", b"x")])
    section = {"name": "webdataset", "path": str(tmp_path / "tars"), "index": str(tmp_path / "mine")}
    source = {"section": section, "identity": "x"}
    features = write_features(tmp_path / "index", rows=2, part=2, source=source)
    with pytest.raises(BadRecord, match="no record 'picture 1.jpg' any more"):
        open_pictures(features)(1)
    assert not os.listdir(tmp_path / "mine") and os.listdir(tmp_path / "tars") == ["a.tar"]


WORDS = tokens_of(manifest_of(), 6, seed=5)[0].reshape(-1, 8)


def test_reductions_are_what_they_are_called():
    manifest = manifest_of()
    whole, _ = tokens_of(manifest, 5)
    first = np.concatenate([whole[:, :1], whole], axis=1)  # with a pooled token

    tokens, mask, positions = reduced(first, [parse("neighbors:2")], (3, 4), WORDS)
    grid = whole.reshape(5, 3, 4, 8)
    squares = [unit(grid[:, r : r + 2, c : c + 2].mean(axis=(1, 2))) for r in (0, 2) for c in (0, 2)]
    np.testing.assert_allclose(tokens[:, 1:], np.stack(squares, axis=1), atol=1e-6)
    assert mask.all() and positions[0].tolist() == [-1, 0, 2, 8, 10]

    tokens, mask, positions = reduced(whole, [parse("select:0.25")], (3, 4), WORDS)
    best = (whole @ WORDS.T).max(axis=2)
    for n in range(5):
        assert positions[n].tolist() == sorted(np.argsort(-best[n])[:3].tolist())
        np.testing.assert_array_equal(tokens[n], whole[n, positions[n]])

    tokens, mask, positions = reduced(whole, [parse("unchosen")], (3, 4), WORDS)
    for n in range(5):
        chosen = {int((whole[n] @ word).argmax()) for word in WORDS}
        assert set(positions[n][mask[n]].tolist()) == chosen and 0 < len(chosen) <= 12

    words = WORDS[:9]
    _, few, _ = reduced(whole, [parse("unchosen")], (3, 4), words)
    tokens, mask, positions = reduced(whole, [parse("unchosen"), parse("select:0.5")], (3, 4), words)
    assert few.sum(axis=1).min() < few.sum(axis=1).max() < 12
    for n in range(5):
        best = np.where(few[n], (whole[n] @ words.T).max(axis=1), -1)
        right = sorted(np.argsort(-best)[: few[n].sum() // 2].tolist())
        assert positions[n][mask[n]].tolist() == right
        np.testing.assert_array_equal(tokens[n][mask[n]], whole[n, right])

    several = [parse(text) for text in ("neighbors:3", "select:0.5", "unchosen")]
    tokens, mask, positions = reduced(first, several, (3, 4), WORDS)
    assert tokens.shape[1] == 1 and set(positions.ravel()) <= {-1, 0, 3}
    for wrong in (["select", "neighbors"], ["unchosen", "unchosen"]):
        with pytest.raises(UserError, match="each once, and neighbors first"):
            check_order([parse(text) for text in wrong], (3, 4))
    with pytest.raises(UserError, match="only tokens of images"):
        check_order([parse("select")], None)


def test_a_map_shows_which_token_stands_for_a_place():
    manifest = manifest_of(reductions=(parse("neighbors:2"),))
    assert token_map(np.array([-1, 0, 2, 8, 10], np.int16), manifest).tolist() == [
        [1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4],
    ]  # fmt: skip
    assert token_map(np.array([5], np.int16), manifest_of()).tolist() == [[-1] * 4, [-1, 0, -1, -1], [-1] * 4]


@pytest.mark.slow
def test_losses_are_those_of_retrieval(workdir, model, tmp_path):
    source = make_source(SCENES)
    images = model.encode_image([source[n].image for n in range(24)])
    tokens, mask = model.encode_text([source[n].caption for n in range(24)])
    texts = [text[some] for text, some in zip(tokens, mask)]
    whole = recalls(list(images), texts)
    numbers = retrieval.evaluate(model, source, tmp_path, examples=24)
    assert whole == {name: numbers[name] for name in whole} and len(whole) == 6
    said: list[str] = []
    reductions = [parse("neighbors"), parse("select:0.5")]
    features = embed(
        workdir, SCENES, tmp_path / "index", dtype="int8", reductions=reductions, **QUICK | {"say": said.append}
    )
    found = features.manifest.reductions
    assert [each["name"] for each in found] == ["neighbors", "select", "int8"]
    assert (
        all(each["losses"].keys() == whole.keys() | {"pairs"} for each in found) and len(features.manifest.texts) == 24
    )
    words = words_of(*model.encode_text(list(features.manifest.texts)))
    left, kept, _ = reduced(images, found, model.grid, words)
    now = recalls([tokens[some] for tokens, some in zip(left, kept)], texts)
    assert found[1]["losses"] == {name: round(whole[name] - now[name], 6) for name in whole} | {"pairs": 24}
    np.testing.assert_allclose(features.tokens(range(24))[0], left, atol=0.01)
    assert sum(line.startswith(("neighbors", "select", "int8")) for line in said) == 3
    more = embed(workdir, SCENES | {"scenes": 30}, tmp_path / "index", **QUICK)  # as the folder's own
    assert len(more) == 30 and more.manifest.reductions == found and more.manifest.texts == features.manifest.texts


def test_tokens_that_are_no_numbers_are_left_out(workdir, tmp_path, monkeypatch):
    encode = module.Work._encode

    def spoilt(self, contents):
        tokens, *others = encode(self, contents)
        tokens = tokens.copy()
        tokens[1] = np.nan
        return (tokens, *others)

    monkeypatch.setattr(module.Work, "_encode", spoilt)
    features = embed(workdir, SCENES | {"scenes": 4}, tmp_path / "index", **QUICK)
    assert features.column("index").to_pylist() == [0, 2, 3]
    assert "not finite" in (tmp_path / "index/quarantine/process_0.jsonl").read_text()


@pytest.mark.slow
def test_a_record_is_named_once(tmp_path, monkeypatch):
    work = module.Work.__new__(module.Work)
    work.bad, work.file = Counter(), tmp_path / "quarantine" / "process_0.jsonl"
    items = [module.Item(None, {"shard": "a.tar", "key": key}, "torn") for key in "0012"]
    work._name(items[:2])
    monkeypatch.setattr(module, "MAX_NAMED", 2)
    work._name(items)
    keys = [json.loads(line)["key"] for line in work.file.read_text().splitlines()]
    assert keys == ["0", "1"] and work.bad.total() == 6


def test_a_folder_below_the_home_is_the_same_by_either_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_features(tmp_path / "index", 1)
    with pytest.raises(UserError, match="index holds features of name=folder, not emoji_scenes: .* say --moved"):
        embed("/none", SCENES, "~/index", **QUICK)


def test_progress_of_a_stranger_is_none(workdir, tmp_path):
    embed(workdir, SCENES, tmp_path / "index", **QUICK)
    file = tmp_path / "index" / FILE
    content = json.loads(file.read_text())
    for progress in (
        {"identity": content["source"]["identity"], "processes": 1, "done": [10**9], "rows": 0},
        {
            "identity": content["source"]["identity"],
            "processes": 1,
            "done": [0],
            "rows": 24,
            "part_rows": 5,
            "units": 9,
        },
    ):
        file.write_text(json.dumps(content | {"progress": progress}))
        assert len(embed(workdir, SCENES, tmp_path / "index", **QUICK)) == 24


def test_the_help_names_each_reduction():
    from filip_jax.cli_embed import EMBED
    from filip_jax.search.reductions import REDUCTIONS

    assert re.findall(r"^  (\w+)\S* +(?:the|drops)", EMBED, re.MULTILINE) == list(REDUCTIONS)


def test_a_sample_of_texts_can_be_read_back_from_the_manifest(tmp_path):
    file = tmp_path / "texts.json"
    file.write_text(json.dumps({"a": ["cat", "", "x" * 70_000], "b": ["\ud800"]}))
    assert [len(text) for text in sample_of(f"{file}:a")] == [3, 1 << 16]
    with pytest.raises(UserError, match="text 0 is not valid Unicode"):
        sample_of(f"{file}:b")
