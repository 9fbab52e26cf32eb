"""The chips that a plan can be for, and their topologies as JAX's compilers know them.

Compiling for chips that are not here needs the compiler's own library (the extra `plan`), not a device.
"""

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

from filip_jax.errors import UserError
from filip_jax.extras import pip_install

GIB = 2**30
MIN_JAX_FOR_GPUS = (0, 11)
GPU_SHARE = 0.92  # of a GPU's memory
EXAMPLE = "write it as v5e:4x4, v5p:2x2x2 or h200:8"


@dataclass(frozen=True)
class Chip:
    """What its maker says of one chip.

    Attributes:
        operations: bfloat16 matrix operations a second at the peak.
        memory: bytes; of a TPU those that libtpu 0.0.52 leaves to programs.
        memory_rate: bytes a second from it.
        link_rate: bytes a second to other chips of its slice or host, all links together, one way.
        clock: cycles a second, of those that the compiler counts; 0 where it counts none.
    """

    operations: float
    memory: float
    memory_rate: float
    link_rate: float
    clock: float = 0.0

    @property
    def usable(self) -> float:
        """Bytes that a program may take: of a GPU what XLA_PYTHON_CLIENT_MEM_FRACTION says, 0.92 in launch/."""
        return self.memory * (1.0 if self.clock else GPU_SHARE)


# https://docs.cloud.google.com/tpu/docs/v5e, v5p, v6e and NVIDIA's data sheets of H100 and H200 SXM; 2026-11.
CHIPS = {
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 200e9, 1.5e9),
    "v5p": Chip(459e12, 95.73 * GIB, 2765e9, 600e9, 1.75e9),
    "v6e": Chip(918e12, 31.24 * GIB, 1638e9, 400e9, 1.75e9),
    "h100": Chip(989e12, 85e9, 3350e9, 450e9),
    "h200": Chip(989e12, 150e9, 4800e9, 450e9),
}
GPUS = {"h100": (85_000_000_000, 3_350_000_000_000), "h200": (150_000_000_000, 4_800_000_000_000)}
HOPPER = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: 132 fpus_per_core: 128 l2_cache_size: 52428800
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
"""


def forget_devices() -> None:
    """JAX, when it is imported after this, looks for no chips."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault(
        "TPU_WORKER_HOSTNAMES", "localhost"
    )  # these two are not used, but their absence complained of
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def open_topology(name: str, slices: int = 1) -> tuple[str, list[Any]]:
    """(the chip's name, the devices) of a TPU topology as JAX names it, or of so many GPUs of a host, as h200:8.

    Args:
        slices: so many of the TPU topology, or hosts of GPUs, joined by a slower network.

    Raises:
        UserError: no such topology, or its compiler is not installed or too old.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise UserError(f"--topology={name}: the chip is not one of {', '.join(CHIPS)}; {EXAMPLE}")
    tpu = kind not in GPUS
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+" if tpu else r"[1-8]?", shape):
        raise UserError(f"--topology={name}: {EXAMPLE}")
    if slices < 1:
        raise UserError(f"--slices={slices} must be at least 1")
    forget_devices()
    import jax
    from jax.experimental import topologies

    if not tpu and jax.__version_info__ < MIN_JAX_FOR_GPUS:
        raise UserError(
            f"--topology={name}: JAX {jax.__version__} cannot compile for GPUs that are not there; take "
            f"{'.'.join(map(str, MIN_JAX_FOR_GPUS))} or newer, which needs Python 3.12"
        )
    try:
        if tpu:
            found = topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices)
        else:
            found = topologies.get_topology_desc(
                platform="cuda", topology_name=kind, **_gpus(kind, slices, int(shape or 1))
            )
    except Exception as error:  # of many types
        said = " ".join(str(error).split())[:300]
        package = "libtpu" if tpu else "jax_cuda13_plugin"
        there = importlib.util.find_spec(package) is not None
        hint = "topologies are those that can be booked" if there else f"its compiler comes by {pip_install('plan')}"
        raise UserError(f"--topology={name}: {said}; {hint}") from error
    return kind, list(found.devices)


def _gpus(kind: str, hosts: int, count: int) -> dict[str, str]:
    memory, rate = GPUS[kind]
    numbers = f"clock_rate_ghz: 1.98 device_memory_size: {memory} memory_bandwidth: {rate}"
    libraries = "dnn_version_info { major: 9 minor: 10 }"
    config = f'{HOPPER} {numbers} }} platform_name: "CUDA" {libraries} device_description_str: "NVIDIA {kind.upper()}"'
    return {"target_config": config, "topology": f"{hosts}x1x{count}"}
