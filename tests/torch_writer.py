"""Files as torch.save writes them, made without torch: of any values, of spoilt pickles and of strange members."""

import struct
import zipfile

import numpy as np
from conftest import ROOT

FOLDERS = ROOT / "tests/weights"
EPOCH = FOLDERS / "open_clip_epoch/epoch_1.pt"
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    return b"J" + struct.pack("<i", value)


def described(value, storages):
    """The opcodes of a value as torch.save writes them; arrays become storages of their own."""
    if isinstance(value, dict):
        items = b"".join(described(key, storages) + described(each, storages) for key, each in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, np.ndarray):
        storages.append(value)
        kind, shape = STORAGES[value.dtype.name], b"".join(map(number, value.shape))
        strides = b"".join(number(stride // value.itemsize) for stride in value.strides)
        storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(str(len(storages) - 1)) + text("cpu")
        storage += number(value.size) + b"tQ"
        view = storage + number(0) + b"(" + shape + b"t(" + strides + b"t\x89ccollections\nOrderedDict\n)R"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR"
    return {str: text, int: number, float: lambda x: b"G" + struct.pack(">d", x)}[type(value)](value)


def pickled(value, storages):
    return b"\x80\x02" + described(value, storages) + b"."


def torch_file(file, data, storages=(), top="archive", method=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(f"{top}/data.pkl", data)
        archive.writestr(f"{top}/byteorder", "little")
        for n, array in enumerate(storages):
            archive.writestr(f"{top}/data/{n}", array.tobytes("A"))
        for name, content in members.items():
            archive.writestr(f"{top}/{name}", content)
    return file


def saved(file, value, **options):
    storages = []
    return torch_file(file, pickled(value, storages), storages, **options)
