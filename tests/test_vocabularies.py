"""CLIP's byte pairs and BERT's word pieces beside what is public; a tokenizer from the command line."""

import gzip
import json
import pickle
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from memory_source import Memory

from filip_jax.data import tokenizer
from filip_jax.data.sources import make_source
from filip_jax.data.tokenizer import Tokenizer, make_tokenizer
from filip_jax.data.vocabularies import CLEANED, _clip_cleaner
from filip_jax.errors import UserError
from filip_jax.models.tower import TextInput
from filip_jax.tools.tokenizer import save_tokenizer

NO_SOURCE = Memory([("unread",)])
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "##s", "cafe", "狗", "一", ",", "'", "play", "##ing")
# The public reference has no wheel for Python 3.13.
with_public = pytest.mark.skipif(sys.version_info >= (3, 13), reason="instant_clip_tokenizer: none for Python 3.13")


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    """The public file, as the public package carries it."""
    import instant_clip_tokenizer

    (library,) = Path(instant_clip_tokenizer.__file__).parent.glob("*.so")
    content = library.read_bytes()
    start = content.index(b"#version: 0.2\ni n\n")
    lines = content[start : start + 4_000_000].split(b"\n")[:100_000]
    file = tmp_path_factory.mktemp("clip") / "bpe_simple_vocab_16e6.txt.gz"
    file.write_bytes(gzip.compress(b"\n".join(lines)))
    return str(file)


@pytest.fixture(scope="module")
def clip(merges):
    return Tokenizer(make_tokenizer(source=NO_SOURCE, name="clip", path=merges))


@pytest.fixture(scope="module")
def public():
    from instant_clip_tokenizer import Tokenizer as Public

    return Public()


def public_ids(public, texts):
    return np.array([public.tokenize_batch([text], context_length=77)[0] for text in texts])


def lengths(ids):
    return TextInput(vocab_size=1, length=1, causal=True).lengths(jnp.asarray(ids)).tolist()


def corpus():
    lines = [line for name in ("alt_texts", "alt_texts_held_out") for line in _lines(ROOT / f"tests/golden/{name}.tsv")]
    return lines + [line for page in sorted((ROOT / "docs").glob("*.md")) for line in _lines(page)]


def _lines(file):
    return [line.split("\t")[-1] for line in file.read_text("utf-8").splitlines() if line.strip()]


@pytest.mark.smoke
@with_public
def test_clips_ids_are_the_public_ones_on_a_corpus(clip, public):
    texts = [text for text in corpus() if clip.pieces.clean(text) == " ".join(text.split()).lower()]
    assert len(texts) > 700 and clip.vocab_size == 49_408
    ids, truncated = clip.encode(texts, 77)
    expected = public_ids(public, texts)
    assert np.array_equal(ids, expected)
    assert truncated.sum() == 0 or (expected[truncated, -1] == 49_407).all()


@with_public
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Cn", "Co", "Zl", "Zp"]), max_size=30))
def test_clips_ids_are_the_public_ones_for_any_signs(clip, public, text):
    # The public reference neither repairs texts nor knows Python's rule for the last sigma of a word.
    if clip.pieces.clean(text) == " ".join(text.split()).lower() and "Σ" not in text:
        assert clip.encode([text], 77)[0][0].tolist() == public_ids(public, [text])[0].tolist()


@with_public
def test_clips_ids_of_odd_texts_are_open_clips(clip):
    """Repaired texts, too; but what spells open_clip's own special tokens is text, where open_clip lets it be them."""
    golden = json.loads((ROOT / "tests/golden/tokenizers/ids.json").read_text("utf-8"))
    for text, expected in zip(golden["texts"], golden["clip"]):
        ids, truncated = clip.encode([text], golden["length"])
        assert (ids[0].tolist() == expected + [0] * (len(ids[0]) - len(expected))) == ("<start_of_text>" not in text), (
            text
        )
        assert truncated[0] == (text == "dog " * 90) and not {49406, 49407} & set(clip.pieces.ids(text))


@with_public
def test_clips_merges_are_read_in_the_files_of_hugging_face(clip, merges, tmp_path):
    text = gzip.decompress(Path(merges).read_bytes()).decode()
    lines = text.split("\n")[1 : 49_408 - 512 - 2 + 1]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n", "utf-8")
    vocab = json.loads(clip.model)["tokenizer"]["model"]["vocab"]
    for name, merge in (("a.json", lines), ("b.json", [line.split() for line in lines])):
        (tmp_path / name).write_text(json.dumps({"model": {"merges": merge, "vocab": vocab}}), "utf-8")
    for name in ("merges.txt", "a.json", "b.json"):
        assert make_tokenizer(source=NO_SOURCE, name="clip", path=str(tmp_path / name)) == clip.model
    swapped = vocab | {"a": vocab["b"], "b": vocab["a"]}
    for content in (
        {"merges": lines, "vocab": swapped},
        {"merges": lines[:9], "vocab": vocab},
        {"merges": 3},
        {"merges": [3]},
    ):
        (tmp_path / "c.json").write_text(json.dumps({"model": content}), "utf-8")
        with pytest.raises(UserError, match="c.json' is not bpe_simple_vocab_16e6.txt.gz"):
            make_tokenizer(source=NO_SOURCE, name="clip", path=str(tmp_path / "c.json"))


@with_public
def test_clip_repairs_texts_and_cuts_them(clip):
    ids, truncated = clip.encode(["cafÃ© &amp;amp; bar", "café & bar", "dog " * 90, "  A\n DOG"], 12)
    assert ids[0].tolist() == ids[1].tolist() and ids[3, :4].tolist() == [49406, 320, 1929, 49407]
    assert truncated.tolist() == [False, False, True, False] and ids[2, -1] == 49407


@with_public
@pytest.mark.parametrize(
    "text", ["A red Apple's core", "cafÃ©, a dog", "Tom &amp; Jerry run", "İstanbul by night 🌃!", ""]
)
def test_spans_name_the_characters_of_each_token(clip, text):
    ids, _ = clip.encode([text], 77)
    spans = clip.spans(text, 77)
    assert len(spans) == lengths(ids)[0]
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    starts = [start for start, _ in spans]
    assert starts == sorted(starts)
    for word in ("Apple", "dog", "Jerry", "night"):
        if word in text:
            assert any(text[start:end].strip() == word for start, end in spans)


@with_public
def test_a_token_numbered_zero_is_no_pad(clip):
    ids, _ = clip.encode(["!¡ ok", "a dog"], 8)  # "!" within a word is CLIP's token 0
    assert ids[0, 1] == 0 and ids[0, 2] != 0
    assert lengths(ids) == [len(clip.pieces.ids("!¡ ok")) + 2, 4]
    assert lengths(np.zeros((1, 5), np.int32)) == [0]


@with_public
def test_vocabularies_go_to_workers_and_into_files(clip):
    again = Tokenizer(pickle.loads(pickle.dumps(clip)).model)
    assert again.sha256 == clip.sha256 and np.array_equal(again.encode(["a dog"], 9)[0], clip.encode(["a dog"], 9)[0])


def test_bert_cuts_words_as_wukong_does(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    bert = Tokenizer(make_tokenizer(source=NO_SOURCE, name="bert", path=str(tmp_path / "vocab.txt")))
    ids, truncated = bert.encode(["一dogs, Café", "playing 猫", "a a a a a a a"], 8)
    tokens = [[WORDS[n] for n in row] for row in ids]
    assert tokens[0] == ["[CLS]", "一", "dog", "##s", ",", "cafe", "[SEP]", "[PAD]"]
    assert tokens[1][:5] == ["[CLS]", "play", "##ing", "[UNK]", "[SEP]"]
    assert tokens[2] == ["[CLS]", *"aaaaaa", "[SEP]"] and truncated.tolist() == [False, False, True]
    spans = [("一dogs, Café")[start:end] for start, end in bert.spans("一dogs, Café", 8)]
    assert spans == ["", "一", "dog", "s", ",", "Café", ""]
    assert bert.vocab_size == len(WORDS)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("clip", b"no merges", r"bpe_simple_vocab_16e6.txt.gz, as in the package open_clip_torch: it lacks a heading"),
        ("bert", b"a\nb\n", r"is not vocab.txt, .*\[PAD\] is not its first line"),
        ("bert", b"[PAD]\n[UNK]\n", r"is not vocab.txt, .*\[CLS\]"),
        ("bert", b"\xff", "cannot be read"),
        ("words", b"", "tokenizer.name='words' is not one of sentencepiece, clip, bert"),
    ],
)
def test_what_is_no_vocabulary(tmp_path, name, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=message):
        make_tokenizer(source=NO_SOURCE, name=name, path=str(tmp_path / "file"))


def test_a_vocabulary_that_is_nowhere():
    with pytest.raises(UserError, match="tokenizer.name='bert' needs its file: set tokenizer.path to vocab.txt"):
        make_tokenizer(source=NO_SOURCE, name="bert", path="")
    with pytest.raises(UserError, match="JSON is not one of filip_jax"):
        Tokenizer(b'{"name": "clip"}')


def test_a_file_in_an_installed_package_is_found(tmp_path, monkeypatch):
    (tmp_path / "cn_clip/clip").mkdir(parents=True)
    (tmp_path / "cn_clip/__init__.py").write_text("raise SystemExit('this package must not be imported')")
    (tmp_path / "cn_clip/clip/vocab.txt").write_text("\n".join(WORDS), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert Tokenizer(make_tokenizer(source=NO_SOURCE, name="bert", path="")).vocab_size == 14


def test_training_reads_all_texts_of_all_origins_and_steps_over_bad_records(tmp_path):
    texts = [("a dog number", f"ein Hund Nummer {n}") for n in range(50)]
    source = Memory([*texts[:7], None, *texts[8:]])
    report = save_tokenizer(source, tmp_path / "new/words.model", vocab_size=400, captions=50)
    tokenizer = Tokenizer((tmp_path / "new/words.model").read_bytes())
    assert f"{tokenizer.vocab_size} pieces from 98 texts" in report and "--config.tokenizer.path=" in report
    assert max(len(tokenizer.pieces.ids(text)) for text in ("a dog number", "Hund Nummer")) <= 4
    for output, captions, message in (
        (tmp_path / "a.txt", 5, "end in .model"),
        (tmp_path / "a.model", 0, "captions=0"),
    ):
        with pytest.raises(UserError, match=message):
            save_tokenizer(source, output, vocab_size=400, captions=captions)


def test_a_trained_tokenizer_is_the_one_of_a_run(demo_config, tmp_path):
    source = make_source(demo_config["source"] | {"scenes": 200})
    save_tokenizer(source, tmp_path / "a.model", vocab_size=300, captions=200)
    section = demo_config["tokenizer"] | {"vocab_size": 300, "captions": 200}
    assert make_tokenizer(source=source, **section) == (tmp_path / "a.model").read_bytes()


def test_of_a_strangers_tokenizer_only_the_pieces_are_applied(tmp_path):
    """Regular expressions and replacements that its JSON names could take or make any amount."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    model = make_tokenizer(source=NO_SOURCE, name="bert", path=str(tmp_path / "vocab.txt"))
    content = json.loads(model)
    rules = content["tokenizer"]
    rules["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}
    rules["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 9}
    rules["model"]["max_input_chars_per_word"] = 1 << 30
    hostile = Tokenizer(json.dumps(content).encode())
    for text in ("a dog, playing", "a" * 300):
        assert np.array_equal(hostile.encode([text], 12)[0], Tokenizer(model).encode([text], 12)[0])


def test_nested_html_is_undone_in_the_beginning_of_a_text_only(monkeypatch):
    ftfy, lengths = pytest.importorskip("ftfy"), []
    monkeypatch.setattr(ftfy, "fix_text", lambda text: lengths.append(len(text)) or text)
    _clip_cleaner()("&" + "amp;" * 16_000)
    assert lengths == [CLEANED]


def test_a_tokenizer_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "MAX_MODEL_BYTES", 1000)
    file = tmp_path / "m.model"
    file.write_bytes(bytes(1001))
    with pytest.raises(UserError, match="m.model has more than 1000 bytes"):
        make_tokenizer(source=NO_SOURCE, name="sentencepiece", path=str(file), vocab_size=300)
