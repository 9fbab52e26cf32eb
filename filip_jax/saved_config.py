"""config.json: what a run was started with, and what may change when it goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filip_jax.errors import UserError
from filip_jax.files import write_atomically
from filip_jax.redact import redacted
from filip_jax.small_files import is_whole, read_json

FILE = "config.json"
TOKENIZER, CHECKPOINTS = "tokenizer.model", "checkpoints"  # the file and the folder beside it
# Of a run's folder: config.json and the manifests of its checkpoints. Raised where what a run computes or saves is
# described in another way, such as other sections of a config or other names of parameters.
FORMAT = 3
# Sections of a config that other code looks into; make_setup checks those of a run that is to be trained.
SECTIONS = (
    "model", "objectives", "data", "evals", "source", "tokenizer", "optimizer", "checkpoint", "processes", "mesh",
)  # fmt: skip
# What may change between two starts of one run without changing what it computes.
FREE_SECTIONS = (
    "checkpoint", "compile_cache", "evals", "evals_fatal", "eval_every_steps", "guards", "log_every_steps", "log_keys",
    "mesh", "processes", "profile", "wandb_project",
)  # fmt: skip
FREE_DATA_KEYS = ("workers", "threads", "max_bad_fraction")
# Where data lies. That they hold the same is known by the source's identity, so a copy on a node's own disk serves as well.
FREE_SOURCE_KEYS = ("path", "images", "index", "processes", "side_captions", "keep", "class_names")


class OtherFormat(UserError):
    """A file of a run that another version of filip_jax wrote."""


def check_format(content: Mapping[str, Any], file: str | Path) -> None:
    """Raise OtherFormat if the content of a file of a run is not of FORMAT."""
    if content.get("format") != FORMAT:
        number = f"format {content['format']!r:.20}" if "format" in content else "an older format"
        raise OtherFormat(
            f"{file} is of {number}, and this filip_jax reads format {FORMAT} only: go on with the filip_jax that wrote "
            "it, or train again in a new --workdir"
        )


def check_same_run(workdir: Path, config: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> None:
    """Raises a UserError if the config would change what the run of `workdir` computes; all such keys are listed.

    Args:
        saved: the run's config, of its checkpoint; by default that of config.json.
    """
    old = redacted(read_config(workdir) if saved is None else saved)
    new = redacted(json.loads(json.dumps(config)))
    if "batch_size" in new and "batch_size" not in old:
        raise UserError(
            f"{workdir} holds imported weights: begin with them in another --workdir, by --init_from={workdir}"
        )
    changes = differences(_result_relevant(old), _result_relevant(new))
    if changes:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changes)}): give the old values or another --workdir "
            "(there, init_from.path can begin with this run's parameters)"
        )


def save_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Write config.json: the format and the config, without the secrets that it may hold."""
    write_atomically(workdir / FILE, json.dumps({"format": FORMAT} | redacted(config), indent=2) + "\n")


def read_config(workdir: Path) -> dict[str, Any]:
    """Return the config that a run was started with.

    Raises:
        UserError: `workdir` holds no run, or one whose config is of another format or not as it was written.
    """
    file = workdir / FILE
    if not os.path.lexists(file):
        raise UserError(f"{workdir} holds no run: {file} is missing")
    return checked(read_json(file), file)


def checked(config: dict[str, Any], file: str | Path) -> dict[str, Any]:
    """Return the content of a config.json without its format; raise a UserError as `read_config` does."""
    check_format(config, file)
    del config["format"]
    for section in ("model", "objectives", "data", "evals"):
        if section not in config:
            raise UserError(f"{file} is damaged: it has no section {section}")
    for section in SECTIONS:
        if not isinstance(config.get(section, {}), dict):
            raise UserError(f"{file} is damaged: {section}={config[section]!r:.100} is not a section")
    for key in ("image_size", "text_length"):
        if not is_whole(config["data"].get(key)):
            raise UserError(f"{file} is damaged: data.{key}={config['data'].get(key)!r:.100} is not a whole number")
    if not is_whole(config.get("total_steps", 0)):
        raise UserError(f"{file} is damaged: total_steps={config['total_steps']!r:.100} is not a whole number")
    return config


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Lines "key: old -> new" for every leaf that differs between two nested dicts."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = sorted(set(old) | set(new))
        found = [differences(old.get(n, "absent"), new.get(n, "absent"), f"{key}.{n}".lstrip(".")) for n in names]
        return [line for lines in found for line in lines]
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]


def _result_relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in FREE_SECTIONS}
    return kept | {
        "data": {name: value for name, value in config.get("data", {}).items() if name not in FREE_DATA_KEYS},
        "source": _without_locations(config.get("source", {})),
    }


def _without_locations(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source's section, or a mixture's with its components', without what names where files lie."""
    return {
        name: _without_locations(value) if isinstance(value, Mapping) else value
        for name, value in source.items()
        if name not in FREE_SOURCE_KEYS or isinstance(value, Mapping)
    }
