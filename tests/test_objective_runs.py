"""A run with an objective of one's own: heads, state, a teacher and a scale from the first batch; it goes on bit for bit."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from conftest import small

from filip_jax.checkpoint import Checkpoints
from filip_jax.checkpoint.inspect import inspect
from filip_jax.errors import UserError
from filip_jax.objectives import OBJECTIVES
from filip_jax.objectives.objective import Objective, Parameter, Teacher
from filip_jax.objectives.total import make_objectives
from filip_jax.sections import call
from filip_jax.train.loop import train
from filip_jax.train.setup import make_setup


def imitate(*, decay: float = 0.5, parts: tuple = ("image", "image_pooled_projection", "objectives")) -> Objective:
    """Return an objective that predicts a teacher's image vectors by a head, and remembers how well it did."""

    def loss(parameters, state, encoded, teacher):
        ours, theirs = encoded.image_pooled @ parameters["head"], encoded.teacher.image_pooled @ teacher["head"]
        value = jnp.square(ours - theirs + 0.1).mean()
        error = 0.9 * state["error"] + 0.1 * jax.lax.stop_gradient(value)
        return value, {"error": error}, {"error": error}

    head = Parameter(lambda key, sizes: jax.random.normal(key, (sizes["embed_dim"], 8)))
    return Objective(
        needs=frozenset({"pooled"}),
        parameters={"head": head},
        local=loss,
        state={"error": 1.0},
        teacher=Teacher(decay, parts),
    )


@pytest.fixture
def config(small_demo, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "imitate", imitate)
    filip = small_demo["objectives"]["filip"] | {
        "logit_scale_from_first_batch": True,
        "weight": ((0.0, 0.5), (1.0, 1.0)),
    }
    objectives = {"filip": filip, "head": {"kind": "imitate", "weight": 1.0}}
    return small(small_demo, total_steps=6) | {"objectives": objectives}


def lines(workdir):
    """The numbers of each logged step, without times."""
    of_all = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    timed = ("time/", "data/", "train/samples_per_second", "train/batch_time")
    return [{key: value for key, value in line.items() if not key.startswith(timed)} for line in of_all]


@pytest.mark.slow
def test_a_run_with_state_and_a_teacher_goes_on_bit_for_bit(config, tmp_path):
    train(tmp_path / "whole", config)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/6")
    train(tmp_path / "again", config)
    whole, again = lines(tmp_path / "whole"), lines(tmp_path / "again")
    assert len(whole) == 6 and again == whole
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


def test_objectives_with_different_teachers_are_refused(config):
    sections = {name: {"kind": "imitate", "weight": 1.0, "decay": decay} for name, decay in (("a", 0.5), ("b", 0.9))}
    with pytest.raises(UserError, match="objectives: they name different teachers; a run has one"):
        make_objectives(sections)


@pytest.mark.parametrize(
    "views, uses_views, message",
    [
        (2, False, "data.views is above 1, but no objective uses further views"),
        (1, True, "objectives.head needs data.views"),
    ],
)
def test_views_are_drawn_for_objectives_that_use_them(config, monkeypatch, views, uses_views, message):
    monkeypatch.setitem(OBJECTIVES, "imitate", lambda: replace(imitate(), uses_views=uses_views))
    config = small(config, **{"data.views": views})
    with pytest.raises(UserError, match=message):
        call(make_setup, config, "(top level)")
    call(make_setup, small(config, **{"data.views": 3 - views}), "(top level)")
