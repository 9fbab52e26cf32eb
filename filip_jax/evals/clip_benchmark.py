"""Results as the files that CLIP_benchmark writes and `clip_benchmark build` gathers: one for each task of a model."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from filip_jax.files import write_atomically

FOLDER = "clip_benchmark"


def write_results(
    workdir: Path, model: str, step: int, name: str, kind: ModuleType, metrics: Mapping[str, Any], hashes: Mapping
) -> None:
    """Writes clip_benchmark/NAME_step_N.json of the workdir, for evaluations of a kind that CLIP_benchmark knows.

    Args:
        model: the run's name.
        name: of the evaluation, which stands for the data set.
        metrics: {"NAME/metric": number} of all evaluations.
        hashes: SHA-256 of the checkpoint, the data, class names, prompts …, which CLIP_benchmark's own have not.
    """
    if not hasattr(kind, "CLIP_BENCHMARK"):
        return
    task, names = kind.CLIP_BENCHMARK
    found = {theirs: metrics[f"{name}/{ours}"] for theirs, ours in names.items() if f"{name}/{ours}" in metrics}
    data = name.removesuffix("_probe")  # which the task says
    result = {"dataset": data, "model": model, "pretrained": f"step_{step}", "task": task, "metrics": found}
    result |= {"sha256": dict(hashes)}
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{name}_step_{step}.json", json.dumps(result, indent=2) + "\n")
