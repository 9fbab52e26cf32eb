"""Values of Arrow's columns as Python has them, converted piece by piece: a few bytes can stand for any number of values."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from filip_jax.data.column_types import is_bytes, is_list, is_text
from filip_jax.data.record import BadRecord

VALUE_BYTES = 256  # that a value counts beside its text or bytes, so that many empty ones have an end, too


def value_of(scalar: pa.Scalar, most: int, fields: Sequence[str] = ()) -> Any:
    """Return the value of a scalar: a list for lists and maps, a dict for structs, None for what Python cannot hold.

    Args:
        most: bytes; views, list-views and dictionaries let each of many rows name the same large value.
        fields: the way to what is wanted of structs; what lies beside it is left out.

    Raises:
        BadRecord: the value has more bytes, or a text that is not UTF-8.
    """
    return _value_of(scalar, fields, [most], most)


def _value_of(scalar: pa.Scalar, fields: Sequence[str], room: list[int], most: int) -> Any:
    kind = scalar.type
    if not scalar.is_valid:
        return None
    has_bytes = is_text(kind) or is_bytes(kind)
    room[0] -= VALUE_BYTES + (scalar.as_buffer().size if has_bytes else 0)
    if room[0] < 0:
        raise BadRecord(f"a value of more than {most} bytes")
    if pa.types.is_dictionary(kind) or (isinstance(kind, pa.BaseExtensionType) and kind != pa.uuid()):
        return _value_of(scalar.value, fields, room, most)
    if is_list(kind) or pa.types.is_map(kind):
        return [_value_of(each, fields, room, most) for each in scalar.values]
    if pa.types.is_struct(kind):
        return {name: _value_of(inner, fields[1:], room, most) for name, inner in _fields(scalar, fields)}
    try:
        return None if pa.types.is_nested(kind) else scalar.as_py()
    except UnicodeDecodeError as error:
        raise BadRecord(f"a text that is not UTF-8: {error.reason}") from error
    except (ValueError, OverflowError, pa.ArrowException):  # a time in nanoseconds, or beyond the year 9999
        return None


def _fields(scalar: pa.StructScalar, fields: Sequence[str]) -> Iterator[tuple[str, pa.Scalar]]:
    """The wanted fields of a struct by name; it may have a name twice."""
    for n in range(scalar.type.num_fields):
        if not fields or scalar.type.field(n).name == fields[0]:
            yield scalar.type.field(n).name, scalar[n]
