"""FLAIR and DreamLIP, of several captions of an image, against their definitions in float64; what they need of a batch."""

import re
from contextlib import nullcontext
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_devices_mesh, slow, unit
from jax.sharding import NamedSharding, PartitionSpec
from test_objectives import make_batch, pairing, pooled_similarities, sigmoid_definition, single, softmax_definition
from test_objectives_pairs import check_against_definition, loss_of

from filip_jax.errors import UserError
from filip_jax.losses.encoded import Encoded
from filip_jax.losses.text_conditioned import TextConditioned
from filip_jax.mesh import BATCH_AXES
from filip_jax.objectives.total import make_objectives
from filip_jax.train.start import check_captions

DIM, HEADS = 6, 2
DREAMLIP = dict(kind="dreamlip", logit_scale_init=8.0, groups_weight=0.7)
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


def dreamlip_definition(batch, p):
    """DreamLIP's sum: CLIP's loss with several right answers, and captions contrasted with their groups of image tokens."""
    p = p["own"]
    weight, total = pairing(batch)[1].reshape(batch["text_pooled"].shape[:2]), 0.0
    for i in range(len(weight)):
        if (present := weight[i] > 0).any():
            texts, tokens = batch["text_pooled"][i, present], batch["image_tokens"][i]
            s = texts @ tokens.T
            s = (s - s.min(axis=1, keepdims=True)) / np.ptp(s, axis=1, keepdims=True)
            s[s < 1 / len(tokens)] = 0.0
            logits = np.exp(p["groups_logit_scale"]) * unit(s / s.sum(axis=1, keepdims=True) @ tokens) @ texts.T
            of_both = (np.log(np.exp(x).sum(axis=1)) - np.diagonal(x) for x in (logits, logits.T))
            total += (weight[i, present] * sum(of_both) / 2).sum()
    of_pooled = softmax_definition(pooled_similarities(batch), batch, np.exp(p["logit_scale"]))
    return of_pooled + 0.7 * total / weight.sum()


SECTIONS = {"flair": (FLAIR, flair_definition), "dreamlip": (DREAMLIP, dreamlip_definition)}


def initial(objectives, dim=DIM):
    """Parameters of a new run, moved, so that none is 0 or 1."""
    parameters = objectives.init(jax.random.key(0), {"embed_dim": dim})
    rng = np.random.default_rng(8)
    return jax.tree.map(lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32), parameters)


ALL = dict(k=3, absent=True, groups=True, rows=True)
WAYS = [  # name, mesh, exchange, what the batch has
    ("flair", (2, 2), "ring", ALL),
    ("dreamlip", (1, 2), "gather", ALL),
    slow("flair", (1, 2), "gather", dict(k=2)),
    *(slow(name, mesh, exchange, options)
      for name in SECTIONS
      for mesh, exchange, options in (
          ((1, 1), "gather", dict(k=3, absent=True)), ((1, 8), "ring", ALL), ((4, 2), "gather", ALL),
          ((8, 1), "ring", dict(k=2, rows=True)),
      )),
]  # fmt: skip


@pytest.mark.parametrize("name, mesh, exchange, options", WAYS)
def test_objectives_of_captions_equal_their_definition_forward_and_gradient(name, mesh, exchange, options):
    section, definition = SECTIONS[name]
    section = section | dict(
        exchange=exchange, indices="recompute", positives="image" if "groups" in options else "pair"
    )
    objectives = make_objectives({"own": section})
    check_against_definition(objectives, definition, initial(objectives), mesh, options | dict(d=DIM))


def test_text_conditioned_pooling_attends_to_nothing_where_no_token_fits():
    """With keys that are far from the query only the key of zeros is left, and the output is its bias."""
    pooling, rng = TextConditioned(HEADS, "float32"), np.random.default_rng(0)
    parameters = initial(make_objectives({"own": FLAIR}))["own"]
    query = jnp.asarray(rng.normal(size=(1, HEADS, 3)), jnp.float32)
    keys = jnp.broadcast_to(-1e3 * query[:, None], (1, 4, HEADS, 3))
    values = jnp.asarray(rng.normal(size=keys.shape), jnp.float32)
    found = pooling.compare(parameters, (keys, values), (query, jnp.eye(DIM)[:1]))
    assert float(found[0, 0]) == pytest.approx(float(unit(np.asarray(parameters["output_bias"], float))[0]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("section", [FLAIR, DREAMLIP], ids=["flair", "dreamlip"])
def test_losses_in_bfloat16_are_near_float32(section):
    """1 % of the loss."""
    batch, losses = single(make_batch(0, k=2, d=16, p=9)), []
    for dtype in ("float32", "bfloat16"):
        objectives = make_objectives({"own": section | {"dtype": dtype}})
        losses.append(loss_of(objectives, batch, initial(objectives, 16))[0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2) and losses[1] != losses[0]


def shapes(mesh, rows, k=4, p=49, d=16):
    """The shapes of a global batch of `rows` samples on each device."""
    sharding, b = NamedSharding(mesh, PartitionSpec(BATCH_AXES)), rows * mesh.size
    of = lambda *shape: jax.ShapeDtypeStruct((b, *shape), jnp.float32, sharding=sharding)
    return Encoded(image_tokens=of(p, d), image_pooled=of(d), text_pooled=of(k, d), text_weight=of(k))


@pytest.mark.slow
def test_memory_of_flair_does_not_grow_with_the_devices_and_no_image_leaves_its_own():
    objectives = make_objectives({"own": FLAIR | dict(indices="recompute")})
    parameters = jax.eval_shape(lambda: objectives.init(jax.random.key(0), {"embed_dim": 16}))
    bytes_of = []
    for devices in (2, 8):
        mesh = make_devices_mesh(1, devices)
        encoded, whole = shapes(mesh, rows=16), NamedSharding(mesh, PartitionSpec())
        given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), parameters)

        def loss(parameters, tokens, pooled, encoded):
            return objectives.loss(parameters, {}, replace(encoded, image_tokens=tokens, text_pooled=pooled), 0.0)[0]

        with jax.set_mesh(mesh):
            step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
            program = step.lower(given, encoded.image_tokens, encoded.text_pooled, encoded).compile()
        bytes_of.append(program.memory_analysis().temp_size_in_bytes)
    moved = re.findall(r"= (\S+) (?:all-gather|all-to-all)", program.as_text())
    assert "collective-permute" in program.as_text()
    assert all(np.prod(np.array(re.findall(r"\d+", x.split("[")[1].split("]")[0]), int)) <= 8 * 16 * 4 for x in moved)
    assert bytes_of[1] < 1.1 * bytes_of[0]


@pytest.mark.parametrize(
    "options, dim, message",
    [
        (dict(heads=0), 6, "objectives.own.heads=0 must be at least 1"),
        (dict(heads=4), 6, "heads=4 must divide model.embed_dim=6"),
        (dict(exchange="auto"), 6, "objectives.own.exchange='auto' is not one of gather, ring"),
        (dict(dtype="float16"), 6, "objectives.own.dtype='float16' is not one of"),
        (dict(positives="row"), 6, "objectives.own.positives='row' is not one of pair, image"),
    ],
)
def test_options_that_cannot_be_are_named(options, dim, message):
    with pytest.raises(UserError, match=message):
        make_objectives({"own": FLAIR | options}).init(jax.random.key(0), {"embed_dim": dim})


@pytest.mark.parametrize("present, message", [(1, "none of the 4 images of the first batch has more than 1 "), (2, "")])
def test_a_run_whose_images_have_one_caption_each_is_refused(present, message):
    objectives, mesh = make_objectives({"own": FLAIR}), make_devices_mesh(1, 4)
    weight = np.zeros((4, 3), np.float32)
    weight[:, 0] = weight[2, :present] = 1.0
    batch = {"caption_weight": jax.device_put(weight, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))}
    with pytest.raises(UserError, match=message) if message else nullcontext():
        check_captions(objectives, mesh, batch)
    check_captions(make_objectives({"own": dict(kind="clip")}), mesh, {})  # which needs none
