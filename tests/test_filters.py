"""Filters of rows: any tree comes back from its text, holds for the rows that Python says, in SQL and Qdrant too; a typo is one line."""

import re

import numpy as np
import pyarrow as pa
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from filip_jax.errors import UserError
from filip_jax.search.filters import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_VALUES,
    SIGNS,
    Compare,
    Join,
    Not,
    kinds_of,
    matches,
    parse_filter,
)

KINDS = {"key": str, "caption": str, "width": float, "index": float}
TEXTS = st.text(st.sampled_from("abü中'\"\\%_ \n()"), max_size=4)
NUMBERS = st.integers(-50, 50) | st.integers(-500, 500).map(lambda n: n / 10)


def comparisons():
    texts, numbers = st.sampled_from(["key", "caption"]), st.sampled_from(["width", "index"])
    return st.one_of(
        st.builds(Compare, texts, st.sampled_from(["=", "!=", "contains"]), st.tuples(TEXTS)),
        st.builds(Compare, numbers, st.sampled_from(SIGNS), st.tuples(NUMBERS)),
        st.builds(Compare, texts, st.just("in"), st.lists(TEXTS, min_size=1, max_size=3).map(tuple)),
        st.builds(Compare, numbers, st.just("in"), st.lists(NUMBERS, min_size=1, max_size=3).map(tuple)),
    )


def wider(children):
    several = st.lists(children, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, children), st.builds(Join, st.sampled_from(["and", "or"]), several))


TREES = st.recursive(comparisons(), wider, max_leaves=6)
ROWS = st.lists(st.tuples(TEXTS, TEXTS, st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=12)


def written(tree):
    """The text of a tree, each part in parentheses."""
    match tree:
        case Not(part):
            return f"not ({written(part)})"
        case Join(word, parts):
            return f" {word} ".join(f"({written(part)})" for part in parts)
    values = [
        '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else repr(value)
        for value in tree.values
    ]
    return f"{tree.column} {tree.operator} {'(' + ', '.join(values) + ')' if tree.operator == 'in' else values[0]}"


def holds(tree, row):
    """The definition, in Python's own words, of one row {column: value}."""
    match tree:
        case Not(part):
            return not holds(part, row)
        case Join(word, parts):
            return (all if word == "and" else any)(holds(part, row) for part in parts)
    value, first = row[tree.column], tree.values[0]
    return {
        "=": value == first, "!=": value != first, "in": value in tree.values,
        "contains": tree.operator == "contains" and first in value,
        **({"<": value < first, "<=": value <= first, ">": value > first, ">=": value >= first}
           if not isinstance(first, str) else {}),
    }[tree.operator]  # fmt: skip


@examples(200)
@given(TREES)
def test_a_tree_comes_back_from_its_text(tree):
    assert parse_filter(written(tree), KINDS) == tree


@examples(200)
@given(TREES, ROWS)
def test_it_holds_for_the_rows_that_python_says(tree, rows):
    columns = dict(zip(KINDS, map(list, zip(*rows))))
    types = {"key": pa.string(), "caption": pa.string(), "width": pa.int32(), "index": pa.int64()}
    found = matches(tree, lambda name: pa.chunked_array([pa.array(columns[name], types[name])]))
    assert found.tolist() == [holds(tree, dict(zip(KINDS, row))) for row in rows]


def test_words_bind_as_they_say():
    one, two, three = (Compare("width", "=", (n,)) for n in (1, 2, 3))
    assert parse_filter("width=1 or width=2 and not width=3", KINDS) == Join(
        "or", (one, Join("and", (two, Not(three))))
    )
    assert parse_filter("NOT width == 1 AND (width=2 Or width=3)", KINDS) == Join(
        "and", (Not(one), Join("or", (two, three)))
    )
    assert parse_filter("key not in ('a')", KINDS) == Not(Compare("key", "in", ("a",)))
    assert parse_filter(" ", KINDS) is None


@pytest.mark.parametrize(
    "text, place, said",
    [
        ("widht > 640", 1, "there is no column 'widht'; did you mean width?"),
        ("width > 'a'", 9, "width is compared with a number"),
        ("key = 3", 7, "key is compared with a text in quotation marks"),
        ("key < 'a'", 5, "key is a text, and only numbers are compared by <"),
        ("width contains 3", 7, "width is a number, which contains nothing"),
        ("width 3", 7, "expected one of"),
        ("width > 3 width > 4", 11, "expected and, or, or the end"),
        ("(width > 3", None, "expected )"),
        ("key in 'a'", 8, "expected ( and values"),
        ("key = 'a", 7, "the text has no closing quotation mark"),
        ("width > 3; drop", 10, "';' has no meaning"),
        ("not", None, "expected a column"),
        ("width > 12345678901234567", 9, f"a number of more than {MAX_DIGITS} digits"),
        ("(" * (MAX_DEPTH + 1), None, f"more than {MAX_DEPTH} parentheses"),
        ("not " * (MAX_DEPTH + 1), None, f"more than {MAX_DEPTH} parentheses"),
        (f"width in ({'1,' * MAX_VALUES}1)", 12 + 2 * MAX_VALUES, f"more than {MAX_VALUES} values"),
    ],
)
def test_a_typo_is_one_line_that_names_its_place_and_the_columns(text, place, said):
    with pytest.raises(UserError) as caught:
        parse_filter(text, KINDS)
    message = str(caught.value)
    assert said in message and message.endswith("columns: caption, index, key, width") and "\n" not in message
    if place is not None:
        assert int(re.search(r"at character (\d+): ", message)[1]) == place


def test_a_filter_without_end_is_refused_unread():
    with pytest.raises(UserError, match=f"at most {MAX_CHARACTERS} are read"):
        parse_filter("width = 1 or " * MAX_CHARACTERS, KINDS)


@examples(300)
@given(st.text(st.sampled_from("()'\"\\ andortincswidthkey=<>!,.0123456789-+é\ud800"), max_size=60))
def test_rubbish_is_a_tree_or_one_line(text):
    try:
        parse_filter(text, KINDS)
    except UserError as error:
        assert "columns: " in str(error)


def test_columns_of_numbers_and_texts_can_be_named():
    schema = pa.schema([("a", pa.string()), ("b", pa.int8()), ("c", pa.list_(pa.int8())), ("d", pa.float32())])
    assert kinds_of(schema) == {"a": str, "b": float, "d": float}
    assert matches(Compare("b", ">=", (2,)), lambda _: np.array([1, 2, 3], np.int8)).tolist() == [False, True, True]
