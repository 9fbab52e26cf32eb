"""The README.md of an exported folder: its license as the source states it, how it is loaded, what it leaves out."""

from collections.abc import Sequence

from filip_jax.plain import one_line
from filip_jax.weights.exported_run import ExportedRun, Target
from filip_jax.weights.origins import license_of


def model_card(name: str, run: ExportedRun, target: Target, lines: Sequence[str]) -> str:
    """Return the page as Markdown.

    Args:
        name: of the folder.
        lines: that the export printed, of what it wrote and what it left out.
    """
    stated = license_of(run.notes["origins"])
    head = [*(f"{key}: {one_line(value)}" for key, value in stated.items()), f"library_name: {target.library}"]
    origin = (
        f"A model of filip_jax at step {run.notes['step']}, exported for {target.library}. Where its weights are from, "
        "and under which license, is in origin.json as their files state it."
    )
    text = [
        "---", *head, "pipeline_tag: zero-shot-image-classification", "---", "",
        f"# {name}", "",
        origin, "",
        "```python", *target.usage.replace("FOLDER", name).split("\n"), "```", "",
        *(f"- {one_line(line)}" for line in lines),
    ]  # fmt: skip
    return "\n".join(text).rstrip() + "\n"
