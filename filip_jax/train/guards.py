"""Steps that would spoil the run are skipped: decided on the devices, the same on all of them."""

import jax
import jax.numpy as jnp

from filip_jax.sections import at_least

FLOOR = 1e-3  # of the mean, below which a standard deviation says nothing: a loss that stood still is no measure
MEMORY = 0.99  # decay of the running mean and variance of the loss
LEARNED = 100  # good steps before the spike rule knows what is usual

Guard = dict[str, jax.Array]


def check_guards(*, max_skipped: int, spike_sigmas: float) -> None:
    """Raises a UserError for a config section `guards` that cannot be.

    Args:
        max_skipped: skipped steps in a row that end the run.
        spike_sigmas: a loss so many standard deviations above its running mean is skipped, too
            (as MaxText does, by 6); 0 skips only what is not finite.
    """
    at_least(1, "guards", max_skipped=max_skipped)
    at_least(0, "guards", spike_sigmas=spike_sigmas)


def init_guard() -> Guard:
    """What a run remembers of its losses and skipped steps."""
    count = jnp.zeros((), jnp.int32)
    return {"good": count, "skipped": count, "in_a_row": count, "mean": jnp.zeros(()), "variance": jnp.zeros(())}


def is_good(guard: Guard, loss: jax.Array, spike_sigmas: float, *norms: jax.Array) -> jax.Array:
    """Whether this step counts: its loss and norms are finite, its loss no spike."""
    good = jnp.isfinite(loss)
    for norm in norms:
        good &= jnp.isfinite(norm)
    if spike_sigmas:
        sigma = jnp.maximum(jnp.sqrt(guard["variance"]), FLOOR * jnp.abs(guard["mean"]))
        usual = guard["mean"] + spike_sigmas * sigma
        good &= (guard["good"] < LEARNED) | (loss <= usual)
    return good


def next_guard(guard: Guard, loss: jax.Array, good: jax.Array) -> Guard:
    """The memory after a step; a skipped one teaches nothing."""
    rate = jnp.maximum(1 - MEMORY, 1 / (guard["good"] + 1))  # a plain mean at first
    away = jnp.where(good, loss - guard["mean"], 0.0)
    learned = {
        "good": guard["good"] + 1,
        "mean": guard["mean"] + rate * away,
        "variance": (1 - rate) * (guard["variance"] + rate * away**2),
    }
    kept = {name: jnp.where(good, value, guard[name]) for name, value in learned.items()}
    bad = 1 - good.astype(jnp.int32)
    return kept | {"skipped": guard["skipped"] + bad, "in_a_row": (guard["in_a_row"] + bad) * bad}
