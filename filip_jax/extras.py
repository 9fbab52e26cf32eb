"""Packages that pip installs on demand: the extras of setup.cfg."""

import importlib
import importlib.util
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement

from filip_jax.errors import UserError
from filip_jax.plain import command


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


def pip_install(extra: str) -> str:
    """Return the command that installs the requirements of an extra, to be pasted into a shell.

    It names the packages themselves: `filip_jax[extra]` would need an index that has filip_jax, or a clone.
    """
    return command(["pip", "install", *_requirements(extra)])


def _requirements(extra: str) -> list[str]:
    try:
        lines = metadata.requires("filip_jax") or ()
    except metadata.PackageNotFoundError:  # it runs from a tree that is not installed
        parser = ConfigParser()
        parser.read(Path(__file__).parent.parent / "setup.cfg", encoding="utf-8")
        packages = parser.get(
            "options.extras_require", extra, fallback=f"filip_jax[{extra}]"
        )  # a copy of the package alone
        return packages.strip().split("\n")
    requirements = map(Requirement, lines)
    return [_without_marker(each) for each in requirements if each.marker and each.marker.evaluate({"extra": extra})]


def _without_marker(requirement: Requirement) -> str:
    """Return NAME[extras]>=floor,<ceiling."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{','.join(sorted(map(str, requirement.specifier), reverse=True))}"


def _missing(module, extra, what):
    return f"{what} the package {module!r}, which is not installed: {pip_install(extra)}"
