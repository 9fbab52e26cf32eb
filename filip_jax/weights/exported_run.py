"""The contents of an export: a run's parameters under the names of a model with one pooled head for each side, and what is left over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from filip_jax.data.tokenizer import Tokenizer
from filip_jax.models.towers import TOWERS
from filip_jax.objectives.total import make_objectives
from filip_jax.sections import options_of
from filip_jax.weights.mapping import Rule

HEADS = {
    "pooled": "pooled_projection",
    "tokens": "projection",
}  # what pooled vectors go through, by the need it was trained for
PLAIN = 0.0  # the logarithm of a scale, and a bias, that change nothing


@dataclass(frozen=True)
class ExportedRun:
    """A run at a step.

    Attributes:
        config: of the run.
        parameters: arrays by path.
        tokenizer: of the run.
        head: one of `HEADS`.
        notes: where this is from: step, average, origin, license.
        source: the small files of the public weights that the run was imported from, or None.
    """

    config: Mapping[str, Any]
    parameters: Mapping[str, np.ndarray]
    tokenizer: Tokenizer
    head: str
    notes: Mapping[str, Any] = field(default_factory=dict)
    source: Path | None = None

    @cached_property
    def towers(self) -> dict[str, dict[str, Any]]:
        """All options of the towers by side, those that the config does not name by their defaults."""
        towers = dict[str, dict[str, Any]]()
        for side in ("image", "text"):
            section = dict(self.config["model"][side])
            options = options_of(TOWERS[side][section["kind"]])
            defaults = {name: option.default for name, option in options.items() if option.default is not option.empty}
            towers[side] = {"projection": "linear"} | defaults | section
            towers[side]["mlp_width"] = towers[side]["mlp_width"] or 4 * towers[side]["width"]
            if self.head != "pooled":
                towers[side]["projection"] = "linear"  # that of tokens always is
        return towers

    @cached_property
    def objective(self) -> str:
        """The name of the first objective that compares what the head gives, with a scale of its own; or ""."""
        parts = make_objectives(self.config["objectives"]).parts
        fitting = (
            name for name, part in parts.items() if (part.pairwise or part.multiplier) and self.head in part.needs
        )
        return next((name for name in fitting if f"objectives/{name}/logit_scale" in self.parameters), "")

    @property
    def bias(self) -> bool:
        """Return whether that objective has a bias."""
        return f"objectives/{self.objective}/bias" in self.parameters

    def public(self, target: "Target") -> dict[str, np.ndarray]:
        """Return the parameters of a table of names; a scale or bias that no objective has is the one that changes nothing."""
        values = {rule.path: self.parameters.get(self.own(rule.path, target)) for rule in target.rules}
        return {path: np.float32(PLAIN) if value is None else value for path, value in values.items()}  # type: ignore[misc]

    def own(self, path: str, target: "Target") -> str:
        """Return what a parameter of an exported model is called in this run: where all of the run is held, the same."""
        if target.is_whole:
            return path
        first, _, rest = path.partition("/")
        side, _, part = first.partition("_")
        if part == HEADS["pooled"]:
            return f"{side}_{HEADS[self.head]}/{rest}"
        return f"objectives/{self.objective}/{path.rpartition('/')[2]}" if first == "objectives" else path

    def left(self, target: "Target") -> list[str]:
        """Return the parameters that a table of names has no place for."""
        return sorted(self.parameters.keys() - {self.own(rule.path, target) for rule in target.rules})


@dataclass(frozen=True)
class Target:
    """What a format makes of a run.

    Attributes:
        family: by which it is read back.
        weights: the name of the file of weights.
        rules: the table of names.
        files: the other files by name.
        library, usage: what loads it, and the code that does so.
        differs: what is done otherwise there.
        reads_texts: whether its users have the run's tokenizer.
        is_whole: whether it holds all of a run, so that nothing is left over.
    """

    family: str
    weights: str
    rules: Sequence[Rule]
    files: Mapping[str, bytes]
    library: str
    usage: str
    differs: Sequence[str] = ()
    reads_texts: bool = True
    is_whole: bool = False


def misfits(run: ExportedRun, needed: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[str]:
    """Return a text for each option of the towers that has none of the values needed: "model.image.registers=4 (there 0)"."""
    lines = [
        f"model.{side}.{name}={run.towers[side][name]!r} (there {' or '.join(map(repr, values))})"
        for side, options in needed.items()
        for name, values in options.items()
        if run.towers[side][name] not in values
    ]
    if run.towers["text"]["pooling"] == "eos" and run.tokenizer.eos_is_pad:
        lines.append("model.text.pooling='eos' at the token before an EOS that is the pad (there at EOS)")
    return lines
