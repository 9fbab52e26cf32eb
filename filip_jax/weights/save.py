"""A run as a folder that other people's tools load: `filip export`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from filip_jax import __version__
from filip_jax.console import show
from filip_jax.errors import UserError, one_line
from filip_jax.files import write_atomically
from filip_jax.inference.run import Run
from filip_jax.paths import flatten
from filip_jax.redact import redacted
from filip_jax.sections import choose, one_of
from filip_jax.weights import origins, report
from filip_jax.weights.card import model_card
from filip_jax.weights.exported_run import HEADS, ExportedRun, Target
from filip_jax.weights.formats import FORMATS
from filip_jax.weights.mapping import give
from filip_jax.weights.output import ORIGIN, SOURCE, beside, check_output
from filip_jax.weights.read_back import check_folder
from filip_jax.weights.tensors import write_safetensors

EXTRA = "filip_jax_extra"  # .safetensors and .json: what the format has no place for
EXTRA_TOKENIZER = "filip_jax_tokenizer.model"
TRAINING_ONLY = {
    "patch_dropout": 0.0,
    "length_groups": 1,
}  # options that change no feature, by the value that says nothing
TOKENS = {"tokens": "last"}  # options that change tokens, and nothing pooled


def export_weights(
    workdir: str, output: str, format: str, *, step: int | None = None, average: bool | None = None, head: str = ""
) -> None:
    """Write a run as a folder of another tool's, read it back, and say what became of everything.

    Args:
        workdir: of the run.
        output: the folder; nothing is there yet.
        format: one of `FORMATS`.
        step: of the checkpoint; None is the newest.
        average: whether the parameters' average is written; None writes it where the checkpoint has one.
        head: one of `HEADS` that the run has: what pooled vectors go through. "" is the one that was trained for them.

    Raises:
        UserError: no such run, step, average, format or head, or a model that this format cannot compute. Nothing is written.
    """
    make, place = choose(FORMATS, format, "--format"), check_output(output)
    run = _exported_run(workdir, step, average, head)
    if unfit := make.misfits(run):
        fitting = [name for name, each in FORMATS.items() if not each.misfits(run)]
        raise UserError(
            f"--format={format} computes something else: {'; '.join(unfit)}: take --format={' or '.join(fitting)}"
        )
    target = make.make(run)
    if head and target.is_whole:
        raise UserError(
            f"--head={head} chooses one projection: --format={format} keeps all projections: leave out --head"
        )
    left, options = target_extra(run, target)
    lines = [*_head_lines(run, target), *(f"differs: {line}" for line in target.differs)]
    lines += [f"extra: {one_line(line)} ({EXTRA})" for line in [*left.values(), *options]]
    show(*(f"{key}: {run.notes[key]}" for key in ("step", "parameters")), *lines)
    with beside(place) as folder:
        public = run.public(target)
        tensors: dict[str, np.ndarray] = {}
        for rule in target.rules:
            tensors |= give(rule, public[rule.path])
        write_safetensors(folder / target.weights, tensors)
        for name, data in {**target.files, **origins.license_files(run.source)}.items():
            write_atomically(folder / name, data)
        if left or options:
            _write_extra(folder, run, left, options)
        write_atomically(folder / ORIGIN, json.dumps(dict(run.notes), indent=2, ensure_ascii=False) + "\n")
        write_atomically(folder / "README.md", model_card(place.name, run, target, lines))
        sizes = [public[rule.path].shape for rule in target.rules]
        show(f"mapped: {len(tensors)} tensors of {len(target.rules)} parameters in {target.weights}")
        show(*(f"  {line}" for line in report.mapped(target.rules, sizes, arrow="->")))
        show(*(f"read back: {line}" for line in check_folder(folder, run, target)))
    show(f"wrote {output}")


def _exported_run(workdir: str, step: int | None, average: bool | None, head: str) -> ExportedRun:
    """Return what leaves."""
    run = Run(workdir)
    try:
        model = run.load(step, average)
        parameters = {path: np.asarray(value) for path, value in flatten(model.parameters).items()}
        has = [name for name in HEADS if name in run.objectives.needs]
        if head and one_of(HEADS, head, "--head") not in has:
            raise UserError(f"--head={head}: the run has no such head, only {' and '.join(has)}")
        is_average = run.checkpoints.has(model.step, "ema") and average is not False
        place = run.workdir
        notes = {
            "step": model.step,
            "parameters": "their average (EMA)" if is_average else "not averaged",
            "head": head or has[0],
            "filip_jax": __version__,
            "checkpoint_sha256": run.checkpoints.sha256(model.step),
            "tokenizer_sha256": run.tokenizer.sha256,
            "origins": origins.origins_of(place, run.config),
        }
        source = place / SOURCE if (place / SOURCE).is_dir() else None
        return ExportedRun(run.config, parameters, run.tokenizer, head or has[0], notes, source)
    finally:
        run.close()


def target_extra(run: ExportedRun, target: Target) -> tuple[dict[str, str], list[str]]:
    """Return what the format has no place for: lines by parameter, and lines of options and of the tokenizer."""
    left = {path: f"{path} {list(run.parameters[path].shape)}" for path in run.left(target)}
    if any(path.partition("/")[0] in run.config["model"] for path in left):
        raise AssertionError(f"a format leaves out part of a tower: {left}")
    if target.is_whole:
        return left, []
    options = [
        f"model.{side}.{name}={tower[name]!r}: {what}"
        for known, what in ((TRAINING_ONLY, "of training only"), (TOKENS, "of all tokens, not of what is pooled"))
        for side, tower in run.towers.items()
        for name, usual in known.items()
        if tower.get(name, usual) != usual
    ]
    if not target.reads_texts:
        options.append(
            f"{EXTRA_TOKENIZER}: {target.library} cannot cut texts as the run's tokenizer does: use filip_jax's ids"
        )
    return left, options


def _head_lines(run: ExportedRun, target: Target) -> list[str]:
    """Return what is said of a run that compares tokens, and of the scale."""
    heads = [name for name in HEADS if f"image_{HEADS[name]}/kernel" in run.parameters]
    lines = list[str]()
    if target.is_whole:
        return lines
    if "tokens" in heads:
        lines.append(
            "warning: this model compares all tokens of an image and a text; the dot product of two pooled vectors is another "
            "score" + ("" if run.head == "pooled" else ", which no objective trained")
        )
        other = next((name for name in heads if name != run.head), "")
        lines.append(
            f"head: {run.head}, the projections of {_head_of(run)}"
            + (f"; --head={other} writes the others" if other else "")
        )
    if not run.objective:
        lines.append("scale: no objective has one for these vectors: logit_scale is 0, a scale of 1")
    return lines


def _head_of(run: ExportedRun) -> str:
    return {"pooled": "pooled vectors", "tokens": "tokens, on the class token and EOS, too"}[run.head]


def _write_extra(folder: Path, run: ExportedRun, left: Mapping[str, str], options: list[str]) -> None:
    sections: dict[str, Any] = {name: run.config.get(name, {}) for name in ("model", "objectives", "tokenizer")}
    content = {"parameters": list(left), "options": options, **redacted(sections)}
    write_atomically(folder / f"{EXTRA}.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if left:
        write_safetensors(folder / f"{EXTRA}.safetensors", {path: run.parameters[path] for path in left})
    if any(line.startswith(EXTRA_TOKENIZER) for line in options):
        write_atomically(folder / EXTRA_TOKENIZER, run.tokenizer.model)
