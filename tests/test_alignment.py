"""Word-patch alignment: tokens, words and patches by hand, pages that any text and grid fit on, IoU."""

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageChops
from test_evals import VECTORS, Oracle, Scenes, picture, word_number

from filip_jax.data.record import Caption, Record, Region
from filip_jax.data.sentence_pieces import train_sentence_pieces
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.evals import draw, fonts, localisation, panels
from filip_jax.evals.draw import draw_alignment
from filip_jax.inference.alignment import Alignment, align, content_words, label_prompt

VIEW = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
LETTERS = partial(fonts.sized, "")


class Pieces(Oracle):
    """The Oracle with a tokenizer that cuts words at hyphens: "ice-cream" is "ice" and "cream"."""

    class tokenizer:
        has_bos = True

        def spans(text, length):
            spans, position = [(0, 0)], 0
            for piece in text.replace("-", " ").split():
                start = text.index(piece, position)
                spans.append((start, position := start + len(piece)))
            return [*spans[: length - 1], (len(text), len(text))]

    def encode_text(self, texts, pooling=None):
        return super().encode_text([text.replace("-", " ") for text in texts], pooling)


def aligned(words, grid, tokens=None, seed=0):
    """An alignment of so many words of one token each, between BOS and EOS, at random."""
    rng = np.random.default_rng(seed)
    text = " ".join(tokens or [f"word{n}" for n in range(words)])
    spans, position = [(0, 0)], 0
    for word in text.split():
        spans.append((position, position + len(word)))
        position += len(word) + 1
    grid = grid if isinstance(grid, tuple) else (grid, grid)
    chosen_token = rng.integers(0, words + 2, grid)
    chosen = np.where((chosen_token == 0) | (chosen_token > words), -1, chosen_token - 1)
    return Alignment(
        VIEW, text, len(text), [*spans, (len(text), len(text))], spans[1:], [[n + 1] for n in range(words)],
        rng.normal(size=(words, *grid)).astype(np.float32), chosen_token, chosen,
    )  # fmt: skip


def test_each_patch_has_the_position_of_its_best_token_and_words_their_pieces():
    text = "a cat by ice-cream"  # BOS a cat by ice cream EOS: 0 … 6
    numbers = [word_number(word) for word in ("cat", "ice", "cream", "a", "BOS", "EOS", "by", "cat", "cat")]
    (found,) = align(Pieces(), [picture(*numbers)], [text])
    assert found.chosen_token.tolist() == [[2, 4, 5], [1, 0, 6], [3, 2, 2]]
    assert [text[start:end] for start, end in found.words] == ["cat", "ice-cream"] and found.pieces == [[2], [4, 5]]
    assert found.tokens == ["[BOS]", "a", "cat", "by", "ice", "cream", "[EOS]"]
    patches = VECTORS[numbers]
    by_hand = [
        patches @ VECTORS[word_number("cat")],
        patches @ (VECTORS[word_number("ice")] + VECTORS[word_number("cream")]) / 2,
    ]
    np.testing.assert_allclose(found.similarity.reshape(2, 9), by_hand, atol=1e-6)
    # Of patches that choose "a" or "by" the best word, BOS or EOS is asked for; the others are their words'.
    best = [[word_number("BOS"), word_number("EOS")], [word_number("cat")], [word_number("ice"), word_number("cream")]]
    rest = [int(np.argmax([(patches[n] @ VECTORS[of].T).max() for of in best])) - 1 for n in range(9)]
    assert found.chosen.reshape(-1).tolist() == rest and rest[:3] == [0, 1, 1] and rest[4:6] == [-1, -1]


def test_tokens_that_take_no_part_are_never_chosen():
    class Without(Oracle):
        def encode_text(self, texts, pooling=None):
            tokens, mask = super().encode_text(texts, pooling)
            return tokens, mask & (np.arange(8) != 0)

    (found,) = align(Without(), [picture(*[word_number("BOS")] * 9)], ["cat dog"])
    assert (found.chosen_token > 0).all() and (found.chosen_token < 4).all()


def test_the_bytes_of_a_character_and_the_pieces_of_a_word_are_one_entry():
    texts = ["a big dog"] * 50 + ["a tree"] * 50
    model = Oracle()
    model.tokenizer, model.text_length = Tokenizer(train_sentence_pieces(texts, 280)), 64

    def encode_text(these, pooling=None):
        ids, _ = model.tokenizer.encode(these, 64)
        return VECTORS[ids % 64].astype(np.float32), ids > 0

    model.encode_text = encode_text
    text = "只 big dogs, 狗熊é"
    (found,) = align(model, [picture(*range(9))], [text])
    assert [text[start:end] for start, end in found.words] == ["只", "big", "dogs", "狗", "熊", "é"]
    spoken_for = sorted(k for pieces in found.pieces for k in pieces)
    assert len(set(spoken_for)) == len(spoken_for) and max(spoken_for) == len(found.spans) - 2
    assert found.pieces[0] == [1, 2, 3, 4], "the sign of a beginning word and three bytes"
    assert [len(pieces) for pieces in found.pieces[3:]] == [3, 3, 2]
    left = [found.tokens[k] for k in range(1, len(found.spans) - 1) if k not in spoken_for]
    assert left == [",", ""], "the comma, and the space before 狗"
    signs = draw._legend(found, LETTERS, 1000)
    assert [(sign.number, sign.text) for sign in signs[:2]] == [("0", "[BOS]"), ("1-4", "只")]
    assert (signs[-2].text, signs[-2].number) == ("é", f"{spoken_for[-2]}-{spoken_for[-1]}") and signs[
        -1
    ].text == "[EOS]"


def test_characters_of_one_token_are_one_word():
    class Characters(Oracle):
        class tokenizer:
            has_bos = True

            def spans(text, length):
                return [(0, 0), (0, 2), (2, 3), (3, 3)]

    (found,) = align(Characters(), [picture(*range(9))], ["气球红"])
    assert found.words == [(0, 2), (2, 3)] and found.pieces == [[1], [2]]


def test_a_tokenizer_without_bos_begins_with_a_word():
    class Bare(Oracle):
        class tokenizer:  # as SigLIP's
            has_bos = False

            def spans(text, length):
                return [(0, 3), (4, 7), (7, 7)]

    (found,) = align(Bare(), [picture(*range(9))], ["cat dog"])
    assert found.words == [(0, 3), (4, 7)] and found.pieces == [[0], [1]] and found.tokens == ["cat", "dog", "[EOS]"]
    assert [sign.text for sign in draw._legend(found, LETTERS, 1000)] == ["cat", "dog", "[EOS]"]


def test_punctuation_is_no_word_and_emoji_are():
    def words(text):
        return [text[start:end] for start, end in content_words(text)]

    assert words("a dog — and a “cat”…") == ["dog", "cat"] and words("一只狗，在草地上。") == list("一只狗在草地上")
    assert words("a 🐕 on it!") == ["🐕"] and words("… — !") == []
    assert words("it is on the") == ["it", "is", "on", "the"]  # of words that say little, where there are no others


def test_a_label_is_one_word_of_the_papers_prompt():
    text, words = label_prompt("hot air balloon")
    assert text == "a photo of a hot air balloon." and [text[s:e] for s, e in words] == ["photo", "hot air balloon"]
    assert label_prompt("a {} of sand")[0] == "a photo of a a {} of sand."


def test_only_patches_that_choose_the_class_name_are_coloured():
    """A label of three tokens: positions 1 to 3 of four words."""
    found = aligned(4, 4)
    found = Alignment(
        found.view, found.text, found.read, found.spans, [(0, found.spans[3][1]), found.words[3]], [[1, 2, 3], [4]],
        found.similarity[:2], np.arange(16).reshape(4, 4) % 6, np.full((4, 4), 1),
    )  # fmt: skip
    page = np.asarray(draw_alignment(found, label=0)).astype(int)
    left, top = 2 * draw.GAP + draw.PANEL, draw.GAP + 2 * draw.TITLE + draw.LINE
    patch = draw.PANEL // 4
    for row, column in np.ndindex(4, 4):
        corner = page[top + row * patch + 12, left + column * patch + 12]  # beside the number
        assert (np.ptp(corner) > 40) == (found.chosen_token[row, column] in (1, 2, 3)), (row, column)


def test_the_page_shows_the_claims_in_their_words_colours():
    chosen_token = np.zeros((6, 6), int)
    chosen_token[1, 1], chosen_token[4, 4], chosen_token[2, 4] = 1, 3, 2
    chosen = np.full((6, 6), -1)
    chosen[1, 1], chosen[4, 4], chosen[2, 4] = 0, 1, 1  # the last: its best word, but "a" is its best token
    spans = [(0, 0), (0, 3), (4, 5), (6, 9), (9, 9)]
    similarity = np.zeros((2, 6, 6), np.float32)
    similarity[0, 1, 1], similarity[1, 4, 4] = 1, 1
    view = np.full((48, 48, 3), 128, np.uint8)
    found = Alignment(view, "dog a cat", 9, spans, [(0, 3), (6, 9)], [[1], [3]], similarity, chosen_token, chosen)
    page = draw_alignment(found, boxes=[(8, 8, 16, 16)])
    left, top = 2 * draw.GAP + draw.PANEL, draw.GAP + 2 * draw.TITLE + draw.LINE
    claims = np.asarray(page)[top : top + draw.PANEL, left : left + draw.PANEL].astype(int)
    patch = draw.PANEL / 6
    grey, dog, cat, pale = (
        claims[int(r * patch) + 10, int(c * patch) + 10] for r, c in ((0, 0), (1, 1), (4, 4), (2, 4))
    )
    assert np.ptp(grey) == 0, "an unclaimed patch stays grey"
    assert np.ptp(dog) > 80 and np.ptp(cat) > 80 and np.abs(dog - cat).max() > 80
    assert 20 < np.ptp(pale) < np.ptp(cat) - 30 and pale.argmax() == cat.argmax()
    words = page.crop((left + draw.PANEL + draw.GAP, top, draw.WIDTH - draw.GAP, top + draw.PANEL))
    across = [words.getpixel((round(4.5 * patch), round(4 * patch) + n)) for n in range(-3, 4)]
    assert draw.PALETTE[1] in across, "the patch that a word chooses is framed in its colour"


def test_numbers_are_left_out_where_they_can_not_be_read_and_the_page_says_so():
    titles = [draw._titles(np.zeros((grid, grid), int), False, None)[1][1] for grid in (7, 24, 25)]
    assert titles[0] == titles[1] and "numbers: positions" in titles[0] and "too many for numbers" in titles[2]
    for grid in (24, 25):
        one, other = (aligned(1, grid, seed=seed) for seed in (0, 0))
        other.chosen_token[0, 0] = 7 - one.chosen_token[0, 0]
        blank = np.full((grid, grid), -1)
        drawn = [panels.patches_panel(x, draw.PANEL, blank, [(0, 0, 0)], LETTERS) for x in (one, other)]
        assert (ImageChops.difference(*drawn).getbbox() is None) == (grid == 25)


def test_heat_is_dark_to_bright_in_even_steps_and_in_place():
    ramp = panels.inferno(np.linspace(0, 1, 64)[None])[0].astype(float) / 255
    linear = np.where(ramp <= 0.04045, ramp / 12.92, ((ramp + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(linear > 0.008856, 116 * np.cbrt(linear) - 16, 903.3 * linear)
    steps = np.diff(lightness)
    assert lightness[0] < 2 and lightness[-1] > 95 and steps.min() > 0.5 and steps.max() < 3, "CIE L* of the colours"
    scores = np.zeros((4, 4), np.float32)
    scores[3, 0] = 1
    heat = np.asarray(panels.heat_panel(np.full((48, 48, 3), 90, np.uint8), scores, 200)).astype(int).sum(axis=2)
    assert heat[175, 25] > heat[25, 175] + 200 and heat[175, 25] > heat[75, 25] + 100


@examples(12)
@given(
    grid=st.tuples(st.integers(1, 32), st.integers(1, 32)),
    words=st.integers(1, 60),
    side=st.sampled_from([1, 48, 500]),
    label=st.booleans(),
)
def test_any_grid_and_any_number_of_words_have_a_page(grid, words, side, label):
    found = aligned(words, grid, seed=words)
    found = Alignment(**{**found.__dict__, "view": np.zeros((side, side, 3), np.uint8)})
    page = draw_alignment(found, boxes=[(-5, -5, 3, 3), (0, 0, side, 2 * side)], label=words - 1 if label else None)
    assert page.width == draw.WIDTH
    rows = 1 if words <= 3 else -(-words // 6)
    maps = rows * ((448 if words <= 3 else 212) + 66)
    lines = (page.height - maps - 448 - 3 * draw.TITLE - 3 * draw.GAP) / draw.LINE
    assert lines == int(lines) and (lines == 1 if words < 10 else lines > 1 if words > 20 else lines > 0)


def test_words_stand_inside_and_apart_from_each_other():
    side, taken = 448, []
    for n in range(40):
        frame = (n % 8 * 56.0, n // 8 * 56.0, n % 8 * 56.0 + 56, n // 8 * 56.0 + 56)
        place = panels._free_place(frame, 30, 24, side, taken)
        assert 0 <= place[0] and 0 <= place[1] and place[2] <= side and place[3] <= side
        assert not any(panels._meet(place, other) for other in taken)
        taken.append(place)


def test_a_long_text_has_lines_and_ends_where_the_model_stops_reading():
    long = aligned(60, 4)
    signs = draw._legend(long, LETTERS, 800)
    assert [sign.number for sign in signs] == [str(n) for n in range(62)] and signs[-1].text == "[EOS]"
    assert all(sign.x + sign.width <= 800 for sign in signs) and signs[-1].line > 3
    for one, after in pairwise(signs):
        assert (after.line, after.x) > (one.line, one.x) and (after.line > one.line or after.x >= one.x + one.width)
    cut = Alignment(**{**long.__dict__, "text": long.text + " and so on"})
    before, mark, end = draw._legend(cut, LETTERS, 800)[-3:]
    assert (before.text, mark.text, end.text) == ("word59", "…", "[EOS]") and mark.gap > 0


def reader(length):
    """A model of so many tokens with a tokenizer of few pieces."""
    model = Oracle()
    model.tokenizer, model.text_length = (
        Tokenizer(train_sentence_pieces(["a big dog"] * 50 + ["a tree"] * 50, 280)),
        length,
    )

    def encode_text(texts, pooling=None):
        ids, _ = model.tokenizer.encode(texts, length)
        return VECTORS[ids % 64].astype(np.float32), ids > 0

    model.encode_text = encode_text
    return model


@pytest.mark.parametrize("text", ["a big doghouse by dogtrees", "dogs-dogs: big trees", "big 只 dogs"])
def test_of_a_text_that_is_cut_only_what_the_model_reads_is_named(text):
    """The truth is what the tokenizer makes of the ids that the model gets; half a character is none."""
    whole = len(reader(64).tokenizer.spans(text, 64))
    for length in range(4, whole + 2):
        model = reader(length)
        (found,) = align(model, [picture(*range(9))], [text])
        ids = model.tokenizer.encode([text], length)[0][0].tolist()
        read = model.tokenizer.pieces.processor.decode(ids).rstrip("\ufffd").rstrip()
        if length >= whole:
            assert found.read == len(text) and found.names == [text[start:end] for start, end in found.words]
            continue
        assert text[: found.read].rstrip() == read
        for name, (start, end) in zip(found.names, found.words):
            assert name == (text[start:end] if end <= len(read) else text[start : len(read)] + "…"), (length, name)
        assert [sign.text for sign in draw._legend(found, LETTERS, 1000)][-2:] == ["…", "[EOS]"]


def cut_alignment(text, length):
    return align(reader(length), [picture(*range(9))], [text])[0]


def test_a_cut_within_a_word_between_words_and_within_a_character():
    text = "a big doghouse 只"
    spans = reader(64).tokenizer.spans(text, 64)
    pieces = [text[start:end] for start, end in spans]
    assert pieces[:5] == ["", "a", " big", " dog", "h"] and pieces[-4:] == ["", "", "只", ""], pieces
    within, between, character = (cut_alignment(text, n) for n in (6, 5, len(spans) - 1))
    assert within.names == ["big", "dogh…"] and within.pieces == [[2], [3, 4]] and within.words[1] == (6, 14)
    assert between.names == ["big", "dog…"]
    assert cut_alignment("a big dog tree", 5).names == ["big", "dog"]
    assert character.names == ["big", "doghouse", "…"] and character.read == text.index("只")
    glued = {length: draw._legend(cut_alignment(text, length), LETTERS, 1000)[-2].gap == 0 for length in (4, 5, 6)}
    assert glued == {4: False, 5: True, 6: True}


def test_half_a_character_is_not_read_where_each_of_its_bytes_has_all_of_it():
    class Bytes(Oracle):
        text_length = 4

        class tokenizer:  # as CLIP's
            has_bos = True

            def spans(text, length):
                return [*[(0, 0), (0, 3), (4, 5), (4, 5), (5, 6)][: length - 1], (6, 6)]

    (found,) = align(Bytes(), [picture(*range(9))], ["dog 狗熊"])
    assert (found.read, found.names, found.pieces) == (4, ["dog", "…"], [[1], [2]])


def test_a_page_says_that_its_text_was_cut_and_only_then(monkeypatch):
    titles = []
    monkeypatch.setattr(draw, "_title", lambda pen, place, title, more, letters: titles.append(more))
    for text, length in (("a big doghouse", 6), ("a big doghouse", 64), ("a dog\u200b\u200b", 64)):
        found = cut_alignment(text, length)
        draw_alignment(found)
        assert ("the text is cut" in titles[0]) == (length == 6), titles
        assert ("…" in [sign.text for sign in draw._legend(found, LETTERS, 1000)]) == (length == 6)
        titles.clear()
    (found,) = align(reader(6), [picture(*range(9))], ["a big doghouse"], [[(6, 14)]])
    names = []
    monkeypatch.setattr(draw, "cut", lambda text, width, font: names.append(text) or text)
    draw_alignment(found, label=0)
    assert names == ["dogh…", "dogh…"], "on the patches and above the heat map"


def test_a_font_is_looked_for_and_missing_glyphs_are_named_and_drawn(monkeypatch):
    assert fonts.font_name("a dog") == ""
    monkeypatch.setattr(fonts, "SYSTEM", ("no such font.ttf",))
    assert fonts.font_name("a dog 只") == "" and fonts.missing_glyphs("a dog 只") == "只"
    assert draw_alignment(aligned(2, 3, ["只", "🐶"])).width == draw.WIDTH
    monkeypatch.setattr(fonts, "_is_installed", lambda name: name != "gone")
    monkeypatch.setattr(fonts, "SYSTEM", ("gone", "better"))
    monkeypatch.setattr(fonts, "_unknown", lambda text, name: "" if name == "better" else "只")
    assert fonts.font_name("只") == "better" and fonts.missing_glyphs("只") == ""


def test_iou_by_hand():
    cells = np.zeros((3, 3), bool)
    cells[0, :2] = True  # 8 x 4 pixels of 12 x 12
    assert localisation.iou(cells, [(2, 2, 6, 6)], 12) == pytest.approx(4 * 2 / (8 * 4 + 4 * 4 - 4 * 2))
    assert localisation.iou(cells, [(0, 0, 8, 4)], 12) == 1.0 and localisation.iou(cells, [(8, 0, 12, 12)], 12) == 0.0
    both = [(0.0, 0.0, 4.0, 4.0), (2.0, 0.0, 6.0, 4.0)]  # overlapping: 6 x 4
    assert localisation.iou(cells, both, 12) == pytest.approx(24 / 32)


@given(st.integers(0, 10_000))
def test_iou_counts_as_pixels_do(seed):
    rng = np.random.default_rng(seed)
    grid = rng.choice([1, 2, 3, 4, 6], 2)
    size, cells = 12, rng.random(grid) < 0.5
    edges = [np.sort(rng.choice(size + 1, (2, 2), replace=False).reshape(2, 2), axis=1) for _ in range(3)]
    boxes = [(float(x[0]), float(y[0]), float(x[1]), float(y[1])) for x, y in edges]
    pixels = np.zeros((size, size), bool)
    for left, top, right, bottom in boxes:
        pixels[int(top) : int(bottom), int(left) : int(right)] = True
    lit = np.kron(cells, np.ones(size // grid, bool))
    expected = (pixels & lit).sum() / (pixels | lit).sum()
    assert localisation.iou(cells, boxes, size) == pytest.approx(expected)


def test_maps_are_scaled_before_they_are_cut():
    scores = np.array([[-0.2, 0.0], [0.1, 0.3]], np.float32)  # 0, 0.4, 0.6, 1
    assert localisation.lit(scores, 0.5).tolist() == [[False, False], [True, True]]
    assert localisation.lit(scores, 0.3).tolist() == [[False, True], [True, True]]
    assert localisation.lit(scores, 1.0).sum() == 1
    assert not localisation.lit(np.zeros((2, 2), np.float32), 0.5).any()


class Wide(Scenes):
    """One picture of 24 x 12 pixels, of which the view is the middle: boxes in it, half in it, and beside it."""

    boxes = (((6, 0, 10, 4),), ((0, 0, 10, 4),), ((0, 0, 6, 12), (18, 0, 24, 12)))

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index == 1:
            return Record("1", picture(*range(9)), (Caption("no thing"),))
        numbers = [word_number(word) for word in ("cat", "dog", *["empty"] * 7)]
        image = np.concatenate([np.zeros((12, 6, 3), np.uint8), picture(*numbers), np.zeros((12, 6, 3), np.uint8)], 1)
        spans = [(0, 3), (4, 7), (8, 11)]
        regions = [Region(*span, box) for span, boxes in zip(spans, self.boxes) for box in boxes]
        return Record("0", image, (Caption("cat dog sun"),), regions=tuple(regions))


def test_boxes_are_cut_at_the_view_and_phrases_outside_of_it_left_out():
    found = localisation.evaluate(Oracle(), Wide(), Path(), examples=2, thresholds=(0.5, 1.0))
    maps = align(Oracle(), [Wide()[0].image[:, 6:18]], ["cat dog sun"], [[(0, 3), (4, 7)]])[0].similarity
    by_hand = {}
    for least in (0.5, 1.0):
        ious = []
        for scores in maps:  # both boxes are the first patch of 9, after the cut
            scaled = (scores - scores.min()) / np.ptp(scores)
            ious.append(float(scaled[0, 0] >= least) / max((scaled >= least).sum(), 1) if scaled[0, 0] >= least else 0)
        by_hand[f"iou@{least:g}"] = pytest.approx(np.mean(ious))
    assert by_hand["iou@1"] == 0.5, "cat lies in its box, dog beside it"
    interval = {
        "pointing_accuracy_low": pytest.approx(0.0945, abs=1e-3),
        "pointing_accuracy_high": pytest.approx(0.9055, abs=1e-3),
    }
    assert found == {"pointing_accuracy": 0.5, **interval, **by_hand, "phrases": 2, "phrases_left_out": 1}
    chance = localisation.baselines(Wide(), examples=2, thresholds=(0.5, 1.0))["chance"]
    assert chance == dict.fromkeys(["pointing_accuracy", "iou@0.5", "iou@1"], pytest.approx(1 / 9))


def test_a_phrase_with_several_boxes_has_them_all():
    class Twice(Wide):
        boxes = (((14, 8, 18, 12), (6, 0, 10, 4)),)

    found = localisation.evaluate(Oracle(), Twice(), Path(), examples=1, thresholds=(1,))
    assert (found["pointing_accuracy"], found["iou@1"], found["phrases"]) == (1.0, 0.5, 1)


def test_a_phrase_beyond_the_context_is_left_out():
    class Long(Scenes):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            caption = record.caption + " word" * 8 + " end"
            last = Region(len(caption) - 3, len(caption), (0, 0, 4, 4))
            return Record(record.key, record.image, (Caption(caption),), regions=(*record.regions, last))

    found = localisation.evaluate(Oracle(), Long(), Path(), examples=3)
    assert (found["phrases"], found["phrases_left_out"]) == (6, 3)


def test_records_come_in_chunks_and_give_the_same_numbers(monkeypatch):
    whole, held = localisation.evaluate(Oracle(), Scenes(), Path(), examples=10), []

    class Watched(Oracle):
        def encode_image(self, images, pooling=None):
            held.append(len(images))
            return super().encode_image(images, pooling)

    monkeypatch.setattr(localisation, "RECORDS", 4)
    assert localisation.evaluate(Watched(), Scenes(), Path(), examples=10) == whole and held == [4, 4, 2]


@pytest.mark.filterwarnings("error")
def test_a_diverged_model_finds_nothing_and_is_drawn():
    class Diverged(Oracle):
        def encode_image(self, images, pooling=None):
            return np.full_like(super().encode_image(images, pooling), np.nan)

    found = localisation.evaluate(Diverged(), Scenes(), Path(), examples=10)
    assert found["pointing_accuracy"] == found["iou@0.5"] == 0 and found["phrases"] == 20
    (alignment,) = align(Diverged(), [Scenes()[0].image], [Scenes()[0].caption])
    assert draw_alignment(alignment).width == draw.WIDTH


def test_what_can_not_be_localised_is_refused():
    class Bare(Scenes):
        def __getitem__(self, index):
            return Record("0", picture(*range(9)), (Caption("a cat"),))

    class Outside(Wide):
        boxes = (((0, 0, 6, 12),),)

    for source, thresholds, message in (
        (Bare(), (0.5,), "localisation needs a source whose records have regions"),
        (Outside(), (0.5,), "no phrase of these records has a box in the centre view"),
        (Scenes(), (0,), r"localisation.thresholds=\(0,\) must be a list of numbers above 0, at most 1"),
        (Scenes(), (), r"localisation.thresholds=\(\) must be"),
        (Scenes(), ("half",), "localisation.thresholds=.*half"),
        (Scenes(), 0.5, "localisation.thresholds=0.5"),
    ):
        with pytest.raises(UserError, match=message):
            localisation.evaluate(Oracle(), source, Path(), examples=2, thresholds=thresholds)
