"""The folder of a run, wherever it lies: on a disk, or in a bucket with a mirror on the disk for its small files."""

import contextlib
import fcntl
import glob
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax

from filip_jax import folders, storage
from filip_jax.cluster.service import on_first_process
from filip_jax.errors import UserError
from filip_jax.files import write_atomically, writing
from filip_jax.saved_config import CHECKPOINTS
from filip_jax.user_paths import from_user

DRAWN = ("clip_benchmark", "pictures")  # folders that evaluations write, and those of a whole run:
WRITTEN = (CHECKPOINTS, "compiled", "keys", "profile", "quarantine", "skipped", "tensorboard", "wandb", *DRAWN)
UNWALKED = (CHECKPOINTS, "wandb")  # a step may be a link, to be read; W&B makes links
KEPT = ".kept"  # beside a mirror that could not be uploaded: nothing removes it
EVERY_SECONDS = 30.0  # at most this often are files uploaded while the run goes on


class Workdir:
    """A run's folder; every process opens it.

    In a bucket the files beside the checkpoints are read and written in a mirror, a local folder that is fresh with
    each start and holds what the bucket held then; those of processes that were killed go. Process 0 uploads what changed in its mirror, the other
    processes only files named after themselves, such as quarantine/process_1.jsonl.

    Args:
        path: a local folder, gs://… or s3://…; nothing need be there yet.

    Attributes:
        name: the path as it was given, for people.
        folder: where the small files are read and written.
        checkpoints: the folder or URL of the checkpoints.

    Raises:
        UserError: there is no such bucket, or neither gs:// nor s3://.
        OSError: the bucket cannot be reached, or the mirror not be written.
    """

    def __init__(self, path: str | Path):
        self.name = from_user(path).rstrip("/") or "/"
        self.is_remote = storage.is_remote(self.name)
        self.checkpoints = storage.join(self.name, CHECKPOINTS)
        self.folder = Path(self.name)
        if self.is_remote:
            self.process = jax.process_index()
            self.folder, self.lock = _mirror(self.name, self.process)
            self.seen: dict[str, storage.Found] = {}  # what the bucket held when it was downloaded
            self.uploaded: dict[str, tuple[int, int]] = {}  # the mirror's bytes and times that are in the bucket
            self.uploading, self.thread, self.warned = threading.Lock(), threading.Thread(), False
            self.pushed = time.monotonic()
            self._download(lambda name: True)

    def check_links(self, names: Sequence[str] = WRITTEN) -> None:
        """Refuses to write through links: the folder itself may be one, what is written in it may not.

        Raises:
            UserError: one of the folders that are written is a symbolic link, holds one, or cannot be written to.
        """
        for name in () if self.is_remote else names:
            check = folders.check_writable if name in UNWALKED else folders.check_unlinked
            check(
                self.folder / name, f"remove the link; the whole workdir may be one (ln -s /elsewhere/run {self.name})"
            )

    def write_missing(self, files: Mapping[str, bytes]) -> list[str]:
        """Writes again those of the files that somebody removed while the run goes on; their names.

        In a bucket the mirror's other files follow with the next flush.

        Raises:
            OSError: one cannot be written.
        """
        missing = [name for name in files if not storage.exists(storage.join(self.name, name))]
        for name in missing:
            write_atomically(self.folder / name, files[name])
        if missing and self.is_remote:
            with self.uploading:
                self.uploaded.clear()
        return missing

    def push(self, *, now: bool = False) -> None:
        """Uploads in the background what changed, unless that began less than EVERY_SECONDS ago and not `now`.

        Where the bucket fails there is one warning, and the next push tries again.
        """
        due = self.is_remote and (now or time.monotonic() - self.pushed >= EVERY_SECONDS)
        if due and not self.thread.is_alive():
            self.pushed = time.monotonic()
            self.thread = threading.Thread(target=self._push, daemon=True)
            self.thread.start()

    def flush(self) -> None:
        """Uploads what changed, and returns when it is in the bucket. Any thread may call this.

        Raises:
            OSError: something could not be uploaded; names it.
        """
        if self.is_remote:
            with self.uploading:
                self._upload()

    def share(self) -> None:
        """Gives all processes the files that process 0 has written; all call this. Raises as flush() and Workdir do."""
        on_first_process(self.flush)
        if self.is_remote and self.process:
            self._download(lambda name: not self._is_ours(name))

    def close(self) -> None:
        """Uploads what is left and removes the mirror, which stays where that fails. Raises as flush() does."""
        try:
            self.flush()
        except OSError:
            self.folder.with_name(self.folder.name + KEPT).touch()
            raise
        if self.is_remote:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.unlink(f"{self.folder}.lock")
            os.close(self.lock)

    def names(self) -> list[str]:
        """Return the sorted names of what the run's folder holds, but for locks and temporary files."""
        names = {CHECKPOINTS}
        with contextlib.suppress(OSError):
            names |= {name for name in os.listdir(self.folder) if name[0] != "." and not name.endswith(".tmp")}
        return sorted(names)

    def _download(self, wanted: Callable[[str], bool]) -> None:
        """Brings the wanted files that are new in the bucket."""
        try:
            files = storage.find_all(self.name)
        except FileNotFoundError as error:
            raise UserError(f"{self.name}: there is no such bucket") from error
        for file in files:
            name = file.path.removeprefix(f"{self.name}/")
            parts = name.split("/")  # a bucket's names are any text: ".." would leave the mirror
            small = parts[0] not in (CHECKPOINTS, "running.json", "profile") and not {"", ".", ".."} & set(parts)
            if small and wanted(name) and self.seen.get(name) != file:
                storage.write(str(self.folder / name), storage.read(file.path))
                self.seen[name], self.uploaded[name] = file, _stamp(self.folder / name)

    def _push(self) -> None:
        try:
            self.flush()
            self.warned = False
        except OSError as error:
            if not self.warned:
                warnings.warn(f"{error}; the run goes on, and the upload is tried again", stacklevel=2)
            self.warned = True

    def _upload(self) -> None:
        left = self._changed()
        for name, stamp in list(left.items()):
            try:
                if not (self.folder / name).is_file():  # a passing file of somebody else's
                    continue
                storage.write(storage.join(self.name, name), (self.folder / name).read_bytes())
            except OSError as error:
                some = ", ".join(list(left)[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
                raise OSError(f"{self.name}: {some} cannot be uploaded from {self.folder}: {error}") from error
            self.uploaded[name] = stamp
            del left[name]

    def _changed(self) -> dict[str, tuple[int, int]]:
        """The files to upload."""
        found = {}
        for file in sorted(self.folder.rglob("*")):
            name = file.relative_to(self.folder).as_posix()
            passing = file.suffix == ".tmp" or file.is_symlink() or not file.is_file()
            with contextlib.suppress(FileNotFoundError):
                if not passing and self._is_ours(name) and _stamp(file) != self.uploaded.get(name):
                    found[name] = _stamp(file)
        return found

    def _is_ours(self, name: str) -> bool:
        """Whether this process uploads the file."""
        found = re.fullmatch(r"(?:.*/)?process_([0-9]+)\.[^/]*", name)
        owner = int(found[1]) if found else 0
        return (owner if owner < jax.process_count() else 0) == self.process


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def cache_folder() -> Path:
    """Return the user's cache folder for filip_jax."""
    return Path(from_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "filip_jax")


def _mirror(url: str, process: int) -> tuple[Path, int]:
    """A new folder in the user's cache, below the URL's name, and its lock; two commands on one run do not share it."""
    if ".." in url.split("/"):
        raise UserError(f"{url}: '..' cannot stand in the name of a folder in a bucket")
    parent, host = cache_folder() / url.replace("://", "/"), socket.gethostname()
    with writing(parent), contextlib.ExitStack() as stack:
        parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_locked(parent))
        for old in parent.glob(f"process_*_{glob.escape(host)}_*/"):
            if not old.with_name(old.name + KEPT).exists():
                with contextlib.suppress(OSError), _locked(old, fcntl.LOCK_NB):  # of a process that is no more
                    shutil.rmtree(old)
                    os.unlink(f"{old}.lock")
        folder = Path(tempfile.mkdtemp(prefix=f"process_{process}_{host}_", dir=parent))
        return folder, _lock(folder)


@contextlib.contextmanager
def _locked(folder: Path, how: int = 0) -> Iterator[None]:
    lock = _lock(folder, how)
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path, how: int = 0) -> int:
    """The descriptor that holds a folder until it is closed or the process ends."""
    lock = os.open(f"{folder}.lock", os.O_RDWR | os.O_CREAT, 0o600)  # beside it: on NFS a folder cannot be locked
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | how)
    except OSError:
        os.close(lock)
        raise
    return lock
