"""The loss compiled for chips that are not here: peak memory and, of TPUs, the compiler's cycles beside the ideal."""

import sys

from filip_jax.errors import UserError
from filip_jax.plan.chips import CHIPS, GPUS, open_topology


def devices_of(topology):
    """The devices of a topology, see filip_jax.plan.chips; to be called before JAX is imported."""
    try:
        return open_topology(topology)[1]
    except UserError as error:
        sys.exit(str(error))


def estimate(a):
    """Prints what one chip needs for the loss of `a.batch` of its images and the texts of all chips."""
    devices = devices_of(a.topology)

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from filip_jax.losses import filip_loss
    from filip_jax.plan.program import Program

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
    chip = CHIPS[kind]
    program = Program(program, a.dim * chip.clock / chip.operations)
    print("| real text tokens | ideal ms | estimated ms | ideal of estimated |")
    print("| ---------------- | -------- | ------------ | ------------------ |")
    for branch, length in enumerate(lengths(a.text_length)):
        if a.keep_tokens != 1 and length != a.text_length:
            continue  # what is kept of a short text is no matter of its branch
        ideal = 3 * 2 * a.batch * batch * a.patches * length * a.dim / chip.operations
        estimated = program.cycles(branch) / chip.clock
        print(f"| {length:16} | {1e3 * ideal:8.2f} | {1e3 * estimated:12.2f} | {100 * ideal / estimated:16.0f} % |")


def lengths(longest):
    from filip_jax.losses.blocked import LENGTHS

    return [n for n in LENGTHS if n < longest] + [longest]
