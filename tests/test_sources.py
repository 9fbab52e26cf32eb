"""Every kind of data: the same pairs in, the same records out; broken data met, counted, never executed."""

import contextlib
import json
import os
import pickle
import shutil
import sys
import tarfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from pairs import (
    WRITERS,
    key,
    members,
    picture,
    tar,
    texts,
    write_array_record,
    write_jsonl,
    write_parquet,
    write_webdataset,
)

from filip_jax import handles
from filip_jax.ahead import in_order
from filip_jax.cleaning.filter import filter_source
from filip_jax.data import array_record, side_captions, table, tar_index
from filip_jax.data import record as records
from filip_jax.data.decode import decode
from filip_jax.data.listed import read_listed
from filip_jax.data.record import BadRecord, Caption
from filip_jax.data.sources import Source, fingerprint, make_source
from filip_jax.data.tar_headers import Member
from filip_jax.errors import UserError

SHARDS = [range(0, 5), range(5, 6), range(6, 10)]


@pytest.mark.smoke
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_reader_gives_the_same_pairs(write, tmp_path):
    source = make_source(write(tmp_path, SHARDS))
    assert isinstance(source, Source) and len(source) == 10 == sum(source.shard_sizes)
    for of in (source, make_source(write(tmp_path, SHARDS)), pickle.loads(pickle.dumps(source))):
        for n in [*range(10), *np.random.default_rng(0).permutation(10).tolist()]:  # neighbours may be read together
            record = of[n]
            assert np.asarray(decode(record.image))[0, 0].tolist() == [n] * 3
            assert {caption.origin: caption.text for caption in record.captions} == texts(n)
            assert of.captions(n) == record.captions and of.where(n) == (record.shard, record.key)
            assert record.image.startswith(of.image_head(n)[:50])
    assert fingerprint(make_source(write(tmp_path, SHARDS))) == fingerprint(source)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_threads_read_the_same_records(write, tmp_path, monkeypatch):
    """As training and evaluations do; with such short turns they meet everywhere."""
    source, plain = make_source(write(tmp_path, SHARDS)), make_source(write(tmp_path, SHARDS))
    expected = [(plain[n], plain.captions(n), plain.where(n)) for n in range(10)]
    indices = [*range(10)] * 20 + np.random.default_rng(0).integers(0, 10, 200).tolist()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: (source[n], source.captions(n), source.where(n)), indices))
    finally:
        sys.setswitchinterval(before)
    assert all(one == expected[n] for n, one in zip(indices, found))


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_other_data_is_another_fingerprint(write, tmp_path):
    before = fingerprint(make_source(write(tmp_path, SHARDS)))
    assert fingerprint(make_source(write(tmp_path, [range(0, 5), range(5, 7), range(7, 12)]))) != before


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_wrong_place_or_caption_is_refused(write, tmp_path):
    section = write(tmp_path, SHARDS)
    for change in ({"path": str(tmp_path / "nowhere")}, {"paht": "x"}, {"caption_keys": "txt"}):
        with pytest.raises(UserError, match="path|caption_keys"):
            make_source(section | change)
    if section["name"] != "array_record":
        with pytest.raises(UserError, match="nonsense"):
            make_source(section | {"caption_keys": ("nonsense",)})


def test_a_json_member_may_hold_captions(tmp_path):
    section = write_webdataset(tmp_path, SHARDS)
    one = make_source(section | {"caption_keys": ("json.caption", "json.other.long", "json.other.missing")})
    assert [caption.text for caption in one[7].captions] == ["picture 7", "a 7", "b 7"]


def test_a_text_may_hold_a_caption_a_line(tmp_path):
    """As clip_benchmark/webdataset_builder.py writes retrieval: lines joined, a caption's own newline as two signs."""
    captions = [["A man.", "Two men\non bikes.", " A café. "], ["One line"], ["windows", "lines", ""]]
    joined = ["\n".join(c.replace("\n", r"\n") for c in each) for each in captions[:2]] + ["windows\r\nlines\n"]
    samples = enumerate(joined)
    tar(
        tmp_path / "0.tar",
        [m for n, text in samples for m in ((f"s{n:07}.png", picture(n)), (f"s{n:07}.txt", text.encode()))],
    )
    section = dict(name="webdataset", path=str(tmp_path))
    source = make_source(section | {"lines": True})
    assert [[caption.text for caption in source.captions(n)] for n in range(3)] == [
        ["A man.", r"Two men\non bikes.", "A café."], ["One line"], ["windows", "lines"],
    ]  # fmt: skip
    assert source[0].captions == source.captions(0) and {caption.origin for caption in source.captions(2)} == {"txt"}
    plain = make_source(section)
    assert [caption.text for caption in plain.captions(2)] == ["windows\nlines"]
    assert fingerprint(plain) != fingerprint(source)
    with pytest.raises(UserError, match="lines=3 is not True or False"):
        make_source(section | {"lines": 3})


def test_the_index_is_made_once_and_again_for_what_is_new(tmp_path, monkeypatch):
    section = write_webdataset(tmp_path, SHARDS)
    make_source(section)
    opened, real = [], tar_index.read_members
    monkeypatch.setattr(tar_index, "read_members", lambda *given: opened.append(given) or real(*given))
    make_source(section)
    assert not opened
    tar(tmp_path / "00003.tar", members(range(10, 12)))
    opened.clear()
    assert len(make_source(section)) == 12 and len(opened) == 1
    (tmp_path / "00001.tar").unlink()
    with pytest.warns(UserWarning, match="1 shard numbers are missing: 1"):
        gap = make_source(section)
    assert len(gap) == 11 and gap[5].key == key(6)
    with pytest.raises(UserError, match=r"1 of 4 files are missing: .*00001.tar"):
        make_source(section | {"path": str(tmp_path / "{00000..00003}.tar")})


def test_an_index_elsewhere_and_a_damaged_one(tmp_path):
    (tmp_path / "data").mkdir()
    section = write_webdataset(tmp_path / "data", SHARDS) | {"index": str(tmp_path / "index")}
    make_source(section)
    assert not (tmp_path / "data/.filip_index").exists()
    (own,) = (tmp_path / "index").iterdir()
    first, second, _ = sorted(file for file in own.iterdir() if file.name != "index.json")
    opened = make_source(section)
    first.write_bytes(b""), second.unlink()
    for index, message in ((0, "is damaged: remove it"), (5, "is damaged: remove it")):
        with pytest.raises(UserError, match=message):
            handles._handles.clear()
            opened[index]
    assert [make_source(section)[n].key for n in range(10)] == [key(n) for n in range(10)]  # they are made again
    (own / "index.json").write_text("{")
    with pytest.raises(UserError, match="index.json is damaged"):
        make_source(section)
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "index").write_text("a file")
    with pytest.raises(UserError, match="set `index` to a folder of your own"):
        make_source(section)


class Bomb:
    """Unpickled, it would say so."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def link(name, kind, target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, None


@pytest.mark.smoke
def test_tars_full_of_traps(tmp_path):
    header = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + picture(1)[24:29]
    png_of_30000 = picture(1)[:12] + header + zlib.crc32(header).to_bytes(4, "big") + picture(1)[33:]
    tar(tmp_path / "00000.tar", [
        *members([0]),
        ("000000001.png", b"no picture"), ("000000001.txt", b"broken image"),
        ("000000002.png", picture(2)),  # no caption
        ("000000003.txt", b"no image"),
        ("000000000.png", picture(99)), ("000000000.txt", b"a key again"),
        ("000000004.pkl", pickle.dumps(Bomb())), ("000000004.pyd", pickle.dumps(Bomb())),
        ("../../000000005.png", picture(5)), ("../../000000005.txt", b"dots"),
        ("/etc/000000006.png", picture(6)), ("/etc/000000006.txt", b"absolute"),
        link("000000007.png", tarfile.SYMTYPE), link("000000007.txt", tarfile.LNKTYPE),
        link("000000008.png", tarfile.CHRTYPE), link("folder", tarfile.DIRTYPE),
        ("000000009.png", png_of_30000), ("000000009.txt", b"a very large header"),
        ("000000010.png", picture(10)), ("000000010.txt", b"x" * 2_000_000),
        ("000000011.png", picture(11)), ("000000011.txt", b"caf\xe9"),
        ("000000012.png", b""), ("000000012.txt", b""),
        ("000000013.PNG", picture(13)), ("000000013.txt", b"capitals"),
        ("k" * 300 + ".png", picture(14)), ("k" * 300 + ".txt", b"a long name"),
    ])  # fmt: skip
    (tmp_path / "00001.tar").write_bytes(b"")
    (tmp_path / "00002.tar").write_bytes(b"nonsense " * 1000)
    tar(tmp_path / "00003.tar", members([20, 21, 22]))
    whole = (tmp_path / "00003.tar").read_bytes()
    (tmp_path / "00003.tar").write_bytes(whole[: whole.index(b"000000022.png") + 530])
    with pytest.warns(UserWarning, match="1 shard numbers are missing: 1"):  # an empty file is none
        source = make_source(dict(name="webdataset", path=str(tmp_path)))
    good, bad = {}, {}
    for n in range(len(source)):
        try:
            record = source[n]
            decode(record.image)
            good[record.key] = (record.image, [caption.text for caption in record.captions])
        except (BadRecord, ValueError) as error:
            bad[source.where(n)[1]] = str(error)
    assert good.pop("000000000") == (picture(0), ["picture 0"])
    assert good.pop("../../000000005")[1] == ["dots"] and good.pop("/etc/000000006")[1] == ["absolute"]
    assert good.pop("000000002")[1] == [] and good.pop("000000013") == (picture(13), ["capitals"])
    assert good.pop(key(20))[1] == ["picture 20"] and good.pop(key(21))[1] == ["picture 21"]
    assert len(good) == 1, list(good)
    (long,) = good
    assert len(long) == 200 and good[long][1] == ["a long name"]
    assert set(bad) == {"000000001", "000000009", "000000010", "000000011"}
    assert "pixels" in bad["000000009"] and "2000000 bytes" in bad["000000010"] and "UTF-8" in bad["000000011"]
    for problem in (
        "no image (2)",
        "duplicate (2)",
        "not a file (1)",
        "--hard-dereference (2)",
        "empty (2)",
        "no tar (1)",
        "cut off (1)",
    ):
        assert problem in source.seen, source.seen


@examples(60)
@given(place=st.integers(0, 9_000), noise=st.binary(min_size=1, max_size=600), cut=st.integers(0, 12_000))
def test_whatever_is_wrong_with_a_tar_nothing_crashes(tmp_path_factory, place, noise, cut):
    folder = tmp_path_factory.mktemp("tars")
    tar(folder / "0.tar", members([0]))
    tar(folder / "1.tar", members([1, 2, 3]))
    data = bytearray((folder / "1.tar").read_bytes())
    data[place : place + len(noise)] = noise
    (folder / "1.tar").write_bytes(data[: len(data) - cut])
    source = make_source(dict(name="webdataset", path=str(folder)))
    for n in range(len(source)):
        with contextlib.suppress(BadRecord, ValueError):
            decode(source[n].image)
    assert source[0].image == picture(0)


def test_tars_without_the_captions_that_are_wanted_say_what_they_hold(tmp_path):
    tar(tmp_path / "0.tar", [("1.png", picture(1)), ("1.cls", b"3"), ("2.txt", b"no image")])
    with pytest.raises(
        UserError, match=r"caption_keys='txt'; 1 tar with png \(1\), cls \(1\); left out: no image \(1\)"
    ):
        make_source(dict(name="webdataset", path=str(tmp_path)))


def test_a_list_may_name_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe", "/dev/zero", "nowhere", "a\0b"):
        with pytest.raises(BadRecord, match="no such file"):
            read_listed(str(tmp_path), name, 10)


def test_lists_with_broken_rows(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1))
    rows = [
        json.dumps({"image": "a.png", "caption": ["one", "two", 3, None]}), "nonsense", '{"caption": "no image"}',
        '{"image": "missing.png", "caption": "x"}', '{"image": "https://example.org/a.png", "caption": "x"}',
        '{"image": "a.png", "caption": "' + "x" * 2_000_000 + '"}', "[1]", '{"image": 3, "caption": "x"}',
        '{"image": ".", "caption": "a folder"}', "[" * 100_000, '{"image": "\\ud800", "caption": "\\ud800"}',
    ]  # fmt: skip
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    with pytest.warns(
        UserWarning, match=r"5 of 11 rows cannot be read and are bad records: list.jsonl, line 2: .*line 6"
    ):
        source = make_source(dict(name="jsonl", path=str(tmp_path)))
    assert len(source) == len(rows) and [caption.text for caption in source[0].captions] == ["one", "two"]
    for n, message in enumerate(
        [
            "",
            "cannot be read",
            "no image",
            "no such file",
            "not downloaded",
            "read",
            "read",
            "no image",
            "no such file",
            "read",
        ]
    ):
        if message:
            with pytest.raises(BadRecord, match=message):
                source[n]
    assert source.where(1) == ("list.jsonl", "row 2") and source.where(3) == ("list.jsonl", "missing.png")


def test_records_of_ours_notice_damage(tmp_path):
    section = write_array_record(tmp_path, [range(2)])
    source = make_source(section)
    data = source._read(0)
    from filip_jax.data.array_record import decode_record

    for damaged in (data[:-3] + b"xyz", data[:10], data[:13] + b"{" + data[14:]):
        with pytest.raises(BadRecord, match="checksum|damaged"):
            decode_record(damaged)
    with pytest.raises(UserError, match="cannot be read as ArrayRecord"):
        (tmp_path / "x.array_record").write_bytes(b"x" * 200_000)
        make_source(section)


@pytest.mark.parametrize("name", ["array_record", "tfds"])
def test_what_the_readers_of_others_can_not_reach(name):
    options = {"split": "train"} if name == "tfds" else {}
    with pytest.raises(UserError, match="s3://"):
        make_source(dict(name=name, path="s3://bucket/data", **options))


def side_file(path, rows):
    path.write_text("".join(json.dumps(dict(zip(("key", "origin", "caption"), row))) + "\n" for row in rows))
    return str(path)


def test_captions_from_a_side_file_join_by_key(tmp_path):
    (tmp_path / "data").mkdir()
    section = write_webdataset(tmp_path / "data", SHARDS)
    rows = [(key(n), origin, f"{origin} {n}") for n in (7, 3, 7, 99) for origin in ("long", "fr")]
    section |= {"side_captions": side_file(tmp_path / "side.jsonl", rows), "index": str(tmp_path / "index")}
    source = make_source(section | {"caption_keys": ("txt", ("long", 0.5), ("fr", 2))})
    expected = (
        Caption("picture 7", "txt", 1.0), Caption("long 7", "long", 0.25), Caption("fr 7", "fr", 1.0),
        Caption("long 7", "long", 0.25), Caption("fr 7", "fr", 1.0),
    )  # fmt: skip
    for of in (source, pickle.loads(pickle.dumps(source))):
        assert of[7].captions == expected == of.captions(7) and len(of[3].captions) == 3 and len(of[4].captions) == 1
    only = make_source(section | {"caption_keys": ("long",)})
    assert [caption.text for caption in only[3].captions] == ["long 3"] and only[0].captions == ()
    assert fingerprint(only) != fingerprint(make_source(section | {"side_captions": ""}))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(dict(zip(("key", "origin", "caption"), map(list, zip(*rows))))), tmp_path / "side.parquet")
    same = make_source(
        section | {"side_captions": str(tmp_path / "side.parquet"), "caption_keys": ("txt", ("long", 0.5), ("fr", 2))}
    )
    assert same[7].captions == expected


def test_a_side_file_that_is_none(tmp_path):
    (tmp_path / "data").mkdir()
    section = write_jsonl(tmp_path / "data", SHARDS)
    for rows, message in (
        ([("1", "fr")], "line 1"),
        ([("1", "fr", 3)], "must be texts"),
        ([("1", "fr", "x" * 70_000)], "more than"),
    ):
        with pytest.raises(UserError, match=message):
            make_source(section | {"side_captions": side_file(tmp_path / "side.jsonl", rows)})
    with pytest.raises(UserError, match="side_captions=.*there is no such file"):
        make_source(section | {"side_captions": str(tmp_path / "none.jsonl")})


@pytest.mark.parametrize("write", [write_webdataset, write_array_record, write_parquet, write_jsonl])
def test_records_of_files_of_one_name_are_told_apart_by_their_folders(write, tmp_path):
    """As partitions, splits and downloads of several collections have them; and by the same names when a folder is added."""
    places = {}
    for name, numbers in (("b", range(3)), ("a", range(5, 8))):
        (tmp_path / "data" / name).mkdir(parents=True)
        source = make_source(write(tmp_path / "data" / name, [numbers]) | {"path": str(tmp_path / "data")})
        now = {source[n].captions[0].text: source.where(n) for n in range(len(source))}
        assert len(set(now.values())) == len(now) == len(places) + 3 and places.items() <= now.items()
        places = now
    assert {shard.split("/")[0] for shard, _ in places.values()} == {"a", "b"}
    assert {source[n].shard for n in range(6)} == {shard for shard, _ in places.values()}


def test_a_mixture_is_one_source_after_the_other(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    a, b = write_webdataset(tmp_path / "a", SHARDS), write_jsonl(tmp_path / "b", [range(20, 23)])
    source = make_source(dict(name="mixture", a=a, b=b))
    assert len(source) == 13 and [source[n].key for n in (0, 9, 10, 12)] == [key(n) for n in (0, 9, 20, 22)]
    assert source.captions(11) == source[11].captions and source.where(11)[1] == key(21)
    assert source.where(9)[0] == "a/" + make_source(a).where(9)[0] and source.where(10)[0].startswith("b/")
    assert source.weights == {"a": 10.0, "b": 3.0} and pickle.loads(pickle.dumps(source))[12].key == key(22)
    for section, message in (
        (dict(name="mixture"), "it has none"),
        (dict(name="mixture", a=dict(name="mixture", b=b)), "a mixture of"),
        (dict(name="mixture", a=a | {"weight": 3.0}, b=b), "source.b.weight=None: give each part"),
        (dict(name="mixture", a=a | {"weight": "much"}, b=b | {"weight": 1}), "source.a.weight='much'"),
    ):
        with pytest.raises(UserError, match=message):
            make_source(section)
    with pytest.raises(UserError, match=r"source.b.name='x' is not one of"):
        make_source(dict(name="mixture", a=a, b=dict(name="x")))


def kept(folder, source, indices, changed=()):
    """What a filter writes."""
    import pyarrow as pa

    folder.mkdir()
    np.save(folder / "kept.npy", np.array(indices, np.int64))
    table = pa.table(dict(zip(("index", "origin", "text"), [list(column) for column in zip(*changed)] or [[], [], []])))
    schema = pa.schema([("index", pa.int64()), ("origin", pa.string()), ("text", pa.string())])
    with pa.OSFile(str(folder / "captions.arrow"), "wb") as file, pa.ipc.new_file(file, schema) as out:
        out.write_table(table.cast(schema))
    (folder / "report.json").write_text(json.dumps({"identity": source.identity, "rules": {}}))
    return str(folder)


def test_what_a_filter_left(tmp_path):
    (tmp_path / "data").mkdir()
    section = write_webdataset(tmp_path / "data", SHARDS)
    plain = make_source(dict(section))
    keep = kept(
        tmp_path / "kept", plain.source, [0, 4, 5, 9], [(4, "txt", "new"), (4, "de.txt", "neu"), (9, "txt", "last")]
    )
    source = make_source(section | {"keep": keep})
    assert len(source) == 4 and source.shard_sizes.tolist() == [2, 1, 1]
    assert [source[n].key for n in range(4)] == [key(n) for n in (0, 4, 5, 9)]
    assert [[caption.text for caption in source.captions(n)] for n in range(4)] == [
        ["picture 0", "Bild 0"], ["new", "neu"], ["picture 5", "Bild 5"], ["last"],
    ]  # fmt: skip
    assert fingerprint(source) != fingerprint(plain) and pickle.loads(pickle.dumps(source))[3].key == key(9)
    tar(tmp_path / "data/00003.tar", members([10]))
    with pytest.raises(UserError, match="made of other data"):
        make_source(section | {"keep": keep})
    with pytest.raises(UserError, match="holds no kept.npy"):
        make_source(section | {"keep": str(tmp_path)})
    (tmp_path / "data/00003.tar").unlink()
    with pytest.raises(UserError, match="with other caption_keys or side_captions"):
        make_source(section | {"keep": keep, "caption_keys": ("txt",)})
    report = json.loads((tmp_path / "kept/report.json").read_text())
    (tmp_path / "kept/report.json").write_text(json.dumps(report | {"rules": {"min_side": 1}}))
    assert fingerprint(make_source(section | {"keep": keep})) != fingerprint(source)
    (tmp_path / "kept/report.json").unlink()
    with pytest.raises(UserError, match="holds no report.json"):
        make_source(section | {"keep": keep})


def test_a_tar_written_anew_at_the_same_size_is_indexed_anew(tmp_path):
    tar(tmp_path / "0.tar", [("1.png", picture(1)), ("1.txt", b"one")])
    section = dict(name="webdataset", path=str(tmp_path))
    before, size = fingerprint(make_source(section)), (tmp_path / "0.tar").stat().st_size
    tar(tmp_path / "0.tar", [("22.txt", b"another"), ("22.png", picture(2))])
    assert (tmp_path / "0.tar").stat().st_size == size
    source = make_source(section)
    assert (source[0].key, source[0].image, source[0].caption) == ("22", picture(2), "another")
    assert fingerprint(source) != before
    os.utime(tmp_path / "0.tar")
    assert fingerprint(make_source(section)) == fingerprint(source)  # the same data, whatever its time


def test_two_data_sets_share_a_folder_of_indices(tmp_path):
    sections = []
    for name, numbers in (("a", range(5)), ("b", range(10, 50))):
        (tmp_path / name / "tars").mkdir(parents=True)
        section = write_webdataset(tmp_path / name / "tars", [numbers])
        sections.append(section | {"index": str(tmp_path / "index")})
    a, b = map(make_source, sections)
    assert [a[n].key for n in range(5)] == [key(n) for n in range(5)]
    assert [b[n].key for n in range(40)] == [key(n) for n in range(10, 50)]
    mixture = dict(name="mixture", a=sections[0], b=sections[1])
    before = fingerprint(make_source(mixture))
    tar(tmp_path / "b/tars/00000.tar", members(range(60, 100)))
    assert fingerprint(make_source(mixture)) != before and a[0].key == key(0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("size", [-512, -1024, 1 << 33])
def test_headers_that_lead_back_or_too_far(tmp_path, size):
    tar(tmp_path / "0.tar", members([0]))
    good = tarfile.TarInfo("5.png")
    good.size = size
    header = bytearray(good.tobuf(tarfile.GNU_FORMAT))
    for place in (0, 512 + 512):
        data = bytearray((tmp_path / "0.tar").read_bytes())
        data[place : place + 512] = header
        (tmp_path / "1.tar").write_bytes(data)
        source = make_source(dict(name="webdataset", path=str(tmp_path)))
        assert source[0].image == picture(0)
        assert any(word in source.seen for word in ("no tar", "damaged", "cut off"))


def test_members_beyond_what_an_index_holds_and_rare_kinds_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "KINDS", 2)
    samples, problems = {}, tar_index.Counter()
    for offset, size in ((512 << 32, 10), (512, 1 << 32)):
        tar_index._add(Member("1.png", b"0", offset, size, False), 1 << 60, samples, problems, "first_dot", None)
    assert not samples and list(problems.values()) == [2]
    tar(tmp_path / "0.tar", [("1.png", picture(1)), ("1.txt", b"a"), ("1.cls", b"3")])
    source = make_source(dict(name="webdataset", path=str(tmp_path), caption_keys=("cls",)))
    assert "of kinds beyond 2 (1)" in source.seen


def test_shard_names_that_are_no_running_numbers_cost_nothing(tmp_path):
    for name in ("0.tar", "20240101120000.tar"):
        tar(tmp_path / name, members([0]))
    assert len(make_source(dict(name="webdataset", path=str(tmp_path)))) == 2


def test_a_damaged_record_spoils_only_itself(tmp_path):
    writer = array_record.RecordWriter(tmp_path / "0.array_record")
    images = [np.random.default_rng(n).bytes(20_000) for n in range(20)]
    with writer:
        for n, image in enumerate(images):
            writer.write(records.Record(str(n), image, (Caption("a"),)))
    data = bytearray((tmp_path / "0.array_record").read_bytes())
    place = data.index(images[9][:50]) + 10_000
    data[place : place + 4] = b"????"
    (tmp_path / "0.array_record").write_bytes(data)

    def unreadable(order):
        source, bad = make_source(dict(name="array_record", path=str(tmp_path))), set()
        for n in order:
            try:
                assert source[n].image == images[n]
            except BadRecord:
                bad.add(n)
        return bad

    assert unreadable(range(20)) == unreadable(range(19, -1, -1)) == {9}


def test_heads_of_records_that_are_none(tmp_path):
    def encoded(head, image=b"x"):
        return array_record.MAGIC + len(head).to_bytes(4, "little") + head + image

    crc = zlib.crc32(b"x")
    wrong = [b"[" * 100_000, b"[]", b'{"key": 1, "captions": [], "crc32": %d}' % crc]
    wrong += [b'{"key": "k", "captions": [["a", 5]], "crc32": %d}' % crc, b"\xff"]
    for keys in (b"[]", b'["1", "2"]', b"[1]", b"1", b"null"):
        wrong.append(b'{"key": "k", "captions": [["a", "t"]], "text_keys": %s, "crc32": %d}' % (keys, crc))
    for head in wrong:
        with pytest.raises(BadRecord, match="damaged"):
            array_record.decode_record(encoded(head))
    writer = array_record.ArrayRecordWriter(str(tmp_path / "0.array_record"), "group_size:1")
    for data in (b"neither", encoded(b'{"key": "k", "captions": [["a", "t"]], "crc32": 1}')):
        writer.write(data)
    writer.close()
    source = make_source(dict(name="array_record", path=str(tmp_path)))
    assert source.seen == "records of an unknown kind" and source.captions(1)[0].text == "t"
    for index, message in ((0, "neither"), (1, "checksum")):
        with pytest.raises(BadRecord, match=message):
            source[index]
    assert source.where(0)[1] == "0"


def test_captions_without_keys_are_written_as_ever_and_those_with_keys_have_one_each():
    image = b"\x89PNG"
    old = '{"key": "k", "shard": "s", "captions": [["txt", "café"], ["de.txt", ""]], "crc32": 1542176421}'.encode()
    plain = records.Record("k", image, (Caption("café", "txt"), Caption("", "de.txt")), shard="s")
    assert array_record.encode_record(plain) == b"filip1\r\n" + len(old).to_bytes(4, "little") + old + image
    assert array_record.decode_record(array_record.encode_record(plain)) == ("k", plain.captions, image)
    long = Caption("x" * (records.CAPTION_BYTES + 1), "txt", key="7")
    keyed = (Caption("a", "txt", key="café"), long, Caption("b", "txt"), Caption("b", "txt", key="9"))
    _, found, _ = array_record.decode_record(array_record.encode_record(records.Record("k", image, keyed)))
    assert found == (keyed[0], *keyed[2:])  # what is left out for its length takes its key along
    with pytest.raises(TypeError, match="encode it"):  # bytes + array would be an array
        array_record.encode_record(records.Record("k", np.zeros((1, 1, 3), np.uint8), keyed))


def test_of_our_records_the_captions_that_are_wanted(tmp_path):
    section = write_array_record(tmp_path, SHARDS)
    source = make_source(section | {"caption_keys": ("de.txt",)})
    assert [caption.text for caption in source[3].captions] == ["Bild 3"] == [c.text for c in source.captions(3)]
    with pytest.warns(UserWarning, match="none of the first 10 records has captions of 'nope'; .* txt, de.txt"):
        make_source(section | {"caption_keys": ("txt", "nope")})


def test_few_readers_of_array_record_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(array_record, "READERS", 3)
    source = make_source(write_array_record(tmp_path, [[n] for n in range(20)]))
    for n in np.random.default_rng(0).permutation(20).tolist():
        assert source[n].key == key(n) and len(source._readers) <= 3


def test_threads_side_by_side_share_what_array_record_reads_ahead(tmp_path, monkeypatch):
    for file in range(2):
        with array_record.RecordWriter(tmp_path / f"{file}.array_record") as writer:
            for n in range(1000 * file, 1000 * file + 1000):
                writer.write(records.Record(str(n), b"image", (Caption("a"),)))
    source, read = make_source({"name": "array_record", "path": str(tmp_path)}), []
    monkeypatch.setattr(
        array_record.ArrayRecord, "_read_some",
        lambda self, index, many, plain=array_record.ArrayRecord._read_some: read.append(plain(self, index, many)) or read[-1],
    )  # fmt: skip
    keys = in_order(lambda n: (source[n].key, time.sleep(0.001))[0], range(2000), 64)  # as if it were decoded
    assert list(keys) == [str(n) for n in range(2000)]
    assert sum(map(len, read)) < 2 * 2000 and sum(len(block) > 1 for block in read) < 16


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_images_beyond_the_cap_are_bad(write, tmp_path, monkeypatch):
    source = make_source(write(tmp_path, SHARDS))
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("filip_jax.data.") and hasattr(module, "IMAGE_BYTES"):
            monkeypatch.setattr(module, "IMAGE_BYTES", 40)
    with pytest.raises(BadRecord, match="bytes"):
        source[0]


def test_rows_beyond_the_first_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "ROWS", 4)
    monkeypatch.setattr(side_captions, "ROWS", 3)
    (tmp_path / "data").mkdir()
    section = write_jsonl(tmp_path / "data", SHARDS)
    rows = [(key(n), "fr", f"fr {n}") for n in range(9, -1, -1)]
    monkeypatch.setattr(side_captions, "_hash", lambda key: np.uint64(int(key) % 2))  # all keys collide
    side = {"side_captions": side_file(tmp_path / "side.jsonl", rows), "caption_keys": ("txt", "de.txt", "fr")}
    source = make_source(section | side)
    for n in range(10):
        assert [caption.text for caption in source[n].captions] == [*texts(n).values(), f"fr {n}"]


@pytest.mark.parametrize("part", ["hashes.npy", "rows.npy", "arrow"])
@pytest.mark.parametrize("damage", ["torn", "longer", "pickled", "wrong rows"])
def test_a_damaged_index_of_side_captions_is_named(tmp_path, part, damage):
    (tmp_path / "data").mkdir()
    section = write_jsonl(tmp_path / "data", SHARDS)
    section |= {"side_captions": side_file(tmp_path / "side.jsonl", [(key(n), "fr", f"fr {n}") for n in range(10)])}
    section |= {"caption_keys": ("fr",), "index": str(tmp_path / "index")}
    make_source(section)
    (file,) = (tmp_path / "index").glob(f"captions.*.{part}")
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:-9])
    elif part == "arrow":
        file.write_bytes(b"nothing")
    elif damage == "longer":
        np.save(file, np.arange(11, dtype=np.uint64 if part == "hashes.npy" else np.int64))
    elif damage == "pickled":
        np.save(file, np.array([print] * 10), allow_pickle=True)
    else:
        np.save(file, np.arange(10) + 1)
    with pytest.raises(UserError, match=r"captions\..*\.\* is damaged .*remove it, it is then made again"):
        make_source(section)[0]


def test_what_is_filtered_with_a_side_file_is_kept_as_it_was_left(tmp_path):
    (tmp_path / "data").mkdir()
    rows = [(key(n), "fr", "bad words" if n == 3 else f"texte {n}") for n in range(10)]
    section = write_webdataset(tmp_path / "data", SHARDS) | {"caption_keys": ("txt", "fr")}
    section |= {"side_captions": side_file(tmp_path / "side.jsonl", rows), "index": str(tmp_path / "index")}
    words = tmp_path / "words.txt"
    words.write_text("bad\npicture 5")
    rules = dict(min_side=0, max_aspect=0, languages=(), max_repeats=0, person_names=False, meaningless=False)
    filter_source(make_source(section), tmp_path / "out", **rules, sensitive_words=str(words), workers=0)
    kept = make_source(section | {"keep": str(tmp_path / "out")})
    found = {kept[n].key: [caption.text for caption in kept[n].captions] for n in range(len(kept))}
    assert found.pop(key(3)) == ["picture 3"] and found.pop(key(5)) == ["texte 5"]
    assert found == {key(n): [f"picture {n}", f"texte {n}"] for n in range(10) if n not in (3, 5)}
    for source, message in (
        (kept, "the data was filtered"),
        (make_source(dict(name="mixture", a=section)), "a mixture"),
    ):
        with pytest.raises(UserError, match=message):
            filter_source(source, tmp_path / "again", **rules)


def test_a_side_file_of_strangers_is_noticed(tmp_path):
    (tmp_path / "data").mkdir()
    section = write_webdataset(tmp_path / "data", SHARDS) | {"index": str(tmp_path / "index")}
    with pytest.warns(UserWarning, match="no text for any of 10 records .* 'x.jpg', the data's '000000000'"):
        make_source(section | {"side_captions": side_file(tmp_path / "side.jsonl", [("x.jpg", "fr", "texte")])})
    (tmp_path / "two").mkdir()
    for name in "ab":
        side_file(tmp_path / f"two/{name}.jsonl", [("x", "fr", "y")])
    with pytest.raises(UserError, match="names 2 files; give one"):
        make_source(section | {"side_captions": str(tmp_path / "two")})


def test_a_folder_with_captions_from_elsewhere_and_names_that_are_no_files(tmp_path):
    (tmp_path / "data").mkdir()
    for n in range(3):
        (tmp_path / f"data/{n}.png").write_bytes(picture(n))
    (tmp_path / "data/dir.png").mkdir()
    (tmp_path / "data/broken.png").symlink_to("nowhere.png")
    rows = [(f"{n}.png", "syn", f"text {n}") for n in range(3)]
    side = {"side_captions": side_file(tmp_path / "side.jsonl", rows), "caption_keys": ("syn",)}
    source = make_source(dict(name="folder", path=str(tmp_path / "data"), **side))
    assert [source[n].caption for n in range(len(source))] == ["text 0", "text 1", "text 2"]
    (tmp_path / "data/0.txt").write_text("x" * 70_000)
    (tmp_path / "data/1.txt").write_text("fine")
    with pytest.warns(UserWarning, match="1 of 3 images"):
        plain = make_source(dict(name="folder", path=str(tmp_path / "data")))
    with pytest.raises(BadRecord, match="more than"):
        plain[0]
    (tmp_path / "data/1.png").unlink(), handles._handles.clear()
    with pytest.raises(BadRecord, match="no such file"):
        plain[1]
    with pytest.raises(UserError, match="no image .* has a .de.txt"):
        make_source(dict(name="folder", path=str(tmp_path / "data"), caption_keys=("txt", "de.txt")))


@pytest.mark.parametrize("image", ["a\0b.png", "x" * 300, "x" * 5000, "a.png/b.png", "../.."])
def test_paths_that_can_not_be_are_bad_records(tmp_path, image):
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": image, "caption": "x"}))
    source = make_source(dict(name="jsonl", path=str(tmp_path)))
    for read in (lambda: source[0], lambda: source.image_head(0)):
        with pytest.raises(BadRecord, match="no such file"):
            read()


def test_damaged_parquet_is_a_bad_record_and_other_columns_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [np.random.default_rng(n).bytes(5000) for n in range(4)]
    columns = {"image": images, "caption": ["a"] * 4}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet", row_group_size=1, compression="snappy")
    data = bytearray((tmp_path / "0.parquet").read_bytes())
    place = data.index(images[2][:40]) - 30
    data[place : place + 25] = b"?" * 25
    (tmp_path / "0.parquet").write_bytes(data)
    source = make_source(dict(name="parquet", path=str(tmp_path)))
    bad = {}
    for n in range(4):
        try:
            assert source[n].image == images[n]
        except BadRecord as error:
            bad[n] = str(error)
    assert bad and bad.keys() <= {1, 2} and all("is damaged" in reason for reason in bad.values())
    assert [source.where(n) for n in (0, 3)] == [("0.parquet", "0"), ("0.parquet", "3")]
    pq.write_table(pa.table(columns), tmp_path / "1.parquet", row_group_size=3)
    two = make_source(dict(name="parquet", path=str(tmp_path)))
    assert [two.where(n) for n in (3, 4, 7)] == [("0.parquet", "3"), ("1.parquet", "0"), ("1.parquet", "3")]
    pq.write_table(pa.table({"image": images, "text": ["a"] * 4}), tmp_path / "1.parquet")
    with pytest.raises(
        UserError,
        match=r"1.parquet has no column 'caption'; it has image \(binary\), text \(string\); say caption_keys=text",
    ):
        make_source(dict(name="parquet", path=str(tmp_path)))
    pq.write_table(pa.table({"id": ["a"], "jpg": [b"x"], "text": ["a"]}), tmp_path / "0.parquet")
    with pytest.raises(
        UserError, match=r"no column 'image' and no column 'caption'; .*; say image=jpg and say caption_keys=text$"
    ):
        make_source(dict(name="parquet", path=str(tmp_path)))


def test_lists_as_spreadsheets_write_them(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "list.csv").write_bytes("\ufeffimage,caption\r\na.png,café\r\n".encode())
    assert make_source(dict(name="csv", path=str(tmp_path)))[0].caption == "café"
    (tmp_path / "list.csv").write_text("image,caption\n")
    with pytest.raises(UserError, match="1 list without a row"):
        make_source(dict(name="csv", path=str(tmp_path)))
    rows = [
        json.dumps({"image": "a.png", "caption": "a"}),
        "",
        "x" * (2 << 20),
        " ",
        '{"image": "a.png", "caption": "b"}',
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(rows) + "\n\n")
    (tmp_path / "list.csv").unlink()
    with pytest.warns(UserWarning, match="1 of 3 rows cannot be read .* line 3: a line or a quoted field of more than"):
        source = make_source(dict(name="jsonl", path=str(tmp_path)))
    assert len(source) == 3 and source[2].caption == "b"
    with pytest.raises(BadRecord, match="cannot be read"):
        source[1]


@pytest.mark.parametrize(
    "section, message",
    [
        (dict(name="webdataset", path=5), "path=5 is not a text"),
        (dict(name="webdataset", path="TARS", processes="abc"), "processes='abc' is not a whole number"),
        (dict(name="webdataset", path="TARS", processes=-1), "processes=-1 must be at least 0"),
        (dict(name="webdataset", path="TARS", side_captions=5), "side_captions=5 is not a text"),
        (dict(name="webdataset", path="TARS", keep=5), "keep=5 is not a text"),
        (dict(name="webdataset", path="TARS", caption_keys=(1, 2)), r"caption_keys=\(1, 2\) is not a list"),
        (dict(name="webdataset", path="TARS", caption_keys=("txt", "nope")), "caption_keys='nope'"),
        (
            dict(name="webdataset", path="TARS", nope=1),
            "its keys are path, .*, side_captions, keep",
        ),
    ],
)
def test_options_that_can_not_be(section, message, tmp_path):
    write_webdataset(tmp_path, SHARDS)
    with pytest.raises(UserError, match=message):
        make_source({name: str(tmp_path) if value == "TARS" else value for name, value in section.items()})
