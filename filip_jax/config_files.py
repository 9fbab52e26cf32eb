"""Files of configs: found by path or by the name of a shipped one, run, and their mistakes told in one line."""

import contextlib
import importlib.util
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict, FieldReference

from filip_jax import storage
from filip_jax.errors import UserError
from filip_jax.plain import command
from filip_jax.saved_config import CHECKPOINTS, FILE, TOKENIZER, checked, read_config
from filip_jax.shipped import shipped_config, shipped_configs
from filip_jax.small_files import MAX_JSON_BYTES, parse
from filip_jax.user_paths import from_user, is_remote

COMPUTATION = ("dtype", "attention", "scan", "remat")  # of a model: how it is computed, not what


def find_config(file: str) -> tuple[Path, str]:
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


def load_file(path: Path) -> ModuleType:
    """Run a config file; return it as a module.

    Raises:
        UserError: it fails.
    """
    spec: Any = importlib.util.spec_from_file_location("filip_config", path)  # noqa: TID251 - the file that the user named
    module = importlib.util.module_from_spec(spec)
    with mistakes_of(path):
        spec.loader.exec_module(module)
    return module


def get_config(path: Path, variant: str) -> ConfigDict:
    """Return what the file's function of this name gives for a variant.

    Raises:
        UserError: there is no such function or variant, or it fails.
    """
    module = load_file(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={path}: the file has no function get_config")
    variants = getattr(module, "VARIANTS", ())
    if variant and variant not in variants:
        raise UserError(f"--config={path}:{variant}: no such variant; {', '.join(variants) or 'the file has none'}")
    with mistakes_of(path):
        return module.get_config(variant) if variant else module.get_config()


@contextmanager
def mistakes_of(path: Path):
    """Turn whatever a config file raises into one line with its place in the file."""
    try:
        yield
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        place = f"{path}, line {line}" if line else f"{path}"
        raise UserError(f"--config={place}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def begin_with(config: ConfigDict, donor: str, workdir: str = "") -> None:
    """Give a config the model, the tokenizer and the sizes of another run, and let it begin with its parameters.

    How the model is computed and what it is trained for stay the config's.

    Args:
        donor: the other run's workdir, on this machine or in a bucket.
        workdir: of the run that is trained: once it has begun with a donor it needs it no more.

    Raises:
        UserError: `donor` holds no run, or the config none of these sections.
    """
    place = from_user(donor)
    model = ConfigDict(_config_of_run(place, donor, workdir)["model"])
    try:
        model.update({key: config.model[key] for key in COMPUTATION})
        with config.unlocked():
            for key, tower, name in (("image_size", model.image, "image_size"), ("text_length", model.text, "length")):
                size = FieldReference(tower[name])  # an override changes the tower and its data at once
                del tower[name], config.data[key]
                tower[name] = config.data[key] = size
            config.model = model
            config.tokenizer = ConfigDict({"name": "kept", "path": storage.join(place, TOKENIZER)})
        config.init_from.path = donor
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"init_from={donor}: the config or that run's has no such section: {error}") from error


def _config_of_run(place: str, donor: str, workdir: str) -> dict[str, Any]:
    """Return the config of a run; a model as its authors publish it is answered with the import that makes a run of it."""
    try:
        return _read(place)
    except UserError as error:
        with contextlib.suppress(UserError, OSError):
            own = _read(from_user(workdir)) if workdir else {}
            if (begun := own.get("init_from")) and isinstance(begun, dict) and begun.get("path") == donor:
                return own
        if not Path(place).exists() or (Path(place) / CHECKPOINTS).exists():
            raise
        words = command(["filip", "import", donor, "--output=DIR"])
        raise UserError(
            f"init_from={donor} is no run: of a public model make one by {words}, and begin with DIR"
        ) from error


def _read(workdir: str) -> dict[str, Any]:
    """Return the config of a run, as `read_config` does, of one in a bucket too."""
    if not is_remote(workdir):
        return read_config(Path(workdir))
    file = storage.join(workdir, FILE)
    if not storage.exists(file):
        raise UserError(f"{workdir} holds no run: {file} is missing")
    try:
        return checked(parse(storage.read(file, 0, MAX_JSON_BYTES)), file)
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
