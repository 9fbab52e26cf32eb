"""Matrix operations of a function, counted in its jaxpr: what the model needs, whatever a compiler makes of it."""

import math
from collections.abc import Callable
from typing import Any

import jax


def count_operations(function: Callable[..., Any], *arguments: Any) -> float:
    """Additions and multiplications of the matrix products and convolutions of `function`, over all devices.

    Scans count as often as they run, of conditionals the largest branch, of a shard_map each device's part.

    Raises:
        ValueError: matrix products in a loop whose rounds are not known before it runs.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: Any) -> float:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, parameters["dimension_numbers"]
        outputs = kernel[numbers.rhs_spec[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs
    inner = [_of(each) for each in _inner(parameters)]
    if not inner:
        return 0.0
    if name == "scan":
        return parameters["length"] * sum(inner)
    if name == "while" and sum(inner):
        raise ValueError("matrix products in a while loop cannot be counted")
    if name == "cond":
        return max(inner)
    if name == "shard_map":
        return parameters["mesh"].size * sum(inner)
    if name == "pallas_call":
        return math.prod(parameters["grid_mapping"].grid) * sum(inner)
    return inner[0] if name.startswith("custom_") else sum(inner)


def _inner(parameters: Any) -> list[Any]:
    """The jaxprs among an equation's parameters."""
    found = []
    for value in parameters.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                found.append(each)
    return found
