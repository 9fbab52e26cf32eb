"""The loss on a GPU, for gpu.py: kernels, XLA and PyTorch, and the largest batch."""

from itertools import product

from gpu_rows import PEAK, chip_share, compiled_of, median, row


def loss(name, tiny):
    import jax
    import jax.numpy as jnp

    from filip_jax.losses import filip_loss

    text_length, dim = (16, 32) if tiny else (77, 256)
    sizes = [(9, 16)] if tiny else list(product((49, 196), (1024, 4096)))
    forms = ("xla", "pallas") if jax.default_backend() == "gpu" else ("xla",)

    def lower(patches, batch, form):
        shapes = [jax.ShapeDtypeStruct((batch, n, dim), jnp.bfloat16) for n in (patches, text_length)]

        def value(images, texts):
            mask = jnp.ones(texts.shape[:2], bool)
            return filip_loss(images, texts, mask, 14.0, implementation=form)

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1))).lower(*shapes).compile()

    made = compiled_of({
        (name, f"{patches} x {text_length} x {dim}, {batch} pairs", form): lambda s=(patches, batch, form): (s, lower(*s))
        for (patches, batch), form in product(sizes, reversed(forms))
    })  # fmt: skip
    for (part, what, form), ((patches, batch, _), step) in made.items():
        keys = jax.random.split(jax.random.key(0))
        arrays = [unit(jax.random.normal(key, (batch, n, dim))) for key, n in zip(keys, (patches, text_length))]
        seconds = median(lambda: jax.block_until_ready(step(*arrays)))
        operations, memory = 6 * batch**2 * patches * text_length * dim, step.memory_analysis()
        extra = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**30
        row(part, what, form, ms=1e3 * seconds, rate=operations / seconds / 1e12, unit="TFLOP/s", GiB=extra,
            **chip_share(PEAK, operations / seconds))  # fmt: skip


def unit(x):
    import jax.numpy as jnp

    return (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).astype(jnp.bfloat16)


def loss_torch(name, tiny):
    """The peers; the one product of all pairs does not fit for 4,096."""
    import numpy as np
    from torch_losses import make_step

    text_length, dim = (16, 32) if tiny else (77, 256)
    sizes = [(9, 16, "torch_one")] if tiny else [
        (49, 1024, "torch_compiled"), (49, 1024, "torch_one"), (49, 4096, "torch_chunked"), (196, 1024, "torch_chunked"),
    ]  # fmt: skip
    for patches, batch, form in sizes:
        rng, what = np.random.default_rng(0), f"{patches} x {text_length} x {dim}, {batch} pairs"
        arrays = [rng.standard_normal((batch, n, dim), np.float32) / dim**0.5 for n in (patches, text_length)]
        try:
            step, memory, *_ = make_step(form, *arrays, np.ones((batch, text_length), bool), "bfloat16")
            seconds = median(step, 3)
        except RuntimeError as error:
            row("loss", f"{what}: {str(error).splitlines()[0][:120]}", form)
            continue
        operations = 6 * batch**2 * patches * text_length * dim
        numbers = {} if memory is None else {"GiB": memory / 2**30}
        row("loss", what, form, ms=1e3 * seconds, rate=operations / seconds / 1e12, unit="TFLOP/s", **numbers)


def largest(name, tiny):
    """The most pairs whose loss the compiler fits into the device's memory; nothing of it runs."""
    import jax
    import jax.numpy as jnp

    from filip_jax.losses import filip_loss

    stats = jax.devices()[0].memory_stats() or {}
    memory = stats.get("bytes_limit", 2**34)
    for form in ("pallas", "xla") if jax.default_backend() == "gpu" else ("xla",):
        best, batch = 0, 64 if tiny else 8192
        while batch <= (256 if tiny else 2**17):
            shapes = [jax.ShapeDtypeStruct((batch, n, 256), jnp.bfloat16) for n in (49, 77)]

            def value(images, texts, form=form):
                mask = jnp.ones(texts.shape[:2], bool)
                return filip_loss(images, texts, mask, 14.0, implementation=form)

            found = jax.jit(jax.value_and_grad(value, argnums=(0, 1))).lower(*shapes).compile().memory_analysis()
            if found.temp_size_in_bytes + found.output_size_in_bytes + found.argument_size_in_bytes > 0.95 * memory:
                break
            best, batch = batch, 2 * batch
        row(name, "49 x 77 x 256, the most pairs by the compiler's count", form, rate=float(best), unit="pairs")
