"""The data sources by name. A new one is a file beside this and a line in `SOURCES`."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from filip_jax.data.annotations import Annotations
from filip_jax.data.array_record import ArrayRecord
from filip_jax.data.arrow import Arrow
from filip_jax.data.class_folder import ClassFolder
from filip_jax.data.each_caption import EachCaption
from filip_jax.data.emoji_scenes import EmojiScenes
from filip_jax.data.folder import Folder
from filip_jax.data.identity import ELSEWHERE, changes, is_elsewhere, parts_of
from filip_jax.data.joined import WEIGHT, Joined, Mixture
from filip_jax.data.kept import Kept
from filip_jax.data.labelled import Labelled
from filip_jax.data.parquet import Parquet
from filip_jax.data.record import Caption, Record
from filip_jax.data.side_captions import SideCaptions
from filip_jax.data.table import Table
from filip_jax.data.tfds import Tfds
from filip_jax.data.webdataset import WebDataset
from filip_jax.errors import UserError
from filip_jax.sections import call, check, choose, keys_of
from filip_jax.user_paths import absolute, from_user

SOURCES = {
    "emoji_scenes": EmojiScenes,
    "folder": Folder,
    "class_folder": ClassFolder,
    "webdataset": WebDataset,
    "array_record": ArrayRecord,
    "parquet": Parquet,
    "arrow": Arrow,
    "jsonl": Table,
    "csv": Table,
    "annotations": Annotations,
    "tfds": Tfds,
}
ALSO_KNOWN_AS = {  # kinds of data by the names that other tools have for them: the source that reads them
    "coco": "annotations", "karpathy": "annotations", "datasets": "arrow", "hf": "arrow", "huggingface": "arrow",
    "feather": "arrow", "wds": "webdataset", "tar": "webdataset", "tars": "webdataset", "img2dataset": "webdataset",
    "imagefolder": "class_folder", "tsv": "csv", "json": "jsonl", "ndjson": "jsonl", "tfrecord": "tfds",
}  # fmt: skip
PATHS = ("path", "images", "index", "side_captions", "keep", "class_names")  # options of sources in which ~ is the home


@runtime_checkable
class Source(Protocol):
    """Random access to records; pure: the same index always gives the same record.

    Where a record cannot be read, `[index]` and `captions` raise BadRecord; `where` still gives its
    shard and key. `captions` spares the image where that is cheaper, and may be empty. A source of
    labelled images has `class_names`, too; one of encoded images may have `image_head(index)`, their
    first bytes. A class whose folders may hold what our own commands write names the endings that it reads as `reads`. One
    whose length is arbitrary, since it draws its records, has `is_generated`.

    Attributes:
        shard_sizes: records of each piece that is best read together, in order; sums to the length.
        identity: a text that differs if the data does, see identity.py.
        seen: what the data holds and what of it is left out, for people; sources of files have the latter as counts,
            too, {reason: files}, as `left_out`.
    """

    shard_sizes: np.ndarray
    identity: str
    seen: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def captions(self, index: int) -> tuple[Caption, ...]: ...

    def where(self, index: int) -> tuple[str, str]: ...


def make_source(section: Mapping[str, Any], key: str = "source") -> Source:
    """The source that a config's `source` section describes: its name and its options.

    Options of every source:
        caption_keys: where texts come from, names or pairs (name, weight): fields of the source, or
            origins of the side file. One is drawn per visit, by weight. None are looked for if it is empty, as for images
            that are only embedded.
        side_captions: a file of more captions, see side_captions.py.
        side_key: its column of keys, where other columns hold the captions, which caption_keys names.
        record_key: which text of a record, a field of the source, stands in that file for the record; "" is the record's key.
        keep: a folder that `filip data filter` wrote.
        each_caption: True makes each caption of an image a sample of its own, so that an epoch visits all of them
            once, see `EachCaption`.
        label, class_names: which text holds the class of an image, and a file of the classes' names, see `Labelled`.
    The name "mixture" has as its options named sections, each with a `weight` if it likes.

    Raises:
        UserError: an unknown name or option, or data that cannot be opened.
    """
    section = {name: from_user(x) if name in PATHS and isinstance(x, str) else x for name, x in section.items()}
    name = section.pop("name", "")
    if name == "mixture":
        return _make_mixture(section, key)
    if isinstance(name, str) and name in ALSO_KNOWN_AS:
        raise UserError(f"{key}.name={name!r}: that is read by the source {ALSO_KNOWN_AS[name]}")
    if isinstance(name, str) and os.sep in name:
        raise UserError(f"{key}.name={name!r} is a path: name a source before it, as in: webdataset path={name}")
    kind = choose(SOURCES | {"mixture": Mixture}, name, f"{key}.name")
    common = {option: section.pop(option) for option in COMMON if option in section}
    try:
        return call(open_kind, common, f"{key} ({name})", kind=kind, own=section, place=f"{key} ({name})")
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def is_source(section: Any) -> bool:
    """Return whether a value in a config is the section of a source."""
    return isinstance(section, Mapping) and section.get("name") in (*SOURCES, "mixture")


def _make_mixture(parts: Mapping[str, Any], key: str) -> Mixture:
    if not parts or not all(isinstance(part, Mapping) for part in parts.values()):
        raise UserError(
            f"{key}: a mixture's options are sections, one for each source; it has {', '.join(parts) or 'none'}"
        )
    weights = {name: part["weight"] for name, part in parts.items() if "weight" in part}
    sections = {name: {k: v for k, v in part.items() if k != "weight"} for name, part in parts.items()}
    if any(section.get("name") == "mixture" for section in sections.values()):
        raise UserError(f"{key}: a mixture of mixtures")
    return Mixture({name: make_source(section, f"{key}.{name}") for name, section in sections.items()}, weights)


def open_kind(
    kind: Callable[..., Source], own: dict[str, Any], place: str,
    *, side_captions: str = "", keep: str = "", each_caption: bool = False, label: str = "", class_names: str = "",
    side_key: str = "", record_key: str = "",
) -> Source:  # fmt: skip
    """Return a source of a kind, made of its own options; the keyword arguments are those of every kind, see `make_source`.

    Raises:
        UserError: a wrong option, or data that cannot be opened.
    """
    if label:
        own["caption_keys"] = (*(k for k in own.get("caption_keys", ()) if k != label), label)
    weights = _weights(own["caption_keys"]) if own.get("caption_keys", ()) not in ((), []) else None
    if each_caption and len(set((weights or {}).values())) > 1:
        raise UserError("each_caption=True takes each caption once an epoch: give caption_keys without weights")
    for option, value in (("side_key", side_key), ("record_key", record_key)):
        if value and not (side_captions and weights):
            raise UserError(f"{option}={value!r} needs side_captions=FILE, and caption_keys with the names of captions")
    side = SideCaptions(side_captions, own.get("index", ""), side_key) if side_captions else None
    if weights is not None:
        own["caption_keys"] = tuple(name for name in weights if side is None or name not in side.origins)
        own["caption_keys"] += (record_key,) if record_key and record_key not in own["caption_keys"] else ()
    check(kind, own, place, also=COMMON)
    source = kind(**own)
    if label or class_names:
        source = Labelled(source, label=label, class_names=class_names)
    if weights is not None or side is not None or keep:
        kept = Kept(keep) if keep else None
        source = Joined(source, weights=weights, side=side, kept=kept, record_key=record_key)
    return EachCaption(source) if each_caption else source


COMMON = keys_of(open_kind)


def _weights(caption_keys: Any) -> dict[str, float]:
    """{name: weight} of a config's caption_keys."""
    keys = caption_keys if isinstance(caption_keys, Sequence) and not isinstance(caption_keys, str) else ()
    pairs = [(key, 1.0) if isinstance(key, str) else key for key in keys]
    if not pairs or not all(map(_is_pair, pairs)):
        raise UserError(
            f"caption_keys={caption_keys!r} is not a list of names or pairs (name, weight above 0, up to {WEIGHT:g})"
        )
    return {name: float(weight) for name, weight in pairs}


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, Sequence)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], int | float)
        and 0 < pair[1] <= WEIGHT
    )


def check_outside(section: Mapping[str, Any], output: str | os.PathLike[str], option: str, writes: set[str]) -> None:
    """Raise a UserError if what a command writes would lie in a folder of the data, and be read as data next time.

    Args:
        section: of a config's source.
        output: a file or folder, which need not be there.
        option: its name.
        writes: the endings of what is written there.
    """
    for part in (section, *section.values()):
        if not isinstance(part, Mapping) or not isinstance(part.get("path"), str):
            continue
        folder = os.path.realpath(absolute(from_user(part["path"])))
        is_inside = os.path.isdir(folder) and Path(os.path.realpath(output)).is_relative_to(folder)
        if is_inside and writes & set(getattr(SOURCES.get(str(part.get("name"))), "reads", ())):
            raise UserError(
                f"{option}={os.fspath(output)} lies in path={part['path']}, and what is written there would be read as data: "
                "name another outside of it"
            )


def fingerprint(source: Source) -> str:
    """A hash of what the source is; a run refuses to go on with other data."""
    return hashlib.sha256(f"{source.identity} {len(source)}".encode("utf-8", "surrogateescape")).hexdigest()


def describe(source: Source) -> dict[str, Any]:
    """Return what a checkpoint says of the run's data: `data_sha256`, and the parts that this is of as `data`."""
    parts = parts_of(source.identity)
    return {"data_sha256": fingerprint(source), "data": {"records": len(source)} | parts}


def check_same_data(was: Mapping[str, Any], now: Mapping[str, Any], workdir: Any) -> None:
    """Raise a UserError that names what differs if a run's data is not what its checkpoint was trained on.

    Args:
        was: what `describe` gave then. A run whose files lay in a bucket then and now do not, or the other way round, goes
            on with a warning.
    """
    if was.get("data_sha256") == now["data_sha256"]:
        return
    noted, current = json.dumps(was["data"]) if isinstance(was.get("data"), dict) else None, json.dumps(now["data"])
    if is_elsewhere(noted, current):
        text = f"the data of {workdir}: {ELSEWHERE}; the run goes on: make sure that it has not changed"
        return warnings.warn(text, stacklevel=3)
    changed = changes(noted, current)
    raise UserError(
        f"the data of {workdir} is not what the run began with (what differs: {changed}): bring it back, or start in a new "
        "--workdir, with init_from to keep the model"
    )
