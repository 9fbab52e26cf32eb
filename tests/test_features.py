"""Stored features: what is written is read back, parts are whole or absent, and a stranger's folder is one line of error."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT, unit
from feature_files import fields_of, manifest_of, tokens_of, write_features
from hypothesis import given
from hypothesis import strategies as st

from filip_jax.errors import UserError
from filip_jax.features import FeatureWriter, Part, open_features, read_manifest
from filip_jax.features.manifest import DTYPES, FILE, PARTS, SIDES
from filip_jax.features.writer import quantized

PART = Part("0000_000000.arrow", 50, 1, 64 * "a")
ERRORS = {"float32": 0.0, "float16": 2**-11, "int8": 1 / 254}  # of a number whose token's largest is 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", SIDES)
def test_rows_are_read_back_as_they_were_written(side, dtype, tmp_path):
    features = write_features(tmp_path / "index", rows=11, part=4, side=side, dtype=dtype)
    tokens, mask = tokens_of(features.manifest, 11)
    rows = np.random.default_rng(0).permutation(11)[:7]
    found, found_mask = features.tokens(rows)
    longest = found_mask.shape[1]
    assert found.dtype == np.float32 and longest == mask[rows].sum(axis=1).max()
    np.testing.assert_array_equal(found_mask, mask[rows, :longest])
    np.testing.assert_allclose(found[found_mask], tokens[rows][mask[rows]], rtol=0, atol=ERRORS[dtype])
    assert not found[~found_mask].any()
    pooled = unit((tokens * mask[..., None]).sum(axis=1))
    np.testing.assert_allclose(features.pooled(rows), pooled[rows], atol=1e-6)
    assert features.fields(rows) == [fields_of(11)[row] for row in rows]
    assert [each.tolist() for each in features.positions(rows)] == [list(range(n)) for n in mask[rows].sum(axis=1)]
    assert features.column("caption").to_pylist() == [each["caption"] for each in fields_of(11)]
    features.verify()


@pytest.mark.parametrize("side, dtype", [("image", "float16"), ("image", "int8"), ("text", "float32")])
def test_blocks_hold_the_live_rows_in_the_type_that_is_stored(side, dtype, tmp_path):
    features = write_features(tmp_path / "index", rows=23, part=7, side=side, dtype=dtype, removed=[0, 8, 9, 22])
    live = [row for row in range(23) if row not in (0, 8, 9, 22)]
    assert np.flatnonzero(features.live).tolist() == live and features.manifest.removed == ((0, 0), (8, 9), (22, 22))
    for size in (1, 3, 7, 100):
        met = []
        for rows, tokens, scales, mask in features.blocks(size):
            assert len(rows) <= size and tokens.dtype == dtype and (scales is None) == (dtype != "int8")
            expected = features.stored(rows)
            for found, right in zip((tokens, scales, mask), expected):
                np.testing.assert_array_equal(found, right)
            met += rows.tolist()
        assert met == live


def test_blocks_of_equal_rows_are_views_of_the_file(tmp_path):
    features = write_features(tmp_path / "index", rows=8, part=8)
    (_, tokens, _, _), *_ = features.blocks(4)
    assert not tokens.flags.owndata and not tokens.flags.writeable


def test_blocks_end_with_their_parts_so_that_they_are_views(tmp_path):
    features = write_features(tmp_path / "index", rows=41, part=8, removed=[1])
    blocks = list(features.blocks(16))
    assert [tokens.shape[0] for _, tokens, *_ in blocks] == [7, 8, 8, 8, 8, 1]
    assert [tokens.flags.owndata for _, tokens, *_ in blocks] == [True, *[False] * 5]
    assert np.concatenate([rows for rows, *_ in blocks]).tolist() == np.flatnonzero(features.live).tolist()
    short = write_features(tmp_path / "short", rows=10, part=1)
    assert [len(rows) for rows, *_ in short.blocks(9)] == [9, 1]


def test_open_parts_hold_no_descriptor(tmp_path):
    features = write_features(tmp_path / "index", rows=6, part=1)
    before = len(os.listdir("/dev/fd"))
    features.tokens(range(6))
    assert len(os.listdir("/dev/fd")) == before


def test_a_part_has_no_more_rows_than_a_reader_takes(tmp_path, monkeypatch):
    monkeypatch.setattr("filip_jax.features.writer.MAX_PART_ROWS", 5)
    manifest = manifest_of()
    with FeatureWriter(tmp_path / "index", manifest) as writer:
        writer.add(*tokens_of(manifest, 5), fields_of(5))
        with pytest.raises(UserError, match="6 rows would wait, and a part has at most 5"):
            writer.add(*tokens_of(manifest, 1), fields_of(1, 5))
    assert len(open_features(tmp_path / "index")) == 5


@pytest.mark.parametrize("changes, most", [(dict(), 13), (dict(grid=None), 1), (dict(side="text"), 16)])
def test_the_most_tokens_are_those_of_the_side(changes, most):
    assert manifest_of(**changes).max_tokens == most


def test_a_reader_keeps_its_snapshot_while_others_add(tmp_path):
    before = write_features(tmp_path / "index", rows=6)
    tokens, mask = tokens_of(before.manifest, 3, seed=1)
    with FeatureWriter(tmp_path / "index", before.manifest) as writer:
        writer.add(tokens, mask, fields_of(3, 6))
    after = open_features(tmp_path / "index")
    assert (len(before), len(after)) == (6, 9) and len(before.column("key")) == 6
    np.testing.assert_array_equal(after.tokens(range(6))[0], before.tokens(range(6))[0])
    np.testing.assert_array_equal(after.tokens(range(6, 9))[0], tokens)
    with pytest.raises(UserError, match="there are 6 rows; 3 to 6 are asked for"):
        before.tokens([3, 6])


def test_several_writers_share_a_folder(tmp_path):
    manifest = manifest_of()
    tokens, mask = tokens_of(manifest, 40)

    def write(process):
        with FeatureWriter(tmp_path, manifest, process, 4) as writer:
            for row in range(process, 40, 4):
                writer.add(tokens[row : row + 1], mask[row : row + 1], fields_of(1, row))
                writer.flush()

    threads = [threading.Thread(target=write, args=(process,)) for process in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    features = open_features(tmp_path)
    order = [each["index"] for each in features.fields(range(40))]
    assert sorted(order) == list(range(40)) and len(features.manifest.parts) == 40
    np.testing.assert_array_equal(features.tokens(range(40))[0], tokens[order])


def test_one_writer_at_a_time(tmp_path):
    manifest = manifest_of()
    with FeatureWriter(tmp_path, manifest):
        for share in ((0, 1), (1, 2)):
            with pytest.raises(UserError, match="another process writes features there"):
                FeatureWriter(tmp_path, manifest, *share)
    with FeatureWriter(tmp_path, manifest, 1, 2):
        pass


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from feature_files import *
from filip_jax.features import writer as module
manifest = manifest_of()
tokens, mask = tokens_of(manifest, 4)
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with FeatureWriter({folder!r}, manifest) as writer:
    writer.add(tokens, mask, fields_of(4))
    writer.flush()
    writer.add(tokens, mask, fields_of(4, 4))
    setattr(module, {place!r}, kill)
    writer.flush()
"""


@pytest.mark.parametrize("place", ["sha256_of", "write_manifest"])
def test_what_a_killed_writer_leaves_does_not_count(place, tmp_path):
    script = KILLED.format(tests=str(ROOT / "tests"), folder=str(tmp_path / "index"), place=place)
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert len(open_features(tmp_path / "index")) == 4
    assert len(os.listdir(tmp_path / "index" / PARTS)) == 2
    manifest = manifest_of()
    with FeatureWriter(tmp_path / "index", manifest) as writer:
        writer.add(*tokens_of(manifest, 5, seed=2), fields_of(5, 4))
    features = open_features(tmp_path / "index")
    assert len(features) == 9 and len(os.listdir(tmp_path / "index" / PARTS)) == 2
    features.verify()


def test_features_of_another_kind_are_refused_with_both_values(tmp_path):
    write_features(tmp_path / "index")
    other = {"checkpoint": 64 * "d"}
    for changes, said in (
        ({"dtype": "int8"}, "dtype float32, not int8"),
        ({"grid": (2, 2)}, r"grid \(3, 4\), not \(2, 2\)"),
        ({"model": manifest_of().model | other}, "the model's checkpoint bbbbbbbbbbbb…, not dddddddddddd…"),
        ({"reductions": ({"name": "unchosen", "options": {}, "losses": {}},)}, "the reductions none, not"),
    ):
        with pytest.raises(UserError, match=said):
            FeatureWriter(tmp_path / "index", manifest_of(**changes))
    losses = ({"name": "int8", "options": {}, "losses": {"R@1": 0.1}},)
    was = manifest_of(reductions=losses)
    assert not was.difference(dataclasses.replace(was, reductions=({**losses[0], "losses": {}},)))


def test_rows_that_cannot_be_are_refused(tmp_path):
    manifest = manifest_of()
    tokens, mask = tokens_of(manifest, 2)
    with FeatureWriter(tmp_path / "index", manifest) as writer:
        with pytest.raises(UserError, match="not finite"):
            writer.add(tokens * np.nan, mask, fields_of(2))
        with pytest.raises(UserError, match="no token"):
            writer.add(tokens, mask & False, fields_of(2))
        with pytest.raises(UserError, match="dimension 8"):
            writer.add(tokens[..., :4], mask, fields_of(2))
        for wrong in ((np.zeros((2, 3), np.int16), None), (None, np.zeros((3, 8), np.float32))):
            with pytest.raises(UserError, match="dimension 8"):
                writer._check(tokens, mask, fields_of(2), *wrong)  # past the types, which only tests check
        with pytest.raises(UserError, match="pooled vectors hold numbers that are not finite"):
            writer.add(tokens, mask, fields_of(2), pooled=np.full((2, 8), np.inf, np.float32))
    half = dataclasses.replace(manifest, dtype="float16")
    with FeatureWriter(tmp_path / "half", half) as writer, pytest.raises(UserError, match="too large for float16"):
        writer.add(1e6 * tokens, mask, fields_of(2))
    assert not len(open_features(tmp_path / "index")) and not len(open_features(tmp_path / "half"))
    with pytest.raises(UserError, match="not features|no features"):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").write_text("x")
        FeatureWriter(tmp_path / "mine", manifest)
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]
    with pytest.raises(UserError, match="on a disk"):
        FeatureWriter("gs://bucket/index", manifest)


@given(st.lists(st.integers(0, 49)))
def test_removed_rows_are_ranges(removed):
    manifest = dataclasses.replace(manifest_of(), parts=(PART,))
    found = manifest.with_removed(np.array(removed, int))
    assert np.flatnonzero(~found.live).tolist() == sorted(set(removed))
    assert all(first <= last for first, last in found.removed)
    assert all(last + 1 < first for (_, last), (first, _) in zip(found.removed, found.removed[1:]))


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=9))
def test_whole_numbers_are_within_half_a_step(values):
    token = np.array([values], np.float32)
    numbers, scales = quantized(token)
    assert np.abs(numbers * scales[:, None] - token).max() <= scales[0] * 0.51


def _hostile_manifests(content):
    part = content["parts"][0]
    yield "truncated", json.dumps(content)[:-20]
    yield "no object", "[]"
    yield "format", json.dumps(content | {"format": 2})
    yield "missing", json.dumps({name: value for name, value in content.items() if name != "grid"})
    yield "more", json.dumps(content | {"more": 1})
    for name, value in {
        "side": "sound", "dtype": "float8", "dimension": 0, "grid": [1 << 14, 1 << 14], "text_length": -1, "parts": {},
        "removed": [[0, 10]], "reductions": [{"name": "x"}], "model": {"a": []}, "texts": [1], "pooling": None,
    }.items():  # fmt: skip
        yield name, json.dumps(content | {name: value})
    for name, value in {
        "name": "../0000_000000.arrow", "rows": 0, "bytes": 1 << 60, "sha256": "x", "other": 1,
    }.items():  # fmt: skip
        yield f"part {name}", json.dumps(content | {"parts": [part | {name: value}]})
    yield "rows", json.dumps(content | {"parts": [part | {"rows": 1 << 40}]})
    yield "twice", json.dumps(content | {"parts": [part, part]})
    yield "other columns", json.dumps(content | {"dimension": 9})
    yield "more rows", json.dumps(content | {"parts": [part | {"rows": 5}]})
    yield "more bytes", json.dumps(content | {"parts": [part | {"bytes": part["bytes"] + 1}]})
    yield "fewer tokens", json.dumps(content | {"grid": [1, 2], "text_length": 0})


def read_all(folder):
    """Reads all; what is no UserError is raised."""
    features = open_features(folder)
    for _ in features.blocks(3):
        pass
    rows = range(len(features))
    (
        features.tokens(rows),
        features.positions(rows),
        features.pooled(rows),
        features.fields(rows),
        features.column("key"),
    )


def test_rows_without_end_are_one_line(tmp_path, monkeypatch):
    write_features(tmp_path / "index", rows=4)
    monkeypatch.setattr("filip_jax.features.manifest.MAX_ROWS", 3)
    with pytest.raises(UserError, match="it has 4 rows; at most 3 are possible"):
        open_features(tmp_path / "index")


def test_a_manifest_of_a_stranger_is_one_line(tmp_path):
    write_features(tmp_path / "index", rows=4, side="image")
    file = tmp_path / "index" / FILE
    content = json.loads(file.read_text())
    read_all(tmp_path / "index")
    for name, text in _hostile_manifests(content):
        file.write_text(text)
        with pytest.raises(UserError) as error:
            read_all(tmp_path / "index")
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value), name


def test_folders_that_hold_no_features_are_one_line(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        open_features(tmp_path / "none")
    with pytest.raises(UserError, match="holds no features"):
        open_features(tmp_path)
    write_features(tmp_path / "index", rows=4)
    (part,) = (tmp_path / "index" / PARTS).iterdir()
    shutil.move(part, tmp_path / "part")
    with pytest.raises(UserError, match="is missing"):
        read_all(tmp_path / "index")
    part.symlink_to(tmp_path / "part")
    with pytest.raises(UserError, match="leads out of its folder"):
        read_all(tmp_path / "index")
    with pytest.raises(UserError, match="a symbolic link"):
        FeatureWriter(tmp_path / "index", manifest_of())
    part.unlink()
    os.mkfifo(part)
    with pytest.raises(UserError, match="no regular file"):
        read_all(tmp_path / "index")


def rewritten(folder, change):
    """Write the only part anew with other columns, and what the manifest says of its size."""
    (file,) = (folder / PARTS).iterdir()
    batch = pa.ipc.open_file(pa.BufferReader(file.read_bytes())).get_batch(0)
    columns = {name: batch[name] for name in batch.schema.names}
    columns |= change(columns)
    options = columns.pop("options", None)
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_file(out, batch.schema, options=options) as writer:
        writer.write_batch(pa.record_batch(list(columns.values()), schema=batch.schema))
    content = json.loads((folder / FILE).read_text())
    content["parts"][0]["bytes"] = os.path.getsize(file)
    (folder / FILE).write_text(json.dumps(content))


def _lists(columns, offsets):
    kind = columns["positions"].type
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), columns["positions"].flatten(), type=kind)


HOSTILE = {
    "fewer positions": lambda columns: {"positions": _lists(columns, [0, 12, 24, 36, 40])},
    "offsets that fall": lambda columns: {"positions": _lists(columns, [0, 30, 24, 36, 48])},
    "a gap": lambda columns: {"key": pa.array(["a", None, "b", "c"])},
    "no UTF-8": lambda columns: {"key": pa.array([b"a", b"\xff", b"b", b"c"]).view(pa.string())},
    "numbers missing": lambda columns: {
        "pooled": pa.FixedSizeListArray.from_arrays(pa.array([None] * 32, pa.float32()), type=columns["pooled"].type)
    },
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_part_of_a_stranger_is_one_line(kind, tmp_path):
    write_features(tmp_path / "index", rows=4)
    rewritten(tmp_path / "index", lambda columns: {})
    read_all(tmp_path / "index")
    rewritten(tmp_path / "index", HOSTILE[kind])
    with pytest.raises(UserError, match="is damaged") as error:
        read_all(tmp_path / "index")
    assert "\n" not in str(error.value)


def test_a_compressed_part_is_one_line(tmp_path):
    """It could unpack to far more than memory holds."""
    write_features(tmp_path / "index", rows=4)
    rewritten(tmp_path / "index", lambda columns: {"options": pa.ipc.IpcWriteOptions(compression="zstd")})
    with pytest.raises(UserError, match="bytes unpacked; at most 0 are read"):
        read_all(tmp_path / "index")


@pytest.mark.parametrize("last", [49, 1 << 30, -(1 << 31)])
def test_lists_that_end_beyond_the_file_are_one_line(last, tmp_path):
    write_features(tmp_path / "index", rows=4)
    (file,) = (tmp_path / "index" / PARTS).iterdir()
    offsets, spoilt = (np.array([0, 12, 24, 36, end], "<i4").tobytes() for end in (48, last))
    data = file.read_bytes()
    assert data.count(offsets) == 2
    file.write_bytes(data.replace(offsets, spoilt))
    with pytest.raises(UserError, match="is damaged") as error:
        read_all(tmp_path / "index")
    assert "\n" not in str(error.value)


def test_spoilt_bytes_never_crash(tmp_path):
    """Each of some bytes of a part changed: a line, or other values; `verify` notices all."""
    write_features(tmp_path / "index", rows=4, dtype="int8")
    (file,) = (tmp_path / "index" / PARTS).iterdir()
    data, rng = file.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(data), 60):
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << int(rng.integers(0, 8))
        file.write_bytes(spoilt)
        try:
            read_all(tmp_path / "index")
        except UserError as error:
            assert "\n" not in str(error)
        with pytest.raises(UserError):
            open_features(tmp_path / "index").verify()
    for size in (0, 7, 100, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(UserError, match=f"{size} bytes instead of {len(data)}"):
            read_all(tmp_path / "index")


@pytest.mark.parametrize("limit, most", [("MAX_JSON_BYTES", 99), ("MAX_VALUES", 9), ("MAX_ROWS", 5)])
def test_no_manifest_is_written_that_would_not_be_read(limit, most, tmp_path, monkeypatch):
    manifest = write_features(tmp_path / "index", rows=4).manifest
    monkeypatch.setattr(f"filip_jax.features.manifest.{limit}", most)
    with (
        pytest.raises(UserError, match="manifest.json would be of .* bytes"),
        FeatureWriter(tmp_path / "index", manifest) as writer,
    ):
        writer.add(*tokens_of(manifest, 2), fields_of(2))
    assert read_manifest(tmp_path / "index") == manifest


def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    before = write_features(tmp_path / "index", rows=4)
    manifest = before.manifest

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), FeatureWriter(tmp_path / "index", manifest) as writer:
        writer.add(*tokens_of(manifest, 2), fields_of(2))
        monkeypatch.setattr("filip_jax.features.writer.write_part", full)
        writer.flush()
    assert read_manifest(tmp_path / "index") == manifest and len(os.listdir(tmp_path / "index" / PARTS)) == 1


STRANGE = {
    "reductions": [[{"name": "int8", "options": {}, "losses": {"pairs": 5, "image_to_text_R@1": value}}] for value in ("x", None)],
    "model": [None, [], "x"], "framing": [{"a": 1}, {"crop": "x"}, {"resize": []}], "source": [{"section": None}, {"section": []}],
}  # fmt: skip


@pytest.mark.parametrize("name, value", [(name, value) for name, values in STRANGE.items() for value in values])
def test_values_in_a_manifest_of_a_stranger_are_one_line(name, value, tmp_path):
    write_features(tmp_path / "index", rows=1)
    content = json.loads((tmp_path / "index" / FILE).read_text())
    (tmp_path / "index" / FILE).write_text(json.dumps(content | {name: value}))
    with pytest.raises(UserError, match="is damaged"):
        open_features(tmp_path / "index")


def test_features_behind_a_link_or_in_a_bucket_are_not_read(tmp_path):
    write_features(tmp_path / "index", rows=4)
    (tmp_path / "index" / PARTS).rename(tmp_path / "elsewhere")
    (tmp_path / "index" / PARTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link, behind which nothing is read"):
        read_all(tmp_path / "index")
    with pytest.raises(UserError, match="copy the folder to a disk"):
        open_features("s3://bucket/index")


def test_parts_without_their_manifest_are_not_written_over(tmp_path):
    write_features(tmp_path / "index", rows=4)
    before = (tmp_path / "index" / PARTS / "0000_000000.arrow").read_bytes()
    (tmp_path / "index" / FILE).unlink()
    with pytest.raises(UserError, match="holds 'parts/0000_000000.arrow' and no features"):
        write_features(tmp_path / "index", rows=2)
    assert (tmp_path / "index" / PARTS / "0000_000000.arrow").read_bytes() == before


def test_a_folder_of_something_else_stays_as_it_is(tmp_path):
    (tmp_path / "cat.jpg").write_text("")
    with pytest.raises(UserError, match="holds 'cat.jpg' and no features"):
        write_features(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cat.jpg"]
