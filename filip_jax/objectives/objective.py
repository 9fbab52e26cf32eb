"""The definition of an objective: parameters of its own and a pure function of the encoder outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import Array, Float

from filip_jax.errors import UserError
from filip_jax.losses.encoded import Encoded
from filip_jax.losses.pairs import PairLoss
from filip_jax.models import POOLINGS

OUTPUTS = tuple(POOLINGS.values())  # of the towers: "tokens", "pooled"
# What an objective may need of a batch. Nothing is drawn or computed that none needs. "captions" and "views" are several of
# an image. No training batch holds "regions" yet, so an objective that needs them is refused.
NEEDS = (*OUTPUTS, "text_ids", "groups", "captions", "views", "regions")


@dataclass(frozen=True)
class Parameter:
    """A parameter of an objective.

    Attributes:
        init: (key, sizes) -> its value in a new run; the sizes are those of the model, see `Model`.
        low, high: bounds; after each step it is moved inside them.
        decay: whether weight decay applies to it.
        from_first_batch: (encoder outputs of the first global batch, the objective's parameters) -> its value in a new
            run instead of `init`'s. It is computed once, and stored with the other parameters.
    """

    init: Callable[[jax.Array, Mapping[str, int]], Array]
    low: float = float("-inf")
    high: float = float("inf")
    decay: bool = False
    from_first_batch: Callable[[Encoded, Mapping[str, Array]], Array] | None = None


@dataclass(frozen=True)
class Pairwise:
    """The part of an objective that looks at all pairs of the global batch.

    Attributes:
        similarity: how pairs are compared, `TokenWise` or `BlockFunction`; objectives with the same one share its pass.
        loss: what is made of the similarities.
        parameters: the objective's parameters -> those of the loss.
        multiplier: which of the loss's parameters multiplies similarities to logits, for evaluations; "" if none does.
        of_similarity: the objective's parameters -> those of the similarity, where it has some; then no other shares it.
    """

    similarity: Any
    loss: PairLoss
    parameters: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    multiplier: str = ""
    of_similarity: Callable[[Mapping[str, Any]], Any] | None = None


@dataclass(frozen=True)
class Teacher:
    """Another model that an objective learns from: an average of the run's own, or the one that the run began with.

    Attributes:
        decay: of the moving average, after each step; 1 keeps the teacher as it began.
        parts: which parts of the parameters, by their first names, are the teacher's own: "objectives" for heads only. Of
            others it has the run's present ones. None is all.
    """

    decay: float
    parts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Objective:
    """A loss with what it needs and owns.

    Attributes:
        needs: which of `NEEDS`, beside the teacher.
        parameters: trained, by name.
        pairwise: its part over all pairs, if it has one.
        local: (parameters, state, encoder outputs, the teacher's parameters of this objective) -> (loss, next state,
            metrics): its part without pairs. It runs on global arrays.
        teacher: whose outputs `Encoded.teacher` holds.
        state: initial values of arrays that are not trained, by name, or functions from the sizes of the model to them;
            checkpoints hold them.
        metrics: parameters -> numbers that the log shows.
        multiplier: parameters -> what multiplies similarities to logits, for evaluations, where `pairwise` does not say it.
        advice: the global batch's size -> a warning if it learns little or nothing at that size, else "".
        log_similarities: whether the log shows `similarity_metrics` of its pairs.

    Raises:
        UserError: a need that is not one of `NEEDS`.
    """

    needs: frozenset[str]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    pairwise: Pairwise | None = None
    local: Callable[..., tuple[Float[Array, ""], Mapping[str, Any], Mapping[str, Array]]] | None = None
    teacher: Teacher | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    metrics: Callable[[Mapping[str, Any]], Mapping[str, Array]] = lambda parameters: {}
    multiplier: Callable[[Mapping[str, Any]], Array] | None = None
    advice: Callable[[int], str] = lambda batch_size: ""
    log_similarities: bool = False

    def __post_init__(self):
        if unknown := self.needs - set(NEEDS):
            raise UserError(f"needs={', '.join(sorted(unknown))}: an objective may need {', '.join(NEEDS)}")
