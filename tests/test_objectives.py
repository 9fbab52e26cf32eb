"""Each objective against its definition in float64, forward and gradient, and their sums in the training step."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_devices_mesh, slow, unit

from filip_jax.losses.encoded import Encoded
from filip_jax.objectives.total import make_objectives

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
    """SigLIP's loss: each pair by itself, summed over the other side."""
    same, weight, real = pairing(batch)
    a, b = (np.log1p(np.exp(-np.where(same, 1, -1) * (scale * s + bias)))[real] for s in similarities)
    of_images = (a * weight).sum(axis=1).mean()
    of_texts = (b.sum(axis=0) * weight).sum() / weight.sum()
    return of_images if sides == 1 else (of_images + of_texts) / 2


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
    objectives = make_objectives({part: options | how for part, options in SECTIONS[name].items()})
    batch = {
        k: x.astype(np.float32).astype(x.dtype) if x.dtype == float else x for k, x in make_batch(3, **options).items()
    }
    parameters = objectives.init(jax.random.key(0))

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
