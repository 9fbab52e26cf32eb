"""What a Riegeli file, which ArrayRecord's are, says of its own content: the hash in the header of each chunk.

The format is public (github.com/google/riegeli, doc/riegeli_records_file_format.md). A file is a row of chunks; a
header of 24 bytes stands at each multiple of 64 KiB, wherever that falls. A chunk's header has 40 bytes: a hash of
itself, the bytes of its data, a hash of them, its type with the number of its records, and its decoded bytes.
"""

import hashlib
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from filip_jax import storage
from filip_jax.data.content import THREADS, noted_hashes
from filip_jax.errors import UserError
from filip_jax.folders import INDEX
from filip_jax.storage import Found

NOTES = "contents.json"  # so that large data is walked once
MIN_NOTED = 100_000  # records, below which the walk takes no time
MAX_CHUNK_BYTES = 1 << 30  # unpacked
BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40
USABLE = BLOCK - BLOCK_HEADER
FIELDS = struct.Struct("<QQQQQ")


def content_digests(files: Sequence[Found], records: int) -> list[str]:
    """Return a digest of each file's content; of a file in a bucket the bucket's own checksum.

    Args:
        records: that they hold together.

    Raises:
        OSError: a file cannot be read.
    """

    def digest_of(file: Found) -> str:
        return storage.checksum(file.path) if storage.is_remote(file.path) else content_digest(file.path)

    folder = storage.common_folder([file.path for file in files])
    if records >= MIN_NOTED and not storage.is_remote(folder):
        return noted_hashes(files, storage.join(folder, INDEX), NOTES, digest_of)
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(digest_of, files))


def content_digest(path: str) -> str:
    """Return a digest of the records of a local file from its chunks' headers, some 40 bytes of each chunk.

    Where a header cannot be, the digest covers what stands from there on.

    Raises:
        OSError: the file cannot be read.
        UserError: a chunk says that it unpacks to more than MAX_CHUNK_BYTES.
    """
    total, place = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        while place < size:
            header = _without_block_headers(os.pread(descriptor, CHUNK_HEADER + BLOCK_HEADER, place), place)
            if len(header) < CHUNK_HEADER:
                break
            _, data_size, data_hash, type_and_records, unpacked = FIELDS.unpack(header)
            if unpacked > MAX_CHUNK_BYTES:
                said = f"{unpacked} bytes unpacked; at most {MAX_CHUNK_BYTES} are read: write it with group_size:1"
                raise UserError(f"{path} has a chunk of {said}")
            end = _end(place, data_size, type_and_records >> 8)
            if end > size:
                break
            total.update(struct.pack("<QQQ", data_size, data_hash, type_and_records))
            place = end
        while rest := os.pread(descriptor, 1 << 20, place):
            total.update(rest)
            place += len(rest)
    finally:
        os.close(descriptor)
    return total.hexdigest()[:32]


def _without_block_headers(data: bytes, place: int) -> bytes:
    """The bytes of a chunk's header as they stand from `place` on."""
    before = -place % BLOCK  # bytes up to the next block's header
    return data[:CHUNK_HEADER] if before >= CHUNK_HEADER else data[:before] + data[before + BLOCK_HEADER :]


def _end(start: int, data_size: int, records: int) -> int:
    """Where a chunk ends: behind its data and the headers of blocks in it, a byte or more for each record."""
    size = CHUNK_HEADER + data_size
    blocks = (size + (start + USABLE - 1) % BLOCK) // USABLE
    least = start + records
    inside = least % BLOCK
    return max(
        start + size + blocks * BLOCK_HEADER, least + (BLOCK_HEADER - inside if 0 < inside < BLOCK_HEADER else 0)
    )
