"""Reading checkpoints: which are whole, what they hold, and their state on any mesh.

JAX and Orbax are imported where they are used: a checkpoint can be looked at without them.
"""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filip_jax import folders, storage
from filip_jax.checkpoint.manifest import ASIDE, FILE, Manifest, damage, describe, manifest_sha256, read_manifest
from filip_jax.errors import UserError
from filip_jax.saved_config import OtherFormat
from filip_jax.user_paths import absolute, from_user

FOLDER = "checkpoints"
SHOWN = 8  # differing paths that a message names
STEP = re.compile(r"0|[1-9]\d*")  # the name of a checkpoint's folder


class Checkpoints:
    """The checkpoints of a run, in `workdir`/checkpoints/<step>/, for reading.

    Args:
        name: of the folder with the steps; another one where checkpoints were copied to.
    """

    def __init__(self, workdir: str | Path, name: str = FOLDER):
        self.directory = storage.join(absolute(from_user(workdir)), name)

    def steps(self) -> list[int]:
        """The steps that were saved to their end, oldest first."""
        found = folders.matches(self.directory, f"*/{FILE}")
        names = (storage.name_of(storage.folder_of(path)) for path in found)
        return sorted(int(name) for name in names if STEP.fullmatch(name))

    def folder(self, step: int) -> str:
        """Where the checkpoint of a step lies."""
        return storage.join(self.directory, str(step))

    def manifest(self, step: int) -> Manifest:
        """What was written beside the state: step, tree, meta, config, files.

        Raises:
            UserError: it cannot be read, is damaged, or that of another step.
        """
        try:
            return self._manifest(step)
        except (UserError, OSError) as error:
            raise self._unusable(step, "cannot be read", error) from error

    def _manifest(self, step: int) -> Manifest:
        manifest = read_manifest(self.folder(step))
        if manifest["step"] != step:
            raise UserError(f"{self.folder(step)} is the checkpoint of step {manifest['step']}, but not named so")
        return manifest

    def meta(self, step: int) -> dict[str, Any]:
        """The position of the run: samples seen, hashes of tokenizer and data."""
        return self.manifest(step)["meta"]

    def sha256(self, step: int) -> str:
        """Of the checkpoint of a step as it was written, all its files."""
        return manifest_sha256(self.manifest(step))

    def damage(self, step: int, share: int = 0, shares: int = 1) -> str:
        """Which file of a checkpoint is not as it was written, and how; "" if all are well.

        Args:
            share, shares: looks at this of so many equal parts of the files.

        Raises:
            OtherFormat: another version of filip_jax wrote it.
            OSError: the disk or bucket cannot be asked; a file that it cannot give counts as damaged.
        """
        try:
            return damage(self.folder(step), self._manifest(step), share, shares)
        except OtherFormat:
            raise
        except UserError as error:
            return str(error)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENOENT, errno.EISDIR):
                raise
            return str(error)

    def check(self, step: int) -> None:
        """Raises a UserError that names the file which is not as it was written, or cannot be read."""
        try:
            found = self.damage(step)
        except OSError as error:
            raise self._unusable(step, "cannot be read", error) from error
        if found:
            raise self._unusable(step, "is damaged", found)

    def restore(self, step: int, target: Mapping[str, Any]) -> dict[str, Any]:
        """The parts of the state that `target` names, as arrays of its shapes, types and shardings.

        The files are not verified here: `check` does that.

        Args:
            target: nested dicts of jax.ShapeDtypeStruct with shardings; {"params": …} restores the
                parameters alone.

        Raises:
            UserError: the checkpoint is of another model or optimiser, with the paths, shapes and
                types that differ; or damaged.
        """
        manifest = self.manifest(step)
        parts = tuple(f"{part}/" for part in target)
        saved = {path: leaf for path, leaf in manifest["tree"].items() if f"{path}/".startswith(parts)}
        if lines := differences(saved, describe(target)):
            more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
            raise UserError(f"{self.folder(step)} holds another state: {'; '.join(lines[:SHOWN])}{more}")
        return self.read(step, target)

    def read(self, step: int, target: Any) -> Any:
        """The leaves of `target`, which must be those of the checkpoint, some of its parts left out.

        Raises:
            UserError: they cannot be read.
        """
        import orbax.checkpoint as ocp

        from filip_jax.checkpoint.store import literal, misfit

        manifest = self.manifest(step)
        folder = literal(storage.join(self.folder(step), manifest["state"]))
        if found := misfit(str(folder), manifest["tree"]):  # Orbax would say it in many lines, on several threads
            raise self._unusable(step, "is damaged", f"{folder}: {found}")
        arguments = ocp.checkpoint_utils.construct_restore_args(target)
        item = ocp.args.PyTreeRestore(target, restore_args=arguments, partial_restore=True)
        try:
            return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(folder, args=item)
        except Exception as error:
            first = " ".join(str(error).split())[:200]
            raise self._unusable(step, "is damaged", f"{folder}: {type(error).__name__}: {first}") from error

    def has(self, step: int, part: str) -> bool:
        """Whether the state of a step has this part: "params", "ema" …"""
        return any(path.startswith(f"{part}/") for path in self.manifest(step)["tree"])

    def _unusable(self, step: int, how: str, said: object) -> UserError:
        others = [str(other) for other in self.steps() if other != step]
        also = f"; there are also the steps {', '.join(others)}" if others else ""
        return UserError(f"the checkpoint of step {step} {how}: {said}{also}")


def find_checkpoint(path: str, step: int | None = None) -> tuple[Checkpoints, int]:
    """The checkpoint that a path names: a run's workdir, of which `step` or the newest, or the folder of one step.

    Raises:
        UserError: there is none, or not of this step.
        OSError: the disk or the bucket fails.
    """
    if not path:
        raise UserError("the name of a checkpoint or workdir is empty")
    path = from_user(path)
    place = absolute(path).rstrip("/") or "/"
    if storage.name_of(place) == FOLDER and folders.matches(place, f"*/{FILE}"):
        place = storage.folder_of(place)
    if storage.exists(storage.join(place, FILE)):
        folder, name = storage.folder_of(place), storage.name_of(place)
        try:
            saved = read_manifest(place)["step"]
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        if name != str(saved):
            raise UserError(f"{path} is the checkpoint of step {saved}, but not named so: call the folder {saved}")
        if step not in (None, saved):
            raise UserError(f"{path} is the checkpoint of step {saved}, not of step {step}: name its run's workdir")
        return Checkpoints(storage.folder_of(folder), storage.name_of(folder)), saved
    found = Checkpoints(place)
    steps = found.steps()
    if not steps:
        raise UserError(f"{path} {_why_none(place)}")
    if step not in (None, *steps):
        raise UserError(f"{path} has no checkpoint of step {step}; it has the steps {', '.join(map(str, steps))}")
    return found, steps[-1] if step is None else step


def _why_none(place: str) -> str:
    if storage.exists(storage.join(place, ASIDE)):
        return f"is a checkpoint that its run found damaged ({ASIDE}): it counts no more"
    if not storage.is_remote(place) and not os.path.isdir(place):
        return "is a file, not a folder" if os.path.exists(place) else "is no folder that exists"
    if folders.matches(place, "*/_METADATA"):
        return f"is no whole checkpoint: it has no {FILE}, which is written last"
    return f"holds no whole checkpoint: neither {FILE} nor {FOLDER}/<step>/{FILE} is there"


def differences(saved: Mapping[str, Any], target: Mapping[str, Any]) -> list[str]:
    """One line for each path that only one of two trees has, or whose shape or type differs."""
    lines = [f"{path} is missing" for path in target if path not in saved]
    lines += [f"{path} is not of this run" for path in saved if path not in target]
    for path in target:
        if path in saved and saved[path] != target[path]:
            have, want = (f"{leaf['dtype']} {tuple(leaf['shape'])}" for leaf in (saved[path], target[path]))
            lines.append(f"{path} is {have}, this run's is {want}")
    return lines


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and types with shardings: the target of a restore."""
    import jax

    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
