r"""A real DINOv2 as the locked image tower of the demo, beside the demo's own tower on the same pairs from nothing.

    python benchmarks/locked_dinov2.py --weights=FOLDER --runs=runs/dinov2        some 20 minutes on two cores

FOLDER is what benchmarks/dinov2_from_onnx.py makes, at 224 pixels. Both runs see 200 batches of 64 scenes; the tower of DINOv2
sees them at 84 pixels, 6 x 6 patches of 14, as the other sees 6 x 6 patches of 8. Intervals are of 95 %.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import report

STEPS = 200
PAIRS = [
    "--config.batch_size=64", f"--config.total_steps={STEPS}", "--config.optimizer.warmup_steps=20",
    f"--config.eval_every_steps={STEPS}", "--config.checkpoint.every_steps=50",
]  # fmt: skip
LOCKED = [
    r"--config.init_from.rules=((r'(image/.*)', r'\1'), ('.*', None))",
    "--config.optimizer.learning_rate_rules=(('image/.*', 0.0),)",
    "--config.model.text=transformer vocab_size=800 length=20 width=128 depth=3 heads=4 activation=quick_gelu",
    "--config.tokenizer=sentencepiece vocab_size=800 captions=10000",
    "--config.data.image_size=84", "--config.data.text_length=20", "--config.model.embed_dim=64",
]  # fmt: skip


def measure(weights: Path, runs: Path) -> None:
    from filip_jax.evals.results import comparable, read_results, table

    def filip(*words):
        subprocess.run([sys.executable, "-m", "filip_jax", *words], cwd=report.ROOT, check=True)

    imported = runs / "imported"
    if not imported.exists():
        filip("import", str(weights), f"--output={imported}")
    columns = {}
    for name, words in {"nothing": [], "locked": [f"--init_from={imported}", *LOCKED]}.items():
        filip("train", "--config=configs/demo.py:filip", f"--workdir={runs / name}", *PAIRS, *words)
        columns[name] = comparable(read_results(runs / name))[str(STEPS)]
    print(table({"from nothing": columns["nothing"], "DINOv2 ViT-S/14, locked": columns["locked"]}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="the folder of weights")
    parser.add_argument("--runs", type=Path, required=True, help="the folder of the runs")
    report.add_output(parser)
    a = parser.parse_args()
    with report.recorded(a.output):
        measure(a.weights.absolute(), a.runs.absolute())
