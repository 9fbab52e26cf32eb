"""What columns of Arrow's types can hold, and what to say where one holds something else."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from filip_jax.data.values import IMAGE_FIELDS, TEXT_FIELDS, advice

MAX_SHOWN = 60  # characters of a type in a message


def plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of single values: of a dictionary's values, of the items of lists in lists."""
    while pa.types.is_dictionary(kind) or is_list(kind):
        kind = kind.value_type
    return kind


def is_list(kind: pa.DataType) -> bool:
    """Return whether values of this type are lists."""
    types = pa.types
    of = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(is_one(kind) for is_one in of)


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of this type are single texts."""
    types = pa.types
    return any(is_one(kind) for is_one in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether values of this type are single strings of bytes."""
    types = pa.types
    of = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_one(kind) for is_one in of)


def holds_text(kind: pa.DataType) -> bool:
    """Return whether `texts_of` may find texts in values of a type."""
    inner = plain(kind)
    if pa.types.is_struct(inner):
        return any(holds_text(inner.field(name).type) for name in TEXT_FIELDS if inner.get_field_index(name) >= 0)
    is_number = pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)
    return is_text(inner) or is_bytes(inner) or ((is_number or pa.types.is_decimal(inner)) and not is_list(kind))


def holds_image(kind: pa.DataType) -> bool:
    """Return whether `image_of` may find an image in values of a type."""
    inner = kind.value_type if is_list(kind) or pa.types.is_dictionary(kind) else kind
    if pa.types.is_struct(inner):
        return any(holds_image(inner.field(name).type) for name in IMAGE_FIELDS if inner.get_field_index(name) >= 0)
    return is_text(inner) or is_bytes(inner)


def inner_type(kind: pa.DataType, fields: Sequence[str]) -> pa.DataType | None:
    """Return the type at a.b.c of a struct, or of the structs of a list; None where there is none."""
    in_lists = False
    for name in fields:
        in_lists |= is_list(kind)
        kind = plain(kind)
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return pa.list_(kind) if in_lists else kind


def option_advice(option: str, schema: pa.Schema, fits: Callable[[pa.DataType], bool], image: str) -> str:
    """Return what to say for an option: a column whose type fits, or else a field of one."""
    if option == "key":
        return f"say {option}=NAME"
    taken = image if option == "caption_keys" else ""
    single = [field for field in schema if schema.names.count(field.name) == 1 and field.name != taken]
    others = [field.name for field in single if fits(field.type)]
    if option == "image":
        encoded = [name for name in others if not is_text(schema.field(name).type)]
        return advice(option, encoded or others, are_fit=bool(encoded))
    if others and set(others) <= set(label_names(schema)):
        return f"say label={others[0]}"
    return advice(
        option, others or [name for field in single for name in _fields(field.name, field.type, fits)], are_fit=True
    )


def field_advice(option: str, name: str, kind: pa.DataType, fits: Callable[[pa.DataType], bool]) -> str:
    """Return which field of a struct to name, or how to write what is none; "" where there is nothing to say."""
    if option == "image" and (pa.types.is_integer(plain(kind)) or pa.types.is_floating(plain(kind))) and is_list(kind):
        return "numbers of pixels are not read: write images as JPEG, PNG or WebP"
    names = _fields(name, kind, fits)
    return f"say {option}={names[0]}" if len(names) == 1 else advice(option, names) if names else ""


def _fields(name: str, kind: pa.DataType, fits: Callable[[pa.DataType], bool]) -> list[str]:
    """The fields of a struct, or of the structs of a list, whose types fit."""
    inner = plain(kind)
    fields = [inner.field(n) for n in range(inner.num_fields)] if pa.types.is_struct(inner) else []
    return [f"{name}.{field.name}" for field in fields if fits(field.type)]


def said_type(kind: pa.DataType) -> str:
    """Return a type in words, cut if it is long."""
    text = str(kind).replace("element: ", "").replace("item: ", "")
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def listed(schema: pa.Schema) -> str:
    """Return the columns with their types, for messages."""
    return ", ".join(f"{field.name} ({said_type(field.type)})" for field in schema)


def label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return {column: the names of its classes} of a schema by Hugging Face's `datasets`; what is not as it writes it is none."""
    try:
        features: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        found = {name: each["names"] for name, each in features.items() if each.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        name: names
        for name, names in found.items()
        if isinstance(names, list) and all(isinstance(n, str) for n in names)
    }
