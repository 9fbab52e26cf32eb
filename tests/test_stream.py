"""The stream of samples over messy mixtures: the same on any hosts and workers, killed and resumed; what is bad is replaced and named."""

import hashlib
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from conftest import make_devices_mesh, slow
from hypothesis import given
from hypothesis import strategies as st
from memory_source import Memory
from pairs import key, members, picture, tar, write_jsonl, write_webdataset

from filip_jax.data.each_caption import EachCaption
from filip_jax.data.pipeline import batches, check_usable, make_order, parts_of
from filip_jax.data.record import BadRecord, Caption, Record
from filip_jax.data.samples import Samples, draw_captions
from filip_jax.data.sentence_pieces import PAD, train_sentence_pieces
from filip_jax.data.sentences import SPLITS
from filip_jax.data.sources import make_source
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.mesh import batch_shapes
from filip_jax.train.input_log import InputLog

PLAIN = dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False)
VARIED = dict(min_area=0.5, flip=True, colour_jitter=0.2, auto_augment=False)
ARRAYS = ("image", "ids", "truncated", "part", "index")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train_sentence_pieces([f"picture {n} Bild {n}" for n in range(100)] * 3, 300))


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """Two sources of which some records cannot be used: 3 of 23 in tars, 1 of 9 in a list."""
    root = tmp_path_factory.mktemp("messy")
    for name in "ab":
        (root / name).mkdir()
    a = write_webdataset(root / "a", [range(0, 7), range(7, 8), range(8, 20)])
    broken = [
        ("100.png", b"no picture"),
        ("100.txt", b"x"),
        ("101.png", picture(1)),
        ("102.png", picture(2)),
        ("102.txt", b"\xff"),
    ]
    tar(root / "a/00003.tar", broken)
    b = write_jsonl(root / "b", [range(30, 38)])
    with (root / "b/00000.jsonl").open("a") as file:
        file.write('{"image": "missing.png", "txt": "x"}\n')
    return make_source(dict(name="mixture", a=a | {"weight": 2.0}, b=b | {"weight": 1.0}))


def run(source, tokenizer, steps, hosts=1, batch_size=8, **changes):
    """`steps` global batches, put together from all hosts; bad records as a list."""
    options = dict(
        image_size=8, text_length=6, augment=VARIED, shuffle="global", block_size=5, max_bad_fraction=1.0,
        seed=1, workers=0, threads=1, start=0,
    ) | changes  # fmt: skip
    of_host = [
        batches(source, tokenizer, batch_size=batch_size, process_index=host, process_count=hosts, **options)
        for host in range(hosts)
    ]
    found = []
    for parts in itertools.islice(zip(*of_host), steps):
        together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "bad"}
        found.append(together | {"bad": [bad for part in parts for bad in part["bad"]]})
    for rows in of_host:
        rows.close()
    return found


def same(a, b):
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(np.array_equal(x[name], y[name]) for name in x) for x, y in zip(a, b)
    )


@pytest.mark.parametrize("seed", [*range(4), *map(slow, range(4, 10))])  # by hand: Grain's threads disturb hypothesis
def test_killed_anywhere_and_resumed_on_other_hosts_the_stream_goes_on(messy, tokenizer, seed):
    rng = np.random.default_rng(seed)
    hosts, cuts = rng.choice([1, 2, 4], 4).tolist(), rng.integers(1, 4, 4).tolist()
    threads, shuffle = int(rng.integers(0, 4)), ("global", "block")[seed % 2]
    options = dict(
        shuffle=shuffle, captions_per_image=1 + seed % 3, views=1 + seed % 2, split_captions=SPLITS[seed % 3]
    )
    whole = run(messy, tokenizer, 12, **options)
    pieces, step = [], 0
    for count, steps in zip(hosts, cuts):
        pieces += run(messy, tokenizer, steps, hosts=count, threads=threads, start=8 * step, **options)
        step += steps
    assert same(pieces, whole[:step])


@pytest.mark.smoke
def test_workers_and_hosts_make_the_same_stream(messy, tokenizer):
    several = dict(captions_per_image=3, views=2)
    assert same(run(messy, tokenizer, 6, **several), run(messy, tokenizer, 6, hosts=2, workers=2, **several))


def test_another_batch_size_goes_on_where_the_first_stopped(messy, tokenizer):
    a, b = run(messy, tokenizer, 6), run(messy, tokenizer, 4, batch_size=6, start=24)
    after = {name: np.concatenate([batch[name] for batch in a[3:]]) for name in ARRAYS}
    assert all(np.array_equal(after[name], np.concatenate([batch[name] for batch in b])) for name in ARRAYS)


@pytest.mark.parametrize("seed", [*range(4), *map(slow, range(4, 12))])
def test_any_shards_hosts_and_threads_yield_every_record_once_a_pass(tmp_path, tokenizer, seed):
    rng = np.random.default_rng(seed)
    sizes, hosts, threads = rng.integers(1, 7, rng.integers(1, 5)).tolist(), int(rng.choice([1, 2, 4])), seed % 3
    shuffle = ("global", "block")[seed % 2]
    ends = np.cumsum([0, *sizes])
    source = make_source(write_webdataset(tmp_path, [range(*ends[n : n + 2]) for n in range(len(sizes))]))
    size = sum(sizes)
    stream = run(source, tokenizer, 3 * size, hosts=hosts, batch_size=4, threads=threads, shuffle=shuffle)
    indices = np.concatenate([batch["index"] for batch in stream]).reshape(12, size)
    assert np.array_equal(np.sort(indices, axis=1), np.tile(np.arange(size), (12, 1)))
    assert not any(batch["bad"] for batch in stream)


def test_bad_records_are_replaced_by_good_ones_of_their_source_and_named(messy, tokenizer):
    stream = run(messy, tokenizer, 54, augment=PLAIN)  # 432 samples: 288 of a, 144 of b
    order = make_order(messy, seed=1, shuffle="global", block_size=5)
    part, index = (np.concatenate([batch[name] for batch in stream]) for name in ("part", "index"))
    visits = [order.visit(n) for n in range(432)]
    assert part.tolist() == [visit.part for visit in visits]
    unusable = {(0, 20), (0, 21), (0, 22), (1, 8)}
    assert not unusable & set(zip(part.tolist(), index.tolist()))
    for visit, found in zip(visits, index.tolist()):
        assert (visit.part, visit.index) in unusable or visit.index == found
    reasons = Counter((bad.part, bad.shard, bad.key, bad.reason[:8]) for batch in stream for bad in batch["bad"])
    expected = {
        ("a", "00003.tar", "100"),
        ("a", "00003.tar", "101"),
        ("a", "00003.tar", "102"),
        ("b", "00000.jsonl", "missing.png"),
    }
    assert {place[:3] for place in reasons} == expected
    assert all(count >= 432 * 2 / 3 // 23 for place, count in reasons.items() if place[0] == "a")


def test_the_input_log_counts_names_once_and_stops(messy, tokenizer, tmp_path):
    stream = run(messy, tokenizer, 30)
    log = InputLog(tmp_path, sources=parts_of(messy), max_bad_fraction=0.3, keys=False)
    for batch in stream:
        log.add(batch)
    bad = Counter(each.part for batch in stream for each in batch["bad"])
    found = log.fractions()
    assert found["data/bad_frac"] == pytest.approx(bad.total() / (240 + bad.total()))
    assert found["data/bad_frac/a"] == pytest.approx(bad["a"] / (160 + bad["a"]))
    assert found["data/share/a"] == pytest.approx(2 / 3) and found["data/text_truncated_frac"] == np.mean(
        [batch["truncated"] for batch in stream]
    )
    log.restart_window()
    assert log.fractions()["data/bad_frac"] == 0
    lines = [json.loads(line) for line in log.file.read_text().splitlines()]
    assert len(lines) == 4 and {line["key"] for line in lines} == {"100", "101", "102", "missing.png"}
    log.file.write_text(log.file.read_text() + '{"part": "a", "sh')  # killed while it wrote
    again = InputLog(tmp_path, sources=parts_of(messy), max_bad_fraction=0.05, keys=False)
    with pytest.raises(
        UserError, match=r"of a cannot be used, more than data.max_bad_fraction=0.05; .*process_0.jsonl names"
    ):
        for batch in stream:
            again.add(batch)
    assert log.file.read_text().count("100") == 1


@pytest.mark.parametrize("text, is_list", [
    ("['a dog', 'a cat']", True), ('["a dog"]', True), ("['a dog'\n 'a cat']", True), ('{"raw": "a dog"}', True),
    ("[a dog]", False), ("a 'dog'", False), ("['a dog', he said", False), ("[1990] 'a dog'", False), ("[]", False),
])  # fmt: skip
def test_a_list_that_was_written_as_text_is_warned_of(recwarn, text, is_list):
    check_usable(Memory([[text, text]], [(8, 8)]), 8, PLAIN)
    found = [str(warning.message) for warning in recwarn]
    assert [message.startswith("source: memory 0 has the caption ") for message in found] == [True] * is_list
    assert all("is one caption: write JSON lines or parquet" in message for message in found)


def test_a_source_without_one_usable_record_says_why(tmp_path, tokenizer):
    tar(tmp_path / "0.tar", [("1.png", b"x"), ("1.txt", b"a"), ("2.png", picture(2)), ("2.cls", b"3")])
    source = make_source(dict(name="webdataset", path=str(tmp_path)))
    message = r"source: none of 2 records looked at can be used: .*no caption \(1\).* It is 1 tar with png \(2\), cls \(1\), txt \(1\)"
    with pytest.raises(UserError, match=message):
        check_usable(source, 8, PLAIN)
    with pytest.raises(UserError, match="33 records in a row of source cannot be used; the last is"):
        run(source, tokenizer, 1)


@given(weights=st.lists(st.floats(0.1, 5), min_size=1, max_size=4))
def test_captions_are_drawn_by_weight(weights):
    captions = [Caption(str(n), weight=weight) for n, weight in enumerate(weights)]
    rng = np.random.default_rng(0)
    drawn = Counter(draw_captions([*captions, Caption(" "), Caption("\ud800")], rng)[0] for _ in range(3000))
    shares = np.array([drawn[str(n)] for n in range(len(weights))]) / 3000
    assert np.abs(shares - np.array(weights) / sum(weights)).max() < 0.05


def test_each_visit_draws_anew_and_the_same_again(tmp_path, tokenizer):
    source = make_source(write_webdataset(tmp_path, [range(4)]))
    stream = run(source, tokenizer, 20, batch_size=4)
    of_record = {
        n: {tuple(ids) for b in stream for ids, index in zip(b["ids"].tolist(), b["index"]) if index == n}
        for n in range(4)
    }
    assert all(len(texts) == 2 for texts in of_record.values())
    assert same(stream, run(source, tokenizer, 20, batch_size=4)) and not same(
        stream, run(source, tokenizer, 20, batch_size=4, seed=2)
    )


def test_no_text_is_no_caption():
    with pytest.raises(BadRecord, match="no caption"):
        draw_captions((Caption(""), Caption("  ")), np.random.default_rng(0))


def test_later_captions_are_drawn_by_weight_from_the_others():
    captions = [Caption("a", weight=3.0), Caption("b"), Caption("a"), Caption("c", weight=2.0), Caption(" ")]
    rng = np.random.default_rng(0)
    drawn = Counter(tuple(draw_captions(captions, rng, 2)) for _ in range(3000))
    shares = {"a": 4 / 7, "b": 1 / 7, "c": 2 / 7}
    expected = {(x, y): shares[x] * shares[y] / (1 - shares[x]) for x in shares for y in shares if x != y}
    assert drawn.keys() == expected.keys()
    assert all(abs(drawn[pair] / 3000 - share) < 0.03 for pair, share in expected.items())


SAID = ("picture 1", "picture 2", "Bild 3", "Bild 4")


@given(
    texts=st.lists(st.lists(st.sampled_from([*SAID, " ", "\ud800"]), max_size=6), max_size=2),
    captions=st.integers(1, 6),
    views=st.integers(1, 3),
    groups=st.booleans(),
    n=st.integers(0, 2**40),
)
def test_a_sample_has_different_captions_first_and_the_shapes_of_a_batch(tokenizer, texts, captions, views, groups, n):
    texts.append(["Bild 4", "Bild 4", "picture 1"])
    memory = Memory(texts, [(8, 8)] * len(texts))
    order = make_order(memory, seed=1, shuffle="global", block_size=5)
    sizes = dict(image_size=8, text_length=6, captions_per_image=captions, views=views)
    row = Samples({"source": memory}, order, tokenizer, augment=VARIED, seed=1, groups=groups, **sizes)[n]
    shapes = batch_shapes(make_devices_mesh(1, 1), 1, groups, **sizes, workers=0)
    assert row.keys() == shapes.keys() | {"label", "truncated", "part", "index", "bad"}
    assert all((1, *row[name].shape) == x.shape and row[name].dtype == x.dtype for name, x in shapes.items())
    of_image = [text for text in dict.fromkeys(texts[row["index"]]) if text in SAID]
    legal = {tuple(ids) for ids in tokenizer.encode(of_image, 6)[0].tolist()}
    drawn = [tuple(ids) for ids in row["ids"].reshape(captions, 6).tolist()]
    present = min(captions, len(of_image))
    assert len(legal) == len(of_image) and len(set(drawn[:present])) == present and set(drawn[:present]) <= legal
    assert set(drawn[present:]) <= {(PAD,) * 6}
    assert captions == 1 or row["caption_weight"].tolist() == [1.0] * present + [0.0] * (captions - present)


class Letters(Tokenizer):
    """Bytes as ids, in which no library has a part."""

    def __init__(self):
        pass

    def encode(self, texts, length):
        ids = [[*text.encode()[:length], *[0] * (length - len(text))] for text in texts]
        return np.array(ids, np.int32), np.array([len(text) > length for text in texts])


class Weighted(Memory):
    """Pictures that have the size of a view, and captions that are not equally likely."""

    def __getitem__(self, index):
        image = np.random.Generator(np.random.Philox(index)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        captions = [Caption(text, weight=1.0 + n) for n, text in enumerate(self.texts[index])]
        return Record(str(index), image, tuple(captions), label=index)


def test_one_caption_and_one_view_are_drawn_as_they_always_were():
    """The bytes of samples as they were before there could be several: runs of then and now see the same."""
    source = Weighted([[f"{name} {n}" for name in "abcdefg"[: 1 + n % 4]] for n in range(7)] + [[" "]])
    order = make_order(source, seed=1, shuffle="global", block_size=5)
    augment = PLAIN | {"flip": True}
    samples = Samples(
        {"a": source}, order, Letters(), image_size=8, text_length=4, augment=augment, seed=1, groups=True
    )
    digest = hashlib.sha256()
    for row in map(samples.__getitem__, range(64)):
        for name in ("image", "label", "ids", "truncated", "part", "index", "group"):
            digest.update(f"{name} {row[name].dtype} {row[name].shape}".encode() + row[name].tobytes())
    assert digest.hexdigest() == "2df499a300960803287a5cdaf55816b6fded5455d2630f7f816df2101375397f"


def test_each_caption_a_sample_has_no_several_captions(tokenizer):
    with pytest.raises(UserError, match="data.captions_per_image=2, but each_caption=True makes each caption a sample"):
        run(EachCaption(Memory([["a", "b"]])), tokenizer, 1, captions_per_image=2)


def test_keys_are_where_the_index_says(messy):
    assert messy.parts["a"].where(7) == ("00001.tar", key(7)) and next(members([7]))[0].startswith(key(7))


def test_views_and_captions_depend_on_the_seed_and_the_attempt(messy, tokenizer):
    one, two = run(messy, tokenizer, 1, batch_size=64), run(messy, tokenizer, 1, batch_size=64, seed=2)

    def looks(stream):
        places = zip(stream[0]["part"].tolist(), stream[0]["index"].tolist())
        return {
            place: (image.tobytes(), tuple(ids))
            for place, image, ids in zip(places, stream[0]["image"], stream[0]["ids"].tolist())
        }

    one, two = looks(one), looks(two)
    both = one.keys() & two.keys()
    assert len(both) > 10 and any(one[place][1] != two[place][1] for place in both)
    order = make_order(messy, seed=1, shuffle="global", block_size=5)
    samples = Samples({}, order, tokenizer, image_size=8, text_length=6, augment={}, seed=3)
    drawn = {samples.generator(n, attempt).random() for n in (0, 1, 2**60) for attempt in range(3)}
    other = Samples({}, order, tokenizer, image_size=8, text_length=6, augment={}, seed=4).generator(0, 0).random()
    assert len(drawn | {other}) == 10
    assert samples.generator(2**60, 1).random() != samples.generator(2**60 + 1, 1).random()
