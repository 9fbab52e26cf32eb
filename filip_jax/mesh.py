"""The device mesh: `replica` x `data`, the batch over both, parameters sharded over `data`."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from filip_jax import paths
from filip_jax.errors import UserError

BATCH_AXES = ("replica", "data")
MIN_SHARDED_SIZE = 2**14  # elements; below it a parameter costs more to gather than to keep whole


def make_mesh(replica: int = 1, data: int = -1, devices: Sequence[Any] | None = None) -> Mesh:
    """Devices, by default all, as replica x data; one of the two may be -1, which takes what is left.

    Raises:
        UserError: the sizes do not multiply to the number of devices, or do not go with where these stand.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    sizes = {"replica": replica, "data": data}
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for axis, size in sizes.items() if axis not in free):
        raise UserError(f"mesh: replica={replica}, data={data}: sizes must be positive, at most one may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = count // fixed
    if math.prod(sizes.values()) != count:
        raise UserError(f"mesh: replica={replica} x data={data} does not fit {count} devices")
    return Mesh(arrange(devices, **sizes), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def arrange(devices: Sequence[Any], replica: int, data: int) -> np.ndarray:
    """The devices as an array replica x data, neighbours of the axis `data` close to each other.

    Close together is a TPU slice, or the GPUs of a host: between them the network is slow, and parameters that are
    split over `data` are gathered in every layer. So what there is of such domains goes to `replica`, whose
    devices only sum gradients.

    Raises:
        UserError: the domains are of different sizes.
    """
    sizes = Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(sizes) == 1:
        return mesh_utils.create_device_mesh((replica, data), devices, allow_split_physical_axes=True)
    domains = len(sizes)
    if len(set(sizes.values())) > 1:
        raise UserError(f"mesh: the slices or hosts have different numbers of devices: {sorted(sizes.values())}")
    replicas = math.gcd(replica, domains)
    if replicas < domains:
        warnings.warn(
            f"mesh: data={data} reaches over {domains // replicas} slices or hosts, whose network is slow: "
            f"mesh.replica={domains} keeps the parameters' gathers inside of each",
            stacklevel=2,
        )
    inner = (replica // replicas, data * replicas // domains)
    return mesh_utils.create_hybrid_device_mesh(
        inner, (replicas, domains // replicas), devices, allow_split_physical_axes=True
    )


def check_batch_size(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Raises a UserError unless the global batch splits evenly over the devices and each share into microbatches."""
    if microbatches < 1:
        raise UserError(f"microbatches={microbatches} must be at least 1")
    shares = mesh.size * microbatches
    if batch_size < 1 or batch_size % shares:
        below = batch_size // shares * shares
        legal = " or ".join(str(n) for n in (below, below + shares) if n > 0)
        pieces = f" times microbatches={microbatches}" if microbatches > 1 else ""
        raise UserError(
            f"batch_size={batch_size} is not divisible by the {mesh.size} devices of the mesh "
            f"{dict(mesh.shape)}{pieces}; nearest: {legal}"
        )


def parameter_spec(shape: tuple[int, ...], data_size: int, stacked: bool = False) -> PartitionSpec:
    """The one shape rule: split the largest dimension that `data_size` divides, of big arrays only.

    The first axis of a stacked parameter, its layers, is never split: a scan over it would gather all at once.
    """
    dimensions = range(int(stacked), len(shape))
    divisible = [axis for axis in dimensions if shape[axis] % data_size == 0]
    if data_size == 1 or not divisible or math.prod(shape) < MIN_SHARDED_SIZE:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*["data" if axis == largest else None for axis in range(largest + 1)])


def parameter_shardings(
    mesh: Mesh, parameters: Mapping[str, Any], metadata: Mapping[str, paths.Metadata]
) -> dict[str, Any]:
    """The sharding of every leaf of nested dicts of arrays or shapes."""
    return paths.unflatten(
        {
            path: NamedSharding(mesh, parameter_spec(leaf.shape, mesh.shape["data"], metadata[path].stacked))
            for path, leaf in paths.flatten(parameters).items()
        }
    )


def check_memory(tree: Any, mesh: Mesh, what: str) -> None:
    """Raise a UserError if one copy of the arrays of `tree`, or of shapes, split over all devices of the mesh, fits into no memory.

    That they fit is not said: XLA needs room beside them.
    """
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    device = mesh.local_mesh.devices.flat[0]
    limit = (device.memory_stats() or {}).get("bytes_limit", 0) * mesh.size
    if device.platform == "cpu":
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * jax.process_count()
    if limit and needed > limit:
        raise UserError(
            f"{what} has {needed / 2**30:,.1f} GiB of numbers; all memory there is has {limit / 2**30:,.1f} GiB"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def global_batch(mesh: Mesh, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Return the rows of this process as its part of global arrays split over all devices."""
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in local.items()}


def batch_shapes(
    mesh: Mesh,
    batch_size: int,
    groups: bool,
    *,
    image_size: int,
    text_length: int,
    captions_per_image: int = 1,
    views: int = 1,
    **others: Any,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return what `global_batch` gives of a training batch, with or without `group`, without its content.

    Args:
        image_size, text_length, captions_per_image, views: of a config's section `data`, whose other keys change no shape.
    """
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    image, ids = (image_size, image_size, 3), (text_length,)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((views, *image) if views > 1 else image, np.uint8),
        "ids": ((captions_per_image, *ids) if captions_per_image > 1 else ids, np.int32),
    }
    shapes |= {"caption_weight": ((captions_per_image,), np.float32)} if captions_per_image > 1 else {}
    shapes |= {"group": ((), np.int32)} if groups else {}
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keeps the first axis split over the mesh in context, so that XLA gathers weights, not activations."""
    axes = context_batch_axes()
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x


def constrain_whole(x: jax.Array) -> jax.Array:
    """Return the array, held whole by every device of the mesh in context."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec()) if context_batch_axes() else x


def context_batch_axes() -> tuple[str, ...]:
    """Those of the axes `replica`, `data` that the mesh in context has; none without a mesh.

    Raises:
        ValueError: the context is a shard_map or has Explicit axes, where a call on global arrays
            has no meaning.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Manual in mesh.axis_types:
        raise ValueError("filip_jax works on global arrays: call it outside of shard_map")
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError("filip_jax needs a mesh of Auto axes: jax.make_mesh(..., axis_types=(AxisType.Auto,) * n)")
    return tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)


def batch_devices() -> int:
    """Over how many devices the mesh in context splits a batch."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[axis] for axis in context_batch_axes())
