"""What happens in a block of texts, in XLA and in the kernels for TPUs and GPUs, equals the definition."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_exchange import nasty, pairs, run

from filip_jax.errors import UserError
from filip_jax.losses import filip_loss, pallas_gpu, pallas_gpu_spread, pallas_tpu, tiles

BFLOAT16 = jnp.dtype(jnp.bfloat16)
NO_GPU_KERNEL = pallas_gpu.why_not(1, 1, 8, BFLOAT16)


def on_gpu(kernel):
    return pytest.param(kernel, id="gpu", marks=pytest.mark.skipif(bool(NO_GPU_KERNEL), reason=NO_GPU_KERNEL))


def check_maxima(maxima, images, texts, mask, tolerance):
    """Sums equal the definition's, and the tokens named are as good as the best."""
    of_images, of_texts, best_text, best_image = maxima(images.swapaxes(0, 1), texts, mask)
    s = np.einsum("ipd,jtd->jpti", *(np.asarray(x, np.float64) for x in (images, texts)))
    real = np.where(np.asarray(mask)[:, None, :, None], s, -np.inf)
    some = np.asarray(mask).any(axis=1)
    best, peak = real.max(axis=2), s.max(axis=1)
    np.testing.assert_allclose(of_images[some], best.sum(axis=1)[some], atol=tolerance * best.shape[1])
    expected = np.where(np.asarray(mask)[:, :, None], peak, 0).sum(axis=1)
    np.testing.assert_allclose(of_texts[some], expected[some], atol=tolerance * peak.shape[1])
    named = np.take_along_axis(real, np.asarray(best_text, int)[:, :, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(named[some], best[some], atol=tolerance)
    named = np.take_along_axis(s, np.asarray(best_image, int)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(named, peak, atol=tolerance)


@pytest.mark.parametrize(
    "maxima",
    [
        pytest.param(tiles.maxima, id="xla"),
        pytest.param(pallas_tpu.simulated, id="tpu"),
        on_gpu(pallas_gpu.interpreted),
    ],
)
@pytest.mark.parametrize("shape", [(3, 5, 9, 16), (6, 2, 24, 8), (40, 3, 8, 8), (2, 200, 40, 16)])
def test_packed_maxima_and_the_kernels_equal_the_definition(maxima, shape):
    images, texts, mask = pairs(8, *shape)
    images, texts = images.astype(jnp.bfloat16), texts.astype(jnp.bfloat16)
    check_maxima(maxima, images, texts, mask, tolerance=2**-14)


@pytest.mark.parametrize(
    "maxima",
    [
        pytest.param(tiles.maxima, id="xla"),
        pytest.param(pallas_tpu.simulated, id="tpu"),
        on_gpu(pallas_gpu.interpreted),
    ],
)
def test_of_equally_good_tokens_one_that_takes_part_is_named(maxima):
    """Similarities of exactly 0, too: the bits of an index alone are no number."""
    for seed in range(4):
        images, texts, mask = nasty(seed, 8, 5, 11, 4)
        check_maxima(maxima, images.astype(jnp.bfloat16), texts.astype(jnp.bfloat16), mask, tolerance=2**-7)


def test_more_tokens_than_an_index_has_room_for_are_compared_exactly():
    images, texts, mask = pairs(12, 2, 600, 3, 8)
    check_maxima(tiles.maxima, images.astype(jnp.bfloat16), texts.astype(jnp.bfloat16), mask, tolerance=1e-6)


@pytest.mark.parametrize("mesh", [None, (1, 2)])
def test_the_loss_on_kernels_equals_the_definition(mesh):
    images, texts, mask = pairs(9, 8, 5, 11, 16)
    images, texts = (x.astype(jnp.bfloat16).astype(jnp.float32) for x in (images, texts))
    expected = run(images, texts, mask, implementation="reference")
    ours = run(images, texts, mask, mesh=mesh, implementation="pallas", dtype="bfloat16", exchange="ring")
    assert float(ours[0]) == pytest.approx(float(expected[0]), rel=1e-3)
    for mine, exact in zip(ours[1][:2], expected[1][:2]):
        assert np.linalg.norm(mine - exact) < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    "dtype, message",
    [("bfloat16", "takes up to 256 tokens a side, but these are 300 and 3; take"), ("float32", "multiply bfloat16")],
)
def test_a_kernel_that_can_not_be_is_refused(dtype, message):
    with pytest.raises(UserError, match=message):
        filip_loss(*pairs(0, 2, 300, 3, 4), 1.0, implementation="pallas", dtype=dtype)


@given(count=st.integers(1, 512), seed=st.integers(0, 2**16))
def test_packing_keeps_the_index_and_the_value_to_its_bits(count, seed):
    rng = np.random.default_rng(seed)
    values, indices = jnp.asarray(rng.normal(size=50), jnp.float32), jnp.asarray(rng.integers(0, count, 50), jnp.int32)
    kept, found = tiles.unpack(tiles.pack(values, indices, count), count)
    np.testing.assert_array_equal(found, indices)
    np.testing.assert_allclose(kept, values, rtol=2.0 ** -(23 - (count - 1).bit_length()))


@pytest.mark.parametrize("highest", [tiles.highest, pallas_tpu.highest_simulated], ids=["xla", "tpu"])
@pytest.mark.parametrize("shape", [(3, 5, 9, 16), (40, 3, 8, 8), (6, 1, 1, 3), (140, 2, 8, 8)])
def test_the_highest_similarities_are_the_definitions(highest, shape):
    images, texts, mask = pairs(11, *shape)
    start = jax.random.uniform(jax.random.key(0), (shape[1], shape[0]))
    of_images, of_texts = highest(start, images.swapaxes(0, 1), texts, mask)
    s = np.einsum("ipd,jtd->ijpt", images, texts)
    best = np.where(np.asarray(mask)[None, :, None], s, -np.inf).max(axis=(1, 3)).T
    np.testing.assert_allclose(of_images, np.maximum(best, start), atol=1e-6)
    np.testing.assert_allclose(of_texts, s.max(axis=(0, 2)), atol=1e-6)


def check_spread(spread, dtype, shape, tolerance):
    images, texts, mask = pairs(10, *shape)
    images, texts = images.swapaxes(0, 1).astype(dtype), texts.astype(dtype)
    _, _, best_text, best_image = tiles.maxima(images, texts, mask)
    weights = jax.random.normal(jax.random.key(0), (2, len(texts), len(texts))) * mask.any(axis=1)[:, None]
    start = jax.random.normal(jax.random.key(1), images.shape)
    arguments = (start, images, texts, mask, best_image, best_text, *weights)
    for mine, expected in zip(spread(*arguments), tiles.spread(*arguments)):
        np.testing.assert_allclose(mine, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(4, 5, 9, 8), (3, 300, 10, 4), (6, 1, 1, 3)])
def test_both_ways_to_spread_a_gradient_are_one(shape):
    check_spread(tiles.spread_at_once, jnp.float32, shape, 1e-5)


@pytest.mark.parametrize("spread", [on_gpu(pallas_gpu_spread.interpreted)])
@pytest.mark.parametrize("shape", [(4, 5, 9, 70), (3, 2, 30, 8), (2, 130, 3, 8), (65, 1, 2, 8)])
def test_the_kernel_that_spreads_a_gradient_does_the_same(spread, shape):
    """Tokens of two swizzled chunks, of several steps, cut into pieces, and rows of two programs."""
    check_spread(spread, BFLOAT16, shape, 1e-6)


@pytest.mark.skipif(bool(NO_GPU_KERNEL), reason=NO_GPU_KERNEL)
@pytest.mark.parametrize(
    "sizes, message",
    [
        (
            (300, 20, 256, BFLOAT16),
            "up to 256 image tokens and 160 text tokens of dimension up to 256, but these are 300",
        ),
        ((49, 161, 256, BFLOAT16), "but these are 49 and 161 of 256"),
        ((49, 77, 512, BFLOAT16), "but these are 49 and 77 of 512"),
        (
            (49, 77, 256, jnp.dtype(jnp.float32)),
            r"multiply bfloat16 \(the objective's dtype\), but these tokens are float32",
        ),
    ],
)
def test_the_kernel_for_gpus_says_why_not(sizes, message):
    assert re.search(message, pallas_gpu.why_not(*sizes))
    assert not pallas_gpu.why_not(256, 160, 256, BFLOAT16)
