"""Lists of images with their captions: JSON lines, CSV and TSV."""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from filip_jax import folders, storage
from filip_jax.data.content import content_hashes
from filip_jax.data.identity import identify
from filip_jax.data.index_folder import are_counts, are_texts, index_folder, may_write, read_facts
from filip_jax.data.list_advice import FIELDS, of_bad_rows, of_columns, of_fields
from filip_jax.data.listed import FROM, read_listed
from filip_jax.data.mapped import MappedTable
from filip_jax.data.record import HEAD_BYTES, IMAGE_BYTES, BadRecord, Caption, Record
from filip_jax.data.rows import read_rows
from filip_jax.data.separated import Row, separator_of
from filip_jax.data.values import embedded_image, field_of, image_of, texts_of, unicode_of
from filip_jax.errors import UserError, one_line
from filip_jax.files import replacing
from filip_jax.plain import counted
from filip_jax.small_files import is_text, is_whole
from filip_jax.walk import say_left_out

SUFFIXES = (".jsonl", ".csv", ".tsv", ".jsonl.gz", ".csv.gz", ".tsv.gz")
ROWS = 1 << 16  # of a batch
RULES = "rows 5"  # raised where the same list gives other rows or another identity
UNREADABLE = "a row that cannot be read: "
FIRST_TEXT = 3  # of the columns of a batch, behind the problem, the key and the image
SHOWN = 5  # bad rows of a message
MAX_SHOWN = 40  # columns of a message


class Table:
    """The rows of list files: .jsonl, one JSON object a line; .csv and .tsv with a header; also packed by gzip.

    A list is read once; what is needed of it is then kept as Arrow batches that processes map into memory. A row that
    cannot be read, because it has other fields than the header or is not UTF-8, is a bad record, and a warning counts them.

    Args:
        path: a file, a folder, a pattern or braces.
        image: the column with the image's path, from the folder `images` or absolute; local, gs:// or s3://. Or with the
            image itself, as a data URI or in base64.
        caption_keys: columns; in JSON lines each holds a text or a list of texts, and a.b is the field b in a.
        key: the column that names a row; "" takes the image's path.
        images: the folder that paths start from; "" is the list's own.
        index: a local folder for the batches; "" is .filip_index beside the list.
        separator: between the columns of a CSV or TSV: a character, or "tab"; "" takes what the header has: a tab, else the
            most frequent of , ; |.
        columns: the names of the columns of a CSV or TSV that has no header; () takes its first line.

    Attributes:
        left_out: {reason: files of the folder that do not count}.

    Raises:
        UserError: no such file or column, lists that cannot be read, or an index that cannot be written.
    """

    reads = SUFFIXES

    def __init__(
        self, *, path: str, image: str = "image", caption_keys: Sequence[str] = ("caption",), key: str = "",
        images: str = "", index: str = "", separator: str = "", columns: Sequence[str] = (),
    ):  # fmt: skip
        self.left_out: Counter[str] = Counter()
        files = storage.find(path, SUFFIXES, "path", self.left_out)
        if not isinstance(columns, list | tuple) or not all(isinstance(name, str) for name in columns):
            raise UserError(f"columns={columns!r} is not a list of names")
        self.path, self.image, self.caption_keys, self.key = path, image, tuple(caption_keys), key
        self.files = [file.path for file in files]
        self.names = storage.names_below(path, self.files)
        self.folders = [images or storage.folder_of(file) for file in self.files]
        self.hint = "" if images else FROM
        self.layout = (separator_of(separator), tuple(columns))
        named = index or storage.join(storage.common_folder(self.files), ".filip_index")
        if may_write() and (storage.is_remote(named) or not os.path.isdir(named)):
            folders.local_folder(named, f"path={path!r}")
        contents = [f"{storage.name_of(file.path)} {sha}" for file, sha in zip(files, content_hashes(files, named))]
        said = "\n".join([RULES, *contents, self.image, self.key, *self.caption_keys, *map(str, self.layout)])
        name = f"table.{hashlib.sha256(said.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"
        folder = index_folder(named, lambda folder: storage.exists(storage.join(folder, f"{name}.json")))
        self.stem = storage.join(folder, name)
        if not storage.exists(f"{self.stem}.json"):
            folders.local_folder(folder, f"path={path!r}")
            self._make()
        facts = read_facts(
            f"{self.stem}.json",
            identity=is_text,
            sizes=partial(are_counts, count=len(self.files)),
            columns=are_texts,
            bad=is_whole,
            some_bad=are_texts,
            unusable=lambda value: isinstance(value, dict) and are_texts([*value.values()]),
        )
        self.identity = facts["identity"]
        self.shard_sizes = np.array(facts["sizes"], np.int64)
        self.ends = np.cumsum(self.shard_sizes)
        some = ", ".join(facts["columns"][:MAX_SHOWN]) + (" …" if len(facts["columns"]) > MAX_SHOWN else "")
        self.seen = f"{counted(len(files), 'list')} with the columns {some}{say_left_out(self.left_out)}"
        self._check(facts)

    def _check(self, facts: dict[str, Any]) -> None:
        """Raises a UserError for lists that cannot be used, and warns of bad rows."""
        columns, count, some = facts["columns"], facts["bad"], "; ".join(map(str, facts["some_bad"]))
        if not len(self):
            raise UserError(f"path={self.path!r}: {counted(len(self.files), 'list')} without a row")
        if 2 * count > len(self):
            raise UserError(
                f"path={self.path!r}: {count} of {len(self)} rows cannot be read: {some}; {of_bad_rows(self.files, some)}"
            )
        wanted = {"image": [self.image], "caption_keys": self.caption_keys, "key": [self.key] if self.key else []}
        absent: dict[str, str] = {}  # of each option the first column that is not there
        for option, name in ((option, name) for option, names in wanted.items() for name in names):
            if name not in columns and name.split(".")[0] not in columns:
                absent.setdefault(option, name)
        if absent:
            names = " and no column ".join(map(repr, absent.values()))
            say = of_columns(absent, self.files, facts["sizes"], columns)
            raise UserError(f"path={self.path!r}: there is no column {names}; {self.seen}; {say}")
        for name, kind in facts["unusable"].items():
            option = "image" if name == self.image else "caption_keys"
            say = of_fields(option, name, kind) or of_columns({option: name}, self.files, facts["sizes"], columns)
            raise UserError(f"path={self.path!r}: the column {name!r} holds {kind} in every row; {say}")
        if count:
            self.seen += f"; {count} rows cannot be read"
            text = f"path={self.path!r}: {count} of {len(self)} rows cannot be read and are bad records: {some}"
            warnings.warn(one_line(text), stacklevel=4)

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
        return self.names[file], key or image or f"row {row}"

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
        embedded = embedded_image(image, most)
        if embedded is not None:
            return embedded[:most]
        return read_listed(self.folders[self._file(index)], image, most, self.hint)

    def _file(self, index: int) -> int:
        return int(np.searchsorted(self.ends, index, side="right"))

    def _row(self, index: int) -> tuple[str, str, str, list[list[str]]]:
        try:
            problem, key, image, *texts = self._table.row(index)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.stem}.arrow is damaged ({error}): remove it and its .json, they are made again"
            ) from error
        return problem, key, image, texts

    @cached_property
    def _table(self) -> MappedTable:
        table = MappedTable(f"{self.stem}.arrow", self._schema(), ROWS)
        if len(table) != len(self):
            raise ValueError("it is not of its .json")
        return table

    def _schema(self) -> pa.Schema:
        texts = [(f"text {n}", pa.list_(pa.string())) for n in range(len(self.caption_keys))]
        return pa.schema([("problem", pa.string()), ("key", pa.string()), ("image", pa.string()), *texts])

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "_table"}

    def _make(self) -> None:
        schema = self._schema()
        rows, captions = hashlib.sha256(), hashlib.sha256()
        sizes, columns, waiting, bad, kinds = [], dict[str, None](), [], 0, _Kinds()
        some_bad: list[str] = []
        beside = replacing(Path(f"{self.stem}.arrow"))
        with beside as new, pa.OSFile(str(new), "wb") as file, pa.ipc.new_file(file, schema) as out:
            for path in self.files:
                count = 0
                for count, row in enumerate(read_rows(path, *self.layout), 1):  # noqa: B007 - the last is kept below
                    columns |= dict.fromkeys(row.fields)
                    waiting.append(self._columns(row, kinds))
                    if waiting[-1][0].startswith(UNREADABLE):
                        bad += 1
                        where = f"{storage.name_of(path)}, {row.place}: {waiting[-1][0].removeprefix(UNREADABLE)}"
                        some_bad += [where] if len(some_bad) < SHOWN else []
                    known = waiting[-1][0] and UNREADABLE, *waiting[-1][1:FIRST_TEXT]  # not in which words
                    rows.update(repr(known).encode("utf-8", "surrogatepass"))
                    captions.update(repr(waiting[-1][FIRST_TEXT:]).encode("utf-8", "surrogatepass"))
                    if len(waiting) == ROWS:
                        out.write_batch(pa.record_batch([*map(list, zip(*waiting))], schema=schema))
                        waiting = []
                sizes.append(count)
            if waiting:
                out.write_batch(pa.record_batch([*map(list, zip(*waiting))], schema=schema))
        identity = identify(
            rows=rows.hexdigest(),
            captions=captions.hexdigest(),
            records=sum(sizes),
            image=self.image,
            key=self.key,
            caption_keys=self.caption_keys,
        )
        facts = {
            "sizes": sizes,
            "columns": list(columns),
            "identity": identity,
            "bad": bad,
            "some_bad": some_bad,
            "unusable": kinds.unusable(),
        }
        storage.write(f"{self.stem}.json", json.dumps(facts).encode())

    def _columns(self, row: Row, kinds: "_Kinds") -> tuple:
        """A row of the table; one that cannot be used says why in its first column."""
        nothing = ("", "", *([] for _ in self.caption_keys))
        if row.problem:
            return (f"{UNREADABLE}{row.problem}", *nothing)
        try:
            key = row.fields.get(self.key) if self.key else None
            value = row.fields.get(self.image)
            image = _path_in(value, self.image)
            kinds.note(self.image, value, bool(image))
            texts = []
            for name in self.caption_keys:
                value = row.fields[name] if name in row.fields else field_of(row.fields, name.split("."))
                texts.append(texts_of(value))
                kinds.note(name, value, any(texts[-1]))
        except BadRecord as error:
            return (f"{UNREADABLE}{error}", *nothing)
        return ("" if image else f"no {self.image}", "" if key is None else unicode_of(str(key)), image, *texts)


class _Kinds:
    """Which columns hold something but never what is wanted of them."""

    def __init__(self):
        self.fit: set[str] = set()
        self.kinds: dict[str, str] = {}

    def note(self, name: str, value: Any, fits: bool) -> None:
        """Notes a value of a column, and whether it could be used."""
        if fits:
            self.fit.add(name)
        elif value not in (None, "", [], {}):
            self.kinds.setdefault(name, _kind(value))

    def unusable(self) -> dict[str, str]:
        return {name: kind for name, kind in self.kinds.items() if name not in self.fit}


def _kind(value: Any) -> str:
    """Of a value in JSON, for people."""
    if isinstance(value, dict):
        return f"objects{FIELDS}{one_line(', '.join(value))[:200]}"
    if isinstance(value, list):
        return f"lists of {_kind(value[0])}" if value else "empty lists"
    return {str: "texts", bool: "truth values", int: "numbers", float: "numbers"}.get(type(value), "nothing")


def _path_in(value: Any, name: str) -> str:
    """The path, or the text, that a row has for its image; "" where it has none."""
    try:
        image = image_of(value, name)
    except BadRecord:
        return ""
    return unicode_of(image) if isinstance(image, str) else ""
