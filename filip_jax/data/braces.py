"""Braces in paths, as in a shell."""

import itertools
import re

from filip_jax.errors import UserError

PATHS = 1 << 20  # that the braces of one path stand for


def expand_braces(path: str) -> list[str]:
    """The paths that {a,b} and {000..127} stand for, as in a shell.

    Raises:
        UserError: there are more than PATHS.
    """
    paths = [""]
    for n, piece in enumerate(re.split(r"\{([^{}]*)\}", path)):  # every second one stood in braces
        span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", piece) if n % 2 else None
        if span:
            width = len(span[1]) if span[1].startswith("0") else 0
            numbers = range(int(span[1]), int(span[2]) + 1)
            choices = (f"{number:0{width}d}" for number in numbers)
        else:
            numbers = choices = piece.split(",") if n % 2 else [piece]
        if len(paths) * len(numbers) > PATHS:
            raise UserError(f"{path}: its braces stand for more than {PATHS} paths")
        paths = [a + b for a, b in itertools.product(paths, choices)]
    return paths
