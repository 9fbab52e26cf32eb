"""A folder of images, each with its captions in text files of the same name: dog.jpg, dog.txt, dog.de.txt."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from filip_jax.data import storage
from filip_jax.data.record import HEAD_BYTES, BadRecord, Caption, Record
from filip_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Folder:
    """All images below `path` that have a caption, sorted by name.

    Args:
        path: the folder; its sub-folders are read too.
        caption_keys: endings of the text files, "txt" for dog.txt, "de.txt" for dog.de.txt.

    Raises:
        UserError: no such folder, or no image with a caption in it.
    """

    def __init__(self, *, path: str, caption_keys: Sequence[str] = ("txt",)):
        root = Path(path)
        if not path or not root.is_dir():
            raise UserError(f"folder: path={path!r} is not a folder")
        self.caption_keys = tuple(caption_keys)
        images = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)
        kept = [file for file in images if any(self._text_file(file, key).is_file() for key in self.caption_keys)]
        endings = " or ".join(f".{key}" for key in self.caption_keys)
        if not kept:
            raise UserError(
                f"folder: {len(images)} images ({', '.join(SUFFIXES)}) lie under {path!r}, none with a {endings} beside it"
            )
        if len(kept) < len(images):
            bare = len(images) - len(kept)
            warnings.warn(f"folder: {bare} of {len(images)} images under {path!r} have no caption", stacklevel=2)
        self.root, self.images = root, [str(file.relative_to(root)) for file in kept]
        self.shard_sizes = np.array([len(kept)])
        self.identity = hashlib.sha256("\n".join(self.images).encode("utf-8", "surrogateescape")).hexdigest()
        self.seen = f"images with {endings}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        name = self.images[index]
        return Record(name, (self.root / name).read_bytes(), self.captions(index), shard=str(self.root))

    def where(self, index: int) -> tuple[str, str]:
        return str(self.root), self.images[index]

    def image_head(self, index: int) -> bytes:
        """The first bytes of the encoded image."""
        return storage.read(str(self.root / self.images[index]), 0, HEAD_BYTES)

    def captions(self, index: int) -> tuple[Caption, ...]:
        image = self.root / self.images[index]
        files = [(key, self._text_file(image, key)) for key in self.caption_keys]
        try:
            return tuple(Caption(file.read_text("utf-8").strip(), key) for key, file in files if file.is_file())
        except UnicodeDecodeError as error:
            raise BadRecord(f"a caption is not UTF-8: {error}") from error

    @staticmethod
    def _text_file(image: Path, key: str) -> Path:
        return image.with_suffix(f".{key}")
