"""What the trainer adds to its compiled program: time of a step in `filip train` beside calls of that program alone.

    python benchmarks/dispatch.py                 some seconds, on the first device that is here
    python benchmarks/dispatch.py --steps=2000

Both take the same batch again and again, from memory, so that only the trainer's own work differs: agreeing on the
step, handing the batch to the devices, dispatch, logging each step and writing every 50th.
"""

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import report

ROOT = Path(__file__).resolve().parents[1]
WARM = 100


class Repeated:
    """One batch for ever, as `batches` gives them."""

    def __init__(self, batch):
        self.batches = itertools.repeat(batch)

    def __next__(self):
        return next(self.batches)

    def close(self):
        pass


def measure(steps, workdir):
    """(seconds of a step of the trainer, of the program alone): medians over blocks of 50 steps."""
    import jax

    from filip_jax.config import load_config
    from filip_jax.mesh import global_batch
    from filip_jax.train import loop, start

    small = [f"--config.model.{tower}.{key}=1" for tower in ("image", "text") for key in ("depth", "heads")]
    small += [f"--config.model.{tower}.width=8" for tower in ("image", "text")]
    config = load_config(str(ROOT / "configs/demo.py:quick"), [*small, "--config.model.dtype=float32"])
    config |= {"batch_size": jax.device_count(), "total_steps": WARM + steps, "log_every_steps": 50}
    config["checkpoint"] |= {"every_steps": 10**6, "every_minutes": 0.0}
    rng, data = np.random.default_rng(0), config["data"]
    rows = {
        "image": rng.integers(0, 256, (config["batch_size"], data["image_size"], data["image_size"], 3), np.uint8),
        "ids": rng.integers(1, 99, (config["batch_size"], data["text_length"]), np.int32),
        "truncated": np.zeros(config["batch_size"], bool),
        "part": np.zeros(config["batch_size"], np.int32), "index": np.arange(config["batch_size"]), "bad": [],
    }  # fmt: skip
    at, kept = [], {}

    def compile_step(setup, state, watch):
        kept["setup"], kept["step"] = setup, start_compile(setup, state, watch)

        def timed(state, batch):
            at.append(time.perf_counter())
            return kept["step"](state, batch)

        return timed

    start_compile, start.compile_step = start.compile_step, compile_step
    loop.batches = lambda *_, **__: Repeated(rows)
    loop.train(workdir, config)
    at = np.array(at[WARM:])

    setup = kept["setup"]
    state = jax.jit(setup.init, out_shardings=setup.shardings)(jax.random.key(0))
    batch = global_batch(setup.mesh, {name: rows[name] for name in ("image", "ids")})
    alone, before = [], None
    for _ in range(WARM + steps):  # a step is waited for when the next is under way, as the trainer does
        alone.append(time.perf_counter())
        state, metrics = kept["step"](state, batch)
        jax.device_get(before)
        before = metrics
    return tuple(float(np.median(np.diff(times[::50]))) / 50 for times in (at, np.array(alone[WARM:])))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    report.add_output(parser)
    a = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "")
    with tempfile.TemporaryDirectory() as folder:
        trainer, program = measure(a.steps, Path(folder) / "run")
    import jax

    device = jax.devices()[0].device_kind
    with report.recorded(a.output):
        print(f"{jax.device_count()} {device}\n")
        print("| a step of the trainer | of its program alone | the trainer adds |\n| --- | --- | --- |")
        print(f"| {1e3 * trainer:.3f} ms | {1e3 * program:.3f} ms | {1e3 * (trainer - program):.3f} ms |")
