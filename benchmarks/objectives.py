"""The demo's objectives beside each other: retrieval, pointing, zero-shot and a probe after the same samples.

    python benchmarks/objectives.py --runs=runs/objectives          trains what is not there yet: minutes each on two cores
    python benchmarks/objectives.py --runs=runs/objectives --variants=filip,filip_clip --set="objectives.clip.weight=0.25"

Each variant of configs/demo.py is one run of `filip train` in a folder of --runs, which goes on where it ended; what is
evaluated and its 95 % intervals are the config's. A run's columns are tokens where the objective trained them, else pooled
vectors.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import report

VARIANTS = "filip,clip,filip_clip,siglip"


def measure(runs: Path, variants: list[str], changes: list[str]) -> None:
    from filip_jax.evals.results import comparable, read_results, table

    columns = {}
    for variant in variants:
        words = [f"--config=configs/demo.py:{variant}", f"--workdir={runs / variant}"]
        words += [f"--config.{change}" for change in changes]
        subprocess.run([sys.executable, "-m", "filip_jax", "train", *words], cwd=report.ROOT, check=True)
        steps = comparable(read_results(runs / variant))
        last = max(steps, key=int)
        columns[f"{variant}, step {last}"] = steps[last]
    print(table(columns))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--variants", default=VARIANTS, help=f"of configs/demo.py; {VARIANTS}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value of the config")
    report.add_output(parser)
    a = parser.parse_args()
    with report.recorded(a.output, "flax", "optax"):
        measure(a.runs.absolute(), a.variants.split(","), a.set)
