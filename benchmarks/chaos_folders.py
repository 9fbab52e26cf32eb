"""Breaks the folder of a real run: links in it, a folder that is moved or emptied, two containers on one; as a table.

    python benchmarks/chaos_folders.py      about ten minutes on two cores

Nothing outside of the workdir may change, no run may end with 0 and an unusable workdir, and one run writes at a time.
See also chaos.py.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import report
from chaos import Broken, Job, check, finish, last_line, same, saved_steps, uninterrupted

ONE = {"processes": 1, "devices": 2}
FOLDERS = ("checkpoints", "compiled", "keys", "quarantine", "skipped", "tensorboard", "pictures", "profile")
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")  # each has a process of the same number


def make_victim(folder: Path) -> dict[str, bytes]:
    """Files of somebody else's, with names that a run has, too."""
    for name in ("thesis.txt", "deep/key", "5/state/d/0", "5/manifest.json", "process_0.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")
    return content(folder)


def content(folder: Path) -> dict[str, bytes]:
    """{path: bytes} of all files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def links(folder: Path, whole: Path, options: tuple = (), names: tuple = FOLDERS) -> dict[str, str]:
    """Each folder of a workdir as a link, the remains of a save behind a link, and the workdir itself behind links."""
    results, victim = {}, folder / "victim"
    before = make_victim(victim)
    for name in names:
        workdir = folder / f"linked_{name}"
        workdir.mkdir()
        (workdir / name).symlink_to(victim)
        job = Job(workdir, options=options, **ONE)
        check(job.wait() == [2] and "is a symbolic link" in job.output(), f"{name}:\n{job.output()}")
        check(content(victim) == before, f"{name} as a link: what it leads to has changed")
        check(os.listdir(workdir) == [name], f"{name} as a link: refused, but {os.listdir(workdir)} was written")
    results[f"{len(names)} folders as links"] = "refused, exit 2, nothing written"
    step = folder / "remains/checkpoints/5"
    step.mkdir(parents=True)
    (step / "state").symlink_to(victim)
    (step / "saving.json").write_text(json.dumps({"state": "state", "files": ["state/thesis.txt", "state/deep/key"]}))
    finish(folder / "remains", options=options, **ONE)
    same(folder / "remains", whole)
    check(content(victim) == before, "remains of a save behind a link: what it leads to has changed")
    results["remains of a save behind a link"] = "left alone, the run comes to the same"
    (folder / "scratch").mkdir()
    (folder / "behind").symlink_to(folder / "scratch")
    finish(folder / "behind/run", options=options, **ONE)
    same(folder / "scratch/run", whole)
    results["the workdir behind a link"] = "the run comes to the same"
    return results


def empty(workdir: Path) -> None:
    """Removes all that lies in a folder; what is written meanwhile is removed, too."""
    for path in workdir.iterdir():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def made_anew(workdir: Path) -> None:
    """Another folder in its place."""
    shutil.move(workdir, workdir.with_name(f"{workdir.name}_elsewhere"))
    workdir.mkdir()


WAYS: dict[str, Callable[[Path], object]] = {
    "moved": lambda workdir: shutil.move(workdir, workdir.with_name(f"{workdir.name}_elsewhere")),
    "removed": lambda workdir: shutil.rmtree(workdir, ignore_errors=True),
    "made anew": made_anew,
    "emptied": empty,
    "checkpoints removed": lambda workdir: shutil.rmtree(workdir / "checkpoints", ignore_errors=True),
    "config.json removed": lambda workdir: (workdir / "config.json").unlink(),
    "tokenizer.model removed": lambda workdir: (workdir / "tokenizer.model").unlink(),
    "running.json removed": lambda workdir: (workdir / "running.json").unlink(),
}


def moved(folder: Path, options: tuple = (), ways: tuple = tuple(WAYS)) -> dict[str, str]:
    """Change the workdir of a run in progress: the run ends with one line, or with a usable workdir."""
    results = {}
    for way in ways:
        workdir = folder / way.replace(" ", "_")
        job = Job(workdir, options=options, **ONE)
        job.wait_until(lambda job=job: job.entered("step", 6), "step 6")
        WAYS[way](workdir)
        codes, said = job.wait(), job.output(4000)
        check(codes in ([0], [2]) and "Traceback" not in said, f"{way}: exit codes {codes}:\n{said}")
        if codes == [0]:
            command = [sys.executable, "-m", "filip_jax", "inspect", str(workdir), "--verify"]
            done = subprocess.run(command, capture_output=True, text=True)
            check(done.returncode == 0, f"{way}: exit 0, but it cannot be used: {done.stderr}")
            check((workdir / "tokenizer.model").is_file(), f"{way}: exit 0 without a tokenizer")
            results[way] = f"exit 0, usable: step {saved_steps(workdir)[-1]} is whole"
        else:
            results[way] = f"exit 2: {last_line(said, folder)}"
    return results


def twins(folder: Path, options: tuple = ()) -> dict[str, str]:
    """Two containers with the same host name and process id on one workdir, as root."""
    if os.geteuid() or subprocess.run([*CONTAINER, "true"], capture_output=True).returncode:
        return {"two containers": "not tried: it takes root"}
    slow = {**ONE, "before": CONTAINER, "slow": "data", "CHAOS_SECONDS": "0.5"}
    first = Job(folder / "twins", options=options, **slow)
    first.wait_until(lambda: first.entered("step"), "step")
    second = Job(folder / "twins", options=options, **slow)
    check(second.wait() == [2], f"two containers train in one workdir:\n{second.output()}")
    check("another run writes to" in second.output(), second.output())
    line = last_line(second.output(), folder)
    check(first.running(), f"the first one ended:\n{first.output()}")
    first.kill()
    finish(folder / "twins", options=options, **ONE)
    return {"two containers": f"the second, exit 2: {line}"}


def main() -> int:
    """Prints the report; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path, help="where the runs lie (default: a temporary folder)")
    report.add_output(parser)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="chaos_folders_"))
    folder.mkdir(parents=True, exist_ok=True)
    options = (f"--config.total_steps={arguments.steps}", "--config.optimizer.warmup_steps=3")
    whole = uninterrupted(folder / "whole", options=options, **ONE)
    parts = (lambda: links(folder, whole, options), lambda: moved(folder, options), lambda: twins(folder, options))
    with report.recorded(arguments.output):
        print("| broken                           | outcome |\n| -------------------------------- | ------- |")
        broken = 0
        for part in parts:
            try:
                outcomes = part()
            except Broken as error:
                broken, outcomes = broken + 1, {"BROKEN": str(error)}
            for what, outcome in outcomes.items():
                print(f"| {what:<32} | {outcome} |", flush=True)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
