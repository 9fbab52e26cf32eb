"""Filters of rows: one small grammar, parsed to a tree that is evaluated on columns or translated for an engine.

    width > 640 and (caption contains "dog" or key in ("a", "b")) and not shard = "old.tar"

A text or a number is compared by = and !=, a number by <, <=, > and >=, too; `contains` finds a part of a text as it is
written, in upper and lower case. `not` binds more tightly than `and`, and that more tightly than `or`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from filip_jax.errors import UserError
from filip_jax.features import Features
from filip_jax.sections import near

MAX_CHARACTERS = 4096  # of a filter
MAX_DEPTH = 32  # of parentheses and `not` in each other
MAX_VALUES = 1024  # behind an `in`
MAX_DIGITS = 15  # of a number: any such is exact in float64, in which some engines compare
TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?![\w.]))|(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"""|(?P<sign><=|>=|!=|==|=|<|>|\(|\)|,)|(?P<word>[^\W\d]\w*))""",
    re.DOTALL,
)
SIGNS = ("=", "!=", "<", "<=", ">", ">=")
WORDS = ("and", "or", "not", "in", "contains")

Value = str | int | float
Kinds = Mapping[str, type]  # of each column: str or float


@dataclass(frozen=True)
class Compare:
    """A column beside a value. Of `in` there are several, and one of them is enough."""

    column: str
    operator: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Join:
    """Two or more filters, all of which hold ("and"), or one of them ("or")."""

    word: str
    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class Not:
    """A filter that does not hold."""

    part: "Filter"


Filter = Compare | Join | Not


def kinds_of(schema: pa.Schema) -> dict[str, type]:
    """Return the columns of a schema that a filter may name, and whether each holds texts (str) or numbers (float)."""
    kinds = dict[str, type]()
    for field in schema:
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            kinds[field.name] = str
        elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            kinds[field.name] = float
    return kinds


def parse_filter(text: str, kinds: Kinds) -> Filter | None:
    """Return the tree of a filter, None of an empty one.

    Raises:
        UserError: it is none of this grammar; names the place, and the columns that exist.
    """
    return _Parser(text, kinds).whole() if text.strip() else None


def allowed_rows(features: Features, tree: Filter | None) -> Bool[np.ndarray, " rows"]:
    """Return a mask of the live rows that a filter holds for; all live ones without a filter."""
    return features.live if tree is None else features.live & matches(tree, features.column)


def matches(tree: Filter, column: Callable[[str], Any]) -> Bool[np.ndarray, " n"]:
    """Return which rows a filter holds for.

    Args:
        column: gives a column, an array or chunked array of Arrow or NumPy, by name.
    """
    match tree:
        case Not(part):
            return ~matches(part, column)
        case Join(word, parts):
            join = np.logical_and if word == "and" else np.logical_or
            return join.reduce([matches(part, column) for part in parts])
    values, first = column(tree.column), tree.values[0]
    values = pa.array(values) if isinstance(values, np.ndarray) else values
    if not isinstance(first, str):
        values = values.cast(pa.float64(), safe=False)
    match tree.operator:
        case "contains":
            mask = pc.match_substring(values, first)
        case "in":
            mask = pc.is_in(values, value_set=pa.array(tree.values, values.type))
        case _:
            mask = COMPARED[tree.operator](values, pa.scalar(first, values.type))
    return np.asarray(mask)


COMPARED = dict(zip(SIGNS, (pc.equal, pc.not_equal, pc.less, pc.less_equal, pc.greater, pc.greater_equal)))


class _Parser:
    """The words and signs of a filter, read once from left to right."""

    def __init__(self, text: str, kinds: Kinds):
        self.text, self.kinds, self.depth, self.at, self.end = text, kinds, 0, 0, 0
        if len(text) > MAX_CHARACTERS:
            raise UserError(f"the filter has {len(text)} characters; at most {MAX_CHARACTERS} are read")
        self.kind, self.value = "", ""
        self._step()

    def whole(self) -> Filter:
        tree = self._joined("or")
        if self.kind:
            self._fail("expected and, or, or the end")
        return tree

    def _step(self) -> None:
        """Go on to the next token."""
        match = TOKEN.match(self.text, self.end)
        if match is None:
            blank = re.compile(r"\s*").match(self.text, self.end)
            self.at = blank.end() if blank else self.end
            self.kind, self.value = "", ""
            if self.at < len(self.text):
                if self.text[self.at] in "\"'":
                    self._fail("the text has no closing quotation mark")
                if self.text[self.at].isdigit():
                    self._fail("a number is written as 640 or 0.5")
                self._fail(f"{self.text[self.at]!r} has no meaning")
            return
        self.kind = match.lastgroup or ""
        self.at, self.end, self.value = match.start(self.kind), match.end(), match[self.kind]
        if self.kind == "word" and self.value.lower() in WORDS:
            self.kind, self.value = "sign", self.value.lower()

    def _takes(self, sign: str) -> bool:
        """Step over a sign or word of the grammar, if it stands here."""
        stands = self.kind == "sign" and self.value == sign
        if stands:
            self._step()
        return stands

    def _joined(self, word: str) -> Filter:
        parts = [self._joined("and") if word == "or" else self._single()]
        while self._takes(word):
            parts.append(self._joined("and") if word == "or" else self._single())
        return parts[0] if len(parts) == 1 else Join(word, tuple(parts))

    def _single(self) -> Filter:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} parentheses and nots in each other")
        tree: Filter
        if self._takes("not"):
            tree = Not(self._single())
        elif self._takes("("):
            tree = self._joined("or")
            if not self._takes(")"):
                self._fail("expected )")
        else:
            tree = self._comparison()
        self.depth -= 1
        return tree

    def _comparison(self) -> Filter:
        column = self.value
        if self.kind != "word":
            self._fail("expected a column")
        if column not in self.kinds:
            self._fail(f"there is no column {column!r}{near(column, self.kinds)}")
        self._step()
        negated = self._takes("not")
        operator = "=" if self.value == "==" else self.value
        if self.kind != "sign" or operator not in (("in", "contains") if negated else (*SIGNS, "in", "contains")):
            self._fail(f"expected one of {' '.join(SIGNS)} in contains")
        if self.kinds[column] is str and operator in SIGNS[2:]:
            self._fail(f"{column} is a text, and only numbers are compared by {operator}")
        if self.kinds[column] is not str and operator == "contains":
            self._fail(f"{column} is a number, which contains nothing")
        self._step()
        values = self._several(column) if operator == "in" else (self._constant(column),)
        tree = Compare(column, operator, values)
        return Not(tree) if negated else tree

    def _several(self, column: str) -> tuple[Value, ...]:
        if not self._takes("("):
            self._fail('expected ( and values, as in: in ("a", "b")')
        values = [self._constant(column)]
        while self._takes(","):
            values.append(self._constant(column))
            if len(values) > MAX_VALUES:
                self._fail(f"more than {MAX_VALUES} values")
        if not self._takes(")"):
            self._fail("expected , or )")
        return tuple(values)

    def _constant(self, column: str) -> Value:
        wanted = "text" if self.kinds[column] is str else "number"
        if self.kind != wanted:
            written = "a text in quotation marks" if wanted == "text" else "a number"
            self._fail(f"{column} is compared with {written}")
        text, value = self.value, None
        if wanted == "text":
            value = re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
            if any("\ud800" <= character <= "\udfff" for character in value):
                self._fail("the text is no valid Unicode")
        elif sum(map(str.isdigit, text)) > MAX_DIGITS:
            self._fail(f"a number of more than {MAX_DIGITS} digits")
        else:
            value = float(text) if "." in text else int(text)
        self._step()
        return value

    def _fail(self, problem: str) -> NoReturn:
        columns = ", ".join(sorted(self.kinds))
        raise UserError(
            f"filter {self.text!r}: at character {self.at + 1}: {problem}; columns: {columns}"
            if self.at < len(self.text)
            else f"filter {self.text!r}: at its end: {problem}; columns: {columns}"
        )
