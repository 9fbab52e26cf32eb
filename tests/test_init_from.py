"""Beginning from another run's checkpoint: exact values under any names, what fits and what is refused."""

import ast
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import examples, free_port, make_devices_mesh, signed, slow, small
from hypothesis import given
from hypothesis import strategies as st

from filip_jax import paths
from filip_jax.checkpoint import Checkpoints, CheckpointWriter, abstract
from filip_jax.errors import UserError
from filip_jax.mesh import replicated
from filip_jax.models.patches import fit_positions
from filip_jax.objectives import OBJECTIVES
from filip_jax.objectives.objective import Objective, Parameter, Teacher
from filip_jax.sections import call
from filip_jax.train.init_from import fill_all, open_donors
from filip_jax.train.loop import train
from filip_jax.train.setup import batch_of, make_setup
from filip_jax.train.step import state_shardings

TOKENIZER = "0123" * 16


def setup_of(config, path="", rules=(), **changes):
    return call(make_setup, small(config, **changes) | {"init_from": {"path": str(path), "rules": rules}}, "top")


def born(setup):
    with jax.set_mesh(setup.mesh):
        return jax.jit(setup.init, out_shardings=setup.shardings)(jax.random.key(setup.seed))


def opened(setup, **section):
    """The donor of a setup, or the one that a section names."""
    [donor] = open_donors(section or setup.init_from, setup.shapes, setup.optimizer.metadata)
    return donor


def filled(setup, state):
    donor = opened(setup)
    donor.check(TOKENIZER)
    return donor.fill(state)


def write(workdir, step=3, tokenizer=TOKENIZER, metadata=None, **parts):
    """A checkpoint of these parts, as a run whose parameters have this metadata would write it."""
    writer = CheckpointWriter(workdir, every_steps=1, every_minutes=0.0, keep_last=9, keep_every_steps=0)
    meta = {"tokenizer_sha256": tokenizer, "samples_seen": 1, "parameters": paths.saved_metadata(metadata or {})}
    writer.save(step, parts, meta, {})
    writer.wait()
    return workdir


def numbers(shapes, seed):
    """Other values for every leaf."""
    rng = np.random.default_rng(seed)
    leaves = paths.flatten(shapes)
    return paths.unflatten({p: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for p, leaf in leaves.items()})


def assert_equal(tree, expected):
    tree, expected = paths.flatten(tree), paths.flatten(expected)
    assert tree.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(np.asarray(tree[path]), np.asarray(expected[path]), err_msg=path)


@pytest.fixture(scope="module")
def setup(small_demo):
    return setup_of(small_demo)


@pytest.fixture(scope="module")
def fresh(setup):
    return born(setup)


@pytest.fixture(scope="module")
def donor(setup, tmp_path_factory):
    """(workdir of a checkpoint with the model's parameters and, below "old/", others of the same names, its parameters)."""
    shapes = setup.shapes["params"]
    parameters = numbers(shapes, 1) | {"old": numbers(shapes, 2)}
    optimizer = {"mu": numbers(shapes, 3)}
    workdir = tmp_path_factory.mktemp("donor") / "run"
    return write(workdir, params=parameters, opt_state=optimizer), parameters


KINDS = ("same", "renamed", "fresh")


@given(data=st.data())
@examples(12)
def test_each_parameter_is_taken_from_where_the_rules_say_or_stays_fresh(small_demo, setup, fresh, donor, data):
    workdir, given = donor
    names = list(paths.flatten(setup.shapes["params"]))
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=len(names), max_size=len(names)))
    rules = [
        (f"({name})", {"renamed": r"old/\1", "fresh": None}[kind]) for name, kind in zip(names, kinds) if kind != "same"
    ]
    rules = data.draw(st.permutations(rules))
    if set(kinds) == {"fresh"}:
        return
    state = opened(setup, path=str(workdir), rules=rules).fill(fresh)
    of_kind = {
        "same": paths.flatten(given),
        "renamed": paths.flatten(given["old"]),
        "fresh": paths.flatten(fresh["params"]),
    }
    assert_equal(state["params"], paths.unflatten({name: of_kind[kind][name] for name, kind in zip(names, kinds)}))
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, state, setup.shardings))
    rest = lambda tree: {name: part for name, part in tree.items() if name != "params"}
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), rest(state), rest(fresh)))


POOL = [(r"image/(.*)", r"old/image/\1"), (r"(.*)/kernel", r"old/\1/kernel"), (r".*bias", None), (r"text/.*", ""),
        (r"(?P<all>.*)", r"\g<all>"), (r"(image|text)(_projection)?/(.*)", r"x/\3/\1\2"), (r"objectives/(.*)", r"\1")]  # fmt: skip


@given(rules=st.lists(st.sampled_from(POOL), unique=True), as_lists=st.booleans())
@examples(100)
def test_the_first_rule_that_matches_all_of_a_path_decides(setup, rules, as_lists):
    names = list(paths.flatten(setup.shapes["params"]))
    found = paths.rename([list(rule) for rule in rules] if as_lists else rules, names, "key")
    for name in names:
        first = next((rule for rule in rules if re.fullmatch(rule[0], name)), None)
        expected = name if first is None else re.sub(rf"\A(?:{first[0]})\Z", first[1], name) if first[1] else None
        assert found[name] == expected, name


@given(data=st.data())
@examples(100)
def test_cover_matches_the_chosen_paths_and_no_others(setup, data):
    tree = setup.shapes["params"]
    names = list(paths.flatten(tree))
    part = data.draw(st.sampled_from(["", "image/", "text/transformer/"]))
    chosen = {name for name in names if part and name.startswith(part)} | data.draw(st.sets(st.sampled_from(names)))
    patterns = paths.cover(tree, chosen)
    assert {name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)} == chosen
    assert not part or sum(pattern.startswith(part) for pattern in patterns) == 1


@given(data=st.data())
@examples(40)
def test_a_refusal_names_the_misfits_and_its_rule_makes_the_rest_fit(setup, donor, tmp_path_factory, data):
    """Some leaves are missing in the checkpoint, some have another shape or type."""
    shapes = setup.shapes["params"]
    folder = tmp_path_factory.mktemp("misfits") / "3"
    folder.mkdir()
    manifest = json.loads((donor[0] / "checkpoints/3/manifest.json").read_text())
    names = sorted(paths.flatten(shapes))
    wrong = data.draw(
        st.dictionaries(st.sampled_from(names), st.sampled_from(["missing", "shape", "type"]), min_size=1)
    )
    for name, kind in wrong.items():
        leaf = manifest["tree"].pop(f"params/{name}")
        if kind == "shape":
            leaf["shape"] = [*leaf["shape"], 7]
        elif kind == "type":
            leaf["dtype"] = "int32"
        if kind != "missing":
            manifest["tree"][f"params/{name}"] = leaf
    (folder / "manifest.json").write_text(signed(manifest))
    try:
        opened(setup, path=str(folder), rules=())
    except UserError as error:
        message = str(error)
    assert "\n" not in message and message.startswith(f"init_from: {folder} does not fit this run: ")
    said = [name for name in names if re.search(rf"(: |; ){name} is ", message)]
    assert set(said) <= set(wrong) and len(said) == min(len(wrong), 8)
    assert (f"; and {len(wrong) - 8} more. " in message) == (len(wrong) > 8)
    rule = ast.literal_eval(re.search(r"put the rule (\(.*\)) first in init_from.rules", message)[1])
    if len(wrong) < len(names):
        found = opened(setup, path=str(folder), rules=(rule, (".*", r"\g<0>")))
        assert set(found.origins) == {f"params/{name}" for name in names if name not in wrong}


def test_the_average_is_preferred_and_a_new_average_begins_with_it(small_demo, setup, tmp_path, capsys):
    shapes = setup.shapes["params"]
    write(tmp_path / "run", params=numbers(shapes, 1), ema=numbers(shapes, 2))
    averaged = setup_of(small_demo, tmp_path / "run", [["text/.*", None]], ema_decay=0.5)
    before = born(averaged)
    state = filled(averaged, before)
    expected = numbers(shapes, 2) | {"text": before["params"]["text"]}
    assert_equal(state["params"], expected)
    assert_equal(state["ema"], expected)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, state, averaged.shardings))
    buffers = [shard.data.unsafe_buffer_pointer() for x in jax.tree.leaves(state) for shard in x.addressable_shards]
    assert len(set(buffers)) == len(buffers)  # the step donates all of them
    assert "/run/checkpoints/3 (ema); fresh: text/.*" in capsys.readouterr().out


def test_half_precision_is_cast_and_said(small_demo, setup, fresh, tmp_path, capsys):
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), numbers(setup.shapes["params"], 1))
    whole = {"objectives": jax.tree.map(lambda x: x.astype(jnp.float32), halves["objectives"])}
    write(tmp_path / "run", params=halves | whole)
    state = filled(setup_of(small_demo, tmp_path / "run"), fresh)
    assert_equal(state["params"], jax.tree.map(lambda x: x.astype(jnp.float32), halves | whole))
    count = len(paths.flatten(halves)) - 1
    assert f"init_from: {count} parameters cast from bfloat16 to float32\n" in capsys.readouterr().out


@pytest.mark.parametrize("replica, data", [slow(1, 4), slow(2, 2), slow(1, 1)])
def test_a_checkpoint_of_eight_devices_fills_another_mesh(small_demo, setup, donor, tmp_path, replica, data):
    sharded = jax.device_put(numbers(setup.shapes["params"], 4), setup.shardings["params"])
    embedding = sharded["text"]["token_embedding"]
    assert len(embedding.addressable_shards) == 8 and embedding.addressable_shards[0].data.size * 8 == embedding.size
    write(tmp_path / "run", params=sharded)
    mesh = make_devices_mesh(replica, data)
    here = setup_of(small_demo, tmp_path / "run")
    here = dataclasses.replace(here, mesh=mesh, shardings=state_shardings(mesh, here.shapes, here.optimizer))
    state = filled(here, born(here))
    assert_equal(state["params"], sharded)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, state, here.shardings))


def keys_weights(old, new):
    """[new, old] weights of a bicubic resize (Keys, a = -1/2), wider where it shrinks, as a textbook has them."""
    scale = max(old / new, 1.0)
    away = np.abs((np.arange(new)[:, None] + 0.5) * old / new - 0.5 - np.arange(old)) / scale
    near, far = 1.5 * away**3 - 2.5 * away**2 + 1, -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2
    weights = np.where(away <= 1, near, np.where(away < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(old=SIDES, new=SIDES, first=st.integers(0, 2), seed=st.integers(0, 99))
def test_positions_are_resized_as_pictures_are(old, new, first, seed):
    rng = np.random.default_rng(seed)
    position = rng.normal(size=(old[0] * old[1] + first, 5)).astype(np.float32)
    resized = np.asarray(fit_positions(jnp.asarray(position), old, new))
    np.testing.assert_array_equal(resized[:first], position[:first])
    (down, across), grid = (keys_weights(*sides) for sides in zip(old, new)), position[first:].reshape(*old, 5)
    expected = np.einsum("yi,xj,ijw->yxw", down, across, grid).reshape(-1, 5)
    np.testing.assert_allclose(resized[first:], expected, atol=1e-5)


@pytest.mark.parametrize("class_tokens", [1, slow(0)])
def test_another_image_size_and_a_shorter_text_take_what_they_can(small_demo, tmp_path, capsys, class_tokens):
    """12x12 patches become 6x6 and 24x24; a plane stays a plane but near its borders."""
    shared = {} if class_tokens else NO_TOKEN
    large = shared | {"model.image.image_size": 96, "data.image_size": 96}
    there = setup_of(small_demo, **large)
    parameters = numbers(there.shapes["params"], 1)

    def plane(grid):
        y, x = (np.mgrid[:grid, :grid] + 0.5) / grid
        return (3 * y - 2 * x + 1).astype(np.float32)

    token = np.full((class_tokens, 32), 7.0, np.float32)
    rows = plane(12).reshape(-1, 1) * np.linspace(1, 2, 32, dtype=np.float32)
    parameters["image"]["position"] = jnp.concatenate([token, rows])
    write(tmp_path / "run", metadata=there.model.metadata, params=parameters)
    for size, grid, border in ((48, 6, 2), (192, 24, 3)):
        changes = {"model.image.image_size": size, "data.image_size": size}
        changes |= {"model.text.length": 9, "data.text_length": 9}
        here = setup_of(small_demo, tmp_path / "run", **shared, **changes)
        taken = paths.flatten(filled(here, born(here))["params"])
        output = capsys.readouterr().out
        assert f"\nimage/position: resized from 12x12 to {grid}x{grid}\n" in output
        assert "\ntext/position: the first 9 of 20 rows\n" in output
        position = np.asarray(taken.pop("image/position"))
        np.testing.assert_array_equal(position[:class_tokens], token)
        inside = slice(border, grid - border)
        found = position[class_tokens:].reshape(grid, grid, 32)[inside, inside]
        np.testing.assert_allclose(found[..., 0], plane(grid)[inside, inside], atol=1e-5)
        np.testing.assert_allclose(found[..., 31], 2 * plane(grid)[inside, inside], atol=1e-5)
        np.testing.assert_array_equal(taken.pop("text/position"), parameters["text"]["position"][:9])
        same = {path: leaf for path, leaf in paths.flatten(parameters).items() if not path.endswith("/position")}
        assert_equal(paths.unflatten(taken), paths.unflatten(same))


def test_positions_that_are_split_here_come_from_a_number_that_does_not_split(small_demo, tmp_path):
    long = {"model.text.length": 512, "data.text_length": 512}
    parameters = numbers(setup_of(small_demo, **long).shapes["params"], 1)
    rows = np.random.default_rng(0).normal(size=(515, 32)).astype(np.float32)
    parameters["text"]["position"] = jnp.asarray(rows)
    write(tmp_path / "run", metadata={"text/position": paths.Metadata(positions=(515,))}, params=parameters)
    here = setup_of(small_demo, tmp_path / "run", **long)
    position = filled(here, born(here))["params"]["text"]["position"]
    assert position.sharding == here.shardings["params"]["text"]["position"] and not position.is_fully_replicated
    np.testing.assert_array_equal(position, rows[:512])


def test_a_constant_field_stays_constant_at_any_size():
    for old, new in ((7, 14), (14, 7), (6, 4), (1, 3), (3, 1)):
        resized = fit_positions(jnp.full((old * old, 3), 0.7), (old, old), (new, new))
        np.testing.assert_allclose(resized, np.full((new * new, 3), 0.7), rtol=1e-6)


def test_scanned_layers_fill_unrolled_ones(small_demo, setup, fresh, donor):
    """Layers are stacked whichever way they run: scan=False only unrolls the loop."""
    unrolled = setup_of(small_demo, donor[0], **{"model.scan": False})
    assert jax.tree.map(lambda x: x.shape, unrolled.shapes) == jax.tree.map(lambda x: x.shape, setup.shapes)
    scanned = filled(setup_of(small_demo, donor[0]), fresh)["params"]
    parameters = filled(unrolled, born(unrolled))["params"]
    assert_equal(parameters, scanned)
    target = abstract(unrolled.shapes["params"], jax.tree.map(lambda _: replicated(setup.mesh), scanned))
    write(donor[0].with_name("scanned"), params=scanned)
    assert_equal(Checkpoints(donor[0].with_name("scanned")).restore(3, {"params": target})["params"], scanned)
    images = jax.random.randint(jax.random.key(0), (2, 48, 48, 3), 0, 256, jnp.uint8)
    here, there = setup.model.encode_image(scanned, images), unrolled.model.encode_image(parameters, images)
    np.testing.assert_allclose(here, there, atol=1e-5)


def remember() -> Objective:
    """Return an objective with a head, a running mean and a teacher's image tower and heads."""
    head = Parameter(lambda key, sizes: jnp.ones(3))
    loss = lambda parameters, state, encoded, teacher: (0.0 * encoded.image_pooled.sum(), state, {})
    teacher = Teacher(0.9, ("image", "objectives"))
    return Objective(frozenset({"pooled"}), {"head": head}, None, loss, teacher, {"mean": np.zeros(2, np.float32)})


@pytest.fixture
def remembering(small_demo, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "remember", remember)
    filip = small_demo["objectives"]["filip"] | {"logit_scale_from_first_batch": True}
    return small_demo | {"objectives": {"filip": filip, "own": {"kind": "remember"}}}


def three_parts(setup):
    """Other parameters, an average of them and a running mean, as a checkpoint may hold them."""
    shapes = setup.shapes["params"]
    means = {"own": {"mean": jnp.array([3.0, 4.0])}}
    return {"params": numbers(shapes, 1), "ema": numbers(shapes, 2), "objectives": means}


@pytest.mark.parametrize(
    "options, mean",
    [
        slow({}, [0, 0]),
        ({"state": True}, [3, 4]),
        slow({"state": True, "rules": [["objectives/own/.*", None]]}, [0, 0]),
        slow({"state": True, "rules": [["objectives/own/mean", "objectives/other/mean"]]}, [5, 6]),
    ],
)
def test_running_means_are_fresh_unless_they_are_asked_for(remembering, tmp_path, options, mean):
    parts = three_parts(setup_of(remembering))
    parts["objectives"]["other"] = {"mean": jnp.array([5.0, 6.0])}
    write(tmp_path / "run", **parts)
    setup = setup_of(remembering | {"ema_decay": 0.5}, tmp_path / "run")
    state = opened(setup, **setup.init_from | options).fill(born(setup))
    np.testing.assert_array_equal(state["objectives"]["own"]["mean"], mean)
    kept = options.get("rules") == [["objectives/own/.*", None]]
    np.testing.assert_array_equal(
        state["params"]["objectives"]["own"]["head"], 1 if kept else parts["ema"]["objectives"]["own"]["head"]
    )
    assert_equal(state["params"]["image"], parts["ema"]["image"])
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, state, setup.shardings))


def test_running_means_that_do_not_fit_are_refused_with_their_rule(remembering, tmp_path):
    parts = three_parts(setup_of(remembering)) | {"objectives": {"own": {"mean": jnp.ones(3)}}}
    section = {"path": str(write(tmp_path / "run", **parts)), "rules": (), "state": True}
    message = r"objectives/own/mean is float32 \(3,\), this run's is float32 \(2,\). .* rule \('objectives/own/mean', None\) first"
    with pytest.raises(UserError, match=message):
        opened(setup_of(remembering), **section)


def test_a_teacher_begins_with_another_checkpoint_and_keeps_what_it_took(remembering, tmp_path, capsys):
    parts = three_parts(setup_of(remembering))
    write(tmp_path / "teacher", **parts)
    write(tmp_path / "run", params=numbers(parts["params"], 5))
    teacher = {"path": str(tmp_path / "teacher"), "rules": [["objectives/own/.*", None]]}
    rules = [["objectives/filip/.*", None]]
    section = {"path": str(tmp_path / "run"), "rules": rules, "teacher": teacher}
    setup = call(make_setup, small(remembering) | {"ema_decay": 0.5, "init_from": section}, "top")
    state = born(setup)
    donors = open_donors(section, setup.shapes, setup.optimizer.metadata)
    assert [donor.key for donor in donors] == ["init_from", "init_from.teacher"]
    state = fill_all(donors, state)
    image, own = parts["ema"]["image"], numbers(parts["params"], 5)
    assert_equal(state["teacher"]["image"], image)
    assert_equal(state["params"]["image"], own["image"])
    assert_equal(
        state["teacher"]["objectives"]["own"], own["objectives"]["own"]
    )  # a copy of the run's, where it is fresh
    assert "init_from.teacher: " in capsys.readouterr().out
    batch = {name: jnp.zeros(x.shape, x.dtype) for name, x in batch_of(setup).items()}
    with jax.set_mesh(setup.mesh):
        started = jax.jit(setup.start, out_shardings=setup.shardings)(state, batch)
    scales = [float(started[part]["objectives"]["filip"]["logit_scale"]) for part in ("params", "ema", "teacher")]
    taken = float(parts["ema"]["objectives"]["filip"]["logit_scale"])
    assert scales[0] == scales[1] != float(state["params"]["objectives"]["filip"]["logit_scale"]) and scales[2] == taken


@pytest.mark.parametrize(
    "teacher, message",
    [
        ({"path": "x", "rules": ()}, "init_from.teacher.path is given, but no objective has a teacher"),
        (
            {"path": "", "rules": ((".*", None),)},
            "init_from.teacher.rules are given, but init_from.teacher.path is empty",
        ),
        ({"path": "x"}, "config section init_from.teacher: missing a required .*rules.*; its keys are path, rules"),
        ("x", "config section init_from.teacher: 'x' is not a section"),
    ],
)
def test_a_teacher_that_can_not_be_is_refused(small_demo, teacher, message):
    with pytest.raises(UserError, match=message):
        call(make_setup, small_demo | {"init_from": {"path": "", "rules": (), "teacher": teacher}}, "top")


SECTIONS = {
    "unknown key": ({"path": "", "rules": (), "step": 3}, "config section init_from: .*'step'; its keys are path, rules, state, teacher"),
    "no rules": ({"path": ""}, "config section init_from: missing a required .*rules"),
    "path": ({"path": 3, "rules": ()}, "config section init_from: path=3 is not a text"),
    "no list": ({"path": "x", "rules": "image/.*"}, "init_from.rules='image/.*' are not a tuple of pairs"),
    "no pair": ({"path": "x", "rules": ("image/.*", None)}, "'image/.*' is not a pair .regular expression, path or None"),
    "a number": ({"path": "x", "rules": (("image/.*", 0.0),)}, r"\('image/.\*', 0.0\) is not a pair"),
    "no expression": ({"path": "x", "rules": (("image/(", None),)}, r"init_from.rules: 'image/\(' is not a regular exp"),
    "no group": ({"path": "x", "rules": (("image/.*", r"\1"),)}, r"'\\\\1' cannot replace 'image/.\*': invalid group"),
    "no match": ({"path": "x", "rules": (("vision/.*", None),)}, "the rule 'vision/.*' matches no parameter; parameters: im"),
    "all fresh": ({"path": "x", "rules": ((".*", None),)}, "init_from.rules leave every parameter fresh"),
    "no path": ({"path": "", "rules": ((".*", None),)}, "init_from.rules are given, but init_from.path is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_that_can_not_be_is_refused_before_anything_is_compiled(small_demo, name):
    section, message = SECTIONS[name]
    with pytest.raises(UserError, match=message) as error:
        call(make_setup, small_demo | {"init_from": section}, "top")
    assert "\n" not in str(error.value)


NO_TOKEN = {"model.image.class_tokens": 0, "model.image.pooling": "mean"}
MISFITS = {
    "longer text": ({}, {"model.text.length": 30, "data.text_length": 30},
        r"text/position is float32 \(20, 32\), this run's is float32 \(30, 32\). To leave it fresh, put the rule \('text/position', None\)"),
    "new class token": (NO_TOKEN, {}, (r"image/class_tokens is not in the checkpoint; image/position begins with 0 rows of class tokens "
        r"before \(6, 6\) positions, this run's with 1. .* the rule \('image/class_tokens\|image/position', None\)")),
    "no class token": ({}, NO_TOKEN, r"image/position begins with 1 rows of class tokens before \(6, 6\) positions, this run's with 0"),
    "wider": ({"model.embed_dim": 8}, {}, (r"image_projection/kernel is float32 \(32, 8\), this run's is float32 \(32, 16\); "
        r"text_projection/kernel .* To leave these fresh, .* \('image_projection/.\*\|text_projection/.\*', None\)")),
    "deeper": ({}, {"model.text.depth": 3}, (r"text/transformer/blocks/attention/out/bias is float32 \(2, 32\), this run's is float32 "
        r"\(3, 32\); .*; and 4 more. .*put the rule \('text/transformer/.\*', None\)")),
    "other patches": ({"model.image.patch_size": 16}, {}, r"image/patch_embedding/kernel is float32 \(768, 32\)"),
    "other words": ({"model.text.vocab_size": 700}, {}, r"text/token_embedding is float32 \(700, 32\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*list(MISFITS)[:3], *map(slow, list(MISFITS)[3:])])
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_rule_that_helps(small_demo, tmp_path, name):
    there, here, message = MISFITS[name]
    old = setup_of(small_demo, **there)
    write(tmp_path / "run", metadata=old.model.metadata, params=numbers(old.shapes["params"], 1))
    with pytest.raises(UserError, match=message) as error:
        opened(setup_of(small_demo, tmp_path / "run", **here))
    assert "\n" not in str(error.value)


def test_a_renamed_parameter_that_is_not_there_is_named_by_both_paths(small_demo, setup, donor):
    rules = ((r"(text/.*)norm/scale", r"new/\1norm/scale"),)
    with pytest.raises(UserError, match=r"text/post_norm/scale \(there new/text/post_norm/scale\) is not in the ch"):
        opened(setup, path=str(donor[0]), rules=rules)


@pytest.mark.parametrize("metadata", [{}, {"image/position": paths.Metadata(positions=(20,))}])
def test_positions_of_no_known_grid_are_refused(setup, tmp_path, metadata):
    parameters = numbers(setup.shapes["params"], 1)
    parameters["image"]["position"] = jnp.ones((21, 32))
    write(tmp_path / "run", metadata=metadata, params=parameters)
    with pytest.raises(UserError, match=r"image/position is float32 \(21, 32\), this run's is float32 \(37, 32\)"):
        opened(setup, path=str(tmp_path / "run"), rules=())


def test_places_without_a_sound_checkpoint_are_refused(setup, donor, tmp_path):
    def give(path):
        found = opened(setup, path=str(path), rules=())
        found.check(TOKENIZER)
        return found

    assert give(donor[0]).step == give(donor[0] / "checkpoints/3").step == 3
    with pytest.raises(UserError, match=f"init_from.path: {tmp_path}/none is no folder that exists"):
        give(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"init_from.path: {tmp_path}/empty holds no whole checkpoint"):
        give(tmp_path / "empty")
    shutil.copytree(donor[0], tmp_path / "run")
    largest = max((tmp_path / "run/checkpoints/3/state").rglob("*"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(UserError, match=f"init_from: the checkpoint of step 3 is damaged: {largest} has another cont"):
        give(tmp_path / "run")
    (tmp_path / "run/checkpoints/3/manifest.json").write_text("{")
    with pytest.raises(UserError, match="init_from.path: .*manifest.json is damaged"):
        give(tmp_path / "run")


def test_token_embeddings_are_taken_with_their_tokenizer_only(setup, donor):
    workdir, _ = donor
    taking = opened(setup, path=str(workdir), rules=())
    message = rf"sha256 ffffffffffff… instead of 012301230123….*tokenizer.path={workdir}/tokenizer.model, or .*'text/token_emb"
    with pytest.raises(UserError, match=message) as error:
        taking.check("ff" * 32)
    assert "\n" not in str(error.value)
    rules = (("text/token_embedding", None),)
    opened(setup, path=str(workdir), rules=rules).check("ff" * 32)


# Whole runs.


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["train/loss"]) for line in lines]


def parameters_of(workdir, step):
    checkpoints = Checkpoints(workdir)
    tree = checkpoints.manifest(step)["tree"]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {
        path.removeprefix("params/"): jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"], sharding=here)
        for path, leaf in tree.items()
        if path.startswith("params/")
    }
    return checkpoints.restore(step, {"params": paths.unflatten(target)})["params"], list(tree)


LOCKED = {"optimizer": {"learning_rate_rules": [["image/.*", 0.0], [".*", 1.0]]}}
IMAGE_ONLY = [[r"(image/.*)", r"\1"], [".*", None]]


@pytest.fixture(scope="module")
def first(small_demo, finished, tmp_path_factory):
    """(the folder of a run of 12 steps, the config of one that locks its image tower and learns the rest)."""
    folder, short = tmp_path_factory.mktemp("whole"), small_demo
    shutil.copytree(finished[0], folder / "first")
    locked = short | {
        "total_steps": 8, "ema_decay": 0.5, "seed": 5, "init_from": {"path": str(folder / "first"), "rules": IMAGE_ONLY},
        "optimizer": short["optimizer"] | LOCKED["optimizer"], "tokenizer": short["tokenizer"] | {"captions": 300},
    }  # fmt: skip
    return folder, locked


@pytest.fixture(scope="module")
def locked(first):
    """(the workdir of that run, what it printed)."""
    folder, config = first
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        train(folder / "locked", config)
    return folder / "locked", said.getvalue()


@pytest.mark.slow
@pytest.mark.smoke
def test_a_locked_image_tower_stays_what_it_was(first, locked):
    folder, config = first
    workdir, output = locked
    assert (
        f"{folder}/first/checkpoints/12 (params); fresh: image_projection/.*, objectives/.*, text/.*, text_pr" in output
    )
    given, _ = parameters_of(folder / "first", 12)
    own, tree = parameters_of(workdir, 8)
    assert_equal(own["image"], given["image"])
    assert not np.array_equal(own["text"]["position"], given["text"]["position"])
    assert "ema/image/position" in tree and not any(re.match("opt_state/.*/image/", path) for path in tree)
    assert json.loads((workdir / "config.json").read_text())["init_from"] == config["init_from"]
    assert len(losses(workdir)) == 8 and np.isfinite([loss for _, loss in losses(workdir)]).all()


@pytest.mark.slow
def test_a_resume_needs_no_donor(first, locked, tmp_path, capsys):
    shutil.copytree(locked[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/8")
    os.rename(first[0] / "first", first[0] / "away")
    moved = {"tokenizer": {"name": "kept", "path": str(first[0] / "first/tokenizer.model")}}
    try:
        with pytest.raises(UserError, match="holds a run of another config .*tokenizer.name"):
            train(tmp_path / "run", first[1] | moved)  # that its file is gone does not matter
        train(tmp_path / "run", first[1])
    finally:
        os.rename(first[0] / "away", first[0] / "first")
    output = capsys.readouterr().out
    assert "resuming at step 4 of 8" in output and "init_from" not in output
    assert losses(tmp_path / "run") == losses(locked[0])
    with pytest.raises(UserError, match="holds a run of another config .*init_from.path: "):
        train(tmp_path / "run", first[1] | {"init_from": {"path": "elsewhere", "rules": IMAGE_ONLY}})


@pytest.mark.slow
def test_a_run_begins_where_another_ended(first, small_demo, tmp_path):
    """With everything taken and a learning rate of nothing, the model stays the checkpoint's."""
    folder, _ = first
    still = small_demo["optimizer"] | {"peak_learning_rate": 0.0}
    train(tmp_path / "run", small_demo | {
        "total_steps": 2, "optimizer": still | {"warmup_steps": 1}, "init_from": {"path": str(folder / "first"), "rules": []},
    })  # fmt: skip
    assert_equal(parameters_of(tmp_path / "run", 2)[0], parameters_of(folder / "first", 12)[0])


@pytest.mark.slow
def test_another_tokenizer_is_refused_and_its_own_accepted(first, tmp_path):
    folder, config = first
    config = config | {"init_from": {"path": str(folder / "first"), "rules": []}, "total_steps": 1}
    config |= {"optimizer": config["optimizer"] | {"warmup_steps": 0}}
    with pytest.raises(UserError, match=f"tokenizer.path={folder}/first/tokenizer.model, or leave") as error:
        train(tmp_path / "run", config | {"tokenizer": config["tokenizer"] | {"vocab_size": 700}})
    file = re.search(r"tokenizer.path=(\S+),", str(error.value))[1]
    train(tmp_path / "run", config | {"tokenizer": config["tokenizer"] | {"path": file}})
    assert Checkpoints(tmp_path / "run").steps() == [1]


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_begin_as_one_does(first, locked, tmp_path):
    file = tmp_path / "two.py"
    file.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({first[1]!r})\n")
    cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [
        sys.executable,
        "-m",
        "filip_jax",
        "train",
        f"--config={file}",
        f"--workdir={tmp_path}/two",
        "--distributed",
    ]
    processes = [
        subprocess.Popen(command, env=os.environ | devices | cluster | {"JAX_PROCESS_ID": str(index)},
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [output.count("init_from: ") for output in outputs] == [1, 0]
    found, expected = ([loss for _, loss in losses(workdir)] for workdir in (tmp_path / "two", locked[0]))
    assert found[:3] == pytest.approx(expected[:3], rel=1e-4)  # then Adam makes ever more of the last digits
    assert_equal(parameters_of(tmp_path / "two", 8)[0]["image"], parameters_of(locked[0], 8)[0]["image"])
