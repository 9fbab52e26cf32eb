"""Extended positives: against ECCV Caption's own code on COCO's real keys, and by hand on a few pairs."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_evals import Oracle, Several

from filip_jax.data.record import Caption
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError
from filip_jax.evals import retrieval
from filip_jax.evals.positives import ExtendedRanking, read_positives
from filip_jax.losses import token_similarity
from filip_jax.tools.convert import convert

WAYS = ("image_to_text", "text_to_image")
P, Q = 25_013, 5_003  # the primes that follow the counts of captions and of images


@pytest.fixture(scope="module")
def eccv():
    pytest.importorskip("eccv_caption", exc_type=ImportError)
    with warnings.catch_warnings(action="ignore"):  # that it reads JSON without ujson
        import eccv_caption

        return eccv_caption.Metrics()


def test_numbers_are_those_of_eccv_caption(eccv):
    """Every score of a row is another one, n times a random factor modulo a prime; half of the right ones lead."""
    rng = np.random.default_rng(0)
    images = np.array(sorted(eccv.coco_gts["i2t"]))
    texts = rng.permutation(sorted(eccv.coco_gts["t2i"]))
    assert (len(images), len(texts)) == (5_000, 25_000)
    factor, shift = rng.integers(1, P, len(images), np.int32), rng.integers(0, P, len(images), np.int32)
    factors, shifts = rng.integers(1, Q, len(texts), np.int32), rng.integers(0, Q, len(texts), np.int32)
    image_of, text_of = ({key: n for n, key in enumerate(keys.tolist())} for keys in (images, texts))
    right = [(image_of[i], text_of[t]) for i, keys in eccv.eccv_gts["i2t"].items() for t in keys if t in text_of]
    right += [(image_of[i], text_of[t]) for t, keys in eccv.eccv_gts["t2i"].items() for i in keys]
    ahead = np.zeros((len(images), len(texts)), bool)
    ahead[tuple(np.array(sorted(set(right)))[::2].T)] = True

    def scores(rows, columns):
        lead = ahead[np.ix_(rows, columns)]
        image_to_text = (np.outer(factor[rows], columns) + shift[rows, None]) % P + P * lead
        text_to_image = (np.outer(factors[columns], rows) + shifts[columns, None]).T % Q + Q * lead
        return image_to_text.astype(np.float32), text_to_image.astype(np.float32)

    def first(row):
        most = np.argpartition(-row, 50)[:50]
        return most[np.argsort(-row[most])]

    ours = ExtendedRanking(read_positives("eccv_caption"), list(map(str, images)), list(map(str, texts)))
    best = {"i2t": {}, "t2i": {}}
    every_image, every_text = np.arange(len(images), dtype=np.int32), np.arange(len(texts), dtype=np.int32)
    asked = np.isin(every_image, [image_of[key] for key in eccv.eccv_gts["i2t"]])
    asking = np.array(sorted(text_of[key] for key in eccv.eccv_gts["t2i"]))
    blocks = [(rows, columns) for columns in np.split(every_text, 10) for rows in np.split(every_image[asked], [700])]
    for rows, columns in [*blocks, (every_image[~asked], asking)]:  # what remains is neither asked nor answers
        ours.add(rows, columns, *scores(rows, columns))
    for key in eccv.eccv_gts["i2t"]:
        best["i2t"][key] = texts[first(scores(np.array([image_of[key]]), every_text)[0][0])].tolist()
    for key in eccv.eccv_gts["t2i"]:
        best["t2i"][key] = images[first(scores(every_image, np.array([text_of[key]]))[1][:, 0])].tolist()
    theirs = eccv.eccv_metrics(best, "all")
    names = {"R@1": "eccv_r1", "R-precision": "eccv_rprecision", "mAP@R": "eccv_map_at_r"}
    expected = {f"{way}_extended_{o}": theirs[t][m] for way, m in zip(WAYS, best) for o, t in names.items()}
    assert ours.numbers() == pytest.approx(expected, rel=1e-12)
    assert all(0.2 < value < 0.8 for name, value in expected.items() if "R@1" not in name), expected


class Named(Several):
    """Pictures and texts with names."""

    def captions(self, index):
        return tuple(Caption(caption.text, key=f"{index}.{n}") for n, caption in enumerate(super().captions(index)))


POSITIVES = {
    "image_to_text": {"0": ["0.0", "1.0", "1.1"], "5": ["5.0", "5.1", "5.2"], "7": ["7.1", "4.0"]},
    "text_to_image": {"1.0": [1, 0], "8.2": [8]},
}


def test_positives_of_ones_own(tmp_path):
    """From the definition: the whole gallery sorted for each query that the file lists."""
    file = tmp_path / "positives.json"
    file.write_text(json.dumps(POSITIVES))
    options = dict(examples=10, captions=0)
    metrics = retrieval.evaluate(Oracle(), Named(), Path(), positives=str(file), **options)
    keys = [caption.key for n in range(10) for caption in Named().captions(n)]
    images = Oracle().encode_image([Named()[n].image for n in range(10)])
    both = token_similarity(images, *Oracle().encode_text([c.text for n in range(10) for c in Named().captions(n)]))
    s_i, s_t = (np.asarray(s) for s in both)
    queries = {
        "image_to_text": [(s_i[int(n)], [keys.index(key) for key in right]) for n, right in POSITIVES[WAYS[0]].items()],
        "text_to_image": [(s_t[:, keys.index(key)], right) for key, right in POSITIVES[WAYS[1]].items()],
    }
    for way, of_way in queries.items():
        hits = []
        for row, right in of_way:
            wrong = ~np.isin(np.arange(len(row)), right)
            hits.append(~wrong[np.lexsort((~wrong, -np.round(row, 5)))][: len(right)])  # ties count against it
        expected = {
            "R@1": np.mean([hit[0] for hit in hits]),
            "R-precision": np.mean([hit.mean() for hit in hits]),
            "mAP@R": np.mean([np.sum(hit * np.cumsum(hit) / np.arange(1, len(hit) + 1)) / len(hit) for hit in hits]),
        }
        for name, value in expected.items():
            assert metrics[f"{way}_extended_{name}"] == pytest.approx(value), (way, name)
    assert [metrics[f"{way}_extended_{name}"] for way in WAYS for name in ("R@1", "R-precision")] == pytest.approx(
        [1 / 3, 7 / 18, 1 / 2, 1 / 2]
    )
    assert metrics["image_to_text_extended_mAP@R"] == pytest.approx((2 / 3 + 0 + 1 / 4) / 3)  # 7.1 ties with 7.0
    plain = retrieval.evaluate(Oracle(), Named(), Path(), **options)
    assert plain == {name: value for name, value in metrics.items() if "extended" not in name}
    assert retrieval.baselines(Named(), positives=str(file), **options) == retrieval.baselines(Named(), **options)


@pytest.mark.parametrize(
    "content, examples, message",
    [
        (POSITIVES, 6, "image_to_text names 1 keys that are not among the 6 evaluated, such as '7'"),
        (
            POSITIVES | {"image_to_text": {"1": ["9.9", "8.8", "1.0"]}},
            10,
            "names 2 keys .* the 19 evaluated, such as '9.9'",
        ),
        ({"image_to_text": {}}, 10, "has the keys image_to_text; it needs image_to_text and text_to_image"),
        (POSITIVES | {"image_to_text": {}}, 10, "positives=.*json: image_to_text is not an object of lists"),
        (POSITIVES | {"image_to_text": {"0": "1.0"}}, 10, "of '0' it has '1.0', not a list of keys"),
        ([], 10, "holds list, not an object"),
    ],
)
def test_positives_that_can_not_be(tmp_path, content, examples, message):
    file = tmp_path / "positives.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        retrieval.evaluate(Oracle(), Named(), Path(), examples=examples, captions=0, positives=str(file))


def test_a_converted_copy_gives_the_same_numbers(tmp_path):
    """The pictures above as COCO lists them, caption k of picture n as 100 n + k, and their ArrayRecord copy."""
    content, lists = {"images": [], "annotations": []}, {}
    for n in range(10):
        Image.fromarray(Named()[n].image).save(tmp_path / f"{n}.png")
        content["images"].append({"id": n, "file_name": f"{n}.png"})
        for k, caption in enumerate(Named().captions(n)):
            content["annotations"].append({"id": 100 * n + k, "image_id": n, "caption": caption.text})
    (tmp_path / "list.json").write_text(json.dumps(content))
    section = dict(name="annotations", path=str(tmp_path / "list.json"), images=str(tmp_path))
    assert convert(section, tmp_path / "copy", short_side=0, records_per_shard=6, workers=1)["records"] == 10
    source, copy = make_source(section), make_source(dict(name="array_record", path=str(tmp_path / "copy")))
    for n in range(10):
        assert copy.captions(n) == copy[n].captions == source.captions(n) and copy.where(n)[1] == source.where(n)[1]
    lists["image_to_text"] = {"0": [0, 100, 101], "5": [500, 501, 502], "7": [701, 400]}
    lists["text_to_image"] = {"100": [1, 0], "802": [8]}
    (tmp_path / "positives.json").write_text(json.dumps(lists))
    options = dict(examples=10, captions=0, positives=str(tmp_path / "positives.json"))
    numbers, again = (retrieval.evaluate(Oracle(), each, Path(), **options) for each in (source, copy))
    assert numbers == again and again["image_to_text_extended_mAP@R"] == pytest.approx((2 / 3 + 0 + 1 / 4) / 3)


def test_sources_without_names_and_no_package(tmp_path, monkeypatch):
    (tmp_path / "positives.json").write_text(json.dumps(POSITIVES))
    options = dict(examples=10, captions=0, positives=str(tmp_path / "positives.json"))
    with pytest.raises(
        UserError, match="the source has texts without a key; the source `annotations`, or .* makes of it, names them"
    ):
        retrieval.evaluate(Oracle(), Several(), Path(), **options)
    with pytest.raises(
        UserError, match="positives='nowhere.json' is neither eccv_caption nor a JSON file that can be read"
    ):
        retrieval.evaluate(Oracle(), Named(), Path(), **options | {"positives": "nowhere.json"})
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "eccv_caption", raising=False)
    with pytest.raises(
        UserError, match="positives='eccv_caption' needs the package 'eccv_caption', .*pip install 'eccv-caption"
    ):
        retrieval.evaluate(Oracle(), Named(), Path(), **options | {"positives": "eccv_caption"})


def test_the_packages_positives_belong_to_cocos_5k(eccv):
    with pytest.raises(UserError, match="image_to_text names 1261 keys that are not among the 10 evaluated, such as"):
        retrieval.evaluate(Oracle(), Named(), Path(), examples=10, captions=0, positives="eccv_caption")
    assert read_positives("eccv_caption").outside == {"144675", "467259"}
