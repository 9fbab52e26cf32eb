"""The linear probe: its classifiers against scikit-learn and by hand, its features, its choices, the shipped config."""

import dataclasses
import io
import re
import tarfile
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, make_devices_mesh, slow
from flax import nnx
from PIL import Image
from sklearn.linear_model import LogisticRegression
from test_models import CONFIG, IMAGES, config

from filip_jax import progress
from filip_jax.config import load_config
from filip_jax.data.sources import make_source
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.evals import linear_probe, logistic
from filip_jax.evals.run import check_evals, open_evals, run_baselines, run_evals
from filip_jax.inference import Embedder
from filip_jax.inference.ranking import ranks
from filip_jax.models import make_model
from filip_jax.models.dual_encoder import DualEncoder
from filip_jax.objectives.total import make_objectives

NAMES = ["red", "green", "blue", "white", "black", "grey"]
COLOURS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200), (220, 220, 220), (20, 20, 20), (120, 120, 120)])
MESHES = [(1, 1), (2, 4)]
rng = np.random.default_rng(0)
FEATURES = (rng.normal(size=(300, 10)) * np.linspace(0.5, 2, 10)).astype(np.float32)
LABELS = (FEATURES @ rng.normal(size=(10, 5)) + 2 * rng.gumbel(size=(300, 5))).argmax(axis=1).astype(np.int32)


def fitted(mesh, chosen, c, **options):
    """(classifier, iterations, converged) on chunks of 128 rows."""
    examples = logistic.put_examples(FEATURES, LABELS, make_devices_mesh(*mesh))
    options = dict(max_iterations=1000, tolerance=1e-6, advance=lambda count: None) | options
    return logistic.fit(examples, chosen, 5, c, **options)


@pytest.mark.parametrize("mesh", [slow((1, 1)), (2, 4), slow((1, 2))])
def test_the_minimum_is_scikit_learns(mesh, monkeypatch):
    monkeypatch.setattr(logistic, "ROWS", 128)
    chosen = np.arange(300) % 7 > 0  # those that are not chosen, and the 84 places behind the last, change nothing
    for c in (1e-3, 0.1, 3.0):
        expected = LogisticRegression(C=c, max_iter=10_000, tol=1e-9)
        expected.fit(FEATURES[chosen].astype(np.float64), LABELS[chosen])
        classifier, iterations, converged = fitted(mesh, chosen, c)
        assert converged and 5 < iterations < 1000
        size = np.abs(expected.coef_).max()
        np.testing.assert_allclose(classifier["weight"].T, expected.coef_, atol=1e-3 * size)
        np.testing.assert_allclose(classifier["bias"], expected.intercept_, atol=1e-3)


def test_the_objective_is_the_definition():
    weight, bias = rng.normal(size=(10, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    scores = FEATURES.astype(np.float64) @ weight + bias
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(300), LABELS]
    weights = (np.arange(300) < 200).astype(np.float32)
    examples = logistic.put_examples(FEATURES, LABELS, make_devices_mesh(1, 8))
    data = (examples.features, examples.labels, examples.spread(weights))
    found = logistic._objective({"weight": weight, "bias": bias}, *data, 0.5)
    assert float(found) == pytest.approx(losses[:200].mean() + 0.25 * (weight.astype(np.float64) ** 2).sum(), rel=1e-5)


def test_a_fit_that_is_cut_short_says_so_and_tells_its_progress():
    told = []
    _, iterations, converged = fitted((1, 1), np.ones(300, bool), 1.0, max_iterations=27, advance=told.append)
    assert (iterations, converged, told) == (27, False, [20, 7])


def test_ranks_are_those_of_all_evaluations(monkeypatch):
    monkeypatch.setattr(logistic, "ROWS", 128)
    weight = rng.normal(size=(10, 5)).astype(np.float32).round()
    weight[:, 3] = weight[:, 1]  # ties
    for bias in (np.zeros(5, np.float32), np.array([0, 0, np.nan, 0, 0], np.float32)):
        classifier = {"weight": weight, "bias": bias}
        found = logistic.ranks(classifier, logistic.put_examples(FEATURES, LABELS, make_devices_mesh(1, 2)))
        assert found.tolist() == ranks(FEATURES @ weight + bias, LABELS).tolist()


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_features_are_the_mean_of_the_patches_before_the_shared_space(pooling):
    options = config(image__class_tokens=int(pooling == "class"), image__pooling=pooling)
    network = DualEncoder(needs=frozenset({"tokens"}), **options, rngs=nnx.Rngs(0))
    parameters = nnx.to_pure_dict(nnx.state(network))
    model = make_model({"tokens"}, **options)
    features = network.image(IMAGES)
    patches = np.asarray(features.tokens)
    assert patches.shape == (3, 9, 16)
    found, mean = model.image_features(parameters, IMAGES), sum(patches[:, n] for n in range(9)) / 9
    np.testing.assert_allclose(found, mean, atol=1e-6)
    pooled = np.asarray(model.image_features(parameters, IMAGES, "global"))
    np.testing.assert_allclose(pooled, features.pooled, atol=1e-6)
    assert np.allclose(pooled, mean, atol=1e-6) == (pooling == "mean")


def test_the_validation_split_is_a_tenth_of_each_class_always_the_same():
    labels = rng.permutation(np.repeat(np.arange(4), [200, 100, 50, 7]))
    held_out = linear_probe.validation_split(labels)
    assert held_out.sum() == 36 and [held_out[labels == n].sum() for n in range(3)] == [20, 10, 5]
    assert np.array_equal(held_out, linear_probe.validation_split(labels.copy()))
    assert np.flatnonzero(linear_probe.validation_split(np.arange(40) % 2)).tolist() == [16, 24, 25, 37]
    with pytest.raises(UserError, match="chooses the regularisation, but there are 9; give one value"):
        linear_probe.validation_split(labels[:9])


def test_the_search_finds_an_eighth_of_a_power_and_of_equals_the_smallest():
    tried = []

    def right(c):
        tried.append(c)
        return -round(abs(8 * np.log10(c) - 13))

    assert linear_probe.best_regularisation(right) == pytest.approx(10 ** (13 / 8)) and len(set(tried)) == 15
    assert linear_probe.best_regularisation(lambda c: c) == pytest.approx(1e6)
    assert linear_probe.best_regularisation(lambda c: 0) == pytest.approx(1e-6)
    assert linear_probe.best_regularisation(lambda c: -abs(c - 3), (5.0, 1.0, 0.1)) == 1.0


class Silent(Tokenizer):
    """One that knows no word."""

    def __init__(self):
        pass

    def encode(self, texts, length):
        return np.zeros((len(texts), length), np.int32), np.zeros(len(texts), bool)


@cache
def toy_parameters():
    return jax.jit(make_model({"tokens"}, **CONFIG).init)(jax.random.key(0))


def toy_model(mesh=(1, 1)):
    """A small tower as it is born."""
    objectives = make_objectives({"filip": {"kind": "filip", "weight": 1.0}})
    model = make_model(objectives.needs, **CONFIG)
    sizes = dict(image_size=12, text_length=6, batch_size=16)
    parameters = jax.tree.map(lambda leaf: leaf, toy_parameters())
    return Embedder(model, objectives, Silent(), parameters, 7, **sizes, mesh=make_devices_mesh(*mesh))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Coloured pictures in the layout of CLIP_benchmark's folders: 48 for training, 30 for test."""
    folder = tmp_path_factory.mktemp("root") / "wds_vtab-cifar10"
    for split, count in (("train", 48), ("test", 30)):
        (folder / split).mkdir(parents=True)
        with tarfile.open(folder / split / "0.tar", "w") as tar:
            for n in range(count):
                noisy = COLOURS[n % 6] + rng.normal(size=(14, 20, 3)) * 15
                file = io.BytesIO()
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "PNG")
                for kind, content in (("png", file.getvalue()), ("cls", str(n % 6).encode())):
                    info = tarfile.TarInfo(f"{n:04}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    (folder / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    return folder.parent


def section(root, split, **changes):
    folder = root / "wds_vtab-cifar10"
    return (
        dict(name="webdataset", path=str(folder / split), label="cls", class_names=str(folder / "classnames.txt"))
        | changes
    )


@pytest.mark.slow
def test_a_separable_set_of_the_shipped_config_is_separated_on_any_devices(root, tmp_path):
    evals = load_config(f"{ROOT / 'configs/eval/linear_probe.py'}:cifar10", [f"--config.root={root}"])["evals"]
    opened = open_evals(evals)
    found = [run_evals(toy_model(mesh), opened, tmp_path) for mesh in MESHES]
    for metrics in found:
        assert (
            metrics["cifar10_probe/top1"] == metrics["cifar10_probe/per_class"] == metrics["cifar10_probe/top5"] == 1.0
        )
        assert (metrics["cifar10_probe/images"], metrics["cifar10_probe/training_images"]) == (30, 48)
        assert 0.88 < metrics["cifar10_probe/top1_low"] < 1 and metrics["cifar10_probe/converged"] == 1
        assert metrics["cifar10_probe/C"] == found[0]["cifar10_probe/C"]
    assert run_baselines(opened) == {"chance": {"cifar10_probe/top1": 1 / 6, "cifar10_probe/top5": 5 / 6}}


def test_progress_goes_to_a_hundred_percent_and_another_process_says_nothing(root, monkeypatch, capfd):
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    linear_probe.by_lbfgs(toy_model(), make_source(section(root, "train")), "tokens", max_iterations=50)
    lines = [
        line for line in capfd.readouterr().err.splitlines() if line.startswith("linear probe, iterations at most")
    ]
    percents = [int(re.search(r"\((\d+)%\)", line)[1]) for line in lines]
    assert len(lines) > 16 and percents == sorted(percents) and percents[-1] == 100 and "/800 " in lines[0]
    assert all(re.search(r"ETA \d+:\d\d:\d\d$", line) for line in lines)
    monkeypatch.setattr(progress, "_silent", False)
    progress.silence()
    linear_probe.by_lbfgs(toy_model(), make_source(section(root, "train")), "tokens", max_iterations=50)
    assert not capfd.readouterr().err


def test_a_blind_model_finds_nothing_and_one_value_of_c_is_taken_as_it_is(root):
    model = toy_model()
    model.parameters["image"]["post_norm"]["scale"] *= 0
    found = linear_probe.evaluate(
        model,
        make_source(section(root, "test")),
        root,
        training=section(root, "train"),
        protocol=dict(name="lbfgs", regularisation=0.5),
    )
    assert found["top1"] == 0 and found["C"] == 0.5


def test_the_shipped_config_names_the_papers_sets():
    evals = load_config(str(ROOT / "configs/eval/linear_probe.py"))["evals"]
    check_evals(evals)
    zero_shot = load_config(str(ROOT / "configs/eval/clip_benchmark.py"))["evals"]
    tfds = load_config(str(ROOT / "configs/eval/tfds.py"))["evals"]
    sources = {f"{n}_probe": z["source"] for n, z in zero_shot.items()} | {"sun397_probe": tfds["sun397"]["source"]}
    assert {name: each["source"] for name, each in evals.items()} == sources
    assert all(
        each["training"] == each["source"] | dict(split="train") or each["training"]["path"].endswith("/train")
        for each in evals.values()
    )
    assert evals["imagenet_probe"]["training"]["path"] == "clip_benchmark/wds_imagenet1k/train"
    names = {name: each["protocol"]["name"] for name, each in evals.items()}
    assert names.pop("imagenet_probe") == "sgd" and set(names.values()) == {"lbfgs"} and len(names) == 11
    assert check_evals(load_config(f"{ROOT / 'configs/eval/linear_probe.py'}:imagenet")["evals"]) is None


ERRORS = {
    "other classes": (dict(class_names="OTHER"), {}, "source has 'grey' as class 5, training 'gray' as class 5"),
    "fewer classes": (dict(class_names="FEWER"), {}, "source has 6 classes, training 5"),
    "the source itself": (dict(path="TEST"), {}, "training is the source itself"),
    "no labels": (dict(label="", class_names=""), {}, "class names; training has none"),
    "no data": (dict(path="none"), {}, "linear_probe.training: "),
    "pooling": ({}, dict(pooling="mean", protocol="sgd"), "linear_probe.pooling='mean' is not one of tokens, global"),
    "protocol": ({}, dict(protocol=dict(name="ridge")), "protocol.name='ridge' is not one of lbfgs, sgd"),
    "protocol's name": ({}, dict(protocol="svm"), "protocol.name='svm' is not one of lbfgs, sgd"),
    "option": (
        {},
        dict(protocol=dict(name="lbfgs", epochs=3)),
        "its keys are regularisation, max_iterations, tolerance",
    ),
    "text": ({}, dict(protocol=dict(name="lbfgs", regularisation="1")), "regularisation='1' is not a number above 0"),
    "negative": (
        {},
        dict(protocol=dict(name="lbfgs", regularisation=(1.0, -1.0))),
        "regularisation=-1.0 is not a number",
    ),
    "too short": ({}, dict(protocol=dict(name="sgd", epochs=10)), "epochs=10 must be above warmup_epochs=10"),
    "momentum": ({}, dict(protocol=dict(name="sgd", momentum=1.0)), "momentum=1.0 must be at least 0 and below 1"),
    "crop": ({}, dict(protocol=dict(name="sgd", augment=dict(min_area=2.0))), "augment.min_area=2.0 must be above 0"),
    "no iteration": ({}, dict(protocol=dict(name="lbfgs", max_iterations=0)), "max_iterations=0 must be at least 1"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_probe_that_can_not_be_is_refused(name, root, tmp_path):
    changes, options, message = ERRORS[name]
    (tmp_path / "OTHER").write_text("\n".join([*NAMES[:5], "gray"]))
    (tmp_path / "FEWER").write_text("\n".join(NAMES[:5]))
    if changes.get("class_names"):
        changes = changes | {"class_names": str(tmp_path / changes["class_names"])}
    training = section(root, "test") if changes.get("path") == "TEST" else section(root, "train", **changes)
    if not training["label"]:
        training = {key: value for key, value in training.items() if value} | {"caption_keys": ("cls",)}
    with pytest.raises(UserError, match=message):
        linear_probe.evaluate(toy_model(), make_source(section(root, "test")), tmp_path, training=training, **options)


@pytest.mark.parametrize("mesh", [*MESHES, slow((1, 2))])
def test_sgd_behind_a_normalised_batch_is_the_definition(mesh):
    """Five steps by hand: batch statistics, momentum, decay, the learning rate, and the running statistics at the end."""
    options = dict(peak_learning_rate=0.5, momentum=0.9, weight_decay=0.01, warmup_steps=2, total_steps=5)
    sgd = logistic.Sgd(10, 5, make_devices_mesh(*mesh), **options)
    weight, bias, mean, variance = np.zeros((10, 5)), np.zeros(5), np.zeros(10), np.ones(10)
    speed = [np.zeros((10, 5)), np.zeros(5)]
    rates = [0.25, 0.375, 0.5, *(0.25 * (1 + np.cos(np.pi * n / 3)) for n in (1, 2))]
    for n, rate in enumerate(rates):
        x, label = FEATURES[n * 40 : n * 40 + 40].astype(np.float64), LABELS[n * 40 : n * 40 + 40]
        sgd.step(jnp.asarray(x, jnp.float32), jnp.asarray(label))
        z = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-6)
        shares = np.exp(z @ weight + bias)
        wrong = shares / shares.sum(axis=1, keepdims=True) - np.eye(5)[label]
        speed[0] = 0.9 * speed[0] + z.T @ wrong / 40 + 0.01 * weight
        speed[1] = 0.9 * speed[1] + wrong.mean(axis=0) + 0.01 * bias
        weight, bias = weight - rate * speed[0], bias - rate * speed[1]
        mean, variance = 0.9 * mean + 0.1 * x.mean(axis=0), 0.9 * variance + 0.1 * x.var(axis=0, ddof=1)
    np.testing.assert_allclose(sgd.state[2]["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(sgd.state[2]["variance"], variance, rtol=1e-5)
    found, expected = sgd.classifier, (FEATURES - mean) / np.sqrt(variance + 1e-6) @ weight + bias
    np.testing.assert_allclose(FEATURES @ found["weight"] + found["bias"], expected, atol=1e-4)


@pytest.mark.slow
def test_sgd_separates_the_toy_the_same_on_any_devices_and_threads(root):
    found = []
    for mesh, threads in ((1, 1), 1), ((2, 4), 3):
        protocol = dict(name="sgd", epochs=30, warmup_epochs=2, batch_size=16, base_learning_rate=1.0, threads=threads)
        source, training = make_source(section(root, "test")), section(root, "train")
        found.append(linear_probe.evaluate(toy_model(mesh), source, root, training=training, protocol=protocol))
    assert found[0] == found[1]
    assert found[0]["top1"] == 1.0 and found[0]["steps"] == 90 and found[0]["training_images"] == 48


def test_records_that_sgd_can_not_use_end_it(root):
    class Torn:
        """The toy's training images, of which one is torn, or has no label."""

        def __init__(self, **changes):
            self.whole, self.changes = make_source(section(root, "train")), changes
            self.class_names, self.shard_sizes = self.whole.class_names, self.whole.shard_sizes
            self.identity, self.seen = self.whole.identity, self.whole.seen

        def __len__(self):
            return len(self.whole)

        def __getitem__(self, index):
            return dataclasses.replace(self.whole[index], **(self.changes if index == 5 else {}))

        def captions(self, index):
            return self.whole.captions(index)

        def where(self, index):
            return self.whole.where(index)

    for source, message in (
        (Torn(image=b"torn"), "training: record .*0.tar 0005: no picture that can be read"),
        (Torn(label=None), "needs a source of labelled images; record 5 has no label"),
    ):
        with pytest.raises(UserError, match=message):
            linear_probe.by_sgd(toy_model(), source, "tokens", epochs=2, warmup_epochs=0, batch_size=16)
