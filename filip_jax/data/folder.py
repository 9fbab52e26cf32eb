"""A folder of images, each with its captions in text files of the same name: dog.jpg, dog.txt, dog.de.txt."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from filip_jax.data.listed import read_listed
from filip_jax.data.record import CAPTION_BYTES, HEAD_BYTES, IMAGE_BYTES, BadRecord, Caption, Record
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
        files = {file: file.stat().st_size for file in root.rglob("*") if file.is_file()}
        images = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
        met = {key: {file for file in images if self._text_file(file, key) in files} for key in self.caption_keys}
        kept = [file for file in images if any(file in of_key for of_key in met.values())] if met else images
        endings = " or ".join(f".{key}" for key in self.caption_keys)
        if not kept:
            raise UserError(
                f"folder: {len(images)} images ({', '.join(SUFFIXES)}) lie under {path!r}, none with a {endings} beside it"
            )
        for key, of_key in met.items():
            if not of_key:
                raise UserError(
                    f"folder: no image under {path!r} has a .{key} beside it: caption_keys={self.caption_keys}"
                )
        if len(kept) < len(images):
            bare = len(images) - len(kept)
            warnings.warn(f"folder: {bare} of {len(images)} images under {path!r} have no caption", stacklevel=2)
        self.root, self.images = root, [str(file.relative_to(root)) for file in kept]
        self.shard_sizes = np.array([len(kept)])
        lines = [f"{name} {files[file]}" for name, file in zip(self.images, kept)]
        text = "\n".join([*lines, *self.caption_keys])
        self.identity = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        self.seen = f"images with {endings}" if met else "images"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        name = self.images[index]
        data = self._image(index, IMAGE_BYTES + 1)
        if len(data) > IMAGE_BYTES:
            raise BadRecord(f"an image of more than {IMAGE_BYTES} bytes")
        return Record(name, data, self.captions(index), shard=str(self.root))

    def where(self, index: int) -> tuple[str, str]:
        return str(self.root), self.images[index]

    def image_head(self, index: int) -> bytes:
        """The first bytes of the encoded image."""
        return self._image(index, HEAD_BYTES)

    def _image(self, index: int, most: int) -> bytes:
        return read_listed(str(self.root), self.images[index], most)

    def captions(self, index: int) -> tuple[Caption, ...]:
        image = self.root / self.images[index]
        files = [(key, self._text_file(image, key)) for key in self.caption_keys]
        return tuple(Caption(self._text(file), key) for key, file in files if file.is_file())

    def _text(self, file: Path) -> str:
        data = read_listed("", str(file), CAPTION_BYTES + 1)
        if len(data) > CAPTION_BYTES:
            raise BadRecord(f"a caption of more than {CAPTION_BYTES} bytes: {file.name}")
        try:
            return data.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise BadRecord(f"the caption is not UTF-8: {file.name}: {error}") from error

    @staticmethod
    def _text_file(image: Path, key: str) -> Path:
        return image.with_suffix(f".{key}")
