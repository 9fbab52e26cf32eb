"""The objectives of a config as one loss: a weighted sum, whose parts share what they compare."""

import inspect
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filip_jax.errors import UserError
from filip_jax.losses.encoded import Encoded
from filip_jax.losses.pairs import pair_losses
from filip_jax.losses.similarity_metrics import similarity_metrics
from filip_jax.models import Model
from filip_jax.objectives import OBJECTIVES
from filip_jax.objectives.objective import OUTPUTS, Objective, Pairwise, Teacher
from filip_jax.objectives.weights import Weight, check_weight, weight_at
from filip_jax.paths import Metadata
from filip_jax.sections import check, choose, keys_of

NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class Objectives:
    """A weighted sum of objectives, by the names that the config gives them.

    Attributes:
        parts: the objectives.
        weights: see `Weight`.
    """

    parts: Mapping[str, Objective]
    weights: Mapping[str, Weight]

    @property
    def active(self) -> dict[str, Objective]:
        """The objectives that are computed: those of a weight other than a plain 0."""
        return {name: part for name, part in self.parts.items() if self.weights[name] != 0}

    @property
    def needs(self) -> frozenset[str]:
        """The parts of a batch that at least one active objective needs, see `NEEDS`, and "teacher" if one learns from it."""
        teacher = {"teacher"} if any(part.teacher for part in self.active.values()) else set[str]()
        return frozenset(teacher).union(*(part.needs for part in self.active.values()))

    @property
    def outputs(self) -> frozenset[str]:
        """The outputs for which the towers have projections, whatever the weights are."""
        return frozenset().union(*(part.needs for part in self.parts.values())) & set(OUTPUTS)

    @property
    def metadata(self) -> dict[str, Metadata]:
        """The metadata of the parameters, by path."""
        return {
            f"objectives/{name}/{parameter}": Metadata(decay=meta.decay)
            for name, part in self.parts.items()
            for parameter, meta in part.parameters.items()
        }

    def init(self, key: jax.Array, sizes: Mapping[str, int]) -> dict[str, dict[str, Array]]:
        """Return the parameters of a new run, by objective.

        Args:
            sizes: of the model, see `Model`.
        """
        values: dict[str, dict[str, Array]] = {}
        for name, part in self.parts.items():
            for parameter, meta in part.parameters.items():
                key, own = jax.random.split(key)
                values.setdefault(name, {})[parameter] = meta.init(own, sizes)
        return values

    def init_state(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """Return the initial values of what is not trained, by objective.

        Args:
            sizes: of the model, see `Model`.
        """

        def begin(value):
            return jnp.asarray(value(sizes) if callable(value) else value)

        return {name: jax.tree.map(begin, dict(part.state)) for name, part in self.parts.items() if part.state}

    @property
    def teacher(self) -> Teacher | None:
        """The one teacher that objectives learn from, if any does."""
        return next((part.teacher for part in self.parts.values() if part.teacher), None)

    @property
    def from_first_batch(self) -> list[tuple[str, str]]:
        """The (objective, parameter) that begin where the first global batch puts them."""
        return [
            (name, key)
            for name, part in self.active.items()
            for key, meta in part.parameters.items()
            if meta.from_first_batch
        ]

    def start(
        self, parameters: Mapping[str, Any], encoded: Encoded, begins: Container[tuple[str, str]]
    ) -> dict[str, Any]:
        """Return the parameters, those of `begins`, (objective, name), as the first global batch has them."""
        started = {name: dict(values) for name, values in parameters.items()}
        for name, key in self.from_first_batch:
            begin = self.parts[name].parameters[key].from_first_batch
            if begin and (name, key) in begins:
                started[name][key] = begin(encoded, started[name])
        return started

    def loss(
        self,
        parameters: Mapping[str, Any],
        state: Mapping[str, Any],
        encoded: Encoded,
        progress: Float[Array, ""] | float,
        teacher: Mapping[str, Any] | None = None,
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], dict[str, Array]]]:
        """Return the sum of a batch, with the next state and each objective's numbers as metrics NAME/number.

        Args:
            parameters, state: by objective.
            encoded: the global batch.
            progress: the share of the run that is done, for weights that change.
            teacher: the teacher's parameters, by objective.
        """
        losses, following = self._pairwise(parameters, encoded), dict(state)
        metrics: dict[str, Array] = {}
        for name, part in self.active.items():
            if part.local:
                own = (tree.get(name, {}) for tree in (parameters, state))
                local, next_state, numbers = part.local(*own, encoded, (teacher or {}).get(name, {}))
                losses[name] = losses.get(name, 0.0) + local
                metrics |= {f"{name}/{key}": number for key, number in numbers.items()}
                following |= {name: next_state} if part.state else {}
        total = sum(weight_at(self.weights[name], progress) * loss for name, loss in losses.items())
        return total, (following, metrics | {f"{name}/loss": loss for name, loss in losses.items()})

    def _pairwise(self, parameters, encoded):
        """Return the loss of each pairwise objective; those of one similarity share its pass."""
        pairwise = {name: part.pairwise for name, part in self.active.items() if part.pairwise}
        groups: dict[Any, list[str]] = {}
        for name, part in pairwise.items():
            groups.setdefault((part.similarity, name if part.of_similarity else ""), []).append(name)
        losses: dict[str, Array] = {}
        for (similarity, _), names in groups.items():
            of_similarity = pairwise[names[0]].of_similarity
            owned = {
                "losses": {name: pairwise[name].parameters(parameters.get(name, {})) for name in names},
                "similarity": of_similarity(parameters[names[0]]) if of_similarity else None,
            }
            losses |= pair_losses({name: pairwise[name].loss for name in names}, similarity, encoded, owned)
        return losses

    @property
    def logged(self) -> dict[str, Pairwise]:
        """The active objectives of whose pairs the log shows more than the loss."""
        return {name: part.pairwise for name, part in self.active.items() if part.pairwise and part.log_similarities}

    def similarity_metrics(self, parameters: Mapping[str, Any], encoded: Encoded) -> dict[str, Array]:
        """Return `similarity_metrics` of the logged objectives as NAME/similarities/number, and the spread of their logits.

        Args:
            parameters: by objective.
            encoded: see `sample_rows`.
        """
        numbers: dict[str, Array] = {}
        for name, pairwise in self.logged.items():
            own = parameters.get(name, {})
            of_similarity = pairwise.of_similarity(own) if pairwise.of_similarity else None
            found = similarity_metrics(pairwise.similarity, encoded, of_similarity)
            if pairwise.multiplier:
                found["logit_spread"] = pairwise.parameters(own)[pairwise.multiplier] * found["spread"]
            numbers |= {f"{name}/similarities/{key}": number for key, number in found.items()}
        return numbers

    def logit_scale(self, parameters: Mapping[str, Any], need: str) -> float:
        """Return the multiplier of the similarities of tokens or pooled vectors: of the first objective that names one, or 1."""
        for name, part in self.active.items():
            own = parameters.get(name, {})
            if part.pairwise and part.pairwise.multiplier and need in part.needs:
                return float(part.pairwise.parameters(own)[part.pairwise.multiplier])
            if part.multiplier and need in part.needs:
                return float(part.multiplier(own))
        return 1.0

    def clamp(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters inside their bounds."""
        return {
            name: {
                parameter: jnp.clip(
                    value, self.parts[name].parameters[parameter].low, self.parts[name].parameters[parameter].high
                )
                for parameter, value in values.items()
            }
            for name, values in parameters.items()
        }

    def metrics(self, parameters: Mapping[str, Any]) -> dict[str, Array]:
        """Return what the log shows of the parameters: NAME/number, and for each bounded one NAME/PARAMETER_at_bound."""
        numbers: dict[str, Array] = {}
        for name, part in self.parts.items():
            own = parameters.get(name, {})
            numbers |= {f"{name}/{key}": number for key, number in part.metrics(own).items()}
            for parameter, meta in part.parameters.items():
                if (meta.low, meta.high) != (-jnp.inf, jnp.inf):
                    margin = 1e-6 * (1.0 + jnp.abs(own[parameter]))
                    inside = (own[parameter] > meta.low + margin) & (own[parameter] < meta.high - margin)
                    numbers[f"{name}/{parameter}_at_bound"] = 1.0 - inside.all()
        return numbers


def init_parameters(model: Model, objectives: Objectives, key: jax.Array) -> dict[str, Any]:
    """Return the parameters of a new run: the model's, and under "objectives" those of each objective."""
    own = objectives.init(jax.random.fold_in(key, 1), model.sizes)
    return model.init(key) | ({"objectives": own} if own else {})


def by_definition(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's section with all pairs compared by the plain definition, whose operations can be counted."""

    def plainly(options):
        has_choice = "implementation" in inspect.signature(OBJECTIVES[options["kind"]]).parameters
        return {**options, "implementation": "reference"} if has_choice else options

    return {name: plainly(options) for name, options in section.items()}


def make_objectives(section: Mapping[str, Any]) -> Objectives:
    """Return the objectives of a config's section {name: {kind, weight, options of the kind}}.

    Raises:
        UserError: no objective, or a name, kind, weight or option that cannot be.
    """
    if not isinstance(section, Mapping) or not section:
        raise UserError("objectives: name at least one, as filip=dict(kind='filip', weight=1.0)")
    parts: dict[str, Objective] = {}
    weights: dict[str, Weight] = {}
    for name, options in section.items():
        place = f"objectives.{name}"
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(f"{place}: names are of small letters, digits and _, at most 32, a letter first")
        if not isinstance(options, Mapping):
            raise UserError(f"{place}={options!r:.100} is not a section")
        parts[name], weights[name] = make_objective(place, **options)
    if all(weight == 0 for weight in weights.values()):
        raise UserError("objectives: all weights are 0: nothing would be trained")
    if len({part.teacher for part in parts.values() if part.teacher}) > 1:
        raise UserError("objectives: they name different teachers; a run has one")
    return Objectives(parts, weights)


def make_objective(
    place: str, /, *, kind: Any = "", weight: Any = 1.0, log_similarities: Any = False, **options: Any
) -> tuple[Objective, Weight]:
    """Return an objective and its weight; the keyword arguments but `options` are those of every kind.

    Args:
        place: the key of its section, for messages.
        log_similarities: whether the log shows how the similarities of its pairs spread and which tokens win.

    Raises:
        UserError: a kind, weight or option that cannot be.
    """
    make = choose(OBJECTIVES, kind, f"{place}.kind")
    check(make, options, place, also=keys_of(make_objective))
    if not isinstance(log_similarities, bool):
        raise UserError(f"{place}.log_similarities={log_similarities!r:.100} is not True or False")
    try:
        objective = replace(make(**options), log_similarities=log_similarities)
    except UserError as error:
        raise UserError(str(error) if place in str(error) else f"{place}.{error}") from error
    if log_similarities and not objective.pairwise:
        raise UserError(f"{place}.log_similarities=True, but {kind} compares no pairs: set it to False")
    return objective, check_weight(weight, place)
