"""Host memory of a run that saves and evaluates at every step.

    python benchmarks/soak.py              200 saves and 200 evaluations, some minutes on two cores
    python benchmarks/soak.py --steps=80

Prints resident memory as it goes, and what a save with its evaluation adds after the first 50, by a line through all
of them. Exits with 1 where that is 0.1 MB or more.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FIRST, LIMIT = 50, 0.1  # steps that are left out; MB


def resident() -> float:
    """Return the resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(steps: int, workdir: Path) -> list[float]:
    """Memory after each step of a small run, whose every step is saved and evaluated."""
    from filip_jax.config import load_config
    from filip_jax.train.loop import Trainer, train

    config = load_config(str(ROOT / "benchmarks/chaos_config.py"))
    config |= {"total_steps": steps, "eval_every_steps": 1, "log_every_steps": 10, "log_keys": False}
    config["checkpoint"] |= {"every_steps": 1}
    sizes: list[float] = []
    next_batch = Trainer._next_batch

    def measured(self):
        sizes.append(resident())
        if len(sizes) % 20 == 0:
            print(f"{len(sizes)}: {sizes[-1]:.1f} MB", flush=True)
        return next_batch(self)

    Trainer._next_batch = measured
    train(workdir, config)
    return sizes


def main() -> int:
    """Prints the slope; 1 if memory grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    report.add_output(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = np.array(measure(arguments.steps, Path(folder) / "run"))
    later = sizes[FIRST:]
    slope = np.polyfit(np.arange(len(later)), later, 1)[0]
    with report.recorded(arguments.output):
        print(f"| saves and evaluations | MB at {FIRST} | MB at the end | MB a save |\n| --- | --- | --- | --- |")
        print(f"| {len(sizes)} | {later[0]:.1f} | {later[-1]:.1f} | {slope:.4f} |")
    return int(slope >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
