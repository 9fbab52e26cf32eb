"""Embedding and scoring from Python: images of every kind, large inputs in little memory, blocks equal to the whole, the best answers."""

import io
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from conftest import make_devices_mesh, unit
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image, ImageSequence

from filip_jax import compiled, progress
from filip_jax.data.preprocess import centre_view
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.inference import (
    Embedder,
    align,
    images,
    load_model,
    scoring,
    similarity_blocks,
    similarity_matrices,
    top_k,
)
from filip_jax.losses import similarity, token_similarity
from filip_jax.models import Model
from filip_jax.models.tower import ImageInput, TextInput
from filip_jax.objectives.total import make_objectives

SIZE = 8
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
GRAY, ALPHA = PIXELS[..., 0], np.full((SIZE, SIZE, 1), 128, np.uint8)


class Letters(Tokenizer):
    """One whose tokens are characters."""

    def __init__(self):
        pass

    def encode(self, texts, length):
        ids = np.zeros((len(texts), length), np.int32)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = [ord(letter) for letter in text[:length]]
        return ids, np.array([len(text) > length for text in texts])


def toy_model(traced=None):
    """Functions of two parameters whose tokens are the rows of a view, and the numbers of letters."""

    def encode_image(parameters, views, pooling=None):
        if traced is not None:
            traced.append(views.shape)
        tokens = parameters["scale"] * views.reshape(len(views), SIZE, -1).astype(jnp.float32)
        return tokens.mean(axis=1, keepdims=True) if pooling == "global" else tokens

    def encode_text(parameters, ids, pooling=None):
        return parameters["scale"] * ids[..., None].astype(jnp.float32), ids > 0

    def image_features(parameters, views, pooling=None):
        return encode_image(parameters, views).mean(axis=1)

    inputs = dict(image=ImageInput(SIZE, (SIZE, 1)), text=TextInput(vocab_size=30, length=6, causal=True), metadata={})
    return Model(
        dict, encode_image, encode_text, dict, dict, image_features, "tokens", sizes={}, noise_size=0, **inputs
    )


def embedder(batch_size=4, mesh=None, model=None, scale=1.0, step=0):
    parameters, sizes = {"scale": jnp.float32(scale)}, dict(image_size=SIZE, text_length=6)
    objectives = make_objectives({"filip": {"kind": "filip", "weight": 1.0}})
    model = model or toy_model(), objectives, Letters()
    return Embedder(*model, parameters, step, **sizes, mesh=mesh, batch_size=batch_size)


@pytest.fixture
def as_users(monkeypatch):
    """Without the type checker of tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def encoded(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def rotated():
    """A picture that lies on its side, and EXIF that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(PIXELS).transpose(Image.Transpose.ROTATE_90), exif=exif)


def animation(format):
    frames = [Image.fromarray(PIXELS), Image.new("RGB", (SIZE, SIZE), "red")]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)


ON_WHITE = np.asarray(Image.alpha_composite(
    Image.new("RGBA", (SIZE, SIZE), "white"), Image.fromarray(np.concatenate([PIXELS, ALPHA], axis=2))
).convert("RGB"))  # fmt: skip
GRAY_ON_WHITE = np.asarray(Image.alpha_composite(
    Image.new("RGBA", (SIZE, SIZE), "white"), Image.fromarray(np.concatenate([GRAY[..., None], ALPHA], axis=2)).convert("RGBA")
).convert("RGB"))  # fmt: skip
GRAYS = np.repeat(GRAY[..., None], 3, axis=2)
DEEP = GRAY.astype(np.uint16) << 8 | 0x7F
QUANTIZED = Image.fromarray(PIXELS).quantize(256, dither=Image.Dither.NONE)


class Tensor:
    """An array of another library, such as PyTorch's: its `__array__` gives NumPy's, or an error."""

    def __init__(self, array, error=None):
        self.array, self.error, self.shape = array, error, array.shape

    def __array__(self, dtype=None, copy=None):
        if self.error:
            raise self.error
        return self.array

    def __iter__(self):
        return map(Tensor, self.array)

    def __len__(self):
        return len(self.array)


CMYK = Image.fromarray(PIXELS).convert("CMYK")

KINDS = {
    "uint8": (PIXELS, PIXELS),
    "jax": (jnp.asarray(PIXELS), PIXELS),
    "gray": (GRAY, GRAYS),
    "gray with an axis": (GRAY[..., None], GRAYS),
    "gray and alpha": (np.concatenate([GRAY[..., None], ALPHA], axis=2), GRAY_ON_WHITE),
    "RGBA": (np.concatenate([PIXELS, ALPHA], axis=2), ON_WHITE),
    "16 bits": (DEEP, GRAYS),
    "16 bits, big end first": (DEEP.astype(">u2"), GRAYS),
    "16 bits RGB": (PIXELS.astype(np.uint16) << 8, PIXELS),
    "not contiguous": (np.asfortranarray(PIXELS)[:, ::-1], PIXELS[:, ::-1]),
    "PIL RGB": (Image.fromarray(PIXELS), PIXELS),
    "PIL L": (Image.fromarray(GRAY), GRAYS),
    "PIL LA": (Image.fromarray(np.concatenate([GRAY[..., None], ALPHA], axis=2)), GRAY_ON_WHITE),
    "PIL RGBA": (Image.fromarray(np.concatenate([PIXELS, ALPHA], axis=2)), ON_WHITE),
    "PIL P": (QUANTIZED, np.asarray(QUANTIZED.convert("RGB"))),
    "PIL 1": (Image.fromarray(GRAY > 127), np.repeat(255 * (GRAY > 127)[..., None], 3, axis=2)),
    "PIL CMYK": (CMYK, np.asarray(CMYK.convert("RGB"))),
    "PIL I;16": (Image.fromarray(DEEP), GRAYS),
    "PIL, lazy": (Image.open(io.BytesIO(encoded(Image.fromarray(PIXELS)))), PIXELS),
    "PIL, lazy and turned": (Image.open(io.BytesIO(rotated())), PIXELS),
    "turned": (rotated(), PIXELS),
    "16 bit PNG": (encoded(Image.fromarray(DEEP)), GRAYS),
    "WebP": (encoded(Image.fromarray(PIXELS), "WEBP", lossless=True), PIXELS),
    "animated WebP": (animation("WEBP"), PIXELS),
    "animated GIF": (animation("GIF"), np.asarray(Image.open(io.BytesIO(animation("GIF"))).convert("RGB"))),
    "bytearray": (bytearray(encoded(Image.fromarray(PIXELS))), PIXELS),
    "memoryview": (memoryview(encoded(Image.fromarray(PIXELS))), PIXELS),
    "tensor": (Tensor(PIXELS), PIXELS),
    "datasets' bytes": ({"bytes": encoded(Image.fromarray(PIXELS)), "path": None}, PIXELS),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_any_kind_becomes_the_view_that_it_shows(kind):
    image, expected = KINDS[kind]
    (view,) = embedder().views([image])
    assert view.dtype == np.uint8 and np.array_equal(view, expected)


@pytest.mark.parametrize("kind", ["16 bits", "PIL P", "PIL, lazy and turned", "animated GIF", "RGBA"])
def test_an_image_of_another_size_is_scaled_and_cut(kind):
    image, _ = KINDS[kind]
    model = embedder()
    model.image_size = 5
    (view,) = model.views([image])
    assert view.shape == (5, 5, 3)
    assert np.array_equal(view, centre_view(images.decode(images._content(image)), 5))


def test_files_are_read_by_paths_of_every_form(tmp_path, monkeypatch):
    file = tmp_path / "a picture, 1.png"
    file.write_bytes(encoded(Image.fromarray(PIXELS)))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.png").symlink_to(file)
    forms = [str(file), file, "~/a picture, 1.png", file.name, Path("link.png"), {"path": str(file)}]
    forms += [{"bytes": b"", "path": str(file)}, np.array([str(file)])[0]]
    for view in embedder().views(forms):
        assert np.array_equal(view, PIXELS)
    Image.fromarray(255 - PIXELS).save(file)  # of a file that is written anew the new content counts
    (view,) = embedder().views([file])
    assert np.array_equal(view, 255 - PIXELS)


WRONG = {
    "floats": (np.zeros((4, 4, 3)), r"float64 \[4, 4, 3\] is no array of pixels: give uint8 or uint16, \[h, w\] or"),
    "jax floats": (jnp.zeros((4, 4, 3)), r"float32 \[4, 4, 3\] is no array of pixels"),
    "channels first": (np.zeros((3, 9, 9), np.uint8), r"uint8 \[3, 9, 9\] is no array of pixels"),
    "signed": (np.zeros((9, 9), int), r"int64 \[9, 9\] is no array of pixels"),
    "truth values": (np.zeros((9, 9), bool), r"bool \[9, 9\] is no array of pixels"),
    "larger than memory": (
        np.broadcast_to(np.uint8(0), (70_000, 70_000, 3)), "70000 x 70000 pixels; 1 to 89478485 are read"
    ),
    "channels first in a tensor": (Tensor(np.zeros((3, 9, 9), np.uint8)), r"uint8 \[3, 9, 9\] is no array of pixels"),
    "a tensor elsewhere": (Tensor(PIXELS, TypeError("use cpu()")), "Tensor is no array of NumPy's: use cpu"),
    "several": (np.zeros((2, 9, 9, 3), np.uint8), r"uint8 \[2, 9, 9, 3\] is no array of pixels"),
    "no channel": (np.zeros((9, 9, 0), np.uint8), "a picture of 9 x 9 pixels"),
    "no pixel": (np.zeros((0, 9, 3), np.uint8), "a picture of 0 x 9 pixels"),
    "a number": (7, "int is not an image; give a path, encoded bytes, a PIL image"),
    "nothing": (None, "NoneType is not an image"),
    "a list": ([[0, 1], [2, 3]], "list is not an image"),
    "no dict of datasets": ({"image": b""}, "no bytes or path"),
    "no picture": (b"GIF89a, nearly", "no picture that can be read"),
    "cut": (encoded(Image.fromarray(PIXELS))[:150], "no picture that can be read"),
    "PIL F": (Image.new("F", (4, 4)), "floating point pixels"),
    "PIL, lazy and cut": (
        Image.open(io.BytesIO(encoded(Image.fromarray(PIXELS))[:150])), "no picture that can be read"
    ),
    "PIL, large": (Image.new("1", (2**16, 2)), "65536 x 2 pixels; 1 to"),
    "URL": ("https://example.com/a.png", "paths are local, gs:// or s3://"),
    "NUL": ("a\0.png", "holds a character NUL"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_is_no_image_is_named_by_its_number(kind, batch_size):
    image, message = WRONG[kind]
    with pytest.raises(UserError, match=f"^image 2.*: .*{message}") as error:
        embedder(batch_size).encode_image([PIXELS, PIXELS, image, PIXELS])
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in (
        ("none.png", "No such file"),
        ("empty.png", "no picture"),
        ("pipe.png", "no regular file"),
        (".", "no regular file"),
    ):
        with pytest.raises(UserError, match=rf"^image 1, .*{name}: .*{message}"):
            embedder().encode_image([PIXELS, str(tmp_path / name) if name != "." else "."])


@pytest.mark.parametrize(
    "single",
    [
        "a.png", Path("a.png"), b"x", bytearray(b"x"), memoryview(b"x"), {"bytes": b"x"}, KINDS["PIL L"][0], PIXELS,
        jnp.asarray(PIXELS), GRAY, Tensor(PIXELS), Tensor(GRAY), np.array("a.png"), None, 7,
    ],
)  # fmt: skip
def test_a_single_image_is_no_list(as_users, single):
    with pytest.raises(UserError, match=r"^images is (a single|one) .*; write \[image\]"):
        embedder().encode_image(single)


class Table:
    """A table of one column, which gives the names of its columns to whoever iterates over it."""

    shape = (2, 1)

    def __iter__(self):
        return iter(["caption"])


@pytest.mark.parametrize("single", ["ab", b"ab", {"a": 1}, np.array("ab"), Table(), None, 7])
def test_a_single_text_or_a_table_is_no_list(as_users, single):
    with pytest.raises(UserError, match="list of (texts|str)"):
        embedder().encode_text(single)
    with pytest.raises(UserError, match="list of (texts|str)"):
        align(embedder(), [PIXELS, PIXELS], single)


@pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 9, 9, 3), np.uint8), iter([])])
def test_no_image_and_no_text_are_refused(nothing):
    with pytest.raises(UserError, match="there are no images to encode"):
        embedder().encode_image(nothing)
    if not isinstance(nothing, np.ndarray):
        with pytest.raises(UserError, match="there are no texts to encode"):
            embedder().encode_text(nothing)


FORMS = {
    "list": list,
    "generator": iter,
    "array": np.stack,
    "tensor": lambda many: Tensor(np.stack(many)),
    "jax array": lambda many: jnp.asarray(np.stack(many)),
    "bytes": lambda many: [encoded(Image.fromarray(image)) for image in many],
    "mixed": lambda many: [encoded(Image.fromarray(image)) if n % 3 else image for n, image in enumerate(many)],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mesh", [None, (2, 4)])
def test_images_in_any_batches_and_on_any_devices_are_the_same(form, mesh):
    many = list(RNG.integers(0, 256, (21, SIZE, SIZE, 3), dtype=np.uint8))
    expected = np.stack(many).reshape(21, SIZE, -1).astype(np.float32)
    model = embedder(batch_size=4, mesh=make_devices_mesh(*mesh) if mesh else None)
    found = model.encode_image(FORMS[form](many))
    assert found.dtype == np.float32 and np.array_equal(found, expected)
    assert np.array_equal(model.encode_image(FORMS[form](many), "global")[:, 0], expected.mean(axis=1))
    np.testing.assert_allclose(model.image_features(FORMS[form](many)), expected.mean(axis=1), rtol=1e-6)
    batches = list(model.image_batches(FORMS[form](many)))
    assert [len(batch) for batch in batches] == ([4] * 5 + [1] if mesh is None else [8, 8, 5])
    assert np.array_equal(np.concatenate(batches), expected)


def test_texts_come_from_any_iterable(as_users):
    texts = ["cat", "a", "a dog", "abcdefghi", "b"]
    tokens, mask = embedder(batch_size=2).encode_text(text for text in texts[:3])
    assert mask.sum(axis=1).tolist() == [3, 1, 5] and tokens[2, :5, 0].tolist() == [97, 32, 100, 111, 103]
    with pytest.warns(UserWarning, match="1 of 5 texts are longer than 6 tokens and lose their end"):
        assert len(embedder(batch_size=2).encode_text(iter(texts))[0]) == 5
    for wrong, message in ((" ", "is empty"), (b"a", "is a bytes, not a str"), ("\ud800", "is not valid Unicode")):
        with pytest.raises(UserError, match=f"text 2 {message}"):
            embedder(batch_size=2).encode_text(["a", "b", wrong])


def test_an_iterator_may_give_the_same_image_again_with_other_content():
    """As Pillow does with the frames of an animation, and readers of videos with one array."""

    def frames():
        array = np.empty((SIZE, SIZE, 3), np.uint8)
        for n in range(9):
            array[:] = n
            yield array
            if n % 3 == 0:
                yield encoded(Image.new("RGB", (SIZE, SIZE), "white"))

    found = embedder(batch_size=2).encode_image(frames())
    assert found[:, 0, 0].tolist() == [0, 255, 1, 2, 3, 255, 4, 5, 6, 255, 7, 8]
    with Image.open(io.BytesIO(animation("GIF"))) as picture:
        first, second = embedder().encode_image(ImageSequence.Iterator(picture))
    assert not np.array_equal(first, second)


def test_few_images_are_held_at_a_time(monkeypatch):
    """Of a generator of files, those of a batch and of the next one."""
    taken, most = 0, 0

    def files():
        nonlocal taken
        for n in range(100):
            taken += 1
            yield encoded(Image.new("RGB", (SIZE, SIZE), (n, 0, 0)))

    for number, batch in enumerate(embedder(batch_size=8).image_batches(files()), 1):
        most = max(most, taken - 8 * (number - 1))
        assert batch[0, 0, 0] == 8 * (number - 1)
    assert taken == 100 and most <= 2 * 8 + 1


def test_progress_is_shown_of_more_than_one_batch(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    embedder(batch_size=4).encode_image([PIXELS] * 4)
    assert capsys.readouterr().err == ""
    embedder(batch_size=4).encode_image([PIXELS] * 8)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["encoding images: 4/8 (50%)", "encoding images: 8/8 (100%)"]
    embedder(batch_size=4).encode_text(iter(["a"] * 5))
    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "encoding texts: 4", "encoding texts: 5",
    ]  # fmt: skip


def test_a_models_functions_are_compiled_once_whatever_the_parameters():
    traced = []
    model, mesh = toy_model(traced), make_devices_mesh(1, 2)
    first, second = (embedder(model=model, mesh=mesh, scale=scale, step=scale) for scale in (1, 2))
    assert np.array_equal(2 * first.encode_image([PIXELS]), second.encode_image([PIXELS]))
    assert len(traced) == 1 and (first.step, second.step) == (1, 2)


def test_align_takes_pairs_of_one_image_and_one_text():
    with pytest.raises(UserError, match="align: 2 images, but 1 texts; it takes pairs"):
        align(embedder(), [PIXELS, GRAY], ["a cat"])


def tokens(images, texts, patches, words, d=4, seed=0):
    """Random unit tokens of images and texts, and a mask that leaves out all tokens of the first text."""
    rng = np.random.default_rng(seed)
    of_images, of_texts = (unit(rng.normal(size=shape)) for shape in ((images, patches, d), (texts, words, d)))
    mask = rng.random((texts, words)) < 0.6
    mask[0] = False
    return of_images.astype(np.float32), of_texts.astype(np.float32), mask


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(scoring, "MAX_IMAGES", 16)
    monkeypatch.setattr(scoring, "MAX_TEXTS", 8)


@pytest.mark.parametrize("mesh", [None, (1, 2), (2, 4)])
@pytest.mark.parametrize("images, texts, patches, words", [(7, 5, 3, 6), (37, 41, 3, 19), (20, 3, 1, 1)])
def test_blocks_on_any_devices_equal_the_whole(small_blocks, mesh, images, texts, patches, words):
    arrays = tokens(images, texts, patches, words)
    found = similarity_matrices(*arrays, make_devices_mesh(*mesh) if mesh else None)
    for mine, expected in zip(found, token_similarity(*arrays)):
        np.testing.assert_allclose(mine, expected, atol=1e-6)


def test_global_embeddings_have_their_cosine_both_ways(small_blocks):
    images, texts, _ = tokens(30, 19, 1, 1)
    for found in similarity_matrices(images, texts, np.ones((19, 1), bool)):
        np.testing.assert_allclose(found, images[:, 0] @ texts[:, 0].T, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_tokens_may_lie_in_files_and_have_few_bits(small_blocks, tmp_path, dtype):
    """They are compared exactly, as float32 of the same values."""
    images, texts, mask = tokens(37, 21, 3, 11)
    stored = np.memmap(tmp_path / "tokens", dtype, "w+", shape=images.shape)
    stored[:] = images
    found = similarity_matrices(stored, jnp.asarray(texts, dtype), mask)
    rounded = (x.astype(dtype).astype(np.float32) for x in (images, texts))
    for mine, expected in zip(found, token_similarity(*rounded, mask)):
        np.testing.assert_allclose(mine, expected, atol=1e-6)


def test_lists_and_arrays_of_other_libraries_are_scored(as_users):
    arrays = tokens(7, 5, 3, 6)
    for form in (np.ndarray.tolist, Tensor):
        for mine, expected in zip(similarity_matrices(*map(form, arrays)), similarity_matrices(*arrays)):
            assert np.array_equal(mine, expected)
        for mine, expected in zip(top_k(*map(form, arrays), np.int64(2)), top_k(*arrays, 2)):
            assert np.array_equal(mine, expected)


def test_blocks_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(scoring, "MAX_BLOCK_BYTES", 4 * 16 * 3 * 4)
    shapes = [both[2].shape for both in similarity_blocks(*tokens(70, 65, 3, 6))]
    assert max(rows for rows, _ in shapes) == 16 and max(columns for _, columns in shapes) == 8
    assert sum(rows * columns for rows, columns in shapes) == 70 * 65


@pytest.mark.parametrize("wrong, message", [
    ((np.ones((2, 3, 4), np.float32), np.ones((2, 3, 5), np.float32), np.ones((2, 3), bool)), "with the same d"),
    ((np.ones((2, 3, 4), np.float32), np.ones((2, 3, 4), np.float32), np.ones((2, 3), np.float32)), "must be boolean"),
    ((np.ones((2, 3, 4), ">f4"), np.ones((2, 3, 4), np.float32), np.ones((2, 3), bool)), "JAX has no tokens of dtype.'>f4'."),
    ((np.ones((2, 3, 4), "g"), np.ones((2, 3, 4), np.float32), np.ones((2, 3), bool)), "JAX has no tokens of dtype.'float128'."),
    ((np.ones((2, 3, 4), np.float32), np.ones((2, 3, 4), np.float32), None), "must be .j, t."),
    ((np.ones((2, 3, 4), int), np.ones((2, 3, 4), np.float32), np.ones((2, 3), bool)), "must be floating point"),
])  # fmt: skip
def test_tokens_that_do_not_fit_are_refused(as_users, wrong, message):
    for scores in (similarity_matrices, lambda *arrays: top_k(*arrays, 1)):
        with pytest.raises(ValueError, match=message):
            scores(*wrong)


@pytest.mark.parametrize("query", ["text", "image"])
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(0, 999))
def test_the_best_answers_are_those_of_a_sort(query, images, texts, k, seed):
    arrays = tokens(images, texts, 2, 3, seed=seed)
    arrays[0][: images // 2] = arrays[0][0]  # equal ones
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "MAX_IMAGES", 16)
        patch.setattr(scoring, "MAX_TEXTS", 8)
        found, indices = top_k(*arrays, k, query=query)
        to_text, to_image = similarity_matrices(*arrays)
    scores = to_image.T if query == "text" else to_text
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert np.array_equal(indices, expected)
    assert np.array_equal(found, np.take_along_axis(scores, expected, axis=1))


def test_the_best_answers_of_a_diverged_model_are_still_answers(as_users):
    images, texts, mask = tokens(9, 5, 2, 3)
    images[:4] = np.nan
    mask[:] = True
    scores, indices = top_k(images, texts, mask, 7)
    assert np.isfinite(scores[:, :5]).all() and (scores[:, 5:] == -np.inf).all()
    assert sorted(indices[0, :5]) == [4, 5, 6, 7, 8] and indices[:, 5:].tolist() == [[0, 1]] * 5
    none = top_k(images[:0], texts, mask, 7)
    assert none[0].shape == none[1].shape == (5, 0)
    for wrong in (dict(k=0), dict(k=2.0), dict(k="3"), dict(k=None), dict(k=1, query="word")):
        with pytest.raises(UserError, match="must be one of text, image, and k=.* a whole number of at least 1"):
            top_k(images, texts, mask, **wrong)


def test_a_dense_matrix_that_is_too_large_is_refused_and_blocks_are_named(monkeypatch):
    """Before anything of its size is made; what is traced is not counted."""
    images, texts = (np.broadcast_to(np.float32(1), (count, n, 4)) for count, n in ((30_000, 49), (20_000, 20)))
    mask = np.broadcast_to(True, texts.shape[:2])
    message = (
        r"would take 2,190\.5 GiB, and token_similarity makes at most 2 GiB .* filip_jax.inference.similarity_matrices"
    )
    with pytest.raises(ValueError, match=message):
        token_similarity(images, texts, mask)
    shapes = jax.eval_shape(token_similarity, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (images, texts, mask)))
    assert shapes[0].shape == (30_000, 20_000)
    small = tokens(8, 5, 3, 6)
    monkeypatch.setattr(similarity, "MAX_DENSE_BYTES", 4 * 8 * 5 * 3 * 6)
    token_similarity(*small)
    monkeypatch.setattr(similarity, "MAX_DENSE_BYTES", 4 * 8 * 5 * 3 * 6 - 1)
    with pytest.raises(ValueError, match="block by block"):
        token_similarity(*small)


def test_programs_of_a_model_are_kept_for_the_next_process(finished, tmp_path, monkeypatch):
    """In the user's cache, if it is the user's alone and JAX was not told of another."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before, folder = {name: getattr(jax.config, name) for name in names}, tmp_path / "filip_jax/compiled"
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        load_model(finished[0])
        assert jax.config.jax_compilation_cache_dir == str(folder) and folder.stat().st_mode & 0o077 == 0
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
        load_model(finished[0])
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
        jax.config.update("jax_compilation_cache_dir", None)
        folder.chmod(0o777)
        with pytest.raises(UserError, match="others may write to"):
            compiled.keep_programs(folder)
        load_model(finished[0])
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_the_oldest_programs_give_way(tmp_path):
    for n in range(5):
        (tmp_path / f"{n}").write_bytes(b"x" * 10)
        os.utime(tmp_path / f"{n}", (0, 9 - n))
    (tmp_path / "link").symlink_to("/etc/passwd")
    compiled.remove_oldest(tmp_path, 50)
    assert len(list(tmp_path.iterdir())) == 6
    compiled.remove_oldest(tmp_path, 25)
    assert {file.name for file in tmp_path.iterdir()} == {"0", "1", "link"}
