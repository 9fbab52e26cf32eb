"""Labelled images: class directories, CLIP_benchmark's tars, lists of files and TFDS are one data set."""

import io
import json
import runpy
import shutil
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT
from PIL import Image
from test_evals import Oracle, picture, word_number

from filip_jax import storage
from filip_jax.config import load_config
from filip_jax.data.record import BadRecord
from filip_jax.data.sources import make_source
from filip_jax.data.tfds import in_words
from filip_jax.errors import UserError
from filip_jax.evals import similarity, zero_shot
from filip_jax.evals.prompts import make_prompts
from filip_jax.evals.run import check_evals, open_evals, run_evals
from filip_jax.evals.tasks import hashes_of

NAMES = ["cat", "red apple", "sun"]
LABELS = [0, 0, 1, 1, 1, 2, 2]
rng = np.random.default_rng(0)


def encoded(label):
    """A picture whose patches hold one word of its class, and noise."""
    numbers = rng.integers(0, 64, 9)
    numbers[rng.integers(0, 9, 4)] = word_number(NAMES[label].split()[-1])
    file = io.BytesIO()
    Image.fromarray(picture(*numbers)).save(file, "PNG")
    return file.getvalue()


PICTURES = [encoded(label) for label in LABELS]


class Labelled(tfds.core.GeneratorBasedBuilder):
    """The pictures, as TensorFlow Datasets writes them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=[name.replace(" ", "_") for name in NAMES]),
            "number": np.int64,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for n, (data, label) in enumerate(zip(PICTURES, LABELS)):
            yield n, {"image": io.BytesIO(data), "label": label, "number": label}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One data set in four forms: the config's section of each."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    lines = ["path,label"]
    for n, (data, label) in enumerate(zip(PICTURES, LABELS)):
        file = folder / "directories" / NAMES[label].replace(" ", "_") / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        lines.append(f"{file.relative_to(folder)},{NAMES[label]}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    (folder / "wds/test").mkdir(parents=True)
    with tarfile.open(folder / "wds/test/0.tar", "w") as tar:
        for n, (data, label) in enumerate(zip(PICTURES, LABELS)):
            for kind, content in (("png", data), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{n:04}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    builder = Labelled(data_dir=str(folder / "tfds"), file_format="array_record")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        builder.download_and_prepare()
    names = str(folder / "names.txt")
    return {
        "class_folder": dict(name="class_folder", path=str(folder / "directories")),
        "webdataset": dict(name="webdataset", path=str(folder / "wds/test"), label="cls", class_names=names),
        "csv": dict(name="csv", path=str(folder / "list.csv"), image="path", label="label"),
        "tfds": dict(name="tfds", path=str(builder.data_path), split="test", caption_keys=("label",)),
    }


def test_every_reader_gives_one_number(data):
    prompts = dict(prefixes=("a photo of a", "a"), suffixes=("I like it.", ""))
    found = {}
    for name, section in data.items():
        source = make_source(section)
        assert source.class_names == NAMES and len(source) == len(LABELS)
        assert sorted(source[n].label for n in range(len(source))) == LABELS
        assert all(source[n].caption == source.captions(n)[0].text == NAMES[source[n].label] for n in range(7))
        found[name] = zero_shot.evaluate(Oracle(), source, Path(), prompts=prompts)
    assert all(metrics == found["tfds"] for metrics in found.values())
    assert 0 < found["tfds"]["image_to_text_top1"] < 1


def test_numbers_and_classes_of_tensorflow_datasets_are_labels(data, tmp_path):
    section = {key: value for key, value in data["tfds"].items() if key != "caption_keys"}
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    by_class, by_number = make_source(section | {"label": "label"}), section | {"label": "number"}
    numbered = make_source(by_number | {"class_names": str(tmp_path / "names.txt")})
    assert by_class.class_names == numbered.class_names == NAMES
    for source in (by_class, numbered):
        assert [source[n].caption for n in range(7)] == [NAMES[source[n].label] for n in range(7)]
        assert [source[n].label for n in range(7)] == [by_class.source[n].label for n in range(7)]
    with pytest.raises(UserError, match="label='number' holds numbers"):
        make_source(by_number)


def test_clip_benchmarks_folders_are_read_as_they_are(data, tmp_path):
    """Its own layout for one of the twelve sets; all of them are described alike."""
    folder = tmp_path / "wds_vtab-cifar10"
    shutil.copytree(data["webdataset"]["path"], folder / "test")
    shutil.copy(data["webdataset"]["class_names"], folder / "classnames.txt")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na {c}.\n")
    file = str(ROOT / "configs/eval/clip_benchmark.py")
    evals = load_config(f"{file}:cifar10", [f"--config.root={tmp_path}"])["evals"]
    found = run_evals(Oracle(), open_evals(evals), tmp_path)
    expected = zero_shot.evaluate(Oracle(), make_source(data["tfds"]), Path(), prompts=("a photo of a {}.", "a {}."))
    assert found == {f"cifar10/{metric}": value for metric, value in expected.items()}
    every = load_config(file)["evals"]
    check_evals(every)
    assert len(every) == 12 and every["imagenet"]["source"]["path"] == "clip_benchmark/wds_imagenet1k/test"


def test_tensorflow_datasets_folders_are_read_as_they_are(data, tmp_path):
    """The same set as TFDS prepares it, its only version found; in prompts of the paper's form."""
    version = Path(data["tfds"]["path"])
    shutil.copytree(version, tmp_path / "cifar10" / version.name)
    file = str(ROOT / "configs/eval/tfds.py")
    evals = load_config(f"{file}:cifar10", [f"--config.root={tmp_path}"])["evals"]
    found = run_evals(Oracle(), open_evals(evals), tmp_path)
    prompts = make_prompts(evals["cifar10"]["prompts"])
    assert len(prompts) == 2 * 7 and "a photo of the {}. It's cute." in prompts and "a photo of a {}." in prompts
    expected = zero_shot.evaluate(Oracle(), make_source(data["webdataset"]), Path(), prompts=prompts)
    assert found == {f"cifar10/{metric}": value for metric, value in expected.items()}
    every = load_config(file)["evals"]
    check_evals(every)
    sets = runpy.run_path(str(ROOT / "configs/eval/clip_benchmark.py"))["SETS"]
    assert list(every) == sorted(name for name in sets if name != "aircraft")
    shutil.copytree(version, tmp_path / "cifar10/2.0.0")
    with pytest.raises(UserError, match="cifar10' holds several versions: name one of 1.0.0, 2.0.0"):
        open_evals(evals)


def test_classes_get_other_names(data, tmp_path):
    (tmp_path / "names.txt").write_text("Katze\nApfel\nSonne\n")
    source = make_source(data["class_folder"] | {"class_names": str(tmp_path / "names.txt")})
    assert [source[n].caption for n in (0, 2, 6)] == ["Katze", "Apfel", "Sonne"] and source[6].label == 2
    assert source.identity != make_source(data["class_folder"]).identity


@pytest.mark.parametrize(
    "section, names, message",
    [
        ("webdataset", None, "label='cls' holds numbers: say what they mean, class_names=FILE"),
        ("webdataset", "cat\n\nsun\n", "has an empty line"),
        ("webdataset", "", "has no name"),
        ("class_folder", "cat\nsun\n", "has 2 names, but the source 3 classes"),
    ],
)
def test_names_that_can_not_be(data, tmp_path, section, names, message):
    options = {key: value for key, value in data[section].items() if key != "class_names"}
    if names is not None:
        (tmp_path / "names.txt").write_text(names)
        options["class_names"] = str(tmp_path / "names.txt")
    with pytest.raises(UserError, match=message):
        make_source(options)


def test_a_class_that_is_none_is_a_bad_record(data, tmp_path):
    (tmp_path / "names.txt").write_text("cat\nred apple\n")
    source = make_source(data["webdataset"] | {"class_names": str(tmp_path / "names.txt")})
    assert source[0].label == 0
    with pytest.raises(BadRecord, match="cls='2' is none of 2 classes"):
        source[6]
    with pytest.raises(UserError, match="class_names='none': the file cannot be read"):
        make_source(data["webdataset"] | {"class_names": "none"})
    with pytest.raises(UserError, match="the source has no labels; say which text holds them"):
        make_source(dict(data["csv"], label="", caption_keys=("label",), class_names=str(tmp_path / "names.txt")))


def test_classes_of_one_name_are_no_rivals(data, tmp_path):
    """CLIP's list for ImageNet has missile and sunglasses twice: the first is found, as by an argmax, and the other is not."""
    (tmp_path / "names.txt").write_text("sun\nred apple\nsun\n")
    doubled = data["webdataset"] | {"class_names": str(tmp_path / "names.txt")}
    found = zero_shot.evaluate(Oracle(), make_source(doubled), Path(), prompts=("{}",))
    alone = zero_shot.evaluate(Oracle(), make_source(data["webdataset"]), Path(), prompts=("{}",))
    hits = [round(numbers["image_to_text_top1"] * len(LABELS)) for numbers in (found, alone)]
    assert found["classes"] == 3 and 0 < hits[0] <= hits[1]
    scores = np.array([[0.5, 0.1, 0.5], [0.5, 0.1, 0.5], [0.5, 0.9, 0.5], [0.1, 0.1, 0.1]])
    names = ["sun", "red apple", "sun"]
    assert similarity.ranks(scores, np.array([0, 2, 2, 1]), names).tolist() == [1, 2, 3, 3]
    assert similarity.ranks(scores, np.array([0, 2, 2, 1])).tolist() == [2, 2, 3, 3]
    csv = data["csv"] | {"class_names": str(tmp_path / "names.txt")}
    assert make_source(csv)[2].label == 1
    with pytest.raises(BadRecord, match="'sun' names several classes"):
        make_source(csv)[6]


@pytest.mark.filterwarnings("ignore::Warning")
def test_names_and_prompts_stand_in_json_files_and_in_buckets_too(data, tmp_path, bucket, monkeypatch):
    """As CLIP_benchmark keeps them; what a result says of them changes with them."""
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"three": NAMES, "two": NAMES[:2], "numbers": [1]}))
    (tmp_path / "prompts.json").write_text(json.dumps({"three": ["a {c}.", "my {c}"]}))
    for name in ("names.json", "prompts.json"):
        storage.write(f"{bucket}/{name}", (tmp_path / name).read_bytes())
    found = [
        make_source(data["webdataset"] | {"class_names": f"{place}/names.json:three"}).class_names
        for place in (tmp_path, bucket)
    ]
    assert found == [NAMES, NAMES]
    assert [make_prompts(f"{place}/prompts.json:three") for place in (tmp_path, bucket)] == [["a {}.", "my {}"]] * 2
    source = make_source(data["webdataset"])
    tasks = [hashes_of(zero_shot, {}, source, {"prompts": f"{tmp_path}/prompts.json:three"})]
    (tmp_path / "prompts.json").write_text(json.dumps({"three": ["a {c}.", "our {c}"]}))
    tasks.append(hashes_of(zero_shot, {}, source, {"prompts": f"{tmp_path}/prompts.json:three"}))
    assert tasks[0]["prompts"] != tasks[1]["prompts"] and tasks[0]["task"] != tasks[1]["task"]
    for name, message in (
        ("four", "has no list of texts 'four'; its names are numbers, three, two"),
        ("numbers", "no list of texts"),
    ):
        with pytest.raises(UserError, match=message):
            make_source(data["webdataset"] | {"class_names": f"{file}:{name}"})
    file.write_text("{")
    with pytest.raises(UserError, match="class_names='.*names.json:three': the file cannot be read: Expecting"):
        make_source(data["webdataset"] | {"class_names": f"{file}:three"})
    monkeypatch.setattr("filip_jax.data.text_lists.FILE_BYTES", 8)
    with pytest.raises(UserError, match="cannot be read: it has more than 8 bytes"):
        make_source(data["webdataset"])


def test_folders_that_hold_no_classes(tmp_path):
    with pytest.raises(UserError, match="no directory in .* holds images"):
        make_source(dict(name="class_folder", path=str(tmp_path)))
    with pytest.raises(UserError, match="path='none' is not a folder"):
        make_source(dict(name="class_folder", path="none"))


# Of the papers; CIFAR's names and the pictures come with the data, which TFDS prepares.
CLASSES = dict(
    caltech101=102, cars=196, flowers102=102, food101=101, sun397=397, dtd=47, pets=37, eurosat=10, imagenet=1000
)


def test_the_shipped_config_names_what_tensorflow_datasets_has_and_classes_become_words(tmp_path):
    sets = runpy.run_path(str(ROOT / "configs/eval/tfds.py"))["SETS"]
    found = {}
    for name, (folder, *_) in sets.items():
        features = tfds.builder(folder, data_dir=tmp_path).info.features
        assert isinstance(features["image"], tfds.features.Image)
        found[name] = in_words(features["label"].names)
    assert {name: len(classes) for name, classes in found.items()} == CLASSES | dict(cifar10=10, cifar100=100)
    assert all(len(set(classes)) == len(classes) for classes in found.values())
    assert not any(set("_/") & set(each) for classes in found.values() for each in classes)
    assert found["eurosat"][:3] == ["annual crop", "forest", "herbaceous vegetation"]
    assert found["sun397"][0] == "abbey" and "apartment building outdoor" in found["sun397"]
    assert "american pit bull terrier" in found["pets"] and "Chevrolet TrailBlazer SS 2009" in found["cars"]


def test_records_without_a_class_are_bad_and_the_others_stay(tmp_path):
    lines = [
        {"image": f"{n}.jpg", "caption": "x"} | ({"class": name} if name else {})
        for n, name in enumerate(["b", "", "a"])
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    section = dict(name="jsonl", path=str(tmp_path / "list.jsonl"), label="class")
    with pytest.warns(UserWarning, match="1 of 3 records have no class: record list.jsonl 1.jpg: no class in 'class'"):
        source = make_source(section)
    assert source.class_names == ["a", "b"] and [source.captions(n)[0].text for n in (0, 2)] == ["b", "a"]
    with pytest.raises(BadRecord, match="no class"):
        source.captions(1)
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line | {"class": ""}) + "\n" for line in lines))
    with pytest.raises(UserError, match="no class in 'class'"):
        make_source(section)
