"""ALIP's gates and a frozen teacher's relations against their definitions, in gather and ring; weights of images in means."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_devices_mesh, slow, unit
from test_objectives import make_batch, pairing, single, slope, softmax_definition
from test_objectives import pooled_similarities as similarities

from filip_jax.errors import UserError
from filip_jax.losses.encoded import Encoded
from filip_jax.losses.pairs import loss_of_each, pair_losses
from filip_jax.losses.softmax import Softmax
from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.total import make_objectives

TRAINED = ("image_pooled", "text_pooled")
STATE = {"captions": 0.2, "raw": 0.1, "synthetic": -0.3}
OPTIONS = dict(momentum=0.7, image_gamma=1.5, pair_gamma=2.5)
TEACHER_SCALE = 20.0


def gates_of(batch, state):
    """ALIP's equations 1 to 4: the next running means, and the gates of both pairs of each image."""
    image, raw, synthetic = batch["image_pooled"], *np.moveaxis(batch["text_pooled"], 1, 0)
    weight = pairing(batch)[1].reshape(-1, 2)
    counted, of_captions = (weight > 0).all(axis=1), (raw * synthetic).sum(axis=1)
    captions = 0.7 * state["captions"] + 0.3 * of_captions[counted].mean()
    of_images = np.where(counted & (of_captions <= captions), np.exp(1.5 * (of_captions - captions)), 1.0)
    gates, means = np.ones_like(weight), {"captions": captions}
    for n, (name, texts) in enumerate({"raw": raw, "synthetic": synthetic}.items()):
        s = (image * texts).sum(axis=1)
        means[name] = 0.7 * state[name] + 0.3 * s[weight[:, n] > 0].mean()
        gates[:, n] = of_images * np.where(of_images < 1, np.exp(2.5 * (s - means[name])), 1.0)
    return means, gates


def alip_definition(batch, p, base):
    """ALIP's equation 6, with the gates of the batch `base`; several right answers share by their gated weights."""
    same, weight, real = pairing(batch)
    weight, gates, total = weight.reshape(-1, 2), gates_of(base, STATE)[1], 0.0
    logits = np.exp(p["own"]["logit_scale"]) * similarities(batch)[0]
    for n in range(2):
        there, s, w = weight[:, n] > 0, logits[:, n::2], weight[:, n] * gates[:, n]
        log_texts = s - np.log(np.exp(s[:, there]).sum(axis=1, keepdims=True))
        log_images = s - np.log(np.exp(s[real]).sum(axis=0, keepdims=True))
        right = same[:, n::2] * real[:, None] * w
        of_images = -(right * log_texts).sum(axis=1) / np.maximum(right.sum(axis=1), 1e-9)
        of_texts = -(right * log_images).sum(axis=0) / np.maximum(right.sum(axis=0), 1e-9)
        total += (w * (of_images + of_texts)).sum() / 2 / weight[:, n].sum()
    return total


def distill_definition(batch, p, base):
    """The mean of KL(teacher | student) over texts and over images."""
    _, weight, real = pairing(batch)
    counted = np.ix_(real, weight > 0)
    student = np.exp(p["own"]["logit_scale"]) * similarities(batch)[0][counted]
    teacher = TEACHER_SCALE * similarities({name: batch[f"teacher_{name}"] for name in TRAINED})[0][counted]
    of_both = []
    for axis in (1, 0):
        a, b = (x - np.log(np.exp(x).sum(axis=axis, keepdims=True)) for x in (teacher, student))
        of_both.append((np.exp(a) * (a - b)).sum(axis=axis))
    return (of_both[0].mean() + (weight[weight > 0] * of_both[1]).sum() / weight.sum()) / 2


def encoded_of(batch):
    own = {name: x for name, x in batch.items() if not name.startswith("teacher")}
    theirs = {name: jnp.asarray(batch[f"teacher_{name}"], jnp.float32) for name in TRAINED}
    return replace(single(own), teacher=Encoded(**theirs))


def batch_of(seed=3, **options):
    """A batch with a teacher's vectors; float64 numbers that float32 holds."""
    batch, other = make_batch(seed, **options), make_batch(seed + 1, **options)
    batch |= {f"teacher_{name}": other[name] for name in TRAINED}
    return {key: x.astype(np.float32).astype(x.dtype) if x.dtype == float else x for key, x in batch.items()}


ALIP = dict(kind="alip", logit_scale_init=12.0, **OPTIONS)
DISTILL = dict(kind="distill", logit_scale_init=12.0, teacher_logit_scale=TEACHER_SCALE)
DEFINITIONS = {"alip": alip_definition, "distill": distill_definition}
RING = dict(exchange="ring")
STREAM = dict(exchange="ring", indices="recompute")
WAYS = [  # objective, mesh, its options, what the batch has
    (ALIP, (1, 1), {}, dict(absent=True)),
    (ALIP | dict(positives="image"), (2, 4), STREAM, dict(absent=True, rows=True, groups=True)),
    (DISTILL, (1, 1), dict(exchange="gather"), dict(k=3, absent=True, rows=True)),
    (DISTILL, (1, 4), RING, dict(absent=True, rows=True)),
    slow(ALIP, (1, 8), dict(exchange="gather"), dict(rows=True)),
    slow(ALIP, (1, 2), STREAM, dict(absent=True)),
    slow(DISTILL, (2, 4), dict(exchange="gather"), dict(k=1)),
    slow(DISTILL, (1, 8), RING, dict(k=3, absent=True, rows=True)),
    slow(DISTILL, (8, 1), RING, dict(k=1, rows=True)),
]


@pytest.mark.parametrize("section, mesh, how, options", WAYS)
def test_weighed_objectives_equal_their_definition_forward_and_gradient(section, mesh, how, options):
    objectives, batch = make_objectives({"own": section | how}), batch_of(**{"k": 2} | options)
    parameters, state = objectives.init(jax.random.key(0), {}), {"own": jax.tree.map(jnp.float32, STATE)}
    state = state if objectives.init_state({}) else {}

    def loss(arrays, parameters):
        return objectives.loss(parameters, state, replace(encoded_of(batch), **arrays), 0.0)

    arrays = {key: jnp.asarray(batch[key], jnp.float32) for key in TRAINED}
    with jax.set_mesh(make_devices_mesh(*mesh)):
        (value, (following, _)), (gradient, of_parameters) = jax.jit(
            jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        )(arrays, parameters)
    exact = jax.tree.map(np.float64, parameters)
    definition = lambda arrays, p: DEFINITIONS[section["kind"]](arrays, p, batch)
    assert abs(float(value) / definition(batch, exact) - 1) < 3e-6
    if state:
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7, rtol=1e-6),
            following["own"],
            gates_of(batch, STATE)[0],
        )
    rng = np.random.default_rng(5)
    size = np.sqrt(sum((np.asarray(g, float) ** 2).sum() for g in jax.tree.leaves((gradient, of_parameters))))
    for only in (*TRAINED, "parameters"):
        direction = {key: rng.normal(size=batch[key].shape) * (key == only) for key in TRAINED}
        along = jax.tree.map(lambda x: rng.normal() * (only == "parameters"), parameters)
        ours = sum((np.asarray(gradient[key], float) * x).sum() for key, x in direction.items())
        ours += sum(jax.tree.leaves(jax.tree.map(lambda g, x: float(g) * x, of_parameters, along)))
        assert abs(ours - slope(definition, batch, exact, direction, along)) < 2e-5 * size, only


@pytest.mark.parametrize("mesh, how", [((1, 1), {}), slow((1, 8), STREAM), slow((2, 2), dict(exchange="gather"))])
def test_images_count_in_means_by_their_weights_and_alike_without(mesh, how):
    """Weights that are all 1 change no bit; others are those of the mean over images."""
    batch, similarity = batch_of(k=1, rows=True), TokenWise("pooled", **how)
    owned = {"losses": {"clip": {"scale": jnp.float32(9.0)}}, "similarity": None}

    def loss(weight):
        encoded = replace(encoded_of(batch), image_weight=weight)
        return pair_losses({"clip": Softmax()}, similarity, encoded, owned)["clip"]

    weight = np.arange(8.0) % 3
    with jax.set_mesh(make_devices_mesh(*mesh)):
        whole, ones, weighed = (float(jax.jit(loss)(w)) for w in (None, jnp.ones(8), jnp.asarray(weight, jnp.float32)))
        of_images, of_texts = jax.jit(
            lambda: loss_of_each({"clip": Softmax()}, similarity, encoded_of(batch), owned)["clip"]
        )()
    assert whole == ones == pytest.approx(softmax_definition(similarities(batch), batch, 9.0), rel=1e-6)
    real = batch["real"]
    means = np.average(of_images, weights=weight * real), np.average(of_texts[:, 0], weights=1.0 * real)
    assert of_texts.shape == (8, 1) and weighed == pytest.approx(np.mean(means), rel=1e-6) and weighed != whole


@pytest.mark.parametrize("section", [ALIP, DISTILL])
def test_bfloat16_is_near_float32(section):
    """Products of unit vectors of 64 numbers: 1 % of the loss."""
    batch, losses = encoded_of(batch_of(b=16, k=2, d=64)), []
    for dtype in ("float32", "bfloat16"):
        objectives = make_objectives({"own": section | {"dtype": dtype}})
        parameters, state = objectives.init(jax.random.key(0), {}), objectives.init_state({})
        losses.append(float(jax.jit(objectives.loss)(parameters, state, batch, 0.0)[0]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-2) and losses[1] != losses[0]


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    objectives, batch = make_objectives({"own": DISTILL | dict(logit_scale_init=TEACHER_SCALE)}), batch_of(k=2)
    batch |= {f"teacher_{name}": batch[name] for name in TRAINED}
    loss = lambda p, x: objectives.loss(p, {}, replace(encoded_of(batch), image_pooled=x), 0.0)[0]
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
        objectives.init(jax.random.key(0), {}), jnp.asarray(batch["image_pooled"], jnp.float32)
    )
    assert abs(float(value)) < 1e-5 and all(np.abs(x).max() < 1e-5 for x in jax.tree.leaves(gradients))


def test_a_teacher_whose_similarities_are_far_below_its_scale_is_followed_exactly():
    """All similarities near -1 at the scale 1000: exponentials alone would all be 0."""
    section = DISTILL | dict(teacher_logit_scale=1000.0)
    objectives, batch = make_objectives({"own": section}), batch_of(k=1)
    apart = unit(1.0 + 1e-3 * np.random.default_rng(0).normal(size=(2, 8, 7))).astype(np.float32).astype(float)
    batch |= {"teacher_image_pooled": apart[0], "teacher_text_pooled": -apart[1][:, None]}
    value = jax.jit(objectives.loss)(objectives.init(jax.random.key(0), {}), {}, encoded_of(batch), 0.0)[0]
    s = 1000 * apart[0] @ -apart[1].T, 12.0 * similarities(batch)[0]
    kl = [
        np.exp(a) * (a - b)
        for axis in (0, 1)
        for a, b in [[x - x.max() - np.log(np.exp(x - x.max()).sum(axis=axis, keepdims=True)) for x in s]]
    ]
    assert float(value) == pytest.approx(sum(x.sum() for x in kl) / 16, rel=1e-3)


def test_gates_open_for_what_agrees_and_have_no_gradient():
    objectives, batch = make_objectives({"own": ALIP}), batch_of(k=2)
    parameters, state = objectives.init(jax.random.key(0), {}), objectives.init_state({})
    loss = jax.jit(objectives.loss)
    numbers = loss(parameters, state, encoded_of(batch), 0.0)[1][1]
    assert 0 < float(numbers["own/image_gate"]) < 1 and float(numbers["own/images_with_both"]) == 1
    batch["text_pooled"][:, 1] = batch["text_pooled"][:, 0] = batch["image_pooled"]
    state, numbers = loss(parameters, state, encoded_of(batch), 0.0)[1]
    gates = [float(numbers[f"own/{name}_gate"]) for name in ("image", "raw", "synthetic")]
    assert gates == pytest.approx([1.0] * 3, abs=1e-5) and float(state["own"]["captions"]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "section, message",
    [
        (dict(kind="alip", momentum=1.0), "objectives.own.momentum=1.0 must be at least 0 and below 1"),
        (dict(kind="alip", pair_gamma=-1.0), "objectives.own.pair_gamma=-1.0 must be at least 0 and finite"),
        (dict(kind="distill", teacher_logit_scale=0.0), "objectives.own.teacher_logit_scale=0.0 must be above 0, and at"),
        (dict(kind="distill", exchange="auto"), "objectives.own.exchange='auto' is not one of gather, ring"),
        (dict(kind="distill", dtype="float16"), "objectives.own.dtype='float16' is not one of float32, bfloat16"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_named(section, message):
    with pytest.raises(UserError, match=message):
        make_objectives({"own": section})


def test_three_captions_are_refused_with_their_number():
    objectives = make_objectives({"own": ALIP})
    with pytest.raises(UserError, match="an image has 3: set data.captions_per_image=2"):
        objectives.loss(
            objectives.init(jax.random.key(0), {}), objectives.init_state({}), encoded_of(batch_of(k=3)), 0.0
        )
