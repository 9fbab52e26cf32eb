"""Kinds of Arrow types, each of which has several."""

import pyarrow as pa


def plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of single values: of a dictionary's values, of the items of lists in lists."""
    while pa.types.is_dictionary(kind) or is_list(kind):
        kind = kind.value_type
    return kind


def is_list(kind: pa.DataType) -> bool:
    """Return whether values of this type are lists."""
    types = pa.types
    return any(is_one(kind) for is_one in (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view))


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of this type are single texts."""
    types = pa.types
    return any(is_one(kind) for is_one in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether values of this type are single strings of bytes."""
    types = pa.types
    of = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_one(kind) for is_one in of)
