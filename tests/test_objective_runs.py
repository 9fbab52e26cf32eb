"""A run with an objective of one's own: heads, state, a teacher and a scale from the first batch; it goes on bit for bit."""

import inspect as of_python
import io
import json
import shutil
import subprocess
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import free_port, small
from PIL import Image
from runs import command, environment

from filip_jax import paths
from filip_jax.checkpoint import Checkpoints
from filip_jax.checkpoint.inspect import inspect
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError
from filip_jax.objectives import OBJECTIVES
from filip_jax.objectives.objective import Objective, Parameter, Teacher
from filip_jax.objectives.total import make_objectives
from filip_jax.sections import call
from filip_jax.train.loop import train
from filip_jax.train.setup import batch_of, make_setup


def imitate(*, decay: float = 0.5, parts: tuple = ("image", "image_pooled_projection", "objectives")) -> Objective:
    """Return an objective that predicts a teacher's vectors of other views by a head, and remembers how well it did."""

    def loss(parameters, state, encoded, teacher):
        ours, theirs = (
            encoded.views[0].image_pooled @ parameters["head"],
            encoded.teacher.image_pooled @ teacher["head"],
        )
        value = jnp.square(ours - theirs + 0.1).mean()
        error = 0.9 * state["error"] + 0.1 * jax.lax.stop_gradient(value)
        return value, {"error": error}, {"error": error}

    head = Parameter(lambda key, sizes: jax.random.normal(key, (sizes["embed_dim"], 8)))
    return Objective(
        needs=frozenset({"pooled", "views"}),
        parameters={"head": head},
        local=loss,
        state={"error": 1.0},
        teacher=Teacher(decay, parts),
    )


@pytest.fixture(scope="module")
def pairs(small_demo, tmp_path_factory):
    """A folder of 24 scenes; two of three have a second caption."""
    folder, scenes = tmp_path_factory.mktemp("pairs"), make_source(small_demo["source"])
    for n in range(24):
        record, picture = scenes[n], io.BytesIO()
        Image.fromarray(np.asarray(record.image)).save(picture, "PNG")
        (folder / f"{n:02d}.png").write_bytes(picture.getvalue())
        (folder / f"{n:02d}.txt").write_text(record.caption)
        if n % 3:
            (folder / f"{n:02d}.en.txt").write_text(f"a picture of {record.caption}")
    return dict(name="folder", path=str(folder), caption_keys=("txt", "en.txt"))


@pytest.fixture
def config(small_demo, pairs, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "imitate", imitate)
    filip = small_demo["objectives"]["filip"] | {
        "logit_scale_from_first_batch": True,
        "weight": ((0.0, 0.5), (1.0, 1.0)),
    }
    objectives = {"filip": filip, "head": {"kind": "imitate", "weight": 1.0}}
    changes = {"data.captions_per_image": 2, "data.views": 2, "optimizer.eps": 1e-2}
    return small(small_demo, total_steps=6, **changes) | {"objectives": objectives, "source": pairs}


def lines(workdir):
    """The numbers of each logged step, without times."""
    of_all = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    timed = ("time/", "data/", "train/samples_per_second", "train/batch_time")
    return [{key: value for key, value in line.items() if not key.startswith(timed)} for line in of_all]


def arrays(workdir, step):
    """The parameters, their copies and what is not trained of a checkpoint, by path."""
    checkpoints, device = Checkpoints(workdir), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaves = {
        path: jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"], sharding=device)
        for path, leaf in checkpoints.manifest(step)["tree"].items()
        if path.startswith(("params/", "teacher/", "objectives/"))
    }
    return paths.flatten(jax.device_get(checkpoints.read(step, paths.unflatten(leaves))))


@pytest.mark.slow
def test_a_run_with_state_and_a_teacher_goes_on_bit_for_bit(config, tmp_path):
    train(tmp_path / "whole", config)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/6")
    train(tmp_path / "again", config)
    whole, again = lines(tmp_path / "whole"), lines(tmp_path / "again")
    assert len(whole) == 6 and again == whole
    ours, expected = arrays(tmp_path / "again", 6), arrays(tmp_path / "whole", 6)
    assert ours.keys() == expected.keys() and all(np.array_equal(ours[path], expected[path]) for path in expected)
    errors = [line["train/head/error"] for line in whole]
    assert all(later < earlier for earlier, later in zip([1.0, *errors], errors))
    for number, line in enumerate(whole):
        weight = 0.5 + number / 6 * 0.5
        parts = weight * line["train/filip/loss"] + line["train/head/loss"]
        assert line["train/loss"] == pytest.approx(parts, rel=1e-5)
    assert whole[0]["train/filip/logit_scale"] != pytest.approx(1 / 0.07, rel=0.2)  # but what the first batch says
    report = inspect(str(tmp_path / "whole"))
    assert "objectives/head/error" in report and "params/objectives/head/head" in report and "teacher" in report
    tree = Checkpoints(tmp_path / "whole").manifest(6)["tree"]
    teachers = {path.split("/")[1] for path in tree if path.startswith("teacher/")}
    assert teachers == {"image", "image_pooled_projection", "objectives"}


@pytest.mark.slow
def test_a_run_begins_with_the_parameters_of_another_but_its_own_state(config, tmp_path):
    train(tmp_path / "first", config)
    init_from = {"path": str(tmp_path / "first"), "rules": ()}
    train(tmp_path / "second", config | {"init_from": init_from})
    first, second = lines(tmp_path / "first"), lines(tmp_path / "second")
    scale = first[-1]["train/filip/logit_scale"]
    assert second[0]["train/filip/logit_scale"] == pytest.approx(scale, rel=0.05)  # it is not set from a batch again
    assert second[0]["train/head/error"] > 0.9  # nor is what was remembered taken over


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_with_captions_and_views_train_as_one_does(config, tmp_path):
    train(tmp_path / "one", config)
    words = command(tmp_path / "two", config, "--distributed")
    file = tmp_path / "two.py"
    imports = "import jax\nimport jax.numpy as jnp\nfrom filip_jax.objectives import OBJECTIVES\n"
    imports += "from filip_jax.objectives.objective import Objective, Parameter, Teacher\n"
    own = f"{imports}\n{of_python.getsource(imitate)}\nOBJECTIVES['imitate'] = imitate\n"
    file.write_text(own + file.read_text())
    cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environments = [environment(2, JAX_PROCESS_ID=str(index), **cluster) for index in range(2)]
    processes = [subprocess.Popen(words, env=each, **pipes) for each in environments]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    two, one = lines(tmp_path / "two"), lines(tmp_path / "one")
    assert len(two) == len(one) == 6
    for ours, expected in zip(two, one):
        names = [name for name in expected if "loss" in name or name.startswith(("train/head", "train/filip"))]
        assert {name: ours[name] for name in names} == pytest.approx({name: expected[name] for name in names}, rel=1e-5)
    ours, expected = arrays(tmp_path / "two", 6), arrays(tmp_path / "one", 6)
    assert ours.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(ours[path], expected[path], atol=1e-5, err_msg=path)


def test_objectives_with_different_teachers_are_refused(config):
    sections = {name: {"kind": "imitate", "weight": 1.0, "decay": decay} for name, decay in (("a", 0.5), ("b", 0.9))}
    with pytest.raises(UserError, match="objectives: they name different teachers; a run has one"):
        make_objectives(sections)


@pytest.mark.parametrize(
    "needs, data, message",
    [
        ({"pooled"}, {"views": 2}, "data.views=2, but no objective needs further views: set it to 1"),
        (
            {"pooled", "views"},
            {"views": 1},
            "objectives.head needs several views of an image, but data.views=1: set it to 2 or more",
        ),
        (
            {"pooled", "captions"},
            {"captions_per_image": 1},
            "needs several captions of an image, but data.captions_per_image=1: set it to 2 or",
        ),
        ({"pooled", "regions"}, {}, "objectives.head needs regions: batches for training hold none, only evaluations"),
        ({"pooled", "view"}, {}, "objectives.head.needs=view: an objective may need tokens, pooled, text_ids, groups"),
        ({"pooled", "views", "captions", "groups", "text_ids"}, {"views": 2, "captions_per_image": 3}, ""),
    ],
)
def test_what_an_objective_needs_is_drawn_or_the_key_named(config, monkeypatch, needs, data, message):
    monkeypatch.setitem(OBJECTIVES, "imitate", lambda: replace(imitate(), needs=frozenset(needs)))
    config = small(config, **{f"data.{key}": count for key, count in data.items()})
    if message:
        with pytest.raises(UserError, match=message) as error:
            call(make_setup, config, "(top level)")
        assert "\n" not in str(error.value)
    else:
        batch = batch_of(call(make_setup, config, "(top level)"))
        assert {name: x.shape[1:3] for name, x in batch.items()} == {
            "image": (2, 48), "ids": (3, 20), "caption_weight": (3,), "group": ()
        }  # fmt: skip


def test_parts_of_a_teacher_that_are_none_of_the_parameters_are_refused(config):
    config["objectives"]["head"]["parts"] = ("image", "imag")
    with pytest.raises(
        UserError, match="objectives.head: the teacher's parts imag are none of the parameters: image, im"
    ):
        call(make_setup, config, "(top level)")
