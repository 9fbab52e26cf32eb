"""Compiled programs that the next process finds again."""

import contextlib
import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from filip_jax.errors import UserError
from filip_jax.user_paths import from_user
from filip_jax.workdir import cache_folder

FOLDER = "compiled"  # of a workdir or of the user's cache
MIN_SECONDS = 0.5  # of a compilation that is worth a file
MAX_BYTES = 1 << 30  # of the user's cache; a workdir's programs are those of one run


def keep_programs(folder: Path) -> None:
    """Keep what this process compiles from now on in a folder, or where JAX_COMPILATION_CACHE_DIR says.

    Raises:
        UserError: others may write to the folder, and so make this process execute what they like.
        OSError: the folder cannot be made.
    """
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if own:  # JAX reads it, but knows no ~
        if own.startswith("~"):
            jax.config.update("jax_compilation_cache_dir", from_user(own))
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_mode & 0o022 or status.st_uid != os.geteuid():
        raise UserError(
            f"compile_cache: others may write to {folder}, whose programs would run here: chmod 700 it, or "
            "set compile_cache=False"
        )
    compilation_cache.reset_cache()  # of another run in this process
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def keep_programs_of_user() -> None:
    """Keep what this process compiles in the user's cache, unless it is kept elsewhere.

    Without a cache that is the user's alone, it is compiled again.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    folder = cache_folder() / FOLDER
    with contextlib.suppress(OSError, UserError):
        keep_programs(folder)
        remove_oldest(folder, MAX_BYTES)


def remove_oldest(folder: Path, most: int) -> None:
    """Remove the oldest files of a folder beyond so many bytes; what a process reads at this moment it compiles again."""
    files = [(file.lstat(), file) for file in folder.iterdir() if file.is_file() and not file.is_symlink()]
    size = sum(status.st_size for status, _ in files)
    for status, file in sorted(files, key=lambda each: each[0].st_mtime):
        if size <= most:
            return
        file.unlink(missing_ok=True)
        size -= status.st_size
