"""Captions made elsewhere, joined to records by key: translations, synthetic and long captions.

The side file is JSON lines, CSV, TSV or parquet with the columns key, origin and caption, one row per text; or with any
column of keys, where the other columns hold captions, as DreamLIP publishes them: `Image Path,raw_caption,longSV_captions,…`.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from filip_jax import folders, storage
from filip_jax.data.column_types import is_text, plain
from filip_jax.data.content import content_hashes
from filip_jax.data.index_folder import are_texts, index_folder, may_write, read_facts
from filip_jax.data.mapped import MappedTable, map_array
from filip_jax.data.record import CAPTION_BYTES, BadRecord, Caption, is_caption
from filip_jax.data.row_groups import read_batches
from filip_jax.data.rows import read_rows
from filip_jax.data.values import texts_of, unicode_of
from filip_jax.errors import UserError, one_line
from filip_jax.files import replacing
from filip_jax.small_files import is_text as is_one_text

COLUMNS = ("key", "origin", "caption")
SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
ROWS = 1 << 16  # of a batch
ENDINGS = (".jsonl", ".csv", ".tsv", ".jsonl.gz", ".csv.gz", ".tsv.gz", ".parquet")
SHOWN = 5  # bad rows of a message


class SideCaptions:
    """The texts of a side file by key.

    The first time the file is read once; what is then written beside it (or into `index`) is mapped
    into memory, not loaded.

    Args:
        path: a file of one of `ENDINGS`.
        index: folder for the index; "" is the folder .filip_index beside the file. Local.
        key: the column with the keys, where each other column of texts, or of lists of texts, holds captions of its name;
            rows that cannot be read are left out, and a warning counts them. "" for the columns key, origin and caption.

    Attributes:
        origins: of the file's texts.

    Raises:
        UserError: no such file or column, a line that has not the three texts, or more bad rows than good ones.
    """

    def __init__(self, path: str, index: str = "", key: str = ""):
        found = storage.find(path, ENDINGS, "side_captions")
        if len(found) != 1:
            raise UserError(f"side_captions={path!r} names {len(found)} files; give one")
        path = found[0].path
        named = index or storage.join(storage.folder_of(path), ".filip_index")
        if may_write() and (storage.is_remote(named) or not os.path.isdir(named)):
            folders.local_folder(named, f"side_captions={path!r}")
        (content,) = content_hashes(found, named)
        of = f"{storage.name_of(path)} {content}" + (f" {key}" if key else "")
        name = hashlib.sha256(of.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        folder = index_folder(named, lambda folder: storage.exists(storage.join(folder, f"captions.{name}.json")))
        self.stem = storage.join(folder, f"captions.{name}")
        if not storage.exists(f"{self.stem}.json"):
            folders.local_folder(folder, f"side_captions={path!r}")
            self._make(path, key)
        facts = read_facts(f"{self.stem}.json", origins=are_texts, sha256=is_one_text)
        self.origins, self.identity = tuple(facts["origins"]), facts["sha256"]

    @property
    def some_key(self) -> str:
        """One of the keys, for messages."""
        return self._row(0)[0] if len(self._index[2]) else ""

    def of(self, key: str) -> tuple[Caption, ...]:
        """The texts of a record, in the order of the file."""
        hashes, rows, _ = self._index
        first = np.searchsorted(hashes, _hash(key), side="left")
        last = np.searchsorted(hashes, _hash(key), side="right")
        found = []
        for row in sorted(rows[first:last].tolist()):
            of, origin, text = self._row(row)
            if of == key:
                found.append(Caption(text, origin))
        return tuple(found)

    def _make(self, path: str, key: str) -> None:
        """Writes the texts as Arrow batches, the sorted hashes of their keys, and which row each has."""
        hashes, origins, digest = [], set(), hashlib.sha256()
        beside = replacing(Path(f"{self.stem}.arrow"))
        with beside as new, pa.OSFile(str(new), "wb") as file, pa.ipc.new_file(file, SCHEMA) as out:
            for batch in _batches(_wide_rows(path, key) if key else _rows(path)):
                out.write_batch(batch)
                digest.update(repr(batch.to_pydict()).encode())
                keys, of_batch = batch.column(0).to_pylist(), batch.column(1).unique().to_pylist()
                hashes.append(np.array([_hash(each) for each in keys], np.uint64))
                origins |= set(of_batch)
        found = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
        order = np.argsort(found, kind="stable")
        for name, array in {"rows": order, "hashes": found[order]}.items():
            with replacing(Path(f"{self.stem}.{name}.npy")) as new, new.open("wb") as file:
                np.save(file, array)
        storage.write(
            f"{self.stem}.json", json.dumps({"origins": sorted(origins), "sha256": digest.hexdigest()}).encode()
        )

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, MappedTable]:
        """(sorted hashes of keys, the row of each, the rows), mapped from their files."""
        try:
            hashes = map_array(f"{self.stem}.hashes.npy", np.uint64)
            rows = map_array(f"{self.stem}.rows.npy", np.int64)
            table = MappedTable(f"{self.stem}.arrow", SCHEMA, ROWS)
            if len({len(hashes), len(rows), len(table)}) > 1:
                raise ValueError("its files do not belong together")
            if len(rows) and not 0 <= rows.min() <= rows.max() < len(rows):
                raise ValueError("it names rows that are not there")
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error
        return hashes, rows, table

    def _row(self, number: int) -> list[str]:
        """The key, origin and text of a row."""
        try:
            return self._index[2].row(number)
        except ValueError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{self.stem}.* is damaged ({error}): remove it, it is then made again")

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def _hash(key: str) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest(), np.uint64)[0]


Text = tuple[str, str, str]  # key, origin and caption


def _batches(texts: Iterator[Text]) -> Iterator[pa.RecordBatch]:
    """Rows of the index, ROWS at a time: only the last batch is shorter."""
    rows: list[Text] = []
    for row in texts:
        rows.append(row)
        if len(rows) == ROWS:
            yield _batch(rows)
            rows = []
    if rows:
        yield _batch(rows)


def _batch(rows: list[Text]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(column) for column in zip(*rows)], schema=SCHEMA)


def _rows(path: str) -> Iterator[Text]:
    """The texts of a file with the columns key, origin and caption."""
    if path.lower().endswith(".parquet"):
        for fields in _parquet_rows(path, ""):
            yield _checked(tuple(fields.values()), path)
        return
    for row in read_rows(path):
        missing = [f"no field {name!r}" for name in COLUMNS if name not in row.fields]
        if problem := row.problem or ", ".join(missing):
            wide = f"; {_WIDE}" if missing and row.fields else ""
            raise UserError(f"{path}, {row.place}: {problem}; a line is {_EXAMPLE}{wide}")
        yield _checked(tuple(row.fields[name] for name in COLUMNS), f"{path}, {row.place}")


def _wide_rows(path: str, key: str) -> Iterator[Text]:
    """The texts of a file with a column of keys and columns of captions, row by row in the order of the columns."""
    count, bad, some = 0, 0, list[str]()
    is_parquet = path.lower().endswith(".parquet")
    rows = (
        ((f"row {n}", each, "") for n, each in enumerate(_parquet_rows(path, key), 1))
        if is_parquet
        else read_rows(path)
    )
    for count, (place, fields, problem) in enumerate(rows, 1):
        if count == 1 and fields and key not in fields:
            raise UserError(
                f"{path}, {place}: there is no column side_key={key!r}; it has {one_line(', '.join(fields))}"
            )
        try:
            if problem:
                raise BadRecord(problem)
            yield from _texts_of_row(fields, key)
        except BadRecord as error:
            bad += 1
            some += [f"{place}: {error}"] if len(some) < SHOWN else []
    if bad:
        text = f"{path}: {bad} of {count} rows cannot be read: {'; '.join(some)}"
        if 2 * bad > count:
            raise UserError(text)
        warnings.warn(one_line(f"{text}; their captions are left out"), stacklevel=8)


def _texts_of_row(fields: Mapping[str, Any], key: str) -> list[Text]:
    """The texts of a row; numbers, and columns without a name, hold none."""
    of = fields.get(key)
    if isinstance(of, bool) or not isinstance(of, str | int) or of == "":
        raise BadRecord(f"no key in {key!r}")
    of = unicode_of(str(of))
    columns = {name: x for name, x in fields.items() if name and name != key and isinstance(x, str | list | tuple)}
    return [(of, unicode_of(name), text) for name, value in columns.items() for text in texts_of(value) if text]


def _parquet_rows(path: str, key: str) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file by column: of `COLUMNS`, or where there is a column of keys of all that hold texts."""
    with storage.open_stream(path) as stream:
        try:
            file = pq.ParquetFile(stream)
            schema = file.schema_arrow
            names = [field.name for field in schema if is_text(plain(field.type))] if key else list(COLUMNS)
            needed = (key,) if key else COLUMNS
            wrong = [
                name for name in dict.fromkeys((*needed, *names)) if schema.names.count(name) != 1 or name not in names
            ]
            if wrong:
                count = "two columns" if schema.names.count(wrong[0]) > 1 else "no column"
                more = " of texts" if key else f"; {_WIDE}"
                raise UserError(f"{path} has {count} {wrong[0]}; it needs {', '.join(needed)}{more}")
            for group in range(file.num_row_groups):
                for batch in read_batches(file, group, names):
                    for row in zip(*(batch.column(name).to_pylist() for name in names)):
                        yield dict(zip(names, row))
        except BadRecord as error:
            raise UserError(f"{path}: {error}") from error
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} is no parquet file: {error}") from error


_EXAMPLE = '{"key": "000012", "origin": "german", "caption": "ein Hund"}'
_WIDE = "name the column of keys where other columns hold the captions: side_key=NAME"


def _checked(row: tuple, place: str) -> Text:
    if not all(isinstance(field, str) for field in row):
        raise UserError(f"{place}: {', '.join(COLUMNS)} must be texts, as in {_EXAMPLE}")
    try:
        row = tuple(map(unicode_of, row))
    except BadRecord as error:
        raise UserError(f"{place}: {error}") from error
    if not is_caption(row[2]):
        raise UserError(f"{place}: a caption of more than {CAPTION_BYTES} bytes")
    return row
