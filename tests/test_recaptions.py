"""Captions in the columns of a file beside the data, as DreamLIP publishes them: every text of every row joins its image, by URL or key."""

import csv
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pairs import key, picture, tar, write_jsonl

from filip_jax.data.record import Caption
from filip_jax.data.side_captions import SideCaptions
from filip_jax.data.sources import fingerprint, make_source
from filip_jax.errors import UserError

# The header of cc3m_3long_3short_1raw_captions_url.csv, cc12m_… and yfcc15m_…: Python's csv writes such rows.
COLUMNS = (
    "Image Path", "raw_caption", "shortIB_captions", "longIB_captions", "shortSV_captions", "longSV_captions",
    "shortLLA_captions", "longLLA_captions",
)  # fmt: skip


def url(n):
    return f"https://images.example/{n},small.jpg?w=736"


ROWS = [
    (
        url(0),
        "how to build an industry",
        "a cabin",
        'A house, "green" they say.\n\nIt is small.',
        "wood",
        "",
        "hut",
        "A",
    ),
    (url(2), "only the raw one", "", "", "", "", "", ""),
    (url(9), "of an image that is not there", "b", "c", "d", "e", "f", "g"),
    (url(1), "a car", 'a 3.5" car', "In the image, a car.  It drives.", "Car", "A car, red", "Auto", "x\\y"),
]


def write(path, rows=ROWS, columns=COLUMNS, **options):
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n", **options).writerows([columns, *rows])
    return str(path)


def expected(n):
    """The captions of an image, in the order of the columns."""
    return [Caption(text, name) for row in ROWS if row[0] == url(n) for name, text in zip(COLUMNS[1:], row[1:]) if text]


@pytest.fixture
def tars(tmp_path):
    """Tars as img2dataset writes them: the JSON of each image holds its URL."""
    (tmp_path / "tars").mkdir()
    members = []
    for n in range(4):
        members += [(f"{key(n)}.png", picture(n)), (f"{key(n)}.txt", f"old {n}".encode())]
        members += [(f"{key(n)}.json", json.dumps({"url": url(n), "key": key(n), "width": 16}).encode())]
    tar(tmp_path / "tars/00000.tar", members)
    options = dict(side_key="Image Path", record_key="json.url", caption_keys=COLUMNS[1:])
    return dict(name="webdataset", path=str(tmp_path / "tars"), **options)


def columns_of(rows=ROWS):
    return {name: list(values) for name, values in zip(COLUMNS, zip(*rows))}


def as_parquet(path):
    pq.write_table(pa.table(columns_of() | {"width": list(range(len(ROWS)))}), path)
    return str(path)


def as_lines(path):
    path.write_text("".join(json.dumps(dict(zip(COLUMNS, row)) | {"width": 3}) + "\n" for row in ROWS))
    return str(path)


FILES = {
    "a.csv": write,
    "quoted.csv": lambda path: write(path, quoting=csv.QUOTE_ALL),
    "a.tsv": lambda path: write(path, delimiter="\t"),
    "a.parquet": as_parquet,
    "a.jsonl": as_lines,
}


@pytest.mark.parametrize("file", FILES)
def test_each_column_is_a_caption_of_the_image_of_that_url(tmp_path, tars, file):
    source = make_source(tars | {"side_captions": FILES[file](tmp_path / file)})
    for of in (source, pickle.loads(pickle.dumps(source))):
        for n in range(4):
            assert [*of.captions(n)] == [*of[n].captions] == expected(n) and of[n].key == key(n)
    assert source.side.origins == tuple(sorted(COLUMNS[1:]))


def test_the_choice_of_columns_and_their_weights_is_that_of_caption_keys(tmp_path, tars):
    section = tars | {"side_captions": write(tmp_path / "a.csv")}
    some = make_source(section | {"caption_keys": ("txt", ("longSV_captions", 2.0), "raw_caption")})
    texts = {caption.text: caption.weight for caption in some[1].captions}
    assert texts == {"old 1": 1.0, "a car": 1.0, "A car, red": 2.0} and len(some[3].captions) == 1
    each = make_source(section | {"each_caption": True})
    assert len(each) == 6 + 7 + 1 + 1
    assert (
        len({fingerprint(make_source(x)) for x in (section, section | {"caption_keys": ("txt", "raw_caption")})}) == 2
    )


def test_other_columns_of_the_data_may_hold_the_key_or_none(tmp_path):
    """A list whose rows have URLs, and records that are known by their own key."""
    (tmp_path / "list").mkdir()
    section = write_jsonl(tmp_path / "list", [range(3)])
    lines = (tmp_path / "list/00000.jsonl").read_text().splitlines()
    texts = [json.dumps(json.loads(line) | ({"source": url(n)} if n else {})) for n, line in enumerate(lines)]
    (tmp_path / "list/00000.jsonl").write_text("\n".join(texts))
    by_url = {"side_captions": write(tmp_path / "a.csv"), "side_key": "Image Path", "caption_keys": ("raw_caption",)}
    source = make_source(section | by_url | {"record_key": "source"})
    assert [[caption.text for caption in source[n].captions] for n in range(3)] == [[], ["a car"], ["only the raw one"]]
    names = [source.where(n)[1] for n in range(3)]
    own = write(tmp_path / "own.csv", [(names[1], "mine")], ("file", "text"))
    source = make_source(section | {"side_captions": own, "side_key": "file", "caption_keys": ("txt", "text")})
    assert [caption.text for caption in source[1].captions] == ["picture 1", "mine"]


def test_lists_of_sentences_are_texts_of_their_column_and_numbers_are_none(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"url": "u", "long": ["A dog.", "It runs."], "width": 3, "ok": True}))
    side = SideCaptions(str(tmp_path / "a.jsonl"), key="url")
    assert side.of("u") == (Caption("A dog.", "long"), Caption("It runs.", "long")) and side.origins == ("long",)


def test_rows_that_cannot_be_read_are_left_out_and_counted(tmp_path, tars):
    text = (tmp_path / "a.csv", write(tmp_path / "a.csv"))[0].read_text()
    (tmp_path / "a.csv").write_text(text + "https://x/y.jpg,one,two\n" + ",no,key,a,b,c,d,e\n")
    with pytest.warns(
        UserWarning, match=r"2 of 6 rows cannot be read: line 8: 3 fields, .*; line 9: no key in 'Image Pa"
    ):
        source = make_source(tars | {"side_captions": str(tmp_path / "a.csv")})
    assert [*source[1].captions] == expected(1)
    (tmp_path / "b.csv").write_text("Image Path,raw_caption\n" + "x,y,z\n" * 9 + "u,a text\n")
    with pytest.raises(UserError, match="b.csv: 9 of 10 rows cannot be read"):
        make_source(tars | {"side_captions": str(tmp_path / "b.csv")})


def test_mistakes_are_one_line_that_says_what_to_do(tmp_path, tars):
    section = tars | {"side_captions": write(tmp_path / "a.csv")}
    plain = {name: value for name, value in section.items() if name not in ("side_key", "record_key")}
    parquet = as_parquet(tmp_path / "a.parquet")
    for mistaken, message in (
        (section | {"side_key": "url"}, "there is no column side_key='url'; it has Image Path, raw_caption"),
        (section | {"side_captions": parquet, "side_key": "url"}, "a.parquet has no column url; it needs url of texts"),
        (
            section | {"side_captions": parquet, "side_key": "width"},
            "a.parquet has no column width; it needs width of te",
        ),
        (plain, "no field 'key'.*name the column of keys where other columns hold the captions: side_key=NAME"),
        (
            plain | {"side_captions": parquet},
            "has no column key; it needs key, origin, caption; name the column of keys",
        ),
        (
            section | {"side_captions": ""},
            "side_key='Image Path' needs side_captions=FILE, and caption_keys with the nam",
        ),
        (
            section | {"caption_keys": ()},
            "side_key='Image Path' needs side_captions=FILE, and caption_keys with the name",
        ),
        (section | {"caption_keys": ("raw",)}, "no sample has an image and caption_keys='raw'"),
        (section | {"record_key": "json"}, "no sample|no text"),
    ):
        with pytest.raises((UserError, UserWarning), match=message) as error:
            make_source(mistaken)
        assert "\n" not in str(error.value)
    with pytest.warns(
        UserWarning, match="no text for any of 4 records .*reads? 'https://images.example/0.*the data's ''"
    ):
        make_source(section | {"record_key": "json.uri"})
