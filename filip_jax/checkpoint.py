"""Orbax: {state, meta} of a step, whole or absent, restored onto any mesh."""

from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from filip_jax import paths
from filip_jax.errors import UserError

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of a run, in `workdir`/checkpoints/<step>/, for reading."""

    def __init__(self, workdir: Path, options: ocp.CheckpointManagerOptions | None = None):
        self.directory = (workdir / FOLDER).absolute()
        self.manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()},
            options=options or ocp.CheckpointManagerOptions(create=False),
        )

    def steps(self) -> list[int]:
        """The steps that are whole, oldest first."""
        items = [(step, self.directory / str(step)) for step in self.manager.all_steps()]
        return sorted(step for step, folder in items if all((folder / item).exists() for item in ("state", "meta")))

    def restore(self, step: int, target: Mapping[str, Any]) -> dict[str, Any]:
        """The parts of the state that `target` names, as arrays of its shapes, types and shardings.

        Args:
            target: nested dicts of jax.ShapeDtypeStruct with shardings; {"params": …} restores the
                parameters alone.

        Raises:
            UserError: the checkpoint is of another model, with the paths that differ, or damaged.
        """
        with self._readable(step):
            self._compare(step, target)
            arguments = ocp.checkpoint_utils.construct_restore_args(target)
            item = ocp.args.PyTreeRestore(target, restore_args=arguments, partial_restore=True)
            state = self.manager.restore(step, args=ocp.args.Composite(state=item))["state"]
        missing = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
            if not isinstance(leaf, jax.Array)
        ]
        if missing:
            raise UserError(f"{self.directory}/{step} holds another state: {', '.join(missing[:5])} is missing")
        return state

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the state."""
        with self._readable(step):
            return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    @contextmanager
    def _readable(self, step: int):
        """Whatever Orbax meets in a damaged checkpoint, as one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            older = [other for other in self.steps() if other != step]
            instead = f"; whole are also {', '.join(map(str, older))}: remove {step} to use them" if older else ""
            first = " ".join(str(error).split())[:200]
            raise UserError(f"{self.directory}/{step} is damaged: {type(error).__name__}: {first}{instead}") from error

    def has(self, step: int, part: str) -> bool:
        """Whether the state of a step has this part: "params", "ema" …"""
        return part in self._saved(step)

    def _saved(self, step: int) -> Mapping[str, Any]:
        with self._readable(step):
            return self.manager.item_metadata(step)["state"].tree

    def _compare(self, step: int, target: Mapping[str, Any]) -> None:
        saved = self._saved(step)
        lines = []
        for part in target:
            if part in ("params", "ema"):
                lines += _differences(saved.get(part, {}), target[part])
        if lines:
            more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
            raise UserError(f"{self.directory}/{step} holds another model: {'; '.join(lines[:5])}{more}")


class CheckpointWriter(Checkpoints):
    """The checkpoints of a run in progress.

    Args:
        every_steps: how often a save is due.
        keep_last: how many of the newest stay.
    """

    def __init__(self, workdir: Path, *, every_steps: int, keep_last: int):
        if every_steps < 1 or keep_last < 1:
            raise UserError(f"checkpoint: every_steps={every_steps} and keep_last={keep_last} must be at least 1")
        super().__init__(workdir, ocp.CheckpointManagerOptions(max_to_keep=keep_last, create=True))
        self.every_steps = every_steps

    def save(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Starts the save of a step; returns when the state may be overwritten, before it is on disk.

        Raises:
            Exception: whatever stopped the save before.
        """
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(dict(meta)))
        if not self.manager.save(step, args=items, force=True):
            raise RuntimeError(f"Orbax did not save step {step} to {self.directory}")

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
            Exception: whatever stopped a save.
        """
        self.manager.wait_until_finished()
        self.manager.close()


def _differences(saved: Mapping[str, Any], target: Mapping[str, Any]) -> list[str]:
    saved, target = paths.flatten(saved), paths.flatten(target)
    lines = [f"{path} is missing" for path in target if path not in saved]
    lines += [f"{path} is not of this model" for path in saved if path not in target]
    for path in target:
        if path in saved:
            have, want = ((x.dtype.name, tuple(x.shape)) for x in (saved[path], target[path]))
            if have != want:
                lines.append(f"{path} is {' '.join(map(str, have))}, the model's is {' '.join(map(str, want))}")
    return lines


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and types with shardings: the target of a restore."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
