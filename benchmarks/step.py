"""A whole training step of FILIP beside CLIP's: what the token-wise loss costs.

    python benchmarks/step.py --batch=1024                            on the chips that are here
    python benchmarks/step.py --batch=1024 --topology=v5p:2x2x2       compiled for TPUs that are not

The steps are those of configs/filip.py:base, with 25 % of the tokens and with all, and configs/clip.py:base;
--config.KEY=VALUE changes all three. Texts are full length: real captions cost less, both in the text tower
and in the loss. With --topology nothing runs; the compiler's estimate is read as in topology.py.
"""

import argparse
import json
import subprocess
import sys
import time
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import topology
from loss import reason

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
STEPS = {"CLIP": ("clip", 1.0), "FILIP 25 %": ("filip", 0.25), "FILIP exact": ("filip", 1.0)}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024, help="pairs of one chip")
    parser.add_argument("--topology", help="v5e:4x4, v5p:2x2x2 ...")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", choices=STEPS, help=argparse.SUPPRESS)
    return parser.parse_known_args()


def build(config, keep_tokens, mesh, batch):
    """(the train step, jitted; shapes of its state and batch, as they are split over the mesh; its initialisation)"""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from filip_jax.losses import filip_loss
    from filip_jax.models import make_model
    from filip_jax.train.optimizer import make_optimizer
    from filip_jax.train.step import make_init, make_train_step, state_shardings

    options = {key: value for key, value in config["loss"].items() if key != "name"} | {"keep_tokens": keep_tokens}
    model = make_model(**config["model"])
    parameters = jax.eval_shape(model.init, jax.random.key(0))
    optimizer = make_optimizer(parameters, config["total_steps"], **config["optimizer"])
    init = make_init(model, optimizer, config["ema_decay"])
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = state_shardings(mesh, shapes, optimizer)
    split = NamedSharding(mesh, PartitionSpec(("replica", "data")))

    def of(shape, dtype, sharding=split):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    size, length = config["data"]["image_size"], config["data"]["text_length"]
    rows = {"image": of((batch, size, size, 3), jnp.uint8), "ids": of((batch, length), jnp.int32)}
    step = make_train_step(
        model, partial(filip_loss, **options), optimizer, config["ema_decay"], microbatches=config["microbatches"]
    )
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    state = jax.tree.map(lambda x, sharding: of(x.shape, x.dtype, sharding), shapes, shardings)
    return step, state, rows, jax.jit(init, out_shardings=shardings)


def measure(a, overrides):
    devices = topology.devices_of(a.topology) if a.topology else None

    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh

    from filip_jax.config import load_config
    from filip_jax.plan.program import Program

    devices = devices or jax.devices()
    mesh = Mesh(np.array(devices).reshape(1, -1), ("replica", "data"), axis_types=(AxisType.Auto,) * 2)
    name, keep_tokens = STEPS[a.only]
    config = load_config(str(CONFIGS / f"{name}.py:base"), overrides)
    step, state, rows, init = build(config, keep_tokens, mesh, a.batch * len(devices))
    with jax.set_mesh(mesh):
        compiled = step.lower(state, rows).compile()
        result = {"memory": compiled.memory_analysis().temp_size_in_bytes, "chips": len(devices)}
        if a.topology:
            chip = topology.CHIPS[a.topology.split(":")[0]]
            program = Program(compiled.as_text(), config["model"]["embed_dim"] * chip.clock / chip.operations)
            result |= {"chip": a.topology, "seconds": program.cycles() / chip.clock}
        else:
            result |= {"chip": devices[0].device_kind, "seconds": seconds(compiled, init, rows, config, a.repeat)}
    print(json.dumps(result))


def seconds(compiled, init, rows, config, repeat):
    """The median of some steps after two, on noise and texts of full length."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    high = {"image": 256, "ids": config["model"]["text"]["vocab_size"]}
    batch = {
        key: jax.device_put(rng.integers(1, high[key], x.shape, dtype=x.dtype), x.sharding) for key, x in rows.items()
    }
    state, spent = init(jax.random.key(0)), []
    for _ in range(2 + repeat):
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, batch))
        spent.append(time.perf_counter() - started)
    assert np.isfinite(metrics["train/loss"])
    return sorted(spent[2:])[repeat // 2]


def compare(a):
    results = {}
    for name in STEPS:
        done = subprocess.run([sys.executable, *sys.argv, f"--only={name}"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}: {reason(done.stderr)}")
        results[name] = json.loads(done.stdout.strip().splitlines()[-1])
    clip = results["CLIP"]
    chips, how = clip["chips"], "estimated by the compiler" if a.topology else "measured"
    print(f"{date.today()}, {chips} chips ({clip['chip']}), jax {version('jax')}, python {' '.join(sys.argv)}")
    print(f"global batch {a.batch * chips}, times are {how}\n")
    print("| step        | ms       | beside CLIP | temporary GiB a chip |")
    print("| ----------- | -------- | ----------- | -------------------- |")
    for name, r in results.items():
        ratio = 100 * (r["seconds"] / clip["seconds"] - 1)
        print(f"| {name:11} | {1e3 * r['seconds']:8.1f} | {ratio:+9.1f} % | {r['memory'] / 2**30:20.2f} |")


if __name__ == "__main__":
    arguments, rest = parse()
    if arguments.only:
        measure(arguments, rest)
    else:
        compare(arguments)
