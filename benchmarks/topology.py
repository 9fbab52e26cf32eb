"""The loss compiled for chips that are not here: peak memory and, of TPUs, the compiler's cycles beside the ideal."""

import math
import os
import re
import sys

# Of a TPU chip: bfloat16 matrix operations a second at the peak, and cycles a second.
CHIPS = {"v4": (275e12, 1.05e9), "v5e": (197e12, 1.5e9), "v5p": (459e12, 1.75e9), "v6e": (918e12, 1.75e9)}
GPUS = {  # what XLA wants to know of one: clock, memory and its bandwidth; the rest is Hopper's
    "h100": dict(clock_rate_ghz=1.98, device_memory_size=85_000_000_000, memory_bandwidth=3_350_000_000_000),
    "h200": dict(clock_rate_ghz=1.98, device_memory_size=150_000_000_000, memory_bandwidth=4_800_000_000_000),
}
HOPPER = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: 132 fpus_per_core: 128 l2_cache_size: 52428800
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
"""


def topology_devices(topology):
    """The devices of a TPU topology as JAX names it, or of so many GPUs of one host, as h200:8.

    To be called before JAX is imported: it must not look for chips.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    from jax.experimental import topologies

    kind, _, count = topology.partition(":")
    if kind not in CHIPS and kind not in GPUS:
        sys.exit(f"--topology={topology}: the chip is not one of {', '.join([*CHIPS, *GPUS])}")
    if kind in CHIPS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", count):
        try:
            return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
        except Exception as error:  # of many types
            sys.exit(f"--topology={topology}: {' '.join(str(error).split())[:300]}")
    if kind in CHIPS or not re.fullmatch(r"([1-9]\d*)?", count):
        sys.exit(f"--topology={topology}: write it as v5e:4x4, v5p:2x2x2 or h200:8")
    numbers = " ".join(f"{key}: {value}" for key, value in GPUS[kind].items())
    libraries = "dnn_version_info { major: 9 minor: 10 }"
    config = f'{HOPPER} {numbers} }} platform_name: "CUDA" {libraries} device_description_str: "NVIDIA {kind.upper()}"'
    shape = dict(target_config=config, topology=f"1x1x{count or 1}")
    return topologies.get_topology_desc(platform="cuda", topology_name=kind, **shape).devices


def estimate(a):
    """Prints what one chip needs for the loss of `a.batch` of its images and the texts of all chips."""
    devices = topology_devices(a.topology)

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from filip_jax.losses import filip_loss

    kind = a.topology.split(":")[0]
    mesh = Mesh(np.array(devices).reshape(1, -1), ("replica", "data"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec(("replica", "data")))
    batch = a.batch * len(devices)

    def of(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    arrays = (
        of((batch, a.patches, a.dim), a.dtype),
        of((batch, a.text_length, a.dim), a.dtype),
        of((batch, a.text_length), jnp.bool),
    )

    def loss(images, texts, mask):
        return filip_loss(
            images,
            texts,
            mask,
            14.0,
            exchange=a.exchange,
            indices=a.indices,
            keep_tokens=a.keep_tokens,
            implementation=a.forms[0],
        )

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), out_shardings=(None, (split, split)))
        compiled = gradient.lower(*arrays).compile()
    memory, program = compiled.memory_analysis(), compiled.as_text()
    print(
        f"{a.topology}: {len(devices)} chips, global batch {batch}, {a.patches} x {a.text_length} x {a.dim} {a.dtype}"
    )
    print(
        f"{a.forms[0]}, keep_tokens {a.keep_tokens}; the ideal is of all tokens, forward and backward, at the matrix units' peak"
    )
    print(f"temporary memory {memory.temp_size_in_bytes / 2**30:.2f} GiB a chip")
    if kind in GPUS:
        calls = program.count('custom_call_target="mosaic_gpu')
        print(f"calls of our kernels in the program: {calls}; cycles of GPUs are not estimated")
        return
    operations, clock = CHIPS[kind]
    print("| real text tokens | ideal ms | estimated ms | ideal of estimated |")
    print("| ---------------- | -------- | ------------ | ------------------ |")
    for branch, length in enumerate(lengths(a.text_length)):
        if a.keep_tokens != 1 and length != a.text_length:
            continue  # what is kept of a short text is no matter of its branch
        ideal = 3 * 2 * a.batch * batch * a.patches * length * a.dim / operations
        estimated = cycles(program, branch, a.dim * clock / operations) / clock
        print(f"| {length:16} | {1e3 * ideal:8.2f} | {1e3 * estimated:12.2f} | {100 * ideal / estimated:16.0f} % |")


def lengths(longest):
    from filip_jax.losses.blocked import LENGTHS

    return [n for n in LENGTHS if n < longest] + [longest]


def cycles(program, branch, of_product):
    """The compiler's estimate of a run, loops counted as often as they run, of conditionals the branch of this number.

    It does not estimate our kernels: `of_product` cycles count for each of its pairs of tokens, twice.
    """

    def kernel(line):
        indices, maxima = (re.findall(dtype + r"\[([\d,]+)\]", line)[:2] for dtype in ("u8", "f32"))
        (patches, *_, images), (rows, _) = ([int(n) for n in shape.split(",")] for shape in indices or maxima)
        return 2 * patches * rows * images * of_product

    bodies, entry, current = {}, None, None
    for line in program.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$", line)
        if head:
            current = head[2]
            bodies[current] = []
            entry = current if head[1] else entry
        elif current and not line.startswith("}"):
            bodies[current].append(line)

    def total(name):
        count = 0
        for line in bodies.get(name, []):
            loop = re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line)
            choice = re.search(r" conditional\(.*branch_computations=\{([^}]*)\}", line)
            own = re.search(r'"?estimated_cycles"?:"?(\d+)', line)
            if loop:  # all of them count from 0 to the constant of their condition
                ends = re.findall(r"= s32\[\]\S* constant\((\d+)\)", "\n".join(bodies[loop[1]]))
                count += total(loop[2]) * max(map(int, ends), default=1)
            elif choice:
                names = [name.strip(" %") for name in choice[1].split(",")]
                count += total(names[min(branch, len(names) - 1)])
            elif own:
                count += int(own[1])
            elif "tpu_custom_call" in line:
                count += kernel(line)
        return count

    return total(entry) or math.nan
