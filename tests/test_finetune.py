"""Fine-tuning for retrieval: the step with several right answers by hand, and a run from a smaller picture's run."""

import contextlib
import io
import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, free_port, slow, small
from pairs import key, texts, write_folder
from runs import command, environment, logged

from filip_jax import load_model, paths
from filip_jax.checkpoint import Checkpoints, abstract
from filip_jax.config import load_config
from filip_jax.errors import UserError
from filip_jax.losses import token_similarity
from filip_jax.mesh import global_batch
from filip_jax.saved_config import check_same_run, save_config
from filip_jax.sections import call
from filip_jax.train.loop import train
from filip_jax.train.setup import batch_of, lower_step, make_setup

BATCH, GROUPS = 16, 6


@pytest.fixture(scope="module")
def config(demo_config):
    """Its first moment is a tenth of the gradient."""
    return small(
        demo_config,
        **{
            "optimizer.b1": 0.9, "optimizer.clip_norm": 0.0, "optimizer.warmup_steps": 0, "objectives.filip.positives": "image",
            "data.image_size": 16, "model.image.image_size": 16, "model.image.depth": 1, "model.text.depth": 1,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def batch(config):
    """Rows in random order of six images, the last of which has one row; numbers that float32 does not tell apart.

    Each row has a view of its own, since of equal views every text may be taken for the one right answer.
    """
    rng = np.random.default_rng(0)
    group = np.array([*rng.integers(0, GROUPS - 1, BATCH - 1), GROUPS - 1], np.int32)
    length = config["data"]["text_length"]
    ids = rng.integers(4, 500, (BATCH, length)) * (np.arange(length) < rng.integers(3, length, (BATCH, 1)))
    images = rng.integers(0, 256, (BATCH, 16, 16, 3), dtype=np.uint8)
    return {"image": images, "ids": ids.astype(np.int32), "group": rng.permutation(2**31 - 1 - GROUPS + group)}


def plainly(setup, parameters, batch):
    """Loss and gradient by the definition, every number of the targets by hand."""
    group, count = batch["group"].tolist(), len(batch["group"])
    of_images, of_texts = np.zeros((count, count), np.float32), np.zeros((count, count), np.float32)
    for i in range(count):
        mine = [j for j in range(count) if group[j] == group[i]]
        of_images[i, mine] = of_texts[mine, i] = 1 / len(mine)

    def loss(parameters):
        tokens = (
            setup.model.encode_image(parameters, batch["image"]),
            *setup.model.encode_text(parameters, batch["ids"]),
        )
        image_to_text, text_to_image = token_similarity(*tokens)
        scale = jnp.exp(parameters["objectives"]["filip"]["logit_scale"])
        texts = jax.nn.log_softmax(scale * image_to_text, axis=1)
        images = jax.nn.log_softmax(scale * text_to_image, axis=0)
        return -((of_images * texts).sum(axis=1).mean() + (of_texts * images).sum(axis=0).mean()) / 2

    return jax.jit(jax.value_and_grad(loss))(parameters)


def of_objective(config, **options):
    """Return the config with other options of its objective."""
    return config | {"objectives": {"filip": config["objectives"]["filip"] | options}}


def setup_of(config, devices=1, replica=1):
    section = {"mesh": {"replica": replica, "data": -1}}
    return call(make_setup, config | section, "top", devices=jax.devices()[:devices])


def stepped(setup, batch):
    """(loss, gradient by path) of the first step, as the trainer compiles it."""
    with jax.set_mesh(setup.mesh):
        state = jax.jit(setup.init, out_shardings=setup.shardings)(jax.random.key(0))
    state, metrics = lower_step(setup, state).compile()(state, global_batch(setup.mesh, batch))
    return float(metrics["train/loss"]), {p: 10 * x for p, x in paths.flatten(state["opt_state"][1].mu).items()}


@pytest.fixture(scope="module")
def expected(config, batch):
    setup = setup_of(config)
    value, gradient = plainly(setup, setup.init(jax.random.key(0))["params"], jax.tree.map(jnp.asarray, batch))
    return float(value), paths.flatten(gradient)


@pytest.mark.parametrize(
    "devices, replica, microbatches, options",
    [
        slow(1, 1, 4, {"implementation": "reference"}),
        slow(8, 1, 1, {"exchange": "gather"}),
        (8, 2, 2, {"exchange": "ring", "indices": "recompute"}),
    ],
)
def test_a_step_has_the_loss_and_gradient_of_the_definition(
    config, batch, expected, devices, replica, microbatches, options
):
    config = of_objective(config | {"microbatches": microbatches}, **options)
    loss, gradient = stepped(setup_of(config, devices, replica), batch)
    assert loss == pytest.approx(expected[0], rel=1e-5)
    worst = max(float(jnp.abs(leaf).max()) for leaf in expected[1].values())
    assert gradient.keys() == expected[1].keys() and worst > 1e-2
    for path, leaf in expected[1].items():
        np.testing.assert_allclose(gradient[path], leaf, atol=1e-5 * worst, err_msg=path)


@pytest.mark.slow
def test_pairs_train_by_the_same_program_as_before_there_was_a_choice(config):
    bare = {name: value for name, value in config["objectives"]["filip"].items() if name != "positives"}
    programs, batches = [], []
    for objective in (bare, bare | {"positives": "pair"}, bare | {"positives": "image"}):
        setup = setup_of(config | {"objectives": {"filip": objective}})
        programs.append(lower_step(setup, abstract(setup.shapes, setup.shardings)).as_text())
        batches.append(set(batch_of(setup)))
    assert programs[0] == programs[1] != programs[2]
    assert batches == [{"image", "ids"}, {"image", "ids"}, {"image", "ids", "group"}]


def test_what_positives_may_be(demo_config):
    with pytest.raises(UserError, match=r"objectives\.filip\.positives='caption' is not one of pair, image"):
        call(make_setup, of_objective(demo_config, positives="caption"), "top")
    for name in ("group_rule", "group_ids"):
        with pytest.raises(UserError, match=rf"config section objectives\.filip: .*'?{name}'?"):
            call(make_setup, of_objective(demo_config, **{name: "ignore"}), "top")
    with pytest.raises(UserError, match="config section data: .*groups"):
        call(make_setup, demo_config | {"data": demo_config["data"] | {"groups": True}}, "top")


def test_a_run_goes_on_with_its_right_answers_only(tmp_path, demo_config):
    save_config(tmp_path, demo_config)
    check_same_run(tmp_path, demo_config)
    with pytest.raises(UserError, match=r"another config \(objectives.filip.positives: 'pair' -> 'image'\)"):
        check_same_run(tmp_path, of_objective(demo_config, positives="image"))


@pytest.mark.parametrize("name, tested", [("flickr30k", 1000), ("coco", 5000)])
def test_the_papers_numbers(name, tested):
    for variant, size, patches in ((name, 392, 28), (f"{name}_base", 384, 12)):
        config = load_config(f"{ROOT}/configs/finetune.py:{variant}", ["--config.source.path=a.json"])
        image = config["model"]["image"]
        assert config["data"]["image_size"] == image["image_size"] == size == patches * image["patch_size"]
        assert config["optimizer"]["name"] == "lamb" and config["optimizer"]["weight_decay"] == 3e-4
        assert config["batch_size"] == 5120 and config["objectives"]["filip"]["positives"] == "image"
        assert config["optimizer"]["peak_learning_rate"] == pytest.approx(6.32e-4, rel=1e-3)
        assert config["total_steps"] == 3 * config["eval_every_steps"] > 80
        test = config["evals"][f"{name}_finetuned"]
        assert test["examples"] == tested and test["captions"] == 5 and test["source"]["split"] == "test"
        assert config["source"]["path"] == test["source"]["path"] == "a.json" and config["source"]["each_caption"]


def test_a_number_on_the_command_line_changes_no_other_but_what_follows_it():
    file = f"{ROOT}/configs/finetune.py:coco"
    plain, silent, smaller = (
        load_config(file, overrides)
        for overrides in ([], ["--config.eval_every_steps=0"], ["--config.batch_size=2560"])
    )
    assert silent == plain | {"eval_every_steps": 0}
    assert smaller["total_steps"] == 3 * (566_747 // 2560) == 3 * smaller["eval_every_steps"]
    assert smaller["optimizer"]["peak_learning_rate"] == pytest.approx(2e-4 * 5**0.5)
    assert smaller["optimizer"]["warmup_steps"] == smaller["total_steps"] // 10


# A whole run.


@pytest.fixture(scope="module")
def tuning(tmp_path_factory):
    """(folder, config, output) of a run of 4x4 patches on all captions of Karpathy's splits, from one of 2x2 on pairs.

    20 pictures have two captions each; two more, with 3 and 1, are the test split.
    """
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "pairs").mkdir()
    write_folder(folder / "pairs", [range(22)])
    said = [list(texts(n).values()) for n in range(20)] + [["picture 20", "Bild 20", "text 20"], ["picture 21"]]
    images = [
        {
            "filename": f"{key(n)}.png", "split": "test" if n >= 20 else "train",
            "sentences": [{"raw": text, "sentid": 10 * n + k} for k, text in enumerate(some)],
        }
        for n, some in enumerate(said)
    ]  # fmt: skip
    (folder / "splits.json").write_text(json.dumps({"images": images}))

    def shrunk(name, size, overrides, **more):
        config = load_config(f"{ROOT}/configs/{name}", [f"--config.{key}={value}" for key, value in overrides.items()])
        changes = {
            "tokenizer.vocab_size": 300, "model.text.vocab_size": 300, "data.text_length": 12, "model.text.length": 12,
            "data.image_size": size, "model.image.image_size": size, "model.image.patch_size": 8, "model.remat": False,
            "model.image.depth": 1, "model.text.depth": 1, "data.workers": 0, "total_steps": 3,
            "optimizer.warmup_steps": 1, "log_every_steps": 1,
        }  # fmt: skip
        return small(config, **changes | more)

    of_pairs = {"source.path": folder / "pairs", "model.image.patch_dropout": 0.5}
    with pytest.warns(match="keep_tokens=0.25 at batch_size=16"):
        train(folder / "first", shrunk("filip.py:large", 16, of_pairs))
    of_splits = {
        "source.path": folder / "splits.json", "source.images": folder / "pairs",
        "init_from.path": folder / "first", "tokenizer.path": folder / "first/tokenizer.model",
    }  # fmt: skip
    exact = {
        "objectives.filip.keep_tokens": 1.0,
        "objectives.filip.dtype": "float32",
    }  # which do not depend on the number of devices
    more = {"evals.flickr30k_finetuned.examples": 2, "eval_every_steps": 3} | exact
    tuned, said = shrunk("finetune.py:flickr30k", 32, of_splits, **more), io.StringIO()
    with contextlib.redirect_stdout(said):
        train(folder / "tuned", tuned)
    return folder, tuned, said.getvalue()


@pytest.mark.slow
def test_a_run_is_tuned_on_all_captions_at_more_pixels_and_ranked(tuning):
    folder, _, output = tuning
    name = "flickr30k_finetuned"
    assert "image/position: resized from 2x2 to 4x4" in output and "; fresh:" not in output
    numbers = json.loads((folder / "tuned/evals.json").read_text())["steps"]["3"]
    assert numbers[f"{name}/images"] == 2 and numbers[f"{name}/texts"] == 4
    assert {f"{name}/{way}_R@1" for way in ("image_to_text", "text_to_image")} < set(numbers)
    assert len(logged(folder / "tuned")) == 3 and np.isfinite([loss for _, loss in logged(folder / "tuned")]).all()
    assert load_model(folder / "tuned").encode_image(np.zeros((1, 40, 40, 3), np.uint8)).shape == (1, 16, 16)
    before, after = (Checkpoints(folder / run).manifest(3)["tree"] for run in ("first", "tuned"))
    assert (before["params/image/position"]["shape"], after["params/image/position"]["shape"]) == ([5, 32], [17, 32])


@pytest.mark.slow
def test_two_processes_tune_as_one_does(tuning):
    """Each knows the images of its own rows only."""
    folder, config, _ = tuning
    cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            command(folder / "two", config | {"eval_every_steps": 0}, "--distributed"),
            env=environment(1, JAX_PROCESS_ID=str(index), **cluster),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    found, expected = ([loss for _, loss in logged(folder / name)] for name in ("two", "tuned"))
    assert found == pytest.approx(expected, rel=1e-4)
