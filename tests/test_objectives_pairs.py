"""Token-wise sigmoid and one-directional MaxSim against their definitions in float64, in gather and ring; where they begin."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import examples, make_devices_mesh, slow
from hypothesis import given
from hypothesis import strategies as st
from test_objectives import TRAINED, make_batch, pairing, sigmoid_definition, single, slope, token_similarities

from filip_jax.errors import UserError
from filip_jax.losses.smooth_maximum import compare_smoothly
from filip_jax.objectives import OBJECTIVES
from filip_jax.objectives.total import make_objectives
from filip_jax.sections import keys_of

SCALE, BIAS, SMOOTHING, KEPT = 12.0, -2.0, 0.1, 0.5
SIGMOID = dict(kind="filip_sigmoid", logit_scale_init=SCALE, bias_init=BIAS)
MAXSIM = dict(kind="maxsim", logit_scale_init=SCALE)
SECTIONS = {
    "sigmoid": SIGMOID,
    "sigmoid_kept": SIGMOID | dict(keep_tokens=KEPT, selection="pair"),
    "maxsim": MAXSIM,
    "hardest": MAXSIM | dict(negatives="hardest"),
    "smooth": MAXSIM | dict(smoothing=SMOOTHING),
    "smooth_hardest": MAXSIM | dict(smoothing=SMOOTHING, negatives="hardest"),
}


def kept_similarities(batch):
    """s_I and s_T of the half of the tokens, of each side, that are most similar to all of the other side's in a pair."""
    mask = batch["text_mask"] & (batch.get("text_weight", np.ones(batch["text_mask"].shape[:2])) > 0)[..., None]
    mask &= batch.get("real", np.ones(len(mask), bool))[:, None, None]
    images, texts = batch["image_tokens"], batch["text_tokens"]
    of_images = np.einsum("ipd,iktd,ikt->ip", images, texts, mask.astype(float))
    of_texts = np.where(mask, np.einsum("ipd,iktd->ikt", images, texts), -np.inf)
    (p, t), best = (
        (int(KEPT * x.shape[-1]) for x in (of_images, of_texts)),
        lambda x, n: np.argsort(-x, axis=-1, kind="stable")[..., :n],
    )
    images = np.take_along_axis(images, best(of_images, p)[..., None], axis=1)
    words = best(of_texts, t)
    texts, mask = np.take_along_axis(texts, words[..., None], axis=2), np.take_along_axis(mask, words, axis=2)
    return token_similarities({"image_tokens": images, "text_tokens": texts, "text_mask": mask})


def smooth_similarities(batch):
    """The mean over words of a smooth maximum over image tokens [image, text]."""
    texts = batch["text_tokens"].reshape(-1, *batch["text_tokens"].shape[2:])
    mask = batch["text_mask"].reshape(len(texts), -1)
    products = np.einsum("ipd,jtd->ijtp", batch["image_tokens"], texts)
    best = SMOOTHING * np.log(np.exp(products / SMOOTHING).sum(axis=3))
    return np.where(mask, best, 0.0).sum(axis=2) / np.maximum(mask.sum(axis=1), 1)


def ranking_definition(similarities, batch, scale, hardest):
    """The loss of each text against all images, mean over texts by their weights."""
    same, weight, real = pairing(batch)
    total = 0.0
    for j in np.flatnonzero(weight):
        logits, right = scale * similarities[real, j], same[real, j]
        if hardest:
            margin = logits[~right].max() - logits[right].mean() if (~right).any() else -np.inf
            total += weight[j] * np.log1p(np.exp(margin))
        else:
            total += weight[j] * (np.log(np.exp(logits).sum()) - logits[right].mean())
    return total / weight.sum()


def definition_of(name):
    """Return (arrays, parameters) -> loss."""
    if name.startswith("sigmoid"):
        similarities = kept_similarities if "kept" in name else token_similarities
        return lambda batch, p: sigmoid_definition(
            similarities(batch), batch, np.exp(p["own"]["logit_scale"]), p["own"]["bias"], 2
        )
    similarities = smooth_similarities if "smooth" in name else lambda batch: token_similarities(batch)[1]
    return lambda batch, p: ranking_definition(
        similarities(batch), batch, np.exp(p["own"]["logit_scale"]), "hardest" in name
    )


def check_against_definition(objectives, definition, parameters, mesh, options, seed=3):
    """Compare the loss of one objective "own" and its gradients with those of its definition in float64."""
    batch = {
        k: x.astype(np.float32).astype(x.dtype) if x.dtype == float else x
        for k, x in make_batch(seed, **options).items()
    }

    def loss(arrays, parameters):
        return objectives.loss(parameters, {}, replace(single(batch), **arrays), 0.0)[0]

    arrays = {key: jnp.asarray(batch[key], jnp.float32) for key in TRAINED}
    with jax.set_mesh(make_devices_mesh(*mesh)):
        value, (gradient, of_parameters) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(arrays, parameters)
    exact = jax.tree.map(np.float64, parameters)
    assert abs(float(value) / definition(batch, exact) - 1) < 3e-6
    rng = np.random.default_rng(5)
    size = np.sqrt(sum((np.asarray(g, float) ** 2).sum() for g in jax.tree.leaves((gradient, of_parameters))))
    for only in (*TRAINED, "parameters"):
        direction = {key: rng.normal(size=batch[key].shape) * (key == only) for key in TRAINED}
        along = jax.tree.map(lambda x: rng.normal(size=x.shape) * (only == "parameters"), parameters)
        ours = sum((np.asarray(gradient[key], float) * x).sum() for key, x in direction.items())
        ours += sum(jax.tree.leaves(jax.tree.map(lambda g, x: (np.float64(g) * x).sum(), of_parameters, along)))
        assert abs(ours - slope(definition, batch, exact, direction, along)) < 2e-5 * size, only


ALL = dict(k=2, absent=True, groups=True, rows=True)
WAYS = [  # name, mesh, exchange, indices, what the batch has
    ("sigmoid", (1, 4), "ring", "recompute", ALL),
    ("hardest", (2, 2), "ring", "recompute", ALL),
    ("smooth", (1, 2), "ring", "recompute", ALL),
    slow("sigmoid_kept", (1, 2), "gather", "save", dict(k=2, absent=True)),
    slow("maxsim", (1, 4), "ring", "recompute", dict(k=2, groups=True, rows=True)),
    slow("hardest", (1, 2), "gather", "save", dict(rows=True)),
    *(slow(name, mesh, exchange, "recompute", options)
      for name in SECTIONS
      for mesh, exchange, options in (
          ((1, 1), "gather", dict(k=3, absent=True)), ((1, 8), "ring", ALL), ((4, 2), "gather", ALL), ((8, 1), "ring", dict()),
      )),
]  # fmt: skip


@pytest.mark.parametrize("name, mesh, exchange, indices, options", WAYS)
def test_objectives_of_tokens_equal_their_definition_forward_and_gradient(name, mesh, exchange, indices, options):
    how = dict(exchange=exchange, indices=indices, positives="image" if "groups" in options else "pair")
    section = SECTIONS[name] | {key: x for key, x in how.items() if key in keys_of(OBJECTIVES[SECTIONS[name]["kind"]])}
    objectives = make_objectives({"own": section})
    check_against_definition(objectives, definition_of(name), objectives.init(jax.random.key(0), {}), mesh, options)


def test_what_compares_all_tokens_shares_one_pass():
    sections = {"filip": dict(kind="filip", dtype="float32"), "maxsim": MAXSIM, "sigmoid": SIGMOID}
    batch = single(make_batch(0))

    def products(*names):
        objectives = make_objectives({name: sections[name] for name in names})
        parameters = objectives.init(jax.random.key(0), {})
        return str(jax.make_jaxpr(lambda b: objectives.loss(parameters, {}, b, 0.0)[0])(batch)).count("dot_general")

    assert products(*sections) == products("maxsim") == products("sigmoid") > 0


def loss_of(objectives, batch, parameters=None):
    """The loss and the numbers of a batch, with the parameters of a new run unless others are given."""
    parameters = parameters or objectives.init(jax.random.key(0), {"embed_dim": batch.image_tokens.shape[-1]})
    total, (_, numbers) = jax.jit(lambda batch: objectives.loss(parameters, {}, batch, 0.0))(batch)
    return float(total), {name: float(number) for name, number in numbers.items()}


@pytest.mark.slow
def test_a_sum_with_others_is_that_of_the_parts():
    sections = {name: SECTIONS[name] | {"weight": 0.5} for name in ("sigmoid", "hardest")}
    objectives, batch = make_objectives(sections), single(make_batch(0, k=2))
    total, numbers = loss_of(objectives, batch)
    alone = [loss_of(make_objectives({"own": section | {"weight": 1.0}}), batch)[0] for section in sections.values()]
    assert [numbers[f"{name}/loss"] for name in sections] == pytest.approx(alone, rel=1e-6)
    assert total == pytest.approx(sum(alone) / 2, rel=1e-6)


def test_the_token_wise_sigmoid_begins_where_the_first_batch_puts_it_and_equals_siglips():
    batch = make_batch(0, b=16, k=2, d=64, p=9, t=8)
    found = {}
    for kind, options in (
        ("filip_sigmoid", {}),
        ("siglip", dict(similarity="tokens", from_first_batch=True, max_logit_scale=403.0)),
    ):
        objectives = make_objectives({"own": dict(kind=kind, **options)})
        start = lambda batch: objectives.start(
            objectives.init(jax.random.key(0), {}), batch, set(objectives.from_first_batch)
        )
        begun = jax.jit(start)(single(batch))
        found[kind] = {name: float(x) for name, x in begun["own"].items()}
        found[kind]["loss"] = loss_of(objectives, single(batch), begun)[0]
    assert found["filip_sigmoid"] == found["siglip"]
    wrong = (sum(token_similarities(batch)) / 2)[~pairing(batch)[0]]
    assert np.exp(found["siglip"]["logit_scale"]) == pytest.approx(0.9 / wrong.std(), rel=1e-4)
    assert 1 < found["siglip"]["loss"] < 10  # SigLIP's 10 and -10 begin at about 10


@examples(8)
@given(st.integers(0, 1000), st.sampled_from([0.01, 0.1, 1.0]))
def test_a_smooth_maximum_is_at_most_its_temperature_times_a_logarithm_above_the_maximum(seed, smoothing):
    batch = make_batch(seed, k=2)
    similarity = compare_smoothly(smoothing, "float32", "auto")
    images, (texts, mask) = similarity.take(single(batch))
    above = np.array(similarity.function(None, images, (texts[:, 0], mask[:, 0]))[0]).T
    above -= token_similarities({name: x[:, :1] if "text" in name else x for name, x in batch.items()})[1]
    assert (above > -1e-6).all() and (above < smoothing * np.log(images.shape[1]) + 1e-6).all()
    assert (above[:, 1] == 0).all()  # a text without tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sigmoid", "maxsim", "hardest", "smooth"])
def test_losses_in_bfloat16_are_near_float32(name):
    """1 % of the loss."""
    batch, losses = single(make_batch(0, b=16, k=2, p=9, t=8, d=64)), []
    for dtype in ("float32", "bfloat16"):
        objectives = make_objectives({"own": SECTIONS[name] | {"dtype": dtype}})
        losses.append(loss_of(objectives, batch)[0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2) and losses[1] != losses[0]


@pytest.mark.slow
def test_a_text_without_a_wrong_image_has_no_margin():
    objectives = make_objectives({"own": SECTIONS["hardest"] | dict(positives="image")})
    batch = make_batch(0) | {"group": np.zeros(8, int)}
    loss = lambda x: objectives.loss(
        objectives.init(jax.random.key(0), {}), {}, replace(single(batch), image_tokens=x), 0.0
    )[0]
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(batch["image_tokens"], jnp.float32))
    assert float(value) == 0.0 and np.array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize(
    "section, message",
    [
        (MAXSIM | dict(negatives="some"), "objectives.own.negatives='some' is not one of all, hardest"),
        (MAXSIM | dict(smoothing=-0.1), "objectives.own.smoothing=-0.1 must be from 0, for the maximum, to 100"),
        (MAXSIM | dict(smoothing=0.1, implementation="pallas"), "objectives.own.implementation='pallas' has no smooth maximum"),
        (MAXSIM | dict(smoothing=0.1, dtype="float16"), "objectives.own.dtype='float16' is not one of"),
        (SIGMOID | dict(keep_tokens=0), "objectives.own.keep_tokens=0 must be above 0"),
        (SIGMOID | dict(logit_scale_init=1000.0), "objectives.own.logit_scale_init=1000.0 must lie from"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_named(section, message):
    with pytest.raises(UserError, match=message):
        make_objectives({"own": section})


def test_a_small_batch_is_advised_to_keep_all_tokens():
    part = make_objectives({"own": SIGMOID | dict(keep_tokens=0.25)}).parts["own"]
    assert "keep_tokens=0.25 at batch_size=128: set it to 1.0" in part.advice(128) and part.advice(512) == ""
