"""What benchmarks/fuzz.py tries as text: command lines and captions."""

import inspect
import json
import os
import random
import shlex
import unicodedata
from pathlib import Path

import numpy as np

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = (
    "filip.py",
    "filip.py:large",
    "clip.py",
    "demo.py",
    "demo.py:clip",
    "demo.py:filip_clip",
    "demo.py:siglip",
    "demo.py:quick",
)
NO_FILES = ("demo.py:none", "none.py", "demo.py:", "", "\0.py", ".", "../README.md")
SMALL = [f"--config.model.{tower}.{key}" for tower in ("image", "text") for key in ("width=32", "depth=1", "heads=2")]
BLOW_UP = (
    "(a+)+$", "(.*)*x", "(a|a)*b", "(.|.)*x", "(x+x+)+y", "([a-zA-Z/_]+)*$", "(.*a){25}", r"(\w+\s?)*$", "(" * 500,
    "(?P<a", "[", "*", "a{99999999999}", "(?:" * 200 + ")" * 200, ".*" * 30 + "x", "(.?){40}x", "(((.+)+)+)+!", "\\",
    "(?=(.*)*)x", "(?:a|b|.)+$x", "(|a)" * 40 + "x",
)  # fmt: skip
RULES = (
    ".*/bias",
    ".*norm/scale",
    "image/.*",
    ".*/(token_embedding|position|class_tokens)",
    "(?:text|image)/.*",
    "objectives/.*",
)
CHOICES = (
    "auto", "float32", "float64", "reference", "xla", "pallas", "gather", "ring", "save", "recompute", "pair", "batch", "block", "global",
    "tokens", "gelu", "sentencepiece", "clip", "bert", "adamw", "lamb", "retrieval", "localisation", "pictures", "zero_shot", "contrastive",
)  # fmt: skip
TEXTS = (
    "", " ", "None", "True", "false", "'", '"', "''", "\"'\"", "\\", "\0", "a\0b", "\n", "a\nb: c", "\x1b[31mred\x1b[0m", "é",
    "\u202egnp.exe", "\ud800", "\U0001f9e8" * 50, "１２", "½", "x" * 100_000, "__import__('os').system('true')", "lambda: 0",
    "9**9**9", "1+1", "%s%n%x", "{}{0.__class__}{:>999999999}", "a.b.c", "=", "==", "a=b", "--config.seed=1", "-1", "@file",
    "../../../../etc/passwd", "/dev/null", "/dev/zero", "/proc/self/mem", "~", "~root", "$HOME", "$(true)", "`true`", "; true",
    "{0..9}", "{0..99999999999}", "{a,b}" * 40, "{00..99}" * 9, "{", "{}", "*", "?", "[", "**/**/**", "pipe:cat", "file:///etc/passwd",
    "http://127.0.0.1:1/a", "ftp://a/b", "://", "x://",
)  # fmt: skip
NUMBERS = (
    "0", "-0", "1", "-1", "2", "3", "7", "0.1", "1.5", "-1.5", "1e18", "1e308", "1e309", "-1e309", "nan", "-nan", "inf", "-inf",
    "1e-320", "1_000", "0x10", "0b1", "1e400", "1j", "2147483647", "2147483648", "4294967295", "4294967296", "9223372036854775808",
    "1" + "0" * 30, "-" + "9" * 30, "9" * 400, "9" * 5000, "1/3", "1,2",
)  # fmt: skip
LITERALS = (
    "()", "(1,", "[1, 2]", "{'a': 1}", "{1, 2}", "(1, (2, (3, (4,))))", "(" * 200 + ")" * 200, "[" * 5000, "(" * 20_000,
    "-" * 5000 + "1", "('a', 1)", "(('a', -1),)", "(('.*', float('nan')),)", "(('.*', 1e999),)", "(('.*', 1.0), ('x', 2))",
    "(('.*', '1.0'),)", "(1.0, '.*')", "b'bytes'", "...", "('txt', ('json.a', 1e999))", "(('txt', 0),)", "(('txt', 1" + "0" * 400 + "),)",
    "(('txt', True),)", "('txt', 'txt')", "(None,)", "[[]]", "['\\ud800']",
)  # fmt: skip


def value(rng: random.Random, real=None) -> str:
    """What stands behind the = of an override: mostly of the real value's type, and as odd as that allows."""
    if real is None or rng.random() < 0.35:
        return rng.choice((*NUMBERS, *TEXTS, *LITERALS, garble(rng, str(real))))
    if isinstance(real, bool):
        return rng.choice(("True", "False", "1", "0", "true", "tru"))
    if isinstance(real, int | float):
        near = (real + 1, -real, real * 10**9, real * 0.5, real + 0.5, real - 1, real * 2, real // 2, int(real * 3))
        whole = [number for number in NUMBERS if number.lstrip("-").isdigit()]
        return str(rng.choice((*near, *whole) if isinstance(real, int) else (*near, *NUMBERS)))
    if isinstance(real, tuple):
        rules = [(rng.choice((*BLOW_UP, *RULES)), rng.choice((0.0, 1.0, 2, -1.0, 1e999, "1", True))), (".*", 1.0)]
        return rng.choice((repr(tuple(rules[: rng.randint(1, 2)])), *LITERALS))
    return rng.choice((*TEXTS, *CHOICES, garble(rng, str(real))))


def garble(rng: random.Random, text: str) -> str:
    """The text with some characters changed, doubled or gone."""
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(len(text) + 1)
        new = rng.choice(("", ".", "=", "-", "0", "\u0301", " ", "e9", "[0]", "'", chr(rng.randrange(0x250))))
        text = text[:at] + new + text[at + rng.randint(0, 2) :]
    return text


class Configs:
    """Command lines of `filip train`: (config file, overrides, words of the source)."""

    def __init__(self, folder: Path):
        from filip_jax.config import load_config
        from filip_jax.data.sources import SOURCES
        from filip_jax.paths import flatten
        from filip_jax.train import setup  # noqa: F401 - the first case shall not wait for it

        self.keys = {name: flatten(load_config(str(CONFIGS / name))) for name in FILES}
        self.options = {name: list(inspect.signature(kind).parameters) for name, kind in SOURCES.items()}
        self.folder = folder
        write_data(folder)
        os.chdir(folder)  # where relative paths lead

    def make(self, rng: random.Random) -> tuple[str, list[str], list[str]]:
        file = rng.choice(FILES if rng.random() < 0.97 else NO_FILES)
        leaves = list(self.keys.get(file, self.keys["demo.py"]).items())
        overrides = [self._override(rng, *rng.choice(leaves)) for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))]
        words = self._words(rng) if rng.random() < 0.4 else []
        return file, overrides, words

    def _override(self, rng: random.Random, path: str, real) -> str:
        key = path.replace("/", ".")
        shape = rng.random()
        if shape < 0.1:
            key = garble(rng, key)
        elif shape < 0.15:
            key = rng.choice(
                (
                    key.rpartition(".")[0],
                    f"{key}.{key}",
                    f"{key}[{rng.choice(('0', '-1', '99', 'x', value(rng)))}]",
                    ".".join("a" * 2000),
                    *TEXTS,
                )
            )
        elif shape < 0.2:
            return rng.choice(
                (
                    "--",
                    "-",
                    "---",
                    "--flagfile=/etc/passwd",
                    "--undefok=config",
                    f"--config={value(rng)}",
                    value(rng),
                    "--help",
                )
            )
        elif shape < 0.25:
            return rng.choice(
                (f"--noconfig.{key}", f"--config.{key}", f"-config.{key}={value(rng, real)}", f"config.{key}=1")
            )
        return f"--config.{key}={value(rng, real)}"

    def _words(self, rng: random.Random) -> list[str]:
        name = rng.choice((*self.options, "mixture", *TEXTS[:20]) if rng.random() < 0.3 else tuple(self.options))
        legal = [*self.options.get(name, ()), "caption_keys", "side_captions", "keep", "weight"]
        words = [f"path={rng.choice(DATA)}"] if "path" in legal and rng.random() < 0.8 else []
        if name == "emoji_scenes":
            words = [
                "split=" + rng.choice(("train", "val", "seen_cells")),
                "seed=0",
                f"scenes={rng.choice((*NUMBERS, '5'))}",
            ]
        for _ in range(rng.choice((0, 1, 1, 2))):
            key = rng.choice(legal) if rng.random() < 0.9 else rng.choice(TEXTS)
            words.append(
                f"{key}={rng.choice(DATA) if rng.random() < 0.3 else value(rng, 'txt')}"
                if rng.random() < 0.95
                else value(rng)
            )
        return [name, *words]

    def run(self, case: tuple[str, list[str], list[str]]) -> None:
        from filip_jax.config import load_config
        from filip_jax.data.sources import make_source
        from filip_jax.sections import call
        from filip_jax.train.setup import make_setup

        file, overrides, words = case
        chosen = [f"--config.source={shlex.join(words)}"] if words else []
        config = load_config(str(CONFIGS / file), [*SMALL, *overrides, *chosen])
        call(make_setup, config, "(top level)")
        if words and all(self._is_near(text) for text in config["source"].values()):
            source = make_source(config["source"])
            for index in range(min(3, len(source))):
                source.where(index), source.captions(index), source[index]

    def _is_near(self, text) -> bool:
        """Whether a value, taken as a path, stays in the folder: no walk over the whole disk, no bucket."""
        if not isinstance(text, str):
            return True
        if text.startswith(("gs://", "s3://")):
            return False
        outside = os.path.isabs(text) or ".." in text or text.startswith("~")
        return not outside or "\0" in text or not os.path.isdir(text)


DATA = (
    "folder",
    "tars",
    "tars/0.tar",
    "list.jsonl",
    "list.csv",
    "table.parquet",
    "side.jsonl",
    "folder/dog.txt",
    ".",
    "none",
)


def write_data(folder: Path) -> None:
    """Two pairs as some of the sources read them."""
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    (folder / "folder").mkdir()
    (folder / "tars").mkdir()
    for name in ("dog", "cat"):
        Image.new("RGB", (20, 30)).save(folder / f"folder/{name}.png")
        (folder / f"folder/{name}.txt").write_text(f"a {name}")
    with tarfile.open(folder / "tars/0.tar", "w") as tar:
        for file in sorted((folder / "folder").iterdir()):
            tar.add(file, file.name)
    rows = [{"image": f"folder/{name}.png", "caption": f"a {name}"} for name in ("dog", "cat")]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "list.csv").write_text("image,caption\n" + "".join(f"{row['image']},{row['caption']}\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "table.parquet")
    (folder / "side.jsonl").write_text(json.dumps({"key": "dog", "origin": "de", "caption": "ein Hund"}) + "\n")


class Captions:
    """Texts for tokenizers and cleaning rules."""

    def __init__(self, folder: Path):
        from filip_jax.cleaning.judge import Judge
        from filip_jax.cleaning.rules import Rules
        from filip_jax.data import pipeline  # noqa: F401 - the first case shall not wait for it

        (folder / "words.txt").write_text("18+\nred cross\n\u72d7\n", "utf-8")
        rules = dict(
            min_side=0, max_aspect=0, languages=("en",), language_probability=0.12, meaningless=True, max_repeats=10
        )
        missing = [name for name in ("fasttext", "faker") if not _is_installed(name)]
        optional = dict(languages=(), person_names=False) if missing else dict(person_names=True)
        self.judge = Judge(Rules(**rules | optional, sensitive_words=str(folder / "words.txt")))
        self.tokenizers = make_tokenizers(folder)

    def make(self, rng: random.Random) -> str:
        text = "".join(rng.choice(MAKERS)(rng) for _ in range(rng.choice((1, 1, 2, 5))))
        if rng.random() < 0.3:
            text = garble(rng, text)
        if rng.random() < 0.02:  # 1 MB
            text = (text or "a") * (1_000_000 // max(len(text.encode("utf-8", "replace")), 1))
        return text

    def run(self, text: str) -> None:
        from filip_jax.cleaning.rules import normalised, text_hash
        from filip_jax.data.record import Caption, is_caption
        from filip_jax.data.samples import draw_captions

        captions = (Caption(text),) if is_caption(text) else ()
        self.judge.record(Held(captions), 0, {1: 2})
        normalised(text), text_hash(text)
        said = (
            text
            if len(text) > 100_000 and text.isascii()
            else draw_captions((Caption(text), Caption(text)), np.random.default_rng(0))[0]
        )
        for tokenizer in self.tokenizers:
            ids, truncated = tokenizer.encode([said], 77)
            assert ids.shape == (1, 77) and (ids < tokenizer.vocab_size).all() and truncated.shape == (1,)
            spans = tokenizer.spans(said, 77)
            assert all(0 <= start <= end <= len(said) for start, end in spans)


class Held:
    """A source of one record."""

    def __init__(self, captions):
        self._captions = captions

    def captions(self, index: int):
        return self._captions


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def make_tokenizers(folder: Path) -> list:
    """Sentencepiece, and CLIP's and BERT's kind where their packages are installed, of made-up vocabularies."""
    from filip_jax.data.sentence_pieces import train_sentence_pieces
    from filip_jax.data.tokenizer import Tokenizer, make_tokenizer
    from filip_jax.data.vocabularies import MERGES, _byte_signs

    made = [Tokenizer(train_sentence_pieces([f"a dog and {n} cats, einen Hund \u72d7" for n in range(99)], 400))]
    if _is_installed("tokenizers") and _is_installed("ftfy"):
        signs = _byte_signs()
        lines = ["#version", *(f"{a} {b}" for a in signs for b in signs)][: MERGES + 1]
        (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
        (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\ndog\n##s\n\u72d7", "utf-8")
        made += [
            Tokenizer(make_tokenizer(source=None, name=name, path=str(folder / file)))
            for name, file in (("clip", "merges.txt"), ("bert", "vocab.txt"))
        ]
    return made


def _signs(*spans: tuple[int, int]):
    def make(rng: random.Random) -> str:
        return "".join(chr(rng.randint(*rng.choice(spans))) for _ in range(rng.choice((1, 3, 10, 50, 300))))

    return make


def _names(rng: random.Random) -> str:
    words = (
        "Dr.",
        "John",
        "van",
        "der",
        "O'Brien",
        "Smith-Jones",
        "King",
        "III",
        "jr.",
        "Mary",
        "’s",
        "d'",
        "X.",
        "a",
        "photo by",
        "IMG_",
    )
    return " ".join(rng.choice(words) for _ in range(rng.choice((2, 5, 40, 400))))


def _files(rng: random.Random) -> str:
    parts = (
        "IMG_",
        "0001",
        ".jpg",
        "www.",
        "http://",
        "@",
        "2019-01-01",
        "/",
        "-",
        "_",
        " copy",
        "click here to enlarge",
        "untitled",
        "of",
        "\u00a9",
    )
    return "".join(rng.choice(parts) for _ in range(rng.randint(1, 40)))


MAKERS = (
    _signs((0x20, 0x7E)), _signs((0, 0x1F), (0x7F, 0x9F)), _signs((0xD800, 0xDFFF), (0x61, 0x7A)), _signs((0x590, 0x6FF), (0x61, 0x7A)),
    _signs((0x300, 0x36F)), _signs((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F)), _signs((0x4E00, 0x9FFF), (0x3040, 0x30FF)),
    _signs((0x1F300, 0x1FAFF), (0x200D, 0x200D), (0xFE0F, 0xFE0F)), _signs((0, 0xD7FF), (0xE000, 0x10FFFF)), _signs((0xFDD0, 0xFDEF), (0xFFF0, 0xFFFF)),
    _signs((0x130, 0x131), (0x1E9E, 0x1E9E), (0xDF, 0xDF), (0xFB00, 0xFB06), (0x17F, 0x17F)), _names, _files,
    lambda rng: rng.choice("a.-_ 0\u0301\u00c4A") * rng.choice((100, 5000)),
    lambda rng: "&" + rng.choice(("amp;", "#x110000;", "#0;", "#xD800;", "lt;", "#99999999999;")) * rng.choice((1, 200)),
    lambda rng: rng.choice(("&amp;", "&#38;", "&a&#109;p;"))[:-4] + rng.choice(("amp;", "#38;", "a&#109;p;")) * rng.choice((1, 200, 15_000)),
    lambda rng: rng.choice(("\x1b[", "Mr. ", "a\u0301", "\u00c3\u00a9", "\ufdfa", "狗", "http://", "aB")) * rng.choice((10, 1000, 20_000)),
    lambda rng: unicodedata.normalize(rng.choice(("NFD", "NFKC")), "Ångström ﷺ ㎖ Ǆ ½ " * rng.choice((1, 50))),
    lambda rng: "a dog and a cat on the beach at night, seen from above",
    lambda rng: rng.choice(("", " ", "\0", "\u3000", "\ufeff", "<|endoftext|>", "[CLS] [SEP]", "<s></s><unk>", "\u2581" * 20)),
)  # fmt: skip
