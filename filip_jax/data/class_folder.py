"""A folder of class directories: cat/1.jpg, cat/2.jpg, dog/1.jpg, as torchvision's ImageFolder reads."""

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

from filip_jax.data.decode import ENDINGS
from filip_jax.data.identity import digest, identify
from filip_jax.data.listed import read_listed
from filip_jax.data.record import HEAD_BYTES, IMAGE_BYTES, BadRecord, Caption, Record
from filip_jax.errors import UserError
from filip_jax.walk import order_of, say_left_out, say_other_sources, walk, why_left_out

NO_CLASS = "image in no class's directory"
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"})


class ClassFolder:
    """All images of all directories in `path`, each directory a class; in the order of their names.

    Args:
        path: the folder of the directories, which may be links; their names are the classes' (`_` stands for a space).
            Directories in them are read too. walk.py says what never counts.
        caption_keys: nothing; the class's name is the text of an image.

    Attributes:
        left_out: {reason: files and folders that do not count}.

    Raises:
        UserError: no such folder, or none with images in it.
    """

    reads = ENDINGS

    def __init__(self, *, path: str, caption_keys: Sequence[str] = ()):
        if not path or not os.path.isdir(path):
            raise UserError(f"class_folder: path={path!r} is not a folder")
        if caption_keys:
            raise UserError(f"class_folder: caption_keys={tuple(caption_keys)}: its texts are the names of the classes")
        self.root, self.left_out = path, Counter[str]()
        files = walk(path, ENDINGS, self.left_out)
        inside = [file for file in files if "/" in file.name]
        if len(files) > len(inside):
            self.left_out[NO_CLASS] += len(files) - len(inside)
        if not inside:
            raise UserError(
                f"class_folder: no directory in {path!r} holds images ({', '.join(ENDINGS)})"
                f"{say_left_out(self.left_out)}{say_other_sources(self.left_out)}"
            )
        directories = sorted((name for name in os.listdir(path) if _is_class(path, name)), key=order_of)
        number = {name: label for label, name in enumerate(directories)}
        self.class_names = [unicodedata.normalize("NFC", name).replace("_", " ") for name in directories]
        self.images = [file.name for file in inside]
        self.labels = [number[name.partition("/")[0]] for name in self.images]
        self.shard_sizes = np.bincount(self.labels, minlength=len(directories))
        self._warn_of_classes(directories)
        self.identity = identify(
            names=digest(self.images),
            sizes=digest(str(file.size) for file in inside),
            records=len(inside),
            classes=digest(self.class_names),
        )
        some = ", ".join(self.class_names[:4]) + (" …" if len(directories) > 4 else "")
        self.seen = f"{len(self.images)} images of {len(directories)} classes: {some}{say_left_out(self.left_out)}"

    def _warn_of_classes(self, directories: Sequence[str]) -> None:
        if bare := [name for name, size in zip(directories, self.shard_sizes) if not size]:
            some = ", ".join(map(self._in_words, bare[:5])) + (" …" if len(bare) > 5 else "")
            warnings.warn(f"class_folder: {len(bare)} classes of {self.root!r} have no image: {some}", stacklevel=3)
        full = [name for name, size in zip(directories, self.shard_sizes) if size]
        if SPLITS.issuperset(name.lower() for name in full):
            warnings.warn(
                f"class_folder: the classes of {self.root!r} are {', '.join(full)}: if these are splits of the data, name one, "
                f"path={os.path.join(self.root, full[0])}",
                stacklevel=3,
            )
        if closed := sorted(filter(self._is_left_out, os.listdir(self.root)), key=order_of):
            some = ", ".join(map(repr, closed[:5])) + (" …" if len(closed) > 5 else "")
            warnings.warn(
                f"class_folder: directories of {self.root!r} hold images, but their names exclude them from the classes: "
                f"{some}; if they are classes, rename them, since labels are numbered without them",
                stacklevel=3,
            )
        alike: dict[str, list[str]] = {}
        for directory, name in zip(directories, self.class_names):
            alike.setdefault(name.casefold(), []).append(directory)
        if pairs := [names for names in alike.values() if len(names) > 1]:
            warnings.warn(
                f"class_folder: {len(pairs)} names stand for several classes of {self.root!r}, alike but for case, "
                f"Unicode form or _: {', '.join(map(repr, pairs[0][:5]))}",
                stacklevel=3,
            )

    def _is_left_out(self, name: str) -> bool:
        """Return whether a directory would be a class but for its name."""
        if not why_left_out(name):
            return False
        try:
            inside = os.listdir(os.path.join(self.root, name))
        except OSError:  # of a file, or closed to us
            return False
        return any(file.lower().endswith(ENDINGS) and not why_left_out(file) for file in inside)

    def _in_words(self, name: str) -> str:
        place = os.path.join(self.root, name)
        return f"{name} (a link to {os.path.realpath(place)})" if os.path.islink(place) else name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        data = read_listed(self.root, self.images[index], IMAGE_BYTES + 1)
        if len(data) > IMAGE_BYTES:
            raise BadRecord(f"an image of more than {IMAGE_BYTES} bytes")
        label = self.labels[index]
        return Record(self.images[index], data, self.captions(index), shard=self.root, label=label)

    def captions(self, index: int) -> tuple[Caption, ...]:
        return (Caption(self.class_names[self.labels[index]], "label"),)

    def where(self, index: int) -> tuple[str, str]:
        return self.root, self.images[index]

    def image_head(self, index: int) -> bytes:
        """The first bytes of the encoded image."""
        return read_listed(self.root, self.images[index], HEAD_BYTES)


def _is_class(root: str, name: str) -> bool:
    """Whether the name is a class's: of a directory, or of a link to one, that the walk may enter."""
    return not why_left_out(name) and os.path.isdir(os.path.join(root, name))
