"""metrics.jsonl of a run: one line for each logged step and evaluation, as it was written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filip_jax.small_files import Notes, is_number, is_text, is_whole, read_lines

FILE = "metrics.jsonl"
MAX_KEY = 400  # characters of a metric's name


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the lines {"step": n, name: number or text, …}; what is none of ours is left out, with a warning."""
    return read_lines(workdir / FILE, typed_metrics)


def typed_metrics(line: Mapping[str, Any], notes: Notes) -> dict[str, Any] | None:
    """Return what stands in a line as runs write it, or None if it has no step; see `small_files.objects_of`."""
    if not is_whole(line.get("step")):
        return notes.append(f"'step' is {line.get('step')!r:.100}")
    kept = {name: x for name, x in line.items() if is_text(name, MAX_KEY) and (is_number(x) or is_text(x))}
    notes += [f"{name!r:.100} is {x!r:.100}" for name, x in line.items() if name not in kept][:1]
    return kept
