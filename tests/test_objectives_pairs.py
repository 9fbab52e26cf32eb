"""Token-wise sigmoid and one-directional MaxSim against their definitions in float64, in gather and ring; where they begin."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_devices_mesh, slow
from test_objectives import TRAINED, make_batch, pairing, sigmoid_definition, single, slope, token_similarities

from filip_jax.errors import UserError
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
    (p, t), best = (int(KEPT * x.shape[-1]) for x in (of_images, of_texts)), lambda x, n: np.argsort(-x, axis=-1, kind="stable")[..., :n]
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
    ("sigmoid_kept", (1, 2), "gather", "save", dict(k=2, absent=True)),
    ("maxsim", (1, 4), "ring", "recompute", dict(k=2, groups=True, rows=True)),
    ("hardest", (2, 2), "ring", "recompute", ALL),
    ("hardest", (1, 2), "gather", "save", dict(rows=True)),
    ("smooth", (1, 2), "ring", "recompute", ALL),
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
