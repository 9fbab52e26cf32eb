"""Columns and chunks that unpack to far more than their file: refused by what they say, or before they are whole."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from pairs import picture

from filip_jax.data import array_record, arrow, columnar, parquet, riegeli, row_groups, scalars
from filip_jax.data.record import METADATA_BYTES, BadRecord
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


def write_arrow(path, batches, kind, options):
    new = getattr(pa.ipc, f"new_{kind}")
    with (
        pa.OSFile(str(path), "wb") as file,
        new(file, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as out,
    ):
        for batch in batches:
            out.write_batch(batch)
    return dict(name="arrow", path=str(path))


PLAIN, PACKED = pa.record_batch({"image": [b"x"] * 9, "caption": ["ab" * 900] * 9}), {"compression": "zstd"}
REPEATED = pa.record_batch(
    {"image": [b"x"] * 9, "caption": word(9 * 1800, 9).cast(pa.dictionary(pa.int32(), pa.string()))}
)


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("batch", [PLAIN, REPEATED], ids=["texts", "a dictionary"])
@pytest.mark.parametrize("options, most, is_read", [
    (PACKED, 16_000, False), (PACKED, 50_000, True), ({"compression": "lz4"}, 16_000, False), ({}, 16_000, True),
], ids=["too large", "large", "lz4", "not packed"])  # fmt: skip
def test_a_batch_of_arrow_is_not_unpacked_beyond_the_limit(tmp_path, monkeypatch, kind, batch, options, most, is_read):
    """Each is known by what it says before it is unpacked; many that are small enough are read."""
    monkeypatch.setattr(arrow, "MAX_COLUMN_BYTES", most)
    section = write_arrow(tmp_path / "a.arrow", [batch] * 9, kind, options)
    before = pa.total_allocated_bytes()
    if is_read:
        assert len(make_source(section)[80].captions) == 1
        return
    with pytest.raises(
        UserError, match=f"a.arrow has a batch of 1.... bytes unpacked; at most {most} are read: write smaller"
    ):
        make_source(section)
    assert pa.total_allocated_bytes() == before


@pytest.mark.parametrize("size", [1 << 33, 1 << 62])
def test_a_buffer_of_arrow_that_says_that_it_is_larger_is_not_read(tmp_path, size):
    section = write_arrow(tmp_path / "a.arrow", [PLAIN], "file", PACKED)
    data = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(data.replace((9 * 1800).to_bytes(8, "little"), size.to_bytes(8, "little")))
    with pytest.raises(UserError, match=f"a batch of {str(size)[:6]}.* bytes unpacked"):
        make_source(section)


views = pa.ListViewArray.from_arrays(
    pa.array([0] * 3, pa.int32()), pa.array([5000] * 3, pa.int32()), pa.array(["ab"] * 5000)
)


@pytest.mark.parametrize("size", [4, 8])
def test_a_footer_of_arrow_that_leads_nowhere_is_one_line(tmp_path, size):
    """Each word of the footer, those of the batch's block among them, is set to what no file has."""
    section = write_arrow(tmp_path / "a.arrow", [PLAIN], "file", PACKED)
    good = (tmp_path / "a.arrow").read_bytes()
    end = len(good) - 10  # the footer's length and the magic
    start = end - int.from_bytes(good[end : end + 4], "little")
    refused = 0
    for first in range(start, end - size + 1, size):
        for value in (-8, len(good), 1 << (8 * size - 2)):
            data = bytearray(good)
            data[first : first + size] = value.to_bytes(size, "little", signed=True)
            (tmp_path / "a.arrow").write_bytes(data)
            try:
                make_source(section)
            except UserError as error:
                refused += "\n" not in str(error)
    assert refused


@pytest.mark.parametrize("column", [
    views, pa.DictionaryArray.from_arrays(pa.array([0] * 3, pa.int32()), pa.array([["ab"] * 5000])),
    word(1 << 20, 3).cast(pa.dictionary(pa.int32(), pa.string())), pa.array([{"raw": ["a" * 1000] * 999}] * 3),
], ids=["list-views", "a dictionary of lists", "a dictionary of texts", "lists"])  # fmt: skip
def test_a_row_is_not_converted_beyond_its_limit(tmp_path, monkeypatch, column):
    """A few bytes of a file can stand for the same large value in every row."""
    section = write_arrow(tmp_path / "a.arrow", [pa.record_batch({"image": [b"x"] * 3, "caption": column})], "file", {})
    source, calls, real = make_source(section), [], scalars._value_of
    monkeypatch.setattr(scalars, "_value_of", lambda *given: calls.append(0) or real(*given))
    for n in range(3):
        with pytest.raises(BadRecord, match="column caption: a value of more than 1048576 bytes"):
            source.captions(n)
    assert len(calls) <= 3 * (METADATA_BYTES // scalars.VALUE_BYTES + 3)


def test_all_columns_of_a_large_piece_are_kept(tmp_path, monkeypatch):
    """A record needs each of them: to drop one for another would read the whole piece for every record."""
    table = pa.table({"image": [bytes([n]) * 1000 for n in range(30)], "caption": [f"{n}" for n in range(30)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, use_dictionary=False)
    source, reads, real = make_source(dict(name="parquet", path=str(tmp_path))), [], parquet.Parquet._read
    monkeypatch.setattr(columnar, "KEPT", 100)
    monkeypatch.setattr(parquet.Parquet, "_read", lambda self, *given: reads.append(given[1:]) or real(self, *given))
    assert [source[n].caption for n in range(30)] == [f"{n}" for n in range(30)]
    assert sorted(reads) == [(n, name) for n in range(3) for name in ("caption", "image")]
    assert len(source._columns) == 2 and source._bytes == sum(column.nbytes for column in source._columns.values())


def test_the_latest_footers_of_parquet_are_kept(tmp_path, monkeypatch):
    for n in range(5):
        pq.write_table(
            pa.table({"image": [b"x"] * 4, "caption": [f"{n}"] * 4}), tmp_path / f"{n}.parquet", row_group_size=1
        )
    source, read, real = make_source(dict(name="parquet", path=str(tmp_path))), [], pq.ParquetFile
    monkeypatch.setattr(
        pq, "ParquetFile", lambda file, metadata=None: read.append(not metadata) or real(file, metadata=metadata)
    )
    assert [source[n].caption for n in range(20)] == [str(n // 4) for n in range(20)]
    assert len(read) == 40 and sum(read) == 5 == len(source._footers)
    monkeypatch.setattr(parquet, "MAX_FOOTERS", 1)
    source = make_source(dict(name="parquet", path=str(tmp_path)))
    assert source[0].caption == "0" and source[19].caption == "4" and len(source._footers) == 1


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
    assert len(source._ahead[1]) == 1 + 2  # twice as many each time, until they are more than AHEAD_BYTES
