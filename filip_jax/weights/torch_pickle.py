"""What the pickle in a torch file describes, read as data: no name in it is looked up, nothing in it is called.

A pickle is a program for a machine with a stack. `parse_pickle` knows the few opcodes of which torch.save makes state dicts
(protocol 2; 4, if asked for) and builds dicts, lists, tuples, texts, numbers and `Tensor` records of them, nothing else. A global is a key
of `GLOBALS` and stays its name; whatever else the pickle holds is refused, so there is nothing that could run.
"""

import math
import pickletools
import struct
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

MAX_PICKLE_BYTES = 1 << 24  # those of a model of a billion parameters with its optimizer have a tenth of it
MAX_OPCODES = 1 << 19  # theirs have a third of it
MAX_TENSOR_DIMENSIONS = 16
STORAGES = {
    "torch DoubleStorage": "float64",
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
}


class NotPlain(ValueError):
    """A pickle that holds more than tensors, dicts, lists, tuples, texts and numbers."""


class Storage(NamedTuple):
    """A run of numbers in a file of its own: their type, the file's key and their count."""

    dtype: str
    key: str
    size: int


class Tensor(NamedTuple):
    """A tensor as a view of a storage; offset and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Global(NamedTuple):
    """The name of a type or function: a text, never the thing itself."""

    name: str


def parse_pickle(data: bytes) -> Any:
    """Return what a pickle of torch.save describes.

    Args:
        data: the content of data.pkl.

    Raises:
        NotPlain: it holds anything else, names what, or is too large or damaged.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise NotPlain(f"it has {len(data)} bytes; at most {MAX_PICKLE_BYTES} are read")
    stack, memo = [[]], {}  # type: ignore[var-annotated] # of lists: one more for each open mark
    try:
        for opcode, argument, _ in islice(pickletools.genops(data), MAX_OPCODES):
            if opcode.name == "STOP":
                [[result]] = stack
                return result
            if opcode.name not in OPCODES:
                raise NotPlain(f"it holds the opcode {opcode.name}")
            OPCODES[opcode.name](stack, memo, argument)
    except NotPlain:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, struct.error) as error:
        raise NotPlain(f"it is damaged: {error}") from error
    raise NotPlain(f"it has more than {MAX_OPCODES} opcodes")


Stack = list[list[Any]]


def _push(stack: Stack, _memo: dict[int, Any], value: Any) -> None:
    stack[-1].append(value)


def _make(value: Callable[[], Any]) -> Callable[..., None]:
    return lambda stack, memo, argument: stack[-1].append(value())


def _put(stack: Stack, memo: dict[int, Any], index: int) -> None:
    if not 0 <= index < MAX_OPCODES:
        raise NotPlain(f"it numbers a value {index}")
    memo[index] = stack[-1][-1]


def _memoize(stack: Stack, memo: dict[int, Any], _argument: Any) -> None:
    memo[len(memo)] = stack[-1][-1]


def _get(stack: Stack, memo: dict[int, Any], index: int) -> None:
    stack[-1].append(memo[index])


def _mark(stack: Stack, _memo: dict[int, Any], _argument: Any) -> None:
    stack.append([])


def _tuple(stack: Stack, _memo: dict[int, Any], _argument: Any) -> None:
    values = stack.pop()
    stack[-1].append(tuple(values))


def _tuple_of(count: int) -> Callable[..., None]:
    def make(stack: Stack, _memo: dict[int, Any], _argument: Any) -> None:
        stack[-1][-count:] = [tuple(_last(stack, count))]

    return make


def _append(stack: Stack, _memo: dict[int, Any], _argument: Any) -> None:
    value = stack[-1].pop()
    _of_type(stack[-1][-1], list).append(value)


def _appends(stack: Stack, _memo: dict[int, Any], _argument: Any) -> None:
    values = stack.pop()
    _of_type(stack[-1][-1], list).extend(values)


def _set_item(stack: Stack, _memo: dict[int, Any], _argument: Any) -> None:
    key, value = _last(stack, 2)
    del stack[-1][-2:]
    _of_type(stack[-1][-1], dict)[_key(key)] = value


def _set_items(stack: Stack, _memo: dict[int, Any], _argument: Any) -> None:
    values = stack.pop()
    if len(values) % 2:
        raise NotPlain("it is damaged: a key without a value")
    target = _of_type(stack[-1][-1], dict)
    for key, value in zip(values[::2], values[1::2]):
        target[_key(key)] = value


def _global(stack: Stack, _memo: dict[int, Any], name: str) -> None:
    if name not in GLOBALS and name not in STORAGES:
        raise NotPlain(f"it names {name.replace(' ', '.')!r:.100}")
    stack[-1].append(Global(name))


def _stack_global(stack: Stack, memo: dict[int, Any], _argument: Any) -> None:
    module, name = _last(stack, 2)
    del stack[-1][-2:]
    _global(stack, memo, f"{_of_type(module, str)} {_of_type(name, str)}")


def _reduce(stack: Stack, _memo: dict[int, Any], _argument: Any) -> None:
    function, arguments = _last(stack, 2)
    name = _of_type(function, Global).name
    if name not in GLOBALS:
        raise NotPlain(f"it calls {name!r}")
    stack[-1][-2:] = [GLOBALS[name](*_of_type(arguments, tuple))]


def _build(stack: Stack, _memo: dict[int, Any], _argument: Any) -> None:
    """Drop the attributes of a state dict: torch notes versions there."""
    target, state = _last(stack, 2)
    _of_type(target, dict), _of_type(state, dict)
    stack[-1].pop()


def _persistent(stack: Stack, _memo: dict[int, Any], _argument: Any) -> None:
    kind, storage, key, _device, size = _of_type(stack[-1].pop(), tuple)
    dtype = STORAGES.get(_of_type(storage, Global).name)
    if kind != "storage" or dtype is None or not isinstance(key, str) or not _is_count(size):
        raise NotPlain("it is damaged: a storage that is none")
    stack[-1].append(Storage(dtype, key, size))


def _last(stack: Stack, count: int) -> list[Any]:
    values = stack[-1][-count:]
    if len(values) != count:
        raise NotPlain("it is damaged: values are missing")
    return values


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise NotPlain(f"it is damaged: {type(value).__name__} where {kind.__name__} belongs")
    return value


def _key(key: Any) -> Any:
    """Return a key of a dict: a text, or a small number, of which none can be made that collide."""
    if type(key) is str or (type(key) is int and 0 <= key < MAX_OPCODES):
        return key
    raise NotPlain(f"it has a key of the type {type(key).__name__}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _gradient: Any = None, _hooks: Any = None, marks: Any = None
) -> Tensor:
    """Return a view that lies in its storage and has no more numbers than it."""
    if marks:  # it is negative or conjugated when it is read
        raise NotPlain("it has a tensor whose numbers torch changes when it reads them")
    _of_type(storage, Storage), _of_type(shape, tuple), _of_type(strides, tuple)
    counts = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > MAX_TENSOR_DIMENSIONS or not all(map(_is_count, counts)):
        raise NotPlain("it is damaged: a tensor's shape is none")
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    if count and (count > storage.size or last >= storage.size):
        raise NotPlain("it has a tensor that is larger than its storage")
    return Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_rest: Any) -> Tensor:
    return _of_type(tensor, Tensor)


def _dict() -> dict[Any, Any]:
    return {}


def _size(shape: Any) -> tuple[Any, ...]:
    return _of_type(shape, tuple)


# What may be "called", by our own functions in place of those that are named.
GLOBALS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _dict,
    "torch Size": _size,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_tensor_v2": _tensor,
}
OPCODES: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda stack, memo, number: None),
    "NONE": _make(lambda: None),
    "NEWTRUE": _make(lambda: True),
    "NEWFALSE": _make(lambda: False),
    "EMPTY_DICT": _make(dict),
    "EMPTY_LIST": _make(list),
    "EMPTY_TUPLE": _make(tuple),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"), _push),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": _memoize,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _get),
    "MARK": _mark,
    "TUPLE": _tuple,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
