"""Pictures of an evaluation: how fast they are read, decoded and cropped, alone and beside a model.

    pip install -e ".[bench]"           # photographs
    python benchmarks/evals_input.py    # a minute

Photographs of scikit-image as JPEG files of 500 x 375 pixels, centre views of 224. Each row: one after the other in the
main thread; then by so many threads ahead of it, of which evaluations have 16. `30 ms` adds that to every reading, as from a bucket. Beside a model: batches
of 64, each of which an accelerator works on for so long as 64 pictures take one thread divided by `--busy`; the main thread
sleeps meanwhile. Images a second are the most of several rounds.
"""

import argparse
import tempfile
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import report
from input import photographs
from PIL import Image

SHAPE, SIZE, BATCH = (500, 375), 224, 64


def write(folder: Path, count: int) -> None:
    for n in range(count):
        name, picture = photographs_[n % len(photographs_)]
        (folder / name).mkdir(exist_ok=True)
        picture.resize(SHAPE, Image.Resampling.BICUBIC).save(folder / name / f"{n}.jpg", quality=92)


class Far:
    """A source whose records are so many seconds away."""

    def __init__(self, source, seconds):
        self.source, self.seconds, self.where = source, seconds, source.where

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return self.source[index]


def rate(source, threads, busy):
    """Images a second; `threads=0` reads one after the other."""
    from filip_jax import ahead
    from filip_jax.evals import records

    ahead.THREADS = threads
    if threads:
        pictures = records.views(source, len(source), SIZE, BATCH)
    else:
        pictures = (records.as_seen(source[n], SIZE) for n in range(len(source)))
    started = time.perf_counter()
    with closing(pictures):
        while batch := list(islice(pictures, BATCH)):
            time.sleep(busy * len(batch) / BATCH)
    return len(source) / (time.perf_counter() - started)


def main():
    from filip_jax.data.class_folder import ClassFolder

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), a.images)
        near = ClassFolder(path=folder)
        alone = BATCH / max(rate(near, 0, 0) for _ in range(a.repeat))
        print("| records | beside a model | one after the other | 1 thread | 2 | 4 | 16 |\n" + "|" + " --- |" * 7)
        for name, source in (("on a disk", near), ("30 ms away", Far(near, 0.03))):
            for busy in (0.0, alone / a.busy):
                best = dict.fromkeys((0, 1, 2, 4, 16), 0.0)
                for _ in range(a.repeat):  # by turns, so that other work on the machine meets all alike
                    best = {n: max(most, rate(source, n, busy)) for n, most in best.items()}
                what = f"{1000 * busy:.0f} ms a batch" if busy else ""
                print(f"| {name} | {what} | {' | '.join(f'{most:.0f}' for most in best.values())} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 256), ("repeat", 3), ("busy", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    report.add_output(parser)
    a = parser.parse_args()
    photographs_ = photographs()
    with report.recorded(a.output, "Pillow"):
        main()
