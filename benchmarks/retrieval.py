"""Retrieval scoring at COCO's size: similarities of all images with all captions, and their ranks, without the towers.

    python benchmarks/retrieval.py                                     5,000 images, 25,000 captions: minutes on two cores
    python benchmarks/retrieval.py --images=500 --captions=2500

Random tokens; captions have 10 to 25 real tokens and are padded to 77, as a tower gives them. Prints the time, and how
much memory it took beyond the embeddings, at its peak; then the same for a gallery of a quarter, whose memory should be
no less.
"""

import argparse
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import report

ROOT = Path(__file__).resolve().parents[1]


def unit(rng, *shape):
    x = rng.standard_normal(shape, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Peak(threading.Thread):
    """The most that `resident` gives from now to `stop`, looked at every 10 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.ended, self.most = threading.Event(), 0
        self.start()

    def run(self):
        while not self.ended.wait(0.01):
            self.most = max(self.most, resident())

    def stop(self):
        self.ended.set()
        self.join()
        return self.most


def measure(images, captions, patches, dim):
    """One line: seconds, gigabytes beyond the embeddings, R@1."""
    from filip_jax.evals.retrieval import _rank
    from filip_jax.inference import similarity_blocks

    rng = np.random.default_rng(0)
    image_tokens = unit(rng, images, patches, dim)
    lengths = rng.integers(10, 26, captions)
    text_tokens = np.zeros((captions, 77, dim), np.float32)
    mask = np.arange(77) < lengths[:, None]
    for start in range(0, captions, 1000):
        part = mask[start : start + 1000]
        text_tokens[start : start + 1000][part] = unit(rng, int(part.sum()), dim)
    text_tokens = text_tokens[:, : lengths.max()].copy()  # as evals/records.py cuts them
    mask = mask[:, : lengths.max()]
    embeddings = image_tokens.nbytes + text_tokens.nbytes
    held, peak = resident(), Peak()
    started = time.perf_counter()
    owners = np.arange(captions) % images
    blocks = similarity_blocks(image_tokens, text_tokens, mask)
    of_images, of_texts = _rank(np.sort(owners), images, blocks, 14.0)
    recalls = of_images.recall(1), of_texts.recall(1)
    seconds = time.perf_counter() - started
    fresh = (peak.stop() - held) / 2**30
    print(f"| {images:,} | {captions:,} | {embeddings / 2**30:.2f} | {fresh:.2f} | {seconds:.1f} | "
          f"{images * captions / seconds:,.0f} | {recalls[0]:.4f} |")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=25_000)
    parser.add_argument("--patches", type=int, default=49)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    report.add_output(parser)
    a = parser.parse_args()
    if a.only:
        measure(a.images, a.captions, a.patches, a.dim)
        sys.exit()
    with report.recorded(a.output):
        print("| images | captions | embeddings GiB | beyond them GiB | seconds | pairs/s | R@1 |\n|" + " --- |" * 7)
        for part in (4, 1):  # processes of their own: each has its own peak
            few = [f"--images={a.images // part}", f"--captions={a.captions // part}", "--only"]
            done = subprocess.run([sys.executable, *sys.argv, *few], check=True, stdout=subprocess.PIPE, text=True)
            print(done.stdout, end="", flush=True)
