"""A new run's parameters from another run's checkpoint: which are taken, from where, and how they are made to fit."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from filip_jax import paths, storage
from filip_jax.checkpoint import Checkpoints, find_checkpoint
from filip_jax.checkpoint.manifest import Manifest
from filip_jax.checkpoint.shared import find_damage
from filip_jax.cluster import service
from filip_jax.errors import UserError
from filip_jax.inference.run import TOKENIZER
from filip_jax.mesh import replicated
from filip_jax.models.patches import fit_positions
from filip_jax.paths import Metadata
from filip_jax.sections import DTYPES, call
from filip_jax.train.metrics import say

Rules = Sequence[Any]  # of (regular expression, path or None); configs give tuples, saved configs lists
Leaf = Mapping[str, Any]  # {shape, dtype}
SHOWN = 8  # misfits that a message names


def origins_of(parameters: Mapping[str, Any], *, path: str, rules: Rules) -> dict[str, str]:
    r"""{parameter: its path in the checkpoint} of the parameters that are taken; none without a path.

    Args:
        parameters: nested dicts of the new run's, arrays or shapes.
        path: the workdir of a run of filip_jax, whose newest checkpoint is taken, or one checkpoint's folder;
            "" begins anew.
        rules: (regular expression that matches a whole path of the new run, path in the checkpoint with \1
            for groups, or None to begin this one anew), tried in order. What no rule matches is taken
            from the same path.

    Raises:
        UserError: what is no rule, a rule that matches no parameter, or rules that take nothing.
    """
    if not isinstance(rules, (tuple, list)):
        raise UserError(f"init_from.rules={rules!r} are not a tuple of pairs")
    if not path:
        if rules:
            raise UserError("init_from.rules are given, but init_from.path is empty: name a run's workdir")
        return {}
    names = paths.rename(rules, list(paths.flatten(parameters)), "init_from.rules")
    if not any(names.values()):
        raise UserError('init_from.rules leave every parameter fresh; init_from.path="" says so')
    return {parameter: name for parameter, name in names.items() if name is not None}


@dataclass(frozen=True)
class Donor:
    """A checkpoint whose parameters fit a new run.

    Attributes:
        part: "ema" where the checkpoint has it, else "params".
        saved: the shapes and types of that part, by path.
        origins: see `origins_of`.
        metadata, saved_metadata: of the new run's parameters and of the checkpoint's, each by its own paths.
        tokenizer_sha256: of the checkpoint's run.
    """

    checkpoints: Checkpoints
    step: int
    part: str
    saved: Mapping[str, Leaf]
    origins: Mapping[str, str]
    metadata: Mapping[str, Metadata]
    saved_metadata: Mapping[str, Metadata]
    tokenizer_sha256: str

    def check_fit(self, parameters: Mapping[str, Any]) -> None:
        """Raise a UserError if some parameter cannot become this run's, with the rule that leaves it fresh."""
        leaves, misfits = paths.flatten(parameters), {}
        for path, origin in self.origins.items():
            if misfit := _misfit(self.saved.get(origin), leaves[path], *self._positions(path)):
                misfits[path] = f"{path}{f' (there {origin})' if origin != path else ''} {misfit}"
        if misfits:
            more = f"; and {len(misfits) - SHOWN} more" if len(misfits) > SHOWN else ""
            rule = ("|".join(paths.cover(parameters, misfits.keys())), None)
            raise UserError(
                f"init_from: {self.checkpoints.folder(self.step)} does not fit this run: "
                f"{'; '.join(list(misfits.values())[:SHOWN])}{more}. "
                f"To leave {'these' if len(misfits) > 1 else 'it'} fresh, put the rule {rule} first in init_from.rules"
            )

    def check(self, tokenizer_sha256: str) -> None:
        """Reads all files of the checkpoint; all processes call it.

        Raises:
            UserError: one is not as it was written, or token embeddings are taken, but of another tokenizer.
        """
        embeddings = "|".join(path for path in self.origins if self.metadata[path].token_ids)
        if embeddings and tokenizer_sha256 != self.tokenizer_sha256:
            file = storage.join(storage.folder_of(self.checkpoints.directory), TOKENIZER)
            raise UserError(
                f"init_from: the run's tokenizer is not the checkpoint's (sha256 {tokenizer_sha256[:12]}… instead of "
                f"{self.tokenizer_sha256[:12]}…): set tokenizer.name=sentencepiece tokenizer.path={file}, or leave "
                f"the embeddings fresh with the rule ({embeddings!r}, None), first in init_from.rules"
            )
        if found := find_damage(self.checkpoints, self.step):
            raise UserError(f"init_from: the checkpoint of step {self.step} is damaged: {found}")

    def fill(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state with the checkpoint's parameters, where and as its own are; an average and a teacher begin as copies of them.

        All processes call it.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        leaves, origins = paths.flatten(state["params"]), self.origins
        target = {origin: self._target(origin, leaves[path]) for path, origin in origins.items()}
        read = self.checkpoints.read(self.step, {self.part: paths.unflatten(target)})[self.part]

        def take(values):  # copied, since the state is donated: no two of its arrays may be one
            return {
                path: jnp.copy(_fitted(values[origin], leaves[path], *self._positions(path)))
                for path, origin in origins.items()
            }

        shardings = {path: leaves[path].sharding for path in origins}
        parameters = paths.unflatten(leaves | jax.jit(take, out_shardings=shardings)(paths.flatten(read)))
        self._say(state["params"], leaves)
        copies = {
            part: jax.tree.map(jnp.copy, {name: parameters[name] for name in state[part]})
            for part in ("ema", "teacher")
            if part in state
        }
        return {**state, "params": parameters, **copies}

    def _positions(self, path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of a parameter's positions in the checkpoint and here; () unless both are of one kind."""
        there, here = self.saved_metadata.get(self.origins[path], Metadata()).positions, self.metadata[path].positions
        return (there, here) if len(there) == len(here) else ((), ())

    def _target(self, origin: str, leaf: jax.Array) -> jax.ShapeDtypeStruct:
        shape, dtype = tuple(self.saved[origin]["shape"]), self.saved[origin]["dtype"]
        sharding: Any = leaf.sharding  # on a mesh, as all of the state
        sharding = sharding if shape == leaf.shape else replicated(sharding.mesh)
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)

    def _say(self, parameters: Mapping[str, Any], leaves: Mapping[str, jax.Array]) -> None:
        folder, fresh = self.checkpoints.folder(self.step), paths.cover(parameters, leaves.keys() - self.origins.keys())
        say(
            f"init_from: {len(self.origins)} of {len(leaves)} parameters are those of {folder} ({self.part})"
            + (f"; fresh: {', '.join(fresh)}" if fresh else "")
        )
        for path in self.origins:
            there, here = self._positions(path)
            if there != here and len(here) > 1:
                say(f"{path}: resized from {there[0]}x{there[1]} to {here[0]}x{here[1]}")
            elif there != here:
                say(f"{path}: the first {here[0]} of {there[0]} rows")
        types = ((self.saved[origin]["dtype"], str(leaves[path].dtype)) for path, origin in self.origins.items())
        for (old, new), count in Counter(types).items():
            if old != new:
                say(f"init_from: {count} parameters cast from {old} to {new}")


def open_donor(
    section: Mapping[str, Any], parameters: Mapping[str, Any], metadata: Mapping[str, Metadata]
) -> Donor | None:
    """The donor of a config's section `init_from`; None where it names none. All processes call it.

    Args:
        parameters: shapes of the new run's, nested dicts.
        metadata: of these parameters, by path.

    Raises:
        UserError: no such checkpoint, or one whose parameters do not fit: with their paths, shapes and types, and
            the rule that leaves them fresh.
    """
    origins = call(origins_of, section, "init_from", parameters=parameters)
    if not origins:
        return None
    found: list[tuple[Checkpoints, int]] = []
    manifests: list[Manifest] = []
    try:
        service.together(lambda: found.append(find_checkpoint(section["path"])))
        checkpoints, step = found[0][0], service.of_first_process(found[0][1])
        service.together(lambda: manifests.append(checkpoints.manifest(step)))
    except UserError as error:
        raise UserError(f"init_from.path: {error}") from error
    tree, meta = manifests[0]["tree"], manifests[0]["meta"]
    part = "ema" if any(path.startswith("ema/") for path in tree) else "params"
    saved = {path.removeprefix(f"{part}/"): leaf for path, leaf in tree.items() if path.startswith(f"{part}/")}
    of_saved = paths.read_metadata(meta.get("parameters", {}))
    sha256 = str(meta.get("tokenizer_sha256", ""))
    donor = Donor(checkpoints, step, part, saved, origins, metadata, of_saved, sha256)
    donor.check_fit(parameters)
    return donor


def _misfit(have: Leaf | None, want: Any, there: tuple[int, ...], here: tuple[int, ...]) -> str:
    """Return why a leaf of the checkpoint cannot become this parameter; "" if it can.

    Args:
        there, here: shapes of the positions that the last rows of the leaf and of the parameter stand for, see `Metadata`.
    """
    if have is None:
        return "is not in the checkpoint"
    shape, dtype = tuple(have["shape"]), str(want.dtype)
    same_type = have["dtype"] == dtype or {have["dtype"], dtype} <= set(DTYPES)  # which are cast
    if same_type and here and shape[1:] == want.shape[1:]:
        first = [rows - math.prod(positions) for rows, positions in ((shape[0], there), (want.shape[0], here))]
        if first[0] != first[1]:
            return f"begins with {first[0]} rows of class tokens before {there} positions, this run's with {first[1]}"
        if len(here) > 1 or there >= here:
            return ""
    if same_type and shape == want.shape:
        return ""
    return f"is {have['dtype']} {shape}, this run's is {dtype} {want.shape}"


def _fitted(value: jax.Array, leaf: jax.Array, there: tuple[int, ...], here: tuple[int, ...]) -> jax.Array:
    value = value.astype(leaf.dtype)
    if len(here) > 1:
        return fit_positions(value, there, here)
    return value[: len(leaf)] if here else value
