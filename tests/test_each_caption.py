"""Each caption a sample of its own: every pair once a pass, by hand; which rows show one image; what is bad stays one."""

import itertools
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_source import Memory
from pairs import key, write_folder, write_jsonl, write_webdataset

from filip_jax.cleaning.filter import filter_source
from filip_jax.data import each_caption
from filip_jax.data.each_caption import EachCaption, ImageNumbers
from filip_jax.data.pipeline import batches
from filip_jax.data.record import BadRecord, Caption, Record, Region
from filip_jax.data.sentence_pieces import train_sentence_pieces
from filip_jax.data.sources import Source, fingerprint, make_source
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError

OPTIONS = dict(
    image_size=8, text_length=8, augment=dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False),
    shuffle="global", block_size=5, max_bad_fraction=1.0, seed=1, workers=0, threads=1, start=0, groups=True,
)  # fmt: skip
captions_of_one = st.none() | st.lists(st.sampled_from(["a dog", "a cat", "two birds", " ", "\ud800"]), max_size=4)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train_sentence_pieces([f"picture {n} Bild {n} text {n}" for n in range(100)] * 3, 300))


def stream(source, tokenizer, samples, hosts=1, batch_size=8, **changes):
    """The first samples of a run, put together from all hosts: {name: rows}, and the bad records."""
    of_host = [
        batches(source, tokenizer, batch_size=batch_size, process_index=host, process_count=hosts, **OPTIONS | changes)
        for host in range(hosts)
    ]
    steps = list(itertools.islice(zip(*of_host), -(-samples // batch_size)))
    for rows in of_host:
        rows.close()
    names = [name for name in steps[0][0] if name != "bad"]
    rows = {name: np.concatenate([part[name] for parts in steps for part in parts])[:samples] for name in names}
    return rows, [bad for parts in steps for part in parts for bad in part["bad"]]


@given(texts=st.lists(captions_of_one, min_size=1, max_size=9), cut=st.integers(0, 9))
def test_pairs_are_those_of_the_source_in_its_order(texts, cut):
    memory = Memory(texts, shard_sizes=[min(cut, len(texts)), max(0, len(texts) - cut)])
    each = EachCaption(memory)
    pairs, sizes = [], [0, 0]
    for image, some in enumerate(texts):
        said = [(n, text) for n, text in enumerate(some or []) if text not in (" ", "\ud800")]
        for n, text in said or [(0, None)]:
            pairs.append((image, n, text))
            sizes[image >= cut] += 1
    assert len(each) == len(pairs) and each.shard_sizes.tolist() == sizes and isinstance(each, Source)
    for of in (each, pickle.loads(pickle.dumps(each))):
        for index, (image, n, text) in enumerate(pairs):
            assert of.where(index) == ("memory", str(image)) and of.image_of(index) == image
            if texts[image] is None:
                with pytest.raises(BadRecord, match="no such record"):
                    of.captions(index)
                with pytest.raises(BadRecord, match="no such record"):
                    of[index]
            else:
                expected = (Caption(text, f"origin{n}"),) if text is not None else ()
                assert of.captions(index) == of[index].captions == expected and of[index].key == str(image)


def test_a_number_for_each_image_takes_four_bytes():
    each = EachCaption(Memory([["a", "b", "c"]] * 5000))
    assert len(each) == 15_000 and each.ends.nbytes == 20_000


@pytest.mark.smoke
@pytest.mark.parametrize("shuffle", ["global", "block"])
def test_a_pass_visits_every_pair_once_and_rows_of_one_image_have_one_number(tmp_path, tokenizer, shuffle):
    """A mixture of pictures with two captions, side captions and one caption, weighted by their pairs."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    lines = [json.dumps({"key": key(n), "origin": "side", "caption": f"text {n}"}) for n in (1, 2, 2, 5)]
    (tmp_path / "side.jsonl").write_text("\n".join(lines))
    a = write_webdataset(tmp_path / "a", [range(0, 4), range(4, 6)]) | {
        "side_captions": str(tmp_path / "side.jsonl"),
        "caption_keys": ("txt", "de.txt", "side"),
        "each_caption": True,
    }
    b = write_jsonl(tmp_path / "b", [range(30, 37)]) | {"caption_keys": ("txt",)}
    source = make_source(dict(name="mixture", a=a, b=b))
    assert [len(part) for part in source.parts.values()] == [6 * 2 + 4, 7] and len(source) == 23
    rows, bad = stream(source, tokenizer, 3 * 23, shuffle=shuffle)
    assert not bad and rows["group"].dtype == np.int32
    shown = rows["image"][:, 0, 0, 0].tolist()  # a picture's colour is its number
    said = [tokenizer.pieces.processor.decode([int(i) for i in row if i > 2]) for row in rows["ids"]]
    expected = sorted(
        [(n, text) for n in range(6) for text in (f"picture {n}", f"Bild {n}")]
        + [(n, f"text {n}") for n in (1, 2, 2, 5)]
        + [(n, f"picture {n}") for n in range(30, 37)]
    )
    lower = [(n, text.lower()) for n, text in expected]
    for epoch in range(3):
        met = zip(shown[23 * epoch : 23 * epoch + 23], said[23 * epoch : 23 * epoch + 23])
        assert sorted((n, text.lower()) for n, text in met) == sorted(lower)
    numbers = dict(zip(shown, rows["group"].tolist()))
    assert numbers == {n: n for n in range(6)} | {n: n - 30 + 6 for n in range(30, 37)}
    assert [numbers[n] for n in shown] == rows["group"].tolist()
    for hosts in (2, 4):
        other, _ = stream(source, tokenizer, 3 * 23, hosts=hosts, shuffle=shuffle)
        assert all(np.array_equal(rows[name], other[name]) for name in rows)


def test_sources_as_they_are_have_numbers_too(tmp_path, tokenizer):
    rows, _ = stream(make_source(write_folder(tmp_path, [range(9)])), tokenizer, 27)
    assert rows["group"].tolist() == rows["index"].tolist() == rows["image"][:, 0, 0, 0].tolist()
    plain, _ = stream(make_source(write_folder(tmp_path, [range(9)])), tokenizer, 27, groups=False)
    assert "group" not in plain and all(np.array_equal(plain[name], rows[name]) for name in plain)


def test_what_stands_in_for_a_bad_record_has_its_own_number(tmp_path, tokenizer):
    section = write_folder(tmp_path, [range(12)]) | {"each_caption": True}
    (tmp_path / f"{key(3)}.png").write_bytes(b"no picture")
    (tmp_path / f"{key(7)}.de.txt").write_bytes(b"\xff")  # its captions cannot be read: one pair
    (tmp_path / f"{key(9)}.txt").write_text(" ")
    source = make_source(section)
    assert len(source) == 12 * 2 - 2
    rows, bad = stream(source, tokenizer, 4 * 22)
    assert (
        rows["group"].tolist()
        == rows["image"][:, 0, 0, 0].tolist()
        == [source.image_of(n) for n in rows["index"].tolist()]
    )
    assert not {3, 7} & set(rows["group"].tolist()) and set(rows["group"].tolist()) == set(range(12)) - {3, 7}
    assert {each.key for each in bad} == {f"{key(3)}.png", f"{key(7)}.png"} and len(bad) >= 4 * 3


def test_the_options_of_a_section(tmp_path):
    section = write_folder(tmp_path, [range(5)])
    plain, each = make_source(section), make_source(section | {"each_caption": True})
    assert make_source(section | {"each_caption": False}).identity == plain.identity != each.identity
    assert fingerprint(plain) != fingerprint(each) and each.seen == plain.seen
    assert [each.image_head(n) for n in range(10)] == [plain.image_head(n // 2) for n in range(10)]
    assert [caption.origin for n in range(4) for caption in each.captions(n)] == ["txt", "de.txt"] * 2
    with pytest.raises(UserError, match="source: .*: each_caption='yes' is not True or False"):
        make_source(section | {"each_caption": "yes"})
    with pytest.raises(
        UserError, match="each_caption=True takes each caption once an epoch: give caption_keys without"
    ):
        make_source(section | {"each_caption": True, "caption_keys": (("txt", 2.0), "de.txt")})
    with pytest.raises(UserError, match="side_captions, keep, each_caption, label, class_names"):
        make_source(section | {"each_captions": True})
    labelled = make_source(section | {"label": "de.txt", "each_caption": True})
    assert labelled.class_names == [f"Bild {n}" for n in range(5)] and [labelled[n].label for n in (0, 9)] == [0, 4]


def test_what_a_filter_left(tmp_path):
    """Texts with sensitive words are gone, a picture without a text left, too."""
    (tmp_path / "data").mkdir()
    section = write_folder(tmp_path / "data", [range(6)])
    (tmp_path / "words.txt").write_text("Bild 2\npicture 4\nBild 4")
    rules = dict(min_side=0, max_aspect=0, languages=(), max_repeats=0, person_names=False, meaningless=False)
    with pytest.raises(
        UserError, match="filter: each_caption=True: filter without it; training takes it beside `keep`"
    ):
        filter_source(make_source(section | {"each_caption": True}), tmp_path / "kept", **rules)
    words = str(tmp_path / "words.txt")
    filter_source(make_source(section), tmp_path / "kept", **rules, sensitive_words=words, workers=0)
    each = make_source(section | {"keep": str(tmp_path / "kept"), "each_caption": True})
    found = [(each.where(n)[1], each[n].caption) for n in range(len(each))]
    left = dict.fromkeys((0, 1, 3, 5), ("picture", "Bild")) | {2: ("picture",)}
    assert found == [(f"{key(n)}.png", f"{word} {n}") for n in sorted(left) for word in left[n]]
    assert [each.image_of(n) for n in range(len(each))] == [0, 0, 1, 1, 2, 3, 3, 4, 4]


def test_regions_stay_with_the_caption_that_they_are_of():
    class Placed(Memory):
        def __getitem__(self, index):
            return Record("0", np.zeros((4, 4, 3), np.uint8), self.captions(0), regions=(Region(0, 5, (0, 0, 1, 1)),))

    each = EachCaption(Placed([["a dog", "a cat"]]))
    assert [len(each[n].regions) for n in range(2)] == [1, 0]


def test_more_than_numbers_reach(monkeypatch):
    class Many(Memory):
        def __len__(self):
            return 2**30

    many = Many([["a"]])
    assert ImageNumbers([many, many])(1, 2**30 - 1) == 2**31 - 1
    with pytest.raises(UserError, match="positives='image' numbers up to 2\\^31 images; the source has 2147483649"):
        ImageNumbers([many, many, Memory([["a"]])])
    monkeypatch.setattr(each_caption, "MOST", 6)
    assert len(EachCaption(Memory([["a", "b"], ["a", "b", "c"]]))) == 5
    with pytest.raises(UserError, match="each_caption=True: 6 captions are more"):
        EachCaption(Memory([["a", "b", "c"]] * 2))
