"""configs/small.py's recipe beside the paper's on some 7,000 captioned pictures, and what each of its choices does.

    apt-get download openclipart-svg tuxpaint-stamps-default
    python benchmarks/small.py --debs=FOLDER --data=data/small --runs=runs/small
    python benchmarks/small.py --data=data/small --runs=runs/small --forms=lamb,quarter,vit --seeds=1

FOLDER holds the two packages of Debian: Open Clip Art's drawings (public domain) with their titles and keywords, Tux Paint's
stamps (GPL-2) with a sentence each. 500 pictures whose captions occur once are held out. Every form of small_config.py has the
same small towers and steps; a run that is there already is only read. Needs the extra `demo`, apt-get and dpkg-deb.
"""

import argparse
import hashlib
import os
import queue
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

import report
from openclipart import convert

TESTED = 500
RANKS = ("image_to_text_R@1", "text_to_image_R@1", "image_to_text_R@5", "text_to_image_R@5")


def make_data(debs: Path, data: Path, workers: int) -> None:
    """Write data/train and data/test: pictures with one caption beside each."""
    unpacked, drawn, made = data / "unpacked", data / "drawn", data / "pairs.tmp"
    for name in ("openclipart-svg", "tuxpaint-stamps-default"):
        [deb] = debs.glob(f"{name}_*.deb")
        (unpacked / name).mkdir(parents=True)
        subprocess.run(["dpkg-deb", "-x", deb, unpacked / name], check=True)
    convert(unpacked / "openclipart-svg/usr/share/openclipart/svg", drawn, workers)
    pairs = sorted([*_drawings(drawn), *_stamps(unpacked / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps")])
    times = Counter(caption for caption, _ in pairs)
    single = [pair for pair in pairs if times[pair[0]] == 1]
    tested = set(sorted(single, key=lambda pair: hashlib.sha256(pair[0].encode()).digest())[:TESTED])
    for number, pair in enumerate(pairs):
        caption, image = pair
        target = made / ("test" if pair in tested else "train") / f"{number:05}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, target.with_suffix(image.suffix))
        target.with_suffix(".txt").write_text(caption, "utf-8")
    for name in ("train", "test"):
        (made / name).rename(data / name)
    for folder in (unpacked, drawn, made):
        shutil.rmtree(folder)


def _drawings(folder: Path):
    """Yield (title and keywords, picture)."""
    for image in folder.rglob("*.png"):
        texts = [image.with_name(f"{image.stem}.{key}.txt") for key in ("title", "keywords")]
        caption = ", ".join(text.read_text("utf-8") for text in texts if text.is_file())
        if caption:
            yield " ".join(caption.split()), image


def _stamps(folder: Path):
    """Yield (the English sentence, picture)."""
    for image in folder.rglob("*.png"):
        text = image.with_suffix(".txt")
        if text.is_file() and (caption := text.read_text("utf-8").partition("\n")[0].strip()):
            yield caption, image


def train(form: str, seed: int, core: int, a: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Return {step: metrics of the held-out pictures} of one run, which has a core of its own."""
    from filip_jax.evals.results import comparable, read_results

    workdir = a.runs / f"{form}_{seed}"
    words = [
        f"--config={report.ROOT}/benchmarks/small_config.py:{form}",
        f"--workdir={workdir}",
        f"--config.seed={seed}",
    ]
    variables = os.environ | {
        "SMALL_DATA": str(a.data), "SMALL_STEPS": str(a.steps), "JAX_COMPILATION_CACHE_DIR": str(a.runs / "compiled")
    }  # fmt: skip
    command = ["taskset", "-c", str(core), sys.executable, "-m", "filip_jax", "train", *words]
    with (a.runs / f"{form}_{seed}.log").open("a") as log:
        subprocess.run(command, env=variables, stdout=log, stderr=log, check=True)
    return {int(step): metrics for step, metrics in comparable(read_results(workdir)).items()}


def measure(a: argparse.Namespace) -> None:
    cores = queue.SimpleQueue[int]()
    for core in sorted(os.sched_getaffinity(0))[: a.parallel]:
        cores.put(core)

    def run(point):
        core = cores.get()
        try:
            return train(*point, core, a)
        finally:
            cores.put(core)

    points = [(form, seed) for seed in range(a.seeds) for form in a.forms.split(",")]
    with ThreadPoolExecutor(a.parallel) as pool:
        found = dict(zip(points, pool.map(run, points), strict=True))
    count = {name: sum(1 for _ in (a.data / name).glob("*.txt")) for name in ("train", "test")}
    print(f"{count['train']} pictures to learn from, {count['test']} held out, {a.steps} steps, {a.seeds} seeds\n")
    print(f"| form | step | {' | '.join(RANKS)} |\n|---|---|{'---|' * len(RANKS)}")
    for form in a.forms.split(","):
        for step in found[form, 0]:
            seeds = [found[form, seed][step] for seed in range(a.seeds)]
            cells = [_spread([metrics[f"test/{rank}"] for metrics in seeds]) for rank in RANKS]
            print(f"| {form} | {step} | {' | '.join(cells)} |")


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debs", type=Path, help="the folder of the two packages, where the data is not there yet")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the pairs")
    parser.add_argument("--runs", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--forms", default="small,base", help="of small_config.py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--parallel", type=int, default=2, help="runs at once, a core each")
    report.add_output(parser)
    arguments = parser.parse_args()
    arguments.data, arguments.runs = arguments.data.absolute(), arguments.runs.absolute()
    if not (arguments.data / "test").is_dir():
        make_data(arguments.debs or parser.error("--debs: the data is not there yet"), arguments.data, 2)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    with report.recorded(arguments.output, "flax", "optax", "grain"):
        measure(arguments)
