"""The short form of benchmarks/fuzz.py, and what its long form found before."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import ROOT, slow, small
from pairs import picture, tar
from PIL import Image

from filip_jax.choices import section_of
from filip_jax.config import load_config
from filip_jax.data.decode import decode, image_size
from filip_jax.data.pipeline import batches
from filip_jax.data.places import PLACED, places
from filip_jax.data.preprocess import centre_view
from filip_jax.data.sentence_pieces import train_sentence_pieces
from filip_jax.data.sources import make_source
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.models import make_model
from filip_jax.paths import REPEATS, match_rules
from filip_jax.sections import call
from filip_jax.train.setup import make_setup
from filip_jax.user_paths import PATHS, expand_braces


def fuzz(*arguments):
    """(exit code, what it printed)."""
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "benchmarks/fuzz.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "kind, cases", [slow("configs", 40), slow("captions", 30), slow("images", 40), ("tars", 250), ("lists", 60)]
)
def test_no_traceback_and_no_hang(kind, cases):
    code, output = fuzz(f"--kind={kind}", f"--cases={cases}", "--seed=1", "--limit=60")
    row = re.search(rf"^\| {kind} \| {cases} \| (\d+) \| (\d+) \| 0 \| 0 \| \d+ \|", output, re.MULTILINE)
    assert code == 0 and row, output
    assert min(map(int, row.groups())) > cases / 20  # neither all accepted nor all refused


@pytest.mark.slow
def test_a_traceback_a_hang_and_a_death_are_found(tmp_path):
    """The same script with kinds that misbehave."""
    (tmp_path / "bad.py").write_text(
        "import os, time\n"
        "class Bad:\n"
        "  def __init__(self, folder): pass\n"
        "  def make(self, rng): return rng.randrange(1000)\n"
        "class Raises(Bad):\n  def run(self, case): 1 / 0\n"
        "class Sleeps(Bad):\n  def run(self, case): time.sleep(60)\n"
        "class Dies(Bad):\n  def run(self, case): os._exit(3)\n"
        "class Talks(Bad):\n"
        "  def run(self, case):\n"
        "    raise OSError('one line' if case % 2 else 'a\\nb')\n"
    )
    (tmp_path / "fuzz.py").write_text(
        (ROOT / "benchmarks/fuzz.py").read_text().replace('"fuzz_texts", "Configs"', '"bad", os.environ["BAD"]')
    )
    shutil.copy(ROOT / "benchmarks/report.py", tmp_path)
    for name, said in (("Raises", "ZeroDivisionError"), ("Sleeps", "Hang"), ("Dies", "the process died: 3")):
        command = [sys.executable, tmp_path / "fuzz.py", "--kind=configs", "--cases=2", "--limit=0.5"]
        done = subprocess.run(command, env=os.environ | {"BAD": name}, capture_output=True, text=True)
        column = "0 | 2" if name == "Sleeps" else "2 | 0"
        assert done.returncode == 1 and said in done.stdout, done.stdout + done.stderr
        assert (
            f"| configs | 2 | 0 | 0 | {column} |" in done.stdout and "--kind=configs --seed=0 --case=1" in done.stdout
        )
    command = [sys.executable, tmp_path / "fuzz.py", "--kind=configs", "--cases=4"]
    done = subprocess.run(command, env=os.environ | {"BAD": "Talks"}, capture_output=True, text=True)
    assert done.returncode == 0 and "| configs | 4 | 0 | 4 | 0 | 0 |" in done.stdout


def test_a_case_is_the_same_again():
    one, again = (fuzz("--kind=tars", "--case=3")[1] for _ in range(2))
    folder = re.compile(r"fuzz_\w+")
    assert folder.sub("", one) == folder.sub("", again) and re.match("refused|accepted", one)


DEMO = str(ROOT / "configs/demo.py:quick")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model.text.vocab_size": 2**63}, r"vocab_size=9223372036854775808 must be at least 1 and at most 1048576"),
        ({"model.image.depth": 10**400}, "model.image.depth=10*.* must be at least 1 and at most"),
        (
            {"model.image.image_size": 2**20, "data.image_size": 2**20},
            "17179869184 patches; a tower takes fewer than 65536",
        ),
        ({"model.text.length": 2**17, "data.text_length": 2**17}, "model.text.length=131072 must be at most 65536"),
        (
            {"objectives.filip.logit_scale_init": float("inf")},
            "objectives.filip: logit_scale_init=inf is not a finite number",
        ),
        ({"batch_size": 2**40}, r"batch_size=1099511627776 is not a whole number from -2\^32 to 2\^32"),
        ({"data.workers": 10**6}, "data.workers=1000000 .* at most 4096"),
        ({"data.threads": 10**6}, "data.threads=1000000 .* at most 4096"),
        ({"data.captions_per_image": 0}, "data.captions_per_image=0 must be at least 1 and at most 64"),
        ({"data.views": 65}, "data.views=65 must be at least 1 and at most 64"),
        ({"optimizer.eps": 10**400}, "eps=10*.* is not a finite number"),
        ({"optimizer.decay_rules": "x"}, "decay_rules: 'x' is not a pair"),
        ({"optimizer.decay_rules": ((".*", float("inf")),)}, "is not a pair .*, finite number of at least 0"),
        ({"optimizer.decay_rules": (("(.*)*x", 1.0), (".*", 1.0))}, r"'\(\.\*\)\*x' may take for ever"),
        ({"optimizer.decay_rules": (("(" * 5000, 1.0), (".*", 1.0))}, "is not a regular expression"),
        ({"optimizer.decay_rules": (("a{99999999999}", 1.0), (".*", 1.0))}, "is not a regular expression"),
    ],
)
def test_numbers_and_rules_beyond_all_bounds(demo_config, change, message):
    with pytest.raises(UserError, match=message):
        call(make_setup, small(demo_config, **change), "(top level)")


def test_an_index_into_a_number_is_an_unknown_key():
    with pytest.raises(UserError, match=r"unknown config key in --config.seed\[0\]"):
        load_config(DEMO, ["--config.seed[0]=1"])


@pytest.mark.parametrize("value", ["-" * 100_000 + "1", "(1,"], ids=["deep", "open"])
def test_tuples_that_pythons_parser_gives_up_on(value):
    with pytest.raises(UserError, match="wrong config value"):
        load_config(DEMO, [f"--config.evals.seen_cells.prompts={value}"])


@pytest.mark.parametrize("pattern", [
    "(a+)+", "(.|.)*x", "(.?){40}x", "(((.+)+)?)+!", "(?=(.*)*)x", "(?:a|b)+", "(?P<x>.*)*", ".*" * (REPEATS + 1), "(?i:.*)*",
])  # fmt: skip
def test_regular_expressions_that_may_take_for_ever(pattern):
    with pytest.raises(UserError, match="may take for ever"):
        match_rules([(pattern, 1.0), (".*", 1.0)], ["image/a"], "rules")


@pytest.mark.parametrize("pattern", [
    ".*/(token_embedding|position|class_tokens)|objectives/.*|image/.*", "(image|text)?/?.*", r"[(+*]*\(*.*", "(?:ab)*.*", "(?i)IMAGE.*", ".*" * REPEATS,
])  # fmt: skip
def test_regular_expressions_that_do_not(pattern):
    assert match_rules([(pattern, 2.0)], ["image/a"], "rules") == {"image/a": 2.0}


@pytest.mark.parametrize(
    "path", ["{0..99999999999}", "{000000000..999999999}", "{a,b}" * 40, "{0..9}" * 7, "{" + "," * PATHS + "}"]
)
def test_braces_that_stand_for_too_many_paths(path):
    with pytest.raises(UserError, match="its braces stand for more than"):
        expand_braces(path)


def test_braces_without_end_or_order():
    assert expand_braces("{a}" * 3000) == ["a" * 3000]
    assert expand_braces("{5..3}x") == [] and expand_braces("a{b{c,d}") == ["a{bc", "a{bd"]
    assert expand_braces("{" + "9" * 5000 + "..1}") == ["9" * 5000 + "..1"]


@pytest.mark.parametrize("word", ["weight=" + "-" * 5000 + "1", "weight=" + "(" * 20_000, "a=" + "9" * 5000])
def test_source_words_that_pythons_parser_gives_up_on(word):
    name, _, value = word.partition("=")
    assert section_of("source", ["folder", word], {})[name] == value


@pytest.mark.parametrize("weight", [10**400, float("inf"), float("nan"), 0, -1])
def test_weights_that_are_none(tmp_path, weight):
    (tmp_path / "a.png").write_bytes(picture(1)), (tmp_path / "a.txt").write_text("a dog")
    folder = dict(name="folder", path=str(tmp_path), caption_keys=("txt",))
    with pytest.raises(UserError, match="weight above 0, up to 1e"):
        make_source(folder | dict(caption_keys=(("txt", weight),)))
    with pytest.raises(UserError, match="weight=.*a number above 0, up to 1e"):
        make_source(dict(name="mixture", a=folder | dict(weight=weight), b=folder | dict(weight=1)))


def test_scenes_that_would_be_drawn_for_ever():
    with pytest.raises(UserError, match="scenes=4000000000 of split='val' must be at most 10000"):
        make_source(dict(name="emoji_scenes", split="val", seed=0, scenes=4_000_000_000))


def test_a_batch_beyond_the_hosts_memory():
    source = make_source(dict(name="emoji_scenes", split="train", seed=0, scenes=5))
    options = dict(
        image_size=224, text_length=8, augment=dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False)
    )
    numbers = dict(shuffle="global", block_size=9, max_bad_fraction=0.0, seed=0, workers=0, threads=1, start=0)
    tokenizer = Tokenizer(train_sentence_pieces(["a dog and a cat"] * 9, 300))
    with pytest.raises(UserError, match="batch_size: 4294967296 pictures of data.image_size=224 .* the host has"):
        batches(source, tokenizer, batch_size=2**32, **options, **numbers, process_index=0, process_count=1)


def png(width, height):
    """Of zeros, encoded fast."""
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_a_line_of_millions_of_pixels_is_no_picture():
    data = png(1, 70_000)
    for read in (decode, image_size):
        with pytest.raises(ValueError, match="1 x 70000 pixels; 1 to 89478485 are read, at most 65535 a side"):
            read(data)
    assert decode(png(1, 60_000)).size == (1, 60_000)


def test_the_centre_of_a_strip_is_that_of_the_whole_scaled(monkeypatch):
    """Scaled whole, a strip may take gigabytes; what is cut out is the same to a grey level."""
    rng = np.random.default_rng(0)
    strip = Image.fromarray(rng.integers(0, 256, (2, 5000, 3), np.uint8))
    whole = centre_view(strip, 32)
    monkeypatch.setattr("filip_jax.data.preprocess.PIXELS", 1)
    assert abs(centre_view(strip, 32).astype(int) - whole).max() <= 1
    assert centre_view(decode(png(1, 65_535)), 448).shape == (448, 448, 3)


def header(kind, size, name=b"a.png"):
    """512 bytes of a header that says so; negative and huge sizes as base 256."""
    fields = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
    coded = bytes([0xFF if size < 0 else 0x80]) + (size % (1 << 88)).to_bytes(11, "big")
    block = (fields + coded + b"00000000000\0" + b" " * 8 + kind + bytes(100) + b"ustar\x0000").ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


@pytest.mark.parametrize("hostile", [
    header(b"x", 1 << 40), header(b"L", (1 << 63) - 1), header(b"g", 1 << 20) + bytes(1 << 20), header(b"x", -512), header(b"L", 0) * 3000,
    header(b"0", -1), header(b"0", 1 << 80),
], ids=range(7))  # fmt: skip
def test_headers_that_claim_gigabytes_or_lead_nowhere(tmp_path, hostile):
    """What stands before them is read."""
    tar(tmp_path / "whole.tar", [("a.png", picture(1)), ("a.txt", b"a dog")])
    whole = (tmp_path / "whole.tar").read_bytes()[:2048]  # a header and a block of each member
    (tmp_path / "whole.tar").write_bytes(whole + hostile)
    source = make_source(dict(name="webdataset", path=str(tmp_path)))
    assert len(source) == 1 and source[0].caption == "a dog"
    assert "damaged or empty from some point on" in source.seen


def test_an_extended_header_of_digits_alone_takes_no_time(tmp_path):
    """Older versions of tarfile take the square of their number."""
    hostile = header(b"x", 60_000) + b"1" * 60_416
    tar(tmp_path / "a.tar", [("a.png", picture(1)), ("a.txt", b"a dog")])
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:2048] + hostile)
    assert make_source(dict(name="webdataset", path=str(tmp_path)))[0].caption == "a dog"


def test_names_of_members_can_not_write_to_the_terminal(tmp_path):
    names = ("a.png", "a.txt", "a.j\nk", "a.\x1b[2J", "a.\udcff", "a.\u202etxt")
    with tarfile.open(tmp_path / "a.tar", "w", errors="surrogateescape") as out:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(picture(1))
            out.addfile(info, io.BytesIO(picture(1)))
    source = make_source(dict(name="webdataset", path=str(tmp_path)))
    assert source.seen.isprintable() and source.seen.isascii() and r"\x1b[2j (1)" in source.seen
    with pytest.raises(UserError) as error:
        make_source(dict(name="webdataset", path=str(tmp_path), caption_keys=("de",)))
    assert str(error.value).isprintable()


def test_places_in_a_text_of_one_sign():
    text = "_" * 20_000
    place = places(text, text)
    assert place[:PLACED] == list(range(PLACED)) and place[PLACED:] == [20_000] * (20_000 - PLACED + 1)
    assert places("a b", "a  b") == [0, 1, 3, 4]


def test_a_tokenizer_that_its_package_refuses():
    pytest.importorskip("tokenizers")
    whole = b'{"name": "bert", "bos": 1, "eos": 2, "tokenizer": %s}'
    for rules in (b'{"model": {"vocab": {"a": "b"}}}', b'{"model": {"vocab": 3}}', b'{"model": {"vocab": {"a": -1}}}'):
        with pytest.raises(UserError, match="the tokenizer's JSON is not one of the package tokenizers"):
            Tokenizer(whole % rules)
    for model in (b'{"a":' * 100_000, whole % b"{}", whole % b'{"model": {"type": "BPE"}}', whole % b'{"model": []}'):
        with pytest.raises(UserError, match="the tokenizer's JSON is not one of filip_jax"):
            Tokenizer(model)


def test_models_at_their_largest_are_only_shapes(demo_config):
    model = small(demo_config, **{"model.text.vocab_size": 2**20, "model.text.width": 2**16, "model.text.heads": 2})[
        "model"
    ]
    assert make_model({"tokens"}, **model).pooling == "tokens"
