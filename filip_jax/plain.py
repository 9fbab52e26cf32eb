"""Foreign text as terminals, tables, pages and shells can show it: names, captions, messages of libraries.

Whatever a file of somebody else holds, one item stays one line, nothing colours, clears or reorders what stands
around it, and people still read it in their own script.
"""

import html
import re
import shlex
import unicodedata
from collections.abc import Collection, Sequence

from filip_jax.redact import redact

MAX_MESSAGE = 4000  # characters of a message; a value of a megabyte is not shown whole
MAX_CELL = 300  # characters of a cell
JOINERS = "\u200c\u200d"  # of letters in Persian and in India's scripts, of pictures in emoji
_MARKS = re.compile(r"[\\`|<\[*]")  # by which code, cells, HTML, links and emphasis begin in Markdown


def printable(text: str) -> str:
    r"""Return the text as one line in which everything can be seen.

    Line breaks become blanks. Escapes such as \x1b stand for control characters, for signs that turn the direction of
    writing or have no width, for unassigned characters and for halves of characters. Letters, marks and emoji of all
    scripts stay, and so does a joiner between two of them.
    """
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\n", " ")
    return "".join(c if _is_seen(c) or _joins(text, n) else _escaped(c) for n, c in enumerate(text))


def _is_seen(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"  # blanks of other widths


def _joins(text: str, n: int) -> bool:
    """Return whether a joiner stands there between two signs that may be joined."""
    around = text[n - 1 : n] + text[n + 1 : n + 2]
    return text[n] in JOINERS and len(around) == 2 and around.isprintable() and not any(map(str.isascii, around))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def one_line(text: str, most: int = MAX_MESSAGE) -> str:
    """Return the text as `printable` shows it, without secrets; of one longer than `most` both ends."""
    return _cut(printable(_cut(redact(text), most)), most)  # escapes are longer than what they stand for


def _cut(text: str, most: int) -> str:
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


def counted(count: int, thing: str, things: str = "") -> str:
    """Return a number with what it counts, as "1 row" or "1,000 rows".

    Args:
        things: the plural, where it is not `thing` with an s.
    """
    return f"{count:,} {thing if count == 1 else things or f'{thing}s'}"


def cell(text: str, most: int = MAX_CELL) -> str:
    """Return the text as a cell of a Markdown table, which no sign in it ends or makes code, a link or HTML."""
    return _MARKS.sub(r"\\\g<0>", one_line(text, most))


def markdown(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """Return rows of cells as a Markdown table with its columns aligned.

    Args:
        rows: the first is the header.
        numbers: indices of the columns that are aligned on the right.
    """
    columns = []
    for n, cells in enumerate(zip(*rows, strict=True)):
        width, align = max(map(len, cells)), str.rjust if n in numbers else str.ljust
        header, *rest = (align(text, width) for text in cells)
        columns.append([header, "-" * width, *rest])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns))


def escape(text: str) -> str:
    """Return the text as one line of HTML or SVG, attributes included."""
    return html.escape(one_line(text))


def command(words: Sequence[str]) -> str:
    """Return a command of these words as one line to be pasted into bash or zsh, which then read the same words."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    return f"$'{''.join(map(_in_quotes, word))}'"


def _in_quotes(character: str) -> str:
    if character.isprintable() and character not in "'\\":
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
