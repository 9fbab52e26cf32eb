"""The token-wise loss beside its peers: time, memory and FLOP/s of forward and backward, as ratios in one run.

    python benchmarks/loss.py                              49 x 77 x 256, batch 128, float32
    python benchmarks/loss.py --lengths=10-25              captions of 10 to 25 real tokens of the 77
    python benchmarks/loss.py --batch=4096 --dtype=bfloat16 --forms=pallas,xla,torch_compiled     on a GPU
    python benchmarks/loss.py --topology=v5e:4x4 --batch=320     compiled for TPUs that are not here
    python benchmarks/loss.py --topology=h200:8 --batch=4096 --forms=pallas --dtype=bfloat16      ... or GPUs
    python benchmarks/loss.py --batch=4096 --dtype=bfloat16 --largest     doubles the batch while it fits

Each form runs in a process of its own, by turns with --rounds; milliseconds are the least of all. The peers are
the plain definition under jit and, if PyTorch is installed, the forms of torch_losses.py. FLOPs are counted once: 3 x 2 x batch^2 x image tokens x real text tokens x dim, of all tokens
also with --keep_tokens. --lengths are of what runs; --topology tells every length.
Memory is what one step needs beyond what is there before it. With --topology nothing runs: the
compiler's own estimate of cycles stands beside the matrix units' ideal, for the batch of one chip. A
kernel's cycles it does not estimate: they count as the ideal of its padded tile (the kernel's inner loop
has 5 to 10 % more instruction bundles than that on v5e and v5p).
"""

import argparse
import ctypes
import json
import re
import subprocess
import sys
import time

import report

PEERS = ("torch_one", "torch_two", "torch_chunked", "torch_compiled")
OURS = ("auto", "xla", "pallas", "reference")
FORMS = "xla,reference,torch_one,torch_two,torch_chunked"  # the first is what ratios are of


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="pairs; with --topology, of one chip")
    parser.add_argument("--patches", type=int, default=49, help="tokens of an image")
    parser.add_argument("--text_length", type=int, default=77)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--lengths", default="full", help="real tokens of a text: full, or FROM-TO")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32, with --topology bfloat16")
    parser.add_argument("--keep_tokens", type=float, default=1.0)
    parser.add_argument("--forms", help=f"of {', '.join(OURS + PEERS)}; {FORMS}, with --topology one: auto")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1, help="how often all forms take their turns")
    parser.add_argument("--topology", help="v5e:4x4, v5p:2x2x2 ...")
    parser.add_argument("--exchange", default="auto", choices=("auto", "gather", "ring"))
    parser.add_argument("--indices", default="auto", choices=("auto", "save", "recompute"))
    parser.add_argument("--largest", action="store_true", help="the largest batch that each form can hold")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    report.add_output(parser)
    a = parser.parse_args()
    a.dtype = a.dtype or ("bfloat16" if a.topology else "float32")
    a.forms = (a.forms or ("auto" if a.topology else FORMS)).split(",")
    a.lengths = (a.text_length,) * 2 if a.lengths == "full" else tuple(map(int, re.findall(r"\d+", a.lengths)))
    wrong = {
        "forms": not set(a.forms) <= {*OURS, *(() if a.topology else PEERS)} or (a.topology and a.forms[1:]),
        "lengths": len(a.lengths) != 2 or not 0 < a.lengths[0] <= a.lengths[1] <= a.text_length,
        "keep_tokens": not a.keep_tokens > 0 or (a.keep_tokens != 1 and {*PEERS} & {*a.forms}),
    } | {key: getattr(a, key) < 1 for key in ("batch", "patches", "text_length", "dim", "repeat", "rounds")}
    for key in [key for key, is_wrong in wrong.items() if is_wrong]:
        parser.error(f"--{key}={getattr(a, key)} cannot be, see --help")
    return a


def tokens(a):
    """NumPy arrays: unit image and text tokens, mask."""
    import numpy as np

    rng = np.random.default_rng(0)

    def unit(*shape):
        x = rng.standard_normal(shape, np.float32)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    low, high = a.lengths
    mask = np.arange(a.text_length) < rng.integers(low, high + 1, (a.batch, 1))
    return unit(a.batch, a.patches, a.dim), unit(a.batch, a.text_length, a.dim), mask


def jax_step(a, form):
    import jax
    import jax.numpy as jnp

    from filip_jax.losses import filip_loss

    images, texts, mask = (jnp.asarray(x) for x in tokens(a))
    images, texts = images.astype(a.dtype), texts.astype(a.dtype)

    def loss(images, texts):
        return filip_loss(images, texts, mask, 14.0, implementation=form, keep_tokens=a.keep_tokens, indices=a.indices)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(images, texts).compile()
    square = jnp.ones((8192 if jax.default_backend() == "gpu" else 2048,) * 2, a.dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))  # on CPUs the fast one
    memory = step.memory_analysis()
    return (
        lambda: jax.block_until_ready(step(images, texts)),
        memory.temp_size_in_bytes + memory.output_size_in_bytes,
        lambda: jax.block_until_ready(product(square)),
        2 * len(square) ** 3,
        jax.devices()[0].device_kind,
    )


def torch_step(a, form):
    from torch_losses import make_step

    return make_step(form, *tokens(a), a.dtype)


def seconds(function, repeat):
    """The median seconds of some calls after two, and the least CPU seconds of all threads."""
    function(), function()
    wall, cpu = [], []
    for _ in range(repeat):
        began, spent = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - spent)
    return sorted(wall)[repeat // 2], min(cpu)


def extra_memory(function):
    """Bytes by which one call raises this process's peak on the host (Linux)."""

    def status(key):
        with open("/proc/self/status") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

    function()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left with the allocator
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")  # the peak starts anew
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def measure(a):
    make = torch_step if a.only.startswith("torch") else jax_step
    step, memory, product, operations, chip = make(a, a.only)
    if chip == "cpu":  # the allocator of XLA may hold earlier memory, which the host's count then lacks
        memory = max(memory or 0, extra_memory(step))
    wall, cpu = seconds(step, a.repeat)
    result = {"seconds": wall, "cpu": cpu, "memory": memory, "chip": chip}
    loss, gradients = step()
    result |= {"loss": float(loss), "gradient": sum(float((x * x).sum()) for x in gradients) ** 0.5}
    result["peak"] = operations / seconds(product, a.repeat)[0]
    print(json.dumps(result))


def useful_flops(a):
    mask = tokens(a)[2]
    return 3 * 2 * a.batch * a.patches * int(mask.sum()) * a.dim


def in_own_process(form, *options):
    """What `measure` printed, or None and a line why not."""
    done = subprocess.run([sys.executable, *sys.argv, f"--only={form}", *options], capture_output=True, text=True)
    if done.returncode:
        print(f"{form} {' '.join(options)}: {reason(done.stderr)}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def reason(stderr):
    """The line of a failed process that says why."""
    lines = stderr.strip().splitlines() or ["killed"]
    line = next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)), lines[-1])
    return re.sub(r"^filip_jax[\w.]+: ", "", line)[:300]


def largest(a):
    for form in a.forms:
        batch = a.batch
        while result := in_own_process(form, f"--batch={batch}", "--repeat=1"):
            if result["chip"] == "cpu":
                sys.exit("--largest is for accelerators: a CPU's memory is everyone's")
            batch *= 2
        print(f"{form}: largest batch {batch // 2 if batch > a.batch else 'below ' + str(batch)}", flush=True)


def compare(a):
    rounds = [{form: in_own_process(form) for form in a.forms} for _ in range(a.rounds)]
    results = {form: [each[form] for each in rounds if each[form]] for form in a.forms}
    results = {form: found for form, found in results.items() if found}
    if not results:
        sys.exit("no form ran")
    flops, peak = useful_flops(a), max(r["peak"] for found in results.values() for r in found)
    least = {form: {key: min(r[key] for r in found) for key in ("seconds", "cpu", "memory")}
             for form, found in results.items()}  # fmt: skip
    first = next(iter(least.values()))
    print(f"{next(iter(results.values()))[0]['chip']}, matrix product {peak / 1e12:.2f} TFLOP/s\n")
    print("| form | ms | CPU ms | TFLOP/s | of the matrix product | extra MB | time ratio | CPU ratio | memory ratio | loss | "
          "gradient norm |\n|" + " --- |" * 11)  # fmt: skip
    for form, r in least.items():
        rate, same = flops / r["seconds"], results[form][0]
        ratios = " | ".join(f"{r[key] / first[key]:.2f}" for key in ("seconds", "cpu", "memory"))
        print(
            f"| {form} | {1e3 * r['seconds']:.1f} | {1e3 * r['cpu']:.1f} | {rate / 1e12:.3f} | {100 * rate / peak:.0f} % "
            f"| {r['memory'] / 1e6:.1f} | {ratios} | {same['loss']:.5f} | {same['gradient']:.6f} |"
        )


if __name__ == "__main__":
    arguments = parse()
    if arguments.only:
        measure(arguments)
    else:
        with report.recorded(arguments.output, "torch", "libtpu"):
            if arguments.topology:
                from topology import estimate

                estimate(arguments)
            elif arguments.largest:
                largest(arguments)
            else:
                compare(arguments)
