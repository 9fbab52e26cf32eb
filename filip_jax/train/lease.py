"""One run writes a workdir at a time: who does is told by a file that it keeps alive."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filip_jax import folders, storage
from filip_jax.errors import UserError

FILE = "running.json"
BEAT = 10.0  # seconds between signs of life


class Lease:
    """Holds a workdir for this process, if it is the first of its run.

    A run of a process that is gone from this host gives way at once. One of another host is watched
    for two beats first: no clock of two hosts is compared.

    Attributes:
        clock: gives the run's seconds, of all its starts; kept with each sign of life.
        lost: called with a line when another run took the workdir in the same moment.
        reached: what the clock of a start that was killed had come to, within BEAT; 0.0 after others.

    Raises:
        UserError: another run writes there.
    """

    def __init__(self, place: str, holds: bool = True):
        self.path, self.holds, self.reached, began = storage.join(place, FILE), holds, 0.0, time.monotonic()
        self.clock: Callable[[], float] = lambda: self.reached + time.monotonic() - began
        self.lost: Callable[[str], None] = lambda line: None
        if holds:
            self._hold()

    def _hold(self) -> None:
        self.me = {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid()), "beat": 0}
        if other := self._read():
            self._check(other)
            with contextlib.suppress(KeyError, TypeError, ValueError):  # of an older version, or not ours
                self.reached = max(0.0, float(other["seconds"]))
        self.ended = threading.Event()
        self._write()
        threading.Thread(target=self._run, daemon=True, name="lease").start()

    def close(self) -> None:
        """Gives the workdir free."""
        if not self.holds:
            return
        self.ended.set()
        with contextlib.suppress(OSError):
            folders.remove([self.path])

    def _run(self) -> None:
        while not self.ended.wait(BEAT):
            self.me["beat"] += 1
            with contextlib.suppress(OSError):  # a disk that fails is the run's own matter
                if not storage.exists(self.path):
                    return  # somebody removed it
                if (other := self._read()) and (other.get("host"), other.get("pid")) != (
                    self.me["host"],
                    self.me["pid"],
                ):
                    return self.lost(
                        f"filip: error: another run began to write to {storage.folder_of(self.path)} at the same time: "
                        f"process {other.get('pid')} on {other.get('host')}; this one ends"
                    )
                self._write()

    def _write(self) -> None:
        self.me["seconds"] = round(self.clock(), 1)
        storage.write(self.path, json.dumps(self.me).encode())

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(folders.read_whole(self.path))
            return found if isinstance(found, dict) else None
        except (OSError, ValueError):
            return None

    def _check(self, other: dict[str, Any]) -> None:
        host, pid, began = (other.get(name) for name in ("host", "pid", "began"))
        if host == self.me["host"]:
            alive = pid != self.me["pid"] and began is not None and _began(pid) == began
        else:
            alive = self._beats(other)
        if alive:
            raise UserError(
                f"another run writes to {storage.folder_of(self.path)}: process {pid} on {host}; wait until it has "
                f"ended, or give another --workdir (if it can not be, remove {self.path})"
            )

    def _beats(self, other: dict[str, Any]) -> bool:
        end = time.monotonic() + 2.5 * BEAT
        while time.monotonic() < end:
            time.sleep(0.5)
            if (found := self._read()) != other:
                return found is not None
        return False


def _began(pid: Any) -> str | None:
    """When the process of this host began, so that a later one of the same number is not taken for it."""
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError, TypeError, IndexError):
        return None
