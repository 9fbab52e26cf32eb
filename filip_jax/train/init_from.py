"""The beginning of a run from other runs' checkpoints: which arrays are taken, from where, and how they are made to fit."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from filip_jax import paths, storage
from filip_jax.checkpoint import Checkpoints, find_checkpoint
from filip_jax.checkpoint.manifest import Manifest
from filip_jax.checkpoint.shared import find_damage
from filip_jax.cluster import service
from filip_jax.errors import UserError
from filip_jax.mesh import replicated
from filip_jax.models.patches import fit_positions
from filip_jax.paths import Metadata
from filip_jax.saved_config import TOKENIZER
from filip_jax.sections import DTYPES, call
from filip_jax.train.metrics import say

Rules = Sequence[Any]  # of (regular expression, path or None); configs give tuples, saved configs lists
Leaf = Mapping[str, Any]  # {shape, dtype}
MAX_SHOWN = 8  # misfits that a message names
TEACHER = "init_from.teacher"


def origins_of(
    shapes: Mapping[str, Any], *, path: str, rules: Rules, state: bool = False, teacher: Any = None
) -> dict[str, str]:
    r"""Return {path in the state: path in a checkpoint, without its part} of the arrays that are taken; none without a path.

    Args:
        shapes: of the new run's state, or its arrays.
        path: the workdir of a run of filip_jax, whose newest checkpoint is taken, or one checkpoint's folder;
            "" begins anew.
        rules: (regular expression that matches a whole path of the new run's parameters, path in the checkpoint with \1
            for groups, or None to begin this one anew), tried in order. What no rule matches is taken
            from the same path.
        state: whether running means and counts of objectives are taken, too, by the same rules.
        teacher: the section {path, rules} of another checkpoint, for the teacher's own parameters; else they begin as
            copies of the run's.

    Raises:
        UserError: what is no rule, a rule that matches no parameter, rules that take nothing, or a teacher where no
            objective has one.
    """
    parts = {"params": shapes["params"]} | ({"objectives": shapes.get("objectives", {})} if state else {})
    origins = _renamed(parts, "init_from", path=path, rules=rules)
    if teacher is None:
        return origins
    return origins | call(_renamed, teacher, TEACHER, parts={"teacher": shapes.get("teacher", {})}, place=TEACHER)


def _renamed(parts: Mapping[str, Any], place: str, *, path: str, rules: Rules) -> dict[str, str]:
    """Return {path in the state: path in a checkpoint, without its part} of the leaves of these parts that are taken."""
    if not isinstance(rules, (tuple, list)):
        raise UserError(f"{place}.rules={rules!r} are not a tuple of pairs")
    if not path:
        if rules:
            how = "" if place == TEACHER else " by --init_from=WORKDIR"
            raise UserError(f"{place}.rules are given, but {place}.path is empty: name a run's workdir{how}")
        return {}
    if not (leaves := paths.flatten(parts)):
        raise UserError(f"{place}.path is given, but no objective has a teacher")
    names = paths.rename(rules, list(dict.fromkeys(map(_name, leaves))), f"{place}.rules")
    if not any(names.values()):
        raise UserError(f'{place}.rules leave every parameter fresh; {place}.path="" says so')
    return {leaf: name for leaf in leaves if (name := names[_name(leaf)]) is not None}


def _name(path: str) -> str:
    """Return the path of an array of the state, without the part if that holds parameters."""
    return path if path.startswith("objectives/") else path.partition("/")[2]


@dataclass(frozen=True)
class Donor:
    """A checkpoint whose arrays fit a new run.

    Attributes:
        key: of the config, which names the checkpoint.
        saved: the shapes and types of all its arrays, by path.
        origins: {path in the new run's state: path in the checkpoint}.
        metadata, saved_metadata: of the new run's parameters and of the checkpoint's, each by its own paths.
        tokenizer_sha256: of the checkpoint's run.
    """

    checkpoints: Checkpoints
    step: int
    key: str
    saved: Mapping[str, Leaf]
    origins: Mapping[str, str]
    metadata: Mapping[str, Metadata]
    saved_metadata: Mapping[str, Metadata]
    tokenizer_sha256: str

    def _leaves(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the leaves, by path, of the parts of a state that the checkpoint fills."""
        return paths.flatten({part: state[part] for part in {path.partition("/")[0] for path in self.origins}})

    def check_fit(self, shapes: Mapping[str, Any]) -> None:
        """Raise a UserError if some array cannot become this run's, with the rule that leaves it fresh."""
        leaves, misfits = self._leaves(shapes), {}
        for path, origin in self.origins.items():
            if misfit := _misfit(self.saved.get(origin), leaves[path], *self._positions(path)):
                name, other = _name(path), _name(origin)
                misfits[name] = f"{name}{f' (there {other})' if other != name else ''} {misfit}"
        if misfits:
            more = f"; and {len(misfits) - MAX_SHOWN} more" if len(misfits) > MAX_SHOWN else ""
            names = paths.unflatten({_name(path): leaf for path, leaf in leaves.items()})
            rule = ("|".join(paths.cover(names, misfits.keys())), None)
            raise UserError(
                f"{self.key}: {self.checkpoints.folder(self.step)} does not fit this run: "
                f"{'; '.join(list(misfits.values())[:MAX_SHOWN])}{more}. "
                f"To leave {'these' if len(misfits) > 1 else 'it'} fresh, put the rule {rule} first in {self.key}.rules"
            )

    def check(self, tokenizer_sha256: str) -> None:
        """Read all files of the checkpoint; all processes call it.

        Raises:
            UserError: one is not as it was written, or token embeddings are taken, but of another tokenizer.
        """
        embeddings = "|".join(_name(path) for path in self.origins if self._metadata(path).token_ids)
        if embeddings and tokenizer_sha256 != self.tokenizer_sha256:
            file = storage.join(storage.folder_of(self.checkpoints.directory), TOKENIZER)
            raise UserError(
                f"{self.key}: the run's tokenizer is not the checkpoint's (sha256 {tokenizer_sha256[:12]}… instead of "
                f"{self.tokenizer_sha256[:12]}…): set tokenizer.name=sentencepiece tokenizer.path={file}, or leave "
                f"the embeddings fresh with the rule ({embeddings!r}, None), first in {self.key}.rules"
            )
        if damage := find_damage(self.checkpoints, self.step):
            raise UserError(f"{self.key}: the checkpoint of step {self.step} is damaged: {damage}")

    def fill(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state with the checkpoint's arrays, where and as its own are. All processes call it.

        With new parameters an average and a teacher begin as copies of them.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        leaves, origins = self._leaves(state), self.origins
        target = {origin: self._target(origin, leaves[path]) for path, origin in origins.items()}
        read = paths.flatten(self.checkpoints.read(self.step, paths.unflatten(target)))

        def take(values):  # copied, since the state is donated: no two of its arrays may be one
            return {
                path: jnp.copy(_fitted(values[origin], leaves[path], *self._positions(path)))
                for path, origin in origins.items()
            }

        shardings = {path: leaves[path].sharding for path in origins}
        filled = {**state, **paths.unflatten(leaves | jax.jit(take, out_shardings=shardings)(read))}
        self._say(leaves)
        copies = [part for part in ("ema", "teacher") if part in state and filled["params"] is not state["params"]]
        parameters = filled["params"]
        return filled | {
            part: jax.tree.map(jnp.copy, {name: parameters[name] for name in state[part]}) for part in copies
        }

    def _metadata(self, path: str) -> Metadata:
        return self.metadata.get(_name(path), Metadata())

    def _positions(self, path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of a parameter's positions in the checkpoint and in this run; () unless both are of one kind."""
        old = self.saved_metadata.get(_name(self.origins[path]), Metadata()).positions
        new = self._metadata(path).positions
        return (old, new) if len(old) == len(new) else ((), ())

    def _target(self, origin: str, leaf: jax.Array) -> jax.ShapeDtypeStruct:
        shape, dtype = tuple(self.saved[origin]["shape"]), self.saved[origin]["dtype"]
        sharding: Any = leaf.sharding  # on a mesh, as all of the state
        sharding = sharding if shape == leaf.shape else replicated(sharding.mesh)
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)

    def _say(self, leaves: Mapping[str, jax.Array]) -> None:
        names = paths.unflatten({_name(path): leaf for path, leaf in leaves.items()})
        fresh = paths.cover(names, {_name(path) for path in leaves.keys() - self.origins.keys()})
        parts = ", ".join(sorted({origin.partition("/")[0] for origin in self.origins.values()}))
        say(
            f"{self.key}: {len(self.origins)} of {len(leaves)} parameters are those of "
            f"{self.checkpoints.folder(self.step)} ({parts})" + (f"; fresh: {', '.join(fresh)}" if fresh else "")
        )
        for path in self.origins:
            old, new = self._positions(path)
            if old != new and len(new) > 1:
                say(f"{_name(path)}: resized from {old[0]}x{old[1]} to {new[0]}x{new[1]}")
            elif old != new:
                say(f"{_name(path)}: the first {new[0]} of {old[0]} rows")
        types = ((self.saved[origin]["dtype"], str(leaves[path].dtype)) for path, origin in self.origins.items())
        for (old_type, new_type), count in Counter(types).items():
            if old_type != new_type:
                say(f"{self.key}: {count} parameters cast from {old_type} to {new_type}")


def open_donors(section: Mapping[str, Any], shapes: Mapping[str, Any], metadata: Mapping[str, Metadata]) -> list[Donor]:
    """Return the donors of a config's section `init_from`, in the order in which they fill a state. All processes call it.

    Args:
        shapes: of the new run's state.
        metadata: of its parameters, by path.

    Raises:
        UserError: no such checkpoint, or one whose arrays do not fit: with their paths, shapes and types, and
            the rule that leaves them fresh.
    """
    origins = call(origins_of, section, "init_from", shapes=shapes)
    of_teacher = {path: name for path, name in origins.items() if path.startswith("teacher/")}
    of_run = {path: name for path, name in origins.items() if path not in of_teacher}
    donors = [_open("init_from", section["path"], of_run, metadata)] if of_run else []
    donors += [_open(TEACHER, section["teacher"]["path"], of_teacher, metadata)] if of_teacher else []
    for donor in donors:
        donor.check_fit(shapes)
    return donors


def fill_all(donors: Sequence[Donor], state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state that the donors fill, one after the other."""
    return reduce(lambda filled, donor: donor.fill(filled), donors, dict(state))


def _open(key: str, path: str, names: Mapping[str, str], metadata: Mapping[str, Metadata]) -> Donor:
    """Return the donor at a path, a workdir or a checkpoint's folder."""
    opened: list[tuple[Checkpoints, int]] = []
    manifests: list[Manifest] = []
    try:
        service.together(lambda: opened.append(find_checkpoint(path)))
        checkpoints, step = opened[0][0], service.of_first_process(opened[0][1])
        service.together(lambda: manifests.append(checkpoints.manifest(step)))
    except UserError as error:
        raise UserError(f"{key}.path: {error}") from error
    tree, meta = manifests[0]["tree"], manifests[0]["meta"]
    part = "ema" if any(leaf.startswith("ema/") for leaf in tree) else "params"
    origins = {path: name if path.startswith("objectives/") else f"{part}/{name}" for path, name in names.items()}
    of_saved = paths.read_metadata(meta.get("parameters", {}))
    return Donor(checkpoints, step, key, tree, origins, metadata, of_saved, str(meta.get("tokenizer_sha256", "")))


def _misfit(have: Leaf | None, want: Any, old: tuple[int, ...], new: tuple[int, ...]) -> str:
    """Return why a leaf of the checkpoint cannot become this parameter; "" if it can.

    Args:
        old, new: shapes of the positions that the last rows of the leaf and of the parameter stand for, see `Metadata`.
    """
    if have is None:
        return "is not in the checkpoint"
    shape, dtype = tuple(have["shape"]), str(want.dtype)
    same_type = have["dtype"] == dtype or {have["dtype"], dtype} <= set(DTYPES)  # which are cast
    if same_type and new and shape[1:] == want.shape[1:]:
        first = [rows - math.prod(positions) for rows, positions in ((shape[0], old), (want.shape[0], new))]
        if first[0] != first[1]:
            return f"begins with {first[0]} rows of class tokens before {old} positions, this run's with {first[1]}"
        if len(new) > 1 or old >= new:
            return ""
    if same_type and shape == want.shape:
        return ""
    return f"is {have['dtype']} {shape}, this run's is {dtype} {want.shape}"


def _fitted(value: jax.Array, leaf: jax.Array, old: tuple[int, ...], new: tuple[int, ...]) -> jax.Array:
    value = value.astype(leaf.dtype)
    if len(new) > 1:
        return fit_positions(value, old, new)
    return value[: len(leaf)] if new else value
