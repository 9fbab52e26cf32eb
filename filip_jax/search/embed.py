"""Embedding a source ahead of time: the tokens of its images or texts, as stored features that grow with it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax

from filip_jax.data.record import CAPTION_BYTES, BadRecord, that_say
from filip_jax.data.sources import Source, check_outside, fingerprint, make_source
from filip_jax.data.text_lists import read_texts
from filip_jax.errors import UserError, one_line
from filip_jax.features import Features, FeatureWriter, Manifest, read_manifest
from filip_jax.features.manifest import FILE, MAX_PART_ROWS, SIDES
from filip_jax.inference import Embedder, Run
from filip_jax.inference.embedder import checked_text
from filip_jax.mesh import make_mesh
from filip_jax.plain import counted
from filip_jax.search.collection import check_same_collection, section_of
from filip_jax.search.reductions import BY_WORDS, check_order
from filip_jax.search.work import Work, spread
from filip_jax.sections import at_least, one_of
from filip_jax.user_paths import from_user

DEFAULT_PART_ROWS = 1024  # of a part, which a kill may cost
MAX_TEXTS = 1000  # of a sample, by whose words tokens are chosen


def embed(
    workdir: str | Path,
    section: Mapping[str, Any],
    output: str | Path,
    *,
    side: str = "image",
    step: int | None = None,
    dtype: str = "",
    reductions: Sequence[Mapping[str, Any]] | None = None,
    texts: str = "",
    batch_size: int = 64,
    part_rows: int = DEFAULT_PART_ROWS,
    process: int = 0,
    processes: int = 1,
    moved: bool = False,
    say: Callable[[str], None] = print,
) -> Features:
    """Write the tokens of a source's records to a folder, and return the features.

    Records that are there already are not embedded again: after a kill the same command goes on, and later one takes what
    is new in the source and marks what is gone. A record that cannot be used is named in the folder's `quarantine`.

    Args:
        workdir: of the run.
        section: of a config's source.
        output: a folder on a disk, outside of the data.
        side: "image", or "text" for a row of each caption.
        step: of the checkpoint, by default the newest.
        dtype: of the tokens; by default the folder's own, or float16.
        reductions: as `reductions.parse` gives them; None takes the folder's own, or none.
        texts: a file of texts, one a line, by whose words reductions choose; by default the source's captions.
        batch_size: images or texts at a time, on each device.
        part_rows: rows of a part.
        process, processes: which share of the records is embedded here; all devices of this process take part.
        moved: whether the source's paths may have changed.
        say: takes lines for people.

    Raises:
        UserError: wrong options, no run, no data, another model than the folder's, another process that writes there, or no
            record that can be used.
        OSError: a disk or a bucket fails; the same command goes on.
    """
    one_of(SIDES, side, "side")
    at_least(1, batch_size=batch_size, part_rows=part_rows, processes=processes)
    if part_rows > MAX_PART_ROWS:
        raise UserError(f"part_rows={part_rows} must be at most {MAX_PART_ROWS}")
    if not 0 <= process < processes:
        raise UserError(f"process={process} must be from 0 to {processes - 1}, of processes={processes}")
    section, output = section_of(section, side), from_user(output)
    check_outside(section, output, "--output", {".arrow", ".json", ".jsonl"})
    old = read_manifest(output) if os.path.lexists(Path(output) / FILE) else None
    source = make_source(section)  # a mistyped source is told as one, and not as another collection
    if old is not None and not moved:
        check_same_collection(old.source.get("section", {}), section, output)
    say(one_line(f"{counted(len(source), 'record')}; the source is {source.seen}"))
    model = _load(workdir, step, batch_size)
    manifest = _manifest(model, side, dtype, reductions, texts, old, source)
    manifest = replace(manifest, source={"section": section, "identity": fingerprint(source)})
    with FeatureWriter(output, manifest, process, processes) as writer:
        work = Work(model, source, section, writer, side, say)
        if process == 0:
            work.measure()
        work.run(part_rows)
    return work.summary()


def _load(workdir, step, batch_size) -> Embedder:
    devices = jax.local_devices()
    run = Run(workdir, make_mesh(devices=devices), batch_size * len(devices))
    try:
        return run.load(step)
    finally:
        run.close()


def _manifest(model, side, dtype, reductions, texts, old, source) -> Manifest:
    """Return what the rows will be of; what no option says is as in the old manifest."""
    if reductions is None:
        kept = [each for each in old.reductions if each["name"] != old.dtype] if old else []
    else:
        kept = [dict(each) for each in reductions]
    dtype = dtype or (old.dtype if old else "float16")
    grid = model.grid if side == "image" and model.pooling == "tokens" else None
    check_order(kept, grid)
    by_words = any(each["name"] in BY_WORDS for each in kept)
    if texts and not by_words:
        raise UserError(f"--texts={texts}: no reduction chooses by words; add --reduce={BY_WORDS[0]}")
    sample: tuple[str, ...] = ()
    if by_words:
        sample = sample_of(texts) if texts else old.texts if old and old.texts else _captions(source)
        if not sample:
            raise UserError(f"--texts={texts} has no text by whose words tokens are chosen")
    if dtype != "float32":
        kept.append({"name": dtype, "options": {}, "losses": {}})
    return Manifest(
        side=side, dimension=_dimension(model), model=model.origin, pooling=model.pooling, grid=grid,
        image_size=model.image_size, framing=asdict(model.framing), text_length=model.text_length, dtype=dtype,
        reductions=tuple(kept), texts=sample,
    )  # fmt: skip


def _dimension(model: Embedder) -> int:
    tokens, _ = model.encode_text(["a"])
    return tokens.shape[-1]


def sample_of(file: str) -> tuple[str, ...]:
    """Return the texts of a file by whose words tokens are chosen.

    Raises:
        UserError: it cannot be read, or one of them is not valid Unicode.
    """
    texts = tuple(text[:CAPTION_BYTES] for text in read_texts(file, "--texts") if text)[:MAX_TEXTS]
    for number, text in enumerate(texts):
        checked_text(number, text)
    return texts


def _captions(source: Source) -> tuple[str, ...]:
    captions = []
    for index in spread(source, MAX_TEXTS):
        try:
            captions += [caption.text for caption in that_say(source.captions(index))[:1]]
        except BadRecord:
            continue
    if not captions:
        raise UserError(
            "--reduce: the source has no captions by whose words tokens could be chosen: name some by --texts"
        )
    return tuple(captions)
