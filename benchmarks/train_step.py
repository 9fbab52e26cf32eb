"""Whole training steps of FILIP and CLIP beside open_clip's and a plain PyTorch CLIP's: samples/s and MFU.

    python benchmarks/train_step.py                                     ViT-B/32 and ViT-B/16 on the chips that are here
    python benchmarks/train_step.py --batch=512 --config.model.remat=False --config.model.attention=cudnn
    python benchmarks/train_step.py --trace=filip_exact                 where a step's time goes, operation by operation
    python benchmarks/train_step.py --topology=v5p:2x2x2 --patch_sizes=32   compiled for TPUs that are not here

Ours are configs/clip.py:base and configs/filip.py:base with 25 % of the tokens and with all;
--config.KEY=VALUE changes all three, and the peers' sizes. Peers run where PyTorch (and open_clip) is installed, on
one GPU or CPU: bfloat16, torch.compile on GPUs, fused AdamW. All take noise as images and texts of full length, and
are timed after two steps; their matrix operations are those of the model at full length, whatever is computed twice.
MFU stands beside the chip's largest measured matrix product and beside its maker's peak. GiB are the step's temporaries; on a
CPU the most that the whole process held, compilation included. CPU seconds are of all threads; with --rounds the forms take turns.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import report
import topology
from loss import reason

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FORMS = {  # config and keep_tokens; of peers none
    "clip": ("clip", 1.0), "filip_quarter": ("filip", 0.25), "filip_exact": ("filip", 1.0),
    "open_clip": (), "pytorch_clip": (),
}  # fmt: skip
KINDS = (  # what devices call themselves, the longer name first
    ("v5 lite", "v5e"), ("v5e", "v5e"), ("v5p", "v5p"), ("v6 lite", "v6e"), ("v6e", "v6e"), ("tpu v5", "v5p"),
    ("h100", "h100"), ("h200", "h200"),
)  # fmt: skip
SAID = ("form", "patch", "ms", "CPU ms", "samples/s", "beside clip", "MFU, measured peak", "MFU, maker's peak", "GiB")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024, help="pairs of one chip")
    parser.add_argument("--patch_sizes", default="32,16", help="pixels, several with commas (default: 32,16)")
    parser.add_argument("--forms", default=",".join(FORMS), help="some of them (default: all)")
    parser.add_argument("--topology", help="v5e:4x4, v5p:2x2x2 ...")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1, help="how often all forms take their turns; the least counts")
    parser.add_argument("--trace", metavar="FORM", help="the operations that take longest in a step of this form")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    report.add_output(parser)
    a, overrides = parser.parse_known_args()
    a.forms, a.patch_sizes = a.forms.split(","), a.patch_sizes.split(",")
    if a.topology and a.topology.split(":")[0] in topology.GPUS:
        parser.error(f"--topology={a.topology}: no compiler counts the cycles of GPUs")
    if unknown := set(a.forms) - set(FORMS) or ({a.trace} - set(FORMS) if a.trace else ()):
        parser.error(f"{', '.join(unknown)}: forms are {', '.join(FORMS)}")
    if wrong := [each for each in overrides if not each.startswith("--config.")]:
        parser.error(f"unknown: {' '.join(wrong)}")
    return a, [f"--config.batch_size={a.batch}", *overrides]


def load(form, patch_size, overrides):
    """The config of one of our forms."""
    from filip_jax.config import load_config

    name, keep_tokens = FORMS[form]
    sizes = [f"--config.model.image.patch_size={patch_size}"]
    sizes += [f"--config.objectives.filip.keep_tokens={keep_tokens}"] if name == "filip" else []
    return load_config(str(CONFIGS / f"{name}.py:base"), [*sizes, *overrides])


def measure(a, patch_size, overrides):
    """One form in this process: what `compare` prints of it, as one line of JSON."""
    if not FORMS[a.only]:
        import torch_step

        config = load("clip", patch_size, overrides)
        return torch_step.measure(a.only, config, a.batch, a.repeat)
    devices = topology.devices_of(a.topology) if a.topology else None
    import jax

    from filip_jax.checkpoint import abstract
    from filip_jax.plan.program import Program
    from filip_jax.plan.report import step_operations
    from filip_jax.sections import call
    from filip_jax.train.setup import lower_step, make_setup

    devices = devices or jax.devices()
    config = load(a.only, patch_size, overrides) | {"batch_size": a.batch * len(devices)}
    setup = call(make_setup, config, "(top level)", devices=devices)
    compiled = lower_step(setup, abstract(setup.shapes, setup.shardings)).compile()
    result = {"memory": compiled.memory_analysis().temp_size_in_bytes, "chips": len(devices)}
    result |= {"operations": step_operations(config, devices)}
    if a.topology:
        chip = topology.CHIPS[a.topology.split(":")[0]]
        program = Program(compiled.as_text(), config["model"]["embed_dim"] * chip.clock / chip.operations)
        return result | {"chip": a.topology, "peak": None, "seconds": program.cycles() / chip.clock}
    seconds, cpu_seconds = run(compiled, setup, config, a.repeat, a.trace)
    if jax.default_backend() == "cpu":
        result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result |= {"seconds": seconds, "cpu_seconds": cpu_seconds}
    return result | {"chip": devices[0].device_kind, "peak": matrix_peak()}


def run(compiled, setup, config, repeat, trace):
    """The medians, by the wall and of all threads, of some steps after two, on noise and texts of full length."""
    import time

    import jax
    import numpy as np

    from filip_jax.mesh import global_batch
    from filip_jax.train.setup import batch_of

    rng, shapes = np.random.default_rng(0), batch_of(setup)
    rows = {name: np.ones(x.shape, x.dtype) for name, x in shapes.items()}
    rows["image"] = rng.integers(0, 256, shapes["image"].shape, np.uint8)
    rows["ids"] = rng.integers(1, config["model"]["text"]["vocab_size"], shapes["ids"].shape, np.int32)
    batch = global_batch(setup.mesh, rows)
    state = jax.jit(setup.init, out_shardings=setup.shardings)(jax.random.key(0))
    spent, of_threads = [], []
    with tempfile.TemporaryDirectory() as folder:
        for step in range(2 + repeat):
            if trace and step == 2:
                jax.profiler.start_trace(folder)
            started, before = time.perf_counter(), time.process_time()
            state, metrics = jax.block_until_ready(compiled(state, batch))
            spent.append(time.perf_counter() - started)
            of_threads.append(time.process_time() - before)
        if trace:
            import trace_table

            jax.profiler.stop_trace()
            print(trace_table.table(Path(folder), repeat), flush=True)
    assert np.isfinite(metrics["train/loss"])
    return tuple(sorted(values[2:])[repeat // 2] for values in (spent, of_threads))


def matrix_peak():
    """Matrix operations a second of the first device, of a large product in bfloat16; of a CPU in float32."""
    import time

    import jax
    import jax.numpy as jnp

    cpu = jax.default_backend() == "cpu"
    size, best = (2048 if cpu else 8192), 1e9
    square = jax.random.normal(jax.random.key(0), (size, size), jnp.float32 if cpu else jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    for _ in range(10):
        started = time.perf_counter()
        jax.block_until_ready(product(square, square))
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def compare(a, overrides):
    chips = {}
    print(f"| {' | '.join(SAID)} |\n|{' --- |' * len(SAID)}", flush=True)
    for patch_size in a.patch_sizes:
        results, failures = {}, {}
        for form in a.forms * a.rounds:
            words = [f"--only={form}", f"--patch_sizes={patch_size}"]
            done = subprocess.run([sys.executable, *sys.argv, *words], capture_output=True, text=True)
            if done.returncode:
                failures[form] = reason(done.stderr)
                continue
            found = json.loads(done.stdout.strip().splitlines()[-1])
            chips.setdefault(found["chip"], f"{found['chips']} {found['chip']}, {found.get('library', 'ours')}")
            results[form] = min(results.get(form, found), found, key=lambda each: each.get("cpu_seconds", 0.0))
        for form in a.forms:
            failed = f"| {form} | {patch_size} | {failures.get(form)} |"
            print(line(form, patch_size, results[form], results, a.batch) if form in results else failed, flush=True)
    how = "times are the compiler's estimates" if a.topology else "measured"
    print(f"\n{'; '.join(chips.values())}; {how}")


def line(form, patch_size, found, results, batch):
    """A row of the table; peers do the matrix operations of our CLIP."""
    seconds, clip = found["seconds"], results.get("clip")
    operations = found.get("operations") or (clip and clip["operations"])
    done = operations / seconds / found["chips"] if operations else None
    peak = found["peak"] or (clip and clip["peak"])
    makers = [topology.CHIPS[name].operations for kind, name in KINDS if kind in found["chip"].lower()]
    share = [f"{100 * done / each:.1f} %" if done and each else "-" for each in (peak, makers[0] if makers else None)]
    ratio = f"{clip['seconds'] / seconds:.2f}x" if clip else "-"
    rate = f"{batch * found['chips'] / seconds:,.0f}"
    of_threads = f"{1e3 * found['cpu_seconds']:.0f}" if "cpu_seconds" in found else "-"
    cells = form, patch_size, f"{1e3 * seconds:.1f}", of_threads, rate, ratio, *share, f"{found['memory'] / 2**30:.2f}"
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    arguments, rest = parse()
    if arguments.trace and not arguments.only:
        arguments.only = arguments.trace
    if arguments.only:
        print(json.dumps(measure(arguments, arguments.patch_sizes[0], rest)))
    else:
        with report.recorded(arguments.output, "torch", "open_clip_torch", "libtpu"):
            compare(arguments, rest)
