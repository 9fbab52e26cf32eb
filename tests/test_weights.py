"""Public weights: each family's tiny models compute what the public code does, and every tensor comes back bit by bit."""

import functools
import hashlib
import json
import re
import shutil

import golden_weights
import jax
import numpy as np
import pytest
from conftest import slow
from flax import nnx
from golden_weights import FOLDERS, OPTIONS
from PIL import Image

from filip_jax.cli import main
from filip_jax.data.preprocess import centre_view
from filip_jax.errors import UserError
from filip_jax.inference import load_model
from filip_jax.models import make_model
from filip_jax.models.dual_encoder import DualEncoder
from filip_jax.paths import flatten, unflatten
from filip_jax.sections import call
from filip_jax.train.init_from import open_donors
from filip_jax.weights.families import FAMILIES, hf_clip, hf_siglip
from filip_jax.weights.load import import_weights
from filip_jax.weights.mapping import LAYER, Rule, give, take
from filip_jax.weights.plan import ModelSource
from filip_jax.weights.positions import at_size
from filip_jax.weights.stored import Stored
from filip_jax.weights.tensors import open_weights, weights_file

imported = golden_weights.imported
FAST, FAST_EACH_WAY = ("hf_siglip_two", "open_clip_epoch"), ("hf_clip_gelu", "hf_dinov2_sharded", "hf_vit_classifier")
NAMES = [name if name in FAST else slow(name) for name in golden_weights.NAMES]
EACH_WAY = [name if name in FAST_EACH_WAY else slow(name) for name in golden_weights.NAMES]
SIZES = {  # of images, of which the goldens hold what the public code makes
    "hf_clip_gelu": 63, "hf_dinov2_small": 24, "hf_dinov2_with_registers_wide": 28, "hf_siglip_two": 28, "hf_vit_small": 56,
    "open_clip_gelu": 24, "open_clip_quickgelu": 63,
}  # fmt: skip
SIGNIFICANT = 20  # times the tolerance: a mutation that is noticed


@pytest.fixture(scope="module")
def loaded(imported):
    """Return a function: name of a golden folder -> (model, its config, golden outputs), each made once."""

    @functools.cache
    def get(name):
        config = json.loads((imported(name) / "config.json").read_text())
        return load_model(imported(name)), config, np.load(FOLDERS / name / "outputs.npz")

    return get


def features(config, needs, parameters, golden):
    """What our towers give of a golden folder's images and ids, before and behind the projection."""
    module = nnx.eval_shape(lambda: call(DualEncoder, config["model"], "model", needs=needs, rngs=nnx.Rngs(0)))
    graphdef, _ = nnx.split(module)
    towers = {name: value for name, value in parameters.items() if name != "objectives"}

    @jax.jit
    def encode(towers, images, ids):
        state = nnx.restore_int_paths(towers)
        module = nnx.merge(graphdef, state)
        image = module.image(images)
        found = dict(image_tokens=image.tokens, image_pooled=image.pooled)
        found["image_features"] = module.project_image(image, "global")[:, 0]
        if ids is not None:
            text = module.text(ids)
            found |= dict(text_tokens=text.tokens, text_pooled=text.pooled)
            found["text_features"] = module.project_text(text, "global")[0][:, 0]
        return found

    return encode(towers, golden["images"], golden.get("ids"))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def differences(found, golden):
    """The largest difference of each output; of features, of vectors of length 1."""
    gaps = {}
    for name, ours in found.items():
        if name not in golden:
            continue
        theirs = golden[name]
        if name == "image_tokens":  # class tokens and registers come first
            theirs = theirs[:, theirs.shape[1] - ours.shape[1] :]
        gaps[name] = np.abs((unit(theirs) if name.endswith("features") else theirs) - ours).max()
    return gaps


def tolerance(name):
    return 1e-4 if "siglip" in name else 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_towers_compute_what_the_public_code_does(name, loaded):
    model, config, golden = loaded(name)
    found = features(config, model.objectives.needs, model.parameters, golden)
    gaps = differences(found, golden)
    assert gaps.keys() >= {"image_tokens", "image_pooled"} and ("ids" not in golden or "text_pooled" in gaps)
    assert max(gaps.values()) < tolerance(name), gaps
    if "logits" in golden:
        own = next(iter(model.parameters["objectives"].values()))
        logits = np.exp(own["logit_scale"]) * found["image_features"] @ found["text_features"].T + own.get("bias", 0.0)
        assert np.abs(logits - golden["logits"]).max() < 20 * tolerance(name)


@pytest.mark.parametrize("name", NAMES)
def test_texts_and_pictures_become_what_the_public_code_makes_of_them(name, loaded):
    model, _, golden = loaded(name)
    if "texts" in golden:
        ids, _ = model.tokenizer.encode(list(golden["texts"]), model.text_length)
        np.testing.assert_array_equal(ids, golden["ids"][:-1])
    view = centre_view(Image.fromarray(golden["picture"]), model.image_size, model.framing)
    assert np.abs(np.int16(view) - np.int16(golden["picture_resized"])).max() <= 1  # of 255


def planned(name, image_size=0, **changes):
    """Return the plan of a golden folder for images of a size, and its positions; `changes`: of its preprocessing."""
    folder = FOLDERS / name
    configs = {file.name: json.loads(file.read_text()) for file in folder.glob("*config.json")}
    configs.get("preprocessor_config.json", {}).update(changes)
    family = next(family for family in FAMILIES.values() if family.origin(configs))
    with open_weights(weights_file(folder, family.files)) as weights:
        plan, tensors = at_size(
            family.plan(ModelSource(folder, folder, configs, weights.tensors)), weights.tensors, image_size
        )
        [rule] = [rule for rule in plan.rules if rule.path == "image/position"]
        return plan, tensors[rule.names[0]].read()


@pytest.mark.parametrize("name, size", SIZES.items())
def test_positions_are_resampled_as_the_public_code_does(name, size):
    plan, position = planned(name, size)
    theirs = np.load(FOLDERS / name / "outputs.npz")[f"positions_at_{size}"]
    np.testing.assert_allclose(position.reshape(theirs.shape), theirs, rtol=0, atol=1e-6)
    assert plan.image["image_size"] == size and "--image_size" in plan.evidence[-2].origin


def test_images_are_as_large_as_the_preprocessing_makes_them():
    """The preprocessing decides where it names a size that patches divide; elsewhere the grid of the positions does."""
    assert planned("hf_dinov2_small")[0].image["image_size"] == 40
    plan, position = planned("hf_dinov2_small", size=dict(shortest_edge=32), crop_size=dict(height=24, width=24))
    assert plan.image["image_size"] == 24 and position.shape == (1, 10, 36) and plan.image["crop"] == 0.75
    plan, position = planned("hf_dinov2_small", crop_size=dict(height=30, width=30))
    assert plan.image["image_size"] == 40 and position.shape == (1, 26, 36) and "30 pixels" in plan.differs[0]


@pytest.mark.slow
@pytest.mark.parametrize("name, size", SIZES.items())
def test_images_of_another_size_become_what_the_public_code_makes_of_them(name, size, tmp_path):
    import_weights(str(FOLDERS / name), str(tmp_path / "run"), image_size=size)
    model, config = load_model(tmp_path / "run"), json.loads((tmp_path / "run/config.json").read_text())
    golden = np.load(FOLDERS / name / "outputs.npz")
    images = np.pad(golden["images"], ((0, 0), (0, size), (0, size), (0, 0)), mode="wrap")[:, :size, :size]
    found = features(config, model.objectives.needs, model.parameters, {"images": images})
    assert differences(found, {"image_tokens": golden[f"at_{size}"]})["image_tokens"] < tolerance(name)
    assert model.image_size == size


@pytest.mark.parametrize("name", EACH_WAY)
def test_every_tensor_comes_back_bit_by_bit(name, monkeypatch):
    """The family's table, read backwards, gives each tensor in its own type; what no tower has is named."""
    seen = {}

    def remember(rule, shape, tensors):
        seen.setdefault("tensors", {name: stored.read() for name, stored in tensors.items()})  # while the file is open
        seen.setdefault("rules", []).append(rule)
        return take(rule, shape, tensors)

    def compare(place, imported):
        found = {}
        for rule in seen["rules"]:
            found |= give(rule, imported.parameters[rule.path])
        left = seen["tensors"].keys() - found.keys()
        assert (
            found.keys() <= seen["tensors"].keys() and left == imported.notes["unused"].keys() & seen["tensors"].keys()
        )
        for name, array in found.items():
            theirs = seen["tensors"][name]
            assert array.astype(theirs.dtype).tobytes() == theirs.tobytes() and array.shape == theirs.shape, name
        seen["compared"] = len(found)

    monkeypatch.setattr("filip_jax.weights.load.take", remember)
    monkeypatch.setattr("filip_jax.weights.load._fresh", lambda *arguments: {})  # of which nothing is compared
    monkeypatch.setattr("filip_jax.weights.load.write_workdir", compare)
    import_weights(str(FOLDERS / name), "/nowhere/that/is", **OPTIONS.get(name, {}))
    assert seen["compared"] > 30


def swapped(parameters, path, change):
    leaves = flatten(parameters)
    return unflatten(leaves | {path: change(np.array(leaves[path]))})


def swap_q_and_k(kernel):
    q, k, v = np.split(kernel, 3, axis=-1)
    return np.concatenate([k, q, v], axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_clip_gelu", "hf_siglip_two"])
def test_a_wrong_mapping_or_option_is_noticed(name, loaded):
    model, config, golden = loaded(name)

    def largest(config, parameters):
        return max(differences(features(config, model.objectives.needs, parameters, golden), golden).values())

    for side in ("image", "text"):
        qkv, position = f"{side}/transformer/blocks/attention/qkv/kernel", f"{side}/position"
        for path, change in ((qkv, swap_q_and_k), (position, lambda x: np.roll(x, 1, axis=0))):
            assert largest(config, swapped(model.parameters, path, change)) > SIGNIFICANT * tolerance(name), path
        epsilon = config["model"][side]["norm_epsilon"]
        for option, value in (("norm_epsilon", 10 * epsilon), ("activation", "quick_gelu")):
            tower = config["model"][side] | {option: value}
            other = config | {"model": config["model"] | {side: tower}}
            assert largest(other, model.parameters) > 2 * tolerance(name), (side, option)


@pytest.mark.slow
def test_a_workdir_says_where_its_weights_are_from(tmp_path, capsys):
    folder = shutil.copytree(FOLDERS / "hf_vit_small", tmp_path / "vit")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: a/b\n---\n# ViT\nlicense: other\n")
    (folder / "LICENSE").write_text("Apache")
    import_weights(str(folder), str(tmp_path / "run"))
    origin = json.loads((tmp_path / "run/origin.json").read_text())
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert origin["files"] == {"model.safetensors": sha256}
    assert origin["license"] == {"license": "apache-2.0", "base_model": "a/b", "files": "LICENSE"}
    copied = {"README.md", "LICENSE", "config.json", "preprocessor_config.json"}
    assert {path.name for path in (tmp_path / "run/source").iterdir()} == copied
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "run"), "--verify"]) == 0
    said = capsys.readouterr().out
    assert sha256 in said and "apache-2.0" in said and "verified: " in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_dinov2_with_registers_wide", "hf_clip_gelu"])
def test_a_run_starts_from_an_imported_image_tower(name, imported):
    """The run compares tokens, with fresh projections, and has a text tower of its own."""
    config = json.loads((imported(name) / "config.json").read_text())
    text = dict(kind="transformer", vocab_size=64, length=9, width=16, depth=1, heads=2, activation="gelu")
    model = make_model({"tokens"}, **config["model"] | dict(embed_dim=8, text=text))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rules = (("(image/.*)", r"\1"), (".*", None))
    [donor] = open_donors(dict(path=str(imported(name)), rules=rules), {"params": shapes}, model.metadata)
    assert set(donor.origins) == {f"params/{path}" for path in flatten(shapes) if path.startswith("image/")}


def test_a_table_has_each_parameter_and_name_once():
    """Otherwise it could not be read in both directions."""
    for rules in (hf_clip.RULES, hf_siglip.RULES):
        paths, names = [rule.path for rule in rules], [name for rule in rules for name in rule.names]
        assert len(set(paths)) == len(paths) and len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in FAMILIES)


def test_layers_are_counted_by_their_shape():
    rule = Rule("a", (f"x.{LAYER}.w",))
    tensors = {f"x.{n}.w": Stored((2,), "float32", lambda n=n: np.full(2, n, np.float32)) for n in range(3)}
    assert take(rule, (3, 2), tensors).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert list(give(rule, np.zeros((2, 5)))) == ["x.0.w", "x.1.w"]
    tensors["x.1.w"] = Stored((2,), "float32", lambda: np.float32([0, np.nan]))
    with pytest.raises(UserError, match="'x.1.w' holds NaN"):
        take(rule, (3, 2), tensors)
