"""Logged numbers of the similarities of pairs: each equals loops in float64, on any mesh, and is computed only where asked for."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_devices_mesh, slow, small
from test_objectives import make_batch, pairing, pooled_similarities, single, token_similarities

from filip_jax.errors import UserError
from filip_jax.losses import similarity_metrics
from filip_jax.losses.block_function import BlockFunction
from filip_jax.losses.encoded import Encoded
from filip_jax.losses.similarity_metrics import sample_rows
from filip_jax.mesh import global_batch
from filip_jax.objectives import OBJECTIVES
from filip_jax.objectives.objective import Objective
from filip_jax.objectives.total import make_objectives
from filip_jax.sections import call
from filip_jax.train.setup import batch_of, lower_step, make_setup


def moments_definition(similarities, batch):
    """Mean and standard deviation of the similarities of wrong pairs, texts by their weights."""
    same, weight, real = pairing(batch)
    counts = weight * (~same & real[:, None] & (weight > 0))
    s = sum(similarities) / 2
    mean = (counts * s).sum() / counts.sum()
    return {"mean": mean, "spread": np.sqrt((counts * (s - mean) ** 2).sum() / counts.sum())}


def choices_definition(batch):
    """Return by side the sets of partners in which each token is chosen, and whether bfloat16 chooses alike."""
    _, weight, real = pairing(batch)
    images, texts = batch["image_tokens"], batch["text_tokens"].reshape(-1, *batch["text_tokens"].shape[2:])
    rounded = [x.astype(jnp.bfloat16).astype(float) for x in (images, texts)]
    masks = batch["text_mask"].reshape(len(texts), -1)
    counted = {"image": np.flatnonzero(real), "text": np.flatnonzero((weight > 0) & masks.any(axis=1))}
    chosen = {"image": {}, "text": {}}
    same = {"image": [], "text": []}
    for i in counted["image"]:
        for j in counted["text"]:
            words = np.flatnonzero(masks[j])
            s, other = (x[i] @ y[j, words].T for x, y in ((images, texts), rounded))
            for patch, again in zip(s.argmax(axis=0), other.argmax(axis=0)):
                chosen["image"].setdefault((i, patch), set()).add(j)
                same["text"].append(patch == again)
            for word, again in zip(words[s.argmax(axis=1)], words[other.argmax(axis=1)]):
                chosen["text"].setdefault((j, word), set()).add(i)
                same["image"].append(word == again)
    tokens = {"image": len(counted["image"]) * images.shape[1], "text": masks[counted["text"]].sum()}
    numbers = {}
    for side, partners in (("image", counted["text"]), ("text", counted["image"])):
        always = sum(len(met) == len(partners) for met in chosen[side].values())
        numbers[f"{side}_tokens_never_chosen"] = 1 - len(chosen[side]) / tokens[side]
        numbers[f"{side}_tokens_always_chosen"] = always / tokens[side]
        numbers[f"{side}_choices_in_bfloat16"] = np.mean(same[side])
    return numbers


def make_hubs(batch):
    """Give each image a token that all words like and one that none likes, each text a word that all image tokens like."""
    for name in ("image_tokens", "text_tokens"):
        direction = np.full(batch[name].shape[-1], batch[name].shape[-1] ** -0.5)
        rows = batch[name] + 0.8 * direction
        rows[..., 0, :] = direction
        if name == "image_tokens":
            rows[:, 1] = -direction
        batch[name] = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return batch


MESHES = [
    ((1, 1), dict(k=2, absent=True)),
    ((1, 4), dict(k=2, groups=True, rows=True)),
    slow((2, 4), dict(k=3, absent=True, rows=True)),
    slow((1, 8), dict(groups=True)),
    slow((8, 1), dict(k=2, absent=True, groups=True, rows=True)),
    slow((1, 2), dict()),
]


@pytest.mark.parametrize("of", ["tokens", "pooled"])
@pytest.mark.parametrize("mesh, options", MESHES)
def test_metrics_of_a_sample_equal_their_definition(monkeypatch, of, mesh, options):
    monkeypatch.setattr(similarity_metrics, "MAX_ROWS", 8)
    batch = make_hubs(make_batch(4, b=24, t=9, **options))
    batch = {name: x.astype(np.float32).astype(x.dtype) if x.dtype == float else x for name, x in batch.items()}
    scale = {"similarity": "tokens"} if of == "tokens" else {}
    section = dict(kind="siglip", logit_scale_init=12.0, log_similarities=True, **scale)
    objectives = make_objectives({"a": section})
    parameters = objectives.init(jax.random.key(0), {})

    @jax.jit
    def ours(encoded):
        return objectives.similarity_metrics(parameters, sample_rows(encoded))

    with jax.set_mesh(make_devices_mesh(*mesh)):
        found = {name.removeprefix("a/similarities/"): float(x) for name, x in ours(single(batch)).items()}
    sample = {name: x[::3] for name, x in batch.items()}
    by_tokens = of == "tokens"
    expected = moments_definition((token_similarities if by_tokens else pooled_similarities)(sample), sample)
    expected |= {"logit_spread": 12 * expected["spread"]} | (choices_definition(sample) if by_tokens else {})
    assert found == pytest.approx(expected, rel=2e-5, abs=1e-6)
    counts = ("image_tokens_never_chosen", "image_tokens_always_chosen", "text_tokens_always_chosen")
    assert not by_tokens or all(0 < expected[name] < 1 for name in counts)


def test_a_similarity_of_its_own_has_a_spread_and_no_choices():
    batch = make_batch(0, b=8)

    def compare(parameters, images, texts):
        return (parameters * jnp.einsum("jd,id->ji", texts, images),)

    own = BlockFunction(compare, lambda encoded: (encoded.image_pooled, encoded.text_pooled), 8)
    with jax.set_mesh(make_devices_mesh(1, 1)):
        ours = jax.jit(
            lambda encoded: similarity_metrics.similarity_metrics(own, sample_rows(encoded), jnp.float32(2.0))
        )
        found = ours(single(batch))
    expected = moments_definition([2 * s for s in pooled_similarities(batch)], batch)
    assert {name: float(x) for name, x in found.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rows, most, count", [(128, 64, 64), (100, 64, 50), (24, 64, 24), (97, 64, 1)])
def test_a_sample_is_spread_evenly_over_the_batch(monkeypatch, rows, most, count):
    monkeypatch.setattr(similarity_metrics, "MAX_ROWS", most)
    found = sample_rows(replace(single({"group": np.arange(rows)}), views=(single({"group": np.arange(3)}),)))
    assert found.group.tolist() == list(range(0, rows, rows // count)) and not found.views


def test_rows_of_a_sample_stay_on_their_devices():
    mesh = make_devices_mesh(1, 8)
    tokens = global_batch(mesh, {"image_tokens": np.ones((256, 5, 7), np.float32)})
    with jax.set_mesh(mesh):
        text = jax.jit(lambda x: sample_rows(Encoded(**x))).lower(tokens).compile().as_text()
    assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text


def test_what_cannot_be_logged_is_refused(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "own", lambda: Objective(frozenset({"pooled"}), local=lambda *_: (0.0, {}, {})))
    with pytest.raises(UserError, match="objectives.a.log_similarities=True, but own compares no pairs: set it to Fal"):
        make_objectives({"a": dict(kind="own", log_similarities=True)})
    with pytest.raises(UserError, match="objectives.a.log_similarities=1 is not True or False"):
        make_objectives({"a": dict(kind="filip", log_similarities=1)})


@pytest.mark.slow
def test_a_step_computes_them_when_it_is_logged_and_is_otherwise_the_same(small_demo):
    """Both programs from the same state: the same losses and parameters, and numbers in every second step."""
    of_both = []
    for is_logged in (True, False):
        config = small(small_demo, log_every_steps=2, total_steps=3)
        config["objectives"]["filip"]["log_similarities"] = is_logged
        setup = call(make_setup, config, "(top level)")
        rng = np.random.default_rng(0)
        with jax.set_mesh(setup.mesh):
            state = jax.jit(setup.init, out_shardings=setup.shardings)(jax.random.key(0))
            step, lines = lower_step(setup, state).compile(), []
            for _ in range(3):
                batch = {n: rng.integers(4, 250, x.shape).astype(x.dtype) for n, x in batch_of(setup).items()}
                state, numbers = step(state, global_batch(setup.mesh, batch))
                lines.append({name: float(x) for name, x in numbers.items()})
        of_both.append((lines, jax.device_get(state["params"])))
    (logged, parameters), (plain, others) = of_both
    names = [[name for name in line if "/similarities/" in name] for line in logged]
    assert len(names[0]) == 9 and not [name for line in plain for name in line if "/similarities/" in name]
    assert [any(line[name] for name in names[0]) for line in logged] == [False, True, True]
    for line, other in zip(logged, plain):
        assert {name: line[name] for name in other} == pytest.approx(other, rel=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), parameters, others)
