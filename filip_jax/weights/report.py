"""What an import says: choices with their evidence, every name that became a parameter, and what became of the others."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from filip_jax.plain import one_line
from filip_jax.weights.mapping import LAYER, Rule
from filip_jax.weights.plan import Evidence

WIDTH = 20  # of a choice's name
NUMBER = re.compile(r"\.(\d{1,4})\.")


def choices(evidence: Sequence[Evidence]) -> Iterator[str]:
    """Yield a line for each choice."""
    for what, value, why in evidence:
        yield one_line(f"{what:<{WIDTH}}  {value}  ({why})")


def mapped(rules: Sequence[Rule], shapes: Sequence[Sequence[int]], arrow: str = "<-") -> Iterator[str]:
    """Yield a line for each parameter: its path, its shape, the names that it is made of, or becomes, and how."""
    width = max(len(rule.path) for rule in rules)
    for rule, shape in zip(rules, shapes, strict=True):
        layers = f"{{0..{shape[0] - 1}}}" if rule.stacked else ""
        names = together(rule.names).replace(LAYER, layers)
        how = ", ".join(filter(None, (rule.transform.name, "stacked" if rule.stacked else "")))
        yield one_line(f"{rule.path:<{width}}  {list(shape)} {arrow} {names}" + (f" ({how})" if how else ""))


def together(names: Sequence[str]) -> str:
    """Return several names as one, such as self_attn.{q,k,v}_proj.weight."""
    if len(names) == 1:
        return names[0]
    start = _common(names)
    rest = [name[start:] for name in names]
    end = _common([each[::-1] for each in rest])
    middle = ",".join(each[: len(each) - end] for each in rest)
    return f"{names[0][:start]}{{{middle}}}{names[0][len(names[0]) - end :]}"


def _common(names: Sequence[str]) -> int:
    """Return how many characters all names begin with."""
    pairs = enumerate(zip(*names))
    return next((n for n, characters in pairs if len(set(characters)) > 1), min(map(len, names)))


def grouped(names: Iterable[str]) -> list[str]:
    """Return the names with those of several layers as one: a.{0..11}.weight."""
    layers = defaultdict[str, list[int]](list)
    for name in names:
        number = NUMBER.search(name)
        layers[NUMBER.sub(f".{LAYER}.", name, count=1)].append(int(number[1]) if number else -1)
    return [
        one_line(name.replace(LAYER, str(numbers[0]) if len(numbers) == 1 else f"{{{min(numbers)}..{max(numbers)}}}"))
        for name, numbers in sorted(layers.items())
    ]


def some(names: Iterable[str], most: int = 8) -> str:
    """Return the first of the names, grouped, as a list in a sentence."""
    groups = grouped(names)
    return ", ".join(groups[:most]) + (f" and {len(groups) - most} more" if len(groups) > most else "")
