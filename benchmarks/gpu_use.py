"""Encoding images and texts, and scoring stored tokens, on a GPU, for gpu.py."""

from gpu_rows import HBM, chip_share, median, row
from gpu_steps import SIZES, config_of


def encoding(name, tiny):
    import jax

    from filip_jax.models import make_model
    from filip_jax.objectives.total import make_objectives

    for size in ("B/32",) if tiny else SIZES:
        config = config_of("filip", size, tiny)
        model = make_model(make_objectives(config["objectives"]).outputs, **config["model"])
        parameters, count = jax.jit(model.init)(jax.random.key(0)), config["batch_size"]
        side, length = model.image.size, model.text.length
        inputs = {"images": jax.numpy.zeros((count, side, side, 3), "uint8"),
                  "texts": jax.numpy.ones((count, length), "int32")}  # fmt: skip
        for what, encode in (("images", model.encode_image), ("texts", model.encode_text)):
            program = jax.jit(encode).lower(parameters, inputs[what]).compile()
            seconds = median(
                lambda program=program, what=what: jax.block_until_ready(program(parameters, inputs[what]))
            )
            row(name, f"{size}, {what}", "filip", ms=1e3 * seconds, rate=count / seconds, unit=f"{what}/s")


def scoring(name, tiny):
    """Scores of stored tokens that lie in the device's memory, as a share of its bandwidth."""
    import jax
    import jax.numpy as jnp

    from filip_jax.search import scan

    rows, tokens, dim, blocks = (64, 9, 32, 2) if tiny else (4096, 49, 256, 24)
    for dtype in ("float32", "float16", "int8"):
        key, shape = jax.random.key(0), (rows, tokens, dim)
        data = [(127 * jax.random.normal(jax.random.fold_in(key, n), shape, jnp.float16) / 4).astype(dtype)
                for n in range(blocks)]  # fmt: skip
        scales = jnp.ones(shape[:2], jnp.float32) if dtype == "int8" else None
        size = sum(each.nbytes for each in data)
        for count in (1, scan.MAX_QUERIES):
            query = jax.random.normal(key, (count, 16, dim)), jnp.ones((count, 16), bool)
            tile = scan.tile_rows(shape, query[1].size)
            take = lambda q=query, t=tile: jax.block_until_ready(
                [scan._block(*q, each, scales, None, both=False, tile=t) for each in data]
            )
            seconds = median(take)
            what = f"{rows * blocks:,} items of {tokens} x {dim} {dtype}, {count} queries"
            row(
                name,
                what,
                "scan",
                ms=1e3 * seconds,
                rate=size / seconds / 1e9,
                unit="GB/s",
                **chip_share(HBM, size / seconds),
            )
