"""Sources, tokenizer, preprocessing, and an order that depends on (seed, index) alone."""

import io
import itertools
import os
import signal
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import children, until
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from filip_jax.data.decode import decode
from filip_jax.data.pipeline import batches
from filip_jax.data.record import BadRecord, Caption, Record
from filip_jax.data.sentence_pieces import BOS, EOS, PAD, train_sentence_pieces
from filip_jax.data.sources import make_source
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import ProcessLost, UserError

CAPTIONS = ["a red apple", "a dog to the left of a cat", "a big house, a tree and a dog", "ein Hund", "苹果"] * 5


PLAIN = dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False)
VARIED = dict(min_area=0.5, flip=True, colour_jitter=0.0, auto_augment=False)
ARRAYS = ("image", "ids", "truncated", "part", "index")
OPTIONS = dict(
    image_size=16, text_length=8, augment=VARIED, shuffle="global", block_size=4, max_bad_fraction=0.0,
    seed=0, workers=0, threads=0, start=0,
)  # fmt: skip


class Numbered:
    """A source whose record n is a picture of the number n with the caption "number n"."""

    seen = identity = "numbers"

    def __init__(self, size):
        self.size = size
        self.shard_sizes = np.array([size])

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        image = np.full((20, 24, 3), index, np.uint8)
        image[index % 20] = 255
        return Record(str(index), image, self.captions(index))

    def captions(self, index):
        return (Caption(f"number {index}"),)

    def where(self, index):
        return "numbers", str(index)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train_sentence_pieces([f"number {n}" for n in range(100)] + CAPTIONS, 400))


def png(array, mode="RGB", format="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).convert(mode).save(file, format)
    return file.getvalue()


def stream(tokenizer, steps, processes=1, batch_size=8, **changes):
    """The first global batches, put together from all processes."""
    options = OPTIONS | dict(seed=3, threads=2) | changes
    of_process = [
        batches(Numbered(21), tokenizer, batch_size=batch_size, process_index=p, process_count=processes, **options)
        for p in range(processes)
    ]
    parts = itertools.islice(zip(*of_process), steps)
    return [{name: np.concatenate([part[name] for part in parts]) for name in ARRAYS} for parts in parts]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x[name], y[name]) for x, y in zip(a, b) for name in x)


@pytest.mark.smoke
def test_the_stream_depends_neither_on_processes_nor_threads_nor_where_it_resumes(tokenizer):
    whole = stream(tokenizer, 9)
    assert same(whole, stream(tokenizer, 9, processes=2))
    assert same(whole, stream(tokenizer, 9, processes=4, threads=5))
    assert same(whole[4:], stream(tokenizer, 5, start=4 * 8))
    assert same(whole[4:], stream(tokenizer, 5, start=4 * 8, processes=8, threads=0))
    assert not same(whole, stream(tokenizer, 9, seed=4))


def test_the_stream_does_not_depend_on_worker_processes(tokenizer):
    assert same(stream(tokenizer, 6), stream(tokenizer, 6, workers=2))


def test_every_epoch_is_a_new_order_of_every_record(tokenizer):
    ids = np.concatenate([batch["ids"] for batch in stream(tokenizer, 21, augment=PLAIN, batch_size=4)])
    texts = [tokenizer.pieces.processor.decode([int(i) for i in row if i > EOS]) for row in ids]
    epochs = [texts[n : n + 21] for n in range(0, 84, 21)]
    assert all(sorted(epoch) == sorted(f"number {n}" for n in range(21)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_tokens_are_framed_padded_cut_and_counted(tokenizer):
    ids, truncated = tokenizer.encode(["a dog", "a dog to the left of a cat and a dog", ""], 7)
    assert ids.shape == (3, 7) and ids.dtype == np.int32 and truncated.tolist() == [False, True, False]
    assert ids[0, 0] == BOS and EOS in ids[0] and ids[0, -1] == PAD
    assert ids[1, -1] == EOS and (ids[1] != PAD).all()
    assert ids[2].tolist() == [BOS, EOS, PAD, PAD, PAD, PAD, PAD]


@given(text=st.text(max_size=30))
def test_any_text_survives_and_its_spans_stay_inside(text):
    model = Tokenizer(MODEL)
    ids, truncated = model.encode([text], 400)
    spans = model.spans(text, 400)
    assert len(spans) == int((ids[0] != PAD).sum()) and not truncated[0]
    assert all(0 <= start <= end <= len(text) for start, end in spans)


MODEL = train_sentence_pieces(CAPTIONS, 400)


def test_spans_name_the_characters_of_each_piece():
    model, text = Tokenizer(MODEL), "A red Apple, a dog"
    pieces = [text[start:end].strip() for start, end in model.spans(text, 40)]
    assert pieces[0] == pieces[-1] == "" and "".join(pieces) == "AredApple,adog"


def test_training_a_tokenizer_is_reproducible_and_few_captions_give_few_pieces():
    assert train_sentence_pieces(CAPTIONS, 400) == MODEL
    assert Tokenizer(train_sentence_pieces(CAPTIONS, 10_000)).vocab_size < 1000
    with pytest.raises(UserError, match="tokenizer.vocab_size=20"):
        train_sentence_pieces(CAPTIONS, 20)
    with pytest.raises(UserError, match="no sentencepiece model"):
        Tokenizer(b"nonsense")


def test_a_killed_trainer_is_said():
    def trainers():
        return [pid for pid, name in children().items() if "filip_jax.data.sentence_pieces" in name]

    def texts():
        yield "a dog"
        assert until(trainers)  # a process that has just begun has no name for a moment
        os.kill(trainers()[0], signal.SIGKILL)

    with pytest.raises(
        ProcessLost, match=r"trains a tokenizer was killed by SIGKILL: out of memory\? Then lower tokenizer.captions"
    ):
        train_sentence_pieces(texts(), 300)


@pytest.mark.parametrize("end", ["kill -9 $$", "exit 1"])
def test_a_trainer_that_ends_while_it_writes_is_lost(monkeypatch, tmp_path, end):
    (tmp_path / "python").write_text(f"#!/bin/sh\ncat > /dev/null\necho half a model\n{end}\n")
    (tmp_path / "python").chmod(0o700)
    monkeypatch.setattr("filip_jax.data.sentence_pieces.sys.executable", str(tmp_path / "python"))
    with pytest.raises(
        ProcessLost, match="the process that trains a tokenizer (was killed by SIGKILL|ended with exit code 1)"
    ):
        train_sentence_pieces(CAPTIONS, 400)


def test_an_error_in_the_captions_is_said_though_the_trainer_is_gone(monkeypatch):
    monkeypatch.setattr("filip_jax.data.sentence_pieces.sys.executable", "/bin/true")

    def texts():
        yield "a dog " * 100
        time.sleep(0.5)
        raise UserError("no more captions")

    with pytest.raises(UserError, match="no more captions"):
        train_sentence_pieces(texts(), 300)


def test_an_error_in_the_captions_ends_the_trainer():
    def texts():
        yield "a dog"
        raise UserError("no more captions")

    with pytest.raises(UserError, match="no more captions"):
        train_sentence_pieces(texts(), 300)


def test_a_folder_of_pairs(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "sub/a.PNG", "alone.jpg"):
        (tmp_path / name).write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    (tmp_path / "b.txt").write_text(" a dog\n", "utf-8")
    (tmp_path / "sub/a.txt").write_text("una manzana roja 🍎", "utf-8")
    with pytest.warns(UserWarning, match="1 of 3 images .* have no caption"):
        source = make_source(dict(name="folder", path=str(tmp_path)))
    assert [source[n].caption for n in range(len(source))] == ["a dog", "una manzana roja 🍎"]
    assert decode(source[0].image).size == (4, 4)
    for path, message in ((tmp_path / "none", "is not a folder"), (tmp_path / "alone.jpg", "is not a folder")):
        with pytest.raises(UserError, match=message):
            make_source(dict(name="folder", path=str(path)))
    (tmp_path / "b.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(BadRecord, match="not UTF-8"):
        source[0]
    (tmp_path / "b.txt").unlink(), (tmp_path / "sub/a.txt").unlink()
    with pytest.raises(UserError, match="3 images .* none with a .txt"):
        make_source(dict(name="folder", path=str(tmp_path)))


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Five pictures in two classes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "caption": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            "objects": tfds.features.Sequence({"label": tfds.features.ClassLabel(names=["tail"])}),
            "notes": {"names": tfds.features.Sequence(tfds.features.Text())},
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for n in range(5):
            yield n, {
                "image": io.BytesIO(png(np.full((6, 5, 3), n, np.uint8))), "caption": f"picture {n}", "label": n % 2,
                "captions": [{"id": 10 * n + k, "text": f"text {n} {k}"} for k in range(n)],
                "objects": [{"label": 0}], "notes": {"names": [f"name {n}", "tail"]},
            }  # fmt: skip


@pytest.mark.filterwarnings("ignore::Warning")
def test_tensorflow_datasets_without_tensorflow(tmp_path):
    builder = Tiny(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    path = str(builder.data_path)
    source = make_source(dict(name="tfds", path=path, split="train"))
    records = [source[n] for n in range(len(source))]
    assert sorted(r.caption for r in records) == [f"picture {n}" for n in range(5)]
    for record in records:
        assert np.asarray(decode(record.image))[0, 0, 0] == int(record.caption[-1])
    labelled = make_source(dict(name="tfds", path=path, split="train[:2]", caption_keys=("label",)))
    assert labelled.class_names == ["cat", "dog"]
    assert [r.caption for r in (labelled[0], labelled[1])] == [
        ("cat", "dog")[r.label] for r in (labelled[0], labelled[1])
    ]
    nested = make_source(dict(name="tfds", path=path, split="train", caption_keys=("captions/text", "notes/names")))
    for n in range(5):
        texts = [caption.text for caption in nested.captions(n)]
        number = int(texts[-2][-1])
        assert texts == [*(f"text {number} {k}" for k in range(number)), f"name {number}", "tail"]
    texts = "caption, captions/text, label, notes/names"
    for options, message in (
        (dict(path=str(tmp_path), split="train"), "dataset_info.json"),
        (dict(path=path, split="valid"), "Unknown split 'valid'"),
        (
            dict(path=path, split="train", caption_keys=("text",)),
            f"no text 'text'; its texts are {texts}; say caption_keys=caption$",
        ),
        (dict(path=path, split="train", caption_keys=("captions",)), f"no text 'captions'; its texts are {texts}; say"),
        (dict(path=path, split="train", image="caption"), "its images are image; say image=image$"),
    ):
        with pytest.raises(UserError, match=message):
            make_source(dict(name="tfds", **options))


def test_an_unknown_source_or_option_is_refused():
    with pytest.raises(
        UserError, match="source.name='webdata' is not one of emoji_scenes, folder, class_folder, webdataset"
    ):
        make_source(dict(name="webdata", path="x"))
    with pytest.raises(UserError, match=r"config section source \(folder\): .*; its keys are path, caption_keys"):
        make_source(dict(name="folder", paht="x"))
