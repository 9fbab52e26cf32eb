"""Files that filip_jax ships beside its code: configs, which commands find by name, and scripts that start runs.

In a clone the two folders are links to those at its top.
"""

from pathlib import Path

from filip_jax.errors import UserError
from filip_jax.sections import choose

CONFIGS, SCRIPTS = (Path(__file__).resolve().with_name(name).resolve() for name in ("configs", "launch"))


def shipped_configs() -> dict[str, Path]:
    """Return the files of the shipped configs by their names: "demo", "eval/retrieval" …"""
    files = [*sorted(CONFIGS.glob("*.py")), *sorted(CONFIGS.glob("eval/*.py"))]
    return {str(file.relative_to(CONFIGS).with_suffix("")): file for file in files}


def shipped_config(name: str) -> Path | None:
    """Return the shipped config of this name, which may also be written as in a clone, configs/NAME.py."""
    return shipped_configs().get(name.removeprefix("configs/").removesuffix(".py"))


def shipped_scripts() -> dict[Path, str]:
    """Return the files of the launch scripts, each with the first line of the comment at its head."""
    texts = {file: file.read_text("utf-8") for file in sorted(SCRIPTS.glob("*")) if file.suffix != ".md"}
    return {file: text.partition("# ")[2].partition("\n")[0].rstrip(":.") for file, text in texts.items()}


def copy_config(name: str, output: str = "") -> Path:
    """Copy a shipped config to a new file; return that.

    Args:
        output: the file to write; by default one of the config's own name in the current folder.

    Raises:
        UserError: there is no such config, a variant is named, or there is such a file already.
    """
    if ":" in name:
        raise UserError(f"{name}: a copy has all variants, so name none: filip configs {name.partition(':')[0]}")
    source = choose(shipped_configs(), name, "NAME")
    file = Path(output or source.name)
    if file.suffix != ".py":
        raise UserError(f"--output={file}: a config is a Python file; name it so")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as copy:
            copy.write(source.read_bytes())
    except FileExistsError as error:
        raise UserError(f"{error.filename} exists already: name another file, --output=FILE.py") from error
    return file
