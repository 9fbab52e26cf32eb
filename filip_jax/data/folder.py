"""A folder of images, each with its caption in a text file of the same name: dog.jpg, dog.txt."""

import warnings
from pathlib import Path

from filip_jax.data.record import Record
from filip_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Folder:
    """All images below `path` that have a caption, sorted by name.

    Args:
        path: the folder; its sub-folders are read too.

    Raises:
        UserError: no such folder, or no image with a caption in it.
    """

    def __init__(self, *, path: str):
        root = Path(path)
        if not path or not root.is_dir():
            raise UserError(f"folder: path={path!r} is not a folder")
        images = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)
        self.images = [str(file) for file in images if file.with_suffix(".txt").is_file()]
        if not self.images:
            raise UserError(
                f"folder: {len(images)} images ({', '.join(SUFFIXES)}) lie under {path!r}, none with a .txt beside it"
            )
        if len(self.images) < len(images):
            bare = len(images) - len(self.images)
            warnings.warn(f"folder: {bare} of {len(images)} images under {path!r} have no caption", stacklevel=2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        image = Path(self.images[index])
        return Record(str(image), image.read_bytes(), self.caption(index))

    def caption(self, index: int) -> str:
        file = Path(self.images[index]).with_suffix(".txt")
        try:
            return file.read_text("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8: {error}") from error
