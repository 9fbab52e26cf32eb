"""Traces of a few steps."""

import gzip
import json
import re
import subprocess

import pytest
from conftest import small
from runs import command, environment

from filip_jax.errors import UserError
from filip_jax.train.profile import check_profile


def traced(workdir):
    """The training steps in each of a run's traces."""
    found = []
    for file in sorted(workdir.rglob("plugins/profile/*/*.trace.json.gz")):
        assert next(file.parent.glob("*.xplane.pb")).stat().st_size > 10_000
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        found.append({int(event["args"]["step_num"]) for event in events if event.get("name") == "train"})
    return found


def train(workdir, config):
    """Train in a process of its own, which takes the gigabyte of a trace with it, and return what it prints."""
    done = subprocess.run(command(workdir, config), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_steps_asked_for_are_traced_of_each_start(small_demo, tmp_path):
    few = {"optimizer.warmup_steps": 1, "checkpoint.every_steps": 4, "profile.first_step": 3, "profile.steps": 2}
    output = train(tmp_path / "run", small(small_demo, **few, total_steps=8))
    assert traced(tmp_path / "run") == [{3, 4}]
    assert re.search(r"tracing the steps 3 to 4 into \S+ \.\.\.\n(.*\n)*traced: xprof --logdir=\S+profile\n", output)


@pytest.mark.slow
def test_a_run_that_ends_in_its_trace_keeps_it(small_demo, tmp_path):
    train(tmp_path / "run", small(small_demo, **{"profile.first_step": 12, "profile.steps": 9}))
    assert traced(tmp_path / "run") == [{12}]


def test_no_step_is_traced_unless_asked(finished):
    assert not (finished[0] / "profile").exists()


@pytest.mark.parametrize("section, message", [((0, 1), "profile.first_step=0"), ((1, -1), "profile.steps=-1")])
def test_steps_that_can_not_be(section, message):
    with pytest.raises(UserError, match=f"{message} must be at least"):
        check_profile(**dict(zip(("first_step", "steps"), section)))
