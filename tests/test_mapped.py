"""Files of an index that a disk spoilt or a stranger wrote: one line, never a traceback, a crash or a wait."""

import json
import os
import random
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from filip_jax.data import mapped
from filip_jax.data.kept import SCHEMA, Kept
from filip_jax.data.record import BadRecord
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError

TRIALS = 8  # of each file; a hundred and fifty found no more


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """(files of an index, the source that reads them)."""
    folder = tmp_path_factory.mktemp("mapped")
    for n in range(4):
        Image.new("RGB", (9, 9), (n, n, n)).save(folder / f"{n}.png")
    rows = [{"image": f"{n % 4}.png", "caption": [f"a dog {n} üé中 " * (n + 1), "x"]} for n in range(9)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sides = [{"key": f"{n}.png", "origin": "de", "caption": f"ein Hund {n}"} for n in range(4)]
    (folder / "side.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sides))
    listed = dict(name="jsonl", path=str(folder / "a.jsonl"))
    joined = listed | dict(side_captions=str(folder / "side.jsonl"), caption_keys=("caption", "de"))
    kept = folder / "kept"
    kept.mkdir()
    np.save(kept / "kept.npy", np.array([0, 2, 5]))
    texts = [[0, 0, 5], ["caption"] * 3, ["aa", "bb", "ccc"]]
    with pa.ipc.new_file(str(kept / "captions.arrow"), SCHEMA) as writer:
        writer.write_table(pa.table(texts, schema=SCHEMA))
    report = {"identity": make_source(listed).identity, "source_records": 9}
    (kept / "report.json").write_text(json.dumps(report))
    make_source(joined)
    index = folder / ".filip_index"
    return {
        **{file: joined for file in sorted(index.glob("captions.*")) if file.suffix != ".json"},
        **dict.fromkeys(sorted(index.glob("table.*.arrow")), joined),
        kept / "kept.npy": listed | dict(keep=str(kept)),
        kept / "captions.arrow": listed | dict(keep=str(kept)),
    }


def read_all(section):
    """Reads all records; what is no UserError is raised."""
    try:
        source = make_source(section)
        for n in range(len(source)):
            with suppress(BadRecord):
                assert all(caption.text for caption in source[n].captions)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def test_bits_that_flip(sources):
    draw = random.Random(0)
    for file, section in sources.items():
        good, told = file.read_bytes(), 0
        assert not read_all(section)
        for _ in range(TRIALS):
            data = bytearray(good)
            for place in draw.sample(range(len(data)), draw.choice((1, 2, 8))):
                data[place] = draw.choice((0, 255, data[place] ^ 1 << draw.randrange(8)))
            file.write_bytes(data)
            told += bool(read_all(section))
        file.write_bytes(good)
        assert told > TRIALS // 5, file


def save(path, array):
    """Writes an array under a name that need not end in .npy."""
    with path.open("wb") as file:
        np.save(file, array)


KINDS = {
    "fifo": os.mkfifo,
    "folder": os.mkdir,
    "device": lambda path: os.symlink("/dev/zero", path),
    "empty": lambda path: path.touch(),
    "NULs": lambda path: path.write_bytes(b"\0" * 5000),
    "texts": lambda path: save(path, np.array(["a"])),
    "matrix": lambda path: save(path, np.zeros((2, 3), np.int64)),
    "scalar": lambda path: save(path, np.int64(3)),
    "below and beyond": lambda path: save(path, np.array([-5, 1 << 62])),
    "not ascending": lambda path: save(path, np.array([2, 1, 0])),
    "a larger shape": lambda path: path.write_bytes(
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(127)
        + b"\n"
    ),
    "other columns": lambda path: pa.ipc.new_file(str(path), pa.schema([("a", pa.int64())])).close(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_other_kinds(sources, kind):
    for file, section in sources.items():
        aside = file.with_suffix(".aside")
        file.rename(aside)
        KINDS[kind](file)
        assert read_all(section), file
        file.rmdir() if file.is_dir() else file.unlink()
        aside.rename(file)


def test_batches_of_other_sizes(tmp_path):
    """A row is found by its number: the sizes of the batches are part of the format."""
    schema = pa.schema([("a", pa.string())])
    for sizes, is_one in {
        (2, 2, 1): True,
        (2, 2): True,
        (): True,
        (1, 2): False,
        (2, 3): False,
        (3,): False,
        (2, 0, 1): False,
    }.items():
        with pa.ipc.new_file(str(tmp_path / "a.arrow"), schema) as writer:
            for size in sizes:
                writer.write_batch(pa.record_batch([["x"] * size], schema=schema))
        if is_one:
            assert len(mapped.MappedTable(tmp_path / "a.arrow", schema, rows=2)) == sum(sizes)
        else:
            with pytest.raises(ValueError, match="not of 2 rows"):
                mapped.MappedTable(tmp_path / "a.arrow", schema, rows=2)


@pytest.mark.parametrize("values", [["a", None], [["a"], None], [["a", None]]], ids=str)
def test_gaps(tmp_path, values):
    table = pa.table({"a": values})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match="a value is missing"):
        mapped.MappedTable(tmp_path / "a.arrow", table.schema, rows=2).row(0)


def test_more_records_than_there_are(sources):
    (folder,) = {file.parent for file in sources if file.name == "kept.npy"}
    kept = Kept(str(folder))
    with pytest.raises(UserError, match="names more than the 5 records"):
        kept.check(kept.of, 5)
