"""Files of torch.save (zips, since torch 1.6), read without torch: dicts of tensors that stay in the file until they are asked for."""

import contextlib
import io
import math
import os
import zipfile  # noqa: TID251 - zipfile lists the members of a bounded directory; their bytes are read in place
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from filip_jax.errors import UserError
from filip_jax.plain import command
from filip_jax.small_files import open_regular
from filip_jax.weights.stored import Stored, dtype_of
from filip_jax.weights.torch_pickle import MAX_PICKLE_BYTES, NotPlain, Tensor, parse_pickle

MAX_DIRECTORY_BYTES = 1 << 22  # of a zip; that of a model of 5,000 tensors has a tenth of it
MAX_SHARING = 2  # bytes of all tensors by those of the file: some may share numbers, none unfolds
ZIP, LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how files of torch begin, now and before 1.6
LOCAL_HEADER = 30  # bytes of a member's header before its name
# Commands that convert what is not read here; {old} and {new} are quoted paths. Of whatever stands in dicts tensors alone are
# kept, those of NumPy and quantized ones, too, each whole and plain.
AGAIN = (
    'import torch; x = torch.load({old}, map_location="cpu", weights_only=True); '
    'k = lambda v: {{str(n): k(w) for n, w in v.items() if hasattr(w, "shape") or isinstance(w, dict)}} '
    "if isinstance(v, dict) else torch.as_tensor(v).detach().dequantize().clone(memory_format=torch.contiguous_format); "
    'torch.save(k(x.state_dict() if hasattr(x, "state_dict") else x), {new})'
)
SCRIPTED = 'import torch; torch.save(dict(torch.jit.load({old}, map_location="cpu").state_dict()), {new})'


@contextlib.contextmanager
def open_torch_zip(file: Path) -> Iterator[Any]:
    """Yield the object that torch.save was given: dicts, lists, texts and numbers, with a `Stored` for each tensor.

    Raises:
        UserError: it is damaged, no such file, holds anything else, or was written by torch.jit or by a torch before
            1.6. The message has the command that converts it.
        OSError: it is no regular file, or cannot be read.
    """
    descriptor = open_regular(file)
    try:
        beginning = os.pread(descriptor, len(LEGACY), 0)
        if beginning == LEGACY:
            raise UserError(f"{file} was written by a torch before 1.6: convert it with {_convert(AGAIN, file)}")
        if not beginning.startswith(ZIP):
            raise UserError(
                f"{file} is neither a safetensors file nor a zip of torch.save: save its tensors as one of these"
            )
        try:
            content = _Archive(file, descriptor).content()
        except NotPlain as error:
            raise UserError(
                f"{file} holds more than tensors, dicts, texts and numbers: {error}. Convert it with "
                f"{_convert(AGAIN, file)} (if torch refuses it, too, and you trust its maker, whose code then runs: "
                "with weights_only=False)"
            ) from error
        except UserError:
            raise
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OverflowError) as error:
            raise UserError(f"{file} is damaged: {error}") from error
        yield content
    finally:
        os.close(descriptor)


def _convert(code: str, file: Path) -> str:
    old, new = (repr(str(path)) for path in (file, file.with_name(f"{file.stem}_plain.pt")))
    quoted = [f'"{path[1:-1]}"' if '"' not in path else path for path in (old, new)]  # the shell's quotes are single
    return command(["python", "-c", code.format(old=quoted[0], new=quoted[1])])


class _Archive:
    """The members of a zip of torch.save."""

    def __init__(self, file: Path, descriptor: int):
        self.file, self.descriptor = file, descriptor
        self.size = os.fstat(descriptor).st_size
        members = zipfile.ZipFile(_BoundedReads(descriptor)).infolist()
        if any(not 0 <= member.header_offset <= self.size - LOCAL_HEADER for member in members):
            raise self._damaged("a member lies outside of it")
        self.members = {member.filename: member for member in members}
        if len(self.members) < len(members):
            raise self._damaged("two of its members have one name")
        tops = [name.removesuffix("data.pkl") for name in self.members if name.count("/") == 1]
        tops = [top for top in tops if top.endswith("/")]
        if len(tops) != 1:
            raise UserError(f"{file} is no zip of torch.save: it has no data.pkl")
        self.top = tops[0]
        if f"{self.top}constants.pkl" in self.members:
            raise UserError(f"{file} is a program of torch.jit: convert its weights with {_convert(SCRIPTED, file)}")
        order = self._read("byteorder", 16) if f"{self.top}byteorder" in self.members else b"little"
        if order.strip() != b"little":
            raise UserError(f"{file} was written on a big-endian machine: convert it with {_convert(AGAIN, file)}")

    def content(self) -> Any:
        """Return the object, its tensors as `Stored`."""
        content = parse_pickle(self._read("data.pkl", MAX_PICKLE_BYTES))
        if isinstance(content, Tensor):
            return self._stored(content)
        left, met = [content], {id(content)}
        while left:
            holder, total = left.pop(), 0
            pairs = holder.items() if isinstance(holder, dict) else enumerate(holder) if type(holder) is list else ()
            for key, value in list(pairs):
                if isinstance(value, Tensor):
                    holder[key] = stored = self._stored(value)
                    total += math.prod(stored.shape) * dtype_of(stored.dtype).itemsize
                elif isinstance(value, dict | list) and id(value) not in met:
                    met.add(id(value))
                    left.append(value)
            if total > MAX_SHARING * self.size:
                raise self._damaged(f"it has {self.size} bytes, the tensors of one dict {total}")
        return content

    def _stored(self, tensor: Tensor) -> Stored:
        storage, dtype = tensor.storage, dtype_of(tensor.storage.dtype)
        name, itemsize = f"data/{storage.key}", dtype.itemsize
        member = self.members.get(self.top + name)
        if member is None or member.file_size != storage.size * itemsize or member.file_size > self.size:
            raise self._damaged(f"it lacks {name!r} of {storage.size * itemsize} bytes")

        def read() -> np.ndarray:
            if not math.prod(tensor.shape):
                return np.empty(tensor.shape, dtype)
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides))
            data = self._bytes(name, tensor.offset * itemsize, (last + 1) * itemsize)
            array = np.ndarray(tensor.shape, dtype, data, strides=[stride * itemsize for stride in tensor.strides])
            return array if array.flags.c_contiguous else array.copy()

        return Stored(tensor.shape, storage.dtype, read)

    def _read(self, name: str, most: int) -> bytes:
        size = self.members[self.top + name].file_size
        if size > min(most, self.size):
            raise self._damaged(f"{name} has {size} bytes; at most {most} are read")
        return bytes(self._bytes(name, 0, size))

    def _bytes(self, name: str, start: int, size: int) -> bytearray:
        """Return bytes of a member, which lies in the file as it is."""
        member = self.members[self.top + name]
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise self._damaged(f"{name} is compressed or encrypted, which torch.save never does")
        header = os.pread(self.descriptor, LOCAL_HEADER, member.header_offset)
        if not header.startswith(ZIP) or len(header) < LOCAL_HEADER:
            raise self._damaged(f"{name} does not begin where its directory says")
        place = member.header_offset + LOCAL_HEADER + start
        place += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data, done = bytearray(size), 0
        while done < size:
            count = os.preadv(self.descriptor, [memoryview(data)[done:]], place + done)
            if not count:
                raise self._damaged(f"it ends within {name}")
            done += count
        return data

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{self.file} is damaged: {what}")


class _BoundedReads(io.FileIO):
    """A file of which at most a directory may be read at once: zipfile reads all that a zip calls its directory."""

    def __init__(self, descriptor: int):
        super().__init__(descriptor, closefd=False)

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes, as any file does."""
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        if (left if size is None or size < 0 else min(size, left)) > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has more than {MAX_DIRECTORY_BYTES} bytes")
        return super().read(-1 if size is None else size)
