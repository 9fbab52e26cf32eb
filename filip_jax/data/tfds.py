"""TensorFlow Datasets as a source: prepared data read through ArrayRecord; TensorFlow is never imported."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from filip_jax import storage
from filip_jax.data.array_record import SUFFIXES
from filip_jax.data.identity import digest, digest_of_files, identify
from filip_jax.data.record import METADATA_BYTES, Caption, Record
from filip_jax.data.riegeli import content_digests
from filip_jax.data.values import advice, texts_of
from filip_jax.errors import UserError

FEATURES = "features.json"
CLASSES = "tensorflow_datasets.core.features."  # where the classes lie that it may name


@cache
def _library():
    """Return TensorFlow Datasets, which is imported only where data of it are read."""
    import tensorflow_datasets

    return tensorflow_datasets


class Tfds:
    """One split of a data set that was prepared with file_format="array_record".

    Args:
        path: the folder of the prepared version, which holds dataset_info.json, or that in which it is the only one.
        split: "train", "test[:1000]" …
        image: name of the image feature.
        caption_keys: names of features of text, alone or in sequences, "captions/text" within one of several parts; or of
            a class label, whose name becomes the caption, as words: see `in_words`.

    Raises:
        UserError: no prepared data there, no such split or feature, or features of classes that are not TensorFlow
            Datasets' own: it would import whatever module the data names.
    """

    def __init__(self, *, path: str, split: str, image: str = "image", caption_keys: Sequence[str] = ("caption",)):
        if path.startswith("s3://"):
            raise UserError(f"tfds: path={path!r}: the reader of TensorFlow Datasets knows no s3://; copy the data")
        self.path, self.image, self.caption_keys = path, image, tuple(caption_keys)
        path = self.path = _version(path)
        _check_features(path)
        try:
            builder = _library().builder_from_directory(path)
            self.features = dict(sorted(builder.info.features.items()))  # which come in another order each time
            self.texts = {"/".join(place): place for place in sorted(_texts(builder.info.features))}
            self.data = builder.as_data_source(split=split, decoders={image: _library().decode.SkipDecoding()})
        except (OSError, ValueError, NotImplementedError) as error:
            raise UserError(f"tfds: path={path!r}, split={split!r}: {' '.join(str(error).split())}") from error
        self._check_names()
        labels = [name for name in caption_keys if isinstance(self.features.get(name), _library().features.ClassLabel)]
        self.label = labels[0] if labels else None
        if self.label:
            self.class_names = in_words(self.features[self.label].names)
        self.shard_sizes = np.array([len(self.data)])
        self.identity = identify(
            name=builder.info.full_name,
            split=split,
            records=len(self),
            image=image,
            caption_keys=self.caption_keys,
            content=digest_of_files(content_digests(_files_of(builder, split), len(self)), storage.is_remote(path)),
            classes=digest(self.class_names) if self.label else "",
        )
        self.seen = f"features {', '.join(self.features)}"

    def _check_names(self):
        if not isinstance(self.features.get(self.image), _library().features.Image):
            images = [name for name in self.features if isinstance(self.features[name], _library().features.Image)]
            said = f"its images are {', '.join(images) or 'none'}; {advice('image', images, are_fit=True)}"
            raise UserError(f"tfds: {self.path!r} has no image {self.image!r}; {said}")
        if missing := [name for name in self.caption_keys if name not in self.texts]:
            said = f"its texts are {', '.join(self.texts)}; {advice('caption_keys', self.texts, are_fit=True)}"
            raise UserError(f"tfds: {self.path!r} has no text {missing[0]!r}; {said}")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Record:
        features = self.data[index]
        label = int(features[self.label]) if self.label else None
        return Record(str(index), features[self.image], self._captions(features), shard=self.path, label=label)

    def where(self, index: int) -> tuple[str, str]:
        return self.path, str(index)

    def captions(self, index: int) -> tuple[Caption, ...]:
        return self._captions(self.data[index])

    def _captions(self, features) -> tuple[Caption, ...]:
        found = []
        for key in self.caption_keys:
            if key == self.label:
                found += [Caption(self.class_names[int(features[key])], key)]
            else:
                found += [
                    Caption(text, key) for value in _values(features, self.texts[key]) for text in texts_of(value)
                ]
        return tuple(found)


def _files_of(builder: Any, split: str) -> list[storage.Found]:
    """The files that hold a split."""
    names = dict.fromkeys(str(part.filename) for part in builder.info.splits[split].file_instructions)
    return [file for name in names for file in storage.find(name, SUFFIXES, "path")]


def _texts(feature: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where captions can come from: texts at any depth, and the class labels and whole numbers of records."""
    if isinstance(feature, _library().features.FeaturesDict):
        for name, inner in feature.items():
            yield from _texts(inner, (*place, name))
    elif isinstance(feature, _library().features.Sequence):
        inner = feature.feature
        yield from () if isinstance(inner, _library().features.ClassLabel) else _texts(inner, place)
    elif isinstance(feature, _library().features.ClassLabel):
        yield from [place] if len(place) == 1 else ()
    elif isinstance(feature, _library().features.Tensor):
        is_label = feature.shape == () and len(place) == 1 and np.issubdtype(feature.np_dtype, np.integer)
        yield from [place] if feature.np_dtype == np.object_ or is_label else ()


def _values(value: Any, place: tuple[str, ...]) -> Iterator[bytes | str | np.integer | int]:
    """The texts, or the one number, at a place of a record, in which sequences lie anywhere."""
    if isinstance(value, Mapping):
        yield from _values(value[place[0]], place[1:])
    elif isinstance(value, bytes | str | np.integer | int):
        yield value
    else:
        for each in value:
            yield from _values(each, place)


def in_words(names: Sequence[str]) -> list[str]:
    """Class names as one would write them: american_bulldog, SUN397's /a/apse/indoor, EuroSAT's AnnualCrop."""
    names = [re.sub(r"^/\w/", "", name) for name in names]
    if not any(re.search(r"[\s_/]", name) for name in names):  # elsewhere a capital is a name's own, as in TrailBlazer
        names = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() for name in names]
    return [re.sub(r"[_/]", " ", name) for name in names]


def _version(path: str) -> str:
    """The folder of the one version that a data set's folder holds; itself where it is one.

    Raises:
        UserError: there are several.
    """
    found = [] if storage.exists(storage.join(path, FEATURES)) else storage.matches(path, f"*/{FEATURES}")
    if len(found) > 1:
        versions = ", ".join(sorted(storage.name_of(storage.folder_of(file)) for file in found))
        raise UserError(f"tfds: path={path!r} holds several versions: name one of {versions}")
    return storage.folder_of(found[0]) if found else path


def _check_features(path: str) -> None:
    """Raises a UserError if the data's features.json names a class of another package."""
    file = storage.join(path, FEATURES)
    if not storage.exists(file):
        raise UserError(f"tfds: path={path!r} holds no prepared data, which has dataset_info.json and {FEATURES}")
    try:
        names = list(_classes(json.loads(storage.read(file, 0, METADATA_BYTES))))
    except (ValueError, RecursionError) as error:
        raise UserError(f"tfds: {file} is damaged: {error}") from error
    strange = [name for name in names if not name.startswith(CLASSES)]
    if strange:
        raise UserError(f"tfds: {file} names the class {strange[0]!r}; only TensorFlow Datasets' own are read")


def _classes(value: Any):
    """The dotted names under "type" and "pythonClassName", also in JSON within texts."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        yield from _classes(json.loads(value))
    elif isinstance(value, list):
        for each in value:
            yield from _classes(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            named = key in ("type", "pythonClassName", "python_class_name") and isinstance(each, str) and "." in each
            yield from [each] if named else _classes(each)
