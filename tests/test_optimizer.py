"""LAMB against a NumPy transcription of its rule, path rules, freezing and the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from filip_jax import paths
from filip_jax.errors import UserError
from filip_jax.train.optimizer import make_optimizer

OPTIONS = dict(
    name="lamb", peak_learning_rate=0.1, warmup_steps=0, total_steps=100, weight_decay=0.01, b1=0.9, b2=0.999, eps=1e-4,
    clip_norm=0.0, decay_rules=(), learning_rate_rules=(),
)  # fmt: skip


def parameters():
    rng = np.random.default_rng(0)
    return {
        "image": {
            "layers": {"out": {"kernel": rng.normal(size=(3, 4, 5)) * [[[1]], [[9]], [[0]]], "bias": np.zeros((3, 5))}},
            "blocks": {"0": {"kernel": rng.normal(size=(3, 4))}},  # a list: not stacked, whatever its name
        },
        "text": {"kernel": rng.normal(size=(6, 4)), "bias": rng.normal(size=6)},
        "objectives": {"filip": {"logit_scale": np.array(2.5)}},
    }


def metadata(tree=None):
    """Of these parameters: those called `layers` are stacked, biases and the scale do not decay."""
    return {
        path: paths.Metadata(stacked="/layers/" in path, decay=not path.endswith(("bias", "scale")))
        for path in paths.flatten(tree or parameters())
    }


def as_single(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def lamb(parameter, gradients, rates, decay, b1=0.9, b2=0.999, eps=1e-4, stacked=False):
    """The PyTorch implementation's rule on one tensor, or on each layer of a stack, in float64."""
    if stacked:
        return np.stack([lamb(p, [g[n] for g in gradients], rates, decay) for n, p in enumerate(parameter)])
    m = v = np.zeros_like(parameter)
    for gradient, rate in zip(gradients, rates):
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        update = m / (np.sqrt(v) + eps) + decay * parameter
        norm, update_norm = min(np.linalg.norm(parameter), 10.0), np.linalg.norm(update)
        trust = norm / update_norm if norm > 0 and update_norm > 0 else 1.0
        parameter = parameter - rate * trust * update
    return parameter


def run(optimizer, start, gradients):
    """The parameters after these gradients, frozen ones untouched."""
    trainable, frozen = optimizer.split(start)
    trainable = paths.unflatten(trainable)
    state = optimizer.transform.init(trainable)
    for gradient in gradients:
        wanted, _ = optimizer.split(gradient)
        updates, state = optimizer.transform.update(paths.unflatten(wanted), state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    return paths.flatten(trainable) | frozen, state


def test_lamb_equals_the_rule_with_one_trust_ratio_per_layer():
    start = parameters()
    gradients = [jax.tree.map(lambda x, s=s: np.random.default_rng(s).normal(size=x.shape), start) for s in range(4)]
    optimizer = make_optimizer(metadata(), **OPTIONS)
    ours, _ = run(optimizer, as_single(start), [as_single(g) for g in gradients])
    rates = [float(optimizer.schedule(step)) for step in range(4)]
    assert rates[0] == pytest.approx(0.1) and rates[3] < rates[0]
    for path, parameter in paths.flatten(start).items():
        decay = 0.0 if path.endswith(("bias", "scale")) else 0.01
        history = [paths.flatten(g)[path] for g in gradients]
        expected = lamb(parameter, history, rates, decay, stacked="/layers/" in path)
        np.testing.assert_allclose(ours[path], expected, rtol=1e-5, atol=1e-6, err_msg=path)


def test_the_weight_norm_is_clamped_at_ten():
    start = {"kernel": np.full((10, 10), 100.0)}
    options = OPTIONS | dict(decay_rules=((".*", 0.0),))
    ours, _ = run(
        make_optimizer(metadata(start), **options), as_single(start), [as_single({"kernel": np.ones((10, 10))})]
    )
    assert np.linalg.norm(np.asarray(ours["kernel"]) - 100) == pytest.approx(0.1 * 10, rel=1e-3)


def test_adamw_equals_optax():
    start = parameters()
    gradients = [jax.tree.map(lambda x, s=s: np.random.default_rng(s).normal(size=x.shape), start) for s in range(3)]
    options = OPTIONS | dict(name="adamw", eps=1e-8, clip_norm=1.0, decay_rules=((".*", 1.0),))
    optimizer = make_optimizer(metadata(), **options)
    ours, _ = run(optimizer, as_single(start), [as_single(g) for g in gradients])
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optimizer.schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01)
    )
    expected, state = as_single(start), theirs.init(as_single(start))
    for gradient in gradients:
        updates, state = theirs.update(as_single(gradient), state, expected)
        expected = optax.apply_updates(expected, updates)
    for path, value in paths.flatten(expected).items():
        np.testing.assert_allclose(ours[path], value, rtol=1e-5, atol=1e-7)


def test_learning_rate_rules_scale_and_zero_freezes_without_state():
    start = parameters()
    scale, rules = "objectives/filip/logit_scale", (("image/.*", 0.0), ("objectives/.*", 0.5))
    optimizer = make_optimizer(metadata(), **OPTIONS | dict(learning_rate_rules=rules))
    gradient = as_single(jax.tree.map(np.ones_like, start))
    ours, state = run(optimizer, as_single(start), [gradient])
    full, _ = run(make_optimizer(metadata(), **OPTIONS), as_single(start), [gradient])
    moved = {path: np.asarray(ours[path] - paths.flatten(as_single(start))[path]) for path in ours}
    fully = {path: np.asarray(full[path] - paths.flatten(as_single(start))[path]) for path in ours}
    assert not any(change.any() for path, change in moved.items() if path.startswith("image/"))
    np.testing.assert_allclose(moved[scale], fully[scale] / 2, rtol=1e-5)
    np.testing.assert_allclose(moved["text/kernel"], fully["text/kernel"], rtol=1e-6)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert (3, 4, 5) not in shapes and (6, 4) in shapes


def test_warm_up_then_cosine_to_zero():
    optimizer = make_optimizer(metadata(), **OPTIONS | dict(warmup_steps=10))
    rates = np.array([optimizer.schedule(step) for step in range(101)])
    assert rates[0] == pytest.approx(0.01) and rates.argmax() == 10 and rates[10] == pytest.approx(0.1)
    assert (
        (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all() and rates[100] == pytest.approx(0, abs=1e-8)
    )


@given(
    st.sampled_from(["cosine", "constant", "linear_cooldown"]), st.integers(0, 40), st.integers(1, 60), st.floats(0.02, 0.5),
)  # fmt: skip
def test_a_schedule_rises_to_its_peak_and_falls_as_it_says(name, warmup, rest, cooldown):
    total = warmup + rest
    falls = max(round(cooldown * total), 1)
    assume(warmup + falls <= total)
    optimizer = make_optimizer(
        metadata(), **OPTIONS | dict(total_steps=total, warmup_steps=warmup, schedule=name, cooldown=cooldown)
    )
    rates = np.array([optimizer.schedule(step) for step in range(total + 1)])
    peak = OPTIONS["peak_learning_rate"]
    steps = np.arange(warmup + 1, total + 1)
    definition = {
        "cosine": peak * (1 + np.cos(np.pi * (steps - warmup) / rest)) / 2,
        "constant": np.full(rest, peak),
        "linear_cooldown": peak * np.minimum(1, (total - steps) / falls),
    }
    rise = peak / warmup + (peak - peak / warmup) * np.arange(warmup) / warmup if warmup else np.zeros(0)
    np.testing.assert_allclose(rates, [*rise, peak, *definition[name]], atol=1e-6 * peak, rtol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(schedule="cos"), "optimizer.schedule='cos' is not one of cosine, constant, linear_cooldown"),
        (dict(schedule="linear_cooldown", cooldown=0.0), "cooldown=0.0 must be above 0"),
        (dict(schedule="linear_cooldown", cooldown=float("nan")), "cooldown=nan must be above 0"),
        (
            dict(schedule="linear_cooldown", warmup_steps=60, cooldown=0.5),
            "a cooldown of 50 steps do not fit total_steps=100",
        ),
        (dict(decay_rules=(("nothing", 0.0), (".*", 1.0))), "the rule 'nothing' matches no parameter"),
        (dict(decay_rules=(("(", 0.0), (".*", 1.0))), "'\\(' is not a regular expression"),
        (dict(decay_rules=(3,)), "3 is not a pair"),
        (dict(learning_rate_rules=((".*", 0.0),)), "freeze every parameter"),
        (dict(name="sgd"), "optimizer.name='sgd' is not one of lamb, adamw"),
        (dict(warmup_steps=100), "warmup_steps=100 must be at least 0 and below total_steps=100"),
    ],
)
def test_rules_and_names_that_can_not_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(metadata(), **OPTIONS | changes)
