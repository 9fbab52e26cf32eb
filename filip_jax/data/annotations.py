"""Images with several captions each as COCO's file of annotations and Karpathy's splits list them."""

import codecs
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from filip_jax import storage
from filip_jax.data.identity import identify
from filip_jax.data.listed import read_listed
from filip_jax.data.packed import PACKED_BYTES, refuse_other
from filip_jax.data.record import HEAD_BYTES, IMAGE_BYTES, BadRecord, Caption, Record
from filip_jax.data.values import texts_of
from filip_jax.errors import UserError, one_line

FILE_BYTES = 1 << 30  # of a file of annotations; Karpathy's of COCO has a seventh of it
ORIGIN = "caption"


class Annotations:
    """All images of one split and all captions of each, in the file's order.

    Two layouts are known: Karpathy's dataset_coco.json, dataset_flickr30k.json … (Karpathy and Fei-Fei, CVPR 2015,
    arXiv 1412.2306), and COCO's own captions_val2017.json … (arXiv 1504.00325). A record's key is COCO's number of the
    image, or else the image's file name without its ending; a caption's key is its `sentid` or its annotation's `id`.
    Images without a caption and captions of images that the file does not list are left out, and a warning counts them.

    Args:
        path: the JSON file.
        images: the folder of the images; COCO's two folders (train2014, val2014) lie in it where the file names them.
        split: of a file with splits; "train" is train and restval, as everyone trains on COCO (113K images).
        caption_keys: nothing but "caption", the origin of all of its texts.

    Raises:
        UserError: no such file or folder, a file of another layout, or a split without images.
    """

    reads = (".json",)

    def __init__(self, *, path: str, images: str, split: str = "", caption_keys: Sequence[str] = (ORIGIN,)):
        if set(caption_keys) - {ORIGIN}:
            raise UserError(f"caption_keys={tuple(caption_keys)}: all texts of annotations have the origin {ORIGIN!r}")
        if not images or not (storage.is_remote(images) or os.path.isdir(images)):
            raise UserError(f"images={images!r} is not a folder")
        self.name, self.images = storage.name_of(path), images
        data = _read(path)
        strays: Counter[str] = Counter()
        found = list(_parse(data, path, strays))
        counts = Counter(image.split for image in found)
        chosen = [image for image in found if image.split == split]
        if not chosen:
            said = one_line(", ".join(f"{name!r} ({count})" for name, count in counts.most_common(12)))
            raise UserError(f"path={path!r} has no images of split={split!r}; its splits are {said or 'none'}")
        bare = [image for image in chosen if not any(text for text, _ in image.texts)]
        if len(bare) == len(chosen):
            raise UserError(f"path={path!r}: none of {len(chosen)} images of split={split!r} has a caption")
        strays["images without a caption"] = len(bare)
        chosen = [image for image in chosen if any(text for text, _ in image.texts)]
        # Of Arrow: half a million Python strings would cost each worker five times as much.
        self.files, self.keys = pa.array([image.file for image in chosen]), pa.array([image.key for image in chosen])
        texts = [pair for image in chosen for pair in image.texts]
        self.texts = pa.array([text for text, _ in texts], pa.string())
        self.text_keys = pa.array([key for _, key in texts], pa.string())
        self.ends = np.cumsum([len(image.texts) for image in chosen])
        self.shard_sizes = np.array([len(chosen)])
        self.identity = identify(content=hashlib.sha256(data).hexdigest(), split=split, records=len(chosen))
        self.seen = f"{len(chosen)} images with {len(texts)} captions"
        if strays := +strays:
            said = f"left out: {', '.join(f'{count} {what}' for what, count in strays.items())}"
            self.seen += f"; {said}"
            warnings.warn(one_line(f"path={path!r}: {said}"), stacklevel=3)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        data = self._image(index, IMAGE_BYTES + 1)
        if len(data) > IMAGE_BYTES:
            raise BadRecord(f"an image of more than {IMAGE_BYTES} bytes")
        return Record(self.keys[index].as_py(), data, self.captions(index), shard=self.name)

    def where(self, index: int) -> tuple[str, str]:
        return self.name, self.keys[index].as_py()

    def captions(self, index: int) -> tuple[Caption, ...]:
        start, end = int(self.ends[index - 1]) if index else 0, int(self.ends[index])
        pairs = zip(self.texts[start:end].to_pylist(), self.text_keys[start:end].to_pylist())
        return tuple(Caption(text, ORIGIN, key=key) for text, key in pairs)

    def image_head(self, index: int) -> bytes:
        """The first bytes of the encoded image."""
        return self._image(index, HEAD_BYTES)

    def _image(self, index: int, most: int) -> bytes:
        return read_listed(self.images, self.files[index].as_py(), most)


class _Image(NamedTuple):
    """What a file says of an image; `texts` are pairs (text, key)."""

    file: str
    key: str
    split: str
    texts: list[tuple[str, str]]


def _read(path: str) -> bytes:
    found = storage.find(path, (".json",), "path")
    if len(found) != 1:
        raise UserError(f"path={path!r} names {len(found)} files; give one")
    if found[0].size > FILE_BYTES:
        raise UserError(f"path={path!r} has {found[0].size} bytes; at most {FILE_BYTES} are read")
    return storage.read(found[0].path)


def _parse(data: bytes, path: str, strays: Counter[str]) -> Iterator[_Image]:
    """The images of either layout; what cannot be used is counted in `strays`."""
    try:
        content = json.loads(data.removeprefix(codecs.BOM_UTF8).decode("utf-8"), object_hook=_without_tokens)
    except (ValueError, RecursionError) as error:
        refuse_other(data[:PACKED_BYTES], path)
        raise UserError(f"path={path!r} is no JSON: {one_line(str(error))}") from error
    if isinstance(content, list) and all(isinstance(each, dict) for each in content):
        raise UserError(f"path={path!r} is a list of objects, not annotations: read it with the source jsonl")
    try:
        if "annotations" in content:
            yield from _of_coco(content["images"], content["annotations"], strays)
        else:
            yield from (_of_karpathy(image, strays) for image in content["images"])
    except (KeyError, TypeError, AttributeError) as error:
        what = f"something has no field {error}" if isinstance(error, KeyError) else repr(error)
        raise UserError(f"path={path!r} is neither COCO's captions nor Karpathy's splits: {one_line(what)}") from error


def _without_tokens(fields: dict) -> dict:
    """Karpathy's words one by one, most of what his file holds, are let go while it is read."""
    fields.pop("tokens", None)
    return fields


def _file(name: str) -> str:
    """A name below the folder of the images, which is where both layouts have them.

    Raises:
        UserError: it leads elsewhere.
    """
    name = _text(name)
    place = name.replace("\\", "/")  # as it may be read, see read_listed
    if storage.is_remote(name) or os.path.isabs(place) or ".." in place.split("/"):
        raise UserError(f"annotations: the image {name[:200]!r} does not lie below the folder `images`")
    return name


def _of_karpathy(image: dict, strays: Counter[str]) -> _Image:
    name, split = _text(image["filename"]), _text(image["split"])
    key = _text(str(image["cocoid"])) if "cocoid" in image else os.path.splitext(name)[0]
    texts = []
    for sentence in image["sentences"]:
        texts += _pairs(sentence, sentence.get("sentid", "") if isinstance(sentence, dict) else "", strays)
    file = _file(os.path.join(image.get("filepath", ""), name))
    return _Image(file, key, "train" if split == "restval" else split, texts)


def _of_coco(images: list[dict], annotations: list[dict], strays: Counter[str]) -> Iterator[_Image]:
    texts: dict[str, list[tuple[str, str]]] = {str(image["id"]): [] for image in images}
    for annotation in annotations:
        pairs = _pairs(annotation["caption"], annotation["id"], strays)
        of_image = texts.get(str(annotation["image_id"]))
        if of_image is not None:
            of_image += pairs
        else:
            strays["captions of images that are not listed"] += len(pairs)
    for image in images:
        yield _Image(_file(image["file_name"]), _text(str(image["id"])), "", texts[str(image["id"])])


def _pairs(value: Any, key: int | str, strays: Counter[str]) -> list[tuple[str, str]]:
    """[(text, key)] of a caption, which may be a text or an object with one; none of what is no text."""
    try:
        found = [(text, _text(str(key))) for text in texts_of(value)]
    except BadRecord:
        found = []
    strays["captions that are no text, or too long"] += not found
    return found


def _text(text: str) -> str:
    """Without lone surrogates, which JSON can bring."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
