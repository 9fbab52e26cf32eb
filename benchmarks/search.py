"""Exact search, two stages and LanceDB over clustered tokens; the scorer beside published ones.

    python benchmarks/search.py --output=benchmarks/results/search_20k        20,000 items of 49 x 256: minutes on two cores
    python benchmarks/search.py --items=200000                                disk and time are said before it starts
    python benchmarks/search.py --items=1000000 --reduce=select:0.25          12 of 49 tokens are stored
    python benchmarks/search.py --scoring --items=200000                      on a device: the share of its memory's bandwidth

Tokens lie around 1,000 concepts, eight of which a picture shows; queries are twelve tokens near some of one picture's. The
peers (numpy: one product and a maximum; maxsim-cpu, if it is installed) run in processes of their own, by turns, over the same
float32 tokens in memory. CPU seconds are those of all threads.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import report

CONCEPTS, SHOWN, WORDS, NOISE = 1000, 8, 12, 0.5  # noise: length of a random vector beside a concept's of length 1
ROWS, PART = 1024, 8192  # that are made, and written, at once
PEERS = ("ours", "numpy", "maxsim_cpu")


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def near(rng, centers):
    noise = rng.standard_normal(centers.shape, np.float32)
    return unit(centers + NOISE * unit(noise))


def concepts(a):
    return unit(np.random.default_rng(0).standard_normal((CONCEPTS, a.dim), np.float32))


def items(a, first, count):
    """The tokens of some items, which depend on their numbers alone."""
    rng, known = np.random.default_rng([1, first]), concepts(a)
    shown = rng.integers(0, CONCEPTS, (count, SHOWN))
    chosen = np.take_along_axis(shown, rng.integers(0, SHOWN, (count, a.tokens)), axis=1)
    return near(rng, known[chosen])


def asked(a):
    """The tokens of each query: near those of one item each."""
    rng = np.random.default_rng(2)
    targets = rng.integers(0, a.items, a.queries)
    return [near(rng, items(a, int(n) // ROWS * ROWS, ROWS)[int(n) % ROWS][rng.integers(0, a.tokens, WORDS)])
            for n in targets]  # fmt: skip


def manifest(a, dtype):
    from filip_jax.features import Manifest
    from filip_jax.search.reductions import parse

    side = round(a.tokens**0.5)
    grid = (side, side) if side * side == a.tokens else (1, a.tokens)
    reductions = (parse(a.reduce),) if a.reduce else ()
    return Manifest(side="image", dimension=a.dim, grid=grid, image_size=32 * side, dtype=dtype, reductions=reductions)


def write(a, folder, dtype):
    """Write features of all items; return the seconds it took."""
    from filip_jax.features import FeatureWriter
    from filip_jax.search.reductions import positions_of, reduced

    known, words = manifest(a, dtype), np.concatenate(asked(a))
    began = time.perf_counter()
    with FeatureWriter(folder, known) as writer:
        for first in range(0, a.items, ROWS):
            tokens = items(a, first, ROWS)[: a.items - first]
            mask, positions = np.ones(tokens.shape[:2], bool), positions_of(tokens.shape, known.grid)
            if a.reduce:
                tokens, mask, positions = reduced(tokens, known.reductions, known.grid, words)
            fields = [
                dict(key=str(n), index=n, width=640 + n % 640, height=480) for n in range(first, first + len(tokens))
            ]
            writer.add(tokens, mask, fields, positions)
            if writer.rows >= PART:
                writer.flush()
    return time.perf_counter() - began


def stored_tokens(a):
    """Return about how many tokens of an item are stored."""
    from filip_jax.search.reductions import parse

    options = parse(a.reduce)["options"] if a.reduce else {}
    return max(1, int(a.tokens * options.get("keep", 1) / options.get("size", 1) ** 2))


def forms(a):
    """Return (scorer, type of the tokens) of those that are compared."""
    known = [(name, "float32") for name in PEERS] + [("ours", "float16"), ("ours", "int8")]
    return [form for form in known if form[0] in a.peers.split(",")]


def disk(a):
    """Return about how many bytes the features and LanceDB's table take."""
    numbers, engines = a.items * stored_tokens(a) * a.dim, a.engines.split(",")
    dtypes = [a.dtype] * (a.engines != "none") + [*dict.fromkeys(dtype for _, dtype in forms(a))]
    size = sum(numbers * np.dtype(dtype).itemsize + 4 * a.items * a.dim for dtype in dtypes)
    return size + 2.2 * numbers * ("lance" in engines)


def plan(a, folder):
    """Say what disk and time it needs; end where the disk has less."""
    began = time.perf_counter()
    items(a, 0, ROWS)
    making = (time.perf_counter() - began) * a.items / ROWS
    size, free, kept = disk(a), shutil.disk_usage(folder).free, stored_tokens(a)
    scan = a.items * kept * a.dim * 2 * WORDS / 5e9 * (a.queries + 1)
    hours = (1.5 * making + scan + 40 * a.items * kept / 1e6 * ("lance" in a.engines.split(","))) / 3600
    print(
        f"needs about {size / 1e9:.1f} GB of the {free / 1e9:.1f} GB that are free in {folder}, and {hours:.2f} hours",
        flush=True,
    )
    if size * 1.1 > free:
        sys.exit("--folder: the disk has too little room; name another folder or fewer --items")


def spent(action):
    """Return (what it returns, CPU seconds of all threads, wall seconds)."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = action()
    return found, time.process_time() - cpu, time.perf_counter() - wall


def peak():
    """Return the largest resident memory of this process so far, in GiB; ru_maxrss would begin with the parent's."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) / 2**20


def engines(a, folder):
    """One row for exact, two-stage and LanceDB searches, recall beside the exact one."""
    from filip_jax.search.index import open_index

    built = write(a, folder, a.dtype)
    queries = asked(a)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"written in {built:.0f} s: {size / 1e9:.2f} GB\n", flush=True)
    print(
        "| search | candidates | build s | GB | recall@10 | recall@100 | CPU ms | wall ms | peak GiB |\n|"
        + " --- |" * 9
    )
    right, indexes = None, {}
    for name, candidates in (
        ("exact", None),
        ("pooled", 1000),
        ("pooled", 5000),
        ("lance", 200),
        ("lance", 1000),
        ("lance", 5000),
    ):
        if name not in a.engines.split(","):
            continue
        index, made = indexes.get(name), "-"
        if index is None:
            index = indexes[name] = open_index(folder, "lance" if name == "lance" else "exact")
            made = f"{spent(index.build)[2]:.1f}" if name == "lance" else "-"
        wanted = [index.query(tokens=each) for each in queries]
        index.search_all(wanted[:1], top=100, candidates=candidates)
        hits, cpu, wall = spent(
            lambda: [index.search_all([each], top=100, candidates=candidates)[0] for each in wanted]
        )
        rows = [[hit.row for hit in of_query] for of_query in hits]
        right = right or rows
        recalls = [np.mean([len({*x[:k]} & {*y[:k]}) / k for x, y in zip(rows, right)]) for k in (10, 100)]
        size = sum(file.stat().st_size for file in folder.glob(f"{name}/**/*") if file.is_file())
        print(f"| {name} | {candidates or 'all'} | {made} | {size / 1e9:.2f} | {recalls[0]:.3f} | {recalls[1]:.3f} | "
              f"{1e3 * cpu / len(queries):.1f} | {1e3 * wall / len(queries):.1f} | {peak():.2f} |", flush=True)  # fmt: skip


def scorer(a, name, dtype):
    """Return a function of a query, [t, d], that gives the scores or best rows of all items."""
    from filip_jax.features import open_features
    from filip_jax.search.scan import best_rows

    features = open_features(Path(a.folder) / dtype)
    if name == "ours":
        allowed = features.live
        return lambda query: best_rows(features, [query], 10, allowed=allowed)[0]
    tokens = np.empty((len(features), stored_tokens(a), a.dim), np.float32)
    for rows, block, _, _ in features.blocks(4096):
        tokens[rows] = block
    best = lambda scores: np.argsort(-scores, kind="stable")[:10]
    if name == "numpy":
        flat = tokens.reshape(-1, a.dim)
        return lambda query: best((query @ flat.T).reshape(len(query), len(tokens), -1).max(axis=2).sum(axis=0))
    import maxsim_cpu

    return lambda query: best(np.asarray(maxsim_cpu.maxsim_scores(query, tokens)))


def child(a):
    name, dtype = a.child.split("/")
    score, queries = scorer(a, name, dtype), asked(a)
    score(queries[0])
    found, cpu, wall = spent(lambda: [score(query).tolist() for query in queries])
    print(json.dumps({"rows": found, "cpu": cpu / len(queries), "wall": wall / len(queries), "peak": peak()}))


def peers(a, folder):
    """Rows for the scorers, each in a process of its own, by turns."""
    for dtype in dict.fromkeys(dtype for _, dtype in forms(a)):
        write(a, folder / dtype, dtype)
    times: dict = {form: [] for form in forms(a)}
    for _ in range(a.rounds):
        for form in forms(a):
            words = [sys.executable, *sys.argv, f"--child={'/'.join(form)}", f"--folder={folder}"]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                times[form].append(done.stderr.strip().split("\n")[-1] or f"ended with {done.returncode}")
            else:
                times[form].append(json.loads(done.stdout.splitlines()[-1]))
    print("\n| scorer | tokens | CPU ms by round | wall ms by round | peak GiB | top 10 as ours |\n|" + " --- |" * 6)
    right = next((each["rows"] for each in times.get(("ours", "float32"), []) if isinstance(each, dict)), None)
    for (name, dtype), found in times.items():
        sound = [each for each in found if isinstance(each, dict)]
        if not sound:
            print(f"| {name} | {dtype} | {found[0][:80]} | | | |")
            continue
        cpu, wall = (", ".join(f"{1e3 * each[key]:.0f}" for each in sound) for key in ("cpu", "wall"))
        alike = np.mean([len({*x} & {*y}) / 10 for x, y in zip(sound[0]["rows"], right or sound[0]["rows"])])
        print(
            f"| {name} | {dtype} | {cpu} | {wall} | {max(each['peak'] for each in sound):.2f} | {alike:.3f} |",
            flush=True,
        )


def scoring(a):
    """The scorer on this device over tokens that lie in its memory: the share of its bandwidth, and of what a sum reaches."""
    import jax
    import jax.numpy as jnp

    from filip_jax.plan.chips import CHIPS
    from filip_jax.search import scan

    kind = jax.devices()[0].device_kind
    rate = next((chip.memory_rate for name, chip in CHIPS.items() if name in kind.lower().replace(" lite", "e")), None)
    memory = f"; its memory gives {rate / 1e9:,.0f} GB/s" if rate else ""
    print(f"{kind}, {a.tokens} x {a.dim}{memory}\n")
    print("| tokens | GB | queries | ms | GB/s | share of the memory's | share of a plain read |\n|" + " --- |" * 7)
    rows = 4096
    blocks = max(1, a.items // rows)
    for dtype in ("float32", "float16", "int8"):
        key, shape = jax.random.key(0), (rows, a.tokens, a.dim)
        data = [
            (127 * jax.random.normal(jax.random.fold_in(key, n), shape, jnp.float16) / 4).astype(dtype)
            for n in range(blocks)
        ]
        scales = jnp.ones(shape[:2], jnp.float32) if dtype == "int8" else None
        size = sum(each.nbytes for each in data)
        read = jax.jit(lambda x: x.astype(jnp.float32).sum())
        plain = timed(lambda: [read(each) for each in data])
        for count in (1, scan.MAX_QUERIES):
            query = jnp.asarray(np.resize(np.stack(asked(a)), (count, 16, a.dim))), jnp.ones((count, 16), bool)
            tile = scan.tile_rows(shape, query[1].size)
            took = timed(lambda: [scan._block(*query, each, scales, None, both=False, tile=tile) for each in data])
            share = f"{size / took / rate:.2f}" if rate else "not known"
            print(
                f"| {dtype} | {size / 1e9:.2f} | {count} | {1e3 * took:.2f} | {size / took / 1e9:.1f} | {share} | "
                f"{plain / took:.2f} |",
                flush=True,
            )


def timed(action):
    """Return the least seconds of three runs, the first left out."""
    import jax

    found = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(action())
        found.append(time.perf_counter() - began)
    return min(found[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=49)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--dtype", default="float16", choices=("float32", "float16", "int8"))
    parser.add_argument("--reduce", default="", help="a reduction that is recorded, as select:0.25")
    parser.add_argument(
        "--engines", default="exact,pooled,lance", help="of these; with the first the others are compared"
    )
    parser.add_argument("--peers", default=",".join(PEERS), help="scorers that are compared; none is none")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", help="where the features lie meanwhile (default: a temporary folder)")
    parser.add_argument("--scoring", action="store_true", help="only the scorer, on this device")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    report.add_output(parser)
    a = parser.parse_args()
    if a.child:
        return child(a)
    with (
        report.recorded(a.output, "lancedb", "maxsim-cpu", "pyarrow"),
        tempfile.TemporaryDirectory(dir=a.folder) as folder,
    ):
        if a.scoring:
            return scoring(a)
        plan(a, folder)
        if a.engines != "none":
            engines(a, Path(folder) / "index")
        if a.peers != "none":
            peers(a, Path(folder))


if __name__ == "__main__":
    main()
