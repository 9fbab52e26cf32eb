"""Saving checkpoints beside the training: Orbax writes the state, the manifest makes it count."""

import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from filip_jax import __version__, buckets, folders, storage
from filip_jax.checkpoint.manifest import ASIDE, FILE, describe, write_manifest
from filip_jax.checkpoint.reader import STEP, Checkpoints
from filip_jax.checkpoint.store import literal, misfit
from filip_jax.errors import UserError
from filip_jax.files import DISKS, named
from filip_jax.sections import at_least
from filip_jax.small_files import parse

OS_ERROR = re.compile(r"\[os_error_code='(\d+)'")  # as TensorStore writes it, behind the files that it was about
# Replicas share the writing of an array where the slice of each has so many bytes. Each slice is a program of its own, which
# costs the first save more than writing a small array does.
MIN_SLICE_BYTES = 2**20
CLAIM = "saving.json"  # names what a save under way writes, so that its remains are known as ours


class CheckpointWriter(Checkpoints):
    """The checkpoints of a run in progress.

    Args:
        every_steps: how often a save is due; the trainer keeps to it.
        every_minutes: how often by the clock, whatever comes first; 0 for steps alone.
        keep_last: how many of the newest stay.
        keep_every_steps: steps divisible by it stay for ever; 0 for none.

    Attributes:
        seconds: that its save took, from its beginning to its manifest.
        before_manifest: process 0 calls it when the state is on disk, and the checkpoint does not count yet.

    Raises:
        UserError: a number out of range, or a path that Orbax takes for another one.
    """

    def __init__(
        self, workdir: str | Path, *, every_steps: int, every_minutes: float, keep_last: int, keep_every_steps: int
    ):
        at_least(1, "checkpoint", every_steps=every_steps, keep_last=keep_last)
        at_least(0, "checkpoint", every_minutes=every_minutes, keep_every_steps=keep_every_steps)
        super().__init__(workdir)
        literal(self.directory)
        self.root = storage.folder_of(self.directory)
        self.every_minutes = every_minutes
        self.keep_last, self.keep_every_steps = keep_last, keep_every_steps
        self.orbax = ocp.AsyncCheckpointer(_handler(), **buckets.prepare(self.directory))
        self.before_manifest: Callable[[], None] = lambda: None
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.seconds = 0.0
        self.since = time.monotonic()

    def is_due_by_clock(self) -> bool:
        """Whether this process's clock asks for a save."""
        return bool(self.every_minutes) and time.monotonic() - self.since >= 60 * self.every_minutes

    def save(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Starts the save of a step; returns when the state may be overwritten, before it is on disk.

        All processes call it at the same step.

        Raises:
            UserError, OSError: this save or the one before failed, or the step's folder is a symbolic link.
        """
        self.wait()
        if link := folders.first_link(self.folder(step), self.root):
            raise UserError(f"{link} is a symbolic link, through which no checkpoint is saved: remove the link")
        self.since = started = time.monotonic()
        folder, name = self.folder(step), self._free_name(step)
        content = {
            "step": step,
            "tree": describe(state),
            "meta": {"filip_jax_version": __version__, **meta},
            "config": dict(config),
        }
        try:
            if jax.process_index() == 0:
                storage.write(storage.join(folder, CLAIM), json.dumps({"state": name}).encode())
            self.orbax.save(literal(storage.join(folder, name)), args=ocp.args.PyTreeSave(state))
        except Exception as error:
            raise self._failed(step, error) from error
        arguments = (step, name, content, started)
        self.thread = threading.Thread(target=self._finish, args=arguments, daemon=True, name="checkpoint")
        self.thread.start()

    def check_saves(self) -> None:
        """Raises a UserError or OSError if the save under way has failed."""
        if self.error:
            error, self.error = self.error, None
            raise error

    def wait(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
            UserError, OSError: a save failed.
        """
        if self.thread:
            self.thread.join()
            self.thread = None
        self.check_saves()

    def without_manifest(self) -> list[str]:
        """Folders that look like checkpoints and are none, for want of a manifest."""
        found = {
            storage.folder_of(storage.folder_of(path)) for path in folders.matches(self.directory, "*/*/_METADATA")
        }
        marked = {
            storage.folder_of(path) for name in (FILE, ASIDE) for path in folders.matches(self.directory, f"*/{name}")
        }
        return sorted(found - marked)

    def linked_steps(self) -> list[int]:
        """The steps whose folder is a symbolic link: they are read, but nothing is written or removed there."""
        if storage.is_remote(self.directory) or not os.path.isdir(self.directory):
            return []
        with os.scandir(self.directory) as found:
            return sorted(int(each.name) for each in found if each.is_symlink() and STEP.fullmatch(each.name))

    def set_aside(self, step: int) -> None:
        """Makes a damaged checkpoint count no more; nothing of it is removed. For the first process."""
        manifest, content = storage.join(self.folder(step), FILE), b""
        with contextlib.suppress(OSError):  # it may be what cannot be read
            content = folders.read_whole(manifest)
        storage.write(storage.join(self.folder(step), ASIDE), content)
        folders.remove([manifest], self.root)

    def clean(self, keep: int | None = None) -> None:
        """Ends what saves and removals that were cut off have begun. For the first process, of a run known to be ours.

        Args:
            keep: the step that the run goes on from, which stays.
        """
        for claim in folders.matches(self.directory, f"*/{CLAIM}"):
            try:
                self._clean(claim, keep)
            except OSError as error:
                warnings.warn(f"what a save that was cut off has left stays where it is: {error}", stacklevel=2)

    def _clean(self, claim: str, keep: int | None) -> None:
        folder = storage.folder_of(claim)
        if folders.first_link(folder, self.root) or not STEP.fullmatch(storage.name_of(folder)):
            return
        try:
            claimed = parse(folders.read_whole(claim))
            name, files = claimed["state"], claimed.get("files")
            ours = re.fullmatch(r"state(_\d+)?", name) and all(file.startswith(f"{name}/") for file in files or ())
            whole = storage.exists(storage.join(folder, FILE)) and self.manifest(int(storage.name_of(folder)))
            paths = [storage.join(folder, file) for file in (FILE, *files)] if files is not None else []
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return  # nothing that we wrote, or a manifest that is damaged
        if not ours or storage.exists(storage.join(folder, ASIDE)):
            return
        if files is not None and storage.name_of(folder) != str(keep):
            folders.remove([path for path in paths if ".." not in path.split("/")], self.root)
        elif not whole or whole["state"] != name:
            left = (name, f"{name}.orbax-checkpoint-tmp*")
            paths = [path for pattern in left for path in folders.matches(folder, pattern, deep=True)]
            folders.remove(paths, self.root)
        folders.remove([claim], self.root)
        folders.remove_empty_folders(folder, self.root)

    def _finish(self, step: int, name: str, content: dict[str, Any], started: float) -> None:
        """In a thread: the manifest, when all processes have written; then the old ones go."""
        try:
            self.orbax.wait_until_finished()
            if jax.process_index() == 0:
                self.before_manifest()
                if found := misfit(storage.join(self.folder(step), name), content["tree"]):
                    raise UserError(f"{name}, opened again, is not the state: {found}")
                write_manifest(self.folder(step), content, name)
                folders.remove([storage.join(self.folder(step), CLAIM)], self.root)
                self._remove_old()
            self.seconds = time.monotonic() - started
        except Exception as error:
            self.error = error  # whatever happens while it is put into words
            self.error = self._failed(step, error)

    def _remove_old(self) -> None:
        steps, linked = self.steps(), self.linked_steps()
        for step in steps[: -self.keep_last]:
            if step not in linked and (not self.keep_every_steps or step % self.keep_every_steps):
                try:
                    self._remove(step)
                except (UserError, OSError) as error:
                    warnings.warn(f"the old checkpoint of step {step} is left where it is: {error}", stacklevel=2)

    def _remove(self, step: int) -> None:
        """Removes the files that the manifest lists, and no others; the manifest first."""
        folder, manifest = self.folder(step), self.manifest(step)
        claim, paths = storage.join(folder, CLAIM), [storage.join(folder, name) for name in manifest["files"]]
        for path in paths:
            if link := folders.first_link(path, self.root):
                raise UserError(f"{link} is a symbolic link, behind which nothing is removed")
        listed = {"state": manifest["state"], "files": list(manifest["files"])}
        storage.write(claim, json.dumps(listed).encode())  # a kill leaves what `clean` ends
        folders.remove([storage.join(folder, FILE)], self.root)
        folders.remove(paths, self.root)
        folders.remove([claim], self.root)
        folders.remove_empty_folders(folder, self.root)

    def _free_name(self, step: int) -> str:
        """state, or another name where the remains of a damaged checkpoint lie."""
        folder = self.folder(step)
        taken = {path.removeprefix(f"{folder}/").split("/")[0] for path in folders.matches(folder, "*/*")}
        if os.path.isdir(folder):
            linked = [name for name in os.listdir(folder) if os.path.islink(os.path.join(folder, name))]
            taken |= {name.partition(".")[0] for name in linked}  # Orbax writes to state.orbax-checkpoint-tmp first
        names = ("state", *(f"state_{n}" for n in range(1, 1000)))
        return next(name for name in names if name not in taken)

    def _failed(self, step: int, error: Exception) -> Exception:
        whole = []
        with contextlib.suppress(Exception):  # the disk or bucket that has just failed
            whole = self.steps()
        have = f"the newest whole checkpoint is of step {whole[-1]}" if whole else "there is no whole checkpoint"
        number = OS_ERROR.search(str(error))
        if number and int(number[1]) in DISKS:
            error = named(OSError(int(number[1]), ""), self.folder(step))
        said = " ".join(str(error).split())
        said = said if len(said) < 400 else f"{said[:200]} … {said[-200:]}"
        return UserError(f"{self.folder(step)} could not be saved: {type(error).__name__}: {said}; {have}")


def _handler() -> ocp.PyTreeCheckpointHandler:
    """Return what writes a state, whose leaves are JAX's arrays or, of imported weights, NumPy's."""
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=MIN_SLICE_BYTES)
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler()), (jax.Array, arrays)
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def hide_repeated_errors() -> None:
    """For a process of its own: Orbax's threads print the errors that they also give back, and that `wait` raises."""
    orbax = os.path.join(os.sep, "orbax", "checkpoint", "")
    logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and orbax in record.pathname))
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda found: None if "Event loop is closed" in str(found.exc_value) else unraisable(found)
