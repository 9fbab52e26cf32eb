"""Rows of columns with a separator, CSV and TSV, whoever wrote them.

Tab-separated lists of the web have no quoting; those of pandas, R, Spark and spreadsheets have. A field is a quoted one
only if its quotation marks close right before a separator or the row's end; else they are part of its text.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from filip_jax import storage
from filip_jax.data.record import METADATA_BYTES
from filip_jax.errors import UserError

MAX_COLUMNS = 1024  # each may open a quoted field, behind which up to METADATA_BYTES are looked at
SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}
# What stands in a quoted field, where quotation marks in it are doubled, as ever, or have a backslash, as by R and Spark.
DOUBLED, ESCAPED = re.compile(r'(?:[^"]++|"")*+'), re.compile(r'(?:[^"\\]++|\\.|\\\Z)*+', re.DOTALL)
QUOTE, BACKSLASH = re.compile(r'\\(")'), re.compile(r"\\(.)", re.DOTALL)
NAME = re.compile(r"(?=\S*[./\d])\S++|.+\.[A-Za-z]\w{1,4}")  # a path or a number, which a part of a text seldom is
KNOWN = 16  # rows that tell which columns hold names
EXCEL = re.compile(rb'"?sep=([\x20-\x7e\t])"?')  # a line before the header, which names the separator
TOO_LONG = f"a line or a quoted field of more than {METADATA_BYTES} bytes"
ONE_FIELD = "one field, as where a text goes on in another line"
BESIDE = "a row beside a line of one field, which may be a part of its text"
OPEN = "a quotation mark that is not closed"
UNCLEAR = "quotation marks over several lines, each of which is a row by itself"


class Row(NamedTuple):
    """A row of a list.

    Attributes:
        place: "line 3", for people.
        fields: by column; empty for a row that cannot be read.
        problem: why it cannot be read, else "".
    """

    place: str
    fields: dict[str, Any]
    problem: str = ""


def separator_of(text: str) -> str:
    """Return the character that the option `separator` names. Raises a UserError if it names none."""
    separator = SEPARATORS.get(text, text)
    if len(separator) > 1 or separator in ("\n", "\r", '"', "\\"):
        raise UserError(f"separator={text!r} is not one character, nor one of {', '.join(SEPARATORS)}")
    return separator


class Separated:
    """The rows of a list, by iteration. A row of other fields than there are columns is bad: no text is cut.

    Args:
        lines: of the list, in UTF-8; None stands for one that is too long.
        path: of the list, for messages.
        separator: a character; "" takes what the first line has: a tab, else the most frequent of , ; |.
        columns: their names, if no line of the list holds them.

    Raises:
        UserError: a first line that is no text, or names that cannot be.
    """

    def __init__(self, lines: Iterator[bytes | None], path: str, separator: str, columns: Sequence[str]):
        self.lines, self.path = enumerate(lines, 1), path
        self.ahead: deque[tuple[int, bytes | None]] = deque()
        written = (numbered for numbered in self.lines if numbered[1] is None or numbered[1].strip())
        first = next(written, (0, b""))
        if named := EXCEL.fullmatch(first[1] or b""):
            separator, first = separator or named[1].decode(), next(written, (0, b""))
        text = self._header(first[1])
        self.separator = separator or _most_frequent(text, "\t" if ".tsv" in storage.name_of(path) else ",")
        sign = re.escape(self.separator)
        doubled, escaped = (rf'"({inside.pattern})"(?={sign}|\Z)' for inside in (DOUBLED, ESCAPED))
        surely = doubled.replace(')"(', r')(?<!\\)"(')  # its last quotation mark has no backslash
        self.field = re.compile(rf"{surely}|{escaped}|{doubled}|([^{sign}]*+)", re.DOTALL)
        self.escaped = re.compile(rf"(?:(?!)())?{escaped}|(?:(?!)())?((?:[^{sign}\\]++|\\.|\\\Z)*+)", re.DOTALL)
        self.names = [name.strip() for name in columns or self._split(text)[0]]
        self.least = max((n for n, name in enumerate(self.names, 1) if name), default=0)
        self.known: list[Sequence[str]] = []
        self._check_names()
        if columns and first[0]:
            self.ahead.append(first)

    def _header(self, line: bytes | None) -> str:
        text = _decoded(line)
        if text is None:
            what = TOO_LONG if line is None else "not text in UTF-8"
            raise UserError(
                f"{self.path}: its first line is {what}; a list is text, in UTF-8, or in UTF-16 with its mark"
            )
        return text

    def _check_names(self) -> None:
        named = [name for name in self.names if name]
        if len(self.names) > MAX_COLUMNS:
            raise UserError(f"{self.path} has {len(self.names)} columns; at most {MAX_COLUMNS} are read")
        if double := [name for name in named if named.count(name) > 1]:
            raise UserError(
                f"{self.path} has two columns {double[0]!r}: rename one, so that it is clear which is meant"
            )

    def __iter__(self) -> Iterator[Row]:
        before = None
        for row in self._read():
            if before is not None:
                before, row = _beside(before, row), _beside(row, before)
                yield before
            before = row
        if before is not None:
            yield before

    def _read(self) -> Iterator[Row]:
        while (numbered := self._next()) is not None:
            number, line = numbered
            if line is None or line.strip():
                yield from self._rows(number, line)

    def _next(self) -> tuple[int, bytes | None] | None:
        return self.ahead.popleft() if self.ahead else next(self.lines, None)

    def _rows(self, number: int, line: bytes | None) -> Iterator[Row]:
        """The row that begins with a line; several bad ones where it is unclear which lines belong together."""
        text = _decoded(line)
        if text is None:
            yield Row(f"line {number}", {}, TOO_LONG if line is None else "a line that is not UTF-8, or holds NUL")
            return
        fields, rest = self._split(text, may_span=True)
        if rest is not None:
            whole, taken = self._over_lines(text, fields, rest)
            if whole is not None:
                yield Row(f"line {number}", self._named(whole))
                return
            if taken and self.separator != "\t":  # where quotation marks are always meant as such
                yield from (Row(f"line {n}", {}, UNCLEAR) for n in range(number, number + 1 + len(taken)))
                return
            self.ahead.extendleft(reversed(taken))
            fields, rest = self._split(text)
        if not self._fits(fields) and "\\" in text:
            fields = [_value(match, BACKSLASH) for match in _matches(self.escaped, text)]
        if rest is not None and self.separator != "\t":
            yield Row(f"line {number}", {}, OPEN)
        elif not self._fits(fields):
            many = f"{len(fields)} fields, but the list has {self.least} columns"
            yield Row(f"line {number}", {}, ONE_FIELD if len(fields) == 1 else many)
        elif any(fields):
            if len(self.known) < KNOWN:
                self.known.append(fields)
            yield Row(f"line {number}", self._named(fields))

    def _split(self, text: str, may_span: bool = False) -> tuple[list[str], str | None]:
        """Return the fields of a line, and what stands behind a quotation mark that is open at its end.

        Args:
            may_span: whether that is no field, for it may go on in the next line.
        """
        if '"' not in text:
            return text.split(self.separator), None
        fields: list[str] = []
        rest = None
        for match in _matches(self.field, text):
            start = match.start() + 1
            if (match[4] or "").startswith('"') or (may_span and match[3] is not None):
                if any(_end(inside, text, start) == len(text) for inside in (DOUBLED, ESCAPED)):
                    rest = text[start:]
                    if may_span:
                        break
            fields.append(_value(match, QUOTE))
        return fields, rest

    def _over_lines(
        self, text: str, fields: list[str], rest: str
    ) -> tuple[list[str] | None, list[tuple[int, bytes | None]]]:
        """Return the fields of a row of several lines; or None, and the lines that it may have besides its first.

        Args:
            text: the first line.
            fields: its fields before the open one.
            rest: the beginning of the open one.
        """
        for inside in (DOUBLED, ESCAPED):
            whole, taken = self._closed(inside, fields, rest)
            lines = [self._split(each)[0] for each in (text, *(_decoded(line) or "" for _, line in taken))]
            if whole is not None and all(map(self._fits, lines)) and self._are_rows(lines, whole):
                return None, taken
            if whole is not None:
                return whole, []
            self.ahead.extendleft(reversed(taken))
        return None, []

    def _closed(
        self, inside: re.Pattern, fields: list[str], rest: str
    ) -> tuple[list[str] | None, list[tuple[int, bytes | None]]]:
        """Return the fields of a row whose quoted fields close in further lines, or None; and the lines taken for that."""
        parts, taken, size = [rest], list[tuple[int, bytes | None]](), len(rest)
        if not inside.fullmatch(rest):
            return None, taken
        while len(fields) < len(self.names) and (numbered := self._next()) is not None:
            taken.append(numbered)
            text = _decoded(numbered[1])
            size += len(text or "") + 1
            if text is None or size > METADATA_BYTES:
                break
            end = _end(inside, text)
            parts.append(text[:end])
            if end == len(text):
                continue
            after = text[end + 1 :]
            if after and not after.startswith(self.separator):
                break  # a quotation mark within a text
            fields = [*fields, _unquoted("\n".join(parts), inside)]
            more, rest = self._split(after[1:], may_span=True) if after else ([], None)
            fields += more
            if rest is None:
                return (fields if self._fits(fields) else None), taken
            parts = [rest]
        return None, taken

    def _are_rows(self, lines: Sequence[Sequence[str]], whole: Sequence[str]) -> bool:
        """Return whether lines have names in each column where the rows before and the row that they may be have them."""
        if not self.known:
            return True
        columns = [n for n in range(len(whole)) if all(_has_name(row, n) for row in (*self.known, whole))]
        return all(_has_name(line, n) for line in lines for n in columns)

    def _fits(self, fields: Sequence[str]) -> bool:
        return self.least <= len(fields) <= len(self.names) and not any(fields[self.least :])

    def _named(self, fields: Sequence[str]) -> dict[str, str]:
        return {name: field for name, field in zip(self.names, fields) if name}


def _most_frequent(header: str, default: str) -> str:
    """The separator of a header: a tab if it has one."""
    most = "\t" if "\t" in header else max(",;|", key=header.count)
    return most if most in header else default


def _has_name(fields: Sequence[str], column: int) -> bool:
    return column < len(fields) and bool(NAME.fullmatch(fields[column]))


def _beside(row: Row, other: Row) -> Row:
    """A row beside another, bad if that is a line of one field: a part of its text may stand there."""
    return Row(row.place, {}, BESIDE) if other.problem == ONE_FIELD and not row.problem else row


def _decoded(line: bytes | None) -> str | None:
    """The text of a line, None if it is no text in UTF-8."""
    try:
        return None if line is None or b"\0" in line else line.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _matches(field: re.Pattern, text: str) -> Iterator[re.Match]:
    """The fields of a line."""
    place = 0
    while place <= len(text) and (match := field.match(text, place)):
        yield match
        place = match.end() + 1


def _end(inside: re.Pattern, text: str, start: int = 0) -> int:
    """Return where the inside of a quoted field ends; it may be empty."""
    match = inside.match(text, start)
    return match.end() if match else start


def _value(match: re.Match, escapes: re.Pattern) -> str:
    """The text of a field without its own quotation marks and escapes."""
    surely, escaped, doubled, plain = match.groups()
    if plain is not None:
        return escapes.sub(r"\1", plain)
    return _unquoted(escaped, ESCAPED) if escaped is not None else _unquoted(surely or doubled or "", DOUBLED)


def _unquoted(text: str, inside: re.Pattern) -> str:
    """What stands in a quoted field for people."""
    return text.replace('""', '"') if inside is DOUBLED else re.sub(r'\\(["\\])', r"\1", text)
