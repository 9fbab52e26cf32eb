"""Evaluation: its similarity rules, ranks, intervals, pointing and pictures, on models whose answers are known."""

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, unit
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from filip_jax.data.preprocess import centre_view
from filip_jax.data.record import Caption, Record, Region
from filip_jax.errors import UserError
from filip_jax.evals import linear_probe, localisation, pixels, rates, retrieval, zero_shot
from filip_jax.evals.clip_benchmark import write_results
from filip_jax.evals.prompts import make_prompts
from filip_jax.evals.published import beside_published, published
from filip_jax.evals.records import check_records, views
from filip_jax.evals.results import forget_after, read_results, record_baselines, record_step, recorded, table
from filip_jax.evals.run import open_evals, run_baselines
from filip_jax.framing import CLIP_FRAMING
from filip_jax.inference import Embedder, ranking
from filip_jax.inference.alignment import align, content_words
from filip_jax.losses import filip_loss, token_similarity

NAMES = ["cat", "dog", "red apple"]
VECTORS = unit(np.random.default_rng(0).normal(size=(64, 16)))


class Words:
    """A tokenizer of whitespace words, with BOS and EOS, as far as `align` asks for one."""

    has_bos = True

    def spans(self, text, length):
        spans, position = [(0, 0)], 0
        for word in text.split():
            start = text.index(word, position)
            spans.append((start, position := start + len(word)))
        return [*spans[: length - 1], (len(text), len(text))]


class Oracle(Embedder):
    """An embedder that knows: an image's patches hold class numbers, and words are the classes' vectors."""

    tokenizer, image_size, text_length, batch_size, logit_scale, step, mesh = Words(), 12, 8, 4, 20.0, 7, None
    framing = CLIP_FRAMING
    grid = (3, 3)

    def __init__(self, pooling="tokens"):
        self.pooling = pooling

    def encode_image(self, images, pooling=None):
        patches = np.stack([image[::4, ::4, 0].reshape(-1) for image in images])  # 3 x 3 patches of 4 pixels
        tokens = VECTORS[patches].astype(np.float32)
        return unit(tokens.mean(axis=1, keepdims=True)) if (pooling or self.pooling) == "global" else tokens

    def encode_text(self, texts, pooling=None):
        tokens, mask = np.zeros((len(texts), 8, 16), np.float32), np.zeros((len(texts), 8), bool)
        for n, text in enumerate(texts):
            words = ["BOS", *text.split()[:6], "EOS"]
            tokens[n, : len(words)] = VECTORS[[sum(map(ord, word)) % 64 for word in words]]
            mask[n, : len(words)] = True
        if (pooling or self.pooling) == "global":
            return unit((tokens * mask[..., None]).sum(axis=1, keepdims=True)), np.ones((len(texts), 1), bool)
        return tokens, mask


def word_number(word):
    return sum(map(ord, word)) % 64


def picture(*numbers):
    """3 x 3 patches of 4 pixels that hold these numbers."""
    return np.repeat(np.repeat(np.array(numbers, np.uint8).reshape(3, 3, 1), 4, 0), 4, 1).repeat(3, 2)


class Scenes:
    """Pictures of two words at known places, captioned by them."""

    class_names = ("cat", "dog", "sun", "tree", "house")
    shard_sizes, identity, seen = np.array([10]), "scenes", "scenes"

    def __len__(self):
        return 10

    def captions(self, index):
        return self[index].captions

    def where(self, index):
        return "", str(index)

    def __getitem__(self, index):
        pairs = [(a, b) for a in range(5) for b in range(a + 1, 5)]
        first, second = (self.class_names[n] for n in pairs[index])
        numbers = [word_number("empty")] * 9
        numbers[index % 4], numbers[8 - index % 4] = word_number(first), word_number(second)
        caption = f"{first} {second}"
        boxes = [((index % 4) % 3 * 4, (index % 4) // 3 * 4), ((8 - index % 4) % 3 * 4, (8 - index % 4) // 3 * 4)]
        spans = [(0, len(first)), (len(first) + 1, len(caption))]
        regions = tuple(Region(*span, (x, y, x + 4, y + 4)) for span, (x, y) in zip(spans, boxes))
        captions = (Caption(caption),)
        return Record(str(index), picture(*numbers), captions, label=pairs[index][0], regions=regions)


@given(st.integers(0, 1000))
def test_ranks_equal_a_sort_and_ties_never_win(seed):
    scores = np.random.default_rng(seed).permutation(30).reshape(5, 6).astype(float)
    true = np.random.default_rng(seed).integers(0, 6, 5)
    order = np.argsort(-scores, axis=1)
    expected = [order[n].tolist().index(true[n]) + 1 for n in range(5)]
    assert ranking.ranks(scores, true).tolist() == expected
    assert ranking.ranks(np.zeros((5, 6)), true).tolist() == [6] * 5


@given(st.integers(0, 1000))
def test_accuracies_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(7), rng.choice(7, 40, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.04, 0.01])])  # unbalanced
    scores = rng.permutation(labels.size * 7).reshape(-1, 7).astype(float)
    found = rates.accuracies(ranking.ranks(scores, labels), labels)
    assert found["top1"] == pytest.approx(top_k_accuracy_score(labels, scores, k=1))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert found["per_class"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(axis=1)))


def test_a_diverged_model_finds_nothing():
    assert ranking.ranks(np.full((4, 6), np.nan), np.arange(4)).min() == 6


def test_wilson_intervals():
    assert rates.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)  # Wilson 1927, as in textbooks
    assert rates.wilson(0, 48)[0] == 0.0 and rates.wilson(48, 48)[1] == pytest.approx(1.0)


class Empty(Scenes):
    seen = "nothing"

    def __len__(self):
        return 0


def test_retrieval_counts_recall_and_the_loss():
    metrics = retrieval.evaluate(Oracle(), Scenes(), Path(), examples=10)
    images = Oracle().encode_image([Scenes()[n].image for n in range(10)])
    texts, mask = Oracle().encode_text([Scenes()[n].caption for n in range(10)])
    assert metrics["loss"] == pytest.approx(float(filip_loss(images, texts, mask, 20.0)), rel=1e-5)
    s_i, s_t = (np.asarray(s) for s in token_similarity(images, texts, mask))
    assert metrics["image_to_text_R@1"] == np.mean([(s_i[n] >= s_i[n, n] - 1e-6).sum() == 1 for n in range(10)])
    assert metrics["text_to_image_R@5"] == np.mean([(s_t[:, n] >= s_t[n, n] - 1e-6).sum() <= 5 for n in range(10)])
    assert metrics["image_to_text_R@1"] < metrics["image_to_text_R@10"] == 1.0 and metrics["pairs"] == 10
    with pytest.raises(UserError, match="evals.val.examples=11, but the source has 10 records"):
        check_records(Scenes(), 11, "evals.val")
    with pytest.raises(UserError, match="evals.val.examples=0 must be a whole number and at least 1"):
        check_records(Scenes(), 0, "evals.val")
    with pytest.raises(UserError, match="evals.val: the source has no records. It is nothing"):
        check_records(Empty(), 0, "evals.val")
    chance = retrieval.baselines(Scenes(), examples=10)["chance"]
    assert chance["image_to_text_R@1"] == pytest.approx(0.1) and chance["text_to_image_R@5"] == pytest.approx(0.5)


class Several(Scenes):
    """The same pictures with one to three texts each: the words, turned round, and twice."""

    def captions(self, index):
        first, second = super().__getitem__(index).caption.split()
        texts = [f"{first} {second}", f"{second} {first}", f"{first} {second} {first}"]
        return tuple(map(Caption, texts[: 1 + index % 3]))


def test_retrieval_with_several_texts_of_an_image():
    metrics = retrieval.evaluate(Oracle(), Several(), Path(), examples=10, captions=0, prompt="a {}")
    texts = [(n, caption.text) for n in range(10) for caption in Several().captions(n)]
    images = Oracle().encode_image([Several()[n].image for n in range(10)])
    s_i, s_t = (np.asarray(s) for s in token_similarity(images, *Oracle().encode_text([f"a {t}" for _, t in texts])))
    owner = np.array([n for n, _ in texts])
    for k in (1, 5, 10):
        hits = [
            max((s_i[n] >= s - 1e-6).sum() - (s_i[n, owner == n] >= s - 1e-6).sum() < k for s in s_i[n, owner == n])
            for n in range(10)
        ]
        assert metrics[f"image_to_text_R@{k}"] == np.mean(hits)
        assert metrics[f"text_to_image_R@{k}"] == np.mean(
            [(s_t[:, t] >= s_t[n, t] - 1e-6).sum() <= k for t, n in enumerate(owner)]
        )
    assert (
        0 < metrics["image_to_text_mAP@R"] <= 1
        and (metrics["images"], metrics["texts"]) == (10, 19)
        and "pairs" not in metrics
    )
    first = retrieval.evaluate(Oracle(), Several(), Path(), examples=10)
    assert "texts" not in first and first["loss"] != metrics["loss"]
    chance = retrieval.baselines(Several(), examples=10, captions=0)["chance"]
    assert chance["image_to_text_R@1"] == pytest.approx(1.9 / 19) and chance["text_to_image_R@1"] == pytest.approx(0.1)
    with pytest.raises(UserError, match="the prompt 'a photo' has no {}"):
        retrieval.evaluate(Oracle(), Several(), Path(), examples=10, prompt="a photo")
    with pytest.raises(UserError, match="retrieval.captions=-1 must be at least 0"):
        retrieval.evaluate(Oracle(), Several(), Path(), examples=10, captions=-1)


class Blank(Several):
    """Every second text says nothing."""

    def captions(self, index):
        return tuple(each for caption in super().captions(index) for each in (caption, Caption(" ")))


def test_blank_texts_are_none():
    several, blank = (
        retrieval.evaluate(Oracle(), source, Path(), examples=10, captions=2) for source in (Several(), Blank())
    )
    assert several == blank and blank["texts"] == 16


def test_wrong_neighbours_and_prompts_are_named():
    for wrong in (5, {"source": {}}, {"source": {}, "examples": 3, "more": 1}):
        with pytest.raises(UserError, match="is not a section of the keys source and examples"):
            retrieval.baselines(Scenes(), examples=10, neighbours=wrong)
    with pytest.raises(UserError, match="zero_shot: prompts=5 are no list, file or prefixes"):
        make_prompts(5)
    with pytest.raises(UserError, match="evals.x=3 is not a section"):
        open_evals({"x": 3})


def test_texts_are_cut_to_the_longest(monkeypatch):
    from filip_jax.evals import records

    monkeypatch.setattr(records, "TEXTS", 2)
    texts = ["a", "a b", "a b c", "d", "e"]
    tokens, mask = records.encode_texts(Oracle(), texts)
    whole, expected = Oracle().encode_text(texts)
    assert mask.shape == (5, 5) and (mask == expected[:, :5]).all()
    assert np.array_equal(tokens * mask[..., None], whole[:, :5] * mask[..., None])


def test_token_wise_models_average_similarities_and_global_ones_embeddings():
    images = Oracle().encode_image([picture(*range(n, n + 9)) for n in range(4)])
    prompts = ("a {} here", "{}", "the big {} of them all")
    s_i, s_t = zero_shot.ClassTexts(Oracle(), NAMES, prompts).similarities(images)
    each = [token_similarity(images, *Oracle().encode_text([p.format(n) for n in NAMES])) for p in prompts]
    np.testing.assert_allclose(s_i, np.mean([np.asarray(s[0]) for s in each], axis=0), atol=1e-6)
    np.testing.assert_allclose(s_t, np.mean([np.asarray(s[1]) for s in each], axis=0), atol=1e-6)
    model = Oracle("global")
    pooled = model.encode_image([picture(*range(n, n + 9)) for n in range(4)])
    s_i, s_t = zero_shot.ClassTexts(model, NAMES, prompts).similarities(pooled)
    mean = np.mean([model.encode_text([p.format(n) for n in NAMES])[0] for p in prompts], axis=0)
    np.testing.assert_allclose(s_i, pooled[:, 0] @ unit(mean)[:, 0].T, atol=1e-6)
    np.testing.assert_allclose(s_i, s_t, atol=1e-6)
    assert np.abs(unit(mean) - mean).max() > 1e-3


def test_zero_shot_accuracy_by_both_rules():
    metrics = zero_shot.evaluate(Oracle(), Scenes(), Path(), prompts=("{}",))
    images = Oracle().encode_image([Scenes()[n].image for n in range(10)])
    s_i, s_t = zero_shot.ClassTexts(Oracle(), Scenes.class_names, ("{}",)).similarities(images)
    labels = [Scenes()[n].label for n in range(10)]
    assert metrics["image_to_text_top1"] == np.mean(
        [(s_i[n] >= s_i[n, c] - 1e-6).sum() == 1 for n, c in enumerate(labels)]
    )
    assert metrics["text_to_image_top1"] == np.mean(
        [(s_t[n] >= s_t[n, c] - 1e-6).sum() == 1 for n, c in enumerate(labels)]
    )
    assert metrics["image_to_text_top5"] == 1.0
    right = {c: [(s_i[n] >= s_i[n, c] - 1e-6).sum() == 1 for n in range(10) if labels[n] == c] for c in set(labels)}
    assert metrics["image_to_text_per_class"] == pytest.approx(np.mean([np.mean(hits) for hits in right.values()]))
    assert metrics["image_to_text_top1_low"] <= metrics["image_to_text_top1"] <= metrics["image_to_text_top1_high"]
    assert zero_shot.baselines(Scenes(), prompts=("{}",))["chance"]["image_to_text_top1"] == 0.2

    class Unlabelled(Scenes):
        def __getitem__(self, index):
            return Record("0", picture(*range(9)), (Caption("a caption"),))

    with pytest.raises(UserError, match="labelled images; record 0 has no label"):
        zero_shot.evaluate(Oracle(), Unlabelled(), Path(), prompts=("{}",))


def test_images_in_chunks_give_the_same_numbers(monkeypatch):
    whole = zero_shot.evaluate(Oracle(), Scenes(), Path(), prompts=("{}", "a {}"))
    monkeypatch.setattr(zero_shot, "IMAGES", 3)
    assert zero_shot.evaluate(Oracle(), Scenes(), Path(), prompts=("{}", "a {}")) == whole


def test_prompts_are_templates_a_file_or_combinations(tmp_path):
    assert make_prompts(("a {}", "{}")) == ["a {}", "{}"]
    (tmp_path / "templates.txt").write_text("a photo of a {}.\n\n  art of the {}.\n")
    assert make_prompts(str(tmp_path / "templates.txt")) == ["a photo of a {}.", "art of the {}."]
    parts = dict(prefixes=("a photo of a", ""), descriptions=("a type of pet", ""), suffixes=("I like it.", ""))
    assert make_prompts(parts) == [
        "a photo of a {}, a type of pet. I like it.", "a photo of a {}, a type of pet.", "a photo of a {}. I like it.",
        "a photo of a {}.", "{}, a type of pet. I like it.", "{}, a type of pet.", "{}. I like it.", "{}.",
    ]  # fmt: skip
    for wrong, message in (
        ((), "no prompts"),
        (
            dict(prefixes=("a",) * 300, suffixes=("b",) * 300),
            "make 90000 templates; give parts that make at most 65536",
        ),
        (("a photo",), "the prompt 'a photo' has no {}"),
        ((3,), "the prompt 3 has no {}"),
        (str(tmp_path / "none.txt"), "zero_shot.prompts='.*none.txt': the file cannot be read"),
        (dict(prefix="a"), "prompts have no prefix; their parts are prefixes, descriptions, suffixes"),
        (dict(prefixes="a photo of"), "prompts.prefixes='a photo of' is not a list"),
    ):
        with pytest.raises(UserError, match=message):
            make_prompts(wrong)


def test_pointing_finds_what_the_oracle_knows():
    found = localisation.evaluate(Oracle(), Scenes(), Path(), examples=10)
    assert (found["pointing_accuracy"], found["phrases"], found["phrases_left_out"]) == (1.0, 20, 0)
    assert localisation.baselines(Scenes(), examples=10)["chance"]["pointing_accuracy"] == pytest.approx(1 / 9)

    class Wrong(Oracle):
        def encode_text(self, texts, pooling=None):
            return super().encode_text([" ".join(reversed(text.split())) for text in texts], pooling)

    assert localisation.evaluate(Wrong(), Scenes(), Path(), examples=10)["pointing_accuracy"] == 0.0


def test_an_alignment_names_words_and_patches():
    record = Scenes()[1]
    (alignment,) = align(Oracle(), [record.image], [record.caption])
    assert [record.caption[start:end] for start, end in alignment.words] == ["cat", "sun"]
    assert alignment.similarity.shape == (2, 3, 3)
    assert alignment.chosen[0, 1] == 0 and alignment.chosen[2, 1] == 1
    long = " ".join(["word"] * 20)
    assert len(align(Oracle(), [record.image], [long])[0].words) == 6  # the rest is beyond the context
    assert [("a red dog's tail, up")[s:e] for s, e in content_words("a red dog's tail, up")] == [
        "red",
        "dog's",
        "tail",
        "up",
    ]


def test_the_pixel_neighbour_knows_identical_pictures():
    records = list(views(Scenes(), 10, pixels.SIZE, pixels.AHEAD))
    assert pixels.pixel_distances(records, records[::-1]).argmin(axis=1).tolist() == list(range(9, -1, -1))


def test_a_view_goes_to_the_tower_as_it_is_and_all_else_is_cropped():
    rng = np.random.default_rng(0)
    for shape in ((12, 12, 3), (12, 13, 3), (24, 24, 3), (5, 12, 3)):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        (found,) = Oracle().views([image])
        assert np.array_equal(found, centre_view(Image.fromarray(image), 12))
        assert np.array_equal(found, image) == (shape == (12, 12, 3))


def test_baselines_of_a_config_and_their_files(tmp_path, small_demo):
    evals = open_evals(small_demo["evals"])
    baselines = run_baselines(evals)
    assert baselines["chance"]["val/image_to_text_R@1"] == 1 / 32
    assert 0.1 < baselines["chance"]["pointing/pointing_accuracy"] < 0.2
    assert 0 <= baselines[pixels.NAME]["unseen_cells/image_to_text_top5"] <= 1
    record_step(tmp_path, 5, {"a/b": 1.0, "eval/e/error": "no memory"}, {"a": {"task": "1"}, "e": {"task": "2"}})
    record_step(tmp_path, 5, {"c/d": 2.0}, {"c": {"task": "3"}})
    record_baselines(tmp_path, {"chance": {"other/x": 0.5}}, {"other": "4"})
    record_baselines(tmp_path, baselines, {"val": "5"})
    results = json.loads((tmp_path / "evals.json").read_text())
    assert results["steps"] == {"5": {"a/b": 1.0, "eval/e/error": "no memory", "c/d": 2.0}}
    assert results == read_results(tmp_path) and results["baseline_tasks"] == {"other": "4", "val": "5"}
    assert (
        recorded(tmp_path, 5, "a", {"task": "1"}) == {"a/b": 1.0} and recorded(tmp_path, 5, "e", {"task": "2"}) is None
    )
    assert recorded(tmp_path, 5, "a", {"task": "9"}) is None and recorded(tmp_path, 4, "a", {"task": "1"}) is None
    record_step(tmp_path, 5, {"a/x": 3.0, "e/f": 1.0}, {})  # by somebody who does not say what was evaluated
    assert recorded(tmp_path, 5, "a", {"task": "1"}) is None and recorded(tmp_path, 5, "c", {"task": "3"}) == {
        "c/d": 2.0
    }
    assert read_results(tmp_path)["steps"] == {"5": {"c/d": 2.0, "a/x": 3.0, "e/f": 1.0}}
    assert results["baselines"].pop("chance") == baselines.pop("chance") | {"other/x": 0.5}
    assert results["baselines"] == baselines
    record_step(tmp_path, 7, {"a/b": 3.0}, {"a": {"task": "1"}})
    forget_after(tmp_path, 6)
    assert list(read_results(tmp_path)["steps"]) == list(read_results(tmp_path)["tasks"]) == ["5"]


@pytest.mark.parametrize("wrong", [
    {"steps": {"x": {}}}, {"steps": []}, {"steps": {"1": 2}}, {"tasks": {"1": {"a": "b"}}}, {"tasks": {"-1": {}}},
    {"baselines": {"chance": 1}}, {"baseline_tasks": {"val": {}}},
], ids=str)  # fmt: skip
def test_results_that_somebody_else_wrote_are_left_out_and_set_aside(tmp_path, wrong):
    file = tmp_path / "evals.json"
    file.write_text(json.dumps({"steps": {"4": {"val/x": 1.0}}, "baselines": {}} | wrong))
    with pytest.warns(UserWarning, match="evals.json: left out, since it is not as it was written: "):
        before = read_results(tmp_path)["steps"]
    assert before == ({} if "steps" in wrong else {"4": {"val/x": 1.0}})
    with pytest.warns(UserWarning, match="as it was it is now .*damaged_evals.json"):
        forget_after(tmp_path, 5)
    assert read_results(tmp_path)["steps"] == before
    assert json.loads((tmp_path / "damaged_evals.json").read_text()).items() >= wrong.items()


def test_numbers_that_are_none_are_written_as_texts(tmp_path):
    record_step(tmp_path, 1, {"val/a": math.nan, "val/b": -math.inf, "val/c": np.float32(0.5), "val/d": 1e300}, {})
    assert "NaN" not in (tmp_path / "evals.json").read_text()
    numbers = read_results(tmp_path)["steps"]["1"]
    assert numbers["val/a"] == "nan" and numbers["val/b"] == "-inf" and numbers["val/c"] == 0.5


def test_published_rows_stand_beside_ours():
    assert beside_published({"ours": {"val/image_to_text_R@1": 0.5}}) == ""
    lines = beside_published({
        "a, step 5": {"imagenet/image_to_text_top1": 0.4321, "coco/text_to_image_R@1": 0.25, "coco/pairs": 10}, "b, step 5": {"imagenet/images": 3},
    }).splitlines()  # fmt: skip
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["model", "setting", "imagenet", "coco:t2i", "source"] and {len(row) for row in cells} == {5}
    rows = {(row[0], row[1]): row[2:] for row in cells[2:]}
    of_large = [row[2:4] for row in cells if row[0] == "FILIP large"]
    assert of_large == [["77.1", ""], ["", "45.9"]]
    assert rows["FILIP (DeCLIP's code)", "ViT-B/32, YFCC15M"][:2] == ["39.5", ""]
    assert rows["a, step 5", "this run"] == ["43.2", "25.0", "measured, coco: 10 images"]
    assert rows["b, step 5", "this run"] == ["", "", "measured, imagenet: 3 images"]


def test_sets_of_uneven_classes_are_compared_by_the_mean_over_the_classes():
    """CLIP_benchmark's numbers of OpenAI's ViT-B/32 on Caltech101: the paper's 87.9 is no top-1."""
    own = {
        "caltech101/image_to_text_top1": 0.8192,
        "caltech101/image_to_text_per_class": 0.8787,
        "dtd/image_to_text_top1": 0.44,
    }
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in beside_published({"it": own}).splitlines()
    ]
    assert lines[0] == ["model", "setting", "caltech101, per class", "dtd", "source"]
    assert lines[2][2] == lines[-1][2] == "87.9" and lines[-1][3] == "44.0"


def test_published_averages_are_those_of_the_papers():
    """Of the twelve sets, which is why the rows are believed: 65.3, 70.9, 75.3 and 78.3."""
    means = [np.mean(list(numbers.values())) for *_, numbers in published() if len(numbers) == 12]
    assert means == pytest.approx([65.3, 70.9, 75.3, 78.3], abs=0.06)
    assert all(setting and source for _, setting, source, _ in published())
    sets = runpy.run_path(str(ROOT / "configs/eval/clip_benchmark.py"))["SETS"]
    assert {task for *_, numbers in published() for task in numbers if ":" not in task} == set(sets)


def test_results_in_the_form_of_clip_benchmark(tmp_path):
    classified = zero_shot.evaluate(Oracle(), Scenes(), Path(), prompts=("{}",))
    found = retrieval.evaluate(Oracle(), Several(), Path(), examples=10, captions=0)
    metrics = {f"cifar10/{key}": value for key, value in classified.items()}
    metrics |= {f"coco/{key}": value for key, value in found.items()}
    metrics |= {"pets/top1": 0.5, "pets/top5": 0.75, "pets/per_class": 0.25, "pets/top1_low": 0.4}
    kinds = (("cifar10", zero_shot), ("coco", retrieval), ("boxes", localisation), ("pets", linear_probe))
    for name, kind in kinds:
        write_results(tmp_path, "runs/base", 7, name, kind, metrics, {"task": "12"})
    files = {file.name: json.loads(file.read_text()) for file in (tmp_path / "clip_benchmark").iterdir()}
    assert files["cifar10_step_7.json"] == {
        "dataset": "cifar10", "model": "runs/base", "pretrained": "step_7", "task": "zeroshot_classification",
        "metrics": {
            "acc1": classified["image_to_text_top1"], "acc5": classified["image_to_text_top5"],
            "mean_per_class_recall": classified["image_to_text_per_class"],
        },
        "sha256": {"task": "12"},
    }  # fmt: skip
    result = files["coco_step_7.json"]
    assert result["task"] == "zeroshot_retrieval" and len(result["metrics"]) == 6 and len(files) == 3
    probe = files["pets_step_7.json"]
    assert probe["task"] == "linear_probe"
    assert probe["metrics"] == {"lp_acc1": 0.5, "lp_acc5": 0.75, "lp_mean_per_class_recall": 0.25}
    assert result["metrics"]["image_retrieval_recall@5"] == found["text_to_image_R@5"]
    assert result["metrics"]["text_retrieval_recall@1"] == found["image_to_text_R@1"]


@pytest.mark.parametrize(
    "section, message",
    [
        ({"kind": "retrival", "source": {}}, "evals.x.kind='retrival' is not one of retrieval, zero_shot"),
        (
            {"kind": "retrieval", "source": {"split": "val"}, "examples": 3},
            "evals.x.source.name='' is not one of emoji_scenes",
        ),
        ({"source": {}}, "evals.x.kind='' is not one of retrieval"),
        (
            {"kind": "retrieval", "source": {"name": "folder", "path": ""}, "examples": 3, "exmples": 3},
            "'exmples'; its keys are source, examples",
        ),
    ],
)
def test_an_evaluation_that_can_not_be_is_refused(section, message):
    with pytest.raises(UserError, match=message):
        open_evals({"x": section})


def test_the_table_lines_up_and_shows_intervals():
    text = table({"ours": {"a": 0.5, "a_low": 0.25, "a_high": 0.75, "n": 12}, "chance": {"a": 0.00012}})
    assert text.splitlines()[2:] == ["| a | 0.500 [0.250, 0.750] | 1.2e-04 |", "| n | 12                   |         |"]
    assert len({len(line) for line in text.splitlines()}) == 1


def test_words_of_scripts_without_spaces_are_characters():
    text = "一只 dog's 🐶, a the!"
    assert [text[slice(*word)] for word in content_words(text)] == ["一", "只", "dog's", "🐶"]
