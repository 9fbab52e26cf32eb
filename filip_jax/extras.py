"""Packages that pip installs on demand: the extras of setup.cfg."""

import importlib
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
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what} the package {module!r}, which is not installed: pip install -e '.[{extra}]' in a clone of filip_jax"
        ) from error
