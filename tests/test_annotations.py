"""COCO's annotations and Karpathy's splits of the same pictures, and the shipped configs that read them."""

import contextlib
import json
import pickle

import numpy as np
import pytest
from conftest import ROOT
from pairs import picture, tar
from test_evals import Oracle

from filip_jax.config import load_config
from filip_jax.data.decode import decode
from filip_jax.data.record import BadRecord, Caption
from filip_jax.data.sources import Source, fingerprint, make_source
from filip_jax.errors import UserError
from filip_jax.evals.run import check_evals, open_evals, run_evals

# (split, folder, file, number of the image, captions with their numbers), in the order of Karpathy's file
IMAGES = [
    (
        "test",
        "val2014",
        "COCO_val2014_000000000042.png",
        42,
        [(770337, "A man. "), (771687, "A café."), (9, "A bike.")],
    ),
    ("restval", "val2014", "COCO_val2014_000000000033.png", 33, [(5, "Two"), (4, "motorcycles")]),
    ("val", "val2014", "COCO_val2014_000000000034.png", 34, [(6, "A dog")]),
    ("train", "train2014", "COCO_train2014_000000000009.png", 9, [(7, "Food"), (8, "Broccoli")]),
]


def karpathys(coco=True):
    """The content of dataset_coco.json, or of dataset_flickr30k.json, which names neither folders nor COCO's numbers."""
    images = []
    for number, (split, folder, file, cocoid, texts) in enumerate(IMAGES):
        of_image = [{"tokens": t.split(), "raw": t, "imgid": number, "sentid": key} for key, t in texts]
        image = {
            "sentids": [key for key, _ in texts],
            "imgid": number,
            "sentences": of_image,
            "split": split,
            "filename": file,
        }
        images.append(image | ({"filepath": folder, "cocoid": cocoid} if coco else {}))
    return {"images": images, "dataset": "coco" if coco else "flickr30k"}


def cocos():
    """The content of captions_val2014.json: its annotations are in no order."""
    images = [{"license": 3, "file_name": f"{folder}/{file}", "id": number} for _, folder, file, number, _ in IMAGES]
    texts = [{"image_id": n, "id": key, "caption": t} for *_, n, of_image in IMAGES for key, t in of_image]
    order = [7, 2, 3, 0, 5, 6, 4, 1]
    return {"info": {}, "images": images, "licenses": [], "annotations": [texts[place] for place in order]}


@pytest.fixture
def data(tmp_path):
    """A function that writes a file of annotations beside the pictures and gives the section that reads it."""
    for _, folder, file, number, _ in IMAGES:
        for place in (tmp_path / folder / file, tmp_path / "flat" / file):
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(picture(number))

    def write(content, images=tmp_path, **options):
        (tmp_path / "list.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return dict(name="annotations", path=str(tmp_path / "list.json"), images=str(images), **options)

    return write


def expected(number, texts):
    return tuple(Caption(text.strip(), key=str(key)) for key, text in texts)


EXPECTED = [expected(number, texts) for *_, number, texts in IMAGES]


@pytest.mark.parametrize("split, numbers", [("train", [33, 9]), ("val", [34]), ("test", [42])])
@pytest.mark.parametrize("coco", [True, False])
def test_karpathys_splits(data, tmp_path, coco, split, numbers):
    opened = make_source(data(karpathys(coco), tmp_path if coco else tmp_path / "flat", split=split))
    assert isinstance(opened, Source) and len(opened) == len(numbers) == sum(opened.shard_sizes)
    rows = {number: (file, texts) for _, _, file, number, texts in IMAGES}
    for source in (opened, pickle.loads(pickle.dumps(opened))):
        for n, number in enumerate(numbers):
            file, texts = rows[number]
            record = source[n]
            assert np.asarray(decode(record.image))[0, 0].tolist() == [number] * 3
            assert record.key == (str(number) if coco else file.removesuffix(".png"))
            assert record.captions == source.captions(n) == expected(number, texts)
            assert source.where(n) == (record.shard, record.key) == ("list.json", record.key)
            assert record.image.startswith(source.image_head(n)[:50])


def test_cocos_annotations(data):
    """Images and the captions of each in the file's order, whatever order the images have their captions in."""
    source = make_source(data(cocos()))
    assert [source.where(n)[1] for n in range(4)] == ["42", "33", "34", "9"]
    assert [[caption.key for caption in source.captions(n)] for n in range(4)] == [
        ["9", "770337", "771687"],
        ["5", "4"],
        ["6"],
        ["8", "7"],
    ]
    for n, (*_, number, texts) in enumerate(IMAGES):
        assert np.asarray(decode(source[n].image))[0, 0].tolist() == [number] * 3
        assert set(source.captions(n)) == set(expected(number, texts))


def test_other_annotations_are_another_fingerprint(data):
    section = data(karpathys(), split="test")
    before = fingerprint(make_source(section))
    assert fingerprint(make_source(section)) == before
    assert fingerprint(make_source(section | {"split": "val"})) != before
    changed = karpathys()
    changed["images"][0]["sentences"][0]["raw"] = "A woman."
    assert fingerprint(make_source(data(changed, split="test"))) != before


def test_records_without_a_picture_or_a_text(data, tmp_path):
    content = karpathys()
    content["images"][2]["sentences"][0]["raw"] = "x" * 70_000
    (tmp_path / "train2014" / IMAGES[3][2]).unlink()
    with pytest.warns(UserWarning, match="left out: 1 captions that are no text, or too long"):
        source = make_source(data(content, split="train"))
    with pytest.raises(BadRecord, match="no such file: .*COCO_train2014_000000000009.png"):
        source[1]
    assert source.captions(1) == expected(9, IMAGES[3][4])
    with pytest.raises(UserError, match="none of 1 images of split='val' has a caption"):
        make_source(data(content, split="val"))


@pytest.mark.parametrize(
    "change, left, message",
    [
        (lambda c: c["annotations"].append({"image_id": 99, "id": 1, "caption": "x"}), 4, "1 captions of images that are not"),
        (lambda c: c["images"].append({"file_name": "b.png", "id": 99}), 4, "1 images without a caption"),
        (lambda c: c["images"].pop(0), 3, "3 captions of images that are not listed"),
        (lambda c: c["annotations"].append({"image_id": 34, "id": 1, "caption": None}), 4, "1 captions that are no text"),
        (lambda c: c["annotations"].append({"image_id": 34, "id": 1, "caption": "\ud800"}), 4, "1 captions that are no text"),
        (lambda c: [a.update(caption=" ") for a in c["annotations"] if a["image_id"] == 34], 3, "1 images without a caption"),
        (lambda c: [a.update(image_id=str(a["image_id"])) for a in c["annotations"]], 4, ""),
    ],
)  # fmt: skip
def test_what_is_left_of_annotations_whose_images_were_filtered(data, change, left, message):
    content = cocos()
    change(content)
    section = data(content)
    with pytest.warns(UserWarning, match=f"left out: {message}") if message else contextlib.nullcontext():
        source = make_source(section)
    assert len(source) == left and message in source.seen
    assert all(source[n].captions and set(source.captions(n)) <= set(sum(EXPECTED, ())) for n in range(left))


@pytest.mark.parametrize(
    "texts", [["a", "b"], [{"raw": "a"}, {"raw": "b"}], [{"raw": "a", "sentid": 1}, {"caption": "b"}]]
)
def test_karpathys_file_in_the_hands_of_others(data, texts):
    content = {"images": [{"filename": IMAGES[0][2], "filepath": "val2014", "split": "test", "sentences": texts}]}
    source = make_source(data("\ufeff" + json.dumps(content), split="test"))
    assert [caption.text for caption in source[0].captions] == ["a", "b"]


def test_texts_from_elsewhere_join_by_the_images_number(data, tmp_path):
    (tmp_path / "side.jsonl").write_text('{"key": "42", "origin": "de", "caption": "Ein Mann."}\n')
    section = data(karpathys(), split="test", side_captions=str(tmp_path / "side.jsonl"))
    assert make_source(section | {"caption_keys": ("de",)}).captions(0) == (Caption("Ein Mann.", "de"),)
    both = make_source(section | {"caption_keys": ("caption", "de")}).captions(0)
    assert [caption.key for caption in both] == ["770337", "771687", "9", ""]


@pytest.mark.parametrize(
    "content, options, message",
    [
        ("{", {}, "list.json' is no JSON: "),
        ("[" * 100_000, {}, "list.json' is no JSON: "),
        ([{"image": "a.jpg", "caption": "a"}], {}, "is a list of objects, .* read it with the source jsonl"),
        ([1], {}, "is neither COCO's captions nor Karpathy's splits: TypeError"),
        ({"annotations": []}, {}, "is neither COCO's captions nor Karpathy's splits: something has no field 'images'"),
        ({"images": [{"filename": 3}]}, {}, "is neither COCO's captions nor Karpathy's splits"),
        ({"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "id": 5}]}, {}, "something has no field 'caption'"),
        ({"images": [{"id": 1, "file_name": "x\\\\..\\\\..\\\\a.jpg"}], "annotations": []}, {}, "does not lie below"),
        ({"images": [{"id": 1, "file_name": "../a.jpg"}], "annotations": []}, {}, "the image '../a.jpg' does not lie below"),
        ({"images": [{"filename": "/etc/passwd", "split": "a", "sentences": []}]}, {}, "'/etc/passwd' does not lie below"),
        ({"images": [{"filename": "x", "filepath": "s3://b", "split": "a", "sentences": []}]}, {}, "does not lie below"),
        ({"images": []}, {"split": "test"}, "has no images of split='test'; its splits are none"),
        (karpathys(), {}, r"split=''; its splits are 'train' \(2\), 'test' \(1\), 'val' \(1\)$"),
        (karpathys(), {"split": "restval"}, "has no images of split='restval'; its splits are 'train'"),
        (cocos(), {"split": "val"}, r"has no images of split='val'; its splits are '' \(4\)"),
        (cocos(), {"images": "nowhere"}, "images='nowhere' is not a folder"),
        (cocos(), {"images": ""}, "images='' is not a folder"),
        (cocos(), {"path": "nowhere.json"}, "path='nowhere.json': there is no such file"),
        (cocos(), {"caption_keys": ("raw",)}, "all texts of annotations have the origin 'caption'"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_or_a_split_that_it_lacks(data, content, options, message):
    with pytest.raises(UserError, match=message) as error:
        make_source(data(content) | options)
    assert "\n" not in str(error.value)


def test_the_shipped_evaluations_of_retrieval(data, tmp_path):
    """Karpathy's files and CLIP_benchmark's tars of the same pictures give the same numbers."""
    members = []
    for n, (_, _, _, number, texts) in enumerate(IMAGES):
        lines = "\n".join(text.strip() for _, text in texts)
        members += [(f"s{n:07}.png", picture(number)), (f"s{n:07}.txt", lines.encode())]
    for name, coco, wds in (("flickr30k", False, "wds_flickr30k"), ("coco", True, "wds_mscoco_captions")):
        content = karpathys(coco)
        for image in content["images"]:
            image["split"] = "test"
        (tmp_path / f"dataset_{name}.json").write_text(json.dumps(content))
        (tmp_path / wds / "test").mkdir(parents=True)
        tar(tmp_path / wds / "test/0.tar", members)
    (tmp_path / "flat").rename(tmp_path / "flickr30k-images")
    file = str(ROOT / "configs/eval/retrieval.py")
    found = {}
    for variant in ("all", "clip_benchmark"):
        evals = load_config(f"{file}:{variant}")["evals"]
        check_evals(evals)
        assert {name: section["examples"] for name, section in evals.items()} == {"flickr30k": 1_000, "coco": 5_000}
        small = [f"--config.root={tmp_path}", *(f"--config.evals.{name}.examples=4" for name in evals)]
        found[variant] = run_evals(Oracle(), open_evals(load_config(f"{file}:{variant}", small)["evals"]), tmp_path)
    assert found["all"] == found["clip_benchmark"] and found["all"]["coco/texts"] == 8
    assert {name.split("/")[0] for name in found["all"]} == {"flickr30k", "coco"}
    (only,) = load_config(f"{file}:coco")["evals"].values()
    assert only["source"]["path"] == "retrieval/dataset_coco.json" and only["captions"] == 5
