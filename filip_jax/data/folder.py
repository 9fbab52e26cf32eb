"""A folder of images, each with its captions in text files of the same name: dog.jpg, dog.txt, dog.de.txt."""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from filip_jax.data.caption_text import caption_text
from filip_jax.data.decode import ENDINGS
from filip_jax.data.identity import digest, identify
from filip_jax.data.listed import read_listed
from filip_jax.data.record import CAPTION_BYTES, HEAD_BYTES, IMAGE_BYTES, BadRecord, Caption, Record
from filip_jax.errors import UserError
from filip_jax.walk import ending_as_reason, say_left_out, say_other_sources, walk

TOGETHER = 256  # images whose captions one thread reads at a time
THREADS = 16
NO_CAPTION, NO_IMAGE = "image without caption", "caption without image"
UNREAD = b"\0"  # stands for a caption that cannot be read, in the identity


class Folder:
    """All images below `path` that have a caption, sorted by name.

    When it opens, every process of a run reads all captions, since the source's identity covers them; of 100,000 images
    that is seconds from a disk. Images are known by their names and sizes.

    Args:
        path: the folder; its sub-folders are read too, also behind links. walk.py says what never counts there.
        caption_keys: endings of the text files, "txt" for dog.txt, "de.txt" for dog.de.txt; their case does not matter.
        every_image: True takes images without a caption, too, to be embedded; training cannot use them.

    Attributes:
        left_out: {reason: files and folders that do not count}.

    Raises:
        UserError: no such folder, or no image with a caption in it.
    """

    reads = ENDINGS

    def __init__(self, *, path: str, caption_keys: Sequence[str] = ("txt",), every_image: bool = False):
        if not path or not Path(path).is_dir():
            raise UserError(f"folder: path={path!r} is not a folder")
        if json := [key for key in caption_keys if "json" in key.lower().split(".")]:
            raise UserError(
                f"folder: caption_keys={json[0]!r}: a file here holds a caption and nothing else; fields of JSON are read in "
                "tars (webdataset) and lists (jsonl)"
            )
        self.root, self.caption_keys, self.left_out = path, tuple(caption_keys), Counter[str]()
        self.every_image = every_image or not self.caption_keys
        files = walk(path, (*ENDINGS, *(f".{key.lower()}" for key in self.caption_keys)), self.left_out)
        images = {file.name: file.size for file in files if file.name.lower().endswith(ENDINGS)}
        names = [file.name for file in files if file.name not in images]
        texts = self._texts(names)
        bare = ("",) * len(self.caption_keys)
        self.images = [name for name in images if self.every_image or _stem(name) in texts]
        self.texts = [texts.get(_stem(name), bare) for name in self.images if self.caption_keys]
        self._check(len(images))
        read = {_stem(name) + ending for name, own in zip(self.images, self.texts) for ending in own if ending}
        self.left_out += Counter({NO_CAPTION: len(images) - len(self.images)})  # += keeps what is above nothing
        stems = set(map(_stem, images))
        self.left_out += Counter(self._why_unread(name, stems) for name in set(names) - read)
        self.shard_sizes = np.array([len(self.images)])
        self.identity = identify(
            names=digest(self.images),
            sizes=digest(str(images[name]) for name in self.images),
            records=len(self.images),
            captions=self._digest(),
            caption_keys=self.caption_keys,
        )
        what = "images" if self.every_image else f"images with {self._endings()}"
        self.seen = what + say_left_out(self.left_out)

    def _texts(self, names: Sequence[str]) -> dict[str, str | tuple[str, ...]]:
        """{name without its ending: the endings of its text files}, as they are written, in the order of the keys."""
        found: dict[str, dict[str, str]] = {}
        for name in names:
            for key in self.caption_keys:
                stem, ending = name[: -len(key) - 1], name[-len(key) - 1 :]
                if ending.lower() == f".{key.lower()}":
                    own = found.setdefault(stem, {})
                    own[key] = ending if ending == f".{key}" else own.get(key, ending)
        # Most images have the same endings, of which one tuple is enough.
        usual: dict[tuple[str, ...], tuple[str, ...]] = {}
        return {
            stem: usual.setdefault(endings, endings)
            for stem, own in found.items()
            for endings in [tuple(own.get(key, "") for key in self.caption_keys)]
        }

    def _why_unread(self, name: str, stems: Set[str]) -> str:
        """Return the reason why a text is left out: its ending, as .de.txt, where it is another caption of an image."""
        for dot in (dot for dot, sign in enumerate(name) if sign == "."):
            if name[:dot] in stems and (ending := name[dot:].lower())[1:] not in map(str.lower, self.caption_keys):
                return ending_as_reason(ending)
        return NO_IMAGE

    def _check(self, images: int) -> None:
        kept = len(self.images)
        if not kept:
            raise UserError(
                f"folder: {images} images ({', '.join(ENDINGS)}) lie under {self.root!r}, "
                f"none with a {self._endings() or 'caption'} beside it"
                f"{say_left_out(self.left_out)}{say_other_sources(self.left_out)}"
            )
        for column, key in enumerate(self.caption_keys):
            if not self.every_image and not any(own[column] for own in self.texts):
                raise UserError(
                    f"folder: no image under {self.root!r} has a .{key} beside it: caption_keys={self.caption_keys}"
                )
        if kept < images:
            warnings.warn(
                f"folder: {images - kept} of {images} images under {self.root!r} have no caption", stacklevel=3
            )

    def _endings(self) -> str:
        return " or ".join(f".{key}" for key in self.caption_keys)

    def _digest(self) -> str:
        """Of all captions, those that cannot be read included."""
        with ThreadPoolExecutor(THREADS) as pool:
            starts = range(0, len(self.texts), TOGETHER)
            return digest(pool.map(lambda start: digest(self._pieces(start, start + TOGETHER)), starts))

    def _pieces(self, start: int, end: int) -> Iterator[str | bytes]:
        for index in range(start, min(end, len(self.texts))):
            for name in self._text_names(index):
                try:
                    yield self._text(name) if name else ""
                except BadRecord:  # its words name the folder
                    yield UNREAD

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        data = self._image(index, IMAGE_BYTES + 1)
        if len(data) > IMAGE_BYTES:
            raise BadRecord(f"an image of more than {IMAGE_BYTES} bytes")
        return Record(self.images[index], data, self.captions(index), shard=self.root)

    def where(self, index: int) -> tuple[str, str]:
        return self.root, self.images[index]

    def image_head(self, index: int) -> bytes:
        """The first bytes of the encoded image."""
        return self._image(index, HEAD_BYTES)

    def _image(self, index: int, most: int) -> bytes:
        return read_listed(self.root, self.images[index], most)

    def captions(self, index: int) -> tuple[Caption, ...]:
        named = zip(self.caption_keys, self._text_names(index))
        return tuple(Caption(self._text(name), key) for key, name in named if name)

    def _text(self, name: str) -> str:
        return caption_text(read_listed(self.root, name, CAPTION_BYTES + 1), Path(name).name)

    def _text_names(self, index: int) -> list[str]:
        """The text files of an image, "" where there is none, in the order of the keys."""
        stem = _stem(self.images[index])
        return [ending and stem + ending for ending in self.texts[index]] if self.caption_keys else []


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
