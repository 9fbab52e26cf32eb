"""Foreign text on terminals, in tables and in commands: one line for one item, readable, and nothing but text."""

import ast
import io
import re
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_structure import FILES, PACKAGE

from filip_jax.cli import main
from filip_jax.console import show
from filip_jax.plain import JOINERS, MAX_CELL, cell, command, escape, markdown, one_line, printable

HOSTILE = (
    "\x1b[2J\x1b[31mred", "\x1b]8;;https://evil\x1b\\link\x1b]8;;\x1b\\", "\x07\b\b\bbell", "\x9b31m\x85next\x90C1", "a\nfilip: error: b",
    "a\r\nb\rc\vd\fe\x1cf", "a\u2028b\u2029c", "\u202egnp.exe\u202c", "\u2066x\u2069\u200e\u200f\u061c", "pay\u200bpal\ufeff\u00ad\u2060",
    "pay\u200dpal", "\U000e0041\U000e0042hidden", "half \ud800 of one", "a\0b", "\ue000 private", "\U0001fffe", "ab\udcff", "x" * 100_000,
    "<img src=x onerror=alert(1)>|a||`b`| ![x](https://evil/a.png) [l](javascript:1)", "\\|", "| --- |", "'\"$(touch x)`id`;&*?{a,b}~!#%s -x", "\t",
)  # fmt: skip
READABLE = (
    "狗在草地上奔跑,一只柯基犬", "　全角　空格", "犬が公園で遊ぶ", "강아지", "Übergröße, naïve café", "o\u0308 combining a\u0301\u0323",
    "👨‍👩‍👧‍👦 and 🏳️‍🌈 ❤️‍🔥 👍🏽 🇩🇪", "کلاه می‌خواهم", "क्‍ष श्‍व", "كلب أسود في الحديقة", "כלב שחור", "Ωmega собака", "ไทย", "1\u00a0000 €",
)  # fmt: skip
texts = st.text(st.one_of(st.characters(), st.sampled_from("".join(HOSTILE)[:2000])), max_size=40)


def is_plain(line):
    """Whether a terminal shows all of this as one line, in its order."""
    seen = "".join(
        c for n, c in enumerate(line) if not (c in JOINERS and 0 < n < len(line) - 1 and not line[n - 1].isascii())
    )
    kinds = {unicodedata.category(c) for c in seen}
    return not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} and len(line.splitlines()) <= 1


@given(texts)
def test_any_text_is_one_line_that_everything_shows(text):
    for line in (printable(text), one_line(text), cell(text), escape(text)):
        assert is_plain(line) and line.encode() is not None
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_could_mislead_is_escaped(text):
    assert is_plain(one_line(text)) and len(one_line(text)) < 4100 and len(cell(text)) < 2 * MAX_CELL
    if not text.isprintable():
        assert printable(text) != text


@pytest.mark.parametrize("text", READABLE)
def test_what_people_write_stays_readable(text):
    assert printable(text) == one_line(text) == cell(text) == text and is_plain(text)


@given(st.lists(texts, min_size=1, max_size=4))
@example(list(HOSTILE))
def test_no_cell_ends_its_row_or_begins_anything(row):
    line = f"| {' | '.join(map(cell, row))} |"
    assert len(re.sub(r"\\.", "", line).split("|")) == len(row) + 2
    assert not set(re.sub(r"\\.", "", line)) & set("<`[*")


def test_a_table_aligns_texts_on_the_left_and_numbers_on_the_right():
    table = markdown([("kept", "records", "of"), ("yes", "1,000", "a"), ("no", "7", "")], numbers=(1,))
    lines = ["| kept | records | of |", "| ---- | ------- | -- |", "| yes  |   1,000 | a  |", "| no   |       7 |    |"]
    assert table.split("\n") == lines


@given(st.lists(texts.map(lambda text: re.sub("[\0\ud800-\udc7f\udd00-\udfff]", "", text)), min_size=1, max_size=3))
@example([text for text in HOSTILE if not set(text) & {"\0", "\ud800"} and len(text) < 1000])
def test_a_command_is_one_line_that_bash_reads_as_it_was(words):
    line = command(words)
    assert is_plain(line)
    script = f"printf '%s\\0' {line}".encode("utf-8", "surrogateescape")
    said = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
    assert said.decode("utf-8", "surrogateescape").split("\0")[:-1] == words


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_printing_never_fails(encoding, monkeypatch):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    show(*HOSTILE, *READABLE)
    lines = sys.stdout.buffer.getvalue().decode(encoding).split("\n")
    assert len(lines) == len(HOSTILE) + len(READABLE) + 1 and all(map(is_plain, lines))
    with pytest.raises(SystemExit, match="0"):
        main(["data", "convert", "--help"])  # it holds an ellipsis
    sys.stdout.flush()
    assert main(["data", "index", "csv", "path=/狗\udcff\x1b"]) == 2
    assert "SOURCE" in sys.stdout.buffer.getvalue().decode(encoding)


def test_one_function_prints():
    for file in FILES:
        calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        names = {call.id for call in calls if isinstance(call, ast.Name)}
        names |= {call.attr for call in calls if isinstance(call, ast.Attribute)} & {"print_exc", "print_exception"}
        assert not names & {"print", "print_exc", "print_exception"} or file == PACKAGE / "console.py", file
