r"""One table for both directions: names of other tools <-> paths of our parameters, with transforms that can be undone.

A rule says that the parameter `path` is made of the tensors `names`. {layer} in a name stands for the number of a layer:
the parameter then has one more axis at its front, as `Transformer` stacks its blocks. `take` reads by a table, `give` writes by
it, and `give(take(x))` is x bit by bit: transforms copy, they do not compute.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from filip_jax.errors import UserError
from filip_jax.weights.stored import Stored

LAYER = "{layer}"
FLOATS = ("float32", "float16", "bfloat16")  # that float32 holds exactly


class Transform(NamedTuple):
    """A way from tensors to one parameter, and back.

    Attributes:
        name: for people; "" of one that changes nothing.
        take: arrays, in the rule's order -> the parameter.
        give: (the parameter, the number of arrays) -> the arrays.
    """

    name: str
    take: Callable[[Sequence[np.ndarray]], np.ndarray]
    give: Callable[[np.ndarray, int], Sequence[np.ndarray]]


def _transposed(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.T for array in arrays], axis=-1) if len(arrays) > 1 else arrays[0].T


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays, axis=-1)


def _patches(arrays: Sequence[np.ndarray]) -> np.ndarray:
    [kernel] = arrays
    return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])


def _patch_kernel(array: np.ndarray, _: int) -> list[np.ndarray]:
    side = math.isqrt(array.shape[0] // 3)
    return [array.reshape(side, side, 3, array.shape[1]).transpose(3, 2, 0, 1)]


def _with_axes(count: int) -> Callable[[np.ndarray, int], list[np.ndarray]]:
    return lambda array, _: [array[(None,) * count]]


def _without_axes(count: int) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    def take(arrays: Sequence[np.ndarray]) -> np.ndarray:
        [array] = arrays
        if array.shape[:count] != (1,) * count:
            raise ValueError(f"it should begin with {count} axes of length 1")
        return array.reshape(array.shape[count:])

    return take


SAME = Transform("", lambda arrays: arrays[0], lambda array, _: [array])
TRANSPOSED = Transform("transposed", _transposed, lambda array, count: [x.T for x in np.split(array, count, axis=-1)])
JOINED = Transform("joined", _joined, lambda array, count: np.split(array, count, axis=-1))
PATCHES = Transform("kernel as patches", _patches, _patch_kernel)  # [w, 3, p, p] <-> [row, column, channel of p p 3, w]
FIRST_AXIS_GONE = Transform("first axis dropped", _without_axes(1), _with_axes(1))  # [1, …] <-> […]
TWO_AXES_GONE = Transform("first two axes dropped", _without_axes(2), _with_axes(2))
AS_ROW = Transform("as one row", lambda arrays: arrays[0][None], lambda array, _: [array[0]])  # [w] <-> [1, w]


class Rule(NamedTuple):
    """A parameter and the tensors that it is made of; q, k and v are three tensors of one."""

    path: str
    names: tuple[str, ...]
    transform: Transform = SAME

    @property
    def stacked(self) -> bool:
        """Return whether the parameter stands for all layers."""
        return LAYER in self.names[0]

    def names_of(self, shape: Sequence[int]) -> Iterator[list[str]]:
        """Yield the names for each layer of a parameter of this shape, or once where nothing is stacked."""
        for layer in range(shape[0] if self.stacked else 1):
            yield [name.replace(LAYER, str(layer)) for name in self.names]


def linear(path: str, name: str | Sequence[str], *, bias: bool = True, kernel: Transform = TRANSPOSED) -> list[Rule]:
    """Return the rules of a Linear, [out, in] there and [in, out] here; of several that are one here."""
    names = (name,) if isinstance(name, str) else tuple(name)
    matrix = Rule(f"{path}/kernel", tuple(f"{each}.weight" for each in names), kernel)
    offset = Rule(f"{path}/bias", tuple(f"{each}.bias" for each in names), JOINED if len(names) > 1 else SAME)
    return [matrix, offset] if bias else [matrix]


def norm(path: str, name: str) -> list[Rule]:
    """Return the rules of a LayerNorm."""
    return [Rule(f"{path}/scale", (f"{name}.weight",)), Rule(f"{path}/bias", (f"{name}.bias",))]


def take(rule: Rule, shape: Sequence[int], tensors: Mapping[str, Stored]) -> np.ndarray:
    """Return a parameter, float32 of this shape, read layer by layer.

    Args:
        shape: whose first axis is that of the layers where the rule is stacked.

    Raises:
        UserError: a tensor's shape or type does not fit, or it holds what is no number.
    """
    result = np.empty(tuple(shape), np.float32)
    rows = result if rule.stacked else result[None]
    for layer, names in enumerate(rule.names_of(shape)):
        rows[layer] = _read(rule, names, rows.shape[1:], tensors)
    return result


def _read(rule: Rule, names: Sequence[str], shape: tuple[int, ...], tensors: Mapping[str, Stored]) -> np.ndarray:
    for name in names:
        if (dtype := tensors[name].dtype) not in FLOATS:
            raise UserError(f"{name!r} is of the type {dtype}: save the model in one of {', '.join(FLOATS)} first")
        if math.prod(tensors[name].shape) > math.prod(shape):
            raise UserError(_misfit(rule, names, shape, tensors))
    try:  # NumPy refuses [0, 2**62], too
        array = rule.transform.take([tensors[name].read() for name in names])
    except ValueError as error:
        raise UserError(f"{_misfit(rule, names, shape, tensors)} ({error})") from error
    if array.shape != shape:
        raise UserError(_misfit(rule, names, shape, tensors))
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{names[0]!r} holds NaN or infinity: these weights are spoilt")
    return array


def _misfit(rule: Rule, names: Sequence[str], shape: Sequence[int], tensors: Mapping[str, Stored]) -> str:
    shapes = " and ".join(f"{name!r} {list(tensors[name].shape)}" for name in names)
    return f"{shapes} cannot become {rule.path} {list(shape)} of a model of these sizes"


def give(rule: Rule, parameter: np.ndarray) -> dict[str, np.ndarray]:
    """Return the tensors of a parameter by name, the inverse of `take`."""
    rows = parameter if rule.stacked else parameter[None]
    tensors: dict[str, np.ndarray] = {}
    for layer, names in enumerate(rule.names_of(parameter.shape)):
        arrays = rule.transform.give(rows[layer], len(names))
        tensors |= {name: np.array(array, order="C") for name, array in zip(names, arrays, strict=True)}
    return tensors


def count_layers(names: Iterable[str], pattern: str) -> int:
    """Return how many layers have a tensor of this name, in which {layer} stands for their numbers from 0."""
    present, count = set(names), 0
    while pattern.replace(LAYER, str(count)) in present:
        count += 1
    return count
