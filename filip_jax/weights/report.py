"""What an import says: choices with their evidence, every name that became a parameter, and what became of the others."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import jax

from filip_jax.errors import UserError
from filip_jax.plain import one_line
from filip_jax.weights.mapping import LAYER, Rule
from filip_jax.weights.plan import Evidence, Plan
from filip_jax.weights.tensors import Weights

Shapes = Mapping[str, jax.ShapeDtypeStruct]  # by path
MAX_LINES = 100  # of names of one kind
WIDTH = 20  # of a choice's name
NUMBER = re.compile(r"\.(\d{1,4})\.")


def account_for_names(
    plan: Plan, shapes: Shapes, weights: Weights, evidence: Sequence[Evidence], say: Callable[..., None]
) -> dict[str, str]:
    """Print the choices and every name; return the names that are not used, with what they are.

    Raises:
        UserError: a name is missing, or unknown.
    """
    sizes = [shapes[rule.path].shape for rule in plan.rules]
    needed = {name for rule, shape in zip(plan.rules, sizes) for names in rule.names_of(shape) for name in names}
    left = weights.tensors.keys() - needed
    unused = {name: what for name in sorted(left) for pattern, what in plan.ignored if re.fullmatch(pattern, name)}
    missing, unknown = needed - weights.tensors.keys(), left - unused.keys()
    unused |= weights.beside
    lines = [*choices(evidence), *(f"differs: {line}" for line in plan.differs), *weights.notes]
    lines += [f"mapped: {len(needed - missing)} tensors to {len(plan.rules)} parameters"]
    lines += [f"  {line}" for line in mapped(plan.rules, sizes)]
    lines += _first(f"unused: {some(names)}: {what}" for what, names in _by_value(unused).items())
    if fresh := sorted(shapes.keys() - {rule.path for rule in plan.rules}):
        lines += [f"fresh: {some(fresh)}: the source holds images alone; init_from.rules take 'image/.*'"]
    lines += _first(f"missing: {name}" for name in grouped(missing))
    lines += _first(f"unknown: {name}" for name in grouped(unknown))
    say(*map(one_line, lines))
    if missing:
        strange = f" and holds {some(unknown)}" if unknown else ""
        raise UserError(f"{weights.files[0]} lacks {some(missing)}{strange}: it is of another family, or not whole")
    if unknown:
        what = f"{weights.files[0]} holds {some(unknown)}, which the family does not know"
        raise UserError(f"{what}: the model may compute something else with it")
    return unused


def _by_value(descriptions: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names of each description."""
    names = defaultdict[str, list[str]](list)
    for name, what in descriptions.items():
        names[what].append(name)
    return names


def _first(lines: Iterable[str]) -> list[str]:
    """Return the lines, of very many the first: a stranger's file may hold any number of names."""
    shown = list(islice(lines, MAX_LINES + 1))
    return shown if len(shown) <= MAX_LINES else [*shown[:MAX_LINES], "…"]


def choices(evidence: Sequence[Evidence]) -> Iterator[str]:
    """Yield a line for each choice."""
    for choice, value, origin in evidence:
        yield one_line(f"{choice:<{WIDTH}}  {value}  ({origin})")


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
