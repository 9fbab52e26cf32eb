"""Packages that pip installs on demand: the extras of setup.cfg."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from filip_jax.errors import UserError


def extra_module(module: str, extra: str, what: str) -> ModuleType:
    """The module, of a package in `filip_jax[extra]`.

    Args:
        what: the thing that needs it, for the message.

    Raises:
        UserError: it is not installed; names the pip command.
    """
    try:
        return importlib.import_module(module)  # noqa: TID251 - named in the code alone
    except ImportError as error:
        raise UserError(_missing(module, extra, what)) from error


def extra_folder(module: str, extra: str, what: str) -> Path:
    """The folder of a package that is read as data; none of its code runs.

    Raises:
        UserError: as `extra_module`.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(_missing(module, extra, what))
    return Path(spec.origin).parent


def _missing(module, extra, what):
    return f"{what} the package {module!r}, which is not installed: pip install -e '.[{extra}]' in a clone of filip_jax"
