"""Columns, fields and features of every type: texts, labels and images are read from what can hold them, else words say why not."""

import contextlib
import io
import json
import os
import random
import shutil
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from memory_source import Memory
from pairs import picture, tar
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from filip_jax import storage
from filip_jax.data import arrow, columnar
from filip_jax.data.decode import decode
from filip_jax.data.identity import parts_of
from filip_jax.data.record import BadRecord, Caption, Record
from filip_jax.data.sources import check_same_data, describe, make_source
from filip_jax.data.values import texts_of
from filip_jax.errors import UserError
from filip_jax.evals.records import check_records

IMAGES = [picture(n) for n in range(3)]


def write_parquet(path, table):
    pq.write_table(table, path)
    return dict(name="parquet", path=str(path))


def write_stream(path, table):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table, max_chunksize=2)
    return dict(name="arrow", path=str(path))


def write_file(path, table):
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema, options=options) as out:
        out.write_table(table, max_chunksize=2)
    return dict(name="arrow", path=str(path))


WRITERS = [write_parquet, write_stream, write_file]
raw = pa.struct([("raw", pa.string()), ("id", pa.int64())])


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize(
    "kind, values, expected",
    [
        (pa.string(), ["a", None, " b "], [["a"], [], ["b"]]),
        (pa.large_string(), ["a", None, "b"], [["a"], [], ["b"]]),
        (pa.binary(), [b"caf\xc3\xa9", None, b"b"], [["café"], [], ["b"]]),
        (pa.large_binary(), [b"a", None, b"b"], [["a"], [], ["b"]]),
        (pa.binary(2), [b"ab", None, b"cd"], [["ab"], [], ["cd"]]),
        (pa.dictionary(pa.int8(), pa.string()), ["a", None, "a"], [["a"], [], ["a"]]),
        (pa.list_(pa.string()), [["a", None, "b"], None, []], [["a", "b"], [], []]),
        (pa.list_(pa.list_(pa.string())), [[["a"], ["b", "c"]], [], [[]]], [["a", "b", "c"], [], []]),
        (pa.large_list(pa.large_string()), [["a", "b"], None, []], [["a", "b"], [], []]),
        (pa.list_(pa.binary()), [[b"a"], [], None], [["a"], [], []]),
        (raw, [{"raw": "a", "id": 1}, None, {"raw": None, "id": 2}], [["a"], [], []]),
        (pa.list_(raw), [[{"raw": "a", "id": 1}, {"raw": "b", "id": 2}], [], None], [["a", "b"], [], []]),
        (pa.list_(pa.struct([("caption", pa.string())])), [[{"caption": "a"}], [], None], [["a"], [], []]),
        (pa.struct([("text", pa.list_(pa.string()))]), [{"text": ["a", "b"]}, None, None], [["a", "b"], [], []]),
        (pa.int64(), [3, None, -1], [["3"], [], ["-1"]]),
        (pa.uint8(), [0, None, 255], [["0"], [], ["255"]]),
        (pa.float64(), [3.0, None, 2.5], [["3"], [], []]),
        (pa.float32(), [float("nan"), float("inf"), 1.0], [[], [], ["1"]]),
        (pa.bool_(), [True, None, False], [["1"], [], ["0"]]),
        (pa.decimal128(5, 1), [Decimal(7), None, Decimal("0.5")], [["7"], [], []]),
        (pa.null(), [None] * 3, [[], [], []]),
    ],
    ids=str,
)  # fmt: skip
def test_texts_of_every_type(tmp_path, write, kind, values, expected):
    table = pa.table({"image": IMAGES, "caption": pa.array(values, kind)})
    source = make_source(write(tmp_path / "0.x", table))
    assert [[caption.text for caption in source.captions(n)] for n in range(3)] == expected
    assert [caption.origin for caption in source.captions(0)] == ["caption"] * len(expected[0])
    json_values = [value for value in values if not isinstance(value, bytes | Decimal)]
    for value in json_values:
        assert texts_of(value) == expected[values.index(value)] if value == value else texts_of(value) == []


far = pa.array([2**60, 1, 2], pa.int64())


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("values, keys", [
    (far.view(pa.timestamp("us")), ["0", "1970-01-01 00:00:00.000001", "1970-01-01 00:00:00.000002"]),
    (far.view(pa.timestamp("ns")), ["0", "1", "2"]), (far.view(pa.timestamp("us", "No/Where")), ["0", "1", "2"]),
    (pa.array([2**31 - 1, 1, 2], pa.int32()).view(pa.date32()), ["0", "1970-01-02", "1970-01-03"]),
    (pa.array([list(range(2000)), [1], []]), ["0", "[1]", "[]"]), (pa.array(["k" * 2000, "a", None]), ["0", "a", "2"]),
    (pa.StructArray.from_arrays([far, far], ["a", "a"]), ["{'a': 1152921504606846976}", "{'a': 1}", "{'a': 2}"]),
], ids=["times", "nanoseconds", "a zone", "days", "lists", "texts", "double fields"])  # fmt: skip
def test_keys_and_what_lies_beside_texts_may_be_what_python_cannot_hold(tmp_path, write, values, keys):
    texts = pa.StructArray.from_arrays([pa.array(["a", "b", "c"]), values], ["raw", "made"])
    section = write(tmp_path / "0.x", pa.table({"image": IMAGES, "caption": texts, "id": values})) | {"key": "id"}
    source = make_source(section)
    assert [(source[n].key, source[n].caption) for n in range(3)] == list(zip(keys, "abc"))


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("kind", ["string", "binary"])
def test_texts_that_are_not_utf_8_are_bad_records(tmp_path, write, kind):
    texts = pa.array([b"ok", b"caf\xe9", b"ok"])
    if kind == "string":
        texts = pa.StringArray.from_buffers(3, *texts.buffers()[1:])
    source = make_source(write(tmp_path / "0.x", pa.table({"image": IMAGES, "caption": texts})))
    good = []
    for n in range(3):
        try:
            good.append((n, source[n].caption))
        except BadRecord as error:
            assert "not UTF-8" in str(error) or "Invalid UTF8" in str(error)
    assert good and set(good) <= {(0, "ok"), (2, "ok")}


struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize(
    "kind, wrap",
    [
        (pa.binary(), lambda n: IMAGES[n]),
        (pa.large_binary(), lambda n: IMAGES[n]),
        (pa.string(), lambda n: f"{n}.png"),
        (struct, lambda n: {"bytes": IMAGES[n], "path": "nowhere.png"}),
        (struct, lambda n: {"bytes": None, "path": f"{n}.png"}),
        (pa.struct([("bytes", pa.binary()), ("path", pa.null())]), lambda n: {"bytes": IMAGES[n], "path": None}),
        (pa.list_(struct), lambda n: [{"bytes": IMAGES[n], "path": None}]),
        (pa.list_(pa.binary()), lambda n: [IMAGES[n]]),
        (pa.dictionary(pa.int32(), pa.string()), lambda n: f"{n}.png"),
    ],
    ids=lambda value: str(value) if isinstance(value, pa.DataType) else "",
)
def test_images_of_every_type(tmp_path, write, kind, wrap):
    for n, data in enumerate(IMAGES):
        (tmp_path / f"{n}.png").write_bytes(data)
    table = pa.table({"image": pa.array([wrap(n) for n in range(3)], kind), "caption": ["a"] * 3})
    source = make_source(write(tmp_path / "0.x", table))
    assert [source[n].image for n in range(3)] == IMAGES and source.image_head(1) == IMAGES[1]


def test_an_image_among_several_is_not_chosen(tmp_path):
    table = pa.table({"image": [[b"a", b"b"], [], None], "caption": ["a"] * 3})
    source = make_source(write_parquet(tmp_path / "0.x", table))
    for n, message in ((0, "2 images in image; one is wanted"), (1, "no image"), (2, "no image")):
        with pytest.raises(BadRecord, match=message):
            source[n]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize(
    "columns, options, message",
    [
        ({"webp": [b"x"], "caption": ["a"]}, {}, r"no column 'image'; it has webp \(binary\), caption \(string\); say image=webp"),
        ({"content": [b"x"], "caption": ["a"]}, {}, "say image=content"),
        ({"image": [b"x"], "TEXT": ["a"]}, {}, "no column 'caption'; .*; say caption_keys=TEXT"),
        ({"image": [b"x"], "caption": [[1, 2]], "title": ["a"]}, {}, r"'caption' is list<int64>, which holds no texts; .* say caption_keys=title"),
        ({"image": [b"x"], "caption": [{"de": "a"}]}, {}, r"'caption' is struct<de: string>.*; say caption_keys=caption.de"),
        ({"image": [b"x"], "caption": [{"de": "a"}]}, {"caption_keys": ("caption.fr",)}, "the column 'caption' has no field 'fr'"),
        ({"image": [b"x"], "caption": [[{"id": 1}]]}, {"caption_keys": ("caption.id",)}, r"'caption.id' is list<int64>, which"),
        ({"image": [5], "jpg": [b"x"], "caption": ["a"]}, {}, "'image' is int64, which holds no images; .*; say image=jpg"),
        ({"image": [[[1]]], "caption": ["a"]}, {}, r"'image' is list<list<int64>>, which holds no images; .*; numbers of pixels are not read: write images as"),
        ({"image": [b"x"], "talk": [[{"from": "gpt", "value": "a"}]]}, {}, "no column 'caption'; .*; say caption_keys=talk.value"),
        ({"image": [b"x"], "caption": ["a"]}, {"key": "id"}, "no column 'id'; .*; say key=NAME"),
        ({"img": [{"x": 1}], "url": ["http://x"], "caption": ["a"]}, {}, "no column 'image'"),
    ],
)  # fmt: skip
def test_a_column_that_cannot_be_used_is_said_with_its_type_and_what_to_say(tmp_path, write, columns, options, message):
    with pytest.raises(UserError, match=message):
        make_source(write(tmp_path / "0.x", pa.table(columns)) | options)


def test_fields_of_structs_are_named_by_dots(tmp_path):
    table = pa.table({"image": IMAGES, "a.b": ["x"] * 3, "t": [{"de": "Hund", "en": ["dog", "hound"]}] * 3})
    source = make_source(write_parquet(tmp_path / "0.x", table) | {"caption_keys": ("t.en", "t.de", "a.b")})
    assert [(caption.origin, caption.text) for caption in source.captions(1)] == [
        ("t.en", "dog"), ("t.en", "hound"), ("t.de", "Hund"), ("a.b", "x"),
    ]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("double", ["image", "caption", "key"])
def test_two_columns_of_one_name_are_refused_where_they_are_meant(tmp_path, write, double):
    names = ["image", "caption", "key", double, "other", "other"]
    table = pa.table([[b"x"], ["a"], ["k"], ["b"], [1], [2]], names=names)
    with pytest.raises(UserError, match=f"has two columns '{double}'"):
        make_source(write(tmp_path / "0.x", table) | {"key": "key"})
    names[3] = "unlike"
    assert len(make_source(write(tmp_path / "0.x", pa.table(table.columns, names=names)) | {"key": "key"})) == 1


def labelled_by(values, kind, folder):
    """A source of three images whose labels are these values, of every kind that holds numbers."""
    for n, data in enumerate(IMAGES):
        (folder / f"{n}.png").write_bytes(data)
    if kind == "jsonl":
        lines = [json.dumps({"image": f"{n}.png", "label": value}) for n, value in enumerate(values)]
        (folder / "a.jsonl").write_text("\n".join(lines))
    elif kind == "csv":
        (folder / "a.csv").write_text("image,label\n" + "".join(f"{n}.png,{v}\n" for n, v in enumerate(values)))
    elif kind == "webdataset":
        members = [(f"{n}.png", IMAGES[n]) for n in range(3)]
        members += [(f"{n}.json", json.dumps({"label": value}).encode()) for n, value in enumerate(values)]
        tar(folder / "0.tar", sorted(members))
        return dict(name=kind, path=str(folder), label="json.label")
    elif kind == "array_record":
        writer = ArrayRecordWriter(str(folder / "0.array_record"), "group_size:1")
        for n, value in enumerate(values):
            example = tf_example.Example()
            example.features.feature["image"].bytes_list.value.append(IMAGES[n])
            feature = example.features.feature["label"]
            (feature.float_list if isinstance(value, float) else feature.int64_list).value.append(value)
            writer.write(example.SerializeToString())
        writer.close()
    else:
        table = pa.table({"image": IMAGES, "label": values})
        return write_parquet(folder / "0.parquet", table) | {"label": "label"}
    return dict(name=kind, path=str(folder), label="label")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "webdataset", "array_record", "parquet"])
@pytest.mark.parametrize("values", [[0, 2, 1], [0.0, 2.0, 1.0]], ids=["int", "float"])
def test_labels_that_are_numbers(tmp_path, kind, values):
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\nsun\n")
    (tmp_path / "data").mkdir()
    section = labelled_by(values, kind, tmp_path / "data")
    source = make_source(section | {"class_names": str(names)})
    assert [source[n].label for n in range(3)] == values
    assert [source[n].caption for n in range(3)] == ["cat", "sun", "dog"]
    with pytest.raises(UserError, match="holds numbers: say what they mean, class_names=FILE"):
        make_source(section)


def with_features(features, **columns):
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return pa.table(columns).replace_schema_metadata(metadata)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_hugging_faces_classes_have_names(tmp_path, write):
    """Which may themselves be numbers, as of stars: the number counts."""
    for names, expected in ((["red_cat", "dog"], ["red cat", "dog"]), (["1", "0"], ["1", "0"])):
        table = with_features({"label": {"names": names, "_type": "ClassLabel"}}, image=IMAGES, label=[0, 1, -1])
        source = make_source(write(tmp_path / "0.x", table) | {"label": "label"})
        assert source.class_names == expected and [source[n].label for n in range(2)] == [0, 1]
        assert [source[n].caption for n in range(2)] == expected
        with pytest.raises(BadRecord, match="label='-1' is none of 2 classes"):
            source[2]


@pytest.mark.parametrize("features", [{"label": {"names": 5, "_type": "ClassLabel"}}, {"label": 5}, [], None, "x"])
def test_a_schema_that_does_not_name_classes_is_none(tmp_path, features):
    section = write_parquet(tmp_path / "0.x", with_features(features, image=IMAGES, label=[0, 1, 0]))
    with pytest.raises(UserError, match="holds numbers: say what they mean"):
        make_source(section | {"label": "label"})


def test_examples_without_such_an_image_say_what_they_have(tmp_path):
    section = labelled_by([0, 1, 2], "array_record", tmp_path)
    with pytest.raises(
        UserError,
        match=r"no feature 'jpg'; Examples with the features image \(bytes\), label \(a number\); left out: .*; say image=image",
    ):
        make_source(section | {"image": "jpg", "class_names": __file__})  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """What `datasets` saves, of two splits of which one has two files, with what it computed beside them."""
    for split, files in (("train", [[0, 1], [2]]), ("test", [[1]])):
        (tmp_path / "set" / split).mkdir(parents=True)
        for n, numbers in enumerate(files):
            table = pa.table({"image": [IMAGES[k] for k in numbers], "caption": [f"{split} {k}" for k in numbers]})
            write_stream(tmp_path / "set" / split / f"data-{n:05d}-of-{len(files):05d}.arrow", table)
            write_stream(tmp_path / "set" / split / "cache-0123456789abcdef.arrow", table)
    (tmp_path / "set/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return tmp_path / "set"


def test_folders_of_hugging_faces_datasets(saved, tmp_path):
    expected = ["train 0", "train 1", "train 2"]
    (tmp_path / "cache").mkdir()
    for name, split in (
        ("data-00000-of-00002", "train-00000-of-00002"),
        ("data-00001-of-00002", "train-00001-of-00002"),
    ):
        shutil.copy(saved / f"train/{name}.arrow", tmp_path / f"cache/cc3m-{split}.arrow")
    shutil.copy(saved / "test/data-00000-of-00001.arrow", tmp_path / "cache/cc3m-test.arrow")
    for path, options in (
        ("set", {"split": "train"}), ("set/train", {}), ("set/train/data-*.arrow", {}), ("cache", {"split": "train"}),
    ):  # fmt: skip
        source = make_source(dict(name="arrow", path=str(tmp_path / path), **options))
        assert [source[n].caption for n in range(3)] == expected and source.shard_sizes.tolist() == [2, 1]
        assert source.where(2)[1] == "0" and np.asarray(decode(source[2].image))[0, 0, 0] == 2
    for path, options in (("set", {}), ("cache", {}), ("set", {"split": "valid"}), ("cache", {"split": "valid"})):
        with pytest.raises(UserError, match="its splits are train, test: say split=train"):
            make_source(dict(name="arrow", path=str(tmp_path / path), **options))
    with pytest.raises(UserError, match="mapped into memory: copy them to a disk"):
        make_source(dict(name="arrow", path="gs://bucket/set"))


@pytest.mark.parametrize("write", [write_stream, write_file], ids=lambda write: write.__name__)
def test_damaged_arrow_is_refused_or_a_bad_record(tmp_path, write):
    table = pa.table({
        "image": [{"bytes": b"x" * 30, "path": "p"}] * 6, "caption": ["a dog", "b", None, "d" * 20, "é", "f"],
        "list": [["a", "b"]] * 6, "category": pa.array(["u", "v"] * 3).dictionary_encode(),
    })  # fmt: skip
    section = write(tmp_path / "0.arrow", table) | {"caption_keys": ("caption", "list", "category")}
    data, rng = (tmp_path / "0.arrow").read_bytes(), random.Random(0)
    endings = {"opened": 0, "refused": 0}
    for _ in range(150):
        damaged = bytearray(data)
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "0.arrow").write_bytes(damaged if rng.random() < 0.9 else damaged[: rng.randrange(len(damaged))])
        try:
            source = make_source(section)
        except UserError:
            endings["refused"] += 1
            continue
        endings["opened"] += 1
        for n in range(min(len(source), 9)):
            with contextlib.suppress(BadRecord):
                source[n]
    assert all(endings.values())


def test_a_footer_of_parquet_names_no_more_captions_than_there_are_bytes(tmp_path, monkeypatch):
    section = write_parquet(tmp_path / "0.x", pa.table({"image": IMAGES, "caption": ["a"] * 3}))
    monkeypatch.setattr(io, "SEEK_END", io.SEEK_SET)  # as of a file without a byte
    with pytest.raises(UserError, match="its footer names more bytes than it has"):
        make_source(section)


@pytest.mark.parametrize("write", [write_stream, write_file], ids=lambda write: write.__name__)
def test_of_many_files_of_arrow_few_stay_open(tmp_path, monkeypatch, write):
    monkeypatch.setattr(arrow, "READERS", 5)
    for n in range(40):
        write(tmp_path / f"{n:02d}.arrow", pa.table({"image": IMAGES, "caption": [f"{n} {k}" for k in range(3)]}))
    before = len(os.listdir("/proc/self/fd"))
    source = make_source(dict(name="arrow", path=str(tmp_path)))
    rows = [*range(120), *reversed(range(120))]
    assert [source[n].caption for n in rows] == [f"{n // 3} {n % 3}" for n in rows]
    assert len(os.listdir("/proc/self/fd")) <= before + 5


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("compression", [None, "lz4"])
def test_of_columns_that_are_unpacked_the_latest_batches_are_kept(tmp_path, monkeypatch, kind, compression):
    monkeypatch.setattr(arrow, "MAX_UNPACKED", 250_000)
    monkeypatch.setattr(columnar, "KEPT", 0)
    texts = [f"{n} " + "x" * 10_000 for n in range(200)]
    table, options = (
        pa.table({"image": [b"x"] * 200, "caption": texts}),
        pa.ipc.IpcWriteOptions(compression=compression),
    )
    new = getattr(pa.ipc, f"new_{kind}")
    with pa.OSFile(str(tmp_path / "0.arrow"), "wb") as file, new(file, table.schema, options=options) as out:
        out.write_table(table, max_chunksize=10)  # 100,000 bytes
    source, before = make_source(dict(name="arrow", path=str(tmp_path))), pa.total_allocated_bytes()
    rows = [*range(0, 200, 7), 25, 199, 3, 0, 17, 100]
    for n in rows:
        assert [caption.text for caption in source.captions(n)] == [texts[n]]
        assert pa.total_allocated_bytes() - before < 500_000


word = pa.dictionary(pa.int8(), pa.string())


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize(
    "kind, wrap",
    [
        (pa.string(), lambda text: text),
        (word, lambda text: text),
        (pa.list_(word), lambda text: ["x", text]),
        (pa.list_(pa.list_(pa.string())), lambda text: [["x"], [text]]),
        (pa.list_(pa.struct([("id", pa.int64()), ("raw", word)])), lambda text: [{"id": 1, "raw": text}]),
        (pa.list_view(pa.string()), lambda text: [text]),
        (pa.list_(word, 2), lambda text: ["x", text]),
    ],
    ids=lambda value: str(value) if isinstance(value, pa.DataType) else "",
)
@pytest.mark.parametrize("in_field", [False, True], ids=["column", "field"])
def test_captions_of_every_type_are_known_by_content_images_beside_them_are_not(tmp_path, write, kind, wrap, in_field):
    if write is write_parquet and (pa.types.is_list_view(kind) or pa.types.is_fixed_size_list(kind)):
        kind = pa.list_(kind.value_type)
    names = {"image": "s.image", "caption_keys": ("s.t.caption",)} if in_field else {}

    def identity(texts, seed):
        images = [random.Random(seed + n).randbytes(5000) for n in range(4)]
        columns = [pa.array(images), pa.array([wrap(text) for text in texts], kind)]
        inner = pa.StructArray.from_arrays(columns[1:], ["caption"])
        nested = pa.StructArray.from_arrays([columns[0], inner], ["image", "t"])
        table = pa.table([nested], ["s"]) if in_field else pa.table(columns, ["image", "caption"])
        source = make_source(write(tmp_path / "0.x", table) | names)
        assert source.captions(2)[-1].text == texts[2] and source[2].image == images[2]
        return parts_of(source.identity)["captions"], parts_of(source.identity)["rows"]

    first = identity(["a", "dog", "bat", "cat"], 0)
    assert identity(["a", "dog", "bat", "cat"], 9) == first
    assert identity(["a", "dog", "bee", "cat"], 0)[0] != first[0]


class Bucket(MemoryFileSystem):
    """In memory, by the names of a real one."""

    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.rpartition("://")[2].lstrip("/")


def test_damage_in_a_bucket_is_a_bad_record_and_a_bucket_that_fails_is_none(tmp_path, monkeypatch):
    pq.write_table(pa.table({"image": IMAGES, "caption": ["a dog"] * 3}), tmp_path / "0.parquet", use_dictionary=False)
    data, fs = bytearray((tmp_path / "0.parquet").read_bytes()), Bucket()
    monkeypatch.setattr(storage, "_system", lambda path: fs)
    fs.pipe_file("gs://columns/0.parquet", bytes(data))
    section = dict(name="parquet", path="gs://columns/0.parquet")
    source = make_source(section)
    place = pq.ParquetFile(tmp_path / "0.parquet").metadata.row_group(0).column(1).data_page_offset
    data[place] ^= 255
    fs.pipe_file("gs://columns/0.parquet", bytes(data))
    with pytest.raises(BadRecord, match="column caption of piece 0 is damaged"):
        source.captions(0)
    for error in (OSError("Forbidden: no access"), FileNotFoundError("gs://columns/0.parquet"), OSError(5, "gone")):
        monkeypatch.setattr(MemoryFile, "read", lambda *_, error=error: refuse(error))
        with pytest.raises(OSError) as failure:
            source.captions(0)
        assert failure.value is error
    with pytest.raises(OSError, match="gone"):
        make_source(section)


def refuse(error):
    raise error


def test_in_a_bucket_its_own_checksum_is_the_identity(tmp_path, monkeypatch):
    """The bytes of all captions are not read when a source opens."""
    fs, read, real = Bucket(), [], MemoryFile.read
    monkeypatch.setattr(storage, "_system", lambda path: fs)
    monkeypatch.setattr(MemoryFile, "read", lambda *given: read.append(real(*given)) or read[-1])
    found = []
    for caption, checksum in (("a", "1"), ("b", "2"), ("b", "2")):
        texts = [f"{caption} {n} " + "x" * 900 for n in range(1000)]
        table = pa.table({"image": [b"x"] * 1000, "caption": texts})
        pq.write_table(table, tmp_path / "0", compression="none", use_dictionary=False)
        fs.pipe_file("gs://sums/0.parquet", (tmp_path / "0").read_bytes())
        monkeypatch.setattr(storage, "checksum", lambda path, checksum=checksum: checksum)
        found.append(make_source(dict(name="parquet", path="gs://sums/0.parquet")).identity)
        assert sum(map(len, read)) < 100_000 * len(found)
    assert found[0] != found[1] == found[2]


def filtered(folder, source, indices, table):
    folder.mkdir()
    np.save(folder / "kept.npy", indices)
    with pa.OSFile(str(folder / "captions.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table)
    (folder / "report.json").write_text(json.dumps({"identity": source.identity, "source_records": len(source)}))
    return str(folder)


@pytest.mark.parametrize("back", [False, True], ids=["to a disk", "to a bucket"])
def test_a_run_goes_on_with_a_copy_of_what_lay_in_a_bucket(tmp_path, monkeypatch, back):
    """A warning says that the content is not compared; other names, numbers and options are refused, other sums, too."""
    fs = Bucket()
    monkeypatch.setattr(storage, "_system", lambda path: fs)

    def described(path, name, texts, sum_="1", **options):
        table = pa.table({"image": IMAGES, "caption": texts})
        pq.write_table(table, tmp_path / name)
        fs.pipe_file(f"gs://copies/{name}", (tmp_path / name).read_bytes())
        monkeypatch.setattr(storage, "checksum", lambda path: sum_)
        return describe(make_source(dict(name="parquet", path=f"{path}/{name}", **options)))

    texts, places = ["a", "b", "c"], ("gs://copies", str(tmp_path))
    first, second = reversed(places) if back else places
    meta = json.loads(json.dumps(described(first, "0.parquet", texts)))
    with pytest.warns(
        UserWarning, match="the data of run: a bucket's checksums .* cannot be compared; .* the run goes on: make sure"
    ):
        check_same_data(meta, described(second, "0.parquet", texts), "run")
    check_same_data(meta, described(first, "0.parquet", texts), "run")
    kept = np.array([0, 2]), pa.table({"index": pa.array([], pa.int64()), "origin": [""][:0], "text": [""][:0]})
    keep = filtered(tmp_path / "kept", make_source(dict(name="parquet", path=f"{first}/0.parquet")), *kept)
    with pytest.warns(UserWarning, match="keep=.*: a bucket's checksums .* if the data changed since, filter again"):
        assert len(make_source(dict(name="parquet", path=f"{second}/0.parquet", keep=keep))) == 2
    changed = {
        "names": ["1.parquet", texts],
        "key": ["0.parquet", texts],
        "sizes": ["0.parquet", ["long " * 99, "b", "c"]],
    }
    for part, given in changed.items():
        with pytest.raises(UserError, match=rf"what differs: .*\b{part}"):
            check_same_data(meta, described(second, *given, key="caption" * (part == "key")), "run")
    with pytest.raises(UserError, match=r"what differs: captions, rows\)" if not back else r"what differs: captions\)"):
        check_same_data(meta, described(first, "0.parquet", ["a", "b", "d"], sum_="2"), "run")


def test_values_in_each_other_are_read_to_a_depth():
    deep = "a"
    for _ in range(100_000):
        deep = [deep]
    assert texts_of(deep) == [] and texts_of([[["a"]]]) == ["a"]
    assert texts_of(np.array(["a", "b"], object)) == ["a", "b"] and texts_of(np.int64(3)) == ["3"]
    for value in (1e300, 10**400, "x" * 70_000, object(), {"de": "a"}, [1, 2]):
        assert texts_of(value) == []
    for value in (b"\xff", "\ud800", [["a", "\ud800"]]):
        with pytest.raises(BadRecord, match="not UTF-8"):
            texts_of(value)


def test_the_first_caption_that_is_not_blank_counts():
    texts = (Caption(" "), Caption("\ud800"), Caption("a dog"), Caption("a cat"))
    assert Record("k", b"", texts).caption == "a dog" and Record("k", b"", texts[:1]).caption == " "
    check_records(Memory([[" ", "a dog"], ["a cat"]]), 2, "evals.x")
    for bad in ([" "], [], ["\ud800"]):
        with pytest.raises(UserError, match="evals.x: record memory 1 has an empty caption"):
            check_records(Memory([["a"], bad]), 2, "evals.x")


def test_files_of_several_splits_are_said(tmp_path):
    for split in ("test", "train"):
        pq.write_table(pa.table({"image": [b"x"], "caption": [split]}), tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.warns(
        UserWarning, match="has files of the splits test, train, and all are read; for one say path=.*/train-"
    ):
        assert len(make_source(dict(name="parquet", path=str(tmp_path)))) == 2
    one = make_source(dict(name="parquet", path=f"{tmp_path}/train-*"))
    assert [one.captions(n)[0].text for n in range(len(one))] == ["train"]


@pytest.mark.parametrize(
    "write, ending",
    [(write_file, ".feather"), (write_stream, ".ipc"), (write_parquet, ".pq"), (write_parquet, ".parq")],
)
def test_other_endings_that_writers_give(tmp_path, write, ending):
    section = write(tmp_path / f"0{ending}", pa.table({"image": IMAGES, "caption": ["a", "b", "c"]}))
    assert make_source(section | {"path": str(tmp_path)})[2].caption == "c"
    with pytest.raises(UserError, match=f"{ending} \\(1\\).*{section['name']}"):
        make_source(dict(name="webdataset", path=str(tmp_path)))


def test_the_first_version_of_feather_is_named(tmp_path):
    (tmp_path / "0.feather").write_bytes(b"FEA1" + bytes(40) + b"FEA1")
    with pytest.raises(UserError, match="is of Feather's first version: write it anew"):
        make_source(dict(name="arrow", path=str(tmp_path)))


def test_a_refusal_names_the_source_that_reads_what_is_there(tmp_path):
    pq.write_table(pa.table({"image": [b"x"], "caption": ["a"]}), tmp_path / "0.parquet")
    for name in ("arrow", "csv", "folder", "class_folder", "webdataset"):
        with pytest.raises(UserError, match="left out: .parquet \\(1\\); the source parquet reads .parquet"):
            make_source(dict(name=name, path=str(tmp_path)))
    for name in ("arrow", "csv", "webdataset"):
        with pytest.raises(UserError, match="0.parquet is a file of parquet: read it with the source parquet"):
            make_source(dict(name=name, path=f"{tmp_path}/0.parquet"))


def test_labels_alone_are_offered_as_labels(tmp_path):
    names = {"info": {"features": {"kind": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": [b"x"], "kind": [1]}).replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, tmp_path / "0.parquet")
    with pytest.raises(UserError, match="say label=kind"):
        make_source(dict(name="parquet", path=str(tmp_path)))
