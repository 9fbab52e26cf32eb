"""Breaks the processes that a real run needs beside its own: what becomes of it, as a table.

    python benchmarks/chaos_workers.py      about ten minutes on two cores

Data workers that are killed, crash or stand still, /dev/shm without room (as root), the process that trains a tokenizer.
Each time the run must end with exit code 43 and one line, no step may be lost where there was time to save it, and
started again it must come to the same as an uninterrupted run. See also chaos.py.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report
from chaos import HUNG, Broken, Job, check, finish, losses, same, saved_steps, uninterrupted

ONE = {"processes": 1, "devices": 1}
WORKERS = ("--config.data.workers=1",)


def children(pid: int, word: str) -> list[int]:
    """The processes below a process in whose command line a word stands."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # what has ended since
            for child in map(int, task.read_text().split()):
                words = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace")
                found += [child] if word in words else children(child, word)
    return found


def ended(job: Job, word: str) -> str:
    """The last line of a run that must have ended with 43, one line, and this word in it."""
    codes, said = job.wait(), job.output(20_000)
    check(set(codes) == {HUNG}, f"exit codes {codes}:\n{said}")
    check("Traceback" not in said, f"a traceback:\n{said}")
    line = next((line for line in reversed(said.splitlines()) if word in line), "")
    check(line, f"{word} is not said:\n{said}")
    return line


def killed_workers(folder: Path, whole: Path, number: int, options: tuple, **job) -> str:
    """A data worker ends by a signal: all that was trained is saved, and the run comes to the same."""
    name = signal.Signals(number).name
    workdir = folder / name
    broken = Job(workdir, options=(*options, *WORKERS), **job)
    broken.wait_until(lambda: broken.entered("step", 6), "step 6")
    victim = broken.processes[-1].pid
    os.kill(children(victim, "--multiprocessing-fork")[0], number)
    line = ended(broken, name)
    made, newest = max(losses(workdir)), max(saved_steps(workdir), default=0)
    check(newest >= made, f"step {made} was made, but {newest} is saved: {line}")
    finish(workdir, options=(*options, *WORKERS), **job)
    same(workdir, whole)
    return f"exit {HUNG}, step {newest} saved, goes on the same: {line[:150]}"


def frozen_worker(folder: Path, options: tuple) -> str:
    """A data worker that stands still is found by the clock on the phase."""
    job = Job(folder / "frozen", options=(*options, *WORKERS, "--config.processes.hang_seconds=20.0"), **ONE)
    job.wait_until(lambda: job.entered("step", 6), "step 6")
    os.kill(children(job.processes[0].pid, "--multiprocessing-fork")[0], signal.SIGSTOP)
    began, codes = time.monotonic(), job.wait(120)
    check(codes == [HUNG] and "hang: phase data" in job.output(), f"{codes}:\n{job.output()}")
    return f"exit {HUNG} after {time.monotonic() - began:.0f} s: hang: phase data"


def killed_trainer(folder: Path, options: tuple) -> str:
    """The process that trains the tokenizer is killed."""
    job, found = Job(folder / "trainer", options=options, **ONE), []

    def seen() -> bool:
        found.extend(children(job.processes[0].pid, "filip_jax.data.sentence_pieces"))
        return bool(found)

    job.wait_until(seen, "trainer")
    os.kill(found[0], signal.SIGKILL)
    line = ended(job, "SIGKILL")
    finish(folder / "trainer", options=options, **ONE)
    return f"exit {HUNG}, goes on: {line[:150]}"


def no_shared_memory(folder: Path, options: tuple) -> str:
    """A container with too small a /dev/shm, as root in a namespace of mounts."""
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        return "not tried: it takes root"
    small = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    before = ("unshare", "-m", "sh", "-c", small, "sh")
    line = ended(Job(folder / "shm", options=(*options, *WORKERS), before=before, **ONE), "/dev/shm")
    return f"exit {HUNG}: {line[:150]}"


def main() -> int:
    """Prints the report; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path, help="where the runs lie (default: a temporary folder)")
    report.add_output(parser)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="chaos_workers_"))
    folder.mkdir(parents=True, exist_ok=True)
    options = (f"--config.total_steps={arguments.steps}", "--config.optimizer.warmup_steps=3")
    alone, both = (uninterrupted(folder / f"whole_{n}", options=options, processes=n, devices=2 // n) for n in (1, 2))
    parts = {
        f"a worker: {name}": lambda name=name: killed_workers(folder, alone, signal.Signals[name], options, processes=1, devices=2)
        for name in ("SIGKILL", "SIGSEGV", "SIGBUS", "SIGABRT")
    }  # fmt: skip
    parts |= {
        "a worker of one of two processes": lambda: killed_workers(folder, both, signal.SIGTERM, options, devices=1),
        "a worker stands still": lambda: frozen_worker(folder, options),
        "the tokenizer's trainer": lambda: killed_trainer(folder, options),
        "/dev/shm of 64 kB": lambda: no_shared_memory(folder, options),
    }
    with report.recorded(arguments.output):
        print("| broken                           | outcome |\n| -------------------------------- | ------- |")
        broken = 0
        for what, part in parts.items():
            try:
                outcome = part()
            except Broken as error:
                broken, outcome = broken + 1, f"BROKEN: {str(error).splitlines()[0]}"
                print(error, file=sys.stderr)
            print(f"| {what:<32} | {outcome} |", flush=True)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
