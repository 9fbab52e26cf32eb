"""LAMB as FILIP used it and AdamW, with decay, learning rate and freezing by path rules.

A new optimizer is a function beside theirs and a line in `OPTIMIZERS`. Its keyword arguments are its options.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from filip_jax import paths
from filip_jax.errors import UserError
from filip_jax.sections import at_least, check, choose, keys_of
from filip_jax.train.schedules import DEFAULT_COOLDOWN, make_schedule

Rules = Sequence[Any]  # of (regular expression, number); configs give tuples, saved configs lists
# From gradients to the direction of a step, and what is done to it once the weight decay is added.
Finish = Callable[[paths.Metadata, jax.Array, jax.Array], jax.Array]  # of a parameter, from its update and value
Transforms = tuple[optax.GradientTransformation, Finish]
MAX_WEIGHT_NORM = 10.0  # of LAMB's trust ratio, as in the PyTorch implementation that the paper used


@dataclass(frozen=True)
class Optimizer:
    """How the trainable parameters move.

    Attributes:
        transform: on the nested dict of the trainable parameters only.
        schedule: step -> learning rate, before multipliers.
        warmup_steps: of the schedule.
        decay: path -> multiplier of the weight decay, of every parameter.
        learning_rate: path -> multiplier of the learning rate, of every parameter; 0 is frozen:
            no gradient, no optimiser state, no decay.
        metadata: path -> what its owner says, of every parameter.
    """

    transform: optax.GradientTransformation
    schedule: Callable[[jax.typing.ArrayLike], jax.Array]
    warmup_steps: int
    decay: Mapping[str, float]
    learning_rate: Mapping[str, float]
    metadata: Mapping[str, paths.Metadata]

    def split(self, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The (trainable, frozen) leaves by path."""
        leaves = paths.flatten(parameters)
        trainable = {path: leaf for path, leaf in leaves.items() if self.learning_rate[path]}
        return trainable, {path: leaf for path, leaf in leaves.items() if path not in trainable}


def make_optimizer(
    metadata: Mapping[str, paths.Metadata],
    total_steps: int,
    *,
    name: str,
    peak_learning_rate: float,
    warmup_steps: int,
    weight_decay: float,
    clip_norm: float,
    decay_rules: Rules,
    learning_rate_rules: Rules,
    schedule: str = "cosine",
    cooldown: float = DEFAULT_COOLDOWN,
    **options: Any,
) -> Optimizer:
    """Return the optimizer of the parameters with these paths.

    Args:
        name: one of `OPTIMIZERS`.
        peak_learning_rate: reached after a linear warm-up.
        schedule, cooldown: what comes then, see schedules.py.
        weight_decay: decoupled; times the multiplier of `decay_rules`.
        clip_norm: bound on the global norm of the gradient; 0 for none.
        decay_rules, learning_rate_rules: (regular expression of paths, multiplier), see `paths.match_rules`. What no
            rule matches decays as its metadata says, and learns at the whole rate.
        options: of this optimizer.

    Raises:
        UserError: an unknown name or option, a rule that matches no parameter, warm-up beyond the end,
            a number out of range.
    """
    rate = make_schedule(schedule, peak_learning_rate, warmup_steps, total_steps, cooldown)
    at_least(0, "optimizer", peak_learning_rate=peak_learning_rate, weight_decay=weight_decay, clip_norm=clip_norm)
    kind = choose(OPTIMIZERS, name, "optimizer.name")
    check(kind, options, f"optimizer ({name})", also=keys_of(make_optimizer))
    direction, finish = kind(**options)
    decay = {path: float(each.decay) for path, each in metadata.items()}
    decay |= paths.match_rules(decay_rules, list(metadata), "optimizer.decay_rules")
    learning_rate = dict.fromkeys(metadata, 1.0)
    learning_rate |= paths.match_rules(learning_rate_rules, list(metadata), "optimizer.learning_rate_rules")
    if not any(learning_rate.values()):
        raise UserError("optimizer.learning_rate_rules freeze every parameter")
    transform = optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        direction,
        _by_path(lambda path, update, parameter: update + weight_decay * decay[path] * parameter),
        _by_path(lambda path, update, parameter: finish(metadata[path], update, parameter)),
        _by_path(lambda path, update, parameter: learning_rate[path] * update),
        optax.scale_by_learning_rate(rate),
    )
    return Optimizer(transform, rate, warmup_steps, decay, learning_rate, metadata)


def lamb(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-4) -> Transforms:
    """LAMB as the paper used it, without bias correction (arXiv 1904.00962, and 2111.07783, table 8)."""
    _check_moments(b1, b2, eps)
    return _plain_moments(b1, b2, eps), trusted


def adamw(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Transforms:
    """AdamW (arXiv 1711.05101)."""
    _check_moments(b1, b2, eps)
    return optax.scale_by_adam(b1, b2, eps), lambda metadata, update, parameter: update


OPTIMIZERS = {"lamb": lamb, "adamw": adamw}


def _check_moments(b1: float, b2: float, eps: float) -> None:
    for key, value in {"b1": b1, "b2": b2}.items():
        if not 0 <= value < 1:
            raise UserError(f"optimizer.{key}={value} must be at least 0 and below 1")
    at_least(0, "optimizer", eps=eps)


def trusted(metadata: paths.Metadata, update: jax.Array, parameter: jax.Array) -> jax.Array:
    """LAMB's update scaled by |parameter| / |update|, one ratio per layer; 1 if either norm is 0."""
    axes = tuple(range(int(metadata.stacked), parameter.ndim))
    norm = jnp.sqrt(jnp.sum(jnp.square(parameter), axis=axes, keepdims=True))
    update_norm = jnp.sqrt(jnp.sum(jnp.square(update), axis=axes, keepdims=True))
    ratio = jnp.minimum(norm, MAX_WEIGHT_NORM) / jnp.where(update_norm > 0, update_norm, 1.0)
    return jnp.where((norm > 0) & (update_norm > 0), ratio, 1.0) * update


def _plain_moments(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's m / (sqrt(v) + eps) without bias correction, as the paper's LAMB has it."""

    def init(parameters):
        zeros = jax.tree.map(jnp.zeros_like, parameters)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(gradient, state, parameters=None):
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradient)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, gradient)
        step = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return step, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def _by_path(change: Callable[[str, jax.Array, jax.Array], jax.Array]) -> optax.GradientTransformation:
    """A stateless transform: each update by its path, value and parameter."""

    def update(updates, state, parameters):
        leaves = paths.flatten(parameters)
        changed = {path: change(path, value, leaves[path]) for path, value in paths.flatten(updates).items()}
        return paths.unflatten(changed), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
