"""The command `filip configs`, and the versions that `filip --version` prints."""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filip_jax import __version__
from filip_jax.console import show
from filip_jax.errors import UserError
from filip_jax.plain import markdown
from filip_jax.shipped import copy_config, shipped_configs, shipped_scripts

CONFIGS = """List the configs and launch scripts that filip_jax ships, or copy a config to change it.

  filip configs
  filip configs demo --output=my_demo.py

Wherever a command takes a config, NAME or NAME:VARIANT is a shipped one, unless the current folder has a file of
this name: --config=filip:base, --config=eval/retrieval. The copy, with all variants, is a file in the current folder if
--output names no other; nothing is overwritten. Launch scripts run where they lie."""


def add_configs_command(add: Callable[..., Any]) -> None:
    """Add the command; `add` makes a parser of a name, what it runs and its help."""
    configs = add("configs", _configs, CONFIGS, workdir=False)
    configs.add_argument("name", nargs="?", metavar="NAME", help="the config to copy")
    configs.add_argument("--output", default="", metavar="FILE.py", help="default: NAME.py in the current folder")


def versions() -> str:
    """Return the versions that a report of a defect needs, and where this filip_jax is."""
    from importlib.metadata import version

    place = Path(__file__).resolve().parent
    return f"filip_jax {__version__} from {place} (Python {platform.python_version()}, jax {version('jax')})"


def _configs(arguments, _) -> None:
    if arguments.name:
        show(f"wrote {copy_config(arguments.name, arguments.output)}")
        return
    if arguments.output:
        raise UserError(f"--output={arguments.output}: say which config to copy, filip configs NAME --output=FILE.py")
    from filip_jax.config_files import load_file

    rows = [("config", "what it is", "variants")]
    for name, file in shipped_configs().items():
        module = load_file(file)
        rows.append((name, (module.__doc__ or "").split("\n")[0], ", ".join(getattr(module, "VARIANTS", ()))))
    scripts = [("launch script", "what it is"), *((str(file), text) for file, text in shipped_scripts().items())]
    show(*markdown(rows).split("\n"), "", *markdown(scripts).split("\n"))
