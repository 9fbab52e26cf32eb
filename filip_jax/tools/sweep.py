"""Several runs of one config, each with other values: their commands, their runs on this machine, their results."""

import csv
import hashlib
import io
import os
import re
import signal
import subprocess  # noqa: TID251 - to start this Python
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip_jax import plain, storage
from filip_jax.checkpoint import Checkpoints
from filip_jax.config import load_config, load_sweep, name_points, settings
from filip_jax.console import show
from filip_jax.epochs import count_records
from filip_jax.errors import UserError
from filip_jax.evals.results import FILE as RESULTS
from filip_jax.evals.results import read_results, table
from filip_jax.files import open_to_append, write_atomically
from filip_jax.progress import Progress
from filip_jax.saved_config import check_same_run
from filip_jax.user_paths import from_user

TAIL = 4096  # bytes of a log whose last line says why a run failed
MAX_NAME = 100  # bytes of a point's folder


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        values: {config key: its value here}.
        config: with these values.
        words: what follows `filip` to train it.
    """

    name: str
    values: Mapping[str, Any]
    config: Mapping[str, Any]
    workdir: Path
    words: Sequence[str]

    def is_finished(self) -> bool:
        """Whether its last step is saved, and evaluated if that is wanted."""
        last = self.config["total_steps"]
        evaluated = not self.config["eval_every_steps"] or str(last) in read_results(self.workdir)["steps"]
        return last in Checkpoints(self.workdir).steps() and evaluated

    def row(self) -> dict[str, Any]:
        """Its values, the last step that was evaluated, and the numbers of that."""
        steps = read_results(self.workdir)["steps"]
        last = max(map(int, steps), default=None)
        numbers = {} if last is None else {"step": last} | steps[str(last)]
        return {key: str(value) for key, value in self.values.items()} | numbers


def open_sweep(file: str, workdir: str, overrides: Sequence[str] = ()) -> list[Point]:
    """The points of `FILE.py[:variant]`, whose function sweep() yields {config key: value}, in folders of `workdir`.

    Args:
        overrides: --config.key=value for all points.

    Raises:
        UserError: no such function, a point that is no config, two alike, or a folder that holds another run.
    """
    workdir = from_user(workdir)
    if storage.is_remote(workdir):
        raise UserError(f"--workdir={workdir}: a sweep gathers its runs in a local folder")
    listed = load_sweep(file)
    points = {}
    for name, values in zip(_folders(file, name_points(listed)), listed):
        own = settings(values)
        if not all(map(_is_argument, own)):
            raise UserError(f"--config={file}: sweep() gives {name}: NUL and halves of characters stand in no command")
        place = Path(workdir) / name
        config = load_config(file, [*overrides, *own], str(place), count_records)
        if (place / "config.json").exists():
            check_same_run(place, config)
        words = ["train", f"--config={file}", f"--workdir={from_user(place)}", *overrides, *own]
        points[name] = Point(name, values, config, place, words)
    if not points:
        raise UserError(f"--config={file}: sweep() gives no point")
    return list(points.values())


def _is_argument(word: str) -> bool:
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False


def _folders(file: str, names: Sequence[str]) -> Iterator[str]:
    """Yield a folder's name for each point's: no two, nor their logs, are one on a disk that ignores case."""
    taken: set[str] = set()
    for n, name in enumerate(names):
        if name in names[:n]:
            raise UserError(f"--config={file}: sweep() gives {name} twice")
        folder = _folder(name)
        if taken & _on_any_disk(folder):
            folder = _marked(folder, name)
        taken |= _on_any_disk(folder)
        yield folder


def _on_any_disk(folder: str) -> set[str]:
    return {unicodedata.normalize("NFKC", each).casefold() for each in (folder, f"{folder}.log")}


def _folder(name: str) -> str:
    folder = re.sub(r"[^\w.=,+-]", "_", name)
    return folder if folder == name and len(folder.encode()) <= MAX_NAME else _marked(folder, name)


def _marked(folder: str, name: str) -> str:
    """The folder's beginning and a hash of the whole name."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{folder.encode()[: MAX_NAME - 9].decode('utf-8', 'ignore')}_{digest}"


def commands(points: Sequence[Point]) -> str:
    """One full command for each point that is not finished."""
    return "\n".join(plain.command(["filip", *point.words]) for point in points if not point.is_finished())


def run_points(points: Sequence[Point], jobs: int) -> list[str]:
    """Trains what is not finished, `jobs` at a time, each with its output beside its folder, in NAME.log.

    On GPUs, of several jobs each has one. SIGTERM and Ctrl-C are
    handed on, so that each saves; the same command goes on.

    Returns:
        a line for each that failed.

    Raises:
        UserError: `jobs` out of range.
        KeyboardInterrupt: a signal ended it.
    """
    if jobs < 1:
        raise UserError(f"--jobs={jobs} must be at least 1")
    gpus = _gpus()
    if jobs > 1 and _has_tpus():
        raise UserError(f"--jobs={jobs}: on TPUs one process takes all chips; take --jobs=1")
    if len(gpus) and not 1 <= jobs <= len(gpus):
        raise UserError(f"--jobs={jobs} must be at most {len(gpus)}, the number of GPUs")
    todo = [point for point in points if not point.is_finished()]
    progress, failed = Progress("sweep", len(points), len(points) - len(todo)), []
    running: dict[int, tuple[Point, subprocess.Popen]] = {}
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while todo or running:
            for slot in range(jobs):
                if todo and slot not in running:
                    running[slot] = todo[0], _start(todo.pop(0), gpus[slot] if jobs > 1 and gpus else "")
            for slot, (point, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    progress.advance()
                    failed += [] if process.returncode == 0 else [_failure(point, process.returncode)]
            time.sleep(0.1)
    except BaseException:  # what ends this one is handed on
        for _, process in running.values():
            process.send_signal(signal.SIGTERM)
        for _, process in running.values():
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt  # not by SIGINT, which what is started in the background ignores


def _gpus() -> list[str]:
    """The GPUs that JAX would see here, by JAX_PLATFORMS, CUDA_VISIBLE_DEVICES or by what there is."""
    given, platforms = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    found = sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return (
        found
        if given is None or not found
        else [name for name in given.split(",") if name and not name.startswith("-")]
    )


def _has_tpus() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    there = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(there) and (not platforms or "tpu" in platforms.split(","))


def _start(point: Point, gpu: str) -> subprocess.Popen:
    point.workdir.parent.mkdir(parents=True, exist_ok=True)
    one = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
    command = [sys.executable, "-m", "filip_jax", *point.words]
    show(f"{point.name} ...", file=sys.stderr)
    if point.workdir.is_symlink():
        raise UserError(f"{point.workdir} is a symbolic link, through which no sweep trains: remove the link")
    with open_to_append(_log(point)) as log:
        # This Python and this package, in a group of its own: a Ctrl-C at the terminal is handed on as SIGTERM, which saves.
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | one, start_new_session=True)  # noqa: S603


def _log(point: Point) -> Path:
    return point.workdir.with_name(f"{point.name}.log")


def _failure(point: Point, code: int) -> str:
    with _log(point).open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
        lines = log.read().decode(errors="replace").strip().split("\n")
    return f"{point.name} ended with {code}: {lines[-1][:200]} ({_log(point)})"


def write_results(points: Sequence[Point], workdir: Path) -> str:
    """The table of all points that have numbers, as markdown; sweep.md and sweep.csv hold it, too."""
    rows = {point.name: point.row() for point in points if (point.workdir / RESULTS).exists()}
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["point", *map(plain.one_line, names)])
    for point, row in rows.items():
        writer.writerow([plain.one_line(str(value)) for value in (point, *(row.get(name, "") for name in names))])
    markdown = table(rows)
    write_atomically(workdir / "sweep.csv", text.getvalue())
    write_atomically(workdir / "sweep.md", markdown + "\n")
    return markdown
