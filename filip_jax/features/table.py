"""The table of stored features: its columns as Arrow has them, and files of it, which are checked before they are used."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, Int16, Shaped

from filip_jax.data.arrow_messages import check_unpacked
from filip_jax.data.mapped import check_columns, map_table
from filip_jax.errors import UserError
from filip_jax.features.manifest import PARTS, SCALARS, Manifest, Part
from filip_jax.small_files import open_own, sha256_of

NUMBERS = {"index": pa.int64(), "width": pa.int32(), "height": pa.int32(), "orientation": pa.int8()}


def schema_of(manifest: Manifest) -> pa.Schema:
    """Return the columns of features; `scales` only where tokens are int8."""
    vector = pa.list_(pa.from_numpy_dtype(np.dtype(manifest.dtype)), manifest.dimension)
    columns = [(name, NUMBERS.get(name, pa.string())) for name in SCALARS]
    columns += [("tokens", pa.list_(vector))]
    columns += [("scales", pa.list_(pa.float32()))] if manifest.dtype == "int8" else []
    columns += [("positions", pa.list_(pa.int16())), ("pooled", pa.list_(pa.float32(), manifest.dimension))]
    return pa.schema(columns)


@dataclass(frozen=True)
class Rows:
    """The rows of one part, as views of its file.

    Attributes:
        columns: the whole batch.
        offsets: the tokens of row n are values[offsets[n]:offsets[n + 1]].
    """

    columns: pa.RecordBatch
    offsets: Int[np.ndarray, " ends"]
    values: Shaped[np.ndarray, "tokens d"]
    scales: Float[np.ndarray, " tokens"] | None
    positions: Int16[np.ndarray, " tokens"]
    pooled: Float[np.ndarray, "n d"]


def open_part(folder: Path, part: Part, manifest: Manifest) -> Rows:
    """Return the rows of a part, mapped into memory.

    Raises:
        UserError: the file is missing, or not as its writer wrote it, as far as that can be seen without reading the
            numbers; `verify_part` reads all.
    """
    file = folder / PARTS / part.name
    try:
        return _checked(_opened(file, part, schema_of(manifest)), part, manifest)
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: bring it back, or embed the records again") from error
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{file} is damaged: {error}; embed the records again, into another folder") from error


def _opened(file: Path, part: Part, schema: pa.Schema) -> pa.Table:
    if file.parent.is_symlink():
        raise UserError(f"{file.parent} is a link, behind which nothing is read: put a copy of the folder in its place")
    with open_own(file) as handle:  # no link that leads out of the folder
        size = os.fstat(handle.fileno()).st_size
    if size != part.bytes:
        raise ValueError(f"it has {size} bytes instead of {part.bytes}")
    check_unpacked(str(file), pa.memory_map(str(file)), True, most=0)  # what is compressed could not stay in the file
    return map_table(file, schema)


def _checked(table: pa.Table, part: Part, manifest: Manifest) -> Rows:
    batches = table.to_batches()
    if len(batches) != 1 or batches[0].num_rows != part.rows:
        raise ValueError(f"it has {table.num_rows} rows in {len(batches)} batches instead of {part.rows} in one")
    batch = batches[0]
    check_columns(list(batch.columns))
    flat, pooled = batch["tokens"].flatten(), batch["pooled"]
    values, vectors = flat.flatten(), pooled.flatten()
    if values.null_count or vectors.null_count:
        raise ValueError("a number is missing")
    lists = ["tokens", "positions", *(["scales"] if manifest.dtype == "int8" else [])]
    lengths = [np.diff(batch[name].offsets.to_numpy()) for name in lists]
    if any((other != lengths[0]).any() for other in lengths[1:]):
        raise ValueError("its tokens, positions and scales are not equally many")
    if lengths[0].min() < 1 or lengths[0].max() > manifest.max_tokens:
        raise ValueError(f"a row has {lengths[0].max()} tokens; from 1 to {manifest.max_tokens} are possible")
    return Rows(
        columns=batch,
        offsets=np.concatenate([[0], np.cumsum(lengths[0], dtype=np.int64)]),
        values=values.to_numpy().reshape(-1, manifest.dimension),
        scales=batch["scales"].flatten().to_numpy() if manifest.dtype == "int8" else None,
        positions=batch["positions"].flatten().to_numpy(),
        pooled=vectors.to_numpy().reshape(-1, manifest.dimension),
    )


def write_part(file: Path, columns: Mapping[str, list], lengths: Int[np.ndarray, " n"], manifest: Manifest) -> None:
    """Write the file of a part.

    Args:
        columns: by name; those of lists and vectors are arrays of all tokens, one after the other.
        lengths: how many tokens each row has.
    """
    schema = schema_of(manifest)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    arrays = []
    for each in schema:
        values = columns[each.name]
        if pa.types.is_list(each.type):
            inner = each.type.value_type
            arrays.append(pa.ListArray.from_arrays(offsets, _array(values, inner), type=each.type))
        else:
            arrays.append(_array(values, each.type))
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_file(out, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))


def _array(values, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), type=kind)
    return pa.array(values, kind)


def verify_part(folder: Path, part: Part) -> None:
    """Raise a UserError if the file of a part has another content than was written."""
    file = folder / PARTS / part.name
    if sha256_of(file) != part.sha256:
        raise UserError(
            f"{file} is damaged: it has another content than was written (SHA-256); embed the records again"
        )
