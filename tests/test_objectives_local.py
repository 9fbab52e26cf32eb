"""Objectives that compare an image with its own captions only, against their definitions; nothing of a sample leaves its device."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import examples, make_devices_mesh, slow, unit
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from test_objectives import TRAINED, make_batch, single, slope

from filip_jax.errors import UserError
from filip_jax.losses.encoded import Encoded
from filip_jax.losses.grouping import group_image_tokens
from filip_jax.mesh import BATCH_AXES
from filip_jax.objectives.total import make_objectives

SIZES = {"embed_dim": 7, "vocab_size": 30}
BOS = 2


def with_ids(batch):
    """The batch with token ids, BOS first, some of them twice in a text; -1 for pads."""
    ids = np.random.default_rng(9).integers(3, SIZES["vocab_size"], batch["text_mask"].shape)
    ids[..., 0], ids[..., 4] = BOS, ids[..., 2]
    return batch | {"text_ids": np.where(batch["text_mask"], ids, -1).astype(np.int32)}


def caption_weight(batch):
    shape = batch["text_mask"].shape[:2]
    return np.where(batch.get("real", np.ones(shape[0], bool))[:, None], batch.get("text_weight", np.ones(shape)), 0.0)


def cross_entropy(logits):
    """Return the cross-entropy of rows whose right answers are on the diagonal, in float64."""
    highest = logits.max(axis=1, keepdims=True)
    return (np.log(np.exp(logits - highest).sum(axis=1)) + highest[:, 0] - np.diagonal(logits)).mean()


def sparc_definition(batch, p, weights_of=None, repeated_words=True):
    """SPARC's equations 2 to 6. The weights of groups are those of another batch, where one is given."""
    total, count, of, weight = 0.0, 0.0, weights_of or batch, caption_weight(batch)
    for i, k in zip(*np.nonzero(weight)):
        mask, ids = batch["text_mask"][i, k], batch["text_ids"][i, k]
        if not repeated_words:
            mask = mask & [token not in ids[:t] for t, token in enumerate(ids)]
        if mask.any():
            words, tokens = batch["text_tokens"][i, k][mask], batch["image_tokens"][i]
            s = of["text_tokens"][i, k][mask] @ of["image_tokens"][i].T
            s = (s - s.min(axis=1, keepdims=True)) / np.ptp(s, axis=1, keepdims=True)
            s[s < 1 / len(tokens)] = 0.0
            groups = unit(s / s.sum(axis=1, keepdims=True) @ tokens)
            logits = np.exp(p["own"]["logit_scale"]) * groups @ words.T
            total += weight[i, k] * (cross_entropy(logits) + cross_entropy(logits.T)) / 2
            count += weight[i, k]
    return total / count


def superclass_definition(batch, p, state):
    """SuperClass's loss on multi-hot targets, and what it remembers."""
    weight, bags = caption_weight(batch), np.zeros((len(batch["text_ids"]), SIZES["vocab_size"]))
    for i, k, t in np.argwhere(batch["text_ids"] >= 0):
        token = batch["text_ids"][i, k, t]
        bags[i, token] = max(bags[i, token], weight[i, k])
    images = bags.any(axis=1).sum()
    batches, frequency = state["batches"] + 1, state["frequency"] + (bags > 0).sum(axis=0) / images
    targets = bags * np.log((batches + 1 / images) / (frequency + 1 / images))
    counted = targets.sum(axis=1) > 0
    targets = targets[counted] / targets[counted].sum(axis=1, keepdims=True)
    logits = np.exp(p["own"]["logit_scale"]) * batch["image_pooled"] @ p["own"]["kernel"] + p["own"]["bias"]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -(targets * np.log(probabilities[counted])).sum(axis=1).mean()
    return loss, {"batches": batches, "frequency": frequency}


STATE = {"batches": 3.0, "frequency": np.where(np.arange(30) == BOS, 3.0, np.arange(30) % 5 / 2)}
SECTIONS = {
    "sparc": dict(kind="sparc", logit_scale_init=12.0),
    "sparc_first": dict(kind="sparc", logit_scale_init=12.0, repeated_words=False),
    "sparc_means": dict(kind="sparc", logit_scale_init=12.0, through_weights=False),
    "superclass": dict(kind="superclass", logit_scale_init=12.0),
}


def definition_of(name, batch):
    """Return (arrays, parameters) -> loss, of this batch where the gradient does not flow through all of it."""
    return {
        "sparc": sparc_definition,
        "sparc_first": lambda arrays, p: sparc_definition(arrays, p, repeated_words=False),
        "sparc_means": lambda arrays, p: sparc_definition(arrays, p, weights_of=batch),
        "superclass": lambda arrays, p: superclass_definition(arrays, p, STATE)[0],
    }[name]


def initial(objectives, seed=0):
    """The parameters with biases that are not 0, and the state after three batches, if it has one."""
    parameters = objectives.init(jax.random.key(seed), SIZES)
    if "bias" in parameters["own"]:
        parameters["own"]["bias"] = jax.random.normal(jax.random.key(1), (SIZES["vocab_size"],))
    return parameters, {"own": jax.tree.map(jnp.float32, STATE)} if objectives.init_state(SIZES) else {}


def in_single(batch):
    return {key: x.astype(np.float32).astype(x.dtype) if x.dtype == float else x for key, x in batch.items()}


WAYS = [  # mesh, what the batch has
    ((1, 1), dict(k=3, absent=True)),
    ((2, 4), dict(k=2, rows=True)),
    slow((1, 2), dict(k=1)),
    slow((1, 4), dict(k=2, absent=True, rows=True, groups=True)),
    slow((8, 1), dict(k=1, rows=True)),
]


@pytest.mark.parametrize("mesh, options", WAYS)
@pytest.mark.parametrize("name", ["sparc", "superclass", slow("sparc_first"), slow("sparc_means")])
def test_local_objectives_equal_their_definition_forward_and_gradient(name, mesh, options):
    objectives, batch = make_objectives({"own": SECTIONS[name]}), in_single(with_ids(make_batch(3, **options)))
    parameters, state = initial(objectives)

    def loss(arrays, parameters):
        return objectives.loss(parameters, state, replace(single(batch), **arrays), 0.0)

    arrays = {key: jnp.asarray(batch[key], jnp.float32) for key in TRAINED}
    with jax.set_mesh(make_devices_mesh(*mesh)):
        (value, (following, _)), (gradient, of_parameters) = jax.jit(
            jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        )(arrays, parameters)
    definition, exact = definition_of(name, batch), jax.tree.map(np.float64, parameters)
    assert abs(float(value) / definition(batch, exact) - 1) < 3e-6
    if state:
        _, expected = superclass_definition(batch, exact, STATE)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), following["own"], expected)
    rng = np.random.default_rng(5)
    size = np.sqrt(sum((np.asarray(g, float) ** 2).sum() for g in jax.tree.leaves((gradient, of_parameters))))
    for only in (*TRAINED, "parameters"):
        direction = {key: rng.normal(size=batch[key].shape) * (key == only) for key in TRAINED}
        along = jax.tree.map(lambda x: rng.normal(size=x.shape) * (only == "parameters"), parameters)
        ours = sum((np.asarray(gradient[key], float) * x).sum() for key, x in direction.items())
        ours += sum(jax.tree.leaves(jax.tree.map(lambda g, x: float((g * x).sum()), of_parameters, along)))
        assert abs(ours - slope(definition, batch, exact, direction, along)) < 2e-5 * size, only


@pytest.mark.parametrize("name", [slow("sparc"), "superclass"])
def test_the_sum_with_another_objective_is_that_of_both(name):
    sections = {"own": SECTIONS[name] | {"weight": 0.5}, "clip": dict(kind="clip", dtype="float32")}
    both, batch = make_objectives(sections), single(with_ids(make_batch(0, k=2)))
    parameters = both.init(jax.random.key(0), SIZES)
    losses = [
        jax.jit(make_objectives({part: section}).loss)({part: parameters[part]}, both.init_state(SIZES), batch, 0.0)[0]
        for part, section in sections.items()
    ]
    assert float(jax.jit(both.loss)(parameters, both.init_state(SIZES), batch, 0.0)[0]) == pytest.approx(
        sum(map(float, losses)), rel=1e-6
    )


def shapes(mesh, rows, k=2, p=16, t=8, d=32):
    """The shapes of a global batch of `rows` samples on each device."""
    sharding, b = NamedSharding(mesh, PartitionSpec(BATCH_AXES)), rows * mesh.size
    of = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct((b, *shape), dtype, sharding=sharding)
    return Encoded(
        image_tokens=of(p, d), text_tokens=of(k, t, d), text_mask=of(k, t, dtype=bool), text_weight=of(k),
        image_pooled=of(d), text_pooled=of(k, d), text_ids=of(k, t, dtype=jnp.int32), real=of(dtype=bool),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["sparc_first", "superclass"])
def test_nothing_of_a_sample_leaves_its_device_and_memory_does_not_grow_with_devices(name):
    objectives, sizes = make_objectives({"own": SECTIONS[name]}), {"embed_dim": 32, "vocab_size": 500}
    arrays = jax.eval_shape(lambda: (objectives.init(jax.random.key(0), sizes), objectives.init_state(sizes)))

    def loss(parameters, state, encoded, pooled, tokens):
        encoded = replace(encoded, image_pooled=pooled, image_tokens=tokens)
        return objectives.loss(parameters, state, encoded, 0.0)

    bytes_of = []
    for devices in (1, 8):
        mesh = make_devices_mesh(1, devices)
        encoded, whole = shapes(mesh, rows=32), NamedSharding(mesh, PartitionSpec())
        given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), arrays)
        with jax.set_mesh(mesh):
            step = jax.jit(jax.value_and_grad(loss, argnums=(0, 3, 4), has_aux=True))
            program = step.lower(*given, encoded, encoded.image_pooled, encoded.image_tokens).compile()
        bytes_of.append(program.memory_analysis().temp_size_in_bytes)
    assert not re.search("all-gather|all-to-all|collective-permute|reduce-scatter", program.as_text())
    assert "all-reduce" in program.as_text() and bytes_of[1] < 1.1 * bytes_of[0]


group = jax.jit(group_image_tokens, static_argnames="threshold")


@examples(20)
@given(st.integers(0, 1000), st.sampled_from([1, 4, 9]))
def test_groups_are_unit_means_of_what_a_word_likes_whatever_the_order(seed, p):
    rng = np.random.default_rng(seed)
    tokens, words = (jnp.asarray(unit(rng.normal(size=shape)), jnp.float32) for shape in ((2, p, 5), (2, 3, 5)))
    groups, order = np.asarray(group(tokens, words)), rng.permutation(p)
    np.testing.assert_allclose(np.linalg.norm(groups, axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(group(tokens[:, order], words), groups, atol=1e-5)
    best = jnp.take_along_axis(
        tokens, jnp.argmax(jnp.einsum("bnd,bpd->bnp", words, tokens), axis=-1)[..., None], axis=1
    )
    np.testing.assert_allclose(group(tokens, words, threshold=0.9999), best, atol=1e-3)


def test_tokens_that_are_equally_similar_weigh_alike_with_finite_gradients():
    tokens, words = jnp.eye(4)[None, :3], jnp.eye(4)[None, 3:]
    np.testing.assert_allclose(group(tokens, words)[0, 0], np.array([1, 1, 1, 0]) / np.sqrt(3), atol=1e-6)
    gradients = jax.jit(jax.grad(lambda *arrays: group_image_tokens(*arrays).sum(), argnums=(0, 1)))(tokens, words)
    assert all(np.isfinite(x).all() for x in gradients)


@pytest.mark.parametrize("name", ["sparc", slow("sparc_means")])
def test_sparc_in_bfloat16_is_near_float32(name):
    """1 % of the loss; a similarity near the threshold may fall to its other side."""
    batch = single(make_batch(0, b=16, k=2, p=9, t=8, d=64))
    losses = []
    for dtype in ("float32", "bfloat16"):
        objectives = make_objectives({"own": SECTIONS[name] | {"dtype": dtype}})
        parameters = objectives.init(jax.random.key(0), SIZES)
        losses.append(float(jax.jit(objectives.loss)(parameters, {}, batch, 0.0)[0]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-2) and losses[1] != losses[0]


def test_a_caption_alone_has_the_loss_that_it_has_among_others():
    objectives, batch = make_objectives({"own": SECTIONS["sparc"]}), make_batch(2, k=2)
    parameters, _ = initial(objectives)
    batch["text_mask"][1, 0] = batch["text_mask"][0, 0]
    loss = jax.jit(lambda encoded: objectives.loss(parameters, {}, encoded, 0.0)[0])
    alone = [float(loss(single({key: x[n : n + 1] for key, x in batch.items()}))) for n in range(8)]
    assert float(loss(single(batch))) == pytest.approx(np.mean(alone), rel=1e-6)


def test_superclass_gives_no_weight_to_tokens_of_all_captions_and_learns_nothing_without_words():
    objectives, batch = make_objectives({"own": SECTIONS["superclass"]}), with_ids(make_batch(2, k=2))
    parameters, state = initial(objectives)

    @jax.jit
    def gradient(ids):
        encoded = replace(single(batch), text_ids=ids)
        return jax.grad(lambda p: objectives.loss(p, state, encoded, 0.0)[0])(parameters)["own"]["kernel"]

    ids = batch["text_ids"]
    np.testing.assert_allclose(gradient(ids), gradient(np.where(ids == BOS, -1, ids)), atol=1e-7)
    assert np.abs(gradient(ids)).max() > 1e-3 and np.array_equal(gradient(np.full_like(ids, -1)), np.zeros((7, 30)))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(kind="sparc", threshold=1.5), "objectives.own.threshold=1.5 must be at least 0 and below 1, or None for 1"),
        (dict(kind="sparc", dtype="float16"), "objectives.own.dtype='float16' is not one of float32, bfloat16"),
        (dict(kind="superclass", logit_scale_init=0.5), "objectives.own.logit_scale_init=0.5 must lie from min_logit"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make_objectives({"own": options})
