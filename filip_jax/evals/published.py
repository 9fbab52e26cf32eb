"""Published zero-shot numbers, with their setting and where they are from, beside one's own."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from filip_jax.plain import cell, markdown
from filip_jax.small_files import is_number

# model, setting, source, then task=percent: the top-1 of a data set, or the R@1 of a retrieval, i2t or t2i.
FILE = "published.txt"
METRICS = {"": "image_to_text_top1", "i2t": "image_to_text_R@1", "t2i": "text_to_image_R@1"}
# Sets whose classes differ much in size: CLIP counts the mean over the classes there (arXiv 2103.00020, appendix A.1),
# and all that stand beside it are taken to do so.
PER_CLASS = ("caltech101", "flowers102", "aircraft", "pets")


def published() -> list[tuple[str, str, str, dict[str, float]]]:
    """(model, setting, source, {"imagenet" or "coco:i2t": percent}) of each row that is known."""
    rows = []
    for line in (files("filip_jax.assets") / FILE).read_text(encoding="utf-8").splitlines():
        model, setting, source, numbers = line.split("\t")
        pairs = (number.split("=") for number in numbers.split())
        rows.append((model, setting, source, {task: float(percent) for task, percent in pairs}))
    return rows


def beside_published(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """`published_rows` as a markdown table; "" where there is none."""
    if not (rows := published_rows(columns)):
        return ""
    return markdown([[cell(row[0]), *row[1:]] for row in rows])


def published_rows(columns: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A header and rows of published models and these, for the tasks that both have; none where there is none.

    Args:
        columns: {model: {"NAME/metric": number}}; an evaluation is a task by its name: imagenet, cifar10, coco …
    """
    known = list(dict.fromkeys(task for *_, numbers in published() for task in numbers))
    tasks = [task for task in known if any(_metric(task) in metrics for metrics in columns.values())]
    if not tasks:
        return []
    titles = (f"{task}, per class" if task in PER_CLASS else task for task in tasks)
    lines = [["model", "setting", *titles, "source"]]
    for model, setting, source, numbers in published():
        if any(task in numbers for task in tasks):
            lines.append([model, setting, *(f"{numbers[t]:.1f}" if t in numbers else "" for t in tasks), source])
    for model, metrics in columns.items():
        ours = (metrics.get(_metric(task)) for task in tasks)
        numbers = (f"{100 * x:.1f}" if is_number(x) else "" for x in ours)
        lines.append([model, "this run", *numbers, f"measured, {_counted(metrics, tasks)}"])
    return lines


def _counted(metrics: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """On how many images: a part of a data set is not that data set."""
    names = dict.fromkeys(task.partition(":")[0] for task in tasks)
    counts = {name: metrics.get(f"{name}/images", metrics.get(f"{name}/pairs")) for name in names}
    return ", ".join(f"{name}: {count:,} images" for name, count in counts.items() if is_number(count))


def _metric(task: str) -> str:
    name, _, way = task.partition(":")
    return f"{name}/{'image_to_text_per_class' if name in PER_CLASS else METRICS[way]}"
