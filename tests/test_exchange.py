"""Every form of the loss equals the definition: blocks, exchanges, indices, targets, selection, low precision; and
what the compiled programs need in memory."""

import contextlib
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from conftest import examples, make_devices_mesh, slow, unit, whole_tier
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from filip_jax.errors import UserError
from filip_jax.losses import blocked, filip_loss, tiles, token_similarity
from filip_jax.losses.exchange import make_plan
from filip_jax.losses.selection import select_tokens

FORMS = list(itertools.product(("gather", "ring"), ("save", "recompute")))
SHAPES = [(1, 1, 1, 2), (3, 6, 1, 9), (5, 4, 9, 2), (8, 9, 21, 8), (6, 2, 70, 4), (3, 300, 10, 4)]  # b, p, t, d


def pairs(seed, b, p, t, d):
    """Unit tokens, texts of every length, one without any token, one whose first token takes no part."""
    rng = np.random.default_rng(seed)
    images, texts = unit(rng.normal(size=(b, p, d))), unit(rng.normal(size=(b, t, d)))
    mask = np.arange(t) < rng.integers(1, t + 1, size=(b, 1))
    mask[1 % b], mask[2 % b, 0] = False, False
    return [jnp.asarray(x, jnp.float32) for x in (images, texts)] + [jnp.asarray(mask)]


def run(images, texts, mask, scale=14.0, mesh=None, **options):
    """(loss, gradients of images, texts and scale), jitted."""

    def loss(images, texts, scale):
        return filip_loss(images, texts, mask, scale, **options)

    with jax.set_mesh(make_devices_mesh(*mesh)) if mesh else contextlib.nullcontext():
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(images, texts, jnp.float32(scale))


def assert_close(ours, expected, tolerance=1e-5):
    """Relative to the largest entry of all gradients together: some vanish."""
    (loss, gradients), (expected_loss, expected_gradients) = ours, expected
    assert abs(float(loss) - float(expected_loss)) <= tolerance * max(abs(float(expected_loss)), 1e-2)
    worst = max(float(jnp.abs(g).max()) for g in expected_gradients[:2])
    for mine, exact in zip(gradients[:2], expected_gradients[:2]):
        assert np.isfinite(mine).all() and float(jnp.abs(mine - exact).max()) <= tolerance * max(worst, 1e-2)
    assert abs(float(gradients[2] - expected_gradients[2])) <= tolerance * max(abs(float(expected_gradients[2])), 1e-2)


@examples(12)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**16), scale=st.floats(0.5, 100), few=st.booleans())
def test_blocks_equal_the_definition(shape, seed, scale, few):
    """Also of duplicated and of zero vectors, where many tokens are equally good."""
    b, _, t, _ = shape
    images, texts, mask = pairs(seed, *shape)
    if few:
        rng = np.random.default_rng(seed)
        images, texts = (jnp.asarray(rng.integers(0, 2, x.shape), jnp.float32) for x in (images, texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(blocked.TILE_BYTES, "cpu", 4 * t * b * 2)  # two texts a block
        (*similarities, best), definition = blocked.forward(images.swapaxes(0, 1), texts, mask), token_similarity
        exact, pull = jax.vjp(lambda i, t: definition(i, t, mask), images, texts)
        np.testing.assert_allclose(similarities[0].T, exact[0], atol=1e-5)
        np.testing.assert_allclose(similarities[1].T, exact[1], atol=1e-5)
        weights = jax.random.normal(jax.random.key(seed), (2, b, b)) * scale
        to_images, to_texts = blocked.backward(images.swapaxes(0, 1), texts, mask, best, *weights)
        expected = pull(tuple(w.T for w in weights))
        np.testing.assert_allclose(to_images.swapaxes(0, 1), expected[0], atol=1e-4 * scale)
        np.testing.assert_allclose(to_texts, expected[1], atol=1e-4 * scale)


MESHES = [None, (1, 1), (1, 8), (2, 4)]
# Two forms on each mesh, so that every two of (mesh, exchange, indices) meet; the next test draws from the product.
MET = [(mesh, *FORMS[form]) for n, mesh in enumerate(MESHES) for form in ((0, 3), (1, 2))[n % 2]]


@pytest.mark.parametrize("mesh, exchange, indices", MET)
def test_every_exchange_equals_the_definition(mesh, exchange, indices):
    tokens = pairs(0, 16, 9, 21, 8)
    expected = run(*tokens, implementation="reference")
    assert_close(run(*tokens, mesh=mesh, exchange=exchange, indices=indices), expected)


@examples(8)
@given(
    mesh=st.sampled_from(MESHES), form=st.sampled_from(FORMS), shape=st.sampled_from([(9, 21, 8), (1, 4, 3), (6, 1, 5)]),
    group_rule=st.sampled_from([None, "positives", "ignore"]), label_smoothing=st.sampled_from([0.0, 0.1]),
    fills=st.booleans(), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_all_options_together_equal_the_definition(mesh, form, shape, group_rule, label_smoothing, fills, seed):
    rng, tokens, options = np.random.default_rng(seed), pairs(seed, 16, *shape), {"label_smoothing": label_smoothing}
    if group_rule:
        options |= {"group_rule": group_rule, "group_ids": jnp.asarray(rng.integers(0, 9, 16), jnp.int32)}
    if fills:
        options |= {"row_mask": jnp.asarray(rng.random(16) < 0.8)}
    expected = run(*tokens, implementation="reference", **options)
    assert_close(run(*tokens, mesh=mesh, exchange=form[0], indices=form[1], **options), expected)


def test_the_reference_is_the_same_under_a_mesh():
    tokens = pairs(1, 16, 9, 21, 8)
    expected = run(*tokens, implementation="reference")
    assert_close(run(*tokens, mesh=(2, 4), implementation="reference"), expected)


def nasty(seed, b, p, t, d):
    """Few different tokens, so that many are equally good; vectors of zeros; any mask, also of nothing."""
    rng = np.random.default_rng(seed)
    tokens = np.concatenate([unit(rng.normal(size=(rng.integers(1, 9), d))), np.zeros((1, d))])
    images, texts = (tokens[rng.integers(len(tokens), size=(b, n))] for n in (p, t))
    mask = rng.random((b, t)) < rng.random((b, 1))
    mask[rng.random(b) < 0.2] = False
    return jnp.asarray(images, jnp.float32), jnp.asarray(texts, jnp.float32), jnp.asarray(mask)


@pytest.mark.parametrize("mesh, form", [(None, FORMS[0]), slow((1, 4), FORMS[3]), ((2, 2), FORMS[1])])
def test_nothing_breaks_the_loss(mesh, form):
    """A hundred batches of nasty tokens at CLIP's largest scale: finite, and the definition's.

    For bfloat16, where nothing says which of equal tokens is the best, see test_kernels.py.
    """
    options = dict(exchange=form[0], indices=form[1])

    def loss(images, texts, mask, scale, **options):
        return filip_loss(images, texts, mask, scale, **options)

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 3))
    expected = jax.jit(partial(gradient, implementation="reference"))
    batches = [(*nasty(seed, 8, 5, 11, 4), jnp.float32(100.0)) for seed in range(100)]
    with jax.set_mesh(make_devices_mesh(*mesh)) if mesh else contextlib.nullcontext():
        ours = jax.jit(partial(gradient, **options))
        results = [jax.device_get(ours(*batch)) for batch in batches]
    for batch, result in zip(batches, results):
        assert_close(result, jax.device_get(expected(*batch)), tolerance=1e-4)


def targets(group_ids, row_mask, group_rule, label_smoothing):
    """(which pairs count, probability of each text for an image, of each image for a text), one by one."""
    b = len(group_ids)
    counts, rows, columns = np.zeros((b, b), bool), np.zeros((b, b)), np.zeros((b, b))
    for i, j in itertools.product(range(b), range(b)):
        mate = i != j and group_ids[i] == group_ids[j]
        counts[i, j] = row_mask[i] and row_mask[j] and not (mate and group_rule == "ignore")
        rows[i, j] = columns[i, j] = counts[i, j] and (i == j or mate)
    rows /= np.maximum(rows.sum(1, keepdims=True), 1)
    columns /= np.maximum(columns.sum(0, keepdims=True), 1)
    even = counts / np.maximum(counts.sum(1, keepdims=True), 1), counts / np.maximum(counts.sum(0, keepdims=True), 1)
    keep, e = 1 - label_smoothing, label_smoothing
    return counts, keep * rows + e * even[0], keep * columns + e * even[1]


@pytest.mark.parametrize(
    "group_rule, label_smoothing", [("positives", 0.1), ("ignore", 0.0), slow("positives", 0.0), slow("ignore", 0.1)]
)
def test_targets_equal_their_definition_in_every_form(group_rule, label_smoothing):
    rng = np.random.default_rng(3)
    images, texts, mask = pairs(3, 16, 5, 9, 8)
    group_ids, row_mask = rng.integers(0, 9, 16).astype(np.int32), rng.random(16) < 0.8
    counts, rows, columns = targets(group_ids, row_mask, group_rule, label_smoothing)

    def definition(images, texts, scale):
        s_i, s_t = (jnp.where(counts, scale * s, -jnp.inf) for s in token_similarity(images, texts, mask))
        own = np.flatnonzero(row_mask)
        of_images = -jnp.where(counts[own], rows[own] * jax.nn.log_softmax(s_i[own], axis=1), 0).sum()
        of_texts = -jnp.where(counts[:, own], columns[:, own] * jax.nn.log_softmax(s_t[:, own], axis=0), 0).sum()
        return (of_images + of_texts) / 2 / len(own)

    loss = float(definition(images, texts, 14.0))
    options = dict(
        group_ids=jnp.asarray(group_ids), row_mask=jnp.asarray(row_mask), group_rule=group_rule,
        label_smoothing=label_smoothing,
    )  # fmt: skip
    expected = run(images, texts, mask, implementation="reference", **options)
    assert float(expected[0]) == pytest.approx(loss, rel=1e-5)
    scale_slope = (float(definition(images, texts, 14.01)) - float(definition(images, texts, 13.99))) / 0.02
    assert float(expected[1][2]) == pytest.approx(scale_slope, rel=2e-2, abs=1e-4)
    forms = [((1, 8), FORMS[3]), (None, FORMS[0]), ((2, 4), FORMS[0])]
    if not whole_tier():  # every two of (mesh, rule, smoothing) meet
        forms = forms[:2] if (group_rule == "positives") == (label_smoothing == 0) else forms[2:]
    for mesh, (exchange, indices) in forms:
        assert_close(run(images, texts, mask, mesh=mesh, exchange=exchange, indices=indices, **options), expected)


def test_rows_that_fill_up_a_batch_change_nothing():
    images, texts, mask = pairs(4, 16, 5, 9, 8)
    real = np.arange(16) < 11
    filled = run(images, texts, mask, mesh=(1, 8), row_mask=jnp.asarray(real))
    alone = run(images[:11], texts[:11], mask[:11])
    assert float(filled[0]) == pytest.approx(float(alone[0]), rel=1e-6)
    for mine, expected in zip(filled[1][:2], alone[1][:2]):
        np.testing.assert_allclose(mine[:11], expected, atol=1e-6)
        assert not np.asarray(mine[11:]).any()


@pytest.mark.parametrize("keep_tokens", [1.0, 0.5])
def test_what_fills_up_a_batch_does_not_matter(keep_tokens):
    """Even if it is not a number; the real rows keep the tokens that they keep without it."""
    images, texts, mask = pairs(4, 16, 5, 9, 8)
    real = np.arange(16) < 11
    expected = run(images[:11], texts[:11], mask[:11], keep_tokens=keep_tokens)
    for fill in (np.nan, 0.0, 1.0):
        filled = (jnp.where(real[:, None, None], x, fill) for x in (images, texts))
        ours = run(*filled, mask, row_mask=jnp.asarray(real), keep_tokens=keep_tokens)
        assert float(ours[0]) == pytest.approx(float(expected[0]), rel=1e-6)
        for mine, exact in zip(ours[1][:2], expected[1][:2]):
            np.testing.assert_allclose(mine[:11], exact, atol=1e-6)
            assert not np.asarray(mine[11:]).any()


@pytest.mark.parametrize(
    "rows, message",
    [
        (dict(group_ids=np.zeros((16, 1), np.int32)), r"group_ids must be int \[16\], but is int32 \(16, 1\)"),
        (dict(group_ids=np.zeros(8, np.int32)), r"group_ids must be int \[16\], but is int32 \(8,\)"),
        (dict(group_ids=np.zeros(16)), r"group_ids must be int \[16\], but is float"),
        (
            dict(group_ids=(np.arange(16) + 1) << 32),
            "group_ids go up to 68719476736, but JAX's integers to 2147483647 here",
        ),
        (dict(row_mask=np.ones((16, 1), bool)), r"row_mask must be bool \[16\], but is bool \(16, 1\)"),
        (dict(row_mask=np.ones(16, np.int32)), r"row_mask must be bool \[16\], but is int32"),
    ],
)
def test_rows_of_another_shape_or_type_are_refused(monkeypatch, rows, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users
    with pytest.raises(ValueError, match=message):
        filip_loss(*pairs(0, 16, 2, 3, 4), 1.0, **rows)


def test_tokens_of_two_types_meet_in_the_wider():
    images, texts, mask = pairs(0, 8, 2, 3, 4)
    low = images.astype(jnp.bfloat16)
    assert_close(run(low, texts, mask), run(low.astype(jnp.float32), texts, mask), tolerance=1e-2)


def chosen(scores, mask, kept):
    """Indices of the `kept` highest scores of each row among the masked, in order; all others behind."""
    order = [sorted(np.flatnonzero(m), key=lambda k: -s[k])[:kept] for s, m in zip(np.asarray(scores), mask)]
    return [sorted(row) for row in order]


@pytest.mark.parametrize("selection, keep", [("batch", 0.25), ("pair", 4.0)])
def test_the_tokens_kept_are_those_of_the_definition(selection, keep):
    images, texts, mask = pairs(5, 8, 12, 20, 8)
    s = np.einsum("ipd,jtd->ijpt", images, texts)
    real = np.where(np.asarray(mask)[None, :, None], s, -np.inf)
    if selection == "batch":
        of_images, of_texts = real.max(axis=(1, 3)), s.max(axis=(0, 2))
    else:
        own = np.einsum("bpd,btd->bpt", images, texts) * np.asarray(mask)[:, None]
        of_images, of_texts = own.sum(axis=2), own.sum(axis=1)
    kept_images, kept_texts, kept_mask = select_tokens(images, texts, mask, keep, selection)
    patches = chosen(of_images, np.ones((8, 12), bool), 3 if keep < 1 else 4)
    words = chosen(of_texts, np.asarray(mask), 5 if keep < 1 else 4)
    for b in range(8):
        np.testing.assert_array_equal(kept_images[b], images[b, np.array(patches[b])])
        np.testing.assert_array_equal(kept_texts[b][kept_mask[b]], texts[b, np.array(words[b], int)])


@pytest.mark.parametrize("selection, keep", [("batch", 0.25), ("pair", 4.0)])
def test_selection_is_each_devices_own_and_passes_no_gradient(selection, keep):
    images, texts, mask = pairs(6, 16, 12, 20, 8)
    options = dict(keep_tokens=keep, selection=selection)
    shares = [slice(start, start + 2) for start in range(0, 16, 2)]

    def by_device(images, texts, scale):
        kept = [select_tokens(images[s], texts[s], mask[s], keep, selection) for s in shares]
        return filip_loss(*(jnp.concatenate(parts) for parts in zip(*kept)), scale)

    expected = jax.jit(jax.value_and_grad(by_device, argnums=(0, 1, 2)))(images, texts, jnp.float32(14.0))
    for exchange, indices in (FORMS[0], FORMS[3]) if whole_tier() else (FORMS[0 if selection == "batch" else 3],):
        assert_close(run(images, texts, mask, mesh=(1, 8), exchange=exchange, indices=indices, **options), expected)


def test_bfloat16_tokens_lose_what_rounding_them_loses():
    """Against float64 of the same rounded tokens: sums, maxima and softmax are float32, only packing costs bits."""
    tokens = pairs(7, 32, 20, 24, 64)
    low = [x.astype(jnp.bfloat16) for x in tokens[:2]]
    ours = run(*low, tokens[2], mesh=(1, 4), exchange="ring")
    with jax.enable_x64(True):
        exact, gradients = oracle(*(np.asarray(x, np.float64) for x in low), np.asarray(tokens[2]), 14.0)
    assert float(ours[0]) == pytest.approx(exact, rel=1e-5)
    for mine, expected in zip(ours[1][:2], gradients):
        deviation = np.linalg.norm(np.asarray(mine, np.float64) - expected) / np.linalg.norm(expected)
        assert deviation < 0.003, deviation  # 8 bits of the result itself


def oracle(images, texts, mask, scale):
    """(loss, gradients of images and texts) in float64 numpy, token by token."""
    s = np.where(mask[None, :, None], np.einsum("ipd,jtd->ijpt", images, texts), -np.inf)
    length, some = mask.sum(axis=1), mask.any(axis=1)
    best_text = s.argmax(axis=3)
    best_image = np.einsum("ipd,jtd->ijpt", images, texts).argmax(axis=2)
    of_images = np.where(some[:, None], s.max(axis=3), 0).mean(axis=2)
    of_texts = np.where(mask, np.where(mask[None, :, None], s, 0).max(axis=2), 0)
    peak = np.take_along_axis(np.einsum("ipd,jtd->ijpt", images, texts), best_image[:, :, None], axis=2)[:, :, 0]
    of_texts = np.where(mask, peak, 0).sum(axis=2) / np.maximum(length, 1)
    rows, columns = (
        np.exp(scale * x - (scale * x).max(axis=n, keepdims=True)) for n, x in ((1, of_images), (0, of_texts))
    )
    rows, columns = rows / rows.sum(axis=1, keepdims=True), columns / columns.sum(axis=0, keepdims=True)
    b = len(images)
    loss = -(np.log(np.diagonal(rows)).mean() + np.log(np.diagonal(columns)).mean()) / 2
    to_rows, to_columns = ((x - np.eye(b)) * scale / 2 / b for x in (rows, columns))
    weights = np.zeros(s.shape)
    _, _, p, t = np.ogrid[tuple(slice(n) for n in s.shape)]
    weights += (t == best_text[..., None]) * (to_rows * some / s.shape[2])[..., None, None]
    weights += (
        (p == best_image[:, :, None]) * mask[None, :, None] * (to_columns / np.maximum(length, 1))[..., None, None]
    )
    return loss, (np.einsum("ijpt,jtd->ipd", weights, texts), np.einsum("ijpt,ipd->jtd", weights, images))


def test_options_that_are_auto_spend_a_gibibyte():
    def plan(devices, b):
        made = []

        def look(image, text):
            options = dict(implementation="auto", exchange="auto", indices="auto")
            made.append(make_plan(("data",), devices, image, text, **options))

        jax.eval_shape(look, *(jax.ShapeDtypeStruct((b, n, 256), jnp.bfloat16) for n in (49, 80)))
        return made[0].exchange, made[0].indices

    assert plan(1, 512) == ("gather", "save") and plan(1, 4096) == ("gather", "recompute")
    texts, indices = 80 * 256 * (2 + 4), 49 + 80  # bytes of a text and its gradient, of a pair
    most = 2**30 // texts
    assert [plan(n, 1)[0] for n in (most, most + 1)] == ["gather", "ring"]
    assert [plan(2**30 // indices // 64 // 64 + n, 64)[1] for n in (0, 1)] == ["save", "recompute"]


def test_padding_is_skipped():
    """Sorted texts of few lengths: each block takes the branch of its longest, whatever the array's length."""
    mask = jnp.arange(80) < jnp.array([[80, 3, 9, 8, 16, 17, 2, 30]]).T
    texts, mask, _ = blocked.by_length(jnp.ones((8, 80, 3)), mask)
    used = []

    def function(n, carry, arrays):
        jax.debug.callback(lambda: used.append(n), ordered=True)
        return carry, arrays[1][:, :1]

    blocked._over_blocks(function, None, (texts, mask), 4, tile_bytes=4 * 80 * 4 * 2)  # two texts a block
    jax.effects_barrier()
    assert used == [8, 16, 24, 80]


def test_what_is_alike_on_two_platforms_is_traced_once(monkeypatch):
    images, texts, mask = pairs(0, 4, 3, 8, 4)
    traced, maxima = [], tiles.maxima
    monkeypatch.setattr(tiles, "maxima", lambda *arrays: traced.append(1) or maxima(*arrays))
    counts = []
    for tile_bytes in (2**20, 4 * 8 * 4):  # all texts at once, as everywhere; one at a time, on CPUs alone
        monkeypatch.setitem(blocked.TILE_BYTES, "cpu", tile_bytes)
        traced.clear()
        again = lambda *arrays: blocked.forward(*arrays)  # noqa: PLW0108 - what JAX has traced it does not trace again
        jax.eval_shape(again, images.swapaxes(0, 1), texts, mask)
        counts.append(len(traced))
    assert 0 < 2 * counts[0] == counts[1]


def test_a_double_precision_session_is_served():
    tokens = pairs(0, 8, 3, 9, 4)
    with jax.enable_x64(True):
        assert_close(run(*tokens), run(*tokens, implementation="reference"))
        low = [x.astype(jnp.bfloat16) for x in tokens[:2]]
        assert np.isfinite(run(*low, tokens[2], keep_tokens=0.5, mesh=(1, 2))[0])


def temporary_bytes(devices, exchange, indices, b, p, t, d):
    """Of the compiled loss and gradients on one of the devices, at a fixed local batch."""
    shapes = [(devices * b, p, d), (devices * b, t, d), (devices * b, t)]
    arrays = [jax.ShapeDtypeStruct(s, dtype) for s, dtype in zip(shapes, (jnp.float32, jnp.float32, jnp.bool))]
    mesh = make_devices_mesh(1, devices)
    split = NamedSharding(mesh, PartitionSpec(("replica", "data")))

    def loss(images, texts, mask):
        return filip_loss(images, texts, mask, 14.0, exchange=exchange, indices=indices)

    with jax.set_mesh(mesh):
        gradient = jax.value_and_grad(loss, argnums=(0, 1))
        step = jax.jit(gradient, in_shardings=split, out_shardings=(None, (split, split)))
        return step.lower(*arrays).compile().memory_analysis().temp_size_in_bytes


def growth(exchange, indices):
    """(bytes on 2 devices, bytes that each of 6 more devices adds)."""
    sizes = dict(b=64, p=49, t=16, d=96)
    small, large = (temporary_bytes(devices, exchange, indices, **sizes) for devices in (2, 8))
    return small, (large - small) / 6


def test_memory_of_the_ring_is_flat_in_the_number_of_devices():
    flat, of_ring = growth("ring", "recompute")
    assert 6 * of_ring < 0.001 * flat


@pytest.mark.slow
def test_scores_indices_and_gathered_texts_cost_what_they_say():
    """From 2 to 8 devices."""
    indices, scores, texts = 64 * 64 * (49 + 16), 2 * 4 * 64 * 64, 64 * 16 * 96 * 4
    assert indices <= growth("ring", "save")[1] <= indices + 4 * scores
    of_gather = growth("gather", "recompute")[1]
    assert 2 * texts <= of_gather <= 2 * texts + 5 * scores  # the texts, their gradients, sorted scores
    assert indices <= growth("gather", "save")[1] - of_gather <= indices + 2 * scores


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(exchange="rign"), "exchange='rign' is not one of auto, gather, ring"),
        (dict(implementation="cuda"), "implementation='cuda' is not one of auto, reference, xla, pallas"),
        (dict(dtype="float8"), "dtype='float8' is not one of float32, bfloat16"),
        (dict(keep_tokens=0.0), "keep_tokens=0.0 must be above 0"),
        (dict(label_smoothing=1.0), "label_smoothing=1.0 must be"),
    ],
)
def test_an_option_that_does_not_exist_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        filip_loss(*pairs(0, 2, 3, 3, 4), 1.0, **options)
