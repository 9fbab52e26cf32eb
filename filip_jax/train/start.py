"""The preparation of a run for its first step: its data, its tokenizer, its newest sound checkpoint."""

import os
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from filip_jax import folders, storage
from filip_jax.checkpoint import Checkpoints, CheckpointWriter
from filip_jax.checkpoint.shared import find_damage
from filip_jax.checkpoint.store import literal
from filip_jax.cluster import service
from filip_jax.cluster.join import preflight
from filip_jax.cluster.watch import Watch
from filip_jax.data.pipeline import check_usable
from filip_jax.data.sources import Source, check_outside, describe, make_source
from filip_jax.data.tokenizer import Tokenizer, make_tokenizer
from filip_jax.errors import UserError, one_line
from filip_jax.evals.results import FILE as EVALS
from filip_jax.files import remove_abandoned, write_atomically
from filip_jax.inference.run import check_fits, read_tokenizer
from filip_jax.logged import FILE as METRICS
from filip_jax.mesh import check_memory, replicated
from filip_jax.objectives.total import Objectives
from filip_jax.paths import saved_metadata
from filip_jax.saved_config import CHECKPOINTS, TOKENIZER, check_same_run, read_config
from filip_jax.saved_config import FILE as CONFIG
from filip_jax.sections import call
from filip_jax.train.goodput import CompileCache
from filip_jax.train.input_log import FOLDER, KEYS, SKIPPED
from filip_jax.train.lease import Lease
from filip_jax.train.metrics import StepLog, say
from filip_jax.train.setup import Setup, batch_of, lower_step, make_setup
from filip_jax.train.step import State
from filip_jax.user_paths import from_user
from filip_jax.workdir import Workdir


def prepare_setup(config: Mapping[str, Any], path: str | Path, watch: Watch) -> Setup:
    """Return the setup of a config once all processes are there: the end of process 0 aborts those that still start.

    Args:
        path: of the workdir. A run that has saved something keeps its tokenizer, whatever became of the file it is from.

    Raises:
        UserError: a config that cannot be, or not the same on all processes.
    """
    processes = preflight(config)
    setup = call(make_setup, {**config, **_own_tokenizer(config, path)}, "(top level)", devices=None)
    check_memory(setup.shapes, setup.mesh, "the state of this run")
    check_memory(batch_of(setup), setup.mesh, "a global batch")
    watch.listen(setup.processes["stop_signals"])
    watch.hang_seconds = setup.processes["hang_seconds"]
    say(processes)
    return setup


def _own_tokenizer(config: Mapping[str, Any], workdir: str | Path) -> dict[str, Any]:
    """Return the section of a run's own tokenizer if it has saved a step and the file that its config names is gone."""
    section = config.get("tokenizer")
    file = section.get("path") if isinstance(section, Mapping) else None
    if not isinstance(file, str) or not file or storage.exists(from_user(file)) or not Checkpoints(workdir).steps():
        return {}
    return {"tokenizer": {"name": "kept", "path": storage.join(from_user(workdir), TOKENIZER)}}


def open_workdir(path: str | Path, watch: Watch) -> tuple[Workdir, Lease]:
    """Make the run's folder, try it and hold it against other runs; return it and the lease.

    Raises:
        UserError: it is a file, nothing can be written there, or only behind a link, checkpoints would be written
            elsewhere, or another run writes there.
    """
    workdirs: list[Workdir] = []
    leases: list[Lease] = []

    def open_and_try():
        literal(storage.join(from_user(path), CHECKPOINTS))  # refused before anything is written
        try:
            workdir = Workdir(path)
            if workdir.folder.exists() and not workdir.folder.is_dir():
                raise UserError(f"--workdir={path} is a file")
            if jax.process_index() == 0:
                workdir.check_links()
            workdir.folder.mkdir(parents=True, exist_ok=True)
            trial = storage.join(workdir.name, f".written_{jax.process_index()}")
            storage.write(trial, b"x" * 4096)
            folders.remove([trial], workdir.name)
            workdirs.append(workdir)
        except OSError as error:
            raise UserError(f"--workdir={path}: nothing can be written there: {error}") from error

    service.together(open_and_try)
    service.together(lambda: leases.append(Lease(workdirs[0].name, holds=jax.process_index() == 0)))
    watch.on_leave.append(lambda code, line: leases[0].close())

    def end(line: str) -> None:
        leases[0].holds = False
        watch.leave(2, line)

    leases[0].lost = end
    return workdirs[0], leases[0]


def compile_step(setup: Setup, state: State, watch: Watch) -> Callable[..., Any]:
    """Compile the training step for the state and a batch of the run."""
    with watch.phase("compile"), jax.set_mesh(setup.mesh):
        return lower_step(setup, state).compile()


def compile_and_say(setup: Setup, state: State, watch: Watch, cache: CompileCache, log: StepLog) -> Callable[..., Any]:
    """Return what `compile_step` does; say and log how long it took."""
    started, spared = time.perf_counter(), cache.spared
    say("compiling the training step ...")
    compiled = compile_step(setup, state, watch)
    seconds, spared = time.perf_counter() - started, cache.spared - spared
    say(f"compiled in {seconds:.1f} s" + (f"; the compile cache spared {spared:.1f} s" if spared else ""))
    log.note(compile=seconds, compile_spared=spared)
    log.restart_clock(log.since)
    return compiled


def begin_with(setup: Setup, step: int, state: State, batch: Mapping[str, jax.Array], watch: Watch) -> State:
    """Return the state; at step 0 its objectives begin where the first global batch puts them, if they ask for it.

    A start that was stopped before its first step computes the same again, from the same batch.

    Raises:
        UserError: see `check_captions`.
    """
    if step == 0:
        check_captions(setup.objectives, setup.mesh, batch)
    if step or setup.start is None:
        return state
    with watch.phase("compile"), jax.set_mesh(setup.mesh):
        return jax.jit(setup.start, donate_argnums=0, out_shardings=setup.shardings)(state, batch)


def check_captions(objectives: Objectives, mesh: Mesh, batch: Mapping[str, jax.Array]) -> None:
    """Raise a UserError if an objective needs several captions of an image, and no image of the batch has two."""
    needing = [name for name, part in objectives.active.items() if "captions" in part.needs]
    if not needing:
        return
    weight = batch["caption_weight"]
    with jax.set_mesh(mesh):
        most = jax.jit(lambda weight: (weight > 0).sum(axis=1).max(), out_shardings=replicated(mesh))(weight)
    if int(most) < 2:
        rows, captions = weight.shape
        raise UserError(
            f"objectives.{needing[0]} needs several captions of an image, but none of the {rows} images of the first batch has "
            f"more than {int(most)} (data.captions_per_image={captions}): give data with several, see source.caption_keys and "
            "source.side_captions"
        )


def open_source(setup: Setup) -> Source:
    """Open the run's source and try some records; process 0 goes first, since it may have to index the data."""
    sources: list[Source] = []

    def open_and_try():
        sources.append(make_source(setup.source))
        check_usable(sources[0], setup.data["image_size"], setup.data["augment"])

    service.on_first_process(open_and_try)
    service.together(lambda: None if sources else sources.append(make_source(setup.source)))
    say(f"data: {len(sources[0])} records; {one_line(sources[0].seen)}")
    return sources[0]


def prepare_tokenizer(workdir: Workdir, setup: Setup, source: Source, *, started: bool) -> Tokenizer:
    """Return the tokenizer the run started with, else that of tokenizer.path, else one trained on captions.

    Raises:
        UserError: no such file, or a tokenizer that does not fit the model.
    """

    def make():
        write_atomically(workdir.folder / TOKENIZER, make_tokenizer(source=source, **setup.tokenizer))

    if not started:
        service.on_first_process(make)
        workdir.share()
    tokenizer = read_tokenizer(workdir.folder)
    check_fits(tokenizer, setup.model)
    return tokenizer


def describe_run(setup: Setup, tokenizer: Tokenizer, source: Source) -> dict[str, Any]:
    """Return what each checkpoint says of the run: its tokenizer, its data and how its parameters are to be read."""
    parameters = saved_metadata(setup.optimizer.metadata)
    return {"tokenizer_sha256": tokenizer.sha256, **describe(source), "parameters": parameters}


def newest_sound(checkpoints: CheckpointWriter, workdir: Path, config: Mapping[str, Any]) -> int | None:
    """Return the newest step whose files are as they were written; None for a run that has saved nothing.

    Every process reads a share of the files. Damaged checkpoints that are newer count no more from
    here on; their files stay. Nothing is removed or set aside before the config says that the run is this one.

    Raises:
        UserError: there are checkpoints, and all of them are damaged; the run is of another config; or the next
            checkpoints would be written through a symbolic link.
    """
    steps, damaged = service.of_first_process(checkpoints.steps()), []
    for step in reversed(steps):
        started = time.monotonic()
        if not (damage := find_damage(checkpoints, step)):
            say(f"checkpoint {step} is as it was written ({time.monotonic() - started:.1f} s to verify)")
            break
        damaged.append((step, damage))
    else:
        step = None
    if step is not None:
        check_same_run(workdir, config, checkpoints.manifest(step)["config"])
    service.on_first_process(lambda: _clean(checkpoints, workdir, config, step))
    strange = service.of_first_process(checkpoints.without_manifest())
    for folder in strange if jax.process_index() == 0 else ():
        warnings.warn(f"{folder} has no manifest.json: it is no checkpoint, and is left as it is", stacklevel=2)
    if step is None and (damaged or strange):
        damages = "; ".join(f"step {number}: {damage}" for number, damage in damaged)
        raise UserError(
            f"{checkpoints.directory} holds no checkpoint to go on from: {damages or 'none has its manifest.json'}. "
            "Bring the files back, or remove the folder to begin anew"
        )
    for number, damage in damaged:
        if jax.process_index() == 0:
            warning = f"THE CHECKPOINT OF STEP {number} IS DAMAGED: {damage}; going on from step {step}"
            warnings.warn(warning, stacklevel=2)
        service.on_first_process(partial(checkpoints.set_aside, number))
    return step


def _clean(checkpoints: CheckpointWriter, workdir: Path, config: Mapping[str, Any], step: int | None) -> None:
    """Remove the remains of killed starts, if they are this run's."""
    for linked in checkpoints.linked_steps():
        folder = checkpoints.folder(linked)
        if step is None or linked > step:
            raise UserError(
                f"{folder} is a symbolic link where this run would save: remove the link; what it leads to stays as it is"
            )
        warnings.warn(f"{folder} is a symbolic link: it is read, and never removed", stacklevel=2)
    if step is None:
        if not os.path.lexists(workdir / CONFIG):  # nothing says that the remains are ours
            return _check_free(workdir, config.get("source", {}))
        saved = read_config(workdir)  # which raises if it is no run's: a new run would overwrite it
        try:
            check_same_run(workdir, config, saved)
        except UserError:
            return
    checkpoints.clean(keep=step)
    for folder in (workdir, *(workdir / name for name in (FOLDER, KEYS, SKIPPED))):
        remove_abandoned(folder)


def _check_free(workdir: Path, source: Mapping[str, Any]) -> None:
    """Raise a UserError if a folder without a config, which a run writes first, belongs to something else.

    It is the data's, or holds files that the run would replace.
    """
    check_outside(source, workdir, "--workdir", {".json", ".jsonl", ".png"})
    if names := [name for name in (TOKENIZER, METRICS, EVALS) if os.path.lexists(workdir / name)]:
        raise UserError(
            f"{workdir} holds {' and '.join(names)}, but no {CONFIG} of a run: give an empty --workdir, or move them away"
        )
