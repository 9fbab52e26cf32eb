"""Runs as somebody would start them, and what they logged."""

import json
import os
import sys
from pathlib import Path

from environment import QUICKLY


def command(workdir, config, *options):
    """`filip train` of this config, as somebody would start it, on one device."""
    file = Path(workdir).with_suffix(".py")
    file.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({config!r})\n")
    return [sys.executable, "-m", "filip_jax", "train", f"--config={file}", f"--workdir={workdir}", *options]


def environment(devices=1, **more):
    return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICKLY}"} | more


def logged(workdir):
    """[(step, loss)] of metrics.jsonl, as far as its lines are whole."""
    file = Path(workdir) / "metrics.jsonl"
    lines = (
        [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if file.exists()
        else []
    )
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
