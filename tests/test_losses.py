"""The loss against a float64 oracle, and the sharded form against the definition."""

import contextlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from conftest import make_devices_mesh, slow, unit
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from filip_jax.losses import clip_loss, filip_loss, similarity_loss, token_similarity


def oracle_similarity(images, texts, mask):
    """Loops over the paper's definition in float64, with the argmax indices for the gradient."""
    s_i, s_t = np.zeros((2, len(images), len(texts)))
    best = {}
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            real = np.flatnonzero(mask[j])
            if len(real):
                s = image @ text[real].T
                s_i[i, j], s_t[i, j] = s.max(axis=1).mean(), s.max(axis=0).mean()
                best[i, j] = real[s.argmax(axis=1)], s.argmax(axis=0), real
    return s_i, s_t, best


def oracle(images, texts, mask, scale):
    """(loss, gradients with respect to images, texts and scale) in float64, by hand."""
    b = len(images)
    s_i, s_t, best = oracle_similarity(images, texts, mask)

    def softmax(x, axis):
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return e / e.sum(axis=axis, keepdims=True)

    over_texts, over_images = softmax(scale * s_i, 1), softmax(scale * s_t, 0)
    own = np.arange(b)
    loss = -(np.log(over_texts[own, own]).mean() + np.log(over_images[own, own]).mean()) / 2
    d_i, d_t = (over_texts - np.eye(b)) / (2 * b), (over_images - np.eye(b)) / (2 * b)
    d_images, d_texts = np.zeros_like(images), np.zeros_like(texts)
    for (i, j), (text_of, image_of, real) in best.items():
        weight = scale * d_i[i, j] / images.shape[1]
        for p, t in enumerate(text_of):
            d_images[i, p] += weight * texts[j, t]
            d_texts[j, t] += weight * images[i, p]
        weight = scale * d_t[i, j] / len(real)
        for p, t in zip(image_of, real):
            d_images[i, p] += weight * texts[j, t]
            d_texts[j, t] += weight * images[i, p]
    return loss, (d_images, d_texts, (d_i * s_i).sum() + (d_t * s_t).sum())


def pairs(seed, b=8, p=5, t=6, d=7, ragged=True):
    """Random tokens in float64 and a mask with ragged lengths; text 1 is empty."""
    rng = np.random.default_rng(seed)
    images, texts = unit(rng.normal(size=(b, p, d))), unit(rng.normal(size=(b, t, d)))
    mask = np.ones((b, t), bool)
    if ragged:
        mask = np.arange(t) < rng.integers(1, t + 1, size=(b, 1))
        mask[1 % b] = False
    return images, texts, mask


def close(ours, exact, tolerance=1e-5):
    """Relative to the largest entry: gradients have entries that are exactly zero."""
    ours, exact = np.asarray(ours, np.float64), np.asarray(exact)
    return np.abs(ours - exact).max() <= tolerance * np.abs(exact).max()


def single(x):
    return jnp.asarray(x, jnp.float32)


value_and_gradient = jax.value_and_grad(filip_loss, argnums=(0, 1, 3))
jitted_value_and_gradient = jax.jit(value_and_gradient)


SHAPES = [(1, 1, 1, 2), (2, 1, 7, 3), (3, 6, 1, 9), (5, 4, 3, 2), (7, 2, 5, 4), (9, 6, 7, 8)]  # each compiles once


@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**16), scale=st.floats(0.5, 100))
def test_loss_and_gradients_equal_the_oracle(shape, seed, scale):
    b, p, t, d = shape
    images, texts, mask = pairs(seed, b, p, t, d)
    images, texts = images.astype(np.float32).astype(float), texts.astype(np.float32).astype(float)
    loss, gradients = oracle(images, texts, mask, scale)
    ours, ours_gradients = jitted_value_and_gradient(single(images), single(texts), jnp.asarray(mask), single(scale))
    assert abs(float(ours) - loss) <= 1e-5 * max(loss, 1e-2)  # near 0 the loss is a difference of numbers near `scale`
    worst = max(np.abs(g).max() for g in gradients[:2])
    for mine, exact in zip(ours_gradients[:2], gradients[:2]):
        assert np.abs(np.asarray(mine, float) - exact).max() <= 1e-5 * max(worst, 1e-3 * scale)


@pytest.mark.smoke
@pytest.mark.parametrize("seed", range(5))
def test_a_fixed_tie_free_batch_equals_the_oracle_to_1e_5(seed):
    images, texts, mask = pairs(seed, b=12, p=9, t=8, d=16)
    images, texts = images.astype(np.float32).astype(float), texts.astype(np.float32).astype(float)
    loss, gradients = oracle(images, texts, mask, 1 / 0.07)
    ours, ours_gradients = value_and_gradient(single(images), single(texts), jnp.asarray(mask), single(1 / 0.07))
    assert abs(float(ours) / loss - 1) < 1e-5
    for mine, exact in zip(ours_gradients, gradients):
        assert close(mine, exact)


def test_similarities_equal_the_oracle_and_are_float32_for_bfloat16_tokens():
    images, texts, mask = pairs(0, b=6)
    exact = oracle_similarity(images, texts[:4], mask[:4])[:2]
    for mine, expected in zip(token_similarity(single(images), single(texts[:4]), jnp.asarray(mask[:4])), exact):
        assert mine.shape == (6, 4) and close(mine, expected)
    low = token_similarity(single(images).astype(jnp.bfloat16), single(texts).astype(jnp.bfloat16), jnp.asarray(mask))
    assert all(s.dtype == jnp.float32 for s in low)


def test_the_loss_of_similarities_is_the_loss_of_their_tokens():
    images, texts, mask = pairs(2)
    tokens = single(images), single(texts), jnp.asarray(mask)
    ours, gradient = jax.value_and_grad(lambda scale: similarity_loss(*token_similarity(*tokens), scale))(14.0)
    loss, gradients = oracle(images, texts, mask, 14.0)
    assert float(ours) == pytest.approx(loss, rel=1e-5) and float(gradient) == pytest.approx(gradients[2], rel=1e-4)


def test_a_text_without_tokens_has_similarity_zero_and_no_gradient():
    images, texts, mask = pairs(3)
    s_i, s_t = token_similarity(single(images), single(texts), jnp.asarray(mask))
    assert not np.asarray(s_i)[:, 1].any() and not np.asarray(s_t)[:, 1].any()
    _, (_, d_texts, _) = value_and_gradient(single(images), single(texts), jnp.asarray(mask), single(14.0))
    assert not np.asarray(d_texts)[1].any() and np.asarray(d_texts)[0].any()
    none = jnp.zeros(mask.shape, bool)
    loss, gradients = value_and_gradient(single(images), single(texts), none, single(14.0))
    assert float(loss) == pytest.approx(np.log(len(images)))
    assert all(np.isfinite(g).all() for g in gradients)


def test_masked_tokens_change_nothing_and_get_no_gradient():
    images, texts, mask = pairs(4)
    loss, (d_images, d_texts, _) = value_and_gradient(single(images), single(texts), jnp.asarray(mask), 14.0)
    assert not np.asarray(d_texts)[~mask].any()
    changed = np.where(mask[..., None], texts, 100.0)
    again, (d_again, _, _) = value_and_gradient(single(images), single(changed), jnp.asarray(mask), 14.0)
    assert float(loss) == float(again) and np.array_equal(d_images, d_again)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "jitted, replica, data",
    [
        *((True, *mesh) for mesh in [(1, 8), (2, 4), (8, 1)]), (False, 1, 1), (False, 2, 4),
        *(slow(True, *mesh) for mesh in [(1, 1), (1, 2), (1, 4), (4, 2)]), slow(False, 1, 8),
    ],
)  # fmt: skip
def test_sharded_equals_the_definition(replica, data, jitted):
    images, texts, mask = pairs(5, b=16, p=7, t=6)
    arguments = single(images), single(texts), jnp.asarray(mask), single(30.0)
    loss, gradients = value_and_gradient(*arguments)
    function = jitted_value_and_gradient if jitted else value_and_gradient
    with jax.set_mesh(make_devices_mesh(replica, data)):
        sharded, sharded_gradients = function(*arguments)
    assert abs(float(sharded) / float(loss) - 1) < 1e-6
    for mine, expected in zip(sharded_gradients, gradients):
        assert close(mine, expected, 1e-6)


@pytest.mark.parametrize(
    "axes", [slow(("data",)), ("replica",), slow(("model",)), ("data", "model"), slow(("model", "replica"))]
)
def test_any_mesh_runs_over_its_batch_axes(axes):
    images, texts, mask = pairs(6, b=8)
    loss, gradients = value_and_gradient(single(images), single(texts), jnp.asarray(mask), single(30.0))
    shape = (8,) if len(axes) == 1 else (4, 2)
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
    split = NamedSharding(mesh, PartitionSpec(None, axes[0]) if len(axes) == 2 else PartitionSpec())
    with jax.set_mesh(mesh):
        placed = jax.device_put(single(np.pad(texts, ((0, 0), (0, 2), (0, 0)))), split)
        wide = jnp.asarray(np.pad(mask, ((0, 0), (0, 2))))
        sharded, sharded_gradients = value_and_gradient(single(images), placed, wide, single(30.0))
    assert abs(float(sharded) / float(loss) - 1) < 1e-6
    assert close(sharded_gradients[0], gradients[0], 1e-6)
    assert close(sharded_gradients[1][:, :6], gradients[1], 1e-6)


def test_the_sharded_form_moves_texts_once_and_never_images():
    images, texts, mask = pairs(7, b=16, p=11, t=6)
    with jax.set_mesh(make_devices_mesh(1, 8)):
        text = jax.jit(filip_loss).lower(single(images), single(texts), jnp.asarray(mask), single(1.0)).as_text()
    gathered = re.findall(r"stablehlo\.all_gather.*-> (tensor<[^>]*>)", text)
    # Texts, their mask, how many right answers each has, their order.
    assert sorted(gathered) == ["tensor<16x6x7xf32>", "tensor<16x6xi1>", "tensor<16xf32>", "tensor<16xi32>"]


def test_clip_loss_is_filip_loss_with_one_token():
    images, texts, _ = pairs(8, p=1, t=1)
    a, b = single(images[:, 0]), single(texts[:, 0])
    ours = clip_loss(a, b, 14.0)
    logits = 14.0 * np.asarray(a) @ np.asarray(b).T
    rows, columns = (np.log(np.exp(logits).sum(axis=axis)) for axis in (1, 0))
    expected = (rows + columns - 2 * np.diagonal(logits)).mean() / 2
    assert float(ours) == pytest.approx(expected, rel=1e-6)
    assert float(ours) == float(filip_loss(a[:, None], b[:, None], jnp.ones((8, 1), bool), 14.0))
    with jax.set_mesh(make_devices_mesh(2, 4)):
        assert float(clip_loss(a, b, 14.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mesh", [None, (2, 4)])
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i, t, m, s: (i[:8], t, m, s), "8 images and 16 texts are not a batch of pairs"),
        (lambda i, t, m, s: (i[:0], t[:0], m[:0], s), "0 images and 0 texts"),
        (lambda i, t, m, s: (i[:, :0], t, m, s), "images and texts must have tokens"),
        (lambda i, t, m, s: (i.astype(int), t, m, s), "tokens must be floating point, but are int"),
        (lambda i, t, m, s: (i, t, m.astype(int), s), "text_mask must be boolean, but is int"),
        (lambda i, t, m, s: (i[..., :3], t, m, s), "the same d"),
        (lambda i, t, m, s: (i, t, m[:, :1], s), r"text_mask must be \[j, t\]"),
        (lambda i, t, m, s: (i, t, m[:1], s), r"text_mask must be \[j, t\]"),
        (lambda i, t, m, s: (i, t, m.astype(np.int32), s), "but is int32"),
        (lambda i, t, m, s: (i, t, m, np.full(2, s)), "logit_scale must be a scalar"),
    ],
)
def test_what_is_no_batch_of_pairs_is_refused_in_one_line(monkeypatch, change, message, mesh):
    images, texts, mask = pairs(0, b=16)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users
    with jax.set_mesh(make_devices_mesh(*mesh)) if mesh else contextlib.nullcontext():
        with pytest.raises(ValueError, match=message):
            filip_loss(*change(images.astype(np.float32), texts.astype(np.float32), mask, 14.0))


def test_an_indivisible_batch_is_refused_with_both_numbers():
    images, texts, mask = pairs(0, b=12)
    with (
        jax.set_mesh(make_devices_mesh(2, 4)),
        pytest.raises(ValueError, match=r"12 pairs .* 8 devices \(replica=2 x data=4\)"),
    ):
        filip_loss(single(images), single(texts), jnp.asarray(mask), 1.0)


def test_shard_map_and_explicit_axes_are_refused_in_one_line():
    images, texts, mask = pairs(0, b=8)
    arguments = single(images), single(texts), jnp.asarray(mask)
    auto = make_devices_mesh(1, 8)
    inside = jax.shard_map(
        partial(filip_loss, logit_scale=1.0), mesh=auto, in_specs=PartitionSpec("data"), out_specs=PartitionSpec()
    )
    with pytest.raises(ValueError) as inside_error:
        inside(*arguments)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))):
        with pytest.raises(ValueError) as explicit_error:
            filip_loss(*arguments, 1.0)
    assert str(inside_error.value) == "filip_jax works on global arrays: call it outside of shard_map"
    assert "Auto axes" in str(explicit_error.value) and "\n" not in str(explicit_error.value)
