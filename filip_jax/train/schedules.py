"""Learning rates over a run: a linear warm-up, then what the schedule's name says."""

import optax

from filip_jax.errors import UserError
from filip_jax.sections import choose

DEFAULT_COOLDOWN = 0.2  # of the run


def cosine(peak: float, warmup_steps: int, total_steps: int, cooldown_steps: int) -> optax.Schedule:
    """Return a warm-up and half a cosine to zero at the end (arXiv 1608.03983, without restarts)."""
    return optax.warmup_cosine_decay_schedule(peak / max(warmup_steps, 1), peak, warmup_steps, total_steps)


def constant(peak: float, warmup_steps: int, total_steps: int, cooldown_steps: int) -> optax.Schedule:
    """Return a warm-up and the peak for the rest."""
    return _warmed(optax.constant_schedule(peak), peak, warmup_steps)


def linear_cooldown(peak: float, warmup_steps: int, total_steps: int, cooldown_steps: int) -> optax.Schedule:
    """Return a warm-up, the peak, and a line to zero over the last `cooldown_steps` (arXiv 2405.18392)."""
    fall = optax.linear_schedule(peak, 0.0, cooldown_steps, total_steps - cooldown_steps - warmup_steps)
    return _warmed(fall, peak, warmup_steps)


SCHEDULES = {"cosine": cosine, "constant": constant, "linear_cooldown": linear_cooldown}


def _warmed(rest: optax.Schedule, peak: float, warmup_steps: int) -> optax.Schedule:
    if not warmup_steps:
        return rest
    rise = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps)
    return optax.join_schedules([rise, rest], [warmup_steps])


def make_schedule(name: str, peak: float, warmup_steps: int, total_steps: int, cooldown: float) -> optax.Schedule:
    """Return the function step -> learning rate.

    Args:
        name: one of `SCHEDULES`.
        cooldown: the share of the run over which "linear_cooldown" falls.

    Raises:
        UserError: an unknown name, a warm-up beyond the end or into the cooldown, a share that is none.
    """
    kind = choose(SCHEDULES, name, "optimizer.schedule")
    if not 0 <= warmup_steps < total_steps:
        raise UserError(f"optimizer.warmup_steps={warmup_steps} must be at least 0 and below total_steps={total_steps}")
    if not 0 < cooldown <= 1:
        raise UserError(f"optimizer.cooldown={cooldown} must be above 0 and at most 1: it is a share of the run")
    cooldown_steps = max(round(cooldown * total_steps), 1)
    if kind is linear_cooldown and warmup_steps + cooldown_steps > total_steps:
        raise UserError(
            f"optimizer.warmup_steps={warmup_steps} and a cooldown of {cooldown_steps} steps do not fit total_steps={total_steps}: "
            "shorten one of them"
        )
    return kind(peak, warmup_steps, total_steps, cooldown_steps)
