"""Captions cut into sentences and merged again: which texts can be drawn and how often, and that nothing is lost or cut elsewhere."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_source import Memory

from filip_jax.data.pipeline import check_numbers, make_order
from filip_jax.data.record import BadRecord, Caption
from filip_jax.data.samples import Samples, draw_captions
from filip_jax.data.sentences import MAX_MERGED, SPLITS, split_caption
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("A dog. It runs.", ["A dog", "It runs"]),
        ("A dog of 3.5 kg.It runs</s>fast\n\n over a field", ["A dog of 3.5 kg", "It runs", "fast", "over a field"]),
        ('He says "stop." And goes ...', ['He says "stop', '" And goes']),
        ("a dog", ["a dog"]),
        (" ... ", [" ... "]),
        ("Version 2. No. 3", ["Version 2", "No", "3"]),
        ("Ein Hund läuft! Wohin? 犬。", ["Ein Hund läuft! Wohin? 犬。"]),
    ],
)
def test_sentences(text, sentences):
    assert split_caption(text) == sentences


@given(text=st.text(st.sampled_from("ab1é. \n"), max_size=40))
def test_no_letter_or_digit_is_lost(text):
    assert [c for part in split_caption(text) for c in part if c.isalnum()] == [c for c in text if c.isalnum()]


def shares_definition(sentences):
    """The share of each text among the draws of one caption, of (sentence, weight) in their order, as FLAIR draws them."""
    shares, texts, weights = Counter(), [text for text, _ in sentences], np.array([weight for _, weight in sentences])
    for number in range(1, MAX_MERGED + 1):
        merged = min(number, len(texts))
        in_a_row = 0.5 if merged > 1 else 0.0
        starts = weights[: len(texts) - merged + 1]
        for first, weight in enumerate(starts):
            shares[". ".join(texts[first : first + merged])] += in_a_row * weight / starts.sum() / MAX_MERGED
        for chosen in itertools.permutations(range(len(texts)), merged):
            share, left = 1.0, weights.sum()
            for n in chosen:
                share, left = share * weights[n] / left, left - weights[n]
            shares[". ".join(texts[n] for n in chosen)] += (1 - in_a_row) * share / MAX_MERGED
    return shares


@pytest.mark.parametrize("captions", [[("a. b", 1.0), ("c. d", 2.0)], [("a. b", 1.0)], [("a", 1.0)]])
def test_merged_texts_are_drawn_as_often_as_their_definition_says(captions):
    sentences = [(text, weight) for caption, weight in captions for text in caption.split(". ")]
    shares, rng = shares_definition(sentences), np.random.default_rng(0)
    drawn = Counter(
        draw_captions([Caption(text, weight=weight) for text, weight in captions], rng, 1, "diverse")[0]
        for _ in range(4000)
    )
    assert sum(shares.values()) == pytest.approx(1) and drawn.keys() <= shares.keys()
    assert max(abs(drawn[text] / 4000 - share) for text, share in shares.items()) < 0.03


def test_each_sentence_is_drawn_with_the_weight_of_its_caption():
    captions, rng = [Caption("a. b. c", weight=2.0), Caption("d", weight=1.0), Caption(" ")], np.random.default_rng(0)
    drawn = Counter(draw_captions(captions, rng, 1, "sentences")[0] for _ in range(4000))
    assert {text: round(drawn[text] / 4000, 1) for text in drawn} == {"a": 0.3, "b": 0.3, "c": 0.3, "d": 0.1}
    assert sorted(draw_captions(captions, rng, 9, "sentences")) == ["a", "b", "c", "d"]


TEXTS = st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=4).map(". ".join), min_size=1, max_size=3)


@given(texts=TEXTS, count=st.integers(1, 6), split=st.sampled_from(SPLITS[1:]), seed=st.integers(0, 99))
def test_texts_are_different_and_of_the_captions_and_the_same_again(texts, count, split, seed):
    captions = [Caption(text) for text in texts]
    one, two = (draw_captions(captions, np.random.default_rng(seed), count, split) for _ in range(2))
    sentences = [part for text in texts for part in text.split(". ")]
    assert one == two and 1 <= len(one) <= count and len(set(one)) == len(one)
    most = MAX_MERGED if split == "diverse" else 1
    for text in one:
        parts = text.split(". ")
        assert len(parts) <= most and not Counter(parts) - Counter(sentences)
    assert split == "diverse" or len(one) == min(count, len(set(sentences)))


class Numbered(Tokenizer):
    """Encodes a text by its place among those that were met."""

    pad_id = 0

    def __init__(self):
        self.texts = {}

    def encode(self, texts, length):
        ids = [[self.texts.setdefault(text, len(self.texts) + 1)] * length for text in texts]
        return np.array(ids, np.int32), np.zeros(len(texts), bool)


@pytest.mark.parametrize("split", SPLITS)
def test_a_sample_holds_texts_of_its_own_image_and_pads(split):
    memory = Memory([["a. b. c. d", "e"], ["f"]], [(8, 8)] * 2)
    order, tokenizer = make_order(memory, seed=1, shuffle="global", block_size=5), Numbered()
    augment = dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False)
    options = dict(image_size=8, text_length=3, augment=augment, seed=1, captions_per_image=4, split_captions=split)
    rows = [Samples({"a": memory}, order, tokenizer, **options)[n] for n in range(24)]
    texts = {number: text for text, number in tokenizer.texts.items()} | {0: ""}
    counts = {0: {"": 2, "sentences": 4, "diverse": 4}[split], 1: 1}
    seen = [set(), set()]
    for row in rows:
        drawn = [texts[number] for number in row["ids"][:, 0].tolist()]
        present, image = counts[int(row["index"])], int(row["index"])
        assert (
            row["caption_weight"].tolist() == [1.0] * present + [0.0] * (4 - present) == [float(t != "") for t in drawn]
        )
        assert set("".join(drawn)) <= set(("abcde. ", "f")[image])
        seen[image] |= {text for text in drawn if text}
    assert seen[1] == {"f"}
    if split == "diverse":
        assert len(seen[0]) > 20
    else:
        assert seen[0] == ({"a. b. c. d", "e"} if not split else set("abcde"))


def test_what_says_nothing_is_no_sentence_and_other_rules_are_refused():
    for split in SPLITS:
        with pytest.raises(BadRecord, match="no caption"):
            draw_captions([Caption(" \n ")], np.random.default_rng(0), 2, split)
    numbers = dict(workers=0, threads=0, text_length=9, max_bad_fraction=0.0)
    augment = dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False)
    with pytest.raises(UserError, match="data.split_captions='flair' is not one of '', 'sentences', 'diverse'"):
        check_numbers(**numbers, augment=augment, split_captions="flair")
