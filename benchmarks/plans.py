"""The paper's runs planned for TPUs that are not here: the smallest topologies that fit, and weak scaling on paper.

    python benchmarks/plans.py fit                for each chip upwards from a topology that is too small
    python benchmarks/plans.py scaling            FILIP base, 640 pairs a chip, on 16, 64 and 256 chips
    python benchmarks/plans.py loss               memory of the loss, in a ring and recomputed, 8 to 256 chips
    python benchmarks/plans.py tokens             with and without the class token: 50 or 49, 197 or 196, 257 or 256

Each row is what `filip plan` says, whose command is the row's last column; they take minutes each. Needs the
extra `plan`. Nothing runs on a chip: memory is the compiler's, times are estimates by its cycles.
"""

import argparse
import contextlib
import multiprocessing
import re
import subprocess
import sys
from pathlib import Path
from queue import Empty

import report

ROOT = Path(__file__).resolve().parent.parent
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
SHAPES = {"v5e": FLAT, "v6e": FLAT, "v5p": DEEP}
SOURCE = "--config.source.path=PAIRS"  # plans read no data
FIRST = {  # of each chip: where the search begins; down while it fits, up while it does not
    "base": {"v5e": "2x4", "v6e": "2x2", "v5p": "2x2x1"},
    "large": {"v5e": "4x8", "v6e": "4x4", "v5p": "2x2x4"},
}


def child(queue, variant, topology, overrides):
    from filip_jax.plan.chips import forget_devices

    forget_devices()
    from filip_jax.config import load_config
    from filip_jax.plan.report import plan

    try:
        config = load_config(f"{ROOT}/configs/filip.py:{variant}", overrides)
        queue.put(plan(config, topology))
    except Exception as error:  # or the parent would wait for ever
        queue.put(f"{topology}: {error!r}")


def planned(variant, topology, overrides=()):
    """The plan, made in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue, variant, topology, [SOURCE, *overrides]))
    process.start()
    found = None
    while found is None:
        with contextlib.suppress(Empty):
            found = queue.get(timeout=1.0)
        if found is None and not process.is_alive():
            sys.exit(f"{topology}: the compiler's process ended with {process.exitcode}, for want of memory perhaps")
    process.join()
    if isinstance(found, str):
        sys.exit(found)
    words = " ".join(["filip plan", f"--config=configs/filip.py:{variant}", f"--topology={topology}", *overrides])
    return found | {"command": words}


def head(*columns):
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)


def row(*cells):
    print(f"| {' | '.join(cells)} |", flush=True)


def times(found):
    """(ms of a step, samples/s, MFU, GiB that each chip receives) or dashes."""
    if "step_seconds" not in found:
        return ("-",) * 4
    sent = sum(size for _, size in found["collectives"].values()) / 2**30
    rate = f"{found['samples_per_second']:,.0f}"
    return f"{1e3 * found['step_seconds']:,.0f}", rate, f"{100 * found['mfu']:.0f} %", f"{sent:.2f}"


def fit(variants, chips):
    names = "model", "topology", "chips", "GiB of a chip", "fits", "step ms", "samples/s", "MFU", "days", "chip-hours"
    head(*names, "command")
    for variant in variants:
        for chip in chips:
            shapes, place, step, found = SHAPES[chip], SHAPES[chip].index(FIRST[variant][chip]), 0, None
            while 0 <= place < len(shapes) and (found is None or found["fits"] == (step < 0)):
                found = planned(variant, f"{chip}:{shapes[place]}")
                memory = f"{found['peak_memory'] / 2**30:.1f} of {found['chip_memory'] / 2**30:.1f}"
                cost = [f"{found['days']:.1f}", f"{found['chip_hours']:,.0f}"] if found["fits"] else ["-", "-"]
                said, count = "yes" if found["fits"] else "no", str(found["chips"])
                numbers = [memory, said, *times(found)[:3], *cost]
                row(variant, found["topology"], count, *numbers, f"`{found['command']}`")
                step = step or (-1 if found["fits"] else 1)
                place += step


def scaling(pairs, shapes):
    names = "topology", "chips", "global batch", "GiB of a chip", "of it the loss", "step ms", "samples/s", "MFU"
    head(*names, "GiB received", "command")
    for shape in shapes:
        chips = count_chips(shape)
        found = planned("base", f"v5e:{shape}", [f"--config.batch_size={pairs * chips}"])
        memory = (
            f"{found['peak_memory'] / 2**30:.2f}",
            f"{found['loss_temporary'] / 2**30:.2f}" if found["fits"] else "-",
        )
        batch = f"{found['batch_size']:,}"
        row(found["topology"], str(chips), batch, *memory, *times(found), f"`{found['command']}`")


def loss(pairs, shapes):
    """The loss compiled alone, whatever its batch: exact, the texts of one chip after the other, indices found again."""
    options = ["--exchange=ring", "--indices=recompute", "--forms=auto", "--dtype=bfloat16", f"--batch={pairs}"]
    head("topology", "global batch", "GiB of a chip", "command")
    for shape in shapes:
        words = ["python", "benchmarks/loss.py", f"--topology=v5e:{shape}", *options]
        done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        memory = re.search(r"temporary memory ([\d.]+) GiB", done.stdout)[1]
        row(f"v5e:{shape}", f"{pairs * count_chips(shape):,}", memory, f"`{' '.join(words)}`")


def tokens(pairs, _):
    """Each step on one chip, without remat and at full text length, so that little else differs."""
    plain = ["--config.model.remat=False", "--config.model.text.length_groups=1", f"--config.batch_size={pairs}"]
    head("patches of", "image tokens", "step ms", "GiB of a chip", "command")
    for patch_size in (32, 16, 14):
        for class_tokens, pooling in ((1, "class"), (0, "mean")):
            overrides = [
                f"--config.model.image.patch_size={patch_size}",
                f"--config.model.image.class_tokens={class_tokens}",
                f"--config.model.image.pooling={pooling}",
            ]
            found = planned("base", "v5e:1x1", [*overrides, *plain])
            memory = f"{found['peak_memory'] / 2**30:.2f}"
            count = (224 // patch_size) ** 2 + class_tokens
            row(str(patch_size), str(count), times(found)[0], memory, f"`{found['command']}`")


def count_chips(shape):
    """The chips of 4x8 or 2x2x4."""
    count = 1
    for size in shape.split("x"):
        count *= int(size)
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fit", "scaling", "loss", "tokens"))
    parser.add_argument("--models", default="base,large", help="of fit (default: both)")
    parser.add_argument("--chips", default="v5e,v6e,v5p", help="of fit (default: all)")
    parser.add_argument("--shapes", help="of v5e, of scaling (default: 4x4,8x8,16x16) and loss (2x4 before them)")
    parser.add_argument("--pairs", type=int, help="a chip (default: 640; of tokens 64)")
    report.add_output(parser)
    a = parser.parse_args()
    with report.recorded(a.output, "libtpu"):
        if a.what == "fit":
            fit(a.models.split(","), a.chips.split(","))
        else:
            shapes = (a.shapes or ("2x4," if a.what == "loss" else "") + "4x4,8x8,16x16").split(",")
            function, pairs = {"scaling": (scaling, 640), "loss": (loss, 640), "tokens": (tokens, 64)}[a.what]
            function(a.pairs or pairs, shapes)
