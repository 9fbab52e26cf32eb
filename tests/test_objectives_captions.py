"""FLAIR against its definition in float64: text-conditioned pooling, texts of others, several captions; what it needs of a batch."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_devices_mesh, slow, unit
from jax.sharding import NamedSharding, PartitionSpec
from test_objectives import make_batch, pairing, pooled_similarities, sigmoid_definition, single
from test_objectives_pairs import check_against_definition

from filip_jax.errors import UserError
from filip_jax.losses.encoded import Encoded
from filip_jax.losses.text_conditioned import TextConditioned
from filip_jax.mesh import BATCH_AXES
from filip_jax.objectives.total import make_objectives

DIM, HEADS = 6, 2
FLAIR = dict(kind="flair", heads=HEADS, logit_scale_init=8.0, bias_init=-2.0)


def conditioned_similarity(tokens, text, p):
    """The cosine of a text's vector and the tokens [p, d] pooled for it, as FLAIR's section 3.2 reads."""

    def projected(name, x):
        x = x * np.sqrt(DIM)
        x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        x = x * p[f"{name}_norm_scale"] + p[f"{name}_norm_bias"]
        return x @ p[f"{name}_kernel"] + p[f"{name}_bias"]

    query, keys, values = projected("query", text), projected("key", tokens), projected("value", tokens)
    pooled = []
    for q, k, v in zip(*(np.split(x, HEADS, axis=-1) for x in (query, keys, values))):
        weights = np.exp(np.append(k @ q, 0.0) / np.sqrt(DIM // HEADS))
        pooled.append(weights[:-1] / weights.sum() @ v)
    return unit(np.concatenate(pooled) @ p["output_kernel"] + p["output_bias"]) @ text


def flair_definition(batch, p):
    """FLAIR's section 3.3: the mean of the loss of pooled vectors and that of conditioned images."""
    p = p["own"]
    scale, bias, (same, weight, real) = np.exp(p["logit_scale"]), p["bias"], pairing(batch)
    b, k = batch["text_pooled"].shape[:2]
    texts = batch["text_pooled"].reshape(b * k, -1)
    total, met = 0.0, []
    for i in np.flatnonzero(real):
        theirs = [j for j in range(b * k) if j // k == i or j % k == 0]
        met.append(weight[theirs].sum())
        for j in theirs:
            logit = scale * conditioned_similarity(batch["image_tokens"][i], texts[j], p) + bias
            total += weight[j] * np.log1p(np.exp(-logit if same[i, j] else logit))
    of_pooled = sigmoid_definition(pooled_similarities(batch), batch, scale, bias, 1)
    return (of_pooled + total / np.mean(met)) / 2


def initial(objectives, dim=DIM):
    """Parameters of a new run, moved, so that none is 0 or 1."""
    parameters = objectives.init(jax.random.key(0), {"embed_dim": dim})
    rng = np.random.default_rng(8)
    return jax.tree.map(lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32), parameters)


ALL = dict(k=3, absent=True, groups=True, rows=True)
WAYS = [  # mesh, exchange, what the batch has
    ((2, 2), "ring", ALL),
    ((1, 2), "gather", dict(k=2)),
    slow((1, 1), "gather", dict(k=3, absent=True)),
    slow((1, 8), "ring", ALL),
    slow((4, 2), "gather", ALL),
    slow((8, 1), "ring", dict(k=2, rows=True)),
]


@pytest.mark.parametrize("mesh, exchange, options", WAYS)
def test_flair_equals_its_definition_forward_and_gradient(mesh, exchange, options):
    section = FLAIR | dict(exchange=exchange, indices="recompute", positives="image" if "groups" in options else "pair")
    objectives = make_objectives({"own": section})
    check_against_definition(objectives, flair_definition, initial(objectives), mesh, options | dict(d=DIM))
