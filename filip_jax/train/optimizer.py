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

Rules = Sequence[Any]  # of (regular expression, number); configs give tuples, saved configs lists
# From gradients to the direction of a step, and what is done to it once the weight decay is added.
Transforms = tuple[optax.GradientTransformation, optax.GradientTransformation]
MAX_WEIGHT_NORM = 10.0  # of LAMB's trust ratio, as in the PyTorch implementation that the paper used


@dataclass(frozen=True)
class Optimizer:
    """How the trainable parameters move.

    Attributes:
        transform: on the nested dict of the trainable parameters only.
        schedule: step -> learning rate, before multipliers.
        decay: path -> multiplier of the weight decay, of every parameter.
        learning_rate: path -> multiplier of the learning rate, of every parameter; 0 is frozen:
            no gradient, no optimiser state, no decay.
    """

    transform: optax.GradientTransformation
    schedule: Callable[[jax.typing.ArrayLike], jax.Array]
    decay: Mapping[str, float]
    learning_rate: Mapping[str, float]

    def split(self, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The (trainable, frozen) leaves by path."""
        leaves = paths.flatten(parameters)
        trainable = {path: leaf for path, leaf in leaves.items() if self.learning_rate[path]}
        return trainable, {path: leaf for path, leaf in leaves.items() if path not in trainable}


def make_optimizer(
    parameters: Mapping[str, Any],
    total_steps: int,
    *,
    name: str,
    peak_learning_rate: float,
    warmup_steps: int,
    weight_decay: float,
    clip_norm: float,
    decay_rules: Rules,
    learning_rate_rules: Rules,
    **options: Any,
) -> Optimizer:
    """Return the optimizer of these parameters (arrays or shapes).

    Args:
        name: one of `OPTIMIZERS`.
        peak_learning_rate: reached after a linear warm-up, then a cosine to zero at total_steps.
        weight_decay: decoupled; times the multiplier of `decay_rules`.
        clip_norm: bound on the global norm of the gradient; 0 for none.
        decay_rules, learning_rate_rules: (regular expression of paths, multiplier), see
            `paths.match_rules`; together they must cover every parameter.
        options: of this optimizer.

    Raises:
        UserError: an unknown name or option, rules that miss a parameter or match none, warm-up beyond the end,
            a number out of range.
    """
    if not 0 <= warmup_steps < total_steps:
        raise UserError(f"optimizer.warmup_steps={warmup_steps} must be at least 0 and below total_steps={total_steps}")
    at_least(0, "optimizer", peak_learning_rate=peak_learning_rate, weight_decay=weight_decay, clip_norm=clip_norm)
    kind = choose(OPTIMIZERS, name, "optimizer.name")
    check(kind, options, f"optimizer ({name})", also=keys_of(make_optimizer))
    direction, finish = kind(**options)
    names = list(paths.flatten(parameters))
    decay = paths.match_rules(decay_rules, names, "optimizer.decay_rules")
    learning_rate = paths.match_rules(learning_rate_rules, names, "optimizer.learning_rate_rules")
    if not any(learning_rate.values()):
        raise UserError("optimizer.learning_rate_rules freeze every parameter")
    schedule = optax.warmup_cosine_decay_schedule(
        peak_learning_rate / max(warmup_steps, 1), peak_learning_rate, warmup_steps, total_steps
    )
    transform = optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        direction,
        _by_path(lambda path, update, parameter: update + weight_decay * decay[path] * parameter),
        finish,
        _by_path(lambda path, update, parameter: learning_rate[path] * update),
        optax.scale_by_learning_rate(schedule),
    )
    return Optimizer(transform, schedule, decay, learning_rate)


def lamb(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-4) -> Transforms:
    """LAMB as the paper used it, without bias correction (arXiv 1904.00962, and 2111.07783, table 8)."""
    _check_moments(b1, b2, eps)
    return _plain_moments(b1, b2, eps), _by_path(trusted)


def adamw(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Transforms:
    """AdamW (arXiv 1711.05101)."""
    _check_moments(b1, b2, eps)
    return optax.scale_by_adam(b1, b2, eps), optax.identity()


OPTIMIZERS = {"lamb": lamb, "adamw": adamw}


def _check_moments(b1: float, b2: float, eps: float) -> None:
    for key, value in {"b1": b1, "b2": b2}.items():
        if not 0 <= value < 1:
            raise UserError(f"optimizer.{key}={value} must be at least 0 and below 1")
    at_least(0, "optimizer", eps=eps)


def trusted(path: str, update: jax.Array, parameter: jax.Array) -> jax.Array:
    """LAMB's update scaled by |parameter| / |update|, one ratio per layer; 1 if either norm is 0."""
    axes = tuple(range(1 if paths.is_stacked(path) else 0, parameter.ndim))
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
