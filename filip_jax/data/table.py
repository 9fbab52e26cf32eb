"""Lists of images with their captions: JSON lines, CSV and TSV."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from filip_jax import folders, storage
from filip_jax.data.listed import read_listed
from filip_jax.data.record import HEAD_BYTES, IMAGE_BYTES, METADATA_BYTES, BadRecord, Caption, Record, is_caption
from filip_jax.errors import UserError
from filip_jax.files import read_json, replacing

SUFFIXES = (".jsonl", ".csv", ".tsv")
ROWS = 1 << 16  # of a batch


class Table:
    """The rows of list files: .jsonl, one JSON object a line; .csv and .tsv with a header.

    A list is read once; what is needed of it is then kept as Arrow batches that processes map into memory.

    Args:
        path: a file, a folder, a pattern or braces.
        image: the column with the image's path, from the folder `images` or absolute; local, gs:// or s3://.
        caption_keys: columns; in JSON lines each holds a text or a list of texts.
        key: the column that names a row; "" takes the image's path.
        images: the folder that paths start from; "" is the list's own.
        index: a local folder for the batches; "" is .filip_index beside the list.

    Raises:
        UserError: no such file or column, or an index that can not be written.
    """

    def __init__(
        self, *, path: str, image: str = "image", caption_keys: Sequence[str] = ("caption",), key: str = "",
        images: str = "", index: str = "",
    ):  # fmt: skip
        found = storage.find(path, SUFFIXES, "path")
        self.image, self.caption_keys, self.key = image, tuple(caption_keys), key
        self.files = [file.path for file in found]
        self.folders = [images or storage.folder_of(file) for file in self.files]
        options = [self.image, self.key, *self.caption_keys]
        place = "\n".join([*(f"{file.path} {file.size} {file.stamp}" for file in found), *options])
        folder = index or storage.join(storage.common_folder(self.files), ".filip_index")
        self.stem = storage.join(folder, f"table.{hashlib.sha256(place.encode()).hexdigest()[:16]}")
        if not storage.exists(f"{self.stem}.json"):
            folders.local_folder(folder, f"path={path!r}")
            self._make()
        facts = read_json(Path(f"{self.stem}.json"))
        if not {"identity", "sizes", "columns"} <= set(facts):
            raise UserError(f"{self.stem}.json is damaged: remove it, it is then made again")
        self.identity = facts["identity"]
        self.shard_sizes = np.array(facts["sizes"], np.int64)
        self.ends = np.cumsum(self.shard_sizes)
        self.seen = f"{len(found)} lists with the columns {', '.join(facts['columns'])}"
        missing = {image, *caption_keys, *([key] if key else [])} - set(facts["columns"])
        if not len(self):
            raise UserError(f"path={path!r}: {len(found)} lists without a row")
        if missing:
            raise UserError(f"path={path!r}: there is no column {sorted(missing)[0]!r}; {self.seen}")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Record:
        data = self._read(index, IMAGE_BYTES + 1)
        if len(data) > IMAGE_BYTES:
            raise BadRecord(f"an image of more than {IMAGE_BYTES} bytes")
        shard, key = self.where(index)
        return Record(key, data, self.captions(index), shard=shard)

    def where(self, index: int) -> tuple[str, str]:
        _, key, image, _ = self._row(index)
        file = self._file(index)
        row = index - int(self.ends[file] - self.shard_sizes[file]) + 1
        return storage.name_of(self.files[file]), key or image or f"row {row}"

    def captions(self, index: int) -> tuple[Caption, ...]:
        problem, _, _, texts = self._row(index)
        if problem:
            raise BadRecord(problem)
        pairs = zip(self.caption_keys, texts)
        return tuple(Caption(text, key) for key, of_key in pairs for text in of_key)

    def image_head(self, index: int) -> bytes:
        """The first bytes of the encoded image."""
        return self._read(index, HEAD_BYTES)

    def _read(self, index: int, most: int) -> bytes:
        """The first bytes of a row's image."""
        problem, _, image, _ = self._row(index)
        if problem or not image:
            raise BadRecord(problem or f"no {self.image}")
        return read_listed(self.folders[self._file(index)], image, most)

    def _file(self, index: int) -> int:
        return int(np.searchsorted(self.ends, index, side="right"))

    def _row(self, index: int) -> tuple[str, str, str, list[list[str]]]:
        batch, place = divmod(index, ROWS)
        problem, key, image, *texts = (column.chunk(batch)[place].as_py() for column in self._table.columns)
        return problem, key, image, texts

    @cached_property
    def _table(self) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(f"{self.stem}.arrow")).read_all()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "_table"}

    def _make(self) -> None:
        texts = [(f"text {n}", pa.list_(pa.string())) for n in range(len(self.caption_keys))]
        schema = pa.schema([("problem", pa.string()), ("key", pa.string()), ("image", pa.string()), *texts])
        sizes, columns, waiting, digest = (
            [],
            set(),
            [],
            hashlib.sha256(f"{self.image} {self.key} {self.caption_keys}".encode()),
        )
        beside = replacing(Path(f"{self.stem}.arrow"))
        with beside as new, pa.OSFile(str(new), "wb") as file, pa.ipc.new_file(file, schema) as out:
            for path in self.files:
                count = 0
                for count, fields in enumerate(_rows(path), 1):
                    columns |= set(fields or ())
                    waiting.append(self._columns(fields))
                    digest.update(repr(waiting[-1]).encode("utf-8", "surrogatepass"))
                    if len(waiting) == ROWS:
                        out.write_batch(pa.record_batch([*map(list, zip(*waiting))], schema=schema))
                        waiting = []
                sizes.append(count)
            if waiting:
                out.write_batch(pa.record_batch([*map(list, zip(*waiting))], schema=schema))
        facts = {"sizes": sizes, "columns": sorted(map(str, columns)), "identity": digest.hexdigest()}
        storage.write(f"{self.stem}.json", json.dumps(facts).encode())

    def _columns(self, fields: dict | None) -> tuple:
        """A row of the table; one that can not be used says why in its first column."""
        if fields is None:
            return ("a row that can not be read", "", "", *([] for _ in self.caption_keys))
        image, key = fields.get(self.image), fields.get(self.key) if self.key else ""
        texts = [_texts(fields.get(name)) for name in self.caption_keys]
        problem = "" if isinstance(image, str) and image else f"no {self.image}"
        return (
            problem,
            _clean("" if key is None else str(key)),
            _clean(image) if isinstance(image, str) else "",
            *texts,
        )


def _texts(value) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [_clean(text.strip()) for text in values if is_caption(text)]


def _clean(text: str) -> str:
    """Without lone surrogates, which JSON can bring."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _rows(path: str) -> Iterator[dict | None]:
    """The rows of a list, None for one that can not be read."""
    return _json_rows(path) if path.endswith(".jsonl") else _csv_rows(path)


def _json_rows(path: str) -> Iterator[dict | None]:
    with storage.open_stream(path) as stream:
        for line in storage.lines(stream, METADATA_BYTES):
            try:
                fields = json.loads(line) if line else None
            except (ValueError, RecursionError):
                fields = None
            yield fields if isinstance(fields, dict) else None


def _csv_rows(path: str) -> Iterator[dict | None]:
    csv.field_size_limit(METADATA_BYTES)
    delimiter = "\t" if path.endswith(".tsv") else ","
    with storage.open_stream(path) as stream:
        lines = io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="")
        rows = csv.DictReader(lines, delimiter=delimiter)
        while True:
            try:
                fields = next(rows)
            except StopIteration:
                return
            except csv.Error:
                yield None
                continue
            fields.pop(None, None)  # what stands behind the last column
            yield fields
