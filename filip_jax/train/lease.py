"""One run writes a workdir at a time: who does is told by a file that it keeps alive."""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filip_jax import folders, storage
from filip_jax.errors import UserError
from filip_jax.files import locked, write_atomically
from filip_jax.small_files import Notes, is_number, parse

FILE = "running.json"
LOCK = ".running.tmp"  # beside it, while a start looks whether another run writes there
BEAT = 10.0  # seconds between signs of life
SEEN_BY = ("host", "boot", "namespace", "folder")  # where all are the same, a process sees another one by its id


class Lease:
    """Holds a workdir for this process, if it is the first of its run.

    A run of a process that is gone from this host gives way at once. One of another host or another container, which
    may have the same host name and process id, is watched for two beats first: no clock of two hosts is compared. So
    is one whose lease came here with a copy of its folder.

    Attributes:
        clock: gives the run's seconds, of all its starts; kept with each sign of life.
        lost: called with a line when another run took the workdir, or it was moved or removed.
        reached: what the clock of a start that was killed had come to, within BEAT; 0.0 after others.

    Raises:
        UserError: another run writes there.
    """

    def __init__(self, place: str, holds: bool = True):
        self.place, self.path, self.holds = place, storage.join(place, FILE), holds
        self.reached, began = 0.0, time.monotonic()
        self.clock: Callable[[], float] = lambda: self.reached + time.monotonic() - began
        self.lost: Callable[[str], None] = lambda line: None
        self.turn = threading.Lock()
        if not holds:
            return
        self.folder = None if storage.is_remote(place) else os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.me: dict[str, Any] = {"token": secrets.token_hex(8), **_place_of_process(self.folder), "pid": os.getpid()}
        self.me |= {"began": _began(os.getpid()), "beat": 0}
        try:
            busy = f"another run starts in {place} at this moment: give another --workdir, or try again"
            with contextlib.nullcontext() if self.folder is None else locked(Path(place, LOCK), busy):
                self._take()
        except BaseException:
            self._let_go()
            raise
        self.ended = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="lease").start()

    def close(self) -> None:
        """Gives the workdir free."""
        if not self.holds:
            return
        self.ended.set()
        with self.turn, contextlib.suppress(OSError):
            if self._is_same_folder() and (self._read() or {}).get("token") == self.me["token"]:
                folders.remove([self.path], self.place)
        self._let_go()

    def check(self) -> None:
        """Looks whether the workdir is still this run's; a lease that somebody removed there is written again.

        Raises:
            UserError: another run took it, or it is no longer the folder that this run opened.
            OSError: the disk or the bucket fails.
        """
        if not self.holds:
            return
        with self.turn:
            if self.ended.is_set():  # while the thread waited for its turn
                return
            other = self._read()
            if other and other.get("token") != self.me["token"]:
                raise UserError(
                    f"another run began to write to {self.place} at the same time: process {other.get('pid')} on "
                    f"{other.get('host')}; this one ends"
                )
            if not self._is_same_folder():  # nor is a copy, to which files that are open here do not belong
                raise UserError(
                    f"{self.place} was moved or removed while the run wrote there; this run ends. What it has saved lies "
                    "where the folder is now: with --workdir naming that, the same command goes on"
                )
            self._write()

    def _is_same_folder(self) -> bool:
        if self.folder is None:
            return True
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return os.path.samestat(os.stat(self.place), os.fstat(self.folder))
        return False

    def _take(self) -> None:
        if other := self._read():
            self._check_ended(other)
            if is_number(seconds := other.get("seconds")):  # else of an older version, or not ours
                self.reached = max(0.0, seconds)
        self._write()

    def _let_go(self) -> None:
        if self.folder is not None:
            os.close(self.folder)
            self.folder = None

    def _run(self) -> None:
        while not self.ended.wait(BEAT):
            self.me["beat"] += 1
            try:
                self.check()
            except UserError as error:
                if self.ended.is_set():
                    return
                return self.lost(f"filip: error: {error}")
            except OSError:
                continue  # a disk that fails is the run's own matter

    def _write(self) -> None:
        self.me["seconds"] = round(self.clock(), 1)
        data = json.dumps(self.me).encode()
        if self.folder is None:
            storage.write(self.path, data)
        else:
            write_atomically(Path(self.path), data)  # which makes no folder anew

    def _read(self) -> dict[str, Any] | None:
        try:
            found = parse(folders.read_whole(self.path), Notes())
            return found if isinstance(found, dict) else None
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            return None

    def _check_ended(self, other: dict[str, Any]) -> None:
        if all(other.get(name) == self.me[name] is not None for name in SEEN_BY):
            alive = self._is_alive(other.get("pid"), other.get("began"))
        else:
            alive = None
        if self._beats(other) if alive is None else alive:
            raise UserError(
                f"another run writes to {self.place}: process {other.get('pid')} on {other.get('host')}; wait until it "
                f"has ended, or give another --workdir (if it cannot be, remove {self.path})"
            )

    def _is_alive(self, pid: Any, began: Any) -> bool | None:
        """Whether a process of this host and namespace lives; None if this one may not know."""
        if not isinstance(pid, int) or not 0 < pid < 1 << 31 or pid == self.me["pid"]:
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # of another user
            pass
        now = _began(pid)  # None also where /proc hides it, or is that of another namespace
        return None if None in (began, now) else now == began

    def _beats(self, other: dict[str, Any]) -> bool:
        end = time.monotonic() + 2.5 * BEAT
        while time.monotonic() < end:
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                if (found := self._read()) != other:
                    return found is not None
        return False


def _place_of_process(folder: int | None) -> dict[str, str | int | None]:
    """Where this process is seen by its id: host, kernel, pid namespace and the workdir itself, not a copy of it."""
    boot = namespace = None
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    number = 0 if folder is None else os.fstat(folder).st_ino
    return dict(zip(SEEN_BY, (socket.gethostname(), boot, namespace, number)))


def _began(pid: Any) -> str | None:
    """When a process of this host began, so that a later one of its number is not taken for it; None if nobody says."""
    try:
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # a zombie writes nothing any more
    except (OSError, ValueError, TypeError, IndexError):
        return None
