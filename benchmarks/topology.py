"""The loss compiled for TPUs that are not here: peak memory, and the compiler's cycles beside the ideal."""

import math
import os
import re
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def estimate(a, chips):
    """Prints what one chip needs for the loss of `a.batch` of its images and the texts of all chips."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from filip_jax.losses import filip_loss

    kind = a.topology.split(":")[0]
    if kind not in chips:
        sys.exit(f"--topology={a.topology}: the chip is not one of {', '.join(chips)}")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=a.topology).devices
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
            keep_tokens=a.keep_tokens,
            implementation=a.forms.split(",")[0],
        )

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), out_shardings=(None, (split, split)))
        compiled = gradient.lower(*arrays).compile()
    memory = compiled.memory_analysis()
    operations, clock = chips[kind]
    print(
        f"{a.topology}: {len(devices)} chips, global batch {batch}, {a.patches} x {a.text_length} x {a.dim} {a.dtype}"
    )
    print(f"keep_tokens {a.keep_tokens}; the ideal is of all tokens, forward and backward, at the matrix units' peak")
    print(f"temporary memory {memory.temp_size_in_bytes / 2**30:.2f} GiB a chip")
    print("| real text tokens | ideal ms | estimated ms | ideal of estimated |")
    print("| ---------------- | -------- | ------------ | ------------------ |")
    program = compiled.as_text()

    def kernel(line):
        """Of one call, at the matrix units' peak; the compiler does not say, see the docstring of loss.py."""
        (patches, _, images), (rows, _) = (
            [int(n) for n in shape.split(",")] for shape in re.findall(r"u8\[([\d,]+)\]", line)[:2]
        )
        return 2 * patches * rows * images * a.dim / operations * clock

    for branch, length in enumerate(lengths(a.text_length)):
        if a.keep_tokens != 1 and length != a.text_length:
            continue  # what is kept of a short text is no matter of its branch
        ideal = 3 * 2 * a.batch * batch * a.patches * length * a.dim / operations
        estimated = cycles(program, branch, kernel) / clock
        print(f"| {length:16} | {1e3 * ideal:8.2f} | {1e3 * estimated:12.2f} | {100 * ideal / estimated:16.0f} % |")


def lengths(longest):
    from filip_jax.losses.blocked import LENGTHS

    return [n for n in LENGTHS if n < longest] + [longest]


def cycles(program, branch, kernel):
    """The compiler's estimate of a run, loops counted as often as they run, of conditionals the branch of this number."""
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
