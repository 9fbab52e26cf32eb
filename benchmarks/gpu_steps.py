"""Whole training steps on a GPU, for gpu.py: attention and recomputation, a PyTorch CLIP beside them, and a run that goes on."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

from gpu_rows import PEAK, chip_share, compiled_of, median, row

CONFIGS = Path(__file__).with_name("gpu_configs.json")
# Variant and patch size: pairs of one step on a GPU with 141 GB, as few as keep it busy.
SIZES = {"B/32": ("base", 32, 1024), "B/16": ("base", 16, 512), "L/14": ("large", 14, 256)}


def config_of(form, size, tiny, **model):
    """Return a shipped config's sections of a size, with what `model` says.

    They are kept as JSON, since shipped configs are made with ml_collections, which may be missing; a test holds both alike.
    """
    variant, patch_size, batch = SIZES[size]
    config = json.loads(CONFIGS.read_text())[f"{form}:{variant}"]
    config["model"] |= model
    config["model"]["image"]["patch_size"] = patch_size
    if form == "filip":
        config["objectives"]["filip"] |= {"keep_tokens": 1.0}
    config["batch_size"] = batch
    if tiny:
        config["batch_size"] = 16
        for tower in ("image", "text"):
            config["model"][tower] |= {"width": 64, "depth": 2, "heads": 2}
        config["model"]["image"]["image_size"] = 2 * patch_size
        config["model"]["text"] |= {"vocab_size": 512, "length": 16}  # few lengths of groups, each of which is compiled
    return config


def build(config):
    """Return (init, lowered step, batch) of a config on the devices that are here, without its data."""
    import jax
    import numpy as np

    from filip_jax.mesh import global_batch, make_mesh, replicated
    from filip_jax.models import make_model
    from filip_jax.objectives.total import make_objectives
    from filip_jax.train.optimizer import make_optimizer
    from filip_jax.train.step import make_init, make_train_step, state_shardings

    mesh, objectives = make_mesh(), make_objectives(config["objectives"])
    model = make_model(objectives.outputs, **config["model"])
    optimizer = make_optimizer(model.metadata | objectives.metadata, config["total_steps"], **config["optimizer"])
    init = make_init(model, objectives, optimizer, 0.0)
    shardings = state_shardings(mesh, jax.eval_shape(init, jax.random.key(0)), optimizer)
    b, size, length = config["batch_size"], model.image.size, model.text.length
    rng = np.random.default_rng(0)
    rows = {"image": rng.integers(0, 256, (b, size, size, 3), np.uint8),
            "ids": rng.integers(1, model.text.vocab_size, (b, length), np.int32)}  # fmt: skip
    step = make_train_step(model, objectives, optimizer, 0.0, config["total_steps"])

    def compile_step():
        with jax.set_mesh(mesh):
            given = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                                 jax.eval_shape(init, jax.random.key(0)), shardings)  # fmt: skip
            shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in rows.items()}
            jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
            return jitted.lower(given, shapes).compile()

    def start():
        with jax.set_mesh(mesh):
            return jax.jit(init, out_shardings=shardings)(jax.random.key(0)), global_batch(mesh, rows)

    return compile_step, start


def operations_of(config):
    """Return the matrix operations of a step's towers, forward and backward, once each; the loss is small beside them."""
    model, total = config["model"], 0
    image, text = model["image"], model["text"]
    lengths = {"image": (image["image_size"] // image["patch_size"]) ** 2 + 1, "text": text["length"]}
    for side, tower in (("image", image), ("text", text)):
        n, width = lengths[side], tower["width"]
        total += tower["depth"] * (24 * n * width**2 + 4 * n**2 * width) + 2 * n * width * model["embed_dim"]
    total += 2 * lengths["image"] * 3 * image["patch_size"] ** 2 * image["width"]
    return 3 * total * config["batch_size"]


def steps(name, tiny):
    import jax

    size = name.partition(":")[2]
    gpu = jax.default_backend() == "gpu"
    attentions = ("cudnn", "xla") if gpu else ("xla",)
    chosen = list(product(("filip", "clip"), attentions, (False, True)))
    if size != "B/32":  # each of them takes its compiler's time
        chosen = [each for each in chosen if each[2] is False or each[:2] == ("filip", attentions[0])]
    configs = {
        (name, form, f"{attention}{', remat' if remat else ''}"): config_of(
            form, size, tiny, attention=attention, remat=remat
        )
        for form, attention, remat in chosen
    }
    built = {key: build(config) for key, config in configs.items()}
    made = compiled_of({key: compile_step for key, (compile_step, _) in built.items()})
    for key, step in made.items():
        config, memory = configs[key], step.memory_analysis()
        try:
            state, batch = built[key][1]()
            held = [state]

            def once(step=step, batch=batch, held=held):
                held[0], metrics = step(held[0], batch)
                jax.block_until_ready(metrics)

            seconds = median(once)
        except jax.errors.JaxRuntimeError as error:
            row(*key[:2], f"{key[2]}: {str(error).splitlines()[0][:120]}")
            continue
        finally:
            held = state = None
        operations = operations_of(config)
        row(key[0], key[1], key[2], ms=1e3 * seconds, rate=config["batch_size"] / seconds, unit="pairs/s",
            GiB=(memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30,
            **chip_share(PEAK, operations / seconds))  # fmt: skip


def steps_torch(name, tiny):
    import torch_step

    for size in ("B/32", "B/16") if not tiny else ("B/32",):
        config = config_of("clip", size, tiny)
        found = torch_step.measure("pytorch_clip", config, config["batch_size"], 3)
        row(f"step:{size}", "clip", found["library"], ms=1e3 * found["seconds"],
            rate=config["batch_size"] / found["seconds"], unit="pairs/s", GiB=found["memory"] / 2**30)  # fmt: skip


def resume(name, tiny):
    """Print a row that says if a run comes to the same bits when another process goes on from its checkpoint."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    for form, environment in (("deterministic operations", {"XLA_FLAGS": flags}), ("default", {})):
        with tempfile.TemporaryDirectory() as folder:
            sums = [
                subprocess.run(
                    [sys.executable, *sys.argv[:1], f"--only=resume>{folder}", *(["--tiny"] if tiny else [])],
                    env=os.environ | environment, capture_output=True, text=True, check=True,
                ).stdout.split()[-1]
                for _ in range(2)
            ]  # fmt: skip
        row(
            name,
            "the state after two more steps is the same, bit by bit",
            form,
            unit="yes" if sums[0] == sums[1] else "no",
        )


def resumed(folder, tiny):
    """Print a hash of the state after four steps: from the beginning, or from the checkpoint that lies there already."""
    import jax

    from filip_jax.checkpoint import Checkpoints, CheckpointWriter, abstract

    config = config_of("filip", "B/32", tiny) | ({} if tiny else {"batch_size": 256})
    compile_step, start = build(config)
    step, (state, batch) = compile_step(), start()
    known = Checkpoints(folder)
    if known.steps():
        state = known.restore(2, abstract(state, jax.tree.map(lambda x: x.sharding, state)))
        done = 2
    else:
        writer, done = CheckpointWriter(folder, every_steps=2, every_minutes=0.0, keep_last=1, keep_every_steps=0), 0
    for _ in range(done, 4):
        state, _ = step(state, batch)
        done += 1
        if done == 2:
            writer.save(2, state, {}, {})
            writer.wait()
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(jax.device_get(leaf).tobytes())
    print(digest.hexdigest())
