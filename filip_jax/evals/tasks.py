"""What an evaluation is of, by hash, so that its numbers stand for this very data, model and checkpoint and no other."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from filip_jax import __version__, storage
from filip_jax.checkpoint import Checkpoints
from filip_jax.data.sources import PATHS, Source, fingerprint, is_source, make_source
from filip_jax.data.text_lists import file_of
from filip_jax.errors import UserError
from filip_jax.evals.positives import FILE_BYTES
from filip_jax.user_paths import from_user

RULES = 1  # raised where our code gives other numbers for the same task
LOCAL = ("index", "processes")  # options of sources that change nothing
INDEX = "/.filip_index/"

Task = dict[str, str]


def hashes_of(kind: ModuleType, section: Mapping[str, Any], source: Source, options: Mapping[str, Any]) -> Task:
    """SHA-256 of an evaluation: all of it as `task`, and its data, class names, prompts, training data … by name.

    Data is known by what a source says of itself and by the sizes and times of the files that its section names.

    Args:
        kind: of `KINDS` in run.py.
        section: of the source, as it stands in the config.
        options: of the evaluation.

    Raises:
        UserError, OSError: an option names data that cannot be opened.
    """
    parts = {"data": _data(section, source)} | _contents("", options, getattr(kind, "FILES", ()))
    if hasattr(source, "class_names"):
        parts["class_names"] = _sha256("\n".join(source.class_names))
    whole = {"kind": kind.__name__, "options": _plain(options), "version": __version__, "rules": RULES, "parts": parts}
    return {"task": _sha256(json.dumps(whole, sort_keys=True))} | parts


def hashes_of_model(checkpoints: Checkpoints, step: int, config: Mapping[str, Any]) -> Task:
    """SHA-256 of a checkpoint as it was written, and of the model that the run's config makes of it."""
    sizes = {name: config["data"][name] for name in ("image_size", "text_length")}
    return {
        "checkpoint": checkpoints.sha256(step),
        "model": _sha256(json.dumps(_plain(config["model"]) | sizes, sort_keys=True)),
    }


def _data(section: Mapping[str, Any], source: Source) -> str:
    return _sha256(json.dumps([fingerprint(source), _plain(section), _stamps(section)], sort_keys=True))


def _stamps(section: Mapping[str, Any]) -> list[Any]:
    """[path, size, time] of the files that a source's section names."""
    found = []
    for name, value in section.items():
        if isinstance(value, Mapping):
            found += _stamps(value)
        elif isinstance(value, str) and value and name in PATHS and name not in LOCAL:
            try:
                files = storage.find(from_user(value), ("",), name)
            except (UserError, OSError, ValueError):  # it is FILE.json:NAME, or gone
                continue
            found += [list(file) for file in files if INDEX not in file.path]
    return found


def _contents(place: str, options: Mapping[str, Any], files: Sequence[str]) -> Task:
    """Return {where: SHA-256} of the lists, sources and, in options that may name some, files."""
    found = {}
    for name, value in options.items():
        here = f"{place}{name}"
        if is_source(value):
            found[here] = _data(value, make_source(value, here))
        elif isinstance(value, Mapping):
            found |= _contents(f"{here}.", value, files)
        elif isinstance(value, (list, tuple)):
            found[here] = _sha256(json.dumps(_plain(value)))
        elif isinstance(value, str) and value and name in files:
            found[here] = _file(value)
    return found


def _file(name: str) -> str:
    """Of a file's content, or of the version of a package; what is neither is refused when it is read."""
    try:
        return _sha256(storage.read(file_of(name), 0, FILE_BYTES))
    except (OSError, ValueError):
        try:
            return _sha256(f"{name} {version(name)}")
        except (PackageNotFoundError, ValueError):
            return _sha256(name)


def _plain(value: Any) -> Any:
    """Options as JSON holds them."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _sha256(data: bytes | str) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape")).hexdigest()
