"""Zero-shot scoring at ImageNet's size: all classes in all prompts stand in memory beside the model; what does that take?

    python benchmarks/zero_shot.py                          1,000 classes, 80 prompts, 16 images: minutes on two cores
    python benchmarks/zero_shot.py --classes=100 --prompts=8

Random tokens, without the towers: class texts of 8 to 14 tokens of 256 numbers, images of 49. Prints how much memory the
class texts take, how much more scoring takes at its peak, and the time and products of an image.
"""

import argparse
import time

import numpy as np
import report
from retrieval import Peak, resident, unit

LENGTH = 77


class Tokens:
    """Gives random tokens for texts, as a model would."""

    pooling, mesh = "tokens", None

    def __init__(self, dim):
        self.rng, self.dim = np.random.default_rng(0), dim

    def encode_text(self, texts):
        mask = np.arange(LENGTH) < self.rng.integers(8, 15, len(texts))[:, None]
        tokens = np.zeros((len(texts), LENGTH, self.dim), np.float32)
        tokens[mask] = unit(self.rng, int(mask.sum()), self.dim)
        return tokens, mask


def measure(classes, prompts, images, patches, dim):
    from filip_jax.evals.zero_shot import ClassTexts

    model = Tokens(dim)
    before, peak = resident(), Peak()
    texts = ClassTexts(model, [f"class {n}" for n in range(classes)], ["a {}"] * prompts)
    made = (peak.stop() - before) / 2**30
    words = sum(len(tokens) for tokens, _ in texts.packed)
    held, peak, tokens = resident(), Peak(), unit(model.rng, images, patches, dim)
    texts.similarities(tokens[:1])  # compiles
    started = time.perf_counter()
    texts.similarities(tokens)
    seconds = time.perf_counter() - started
    scoring = (peak.stop() - held) / 2**30
    products = 2 * patches * dim * words
    print(
        "| classes | prompts | class texts GiB | peak while they are made GiB | scoring GiB more | ms an image | GFLOP an image |"
    )
    print("|" + " --- |" * 7)
    print(f"| {classes:,} | {prompts} | {words * dim * 4 / 2**30:.2f} | {made:.2f} | {scoring:.2f} | "
          f"{1000 * seconds / images:,.0f} | {products / 1e9:.1f} |")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("classes", 1000), ("prompts", 80), ("images", 16), ("patches", 49), ("dim", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    report.add_output(parser)
    a = parser.parse_args()
    with report.recorded(a.output):
        measure(a.classes, a.prompts, a.images, a.patches, a.dim)
