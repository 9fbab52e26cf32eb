"""Identities of data: other captions of equal size are other data, other times are not, and messages say what changed."""

import contextlib
import json
import os
import shutil

import numpy as np
import pairs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given
from hypothesis import strategies as st
from pairs import (
    WRITERS,
    write_array_record,
    write_arrow,
    write_folder,
    write_parquet,
    write_parquet_of_paths,
    write_webdataset,
)
from test_sources import kept

from filip_jax.data import content, folder, riegeli, table
from filip_jax.data.identity import changes, extend, identify, parts_of
from filip_jax.data.index_folder import sources_of_others
from filip_jax.data.record import BadRecord
from filip_jax.data.rows import read_rows
from filip_jax.data.sources import check_same_data, describe, fingerprint, make_source
from filip_jax.errors import UserError
from filip_jax.tools.convert import convert

SHARDS = [range(0, 4), range(4, 6)]
KINDS = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)


def edited(monkeypatch):
    """From here on pair 3 has other captions, of equal size."""
    plain = pairs.texts
    monkeypatch.setattr(
        pairs, "texts", lambda n: {origin: text.upper() if n == 3 else text for origin, text in plain(n).items()}
    )


def sizes(folder):
    files = [file for file in folder.rglob("*") if file.is_file() and ".filip_index" not in file.parts]
    return {file.relative_to(folder): file.stat().st_size for file in files}


@KINDS
def test_captions_of_equal_size_are_other_data(write, tmp_path, monkeypatch):
    section = write(tmp_path, SHARDS)
    before, was = make_source(section), sizes(tmp_path)
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    edited(monkeypatch)
    write(tmp_path, SHARDS)
    for file, time in times.items():  # as tools that write what comes out the same every time
        os.utime(file, ns=(time, time))
    after = make_source(section)
    if "parquet" not in str(was):
        assert sizes(tmp_path) == was
    assert after[3].caption == "PICTURE 3" and after.identity != before.identity
    assert fingerprint(after) != fingerprint(before) and len(after) == len(before)


@KINDS
def test_data_that_is_staged_elsewhere_is_the_same(write, tmp_path):
    """Other times, another folder, an index that is made anew or comes along."""
    (tmp_path / "a").mkdir()
    section = write(tmp_path / "a", SHARDS)
    before = fingerprint(make_source(section))
    for name, left in (("b", ()), ("c", (".filip_index",))):
        shutil.copytree(
            tmp_path / "a", tmp_path / name, copy_function=shutil.copyfile, ignore=lambda *_, left=left: left
        )
        for n, file in enumerate(sorted((tmp_path / name).rglob("*"))):
            os.utime(file, ns=(n, n))
        assert fingerprint(make_source(section | {"path": str(tmp_path / name)})) == before


def test_an_index_that_comes_along_with_tars_serves_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    section = write_webdataset(tmp_path / "a", SHARDS)
    before = fingerprint(make_source(section))
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    shutil.move(tmp_path / "b/.filip_index", tmp_path / "elsewhere")
    (tmp_path / "b/.filip_index").symlink_to("../elsewhere")  # through which nothing is written
    there = {file.name: file.read_bytes() for file in (tmp_path / "elsewhere").iterdir()}
    copy = section | {"path": str(tmp_path / "b")}
    assert fingerprint(make_source(copy)) == before and make_source(copy)[3].caption == "picture 3"
    assert {file.name: file.read_bytes() for file in (tmp_path / "elsewhere").iterdir()} == there
    edited(monkeypatch)
    write_webdataset(tmp_path / "b", SHARDS)
    with pytest.raises(UserError, match="set `index` to a folder"):
        make_source(copy)


@pytest.mark.parametrize(
    "write", [write_parquet, write_arrow, write_parquet_of_paths], ids=lambda write: write.__name__
)
def test_rows_under_other_keys_or_paths_are_other_data(write, tmp_path):
    """Of columnar files: a key finds the texts of a side file, and a path an image."""
    section = write(tmp_path, [range(3)])
    (file,) = [file for file in tmp_path.iterdir() if file.suffix in (".parquet", ".arrow")]
    column = "image" if write is write_parquet_of_paths else section["key"]
    before = make_source(section)
    was = before[1]
    table = pq.read_table(file) if file.suffix == ".parquet" else pa.ipc.open_stream(file.read_bytes()).read_all()
    swapped = table.column(column).take([0, 2, 1])
    table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), swapped)
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    else:
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as batches:
            batches.write_table(table)
    after = make_source(section)
    assert after[1].captions == was.captions and (after[1].key, after[1].image) != (was.key, was.image)
    assert "rows" in changes(before.identity, after.identity)


@pytest.mark.parametrize("kind", ["jsonl", "folder"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_words_of_a_problem_are_no_part_of_an_identity(tmp_path, monkeypatch, kind):
    """They differ from version to version, of Python's too, and may name the folder."""

    def refuse(data, name):
        raise BadRecord(words)

    def reworded(path, *given):
        return (row._replace(problem=row.problem and words) for row in read_rows(path, *given))

    monkeypatch.setattr(folder, "caption_text", refuse)
    monkeypatch.setattr(table, "read_rows", reworded)
    found = set()
    for words in ("Expecting value: column 5", "/data/of/others/0.txt cannot be read"):
        path = tmp_path / words[:6].strip("/")
        path.mkdir()
        (path / "0.png").write_bytes(pairs.picture(0))
        (path / "0.txt").write_text("a dog")
        (path / "list.jsonl").write_text('{"image": "0.png", "caption": "fine"}\n{"image": }\n')
        found.add(fingerprint(make_source(dict(name=kind, path=str(path / "list.jsonl" if kind == "jsonl" else path)))))
    assert len(found) == 1


def test_what_a_filter_left_is_known_by_its_content(tmp_path):
    (tmp_path / "data").mkdir()
    section = write_folder(tmp_path / "data", SHARDS)
    section["keep"] = kept(tmp_path / "kept", make_source(section), [0, 3], [(3, "txt", "one")])
    idents = [make_source(section).identity]
    np.save(tmp_path / "kept/kept.npy", np.array([1, 3]))
    idents.append(make_source(section).identity)
    texts = (tmp_path / "kept/captions.arrow").read_bytes()
    (tmp_path / "kept/captions.arrow").write_bytes(texts.replace(b"one", b"two"))
    idents.append(make_source(section).identity)
    assert len(set(idents)) == 3 and changes(*idents[:2]) == "keep"


def test_what_an_earlier_version_filtered_counts_with_a_warning(tmp_path):
    """Whether it is of this data cannot be known."""
    (tmp_path / "data").mkdir()
    section = write_folder(tmp_path / "data", SHARDS)
    now = make_source(section)
    section["keep"] = kept(tmp_path / "kept", now, [0, 3])
    report = tmp_path / "kept/report.json"
    report.write_text(json.dumps({"identity": "c3d4" * 16, "rules": {}, "source_records": 6}))
    with pytest.warns(UserWarning, match="an older version .*: if the data changed since, filter again"):
        assert len(make_source(section)) == 2
    report.write_text(json.dumps({"identity": "c3d4" * 16, "rules": {}, "source_records": 7}))
    with pytest.raises(UserError, match="filter again"):
        make_source(section)


@pytest.mark.parametrize("write", [write_folder, write_webdataset], ids=lambda write: write.__name__)
def test_what_changed_is_named(write, tmp_path, monkeypatch):
    section = write(tmp_path, SHARDS)
    first = make_source(section)
    edited(monkeypatch)
    write(tmp_path, SHARDS)
    second = make_source(section)
    assert changes(first.identity, second.identity) == "captions" and not changes(first.identity, first.identity)
    write(tmp_path, [*SHARDS, range(6, 9)])
    words = changes(second.identity, make_source(section).identity)
    assert "records (6, now 9)" in words and "captions" in words and "names" in words
    more = changes(first.identity, make_source(section | {"caption_keys": ("txt",)}).identity)
    assert "caption_keys (['txt', 'de.txt'], now ['txt'])" in more


def test_a_conversion_a_filter_and_a_run_notice_edited_captions(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    section = write_folder(tmp_path / "data", SHARDS)
    options = dict(short_side=0, records_per_shard=10, workers=1)
    convert(section, tmp_path / "out", **options)
    keep = kept(tmp_path / "kept", make_source(section), [0, 3])
    mixture = dict(name="mixture", own=section, web=dict(section, caption_keys=("txt",)))
    meta = json.loads(json.dumps(describe(make_source(mixture))))
    check_same_data(meta, describe(make_source(mixture)), "run")
    assert (
        len(make_source(section | {"keep": keep})) == 2
        and convert(section, tmp_path / "out", **options)["records"] == 6
    )
    edited(monkeypatch)
    write_folder(tmp_path / "data", SHARDS)
    with pytest.raises(
        UserError, match=r"out was begun with other data \(what differs: captions\): give another output"
    ):
        convert(section, tmp_path / "out", **options)
    with pytest.raises(UserError, match=r"was made of other data, .* \(what differs: captions\): filter again"):
        make_source(section | {"keep": keep})
    with pytest.raises(
        UserError, match=r"the data of run .* \(what differs: own: captions, web: captions\): bring it back"
    ):
        check_same_data(meta, describe(make_source(mixture)), "run")


@pytest.mark.parametrize("noted", [None, {}, [], "c3d4" * 16, 7, {"data": []}, "{", "[" * 100_000])
def test_what_older_versions_and_strangers_noted_is_answered_with_a_sentence(tmp_path, noted):
    (tmp_path / "data").mkdir()
    section = write_folder(tmp_path / "data", SHARDS)
    now = make_source(section)
    with pytest.raises(UserError, match="what differs: |older version"):
        check_same_data({"data_sha256": "old", "data": noted}, describe(now), "run")
    keep = kept(tmp_path / "kept", now, [0, 3])
    for file in (tmp_path / "kept/report.json",):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"identity": noted}))
    with pytest.raises(UserError, match=r"filter again"):
        make_source(section | {"keep": keep})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/convert.json").write_text(json.dumps({"identity": noted}))
    with pytest.raises(UserError, match="was begun with other data"):
        convert(section, tmp_path / "out", short_side=0, records_per_shard=10, workers=1)


PARTS = st.dictionaries(
    st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=2))
)


@given(PARTS, PARTS)
def test_changes_are_empty_for_equal_parts_only(one, other):
    assert parts_of(identify(**one)) == one and parts_of(extend(identify(**one), **other)) == one | other
    assert bool(changes(identify(**one), identify(**other))) == (one != other)


@pytest.mark.parametrize(
    "options", ["group_size:1,uncompressed", "group_size:3", "group_size:7,zstd:1,pad_to_block_boundary:true"]
)
@pytest.mark.parametrize("lengths", [[0] * 50, [10] * 300, [65471, 65472, 65473, 65511, 65512, 65536, 1, 200_000] * 3])
def test_chunks_are_found_wherever_blocks_cut_them(tmp_path, monkeypatch, options, lengths):
    """The digest is of the headers alone, all of them, and of each byte of each record."""
    rng, records = np.random.default_rng(0), []

    def write(name, changed=()):
        writer = ArrayRecordWriter(str(tmp_path / name), options)
        for n, record in enumerate(records):
            writer.write(record[:-1] + bytes([record[-1] ^ 1]) if n in changed else record)
        writer.close()
        return riegeli.content_digest(str(tmp_path / name))

    records += [rng.bytes(length) for length in lengths]
    digest, read, real = write("a"), [], os.pread
    monkeypatch.setattr(os, "pread", lambda *given: read.append(real(*given)) or read[-1])
    assert write("b") == digest
    chunks = len(read) - 1  # the last one finds nothing
    assert not read[-1] and sum(map(len, read)) == 64 * chunks and chunks >= len(lengths) / 7
    if any(lengths):
        assert len({digest, write("c", {0}), write("d", {len(lengths) // 2}), write("e", {len(lengths) - 1})}) == 4


@given(place=st.integers(0, 1 << 17), noise=st.binary(min_size=1, max_size=60), cut=st.integers(0, 1 << 17))
def test_whatever_stands_in_a_file_has_a_digest_or_is_refused(tmp_path_factory, place, noise, cut):
    folder = tmp_path_factory.mktemp("records")
    write_array_record(folder, [range(3)])
    (file,) = folder.iterdir()
    data = bytearray(file.read_bytes())
    data[place : place + len(noise)] = noise
    file.write_bytes(data[: len(data) - cut])
    try:
        assert len(riegeli.content_digest(str(file))) == 32
    except UserError as error:
        assert f"at most {riegeli.MAX_CHUNK_BYTES} are read" in str(error)


def test_large_files_of_records_are_walked_once(tmp_path, monkeypatch):
    monkeypatch.setattr(riegeli, "MIN_NOTED", 5)
    section, walked, real = write_array_record(tmp_path, SHARDS), [], riegeli.content_digest
    monkeypatch.setattr(riegeli, "content_digest", lambda path: walked.append(path) or real(path))
    before = fingerprint(make_source(section))
    assert len(walked) == 2 and fingerprint(make_source(section)) == before and len(walked) == 2
    edited(monkeypatch)
    write_array_record(tmp_path, SHARDS)
    assert fingerprint(make_source(section)) != before and len(walked) == 4
    (tmp_path / ".filip_index/contents.json").write_text("{")
    make_source(section)
    assert len(walked) == 6
    shutil.move(tmp_path / ".filip_index", tmp_path / "elsewhere")
    (tmp_path / ".filip_index").symlink_to("elsewhere")
    (tmp_path / "elsewhere/contents.json").write_text("{}")
    make_source(section)  # nothing is written through a link
    assert len(walked) == 8 and (tmp_path / "elsewhere/contents.json").read_text() == "{}"


@pytest.mark.parametrize("closed", ["read-only", "of others"])
def test_digests_of_data_that_may_not_be_written_are_noted_in_the_cache(tmp_path, monkeypatch, closed):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(riegeli, "MIN_NOTED", 5)
    (tmp_path / "data").mkdir()
    section, walked, real = write_array_record(tmp_path / "data", SHARDS), [], riegeli.content_digest
    monkeypatch.setattr(riegeli, "content_digest", lambda path: walked.append(path) or real(path))
    write = content.write_atomically

    def only_in_the_cache(file, data):
        if not file.is_relative_to(tmp_path / "cache"):
            raise PermissionError("read-only")
        write(file, data)

    with sources_of_others() if closed == "of others" else contextlib.nullcontext():
        if closed == "read-only":
            monkeypatch.setattr(content, "write_atomically", only_in_the_cache)
        before = fingerprint(make_source(section))
        assert fingerprint(make_source(section)) == before and len(walked) == 2
    assert not list(tmp_path.glob("data/.filip_index/*")) and len(list(tmp_path.rglob("contents.json"))) == 1


def test_notes_of_other_files_in_the_folder_are_kept(tmp_path, monkeypatch):
    """As of two splits, each of which a training opens whenever it starts."""
    monkeypatch.setattr(riegeli, "MIN_NOTED", 2)
    section, walked, real = write_array_record(tmp_path, SHARDS), [], riegeli.content_digest
    monkeypatch.setattr(riegeli, "content_digest", lambda path: walked.append(path) or real(path))
    splits = [section | {"path": str(file)} for file in sorted(tmp_path.glob("*.array*"))]
    for _ in range(2):
        [make_source(split) for split in splits]
    assert len(splits) == len(walked) == 2
