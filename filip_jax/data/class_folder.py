"""A folder of class directories: cat/1.jpg, cat/2.jpg, dog/1.jpg, as torchvision's ImageFolder reads."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from filip_jax.data.listed import read_listed
from filip_jax.data.record import HEAD_BYTES, IMAGE_BYTES, BadRecord, Caption, Record
from filip_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


class ClassFolder:
    """All images of all directories in `path`, each directory a class; in the order of their names.

    Args:
        path: the folder of the directories, whose names are the classes'; `_` stands for a space.
        caption_keys: nothing; the class's name is the text of an image.

    Raises:
        UserError: no such folder, or none with images in it.
    """

    def __init__(self, *, path: str, caption_keys: Sequence[str] = ()):
        root = Path(path)
        if not path or not root.is_dir():
            raise UserError(f"class_folder: path={path!r} is not a folder")
        if caption_keys:
            raise UserError(f"class_folder: caption_keys={tuple(caption_keys)}: its texts are the names of the classes")
        directories = sorted(each for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))
        found = [sorted(file for file in each.rglob("*") if file.suffix.lower() in SUFFIXES) for each in directories]
        if not any(found):
            raise UserError(f"class_folder: no directory in {path!r} holds images ({', '.join(SUFFIXES)})")
        if bare := [each.name for each, files in zip(directories, found) if not files]:
            some = ", ".join(bare[:5]) + (" …" if len(bare) > 5 else "")
            warnings.warn(f"class_folder: {len(bare)} classes of {path!r} have no image: {some}", stacklevel=2)
        self.root, self.class_names = root, [each.name.replace("_", " ") for each in directories]
        self.images = [str(file.relative_to(root)) for files in found for file in files]
        self.labels = [label for label, files in enumerate(found) for _ in files]
        self.shard_sizes = np.array([len(files) for files in found])
        lines = (f"{name} {(root / name).stat().st_size}" for name in self.images)
        self.identity = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
        some = ", ".join(self.class_names[:4]) + (" …" if len(directories) > 4 else "")
        self.seen = f"{len(self.images)} images of {len(directories)} classes: {some}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        data = read_listed(str(self.root), self.images[index], IMAGE_BYTES + 1)
        if len(data) > IMAGE_BYTES:
            raise BadRecord(f"an image of more than {IMAGE_BYTES} bytes")
        label = self.labels[index]
        return Record(self.images[index], data, self.captions(index), shard=str(self.root), label=label)

    def captions(self, index: int) -> tuple[Caption, ...]:
        return (Caption(self.class_names[self.labels[index]], "label"),)

    def where(self, index: int) -> tuple[str, str]:
        return str(self.root), self.images[index]

    def image_head(self, index: int) -> bytes:
        """The first bytes of the encoded image."""
        return read_listed(str(self.root), self.images[index], HEAD_BYTES)
