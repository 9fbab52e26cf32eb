"""Many tars: how long a source of 40,000 shards with 10,000 records each takes to open, its memory, its reads.

    python benchmarks/shards.py                               # 400 million records; 100 MB of data, 80,000 links
    python benchmarks/shards.py --shards=400 --records=1000

One tar is written and indexed for real; all shards are hard links to it and to its table. So opening,
memory and system calls are those of the whole set, but reads come from the operating system's cache:
the rate is what the index and the tars' reading cost, not what a disk does.
"""

import argparse
import io
import json
import os
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import report
from PIL import Image


def write_tar(path: Path, records: int) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 20).save(buffer, "JPEG", quality=50)
    members = {"jpg": buffer.getvalue(), "txt": b"a grey picture of noise", "json": json.dumps({"width": 64}).encode()}
    with tarfile.open(path, "w") as tar:
        for n in range(records):
            for ending, data in members.items():
                info = tarfile.TarInfo(f"{n:09d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def make(folder: Path, shards: int, records: int) -> None:
    """The tars and their index, as `filip data index` would leave them."""
    from filip_jax import storage
    from filip_jax.data import tar_index, tar_store

    index = folder / ".filip_index"
    index.mkdir(parents=True)
    first = folder / "00000.tar"
    write_tar(first, records)
    (found,) = storage.find(str(first), (".tar",), "path")
    shard, table = tar_index.index_shard(found, first.name)
    known = {}
    for n in range(shards):
        name = f"{n:05d}.tar"
        known[name] = replace(shard, name=name)
        place = Path(tar_store.table_path(str(index), known[name]))
        if n == 0:
            place.write_bytes(table)
            original = place
        else:
            os.link(first, folder / name)
            os.link(original, place)
    content = {"version": tar_store.VERSION, "shards": [asdict(known[name]) for name in sorted(known)]}
    (index / tar_store.FILE).write_text(json.dumps(content))


def measure(folder: Path, reads: int) -> None:
    """In a process of its own: opening, memory and reads, as table rows."""
    from filip_jax.data.order import Order, Part
    from filip_jax.data.sources import make_source

    before = resident()
    started = time.perf_counter()
    source = make_source(dict(name="webdataset", path=str(folder)))
    row("open", f"{time.perf_counter() - started:.1f} s")
    row("records", f"{len(source):,} in {len(source.shard_sizes):,} shards")
    row("memory, of it before opening", f"{resident():.0f} MiB, {before:.0f} MiB")
    parts = [Part("source", source.shard_sizes, 1.0)]
    for shuffle in ("global", "block"):
        order = Order(parts, seed=0, shuffle=shuffle, block_size=65_536)
        started = time.perf_counter()
        order.visit(0)
        row(f"{shuffle}: first visit of a pass", f"{time.perf_counter() - started:.2f} s")
        visits, rate = timed(order.visit, range(reads))
        row(f"{shuffle}: visits", f"{rate:,.0f}/s")
        indices = [visit.index for visit in visits]
        _, rate = timed(source.where, indices)
        row(f"{shuffle}: key and shard of a record", f"{rate:,.0f}/s")
        _, rate = timed(source.__getitem__, indices)
        row(f"{shuffle}: image and caption of a record", f"{rate:,.0f}/s")
    row(
        "memory at the end, most",
        f"{resident():.0f} MiB, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB",
    )


def timed(call, arguments) -> tuple[list, float]:
    """(results, calls a second)."""
    started = time.perf_counter()
    results = [call(argument) for argument in arguments]
    return results, len(results) / (time.perf_counter() - started)


def resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def row(what: str, value: str) -> None:
    print(f"| {what:<36} | {value:<32} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=40_000)
    parser.add_argument("--records", type=int, default=10_000, help="of each shard")
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="of the shards, if not a temporary one")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    report.add_output(parser)
    arguments = parser.parse_args()
    if min(arguments.shards, arguments.records, arguments.reads) < 1:
        parser.error("--shards, --records and --reads must be at least 1")
    if arguments.measure:
        return measure(arguments.folder, arguments.reads)
    random.seed(0)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, report.recorded(arguments.output):
        data = Path(folder) / "data"
        make(data, arguments.shards, arguments.records)
        row("what", "measured")
        row("-" * 36, "-" * 32)
        command = [sys.executable, __file__, "--measure", f"--folder={data}", f"--reads={arguments.reads}"]
        print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="")


if __name__ == "__main__":
    main()
