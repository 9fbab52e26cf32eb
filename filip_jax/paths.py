"""Parameters by path: the nested dicts of the model seen as {"image/blocks/attention/qkv/kernel": leaf}.

Every rule that speaks of parameters (decay, learning rate, freezing, sharding, golden texts,
checkpoint diffs, beginning from another run) speaks of these paths.
"""

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from filip_jax.errors import UserError

REPEATS = 6  # of a rule's regular expression; Python's matching may take for ever on more, or on nested ones
_TOKEN = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]"  # an escape, a class
    r"|\(\?[a-zA-Z]+\)|\(\?(?:P?<\w+>|<?[=!]|[:>]|[a-zA-Z-]+:)"  # flags, the beginning of a group that says more
    r"|[*+?][?+]?|\{\d*,?\d*\}[?+]?|.",
    re.DOTALL,
)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by their path, in sorted order."""
    leaves: dict[str, Any] = {}
    for key in sorted(tree):
        path = f"{prefix}/{key}" if prefix else key
        value = tree[key]
        leaves |= flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dicts again; the inverse of `flatten` but for empty dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def is_stacked(path: str) -> bool:
    """Whether the leaf holds the same parameter of every layer, stacked on its first axis."""
    return "/blocks/" in path


def match_rules(rules: Sequence[Any], paths: Sequence[str], key: str) -> dict[str, float]:
    """The value of the first rule whose regular expression matches the whole path, for each path.

    Args:
        rules: (regular expression, value), tried in order.
        paths: parameter paths.
        key: the config key that holds the rules, for the messages.

    Raises:
        UserError: a parameter that no rule covers, a rule that no parameter meets, or one that is none.
    """
    for rule in rules if isinstance(rules, (tuple, list)) else [rules]:
        if not (isinstance(rule, (tuple, list)) and len(rule) == 2 and isinstance(rule[0], str) and _is_rate(rule[1])):
            raise UserError(f"{key}: {rule!r} is not a pair (regular expression, finite number of at least 0)")
        _check_pattern(rule[0], key)
    values: dict[str, float] = {}
    met = [False] * len(rules)
    for path in paths:
        for index, (pattern, value) in enumerate(rules):
            if _fullmatch(pattern, path, key):
                met[index] = True
                values.setdefault(path, value)
        if path not in values:
            raise UserError(f"{key}: no rule covers the parameter {path}; end the rules with ('.*', value)")
    _check_met(rules, met, paths, key)
    return values


def rename(rules: Sequence[Any], paths: Sequence[str], key: str) -> dict[str, str | None]:
    r"""What each path is called elsewhere, by the first rule whose regular expression matches all of it; else the same.

    Args:
        rules: (regular expression, replacement in which \1 stands for a group), tried in order; None or ""
            for a path that is not there.
        paths: parameter paths.
        key: the config key that holds the rules, for the messages.

    Raises:
        UserError: what is no such rule, or a rule that no parameter meets.
    """
    for rule in rules:
        if not (isinstance(rule, (tuple, list)) and len(rule) == 2 and isinstance(rule[0], str) and _is_name(rule[1])):
            raise UserError(f"{key}: {rule!r} is not a pair (regular expression, path or None)")
        _check_pattern(rule[0], key)
    names: dict[str, str | None] = {}
    met = [False] * len(rules)
    for path in paths:
        for index, (pattern, replacement) in enumerate(rules):
            if match := _fullmatch(pattern, path, key):
                met[index] = True
                names.setdefault(path, _expand(match, replacement, key) if replacement else None)
        names.setdefault(path, path)
    _check_met(rules, met, paths, key)
    return names


def cover(tree: Mapping[str, Any], chosen: Set[str], prefix: str = "") -> list[str]:
    """Regular expressions that match the chosen paths of nested dicts and no others: one for a part chosen whole."""
    found = []
    for name, node in tree.items():
        path = f"{prefix}{name}"
        if not isinstance(node, Mapping):
            found += [path] if path in chosen else []
        elif flatten(node, path).keys() <= chosen:
            found += [f"{path}/.*"]
        else:
            found += cover(node, chosen, f"{path}/")
    return found


def _check_met(rules: Sequence[Any], met: Sequence[bool], paths: Sequence[str], key: str) -> None:
    for (pattern, _), was_met in zip(rules, met):
        if not was_met:
            raise UserError(f"{key}: the rule {pattern!r} matches no parameter; parameters: {', '.join(paths)}")


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < float("inf")


def _check_pattern(pattern: str, key: str) -> None:
    if _may_take_for_ever(pattern):
        raise UserError(
            f"{key}: {pattern!r} may take for ever: at most {REPEATS} repeats, and no repeated group that holds a "
            "repeat or alternatives"
        )


def _may_take_for_ever(pattern: str) -> bool:
    """Whether a regular expression has so many repeats, or nests them so, that matching could take exponential time."""
    repeats, groups, inner = 0, [False], False  # of each open group, and of the one just closed: whether it can vary
    for token in _TOKEN.findall(pattern):
        if token[0] == "(" and token[-1] != ")":
            groups.append(False)
        elif token == ")" and len(groups) > 1:
            inner = groups.pop()
            groups[-1] |= inner
            continue
        elif token == "|":
            groups[-1] = True
        elif token[0] in "*+?" or (token[0] == "{" and len(token) > 1):
            if inner and token[0] != "?":
                return True
            repeats, groups[-1] = repeats + 1, True
        inner = False
    return repeats > REPEATS


def _is_name(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _expand(match: re.Match, replacement: str, key: str) -> str:
    try:
        return match.expand(replacement)
    except (re.error, IndexError) as error:
        raise UserError(f"{key}: {replacement!r} cannot replace {match.re.pattern!r}: {error}") from error


def _fullmatch(pattern: str, path: str, key: str) -> re.Match | None:
    try:
        return re.fullmatch(pattern, path)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{key}: {pattern!r} is not a regular expression: {error}") from error
