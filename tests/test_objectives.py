"""Each objective against its definition in float64, forward and gradient, and their sums in the training step."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_devices_mesh, slow, unit

from filip_jax.errors import UserError
from filip_jax.losses.block_function import BlockFunction
from filip_jax.losses.encoded import Encoded
from filip_jax.losses.moments import moments
from filip_jax.losses.pairs import pair_losses
from filip_jax.losses.softmax import Softmax
from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives import OBJECTIVES
from filip_jax.objectives.objective import Objective, Pairwise, Parameter, Teacher
from filip_jax.objectives.total import make_objectives
from filip_jax.sections import keys_of

SCALE, BIAS = 12.0, -2.0
EXACT = dict(weight=1.0, dtype="float32")
SECTIONS = {
    "filip": dict(filip=dict(kind="filip", logit_scale_init=SCALE, **EXACT)),
    "clip": dict(clip=dict(kind="clip", logit_scale_init=SCALE, **EXACT)),
    "filip_clip": dict(
        filip=dict(kind="filip", logit_scale_init=2 * SCALE, **EXACT),
        clip=dict(kind="clip", logit_scale_init=SCALE, **EXACT | dict(weight=0.5)),
    ),
    "siglip_pooled": dict(siglip=dict(kind="siglip", logit_scale_init=SCALE, bias_init=BIAS, **EXACT)),
    "siglip_tokens": dict(
        siglip=dict(kind="siglip", similarity="tokens", logit_scale_init=SCALE, bias_init=BIAS, **EXACT)
    ),
}


def make_batch(seed, b=8, k=1, p=5, t=6, d=7, groups=False, rows=False, absent=False):
    """Return the arrays of an `Encoded` in float64: ragged texts, one of them empty."""
    rng = np.random.default_rng(seed)
    batch = {
        "image_tokens": unit(rng.normal(size=(b, p, d))),
        "text_tokens": unit(rng.normal(size=(b, k, t, d))),
        "text_mask": np.arange(t) < rng.integers(1, t + 1, size=(b, k, 1)),
        "image_pooled": unit(rng.normal(size=(b, d))),
        "text_pooled": unit(rng.normal(size=(b, k, d))),
    }
    batch["text_mask"][1, 0] = False
    if absent:
        weight = rng.choice([0.0, 0.5, 1.0], size=(b, k))
        weight[:, 0] = 1.0
        batch["text_weight"] = weight
    if groups:
        batch["group"] = rng.integers(0, b // 2 + 1, size=b)
    if rows:
        batch["real"] = np.arange(b) % 4 != 3
    return batch


def token_similarities(batch):
    """s_I and s_T [image, text], as FILIP's equations 3 to 5 read."""
    images, texts = batch["image_tokens"], batch["text_tokens"].reshape(-1, *batch["text_tokens"].shape[2:])
    s_i, s_t = np.zeros((2, len(images), len(texts)))
    for j, (text, mask) in enumerate(zip(texts, batch["text_mask"].reshape(len(texts), -1))):
        for i, image in enumerate(images):
            if mask.any():
                s = image @ text[mask].T
                s_i[i, j], s_t[i, j] = s.max(axis=1).mean(), s.max(axis=0).mean()
    return s_i, s_t


def pooled_similarities(batch):
    """Dot products of pooled vectors, for both directions."""
    s = batch["image_pooled"] @ batch["text_pooled"].reshape(-1, batch["text_pooled"].shape[-1]).T
    return s, s


def pairing(batch):
    """Which text belongs to which image, the weight of each text, and which images count."""
    b, k = batch["text_tokens"].shape[:2]
    real = batch.get("real", np.ones(b, bool))
    group = batch.get("group", np.arange(b))
    weight = np.where(real[:, None], batch.get("text_weight", np.ones((b, k))), 0.0).reshape(-1)
    return group[:, None] == np.repeat(group, k), weight, real


def softmax_definition(similarities, batch, scale):
    """CLIP's and FILIP's loss: cross-entropy with the right answers' weights, over texts and over images."""
    same, weight, real = pairing(batch)
    counted = real[:, None] & (weight > 0)
    right = np.where(same & counted, weight, 0.0)
    a, b = (np.where(counted, scale * s, -np.inf)[real][:, weight > 0] for s in similarities)
    right, weight = right[real][:, weight > 0], weight[weight > 0]
    log_texts = a - np.log(np.exp(a).sum(axis=1, keepdims=True))
    log_images = b - np.log(np.exp(b).sum(axis=0, keepdims=True))
    of_images = -(right / right.sum(axis=1, keepdims=True) * log_texts).sum(axis=1)
    of_texts = -(right / right.sum(axis=0) * log_images).sum(axis=0)
    return (of_images.mean() + (weight * of_texts).sum() / weight.sum()) / 2


def sigmoid_definition(similarities, batch, scale, bias, sides):
    """SigLIP's loss: each pair by itself, summed over the images of a text, mean over texts by their weights."""
    same, weight, real = pairing(batch)
    a, b = (np.log1p(np.exp(-np.where(same, 1, -1) * (scale * s + bias)))[real].sum(axis=0) for s in similarities)
    return (weight * (a if sides == 1 else (a + b) / 2)).sum() / weight.sum()


DEFINITIONS = {
    "filip": lambda batch, p: softmax_definition(token_similarities(batch), batch, np.exp(p["filip"]["logit_scale"])),
    "clip": lambda batch, p: softmax_definition(pooled_similarities(batch), batch, np.exp(p["clip"]["logit_scale"])),
    "filip_clip": lambda batch, p: (
        softmax_definition(token_similarities(batch), batch, np.exp(p["filip"]["logit_scale"]))
        + 0.5 * softmax_definition(pooled_similarities(batch), batch, np.exp(p["clip"]["logit_scale"]))
    ),
    "siglip_pooled": lambda batch, p: sigmoid_definition(
        pooled_similarities(batch), batch, np.exp(p["siglip"]["logit_scale"]), p["siglip"]["bias"], 1
    ),
    "siglip_tokens": lambda batch, p: sigmoid_definition(
        token_similarities(batch), batch, np.exp(p["siglip"]["logit_scale"]), p["siglip"]["bias"], 2
    ),
}
TRAINED = ("image_tokens", "text_tokens", "image_pooled", "text_pooled")


def slope(definition, batch, parameters, direction, parameter_direction, step=1e-6):
    """The derivative of the definition along a direction, by a central difference in float64."""

    def moved(sign):
        arrays = batch | {name: batch[name] + sign * step * x for name, x in direction.items()}
        values = jax.tree.map(lambda x, y: np.float64(x) + sign * step * y, parameters, parameter_direction)
        return definition(arrays, values)

    return (moved(1) - moved(-1)) / (2 * step)


def single(batch):
    return Encoded(
        **{name: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else None) for name, x in batch.items()}
    )


WAYS = [  # mesh, exchange, indices, what the batch has
    ((1, 1), "gather", "save", dict(k=3, absent=True)),
    ((1, 4), "ring", "recompute", dict(k=2, groups=True, rows=True)),
    ((2, 4), "gather", "recompute", dict(groups=True)),
    slow((1, 8), "ring", "save", dict(k=2, absent=True, rows=True)),
    slow((1, 2), "ring", "recompute", dict()),
    slow((1, 1), "ring", "recompute", dict(k=2, absent=True, groups=True, rows=True)),
    slow((4, 2), "gather", "save", dict(rows=True)),
    slow((8, 1), "ring", "recompute", dict(k=3, absent=True)),
]


@pytest.mark.parametrize("mesh, exchange, indices, options", WAYS)
@pytest.mark.parametrize("name", SECTIONS)
def test_objectives_equal_their_definition_forward_and_gradient(name, mesh, exchange, indices, options):
    how = dict(exchange=exchange, indices=indices, positives="image" if "groups" in options else "pair")
    sections = SECTIONS[name].items()  # a local objective has no such options
    own = {
        part: {key: x for key, x in how.items() if key in keys_of(OBJECTIVES[section["kind"]])}
        for part, section in sections
    }
    objectives = make_objectives({part: section | own[part] for part, section in sections})
    batch = {
        k: x.astype(np.float32).astype(x.dtype) if x.dtype == float else x for k, x in make_batch(3, **options).items()
    }
    parameters = objectives.init(jax.random.key(0), {})

    def loss(arrays, parameters):
        return objectives.loss(parameters, {}, replace(single(batch), **arrays), 0.0)[0]

    arrays = {key: jnp.asarray(batch[key], jnp.float32) for key in TRAINED}
    with jax.set_mesh(make_devices_mesh(*mesh)):
        value, (gradient, of_parameters) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(arrays, parameters)
    exact = DEFINITIONS[name](batch, jax.tree.map(np.float64, parameters))
    assert abs(float(value) / exact - 1) < 2e-6
    rng = np.random.default_rng(5)
    for only in (*TRAINED, "parameters"):
        direction = {key: rng.normal(size=batch[key].shape) * (key == only) for key in TRAINED}
        along = jax.tree.map(lambda x: rng.normal() * (only == "parameters"), parameters)
        ours = sum((np.asarray(gradient[key], float) * x).sum() for key, x in direction.items())
        ours += sum(jax.tree.leaves(jax.tree.map(lambda g, x: float(g) * x, of_parameters, along)))
        size = np.sqrt(sum((np.asarray(g, float) ** 2).sum() for g in jax.tree.leaves((gradient, of_parameters))))
        assert abs(ours - slope(DEFINITIONS[name], batch, parameters, direction, along)) < 1e-5 * size


# --------------------------------------------------------------------- similarities and reductions of an objective's own


def conditioned(parameters, images, texts):
    """Pool image tokens by their attention to each text, then compare: a similarity that has parameters."""
    tokens, queries = images["tokens"], texts["pooled"] @ parameters["query"]
    attention = jax.nn.softmax(jnp.einsum("jd,ipd->jip", queries, tokens), axis=2)
    pooled = jnp.einsum("jip,ipd->jid", attention, tokens)
    return (jnp.einsum("jid,jd->ji", pooled, texts["pooled"]),)


class Hardest:
    """The margin by which the hardest wrong text beats the right one; an example of a maximum."""

    def counts(self, images, texts):
        return {}

    def terms(self, similarities, images, texts, parameters):
        right, logits = texts["image"] == images["image"], parameters["scale"] * similarities[0]
        return {"over_texts": {"max": jnp.where(right, -9.0, logits), "sum": jnp.where(right, logits, 0.0)}}

    def losses(self, over_texts, over_images):
        return jax.nn.softplus(over_texts["max"] - over_texts["sum"]), None


@pytest.mark.parametrize(
    "mesh, exchange", [((1, 1), "gather"), ((2, 2), "ring"), slow((1, 8), "ring"), slow((4, 2), "gather")]
)
def test_an_objective_can_bring_its_own_similarity_and_reduce_by_maximum(mesh, exchange):
    batch = make_batch(1, b=16, k=1)
    query = np.random.default_rng(2).normal(size=(7, 7)).astype(np.float32)
    parameters = {"losses": {"hardest": {"scale": jnp.float32(4.0)}}, "similarity": {"query": jnp.asarray(query)}}
    arrays = {key: jnp.asarray(batch[key], jnp.float32) for key in ("image_tokens", "text_pooled")}

    def definition(arrays, parameters):
        images, texts = {"tokens": arrays["image_tokens"]}, {"pooled": arrays["text_pooled"][:, 0]}
        logits = parameters["losses"]["hardest"]["scale"] * conditioned(parameters["similarity"], images, texts)[0].T
        own = jnp.eye(16, dtype=bool)
        return jax.nn.softplus(jnp.where(own, -9.0, logits).max(axis=1) - jnp.diagonal(logits)).mean()

    similarity = BlockFunction(
        conditioned,
        lambda encoded: ({"tokens": encoded.image_tokens}, {"pooled": encoded.text_pooled}),
        bytes_per_pair=2**22 // 8,  # so that chunks of few texts are taken
        exchange=exchange,
    )

    def ours(arrays, parameters):
        return pair_losses({"hardest": Hardest()}, similarity, Encoded(**arrays), parameters)["hardest"]

    exact, of_exact = jax.value_and_grad(definition, argnums=(0, 1))(arrays, parameters)
    with jax.set_mesh(make_devices_mesh(*mesh)):
        value, gradient = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(arrays, parameters)
    assert float(value) == pytest.approx(float(exact), rel=1e-6)
    for mine, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(of_exact)):
        np.testing.assert_allclose(mine, other, atol=2e-6 * max(1e-3, np.abs(np.asarray(other)).max()), rtol=2e-5)


def test_objectives_of_one_similarity_share_its_pass():
    sections = dict(a=dict(kind="filip", **EXACT), b=dict(kind="siglip", similarity="tokens", **EXACT))
    batch = single(make_batch(0))

    def products(names):
        objectives = make_objectives({name: sections[name] for name in names})
        parameters = objectives.init(jax.random.key(0), {})
        return str(jax.make_jaxpr(lambda b: objectives.loss(parameters, {}, b, 0.0)[0])(batch)).count("dot_general")

    assert products("ab") == products("a") == products("b") > 0


def test_weights_follow_their_schedule_and_sums_are_those_of_the_parts():
    points = ((0.0, 0.0), (0.5, 0.0), (1.0, 2.0))
    sections = {"one": dict(kind="filip", **EXACT), "two": dict(kind="clip", **EXACT | dict(weight=points))}
    objectives, batch = make_objectives(sections), single(make_batch(0))
    parameters = objectives.init(jax.random.key(0), {})
    for progress, weight in ((0.0, 0.0), (0.25, 0.0), (0.75, 1.0), (1.0, 2.0)):
        total, (_, numbers) = objectives.loss(parameters, {}, batch, progress)
        assert float(total) == pytest.approx(float(numbers["one/loss"] + weight * numbers["two/loss"]), rel=1e-6)


def test_an_objective_of_weight_0_keeps_its_parameters_and_is_not_computed(monkeypatch):
    def never(parameters, state, encoded, teacher):
        raise AssertionError("computed")

    needs = frozenset({"pooled", "views"})
    own = Objective(needs, {"head": Parameter(lambda key, sizes: jnp.ones(3))}, local=never, state={"count": 0.0},
                    teacher=Teacher(0.9))  # fmt: skip
    monkeypatch.setitem(OBJECTIVES, "own", lambda: own)
    sections = dict(a=dict(kind="filip", **EXACT), b=dict(kind="clip", weight=0), c=dict(kind="own", weight=0.0))
    objectives, batch = make_objectives(sections), single(make_batch(0))
    parameters, state = objectives.init(jax.random.key(0), {}), objectives.init_state({})
    assert parameters.keys() == {"a", "b", "c"} and state.keys() == {"c"} and objectives.teacher
    assert objectives.needs == {"tokens"} and objectives.outputs == {"tokens", "pooled"}
    total, (following, numbers) = objectives.loss(parameters, state, replace(batch, image_pooled=None), 0.0)
    assert float(total) == float(numbers["a/loss"]) and numbers.keys() == {"a/loss"} and following == state
    sections["c"]["weight"] = ((0.0, 0.0), (1.0, 1.0))
    assert make_objectives(sections).needs == {"tokens", "pooled", "views", "teacher"}


def test_evaluations_get_the_multiplier_that_an_objective_names(monkeypatch):
    def own(*, multiplier: str = "", scale: float = 3.0) -> Objective:
        parameters = {"heat": Parameter(lambda key, sizes: jnp.float32(scale))}
        of_loss = lambda parameters: {"scale": 1.0, "sharpness": 2 * parameters["heat"]}
        pairwise = Pairwise(TokenWise("pooled"), Softmax(), of_loss, multiplier)
        return Objective(frozenset({"pooled"}), parameters, pairwise)

    monkeypatch.setitem(OBJECTIVES, "own", own)
    sections = dict(
        a=dict(kind="own"),
        b=dict(kind="own", multiplier="sharpness"),
        c=dict(kind="filip"),
        d=dict(kind="own", weight=0),
    )
    objectives = make_objectives(sections)
    parameters = objectives.init(jax.random.key(0), {})
    assert objectives.logit_scale(parameters, "pooled") == 6.0
    assert objectives.logit_scale(parameters, "tokens") == pytest.approx(1 / 0.07)
    assert make_objectives({"a": dict(kind="own")}).logit_scale(parameters, "pooled") == 1.0


@pytest.mark.parametrize("k", [1, 2])
def test_scale_and_bias_begin_where_the_first_batch_puts_them(k):
    section = dict(kind="siglip", similarity="tokens", from_first_batch=True, **EXACT)
    objectives, batch = make_objectives({"s": section}), make_batch(0, b=16, k=k, d=32)
    parameters = objectives.start(
        objectives.init(jax.random.key(0), {}), single(batch), set(objectives.from_first_batch)
    )["s"]
    s_i, s_t = token_similarities(batch)
    wrong = ((s_i + s_t) / 2)[~pairing(batch)[0]]
    scale = float(jnp.exp(parameters["logit_scale"]))
    assert scale == pytest.approx(0.9 / wrong.std(), rel=1e-4)
    assert float(parameters["bias"]) == pytest.approx(-np.log(15) - scale * wrong.mean(), rel=1e-4)
    kept = objectives.start({"s": {"logit_scale": 1.0, "bias": 2.0}}, single(batch), set())
    assert kept == {"s": {"logit_scale": 1.0, "bias": 2.0}}


@pytest.mark.parametrize("k", [1, 3])
def test_the_spread_of_similarities_far_from_zero_is_that_of_float64(k):
    batch = make_batch(0, b=16, k=k, d=32)
    for side in ("image", "text"):  # all similarities lie near 1, so that the squares of two of them hardly differ
        vectors = batch[f"{side}_pooled"]
        batch[f"{side}_pooled"] = unit(1.0 + 0.02 * vectors).astype(np.float32).astype(float)
    wrong = pooled_similarities(batch)[0][~pairing(batch)[0]]
    count, mean, spread = moments(TokenWise("pooled"), single(batch))
    assert float(count) == 15 and 0.999 < wrong.mean() < 1 and wrong.std() < 1e-4
    assert float(mean) == pytest.approx(wrong.mean(), rel=1e-6)
    assert float(spread) == pytest.approx(wrong.std(), rel=1e-2)


@pytest.mark.parametrize("name", SECTIONS)
def test_captions_that_are_repeated_change_no_loss_of_single_pairs(name):
    """SigLIP's loss is a mean over texts; in a softmax of k copies each right answer shares its probability."""
    objectives, batch = make_objectives(SECTIONS[name]), make_batch(0)
    parameters = objectives.init(jax.random.key(0), {})
    repeated = batch | {key: np.repeat(x, 3, axis=1) for key, x in batch.items() if key.startswith("text")}
    once, thrice = (objectives.loss(parameters, {}, single(each), 0.0)[0] for each in (batch, repeated))
    parts = [1.0, 0.5] if name == "filip_clip" else [float("siglip" not in name)]
    assert float(thrice - once) == pytest.approx(sum(parts) * np.log(3) / 2, abs=2e-5)


def test_absent_captions_choose_no_token_of_the_image():
    objectives = make_objectives(dict(f=dict(kind="filip", keep_tokens=0.4, selection="pair", **EXACT)))
    parameters, batch = objectives.init(jax.random.key(0), {}), make_batch(0, k=2)
    batch["text_weight"] = np.array([[1.0, n % 2] for n in range(8)])

    def loss(order):
        return objectives.loss(parameters, {}, single({name: x[order] for name, x in batch.items()}), 0.0)[0]

    assert float(loss(np.roll(np.arange(8), 3))) == pytest.approx(float(loss(np.arange(8))), rel=1e-6)


WRONG = {
    "none": ({}, "name at least one"),
    "name": ({"A b": dict(kind="filip", weight=1.0)}, r"objectives.A b: names are of small letters"),
    "kind": (dict(x=dict(kind="flip", weight=1.0)), r"objectives.x.kind='flip' is not one of filip, clip, siglip, .*; did you mean .*filip"),
    "weight": (dict(x=dict(kind="filip", weight=-1.0)), "objectives.x.weight=-1.0: weights must be at least 0"),
    "truth": (dict(x=dict(kind="filip", weight=True)), "objectives.x.weight=True is neither a number nor"),
    "nan": (dict(x=dict(kind="filip", weight=float("nan"))), "objectives.x.weight=nan is neither a number nor"),
    "nan between": (dict(x=dict(kind="filip", weight=((0, 1), (float("nan"), 1), (1, 1)))), "objectives.x.weight=.*is neither"),
    "long points": (dict(x=dict(kind="filip", weight=((0, 1, 2), (1,)))), "objectives.x.weight=.*is neither a number nor"),
    "huge": (dict(x=dict(kind="filip", weight=10**400)), "objectives.x.weight=1000.* is neither a number nor"),
    "word": (dict(x=dict(kind="filip", weight="12")), "objectives.x.weight='12' is neither a number nor"),
    "all 0": (dict(x=dict(kind="filip", weight=0), y=dict(kind="clip", weight=0.0)), "objectives: all weights are 0"),
    "points": (dict(x=dict(kind="filip", weight=((0.5, 1.0), (0.2, 1.0)))), "objectives.x.weight=.*shares of the run rise"),
    "no kind": (dict(x=dict(weight=1.0)), "objectives.x.kind='' is not one of filip, clip, siglip"),
    "no section": (dict(x=1.0), "objectives.x=1.0 is not a section"),
    "option": (dict(x=dict(kind="clip", weight=1.0, keep_tokens=0.5)), "objectives.x: .*keep_tokens"),
    "place": (dict(x=dict(kind="clip", place=1)), "objectives.x: .*place"),
    "value": (dict(x=dict(kind="filip", weight=1.0, keep_tokens=0.0)), "objectives.x.keep_tokens=0.0 must be above 0"),
    "bounds": (dict(x=dict(kind="clip", weight=1.0, logit_scale_init=200.0)), "objectives.x.logit_scale_init=200.0 must lie from"),
    "smoothing": (dict(x=dict(kind="clip", weight=1.0, label_smoothing=1.0)), "objectives.x.label_smoothing=1.0 must be"),
    "positives": (dict(x=dict(kind="clip", weight=1.0, positives="row")), "objectives.x.positives='row' is not one of pair, image"),
}  # fmt: skip


@pytest.mark.parametrize("section, message", WRONG.values(), ids=WRONG)
def test_a_section_that_cannot_be_is_refused_by_its_key(section, message):
    with pytest.raises(UserError, match=message):
        make_objectives(section)
