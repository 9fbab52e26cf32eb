"""Steps that would spoil a run are skipped, and leave no trace but their count."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_devices_mesh, slow, small
from hypothesis import given
from hypothesis import strategies as st

from filip_jax.errors import UserError
from filip_jax.models import make_model
from filip_jax.objectives.total import init_parameters, make_objectives
from filip_jax.train.guards import LEARNED, check_guards, init_guard, is_good, next_guard
from filip_jax.train.optimizer import make_optimizer
from filip_jax.train.step import make_init, make_train_step, state_shardings

FINITE = st.floats(0.125, 8.0, width=32)
ANY = st.one_of(FINITE, st.sampled_from([float("nan"), float("inf"), -float("inf")]))


@given(st.lists(ANY, max_size=30))
def test_the_memory_is_that_of_the_good_losses_alone(losses):
    """Mean and variance equal NumPy's while they are plain; what is not finite only counts."""
    guard, good = init_guard(), []
    for loss in losses:
        ok = is_good(guard, jnp.float32(loss), 0.0)
        assert bool(ok) == np.isfinite(loss)
        guard = next_guard(guard, jnp.float32(loss), ok)
        good += [loss] if np.isfinite(loss) else []
    tail = next((n for n, loss in enumerate(reversed(losses)) if np.isfinite(loss)), len(losses))
    assert (int(guard["skipped"]), int(guard["in_a_row"]), int(guard["good"])) == (
        len(losses) - len(good),
        tail,
        len(good),
    )
    if good:
        np.testing.assert_allclose(guard["mean"], np.mean(np.float32(good)), rtol=1e-4)
        np.testing.assert_allclose(guard["variance"], np.var(np.float32(good)), rtol=1e-3, atol=1e-4)


def test_a_spike_is_skipped_once_it_is_known_what_is_usual():
    guard, rng = init_guard(), np.random.default_rng(0)
    assert bool(is_good(guard, jnp.float32(1e6), 6.0))
    for loss in rng.normal(3.0, 0.1, LEARNED):
        guard = next_guard(guard, jnp.float32(loss), jnp.bool_(True))
    assert bool(is_good(guard, jnp.float32(3.3), 6.0)) and not bool(is_good(guard, jnp.float32(4.0), 6.0))
    assert bool(is_good(guard, jnp.float32(4.0), 0.0)) and bool(is_good(guard, jnp.float32(1.0), 6.0))
    assert not bool(is_good(guard, jnp.float32(3.0), 6.0, jnp.float32(jnp.inf)))


def test_a_loss_that_stood_still_makes_no_spike_of_the_smallest_change():
    guard = init_guard()
    for _ in range(LEARNED + 1):
        guard = next_guard(guard, jnp.float32(2.0), jnp.bool_(True))
    assert bool(is_good(guard, jnp.float32(2.001), 6.0)) and not bool(is_good(guard, jnp.float32(2.1), 6.0))


@pytest.mark.parametrize("options", [{"max_skipped": 0}, {"spike_sigmas": -1.0}, {"spike_sigmas": float("nan")}])
def test_numbers_that_can_not_be(options):
    with pytest.raises(UserError, match=f"guards.{next(iter(options))}="):
        check_guards(**{"max_skipped": 10, "spike_sigmas": 0.0} | options)


@pytest.mark.parametrize("data", [slow(1), 8])
def test_a_bad_step_touches_nothing_and_the_next_is_as_if_it_had_not_been(demo_config, data):
    """Parameters, moments, schedule and EMA; on one device and sharded over eight."""
    config = small(demo_config, **{"model.scan": True})
    objectives, mesh = make_objectives(config["objectives"]), make_devices_mesh(1, data)
    model = make_model(objectives.needs, **config["model"])
    shapes = jax.eval_shape(partial(init_parameters, model, objectives), jax.random.key(0))
    optimizer = make_optimizer(shapes, config["total_steps"], **config["optimizer"])
    init = make_init(model, objectives, optimizer, ema_decay=0.9)
    shardings = state_shardings(mesh, jax.eval_shape(init, jax.random.key(0)), optimizer)

    def of_short_texts(parameters, state, encoded, *_):
        """Return a loss that is not a number for a batch of short texts."""
        return jnp.where(encoded.text_mask.sum() < 16 * 4, jnp.nan, 0.0), state, {}

    poisoned = replace(objectives, parts={"filip": replace(objectives.parts["filip"], local=of_short_texts)})
    step = make_train_step(model, poisoned, optimizer, 0.9, config["total_steps"])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 48, 48, 3), np.uint8)
    ids = rng.integers(3, 100, (16, 20)).astype(np.int32)
    good, short = (
        {"image": images, "ids": ids},
        {"image": images, "ids": np.where(np.arange(20) < 2, ids, 0).astype(np.int32)},
    )
    with jax.set_mesh(mesh):
        run = jax.jit(step, out_shardings=(shardings, None))
        state = jax.jit(init, out_shardings=shardings)(jax.random.key(1))
        state, _ = run(state, good)
        skipped, metrics = run(state, short)
        after, later = run(skipped, good)
        direct, expected = run(state, good)
    assert int(metrics["train/skipped_in_a_row"]) == 1 and not np.isfinite(float(metrics["train/loss"]))
    for part in ("params", "opt_state", "ema"):
        assert jax.tree.all(jax.tree.map(np.array_equal, skipped[part], state[part])), part
        assert jax.tree.all(jax.tree.map(np.array_equal, after[part], direct[part])), part
    assert int(skipped["step"]) == int(state["step"]) + 1 and int(skipped["guard"]["skipped"]) == 1
    assert float(later["train/lr"]) == float(expected["train/lr"]) and int(later["train/skipped_in_a_row"]) == 0
