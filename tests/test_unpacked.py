"""Columns and chunks that unpack to far more than their file: refused by what they say, or before they are whole."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from pairs import picture

from filip_jax.data import array_record, riegeli, row_groups
from filip_jax.data.record import BadRecord
from filip_jax.data.row_groups import read_batches
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError

MOST = 1 << 16


def word(size, rows):
    """One text so many times, which a file holds once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([b"a" * size]))


@pytest.mark.parametrize("column, options, batches", [
    (word(1000, 10_000), {}, True), (word(1000, 10_000), {"compression": "zstd"}, True),
    (pa.array([bytes(1000)] * 1000), {"use_dictionary": False, "compression": "zstd"}, False),
    (pa.array([{"bytes": bytes(1000), "path": ""}] * 1000), {"use_dictionary": False}, False),
], ids=["a dictionary", "a packed dictionary", "packed zeros", "structs"])  # fmt: skip
def test_a_column_is_not_unpacked_beyond_its_limit(tmp_path, monkeypatch, column, options, batches):
    """Nor is any batch of it; what the footer says is too large is not touched at all."""
    monkeypatch.setattr(row_groups, "MAX_COLUMN_BYTES", MOST)
    sizes, real = [], pq.ParquetFile.iter_batches

    def measured(*given, **named):
        for batch in real(*given, **named):
            sizes.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", measured)
    pq.write_table(pa.table({"image": column, "caption": ["a dog"] * len(column)}), tmp_path / "a.parquet", **options)
    source = make_source(dict(name="parquet", path=str(tmp_path)))
    with pytest.raises(BadRecord, match=f"image of row group 0: .* at most {MOST} are read: write smaller row groups"):
        source[0]
    assert bool(sizes) == batches and sum(sizes) <= 3 * MOST


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_batches_are_the_row_group(monkeypatch, rows):
    table = pa.table(
        {"a": [f"{n}" for n in range(rows)], "a.b": [[n] for n in range(rows)], "c": [{"d": n} for n in range(rows)]}
    )
    file = io.BytesIO()
    pq.write_table(table, file)
    monkeypatch.setattr(row_groups, "MAX_COLUMN_BYTES", 1 << 15)
    for names in (["a"], ["c"], ["c", "a"]):
        found = pa.Table.from_batches(read_batches(pq.ParquetFile(file), 0, names))
        assert found.select(names).to_pylist() == table.select(names).to_pylist()


def test_side_captions_are_not_unpacked_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(row_groups, "MAX_COLUMN_BYTES", MOST)
    text = word(1000, 10_000).cast(pa.string())
    pq.write_table(pa.table({"key": text, "origin": text, "caption": text}), tmp_path / "side.parquet")
    (tmp_path / "a.png").write_bytes(picture(1)), (tmp_path / "a.txt").write_text("a dog")
    with pytest.raises(UserError, match="side.parquet: key, origin, caption of row group 0: .* are read"):
        make_source(dict(name="folder", path=str(tmp_path), side_captions=str(tmp_path / "side.parquet")))


def records(path, sizes, options):
    writer = ArrayRecordWriter(str(path), options)
    for size in sizes:
        writer.write(bytes(size))
    writer.close()


def test_a_chunk_that_says_that_it_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(riegeli, "MAX_CHUNK_BYTES", MOST)
    records(tmp_path / "a.array_record", [MOST // 8] * 7, "group_size:1,zstd")
    assert len(make_source(dict(name="array_record", path=str(tmp_path)))) == 7
    records(tmp_path / "b.array_record", [MOST // 4] * 7, "group_size:7,zstd")
    assert (tmp_path / "b.array_record").stat().st_size < 3 * MOST
    with pytest.raises(UserError, match=f"b.array_record has a chunk of .* at most {MOST} are read: .* group_size:1"):
        make_source(dict(name="array_record", path=str(tmp_path)))


def test_of_large_records_few_are_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(array_record, "AHEAD_BYTES", MOST)
    records(tmp_path / "a.array_record", [MOST] * 400, "group_size:1,zstd")
    source = make_source(dict(name="array_record", path=str(tmp_path)))
    source._read(0), source._read(1)
    assert len(source._ahead[1]) == array_record.PIECE
