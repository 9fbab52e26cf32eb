"""Configs: a Python file gives a ConfigDict, flags change it, a run keeps it as config.json.

Below the commands there are no configs, only functions with keyword arguments (see sections.py).
"""

import difflib
import importlib.util
import json
import os
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from filip_jax.errors import UserError
from filip_jax.files import write_atomically
from filip_jax.names import make_name
from filip_jax.redact import redacted
from filip_jax.shipped import shipped_config, shipped_configs
from filip_jax.small_files import is_whole, read_json
from filip_jax.user_paths import from_user

FILE = "config.json"
UNCHANGED = "unchanged"  # a sweep's point without values
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


def load_config(file: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The config of `FILE.py[:variant]` with `--config.key=value` overrides, as plain nested dicts.

    Args:
        file: the ending .py may be left out. Where there is no such file it is the name of a shipped config.

    Raises:
        UserError: no such file or variant, an unknown key (with the nearest match), a wrong type.
    """
    path, variant = _split(file)
    config = _get_config(path, variant)
    _check_keys(config, overrides)
    values, argv = flags.FlagValues(), ["filip", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, lock_config=True, flag_values=values, sys_argv=argv)
        unread = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"unknown argument '--{error.flagname}'; overrides read --config.key=value") from error
    except (AttributeError, KeyError, IndexError) as error:
        keys = (override.partition("=")[0] for override in overrides)
        raise UserError(f"unknown config key in {' '.join(keys)}: {error}") from error
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError, flags.Error) as error:
        raise UserError(f"wrong config value: {error}") from error
    if unread:
        raise UserError(f"unexpected argument {unread[0]!r}; overrides read --config.key=value")
    with _mistakes_of(path):
        return config.to_dict()


def _split(file: str) -> tuple[Path, str]:
    """Return the file and the variant of FILE.py[:variant], or of NAME[:variant] as in `load_config`.

    A folder may have colons in its name, and so may the file.

    Raises:
        UserError: there is no such Python file.
    """
    file = from_user(file)
    ways = [(file, ""), file.rpartition(":")[::2], file.partition(":")[::2]]
    for find in (_python_file, shipped_config):
        for name, variant in ways:
            if (path := find(name)) and not _is_unrelated(path, name):
                return path, variant
    name, ships = ways[-1][0], f"the configs that filip_jax ships are {', '.join(shipped_configs())}"
    if not name:
        raise UserError(f"--config={file} names no config: write FILE.py[:variant] or NAME[:variant]; {ships}")
    if name.startswith("./") and shipped_config(name.removeprefix("./")):
        ships = "without ./ it is the one that filip_jax ships"
    raise UserError(f"--config={file}: no such Python file; {ships}")


def _python_file(name: str) -> Path | None:
    """Return the file of this name, to which .py may be lacking, if there is one."""
    files = (Path(name), Path(f"{name}.py"))
    return next((file for file in files if file.suffix == ".py" and file.is_file()), None)


def _is_unrelated(path: Path, name: str) -> bool:
    """Return whether a file only happens to have the name of a shipped config: it is no config, and must not run."""
    if name.endswith(".py") or name not in shipped_configs() or path == shipped_config(name):
        return False
    if "get_config" in path.read_text("utf-8", errors="replace"):
        return False
    text = f"{path} is no config, it does not mention get_config: --config={name} is the one that filip_jax ships"
    warnings.warn(text, stacklevel=2)
    return True


def load_sweep(file: str) -> list[dict[str, Any]]:
    """The points that the function sweep() of `FILE.py[:variant]` yields: {config key: value}.

    Raises:
        UserError: there is no such function, or it yields something else.
    """
    path, _ = _split(file)
    module = load_file(path)
    if not hasattr(module, "sweep"):
        raise UserError(f"--config={path}: the file has no function sweep, which yields {{config key: value}}")
    with _mistakes_of(path):
        points = list(module.sweep())
    for point in points:
        if not isinstance(point, Mapping) or not all(isinstance(key, str) for key in point):
            raise UserError(f"--config={path}: sweep() yields {point!r}, which is not {{config key: value}}")
    return [dict(point) for point in points]


def load_evals(file: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the section `evals` of `FILE.py[:variant]`.

    Of a file of evaluations with a function sweep() those of all its points, each named after its evaluation and point:
    "val prompt=a {}".

    Raises:
        UserError: there is none, or as `load_config` and `load_sweep` do.
    """
    config = load_config(file, overrides)
    if "evals" not in config:
        raise UserError(f"--config={file} has no section `evals`")
    path, _ = _split(file)
    if not is_eval_config(config) or not hasattr(load_file(path), "sweep"):
        return config["evals"]
    points, evals = load_sweep(file), dict[str, Any]()
    for name, point in zip(name_points(points), points):
        of_point = load_config(file, [*overrides, *settings(point)])["evals"]
        evals |= {make_name(f"{each} {name}"): section for each, section in of_point.items()}
    return evals


def is_eval_config(config: Mapping[str, Any]) -> bool:
    """Whether a config has evaluations alone, and trains nothing."""
    return "evals" in config and "total_steps" not in config


def settings(point: Mapping[str, Any]) -> list[str]:
    """The overrides --config.key=value of a point of a sweep."""
    return [f"--config.{key}={_text(value)}" for key, value in point.items()]


def name_points(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Their names, as "pooling=tokens,rate=0.001"; keys are as short as tells them apart."""
    alike = Counter(_last(key) for key in {key for values in points for key in values})
    return [
        ",".join(f"{_last(k) if alike[_last(k)] == 1 else k}={_text(v)}" for k, v in values.items()) or UNCHANGED
        for values in points
    ]


def _last(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def load_file(path: Path) -> ModuleType:
    """Run a config file; return it as a module.

    Raises:
        UserError: it fails.
    """
    spec: Any = importlib.util.spec_from_file_location("filip_config", path)  # noqa: TID251 - the file that the user named
    module = importlib.util.module_from_spec(spec)
    with _mistakes_of(path):
        spec.loader.exec_module(module)
    return module


def _get_config(path: Path, variant: str) -> ConfigDict:
    module = load_file(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={path}: the file has no function get_config")
    variants = getattr(module, "VARIANTS", ())
    if variant and variant not in variants:
        raise UserError(f"--config={path}:{variant}: no such variant; {', '.join(variants) or 'the file has none'}")
    with _mistakes_of(path):
        return module.get_config(variant) if variant else module.get_config()


@contextmanager
def _mistakes_of(path: Path):
    """Whatever a config file raises, as one line with its place in the file."""
    try:
        yield
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        place = f"{path}, line {line}" if line else f"{path}"
        raise UserError(f"--config={place}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _check_keys(config: ConfigDict, overrides: Sequence[str]) -> None:
    for override in overrides:
        key, section = re.split(r"[=\[]", override.removeprefix("--config."))[0], config
        for name in key.split(".") if override.startswith("--config.") else ():
            if not isinstance(section, ConfigDict) or name not in section:
                near = difflib.get_close_matches(name, section) if isinstance(section, ConfigDict) else []
                keys = near or (list(section) if isinstance(section, ConfigDict) else [])
                legal = f"did you mean {' or '.join(keys)}?" if near else f"there are {', '.join(keys) or 'none below'}"
                other = "; --source NAME key=value … names other data" if key.startswith("source.") else ""
                raise UserError(f"unknown config key {key}: no {name}; {legal}{other}")
            section = section[name]


def check_same_run(workdir: Path, config: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> None:
    """Raises a UserError if the config would change what the run of `workdir` computes; all such keys are listed.

    Args:
        saved: the run's config, of its checkpoint; by default that of config.json.
    """
    old = redacted(read_config(workdir) if saved is None else saved)
    new = redacted(json.loads(json.dumps(config)))
    changes = differences(_result_relevant(old), _result_relevant(new))
    if changes:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changes)}): give the old values or another --workdir "
            "(there, init_from.path can begin with this run's parameters)"
        )


def save_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Writes config.json, without the secrets that the config may hold."""
    write_atomically(workdir / FILE, json.dumps(redacted(config), indent=2) + "\n")


def read_config(workdir: Path) -> dict[str, Any]:
    """The config that a run was started with.

    Raises:
        UserError: `workdir` holds no run, or one whose config is not as it was written.
    """
    file = workdir / FILE
    if not os.path.lexists(file):
        raise UserError(f"{workdir} holds no run: {file} is missing")
    config = read_json(file)
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
