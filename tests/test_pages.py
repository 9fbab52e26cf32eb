"""The pages beside README: what they name is there."""

import json
import re

import pytest
from conftest import ROOT

from filip_jax.config import load_config

COMING, PROFILES = ((ROOT / name).read_text() for name in ("configs/coming_from.md", "launch/profiles.md"))
# What a config's sections may be called: words in backticks, dotted or not, that are keys and no metric, flag or file.
KEY = r"`([a-z_]+(?:\.[a-z_0-9]+)*)(?:=[^`]*)?`"


def keys_in(config, prefix=""):
    for name, value in config.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from keys_in(value, f"{prefix}{name}.")


@pytest.fixture(scope="module")
def keys():
    return set(keys_in(load_config(str(ROOT / "configs/filip.py"))))


def test_the_keys_that_others_flags_become_are_keys(keys):
    ours = [line.split("|")[3] for line in COMING.split("Metrics, in")[0].splitlines() if line.startswith("| ")][2:]
    named = [key for cell in ours for key in re.findall(KEY, cell) if key not in ("mixture", "weight")]
    assert len(named) > 38 and not set(named) - keys


def test_the_metrics_that_others_become_are_written(finished):
    lines = map(json.loads, (finished[0] / "metrics.jsonl").read_text().splitlines())
    written = {name for line in lines for name in line}
    ours = [line.split("|")[3] for line in COMING.split("Metrics, in")[1].splitlines() if line.startswith("| ")][2:]
    named = [metric for cell in ours for metric in re.findall(r"`((?:train|time|val|NAME)/[^`]+)`", cell)]
    assert len(named) > 9 and {metric.replace("NAME", "seen_cells") for metric in named} <= written


def test_the_keys_that_profiles_name_are_keys(keys):
    table = PROFILES.split("| seen ")[1]
    named = [key for line in table.splitlines() for key in re.findall(KEY, line)]
    assert len(named) > 6 and not set(named) - keys - {"rematted_computation"}
    assert "model.remat" in keys and "profile.first_step" in keys
