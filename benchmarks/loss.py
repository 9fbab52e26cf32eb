"""The token-wise loss beside its peers: time, memory and FLOP/s of forward and backward, as ratios in one run.

    python benchmarks/loss.py                              49 x 77 x 256, batch 128, float32
    python benchmarks/loss.py --lengths=10-25              captions of 10 to 25 real tokens of the 77
    python benchmarks/loss.py --batch=4096 --dtype=bfloat16 --forms=pallas,xla,torch     on a GPU
    python benchmarks/loss.py --topology=v5e:4x4 --batch=320     compiled for TPUs that are not here
    python benchmarks/loss.py --topology=h200:8 --batch=4096 --forms=pallas --dtype=bfloat16      ... or GPUs
    python benchmarks/loss.py --batch=4096 --dtype=bfloat16 --largest     doubles the batch while it fits

Each form runs in a process of its own. The peers are the plain definition under jit and, if PyTorch is
installed, two matrix products with two maxima, as public PyTorch code computes FILIP's loss (on a GPU
under torch.compile). FLOPs are counted once: 3 x 2 x batch^2 x image tokens x real text tokens x dim, of all tokens
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

FORMS = "xla,reference,torch"  # the first is what ratios are of
ALL_FORMS = ("auto", "xla", "pallas", "reference", "torch")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="pairs; with --topology, of one chip")
    parser.add_argument("--patches", type=int, default=49, help="tokens of an image")
    parser.add_argument("--text_length", type=int, default=77)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--lengths", default="full", help="real tokens of a text: full, or FROM-TO")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32, with --topology bfloat16")
    parser.add_argument("--keep_tokens", type=float, default=1.0)
    parser.add_argument("--forms", help=f"of {', '.join(ALL_FORMS)}; {FORMS}, with --topology one: auto")
    parser.add_argument("--repeat", type=int, default=5)
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
        "forms": not set(a.forms) <= set(ALL_FORMS[:-1] if a.topology else ALL_FORMS) or (a.topology and a.forms[1:]),
        "lengths": len(a.lengths) != 2 or not 0 < a.lengths[0] <= a.lengths[1] <= a.text_length,
        "keep_tokens": not a.keep_tokens > 0 or (a.keep_tokens != 1 and "torch" in a.forms),
    } | {key: getattr(a, key) < 1 for key in ("batch", "patches", "text_length", "dim", "repeat")}
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
    product = jax.jit(lambda x: x @ x)
    on_chip, memory = jax.default_backend() != "cpu", step.memory_analysis()
    return (
        lambda: jax.block_until_ready(step(images, texts)),
        memory.temp_size_in_bytes + memory.output_size_in_bytes if on_chip else None,
        lambda: jax.block_until_ready(product(square)),
        2 * len(square) ** 3,
        jax.devices()[0].device_kind,
    )


def torch_step(a):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, texts, mask = (torch.from_numpy(x).to(device) for x in tokens(a))
    images, texts = (x.to(getattr(torch, a.dtype)).requires_grad_() for x in (images, texts))
    own = torch.arange(a.batch, device=device)

    def loss(images, texts):
        s = torch.einsum("ipd,jtd->ijpt", images, texts).masked_fill(~mask[None, :, None], -1e4)
        image_to_text = s.max(dim=-1).values.float().mean(dim=-1)
        s = torch.einsum("jtd,ipd->jitp", texts, images)
        best = s.max(dim=-1).values.float() * mask[:, None]
        text_to_image = best.sum(dim=-1) / mask.sum(dim=-1)[:, None]
        cross_entropy = torch.nn.functional.cross_entropy
        return (cross_entropy(14.0 * image_to_text, own) + cross_entropy(14.0 * text_to_image, own)) / 2

    compiled = torch.compile(loss) if device == "cuda" else loss

    def step():
        images.grad = texts.grad = None
        value = compiled(images, texts)
        value.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return value.detach(), (images.grad, texts.grad)

    peak = None
    if device == "cuda":
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        peak = torch.cuda.max_memory_allocated() - before
    square = torch.ones((8192 if device == "cuda" else 2048,) * 2, dtype=getattr(torch, a.dtype), device=device)

    def product():
        square @ square
        if device == "cuda":
            torch.cuda.synchronize()

    return step, peak, product, 2 * len(square) ** 3, torch.cuda.get_device_name() if device == "cuda" else device


def seconds(function, repeat):
    """The median of some calls after two."""
    function(), function()
    spent = []
    for _ in range(repeat):
        started = time.perf_counter()
        function()
        spent.append(time.perf_counter() - started)
    return sorted(spent)[repeat // 2]


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
    step, memory, product, operations, chip = torch_step(a) if a.only == "torch" else jax_step(a, a.only)
    memory = extra_memory(step) if memory is None else memory
    result = {"seconds": seconds(step, a.repeat), "memory": memory, "chip": chip}
    loss, gradients = step()
    result |= {"loss": float(loss), "gradient": sum(float((x * x).sum()) for x in gradients) ** 0.5}
    result["peak"] = operations / seconds(product, a.repeat)
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
    results = {form: result for form in a.forms if (result := in_own_process(form))}
    if not results:
        sys.exit("no form ran")
    flops, best = useful_flops(a), results[next(iter(results))]
    peak = max(r["peak"] for r in results.values())
    print(f"{best['chip']}, matrix product {peak / 1e12:.2f} TFLOP/s\n")
    print(
        "| form      | ms       | TFLOP/s | of the matrix product | extra MB | time ratio | memory ratio | loss    | gradient norm |"
    )
    print(
        "| --------- | -------- | ------- | --------------------- | -------- | ---------- | ------------ | ------- | ------------- |"
    )
    for form, r in results.items():
        rate = flops / r["seconds"]
        print(
            f"| {form:9} | {1e3 * r['seconds']:8.1f} | {rate / 1e12:7.3f} | {100 * rate / peak:19.0f} % "
            f"| {r['memory'] / 1e6:8.1f} | {r['seconds'] / best['seconds']:10.2f} "
            f"| {r['memory'] / best['memory']:12.2f} | {r['loss']:.5f} | {r['gradient']:13.6f} |"
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
