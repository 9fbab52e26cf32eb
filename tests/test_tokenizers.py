"""Tokenizers of public weights: the public code's ids of odd texts, nothing special from a text itself, files of strangers."""

import base64
import copy
import gzip
import json
import pickle
from functools import reduce
from operator import getitem

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from memory_source import Memory

from filip_jax.data import tokenizer_json
from filip_jax.data.charsmap import growth_of
from filip_jax.data.sentence_pieces import canonical
from filip_jax.data.tokenizer import Tokenizer, make_tokenizer
from filip_jax.errors import UserError
from filip_jax.inference.run import check_fits
from filip_jax.losses import token_similarity
from filip_jax.models import Model
from filip_jax.models.tower import ImageInput, TextInput

FOLDER = ROOT / "tests/golden/tokenizers"
GOLDEN = json.loads((FOLDER / "ids.json").read_text("utf-8"))
TEXTS, LENGTH = GOLDEN["texts"], GOLDEN["length"]
NAMED = {"</s>", "<pad>", "<eos>", "<bos>", "<unk>"}  # of which the public code makes special tokens, and ours does not
NO_SOURCE = Memory([("unread",)])
SIGLIP = dict(vocab_size=1, canonicalize=True, bos=False, eos_as_pad=True)
SIGLIP2 = dict(eos="<eos>", pad="<pad>", lower_case=True)


def model_file():
    return gzip.decompress((FOLDER / "siglip.model.gz").read_bytes())


def charsmap():
    """The table of characters in the sentencepiece model: a protobuf field behind the name of its rule."""
    model = model_file()
    at, size, shift, more = model.index(b"\n\x08nmt_nfkc\x12") + 11, 0, 0, True
    while more:
        size, shift, more, at = size | (model[at] & 127) << shift, shift + 7, model[at] > 127, at + 1
    return model[at : at + size]


def unigram():
    spec = json.loads((FOLDER / "unigram.json").read_text("utf-8"))
    spec["normalizer"]["precompiled_charsmap"] = base64.b64encode(charsmap()).decode()
    return spec


def made(folder, spec, **options):
    file = folder / "tokenizer.json"
    file.write_text(spec if isinstance(spec, str) else json.dumps(spec), "utf-8")
    return Tokenizer(make_tokenizer(source=NO_SOURCE, name="tokenizer_json", path=str(file), **options))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    file = tmp_path_factory.mktemp("siglip") / "spiece.model"
    file.write_bytes(model_file())
    return Tokenizer(make_tokenizer(source=NO_SOURCE, name="sentencepiece", path=str(file), **SIGLIP))


@pytest.fixture(scope="module")
def siglip2():
    path = str(FOLDER / "siglip2.json")
    return Tokenizer(make_tokenizer(source=NO_SOURCE, name="tokenizer_json", path=path, **SIGLIP2))


def names_none(text):
    return not any(name in text for name in NAMED)


@pytest.mark.smoke
def test_siglips_ids_are_the_public_ones(siglip):
    ids, truncated = siglip.encode(TEXTS, LENGTH)
    assert (siglip.pad_id, siglip.has_bos, siglip.eos_is_pad, siglip.vocab_size) == (1, False, True, 500)
    plain = [n for n, text in enumerate(TEXTS) if names_none(text)]
    assert len(plain) == len(TEXTS) - 2 and np.array_equal(ids[plain], np.array(GOLDEN["siglip"])[plain])
    assert truncated.sum() == 1 and truncated[TEXTS.index("dog " * 90)] and (ids[:, -1] == 1).all()
    assert ids[TEXTS.index("")].tolist() == [1] * LENGTH == ids[TEXTS.index("...")].tolist()


def test_siglip2s_ids_are_the_public_ones(siglip2):
    assert (siglip2.pad_id, siglip2.has_bos, siglip2.eos_is_pad, siglip2.vocab_size) == (0, False, False, 800)
    for text, expected in zip(TEXTS, GOLDEN["siglip2"]):
        if names_none(text.replace("</s>", "")):  # which is no token of this one
            ids, truncated = siglip2.encode([text], LENGTH)
            rest = LENGTH - 1 - len(expected)
            assert ids[0].tolist() == [*expected[: LENGTH - 1], 1, *[0] * rest] and truncated[0] == (rest < 0), text


def test_what_a_tiny_vocabulary_of_clips_lacks_is_left_out():
    """The library calls it EOS, which would end the text; nothing else differs on any odd text."""
    file, special = (
        str(ROOT / "tests/weights/hf_clip_gelu/tokenizer.json"),
        dict(bos="<|startoftext|>", eos="<|endoftext|>"),
    )
    own = Tokenizer(make_tokenizer(source=NO_SOURCE, name="tokenizer_json", path=file, pad="!", **special)).pieces
    public = pytest.importorskip("tokenizers").Tokenizer.from_file(file)
    public.no_truncation()
    texts = [text for text in TEXTS if not any(name in text for name in special.values())]
    theirs = [public.encode(text, add_special_tokens=False).ids for text in texts]
    assert sum(own.eos in ids for ids in theirs) > 5
    assert [own.ids(text) for text in texts] == [[n for n in ids if n != own.eos] for ids in theirs]


def test_a_unigram_files_ids_are_the_public_ones(tmp_path):
    model = made(tmp_path, unigram(), eos="</s>", pad="</s>")
    for text, expected in zip(TEXTS, GOLDEN["unigram"]):
        if names_none(text):
            assert model.pieces.ids(text) == expected, text


@pytest.mark.parametrize("name", sorted(NAMED - {"<unk>"}))
def test_no_text_makes_a_special_token(siglip, siglip2, tmp_path, name):
    for model in (siglip, siglip2, made(tmp_path, unigram(), eos="</s>", pad="<pad>")):
        ids = model.pieces.ids(f"a {name} dog{name}{name.upper()}")
        assert ids and not {model.pieces.bos, model.pieces.eos, model.pieces.pad} & set(ids)
        assert len(ids) == len(model.pieces.offsets(f"a {name} dog{name}{name.upper()}"))


def test_what_has_no_piece_is_no_special_token_either(tmp_path):
    """A file may name its EOS as its unknown piece: it is left out of texts all the same."""
    spec = unigram()
    spec["model"]["unk_id"] = 1
    assert 1 not in made(tmp_path, spec, eos="</s>", pad="<pad>").pieces.ids("a dog 𓀀")
    assert 2 in made(tmp_path, unigram(), eos="</s>", pad="<pad>").pieces.ids("a dog 𓀀")


CLIPS = dict(bos="<|startoftext|>", eos="<|endoftext|>", pad="!")
PADDED = {  # texts and the ids that transformers 5.24 gives
    "dog!!": [98, 92, 0, 41, 99],
    "! !!! the dog": [98, 41, 0, 0, 41, 94, 92, 99],
    " A red\n!cat!!  ": [98, 56, 93, 41, 91, 0, 41, 99],
}


@pytest.mark.parametrize("file", ["tokenizer.json", "merges.txt"])
def test_a_piece_of_a_text_may_have_the_pads_number(file):
    """As CLIP's "!" has; a text's length counts it, since EOS stands behind it. merges.txt has its numbers in vocab.json."""
    path = str(ROOT / "tests/weights/hf_clip_quick_gelu" / file)
    model = Tokenizer(make_tokenizer(source=NO_SOURCE, name="tokenizer_json", path=path, **CLIPS))
    ids, _ = model.encode(list(PADDED), 12)
    assert ids.tolist() == [[*expected, *[0] * (12 - len(expected))] for expected in PADDED.values()]
    lengths = TextInput(vocab_size=100, length=12, causal=True, pad_id=model.pad_id).lengths(jnp.asarray(ids))
    assert lengths.tolist() == list(map(len, PADDED.values()))


def test_spoilt_merges_are_refused_in_one_line(tmp_path):
    source = ROOT / "tests/weights/hf_clip_quick_gelu"
    for vocabulary, merges, message in (
        (None, b"a n\n", "vocab.json"),
        (b"[]", b"a n\n", "list"),
        (b"{}", b"a n\n", "startoftext"),
        ((source / "vocab.json").read_bytes(), b"#version\na n n\n", "a line that is not two pieces"),
        ((source / "vocab.json").read_bytes(), b"a \xe2\x98\x83\n", "the package tokenizers cannot apply it"),
        ((source / "vocab.json").read_bytes(), b"\xff", "decode"),
    ):
        (tmp_path / "merges.txt").write_bytes(merges)
        if vocabulary is not None:
            (tmp_path / "vocab.json").write_bytes(vocabulary)
        with pytest.raises(UserError, match=message) as error:
            path = str(tmp_path / "merges.txt")
            make_tokenizer(source=NO_SOURCE, name="tokenizer_json", path=path, **CLIPS)
        assert "\n" not in str(error.value)


@given(text=st.text(max_size=40))
def test_of_any_text_spans_and_ids_are_equally_many_and_lie_inside(siglip, siglip2, text):
    for model in (siglip, siglip2):
        ids, _ = model.encode([text], 300)
        spans = model.spans(text, 300)
        assert len(spans) == len(model.pieces.ids(text)) + 1 and ids[0, len(spans) - 1] == model.pieces.eos
        assert (ids[0, len(spans) :] == model.pad_id).all()
        assert all(0 <= start <= end <= len(text) for start, end in spans)


def test_spans_name_the_words(siglip, siglip2):
    text = "A RED Apple's core!"
    for model in (siglip, siglip2):
        pieces = [text[start:end] for start, end in model.spans(text, 40)]
        assert pieces[-1] == "" and "".join("".join(pieces).split()).startswith("ARED")
        assert any(piece.strip() and piece.strip() in "Apple" for piece in pieces)


def test_canonical_texts():
    assert canonical(" A Dog's (best)\tFRIEND_ No. 1!\n") == "a dogs best friend no 1"
    assert canonical("“Ä” — ß") == "“ä” — ß", "only ASCII's punctuation goes"


def test_what_takes_part_where_eos_is_the_pad(siglip):
    """The words do; EOS is a pad and does not; a text of no word is similar to nothing, and its score is 0, not NaN."""
    ids, _ = siglip.encode(["a dog", "...", "a dog 🐕"], 8)
    tower = TextInput(vocab_size=500, length=8, causal=False, pad_id=siglip.pad_id)
    assert tower.lengths(jnp.asarray(ids)).tolist() == [
        len(siglip.pieces.ids(text)) for text in ("a dog", "", "a dog 🐕")
    ]
    mask = tower.mask(jnp.asarray(ids))
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(2, 4, 3)), rng.normal(size=(3, 8, 3))
    both = token_similarity(jnp.float32(images), jnp.float32(texts), mask)
    assert all(np.isfinite(scores).all() and (scores[:, 1] == 0).all() and (scores[:, 0] != 0).all() for scores in both)


def test_a_tokenizer_that_does_not_fit_the_model(siglip, siglip2):
    def model(pad=1, ends=(True, True), pooling="tokens"):
        text = TextInput(vocab_size=800, length=8, causal=False, pad_id=pad)
        rest = dict(sizes={}, noise_size=0, image=ImageInput(1, (1, 1)), metadata={})
        return Model(*[dict] * 6, pooling=pooling, text=text, ends_in_similarity=ends, **rest)

    check_fits(siglip, model())
    check_fits(siglip2, model(pad=0, ends=(True, False)))
    check_fits(siglip, model(ends=(False, False), pooling="global"))
    for tokenizer, wrong, message in (
        (siglip, model(pad=0), r"the tokenizer's pads are 1, but model.text.pad_id=0: set it to 1"),
        (siglip2, model(), r"the tokenizer's pads are 0, but model.text.pad_id=1: set it to 0"),
        (siglip, model(ends=(False, True)), "bos_in_similarity=False .* has no BOS"),
        (siglip, model(ends=(True, False)), "eos_in_similarity=False .* EOS is its pad"),
    ):
        with pytest.raises(UserError, match=message):
            check_fits(tokenizer, wrong)


def test_they_go_to_workers_and_into_files(siglip, siglip2):
    for model in (siglip, siglip2):
        for again in (pickle.loads(pickle.dumps(model)), Tokenizer(model.model)):
            assert again.sha256 == model.sha256
            assert np.array_equal(again.encode(TEXTS, 30)[0], model.encode(TEXTS, 30)[0])


def test_our_own_options_leave_the_file_as_it_is(tmp_path):
    (tmp_path / "a.model").write_bytes(model_file())
    options = dict(source=NO_SOURCE, name="sentencepiece", path=str(tmp_path / "a.model"), vocab_size=1)
    with pytest.raises(UserError, match=r"ids of BOS, EOS, pad are -1, 1, 0, .* set tokenizer.bos=False"):
        Tokenizer(make_tokenizer(**options))
    assert make_tokenizer(**options) == model_file()
    plain = Tokenizer(make_tokenizer(**options, bos=False))
    assert (plain.pad_id, plain.has_bos, plain.eos_is_pad) == (0, False, False)
    for wrong in ({"canonicalize": 1}, {"bos": "no"}, {"eos_as_pad": None}):
        with pytest.raises(UserError, match="is not True or False"):
            make_tokenizer(**options | wrong)
    for content in (
        b'{"name": "sentencepiece"}',
        b'{"name": "sentencepiece", "model": "?"}',
        b'{"name": "sentencepiece", "model": 3}',
    ):
        with pytest.raises(UserError, match="not one of filip_jax"):
            Tokenizer(content)


SPEC = json.loads((FOLDER / "siglip2.json").read_text("utf-8"))


def changed(path, value):
    """The small file of SigLIP 2 with one thing changed."""
    spec = copy.deepcopy(SPEC)
    *place, last = path
    reduce(getitem, place, spec)[last] = value
    return spec


SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}
GROW = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 9}
HOSTILE = {
    "no JSON": ("{", "cannot be read"),
    "deep": ("[" * 100_000, "cannot be read"),
    "a list": ("[]", "cannot be read: 'list' object"),
    "no model": ("{}", "no tokenizer.json that can be applied"),
    "half a character": (json.dumps(changed(("model", "vocab", "\ud800"), 800)), "tokenizer.path=.*surrogates not allowed"),
    "a regular expression": (changed(("pre_tokenizer",), SPLIT), r"regular expression that is not applied: '\(a\+\)\+\$'"),
    "growth": (changed(("normalizer",), {"type": "Sequence", "normalizers": [GROW] * 3}), "grow more than 32 times"),
    "nothing to find": (changed(("normalizer", "normalizers", 1, "pattern"), {"String": ""}), "normalizer looks for an empty text"),
    "many parts": (changed(("normalizer",), {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 99}), "more than 32 parts"),
    "empty sequences": (
        changed(("normalizer",), {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}] * 5000}),
        "more than 32 parts",
    ),
    "another part": (changed(("normalizer",), {"type": "Python"}), "'Python' is not one of NFC"),
    "another model": (changed(("model", "type"), "WordLevel"), "'WordLevel' is not one of BPE, Unigram, WordPiece"),
    "dropout": (changed(("model", "dropout"), 0.1), "at random"),
    "a long piece": (changed(("model", "vocab", "a" * 257), 800), "a piece of more than 256"),
    "a number": (changed(("model", "vocab", "xyzw"), 1 << 40), "not numbered from 0"),
    "NaN": (json.dumps(changed(("model", "dropout"), float("nan"))), "cannot be read"),
    "merges": (changed(("model", "merges"), [["a", "☃"]]), "the package tokenizers cannot apply it"),
    "an added number": (changed(("added_tokens", 0, "id"), 7), "'<pad>' cannot have the number 7"),
    "an empty token": (changed(("added_tokens", 0, "content"), ""), "added token without a character"),
    "many tokens": (changed(("added_tokens",), [SPEC["added_tokens"][0]] * 9000), "9000 added tokens"),
    "added is no list": (changed(("added_tokens",), 3), "no tokenizer.json that can be applied"),
    "words": (
        changed(("model",), {"type": "WordPiece", "vocab": {"[UNK]": 0, "a": 1}, "max_input_chars_per_word": 1 << 30}),
        "at most 1000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spec, message", HOSTILE.values(), ids=HOSTILE)
def test_a_strangers_file_is_refused_in_one_line(tmp_path, spec, message, capfd):
    with pytest.raises(UserError, match=message) as error:
        made(tmp_path, spec, **SIGLIP2)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000 and not capfd.readouterr().err


def test_options_that_name_no_token(tmp_path, monkeypatch):
    for options, message in (
        (SIGLIP2 | {"eos": "</s>"}, "tokenizer.eos='</s>' is none of its tokens"),
        (SIGLIP2 | {"bos": "<start>"}, "tokenizer.bos='<start>'"),
        ({"eos": "<eos>"}, "missing a required .*'pad'"),
    ):
        with pytest.raises(UserError, match=message):
            made(tmp_path, SPEC, **options)
    with pytest.raises(UserError, match="needs its file"):
        make_tokenizer(source=NO_SOURCE, name="tokenizer_json", path="", **SIGLIP2)
    monkeypatch.setattr(tokenizer_json, "MAX_FILE_BYTES", 100)
    with pytest.raises(UserError, match="more than 100 bytes"):
        made(tmp_path, SPEC, **SIGLIP2)


def test_a_table_of_characters_that_leads_out_of_itself(tmp_path, capfd):
    """The package would stop the process at it, with pages of a backtrace."""
    table = charsmap()
    assert growth_of(base64.b64encode(table).decode()) == 18, "as the Arabic ligature of a whole phrase"
    size = int.from_bytes(table[:4], "little")
    units = np.frombuffer(table, "<u4", size // 4, 4).copy()
    far, value = units.copy(), units.copy()
    far[0] |= 0x3FFFFF << 10
    value[units >= 1 << 31] = 0xFFFFFFFF
    bomb = table[: 4 + size] + b"x" * 65 + table[4 + size :]
    for wrong in (
        b"",
        b"\0\0",
        table[:999],
        table[:4] + far.tobytes() + table[4 + size :],
        table[:4] + value.tobytes() + table[4 + size :],
        bomb,
        table + b"\xff",
    ):
        spec = unigram()
        spec["normalizer"]["precompiled_charsmap"] = base64.b64encode(wrong).decode()
        with pytest.raises(UserError, match="precompiled_charsmap is damaged"):
            made(tmp_path, spec, eos="</s>", pad="</s>")
    spec["normalizer"]["precompiled_charsmap"] = base64.b64encode(table[:-1] + b"x" * 40 + b"\0").decode()
    with pytest.raises(UserError, match="grow more than 32 times"):
        made(tmp_path, spec, eos="</s>", pad="</s>")
    assert not capfd.readouterr().err


def test_a_file_at_its_limits_is_applied_at_once(tmp_path):
    """The longest pieces, each a beginning of the next, on the longest text that is read: a time in proportion to both."""
    pieces = [["<unk>", 0.0], ["</s>", 0.0], *[["a" * n, float(-n)] for n in range(1, 257)]]
    spec = {"added_tokens": None, "pre_tokenizer": None, "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces}}
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 32}
    model = made(tmp_path, spec | {"normalizer": grow}, eos="</s>", pad="</s>")
    assert len(model.pieces.ids("a" * 10**6)) >= 2048 * 32 // 256
