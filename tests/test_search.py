"""Searching features: the definition's scores in blocks of any size, R@k of `filip eval`, two stages, threads, and every mistake in one line."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from tempfile import TemporaryDirectory

import jax
import numpy as np
import pytest
from conftest import examples
from feature_files import fields_of, manifest_of, write_features
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_evals import Oracle, Scenes, Words, word_number

from filip_jax import cli_search, inference
from filip_jax.cli import main
from filip_jax.data.record import BadRecord
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError
from filip_jax.evals import retrieval
from filip_jax.evals.results import read_results
from filip_jax.features import Features, FeatureWriter, open_features
from filip_jax.inference.ranking import Ranking
from filip_jax.losses import token_similarity
from filip_jax.saved_config import read_config
from filip_jax.search import pictures, scan
from filip_jax.search.check import captions, check, sampled
from filip_jax.search.embed import embed
from filip_jax.search.explain import explain, patch_tokens
from filip_jax.search.index import MAX_CANDIDATES, MAX_TOP, Index, Query, open_index
from filip_jax.search.sheet import GAP, HEAD, LINE, SIDE, draw_sheet

TOLERANCE = 1e-6  # beside the stored numbers, as they are read back


class Knowing(Words):
    def knows(self, text):
        text.encode()  # as sentencepiece, which takes no halves of characters
        return text != "xyzzy"


class Model(Oracle):
    tokenizer, origin = Knowing(), {}


def definition(tokens, mask, query):
    """(to_row, to_query) of one query with all rows, in float64, pair by pair."""
    query = query.astype(np.float64)
    found = []
    for of_row, there in zip(tokens.astype(np.float64), mask):
        similarity = query @ of_row[there].T
        found.append((similarity.max(axis=1).mean(), similarity.max(axis=0).mean()))
    return np.array(found).T


def queries(rng, count, dimension=8, most=16):
    lengths = rng.integers(1, most + 1, count)
    tokens = [rng.normal(size=(length, dimension)) for length in lengths]
    return [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in tokens]


@pytest.fixture
def scenes(tmp_path):
    """(a model, the index of its images, that of its texts) of `Scenes`."""
    model, source = Model(), Scenes()
    records = [source[n] for n in range(len(source))]
    tokens = model.encode_image([record.image for record in records])
    words, mask = model.encode_text([record.captions[0].text for record in records])
    fields = [dict(key=record.key, index=n, width=600 + n, height=12, caption=record.captions[0].text)
              for n, record in enumerate(records)]  # fmt: skip
    sides = {"image": (tokens, np.ones(tokens.shape[:2], bool)), "text": (words, mask)}
    for side, (of_side, there) in sides.items():
        manifest = manifest_of(side=side, grid=(3, 3), dimension=16, model={}, text_length=8)
        with FeatureWriter(tmp_path / side, manifest) as writer:
            writer.add(of_side, there, fields)
    return model, open_index(tmp_path / "image"), open_index(tmp_path / "text")


@examples(60)
@given(
    st.sampled_from([1, 5, 30]), st.sampled_from(["image", "text"]), st.sampled_from(["float32", "float16", "int8"]),
    st.sampled_from([1, 5, 100]), st.booleans(), st.integers(0, 2**16),
)  # fmt: skip
def test_hits_are_those_of_the_definition(rows, side, dtype, top, like, seed):
    rng = np.random.default_rng(seed)
    removed = np.flatnonzero(rng.random(rows) < 0.2)[: rows - 1]
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        for name in ("BLOCK_BYTES", "LARGE_BLOCK_BYTES"):
            patch.setattr(scan, name, int(rng.choice([1, 1 << 24])))
        patch.setattr(scan, "TILE_BYTES", {"cpu": 1})
        patch.setattr(scan, "ROWS_AT_ONCE", 3)
        patch.setattr(scan, "MAX_SIMILARITY_BYTES", int(rng.choice([1, 1 << 24])))
        patch.setattr(scan, "MAX_QUERIES", 2)
        features = write_features(folder, rows, part=7, removed=removed, seed=seed, side=side, dtype=dtype)
        index = Index(features, "exact")
        asked = [index.query(tokens=each) for each in queries(rng, 3, most=8)]
        asked = [type(each)(each.tokens, side if like else each.side) for each in asked]
        found = index.search_all(asked, top=top)
        live = features.live.nonzero()[0]
        tokens, mask = features.tokens(live)
        for query, hits in zip(asked, found):
            to_row, to_query = definition(tokens, mask, query.tokens)
            right = (to_row + to_query) / 2 if like else to_row
            assert len(hits) == min(top, len(live)) and {hit.row for hit in hits} <= set(live.tolist())
            places = np.searchsorted(live, [hit.row for hit in hits])
            np.testing.assert_allclose([hit.score for hit in hits], right[places], atol=TOLERANCE)
            np.testing.assert_allclose([hit.score for hit in hits], np.sort(right)[::-1][:top], atol=TOLERANCE)
            images, texts = (to_query, to_row) if side == "image" else (to_row, to_query)
            np.testing.assert_allclose([hit.image_to_text for hit in hits], images[places], atol=TOLERANCE)
            np.testing.assert_allclose([hit.text_to_image for hit in hits], texts[places], atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_of_equal_rows_the_first_are_taken(tmp_path, dtype):
    manifest = manifest_of(dtype=dtype)
    tokens = np.broadcast_to(np.eye(8, dtype=np.float32)[:2], (20, 2, 8))
    with FeatureWriter(tmp_path, manifest) as writer:
        for first in range(0, 20, 5):
            writer.add(tokens[:5], np.ones((5, 2), bool), fields_of(5, first))
            writer.flush()
        writer.flush(lambda now: now.with_removed(np.array([1])))
    hits = open_index(tmp_path).search(tokens=np.eye(8)[:3], top=7)
    assert [hit.row for hit in hits] == [0, 2, 3, 4, 5, 6, 7]


def test_scores_are_those_of_token_similarity(scenes):
    model, images, _ = scenes
    tokens, _ = images.features.tokens(range(10))
    words, mask = model.encode_text(["a cat by the sea"])
    image_to_text, text_to_image = (np.asarray(x)[:, 0] for x in token_similarity(tokens, words, mask))
    hits = sorted(images.search(model, text="a cat by the sea"), key=lambda hit: hit.row)
    np.testing.assert_allclose([hit.image_to_text for hit in hits], image_to_text, atol=1e-6)
    np.testing.assert_allclose([hit.text_to_image for hit in hits], text_to_image, atol=1e-6)
    np.testing.assert_allclose([hit.score for hit in hits], text_to_image, atol=1e-6)


@pytest.mark.parametrize("candidates", [None, 10])
def test_search_gives_the_recall_of_the_evaluation(scenes, tmp_path, candidates):
    model, images, texts = scenes
    expected = retrieval.evaluate(model, Scenes(), tmp_path, examples=10)
    names = [f"{way}_R@{k}" for way in ("image_to_text", "text_to_image") for k in retrieval.RANKS]
    assert recalls(model, images, texts, Scenes(), candidates) == {name: expected[name] for name in names}


def recalls(model, images, texts, source, candidates=None):
    """R@k both ways by searches for each text among the images, and each image among the texts."""
    records = [source[n] for n in range(len(source))]
    found = {}
    for way, index, asked in (
        ("image_to_text", texts, [texts.query(model, image=record.image) for record in records]),
        ("text_to_image", images, [images.query(model, text=record.captions[0].text) for record in records]),
    ):
        ranking = Ranking(np.stack([np.arange(len(records))] * 2, axis=1), len(records), len(records), ranks=10)
        for n, hits in enumerate(index.search_all(asked, top=len(records), candidates=candidates)):
            ranking.add(
                np.array([n]), np.array([hit.row for hit in hits]), np.array([[hit.score for hit in hits]], np.float32)
            )
        found |= {f"{way}_R@{k}": ranking.recall(k) for k in retrieval.RANKS}
    return found


def test_two_stages_find_the_best_of_the_nearest_pooled(tmp_path):
    features = write_features(tmp_path / "index", 60)
    index = Index(features, "exact")
    (query,) = queries(np.random.default_rng(0), 1)
    whole = index.search(tokens=query, top=60)
    mean = query.mean(axis=0) / np.linalg.norm(query.mean(axis=0))
    near = set(np.argsort(-(features.pooled(range(60)) @ mean), kind="stable")[:20].tolist())
    assert [hit.row for hit in index.search(tokens=query, top=5, candidates=20)] == [
        hit.row for hit in whole if hit.row in near
    ][:5]
    assert index.search(tokens=query, top=60, candidates=60) == whole
    assert len(index.search(tokens=query, top=7, candidates=1)) == 7  # as many as are asked for
    with_all = check(index, index, sampled(index, 5), candidates=100)
    assert with_all.recall == {10: 1.0, 100: 1.0} and with_all.queries == 5
    few, asked = check(index, index, sampled(index, 5), candidates=20), sampled(index, 5)
    shares = [
        len({hit.row for hit in right} & {hit.row for hit in fast}) / 10
        for right, fast in zip(index.search_all(asked, top=10), index.search_all(asked, top=10, candidates=20))
    ]
    assert few.recall == {10: pytest.approx(np.mean(shares))} and np.mean(shares) < 1  # 20 cannot hold the best 100
    with pytest.raises(UserError, match="candidates=9 must be 10 or more"):
        check(index, index, asked, candidates=9)


def test_filters_hold_before_the_best_are_taken(scenes):
    model, images, _ = scenes
    whole = images.search(model, text="cat dog")
    some = images.search(model, text="cat dog", top=3, where='width >= 603 and not caption contains "dog"')
    assert some == [hit for hit in whole if hit.width >= 603 and "dog" not in hit.caption][:3]
    assert some == images.search(
        model, text="cat dog", top=3, where='width >= 603 and not caption contains "dog"', candidates=10
    )
    assert images.search(model, text="cat dog", where="width < 0") == []


def test_threads_share_an_index(tmp_path):
    index = Index(write_features(tmp_path / "index", 50), "exact")
    asked = queries(np.random.default_rng(1), 24)
    one_by_one = [index.search(tokens=each, top=7) for each in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda each: index.search(tokens=each, top=7), asked)) == one_by_one


@pytest.mark.parametrize(
    "grid, dimension, dtype", [((7, 7), 256, "float16"), ((64, 64), 1024, "float32"), ((180, 180), 65536, "float32")]
)
def test_blocks_stay_small_whatever_a_folder_holds(grid, dimension, dtype):
    class Many(Features):
        manifest = manifest_of(grid=grid, dimension=dimension, dtype=dtype)

        def __init__(self):
            pass

        def __len__(self):
            return 10**9

    size, one = scan.block_rows(Many()), Many.manifest.max_tokens * dimension * np.dtype(dtype).itemsize
    most = scan.LARGE_BLOCK_BYTES if dtype == "float32" else scan.BLOCK_BYTES
    assert size == scan.MIN_ROWS or size * one <= most
    assert size == scan.MAX_ROWS or 2 * size * one > most


def test_tiles_stay_small_however_many_tokens_a_query_has():
    for shape, words in (((4096, 50, 256), 16), ((4096, 577, 64), 16 * 584), ((512, 577, 768), 16 * 584)):
        rows, tokens, dimension = shape
        tile = scan.tile_rows(shape, words)
        assert rows % tile == 0
        assert tile == scan.MIN_ROWS or tile * tokens * max(dimension, words) * 4 <= scan.TILE_BYTES["cpu"]


def test_all_devices_take_turns(tmp_path, monkeypatch):
    features = write_features(tmp_path / "index", 50, part=10, dtype="float16")
    asked = queries(np.random.default_rng(1), 2)
    expected = scan.best_rows(features, asked, 7, allowed=features.live)
    monkeypatch.setattr(scan, "block_rows", lambda _: 8)
    devices, block, used = jax.local_devices()[:2], scan._block, []

    def watched(*arguments, **options):
        scores = block(*arguments, **options)
        used.append(*scores[0].devices())
        return scores

    monkeypatch.setattr(scan, "_block", watched)
    monkeypatch.setattr(scan, "devices_of_blocks", lambda: devices)
    for rows, right in zip(scan.best_rows(features, asked, 7, allowed=features.live), expected):
        np.testing.assert_array_equal(rows, right)
    assert {*used} == {*devices} and len(devices) == 2


@pytest.mark.parametrize(
    "value, dtype", [(np.nan, "float32"), (np.inf, "float32"), (-np.inf, "float32"), (np.inf, "float16")]
)
def test_a_row_whose_tokens_hold_no_numbers_is_never_found(tmp_path, value, dtype):
    features = write_features(tmp_path / "index", 9, dtype=dtype)
    numbers = features.stored([4])[0][0, 3].tobytes()
    part = tmp_path / "index/parts" / features.manifest.parts[1].name
    data = part.read_bytes()
    assert data.count(numbers) == 1
    part.write_bytes(data.replace(numbers, np.full(8, value, dtype).tobytes()))
    index = open_index(tmp_path / "index")
    for query in (*queries(np.random.default_rng(0), 2), np.full((3, 8), 0.35, np.float32)):
        for asked in (index.query(tokens=query), Query(query, "image")):
            (hits,) = index.search_all([asked], top=9)
            assert {hit.row for hit in hits} == set(range(9)) - {4}
            json.dumps([dataclasses.asdict(hit) for hit in hits], allow_nan=False)
            assert len(index.search_all([asked], top=3)[0]) == 3
            (two_stages,) = index.search_all([asked], top=9, candidates=9)
            assert [hit.row for hit in two_stages] == [hit.row for hit in hits]
    with pytest.raises(UserError, match="row 4 is damaged"):
        patch_tokens(index.features, 4, (0, 3))


def test_patches_that_a_word_matches(scenes):
    model, images, _ = scenes
    source = Scenes()
    found = explain(model, "cat dog", images.features, [0, 5])
    assert found[0].words == ["cat", "dog"] and found[0].spans == [(0, 3), (4, 7)]
    grid = source[0].image[::4, ::4, 0]
    for number, word in enumerate(["cat", "dog"]):
        row, column = found[0].best_patch(number)
        assert grid[row, column] == word_number(word)
        assert found[0].similarity[:, row, column].argmax() == number
        # A search by that patch alone finds the pictures that have it.
        hits = images.search(tokens=patch_tokens(images.features, 0, (row, column)), top=10)
        shown = [n for n in range(10) if word in source[n].captions[0].text]
        assert {hit.row for hit in hits[: len(shown)]} == set(shown)
    with pytest.raises(UserError, match="has no patch 3,0; its grid is"):
        patch_tokens(images.features, 0, (3, 0))


def test_patches_that_a_reduction_dropped_are_no_number(tmp_path):
    manifest = manifest_of(grid=(2, 2), dimension=16, model={})
    model = Model()
    words = model.encode_text(["cat"])[0][0]
    with FeatureWriter(tmp_path / "index", manifest) as writer:
        writer.add(words[None, 1:3], np.ones((1, 2), bool), [{"key": "a"}], positions=np.array([[3, 1]], np.int16))
    (found,) = explain(model, "cat", open_features(tmp_path / "index"), [0])
    assert np.isnan(found.similarity[0]).tolist() == [[True, False], [True, False]] and found.best_patch(0) == (1, 1)
    with pytest.raises(UserError, match="token of the patch in row 1, column 1: choose another"):
        patch_tokens(open_features(tmp_path / "index"), 0, (0, 0))


def test_a_sheet_shows_each_hit_and_each_word(scenes):
    model, images, _ = scenes
    hits = images.search(model, text="cat dog", top=3)
    source = Scenes()
    views = {hit.row: source[hit.row].image for hit in hits[:2]}
    page = draw_sheet(model, "cat dog", images.features, hits, views.get)
    taller = draw_sheet(model, "cat dog", images.features, hits[:2], views.get)
    assert page.width == taller.width and page.height > taller.height
    assert draw_sheet(model, "cat dog", images.features, [], views.get).height < taller.height


def test_the_maps_of_a_word_on_a_sheet_are_on_one_scale(scenes):
    model, images, _ = scenes
    hits = [*images.search(model, text="sun", top=1), *images.search(model, text="sun", where="index = 0")]
    page = np.asarray(draw_sheet(model, "sun", images.features, hits, lambda row: Scenes()[row].image))
    left, tops = 2 * GAP + SIDE, (HEAD, HEAD + SIDE + LINE + GAP)
    with_it, without_it = (page[top : top + SIDE, left : left + SIDE].astype(int).sum(axis=2) for top in tops)
    assert np.quantile(without_it, 0.95) < np.quantile(with_it, 0.95) - 100


@pytest.mark.parametrize(
    "asked, said",
    [
        (dict(), "search for one thing"),
        (dict(text="cat", image="a.png"), "search for one thing"),
        (dict(text="a \ud800"), "text 0 is not valid Unicode"),
        (dict(text=" "), "text 0 is empty"),
        (dict(text="xyzzy"), "the model's vocabulary knows no word of 'xyzzy'"),
        (dict(text="cat", top=0), "top=0 must be from 1 to"),
        (dict(text="cat", top=MAX_TOP + 1), "must be from 1 to"),
        (dict(text="cat", candidates=MAX_CANDIDATES + 1), "must be from 1 to"),
        (dict(text="cat", candidates=0), "candidates=0 must be"),
        (dict(text="cat", where="width = 1e3"), "at character 9: a number is written as"),
        (dict(text="cat", where="widht > 3"), "did you mean width"),
        (dict(tokens=np.ones((2, 3), np.float32)), r"\[t, 16\], but not \[2, 3\]"),
        (dict(tokens=np.full((2, 16), np.nan)), "not finite"),
        (dict(tokens=np.ones((0, 16))), "but not"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(scenes, asked, said):
    model, images, _ = scenes
    with pytest.raises(UserError, match=said):
        images.search(model, **asked)


def test_another_model_is_refused_by_its_hash(tmp_path):
    model = Model()
    index = Index(write_features(tmp_path / "index", 3, dimension=16), "exact")
    model.origin = {**index.features.manifest.model, "checkpoint": 64 * "e"}
    with pytest.raises(UserError, match="is of another model: the model's checkpoint bbbbbbbbbbbb…, not eeeeeeeeeeee…"):
        index.search(model, text="cat")
    model.origin = {**model.origin, "config": 64 * "f", "step": 13}  # of another run, not of another step
    with pytest.raises(UserError, match="the model's config aaaaaaaaaaaa…, not ffffffffffff…"):
        index.search(model, text="cat")
    model.origin = dict(index.features.manifest.model)
    assert len(index.search(model, text="cat")) == 3


def test_a_source_of_a_stranger_is_one_line(tmp_path):
    section = {"name": "folder", "path": str(tmp_path), "caption_keys": None}
    features = write_features(tmp_path / "index", 1, source={"section": section})
    with pytest.raises(UserError, match="caption_keys=None is not a list of names"):
        pictures.open_pictures(features)


def test_pictures_that_moved_are_one_line(tmp_path):
    features = write_features(tmp_path / "index", 1, source={"section": {"name": "folder", "path": "/none"}})
    with pytest.raises(UserError, match="index: source: folder: path='/none' is not a folder. If they .* --moved"):
        pictures.open_pictures(features)


def test_texts_need_no_pictures(tmp_path):
    source = {"section": {"name": "folder", "path": "/none"}}
    picture = pictures.open_pictures(write_features(tmp_path / "index", 1, side="text", source=source))
    with pytest.raises(BadRecord, match="row 0 is a text"):
        picture(0)


@pytest.mark.parametrize(
    "name, options",
    [("neighbors", {"size": "2"}), ("neighbors", {}), ("select", {"keep": 0}), ("unchosen", {"a": 1}), ("neighbors", {"size": 2.0}),
     ("neigbors", {})],
)  # fmt: skip
def test_reductions_of_a_stranger_are_one_line(tmp_path, name, options):
    with pytest.raises(UserError, match=f"a reduction {name} with"):
        Index(
            write_features(tmp_path / "index", 1, reductions=({"name": name, "options": options, "losses": {}},)),
            "exact",
        )


def test_an_empty_index_is_said(tmp_path):
    with FeatureWriter(tmp_path / "index", manifest_of()):
        pass
    for index in (
        open_index(tmp_path / "index"),
        Index(write_features(tmp_path / "other", 2, removed=[0, 1]), "exact"),
    ):
        with pytest.raises(UserError, match="has no rows to search"):
            index.search(tokens=np.ones((1, 8), np.float32))


def test_the_commands(scenes, tmp_path, capsys, monkeypatch):
    model, images, _ = scenes
    folder = str(images.features.folder)
    monkeypatch.setattr(inference, "load_model", lambda workdir, step=None: model)
    common = ["search", "--workdir=runs/x", f"--index={folder}"]
    assert main([*common, "--text=cat dog", "--top=2", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    hits = images.search(model, text="cat dog", top=2)
    assert [line["row"] for line in lines] == [hit.row for hit in hits] and [line["rank"] for line in lines] == [1, 2]
    assert lines[0].keys() >= {"key", "shard", "index", "image_to_text", "text_to_image", "pooled"}
    assert main([*common, "--text=cat dog", "--top=2"]) == 0
    assert "| rank | " in (out := capsys.readouterr().out) and hits[0].key in out
    batch = tmp_path / "queries.jsonl"
    batch.write_text('{"text": "cat dog", "id": "a"}\n\n{"text": "sun"}\n')
    assert main([*common, f"--batch={batch}", "--top=1", "--json"]) == 0
    assert [json.loads(line)["query"] for line in capsys.readouterr().out.splitlines()] == ["a", 3]
    queries = [{"text": "cat dog", "id": "a"}, {"text": "xyzzy"}, {"text": "sun"}]
    monkeypatch.setattr(model.tokenizer, "knows", lambda text: text != "xyzzy", raising=False)
    batch.write_text("\n".join(map(json.dumps, queries)))
    assert main([*common, f"--batch={batch}", "--top=1", "--json"]) == 2
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [(line["query"], "error" in line) for line in lines] == [("a", False), (2, True), (3, False)]
    assert "knows no word of" in lines[1]["error"]
    assert "1 of 3 queries cannot be searched" in said.err and said.err.count("\n") == 1
    assert main([*common, f"--batch={batch}", "--top=1"]) == 2
    assert capsys.readouterr().out.count("| rank |") == 2
    monkeypatch.setattr(model, "encode_image", lambda images, pooling=None: next(model.views(images)))
    missing = f"{tmp_path}/no.png"
    batch.write_text(json.dumps({"image": missing}))
    assert main([*common, f"--batch={batch}"]) == 2
    assert capsys.readouterr().out.startswith(f"{missing}: [Errno 2]")  # named once
    assert main([*common, f"--image={missing}"]) == 2
    assert capsys.readouterr().err.startswith(f"filip: error: {missing}: [Errno 2]")
    assert main(["index", "inspect", f"--index={folder}", "--verify"]) == 0
    assert "10 rows of images" in (out := capsys.readouterr().out) and "as it was written" in out
    assert main(["index", "check", f"--index={folder}", "--candidates=10", "--queries=4", "--workdir=x"]) == 0
    assert "4 queries (captions)" in (out := capsys.readouterr().out) and "recall@10 1.0000" in out
    assert main(["index", "check", f"--index={folder}", "--candidates=10", "--queries=4"]) == 0
    assert "some tokens of a row each" in capsys.readouterr().out
    assert main(["index", "check", f"--index={folder}", "--candidates=10", "--queries=-3"]) == 2
    assert "queries=-3 must be at least 1" in capsys.readouterr().err
    for command, said in (("build", "searches the index itself"), ("check", "--candidates=1000 or --engine=lance")):
        assert main(["index", command, f"--index={folder}"]) == 2
        assert said in capsys.readouterr().err
    assert main(["index", "build", f"--index={folder}", "--engine=lance", "--candidates=3"]) == 2
    assert "unknown argument '--candidates=3'" in capsys.readouterr().err
    monkeypatch.setattr(pictures, "open_pictures", lambda features: lambda row: Image.fromarray(Scenes()[row].image))
    sheet = tmp_path / "new/sheet.png"
    assert main([*common, "--text=cat", "--top=2", "--json", f"--sheet={sheet}"]) == 0
    assert [json.loads(line)["rank"] for line in capsys.readouterr().out.splitlines()] == [1, 2] and sheet.exists()
    assert main([*common, "--text=cat", "--where=width > 90000"]) == 0
    assert capsys.readouterr().out == "no row passes the filter\n"
    for words, said in (
        (["--text=cat", "--engine=exakt"], "did you mean exact"),
        (["--text=cat", "--engine=exact uri=3"], "unexpected keyword argument 'uri'"),
        (["--text=cat", "--engine= "], "--engine names an engine"),
        (["--text=cat", "--top=0", "--step=none"], "top=0 must be from 1"),  # told before the model is loaded
        (["--image=cat.png", "--sheet=a.png"], "--sheet draws the hits of --text"),
        (["--text=cat", "--sheet=a.jpg"], "--sheet draws the hits of --text"),
        (["--text="], "--text is empty"),
        (["--text=\udcff"], "--text is not valid Unicode"),
        (["--text=--"], "--text=--: -- is no value"),
    ):
        assert main([*common, *words]) == 2
        assert said in (error := capsys.readouterr().err) and error.count("\n") == 1
    for content, said in (
        ("{", "line 1 is no JSON"),
        ('{"words": 1}', "line 1 is neither"),
        ("", "has 0 queries"),
        ('{"text": "a"}\n{"text": "\\ud800"}', "text of line 2 is not valid Unicode"),
        ('\n\n{"text": "a"}\n{', "line 4 is no JSON"),
    ):
        batch.write_text(content)
        assert main([*common, f"--batch={batch}"]) == 2
        assert said in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_many_hits_are_held_for_few_queries_at_once(scenes, tmp_path, monkeypatch, capsys):
    model, images, _ = scenes
    monkeypatch.setattr(inference, "load_model", lambda workdir, step=None: model)
    monkeypatch.setattr(cli_search, "HITS_AT_ONCE", 7)
    search_all, sizes = Index.search_all, []
    monkeypatch.setattr(
        Index, "search_all", lambda self, asked, **how: sizes.append(len(asked)) or search_all(self, asked, **how)
    )
    (tmp_path / "queries.jsonl").write_text(5 * '{"text": "cat", "id": null}\n')
    words = [
        "search",
        "--workdir=x",
        f"--index={images.features.folder}",
        f"--batch={tmp_path}/queries.jsonl",
        "--top=3",
        "--json",
    ]
    assert main(words) == 0 and sizes == [2, 2, 1]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["query"] for line in lines] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]


def test_rows_that_an_engine_must_not_name_are_no_hits(scenes, monkeypatch):
    """Removed ones and those that a filter leaves out; some engines count both among their neighbors."""
    model, images, _ = scenes
    monkeypatch.setattr(images.engine, "search", lambda tokens, count, tree: range(-1, len(images.features) + 5))
    everything = images.search(model, text="cat dog", candidates=10)
    assert sorted(hit.row for hit in everything) == list(range(10))
    images.features.live[everything[0].row] = False
    assert [hit.row for hit in images.search(model, text="cat dog", candidates=10)] == [
        hit.row for hit in everything[1:]
    ]
    filtered = images.search(model, text="cat dog", where="width > 603", candidates=10)
    assert filtered and {hit.width > 603 for hit in filtered} == {True}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
def test_pooled_vectors_of_a_stranger_give_numbers(scenes, monkeypatch, value):
    model, images, _ = scenes
    vector = np.copysign(np.float32(value), images.query(model, text="cat dog").tokens.mean(axis=0))
    monkeypatch.setattr(images.features, "pooled", lambda rows: np.tile(vector, (len(rows), 1)))
    pooled = [hit.pooled for hit in images.search(model, text="cat dog", top=3)]
    assert np.isfinite(pooled).all() and (np.isfinite(value) or pooled == [0.0] * 3)


def test_captions_are_drawn_from_rows_that_have_one(scenes):
    _, images, _ = scenes
    assert len(set(captions(images, 5))) == 5 and len(captions(images, 50)) == 10


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["exact", "lance"])
def test_searches_of_a_runs_index_give_its_own_recall_to_the_last_digit(finished, tmp_path, engine):
    pytest.importorskip({"exact": "jax", "lance": "lancedb"}[engine])
    section = read_config(finished[0])["evals"]["val"]["source"]
    evaluated = read_results(finished[0])["steps"]["12"]
    sides = [embed(finished[0], section, tmp_path / side, side=side, dtype="float32") for side in ("image", "text")]
    indices = [Index(features, engine) for features in sides]
    for index in indices:
        index.build()
    found = recalls(inference.load_model(finished[0]), *indices, make_source(section))
    assert found == {name: evaluated[f"val/{name}"] for name in found} and len(found) == 6
