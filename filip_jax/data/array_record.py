"""ArrayRecord files: those that `filip data convert` writes, and tf.train.Examples of other tools."""

import os
import warnings
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from filip_jax import storage
from filip_jax.data.examples import Values, features_of, image_advice, say_features
from filip_jax.data.identity import digest, digest_of_files, identify
from filip_jax.data.own_record import MAGIC, decode_record, encode_record
from filip_jax.data.record import IMAGE_BYTES, BadRecord, Caption, Record
from filip_jax.data.riegeli import content_digests
from filip_jax.data.values import texts_of
from filip_jax.errors import UserError
from filip_jax.walk import say_left_out

READER = "readahead_buffer_size:0,max_parallelism:0"
AHEAD = 256  # records …
PIECE = 16  # records that are unpacked at once
READERS = 64
LOOKED_AT = 64  # records
LOCAL = ("_ahead", "_alone", "_latest", "_readers", "_lock", "_turn")  # attributes that each process has of its own
AHEAD_BYTES = 1 << 24  # … and bytes, about
SUFFIXES = (".array_record", ".arrayrecord")


class ArrayRecord:
    """The records of ArrayRecord files.

    Args:
        path: a folder, a pattern or braces: "/data/cc3m", "/data/cc3m-{00000..00063}-of-00064.array_record".
        caption_keys: origins, or features of an Example; empty takes all texts of our own records.
        image: the feature of an Example that holds the encoded image.

    Raises:
        UserError: no such files, or a bucket that the reader of ArrayRecord cannot reach.
    """

    reads = SUFFIXES
    _ahead: tuple[int, Sequence[bytes]]
    _alone: int
    _latest: tuple[int, Any]
    _readers: OrderedDict[int, ArrayRecordReader]
    _lock: Lock
    _turn: Lock

    def __init__(self, *, path: str, caption_keys: Sequence[str] = (), image: str = "image"):
        if path.startswith("s3://"):
            raise UserError(
                f"path={path!r}: the reader of ArrayRecord knows no s3://; copy the files, or read tars there"
            )
        self.left_out = Counter[str]()
        found = storage.find(path, SUFFIXES, "path", self.left_out)
        try:
            with ThreadPoolExecutor(32) as pool:
                sizes = list(pool.map(_count, [file.path for file in found]))
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(f"path={path!r} cannot be read as ArrayRecord: {_one_line(error)}") from error
        self.caption_keys, self.image = tuple(caption_keys), image
        self.files = [file.path for file in found]
        self.names = storage.names_below(path, self.files)
        self.shard_sizes = np.array(sizes, np.int64)
        self.ends = np.cumsum(self.shard_sizes).tolist()
        self._many = min(AHEAD, 1 + AHEAD_BYTES * self.ends[-1] // (1 + sum(file.size for file in found)))
        self.identity = identify(
            names=digest(storage.name_of(file.path) for file in found),
            records=len(self),
            content=digest_of_files(content_digests(found, len(self)), storage.is_remote(path)),
            image=image,
            caption_keys=self.caption_keys,
        )
        self.__setstate__({})
        self.seen = self._look() + say_left_out(self.left_out)
        self._warn_of_strangers()

    def __len__(self) -> int:
        return self.ends[-1]

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name not in LOCAL}

    def __setstate__(self, state):
        own = dict(_ahead=(-1, ()), _alone=-2, _latest=(-1, None), _readers=OrderedDict(), _lock=Lock(), _turn=Lock())
        vars(self).update(state, **own)

    def __getitem__(self, index: int) -> Record:
        key, captions, image = self._parse(index, check=True)
        if len(image) > IMAGE_BYTES:
            raise BadRecord(f"an image of {len(image)} bytes; at most {IMAGE_BYTES} are read")
        return Record(key, image, captions, shard=self._file(index))

    def where(self, index: int) -> tuple[str, str]:
        try:
            return self._file(index), self._parse(index)[0]
        except BadRecord:
            return self._file(index), str(index)

    def captions(self, index: int) -> tuple[Caption, ...]:
        return self._parse(index)[1]

    def image_head(self, index: int) -> bytes:
        """The first bytes of the encoded image."""
        return self._parse(index)[2]

    def _file(self, index: int) -> str:
        return self.names[bisect_right(self.ends, index)]

    def _read(self, index: int) -> bytes:
        """A record. Whoever reads one after the other, as cleaning, converting and evaluating do, gets many at once."""
        first, block = self._ahead
        if first <= index < first + len(block):
            return block[index - first]
        if index not in (first + len(block), self._alone + 1):
            self._alone = index
            return self._read_some(index, 1)[0]
        with self._turn:  # one thread reads them for all
            first, block = self._ahead
            if not first <= index < first + len(block):
                first, block = self._ahead = index, self._read_some(index, self._many)
        return block[index - first]

    def _read_some(self, index: int, many: int) -> Sequence[bytes]:
        file = bisect_right(self.ends, index)
        start = index - self.ends[file] + int(self.shard_sizes[file])
        end, records, step = min(start + many, int(self.shard_sizes[file])), list[bytes](), 1
        try:
            while start + len(records) < end and sum(map(len, records)) <= AHEAD_BYTES:  # unpacked, they may be large
                first = start + len(records)
                records += self._reader(file).read(first, min(first + step, end))
                step = min(2 * step, PIECE)  # what the first ones unpack to, others are likely to
        except (RuntimeError, IndexError):  # a damaged record spoils only itself
            return records or self._read_one(file, start)
        return records

    def _read_one(self, file: int, start: int) -> Sequence[bytes]:
        try:
            return self._reader(file).read(start, start + 1)
        except (RuntimeError, IndexError) as error:
            raise BadRecord(f"the record is damaged: {_one_line(error)}") from error

    def _reader(self, file: int) -> ArrayRecordReader:
        """The reader of a file; READERS of them stay open."""
        with self._lock:
            if file in self._readers:
                self._readers.move_to_end(file)
            else:
                self._readers[file] = ArrayRecordReader(self.files[file], READER)
            while len(self._readers) > READERS:
                self._readers.popitem(last=False)  # closes when its last user lets it go
            return self._readers[file]

    def _parse(self, index: int, check: bool = False) -> tuple[str, tuple[Caption, ...], bytes]:
        latest, found = self._latest
        if latest != index or check:
            found = self._decode(index, check)
            self._latest = index, found
        return found

    def _decode(self, index: int, check: bool) -> tuple[str, tuple[Caption, ...], bytes]:
        data = self._read(index)
        if not data.startswith(MAGIC):
            return str(index), *self._example(data)
        return decode_record(data, check)  # whoever names origins gets them from Joined

    def _example(self, data: bytes) -> tuple[tuple[Caption, ...], bytes]:
        features = features_of(data)
        images = features.get(self.image)
        if not isinstance(images, list) or not images or not isinstance(images[0], bytes):
            raise BadRecord(f"no encoded image in {self.image!r}; {say_features(features)}")
        found = [(key, text) for key in self.caption_keys for text in texts_of(features.get(key))]
        return tuple(Caption(text, key) for key, text in found), images[0]

    def _warn_of_strangers(self) -> None:
        """A text may be rare, so a name that the first records do not know is no error; an image is not.

        Raises:
            UserError: they are Examples without an image of this name.
        """
        count = min(LOOKED_AT, len(self))
        met, are_read = set(), False
        for index in range(count):
            try:
                met |= {caption.origin for caption in self.captions(index)}
                are_read = True
            except BadRecord:
                continue
        features = {} if are_read or not count else self._features_of(0)
        if features and self.image not in features:
            raise UserError(f"array_record: no feature {self.image!r}; {self.seen}; {image_advice(features)}")
        for name in set(self.caption_keys) - met:
            warnings.warn(
                f"array_record: none of the first {count} records has captions of {name!r}; {self.seen}", stacklevel=4
            )

    def _features_of(self, index: int) -> dict[str, Values]:
        """Return the features of an Example; none for a record of another kind."""
        try:
            data = self._read(index)
            return {} if data.startswith(MAGIC) else features_of(data)
        except BadRecord:
            return {}

    def _look(self) -> str:
        """What the first record is."""
        if not len(self):
            return "no records"
        try:
            data = self._read(0)
            if data.startswith(MAGIC):
                return f"records with captions of {', '.join(c.origin for c in decode_record(data)[1])}"
            return f"Examples with {say_features(features_of(data))}"
        except BadRecord:
            return "records of an unknown kind"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _count(path: str) -> int:
    reader = ArrayRecordReader(path, READER)
    try:
        return reader.num_records()
    finally:
        reader.close()


class RecordWriter:
    """Writes records of ours into a file, each readable by itself; a context manager."""

    def __init__(self, path: Path):
        self.path, self.writer = path, ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    def write(self, record: Record) -> None:
        self.writer.write(encode_record(record))

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *error) -> None:
        self.writer.close()
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
