"""Lists as other tools write them: a row is read right or is a bad record, and no text of it is cut or changed."""

import bz2
import csv
import gzip
import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pairs import picture

from filip_jax.choices import section_of
from filip_jax.data import content, rows, values
from filip_jax.data.record import METADATA_BYTES, BadRecord
from filip_jax.data.rows import read_rows
from filip_jax.data.separated import ONE_FIELD, Separated
from filip_jax.data.sources import fingerprint, make_source
from filip_jax.errors import UserError

TEXTS = [
    "plain",
    'He said "hi"',
    "a, b; c | d",
    '"quoted" at the start',
    'ends "so"',
    "two\nlines",
    'é "\n\n, x',
    "a\tb",
    "",
]


def captions(source):
    """The one caption of each row, None for a bad one."""
    found = []
    for n in range(len(source)):
        try:
            found.append("".join(caption.text for caption in source.captions(n)))
        except BadRecord:
            found.append(None)
    return found


def read(folder, data, name="list.csv", **options):
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    kind = "csv" if ".json" not in name else "jsonl"
    return make_source(dict(name=kind, path=str(folder / name), index=str(folder / "index"), **options))


def written(texts, columns=("image", "caption"), **dialect):
    file = io.StringIO(newline="")
    writer = csv.writer(file, **dialect)
    writer.writerow(columns)
    writer.writerows([f"{n}.jpg", text] for n, text in enumerate(texts))
    return file.getvalue()


DIALECTS = [
    dict(),
    dict(delimiter="\t"),
    dict(delimiter=";"),
    dict(delimiter="|"),
    dict(quoting=csv.QUOTE_ALL),
    dict(delimiter="\t", quoting=csv.QUOTE_ALL),
    dict(quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"),
    dict(lineterminator="\r"),
    dict(delimiter="\t", lineterminator="\r"),
    dict(doublequote=False, escapechar="\\"),
    dict(doublequote=False, escapechar="\\", delimiter="\t", quoting=csv.QUOTE_ALL),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_every_dialect_gives_the_same_captions(tmp_path, name, dialect, encoding):
    data = written(TEXTS, **dialect).encode(encoding)
    assert captions(read(tmp_path, data, name)) == TEXTS
    assert captions(read(tmp_path, gzip.compress(data, mtime=0), f"{name}.gz")) == TEXTS


texts = st.lists(st.text(st.sampled_from('ab"",;\t\n\\ é'), max_size=9), min_size=1, max_size=7)


@given(texts=texts, dialect=st.sampled_from(DIALECTS[:7]))
@example(texts=["a\nc, d"], dialect={})  # of which each line is a row by itself
def test_what_a_writer_quotes_is_read_right_or_is_bad(tmp_path_factory, texts, dialect):
    """With tabs a text of several lines may be taken for rows only if it has tabs itself."""
    if dialect.get("delimiter") == "\t":
        texts = [text.replace("\t", " ") for text in texts]
    path = tmp_path_factory.mktemp("list") / "list.csv"
    path.write_text(written(texts, **dialect), newline="")
    found = [(row.fields.get("image"), row.fields.get("caption")) for row in read_rows(str(path)) if not row.problem]
    assert set(found) <= {(f"{n}.jpg", text) for n, text in enumerate(texts)}


@given(texts=st.lists(st.text(st.sampled_from('ab" ,\\é'), min_size=1, max_size=9), min_size=1, max_size=9))
@example(texts=['"a dog" sign', '"open', "cap 2", '5" pipe', 'the end"', '"', '"', "\\"])
def test_lists_of_the_web_have_no_quoting(tmp_path_factory, texts):
    """Of each line one row; at most quotation marks around a text, and what escapes them, are no part of it."""
    path = tmp_path_factory.mktemp("list") / "list.tsv"
    path.write_text("image\tcaption\n" + "".join(f"{n}.jpg\t{text}\n" for n, text in enumerate(texts)))
    found = [(row.fields["image"], row.fields["caption"]) for row in read_rows(str(path))]
    assert [image for image, _ in found] == [f"{n}.jpg" for n in range(len(texts))]
    bare = str.maketrans("", "", '"\\')
    assert [text.translate(bare) for _, text in found] == [text.translate(bare) for text in texts]
    quoted = [text.startswith('"') or '\\"' in text for text in texts]
    assert all(text == mine for (_, mine), text, is_quoted in zip(found, texts, quoted) if not is_quoted)


@pytest.mark.parametrize(
    "data, expected, message",
    [
        ("image,caption\n0.jpg,a dog, a cat\n1.jpg,b\n2.jpg,c\n", [None, "b", "c"], "line 2: 3 fields, but the list has 2"),
        ("image,caption\n0.jpg,a dog\n\n1.jpg,b,\n2.jpg,c\n", ["a dog", None, "c"], "line 4: 3 fields"),
        ("image,caption,,\n0.jpg,a dog,,\n1.jpg,b,c,\n2.jpg,c\n", ["a dog", None, "c"], "line 3: 4 fields"),
        ("image,caption\n0.jpg,\"open\n1.jpg,b\n2.jpg,c\n", [None, "b", "c"], "line 2: a quotation mark that is not closed"),
        ("image,caption\n0.jpg,\"a\n1.jpg,b\"\n2.jpg,c\n3.jpg,d\n4.jpg,e", [None, None, "c", "d", "e"], "line 3: quotation"),
        ("image\tcaption\n0.jpg\ta\n1.jpg\tcut\nhere\n2.jpg\tc\n3.jpg\td\n4.jpg\te", ["a", None, None, None, "d", "e"], "line 4: one field"),
        ("caption\timage\na\t0.jpg\nb\t1.jpg\ncut\nhere\t2.jpg\nc\t3.jpg\nd\t4.jpg", ["a", None, None, None, "c", "d"], "line 4: one field"),
        (b"image,caption\n0.jpg,caf\xe9\n1.jpg,b\n2.jpg,c", [None, "b", "c"], "line 2: a line that is not UTF-8"),
        (b"image,caption\n0.jpg,a\0b\n1.jpg,b\n2.jpg,c", [None, "b", "c"], "line 2: a line that is not UTF-8, or holds NUL"),
        (f"image,caption\n0.jpg,{'x' * METADATA_BYTES}\n1.jpg,b\n2.jpg,c", [None, "b", "c"], "line 2: a line or a quoted field of"),
        (f"image,caption\n0.jpg,\"{'x' * 999}\n{'y' * METADATA_BYTES}\n1.jpg,b\"\n2.jpg,c\n3.jpg,d\n4.jpg,e\n5.jpg,f", [*[None] * 3, *"cdef"], "line 2"),
        (b"\xff\xfe" + "image,caption\n0.jpg,\ud800\n1.jpg,b\n2.jpg,c".encode("utf-16-le", "surrogatepass"), [None, "b", "c"], "UTF-8"),
        (",image,caption\n0,0.jpg,a\n1,1.jpg,b\n2,2.jpg,c\n,,\n", ["a", "b", "c"], ""),
        ("image | caption\n0.jpg | a\n", ["a"], ""),
        ("image,caption\n0.jpg,a\\, b\n1.jpg,c\n", ["a, b", "c"], ""),  # escaped, not quoted
        ("image\tcaption\n0.jpg\tx\n1.jpg\t\"a\n\tb\"\n", ["x", "a\n\tb"], ""),  # each line has the fields of a row
        ("caption\timage\nx\t0.jpg\n\"a\tb\nc\"\t1.jpg\n", ["x", "a\tb\nc"], ""),
        ("image,caption\n0.jpg,x\n1.jpg,\"a\nb, c\"\n", ["x", "a\nb, c"], ""),
        ("caption\timage\nx\t0.jpg\n\"a\t1.jpg\nc\"\t2.jpg\n", ["x", '"a', 'c"'], ""),  # of the web
        ("\ufeffsep=;\r\nimage;caption\r\n0.jpg;a, b\r\n", ["a, b"], ""),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_row_that_cannot_be_read_is_bad_and_is_named(tmp_path, data, expected, message):
    with pytest.warns(UserWarning) if message else pytest.MonkeyPatch.context() as warned:
        source = read(tmp_path, data)
    assert captions(source) == expected
    assert not message or message in str(warned[0].message)
    assert not message or f"{expected.count(None)} rows cannot be read" in source.seen
    for n in (n for n, text in enumerate(expected) if text is None):
        with pytest.raises(BadRecord, match="a row that cannot be read: "):
            source[n]


@pytest.mark.parametrize(
    "data, message",
    [
        ("image,caption\n0.jpg,a,b\n1.jpg,c,d\n", r"2 of 2 rows cannot be read: list.csv, line 2: 3 fields.* say separator=tab"),
        ("image,caption,caption\n0.jpg,a,b\n", "has two columns 'caption'"),
        (b"PK\x03\x04\0\0\n", "is a zip archive or a spreadsheet: unpack it, or save it as CSV"),
        (bz2.compress(b"image,caption\n0.jpg,a\n"), "is compressed with bzip2: unpack it, with bunzip2"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS, not the file itself: git lfs pull"),
        ("<!DOCTYPE html>\n<html>x, y\n", "is a web page"),
        ("0.jpg 7\n1.jpg 8\n", "say separator=' '"),
        ("0.jpg\t7\n1.jpg\t8\n", "say columns=image,label label=label"),
        ("0.jpg#0\ta dog\n0.jpg#1\ta cat\n", "say columns=image,caption"),
        (b"PAR1\x15\0", "is a file of parquet: read it with the source parquet"),
        ("0.jpg,a dog\n1.jpg,a cat\n", "say columns=image,caption"),
        ("7\tx\tred cat\td/0.jpg\n8\ty\tcow\td/1.jpg\n", "say columns=column1,column2,caption,image"),
        ("image caption\n0.jpg a\n", "say separator=' '"),
        ("image,caption\n0.jpg,caf\xe9\n1.jpg,\xe9\n".encode("latin-1"), "line 2: a line that is not UTF-8.*iconv -f WINDOWS-1252"),
        (b"\x89\xff,image\n", "its first line is not text in UTF-8"),
        ("x" * (METADATA_BYTES + 1), "its first line is a line or a quoted field of more than"),
        (",".join(f"c{n}" for n in range(2000)), "has 2000 columns; at most 1024"),
        ("a dog, red\thttp://x/1.jpg\nb\thttp://x/2.jpg\n", "no column 'image' and no column 'caption'.*; if the first line of a list is no header, say columns=caption,image"),
        ("filepath\ttitle\n0.jpg\ta\n", "no column 'image' and no column 'caption'; .* filepath, title; say image=filepath and say caption_keys=title$"),
        ("image\ttitle\n0.jpg\ta\n", "no column 'caption'; .*; say caption_keys=title"),
        ("url,caption\nhttp://x/0.jpg,a\n", "images are not downloaded from the web: fetch them first"),
        (gzip.compress(b"image,caption\n" * 999, mtime=0)[:-9], "list.csv is damaged: Compressed file ended"),
        (gzip.compress(b"image,caption\n" * 999, mtime=0)[:-8] + b"12345678", "list.csv is damaged: CRC check failed"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_read_ends_in_words(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, data)
    assert not list((tmp_path / "index").glob("*.tmp"))


def test_the_separator_and_the_columns_may_be_said(tmp_path):
    data = "0.jpg:a, b\n1.jpg:c, d\n"
    words = ["csv", f"path={tmp_path}/list.csv", "separator=:", "columns=image,caption"]
    (tmp_path / "list.csv").write_text(data)
    assert captions(make_source(section_of("source", words, {}))) == ["a, b", "c, d"]
    for separator in ("tab", "\\t", "\t"):
        assert captions(read(tmp_path, "a,b,image\tcaption\n1\t2\n", separator=separator, image="a,b,image")) == ["2"]
    assert captions(read(tmp_path, "image\n0.jpg\n", "list.tsv", caption_keys=("image",))) == ["0.jpg"]
    for wrong in ("tabs", '"', "\n"):
        with pytest.raises(UserError, match="separator=.* is not one character, nor one of tab"):
            read(tmp_path, data, separator=wrong)
    with pytest.raises(UserError, match="columns='a' is not a list of names"):
        read(tmp_path, data, columns="a")


ROWS = [{"image": f"{n}.jpg", "caption": f"text {n}"} for n in range(4)]
LINES = "\n".join(map(json.dumps, ROWS))
ALL = [row["caption"] for row in ROWS]


@pytest.mark.parametrize(
    "name, data, expected",
    [
        ("a.jsonl", LINES, ALL),
        ("a.jsonl", "\ufeff" + LINES.replace("\n", "\r\n\r\n "), ALL),
        ("a.jsonl", LINES.encode("utf-16"), ALL),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), ALL),
        ("a.ndjson", LINES, ALL),
        ("a.json", json.dumps(ROWS), ALL),
        # On a line of a megabyte.
        ("a.json", json.dumps([*ROWS, {"image": "4.jpg", "text": ["x" * 60_000] * 20}]), [*ALL, ""]),
        ("a.jsonl", json.dumps(ROWS, indent=2), ALL),
        ("a.json", json.dumps([*ROWS, 5]), [*ALL, None]),
        ("a.json", json.dumps(ROWS)[:-1] + ', {"image": "a.jpg", "caption": "x", "caption": "y"}]', [*ALL, None]),
        ("a.jsonl", LINES + '\n{"image": "4.jpg", "caption": "x", "caption": "y"}', [*ALL, None]),
        ("a.jsonl", LINES + '\n["4.jpg", "x"]\n{"image": NaN, "caption": "x"}', [*ALL, None, None]),
        ("a.jsonl", LINES + '\n{"image": "4.jpg"}{"image": "5.jpg"}', [*ALL, None]),
        ("a.jsonl", LINES.encode() + b'\n{"image": "4.jpg", "caption": "caf\xe9"}', [*ALL, None]),
        ("a.jsonl", LINES + '\n{"image": "4.jpg", "caption": "\\ud83d cut"}', [*ALL, None]),
        ("a.jsonl", LINES + '\n{"image": "4.jpg", "caption": NaN}\n{"image": "5.jpg"}', [*ALL, "", ""]),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_json_as_people_have_it(tmp_path, name, data, expected):
    assert captions(read(tmp_path, data, name)) == expected


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("a.jsonl", json.dumps(ROWS[0], indent=2), "4 of 4 rows cannot be read: a.jsonl, line 1: .*write an object a line, as jq -c"),
        ("a.jsonl", '{"image": "a.jpg", "talk": [{"from": "gpt", "value": "x"}]}', "no column 'caption'"),
        ("a.json", json.dumps({"data": ROWS}), "no column 'image'.*if the whole list is one object, write an object a line"),
        ("a.json", json.dumps({"image": {"0": "a.jpg"}, "caption": {"0": "x"}}), "'image' holds objects .*if the whole list is one object"),
        ("a.json", json.dumps({f"{n}.jpg": ["x"] for n in range(999)}), "columns 0.jpg, .*39.jpg …; .*jq -c 'to_entries"),
        ("a.json", json.dumps({"images": ROWS}), "the source annotations reads"),
        ("a.json", json.dumps(ROWS)[:-9], "begins as one JSON array, but is none"),
        ("a.json", "[" * 100_000, "begins as one JSON array, but is none"),
        ("a.jsonl", '{"image": {"id": 5}, "caption": "x"}\n', "the column 'image' holds objects with the fields id in every row"),
        ("a.jsonl", '{"image": "a.jpg", "caption": {"de": "x"}}\n', "'caption' holds objects with the fields de .*; say"),
        ("a.jsonl", '{"image": 5, "caption": "x", "img_path": "x"}\n', "'image' holds numbers in every row; say image=img_path"),
    ],
)  # fmt: skip
def test_json_that_cannot_be_read_ends_in_words(tmp_path, name, data, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, data, name)


def test_an_array_of_objects_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_DOCUMENT_BYTES", 1 << 10)
    with pytest.raises(UserError, match="one JSON array of more than 1024 bytes: write an object a line"):
        read(tmp_path, json.dumps(ROWS * 20), "a.json")


def test_a_double_key_is_found_without_comparing_each_key_with_all():
    class Key(str):
        compared = 0

        def __eq__(self, other):
            Key.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    with pytest.raises(ValueError, match="the key '999' twice"):
        values._without_doubles([(Key(n), n) for n in (*range(1000), 999)])
    assert Key.compared < 1000


def test_looking_for_the_end_of_a_quoted_field_reads_no_line_often():
    """Whatever opens: fields that never close, that close on each line, and long texts between them."""
    for columns, line in ((2, b'x\t"a'), (2, b'x\t"""a'), (2, b'5"\t"a'), (9, b'a"\t"b'), (9, b'""\t"b')):
        header = b"\t".join(b"c%d" % n for n in range(columns))
        counted = Counted([header, *[line, *[b"no mark"] * 9] * 60])
        assert sum(1 for _ in Counting(counted, "list.tsv", "", ())) > 0
        assert Counting.taken <= 40 * counted.count
        Counting.taken = 0


class Counted:
    """Lines, counted as they are read."""

    def __init__(self, lines):
        self.lines, self.count = iter(lines), 0

    def __iter__(self):
        return self

    def __next__(self):
        self.count += 1
        return next(self.lines)


class Counting(Separated):
    """Counts how often lines are looked at."""

    taken = 0

    def _next(self):
        Counting.taken += 1
        return super()._next()


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"image": "a.png", "caption": text}) + "\n" for text in texts))


def separated(path, texts):
    path.write_text(written(texts))


def parquet(path, texts):
    pq.write_table(pa.table({"image": [b"x"] * len(texts), "caption": texts}), path, compression="none")


def arrow(path, texts):
    table = pa.table({"image": [b"x"] * len(texts), "caption": texts})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)


def annotations(path, texts):
    images = [{"id": n, "file_name": "a.png"} for n in range(len(texts))]
    texts = [{"image_id": n, "id": n, "caption": text} for n, text in enumerate(texts)]
    path.write_text(json.dumps({"images": images, "annotations": texts}))


@pytest.mark.parametrize(
    "write, name",
    [(jsonl, "jsonl"), (separated, "csv"), (parquet, "parquet"), (arrow, "arrow"), (annotations, "annotations")],
)
def test_edited_captions_of_the_same_size_are_other_data_whatever_the_times(tmp_path, write, name):
    path = tmp_path / ("list.json" if name == "annotations" else f"list.{name}")
    section = dict(name=name, path=str(path)) | (dict(images=str(tmp_path)) if name == "annotations" else {})
    write(path, ["a dog", "bat", "c dog"])
    before, first = os.stat(path), fingerprint(make_source(section))
    os.utime(path, ns=(1, 1))
    assert fingerprint(make_source(section)) == first
    write(path, ["a dog", "bee", "c dog"])  # between the least and the greatest, which footers of parquet know
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    changed = make_source(section)
    assert captions(changed) == ["a dog", "bee", "c dog"] and fingerprint(changed) != first
    (tmp_path / "copy").mkdir()
    write(tmp_path / "copy" / path.name, ["a dog", "bat", "c dog"])
    assert fingerprint(make_source(section | {"path": str(tmp_path / "copy" / path.name)})) == first


def test_side_captions_are_known_by_their_content(tmp_path):
    jsonl(tmp_path / "list.jsonl", ["a"])
    side, found = tmp_path / "side.jsonl", []
    section = dict(name="jsonl", path=str(tmp_path / "list.jsonl"), side_captions=str(side), caption_keys=("fr",))
    for text in ("un", "le"):
        side.write_text(json.dumps({"key": "a.png", "origin": "fr", "caption": text}))
        os.utime(side, ns=(1, 1))
        found.append(captions(make_source(section)))
    assert found == [["un"], ["le"]]


def test_a_list_is_not_read_again_unless_it_changed_and_the_index_may_be_read_only(tmp_path, monkeypatch):
    jsonl(tmp_path / "list.jsonl", ["a"])
    section, hashed = dict(name="jsonl", path=str(tmp_path / "list.jsonl")), []
    plain = content.sha256_of
    monkeypatch.setattr(content, "sha256_of", lambda path: hashed.append(path) or plain(path))
    make_source(section), make_source(section)
    assert len(hashed) == 1
    (tmp_path / ".filip_index/hashes.json").write_text("nonsense")
    make_source(section), make_source(section)
    assert len(hashed) == 2

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(content, "write_atomically", refuse)
    os.utime(tmp_path / "list.jsonl")
    assert captions(make_source(section)) == ["a"] and len(hashed) == 3


def test_images_may_stand_in_the_list_itself(tmp_path):
    import base64

    encoded = base64.b64encode(picture(7, "JPEG")).decode()
    urlsafe = base64.urlsafe_b64encode(picture(7, "JPEG")).decode().rstrip("=")
    for text in (encoded, urlsafe, f"data:image/jpeg;base64,{encoded}"):
        source = read(tmp_path, json.dumps({"image": text, "caption": "x"}), "a.jsonl")
        assert source[0].image == picture(7, "JPEG") and source.image_head(0) == picture(7, "JPEG")
    for text, message in (
        ("data:image/png,%89PNG", "a data URI without base64"),
        ("data:image/png;base64,!!!!", "base64 that is damaged"),
        ("/9j/4.jpg", "no such file"),
        ("data:x.jpg", "a data URI without base64"),
    ):
        with pytest.raises(BadRecord, match=message):
            read(tmp_path, json.dumps({"image": text, "caption": "x"}), "a.jsonl")[0]


def test_one_line_of_one_field_spoils_its_neighbours_only():
    lines = [b"a\tb", *[b"%d\tx" % n for n in range(9)]]
    lines.insert(5, b"torn")
    found = [row.problem for row in Separated(iter(lines), "list.tsv", "", ())]
    assert np.flatnonzero(found).tolist() == [3, 4, 5] and found[4] == ONE_FIELD


def test_a_path_of_windows_and_one_that_counts_captions_name_the_file(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("d/0.jpg", "1.jpg", "2.jpg#7"):
        (tmp_path / name).write_bytes(name.encode())
    source = read(tmp_path, "image\tcaption\nd\\0.jpg\ta\n1.jpg#3\tb\n2.jpg#7\tc\nno.jpg\td\n")
    assert [source[n].image for n in range(3)] == [b"d/0.jpg", b"1.jpg", b"2.jpg#7"]
    with pytest.raises(BadRecord, match="no such file: .*no.jpg; if paths start elsewhere, say images=FOLDER"):
        source[3]
