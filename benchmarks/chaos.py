"""Breaks a real run in every way that clusters know, and says what became of it, as a table.

    python benchmarks/chaos.py                          all of it, about an hour on two cores
    python benchmarks/chaos.py --only=kills --kills=20
    python benchmarks/chaos.py --only=stops,freezes

The run is small, of two processes with four CPU devices each. Beside it an uninterrupted one, whose
samples and losses every broken one must reach. Any promise that does not hold is printed and gives
exit code 1.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import report

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "benchmarks/chaos_config.py"
PREEMPTED, HUNG = 42, 43
HEARTBEAT, START = 10, 30  # seconds, as in the config
DEVICES = 4  # of each process
# JAX lets process 0 alone fill its cache of programs; the others compile at each start.
QUICKLY = "--xla_backend_optimization_level=0"
PATIENCE = 180  # seconds after which a run that should have ended is said to hang
# Seconds that a promise with a limit leaves to the machine; tests, which have other work beside them, set more.
SLACK = 15


class Broken(AssertionError):
    """A promise that did not hold."""


def check(holds: object, said: str) -> None:
    """Raises Broken unless it holds."""
    if not holds:
        raise Broken(said)


class Job:
    """The processes of one start of a run.

    Args:
        devices: CPU devices of each process, by default DEVICES.
        slow: the phase to stretch, see chaos_config.py.
        options: more words for `filip train`.
        before: words before the command, such as unshare.
    """

    def __init__(
        self, workdir: Path, *, processes: int = 2, devices: int = 0, slow: str = "", options: tuple = (),
        before: tuple = (), **more: str,
    ):  # fmt: skip
        self.workdir = workdir
        self.logs = Path(tempfile.mkdtemp(prefix=f"{workdir.name}_"))
        self.phases = [self.logs / f"phases_{index}" for index in range(processes)]
        for file in self.phases:
            file.write_text("")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.processes = []
        for index in range(processes):
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices or DEVICES} {QUICKLY}",
                "CHAOS": slow, "PHASES": str(self.logs / "phases_%"), "JAX_PROCESS_ID": str(index),
                "JAX_NUM_PROCESSES": str(processes), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", **more,
            }  # fmt: skip
            words = ["train", f"--config={CONFIG}", f"--workdir={workdir}", *options]
            words += ["--distributed"] if processes > 1 else []
            log = (self.logs / f"process_{index}.log").open("wb")
            command = [*before, sys.executable, "-m", "filip_jax", *words]
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT))
            log.close()

    def phase(self, index: int = 0) -> str:
        """The phase that a process entered last."""
        return (self.phases[index].read_text().splitlines() or ["start"])[-1]

    def entered(self, name: str, times: int = 1, index: int = 0) -> bool:
        """Whether a process has entered a phase so often."""
        return self.phases[index].read_text().splitlines().count(name) >= times

    def running(self) -> list[subprocess.Popen]:
        return [process for process in self.processes if process.poll() is None]

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for something to happen; the run must not end before.

        Raises:
            Broken: it ended, or nothing happened.
        """
        end = time.monotonic() + PATIENCE
        try:
            while not condition():
                check(len(self.running()) == len(self.processes), f"the run ended before {what}:\n{self.output()}")
                check(time.monotonic() < end, f"no {what} in {PATIENCE} s:\n{self.output()}")
                time.sleep(0.005)
        except BaseException:
            self.kill()
            raise

    def wait(self, limit: float = 0.0) -> list[int]:
        """The exit codes, when all have ended.

        Raises:
            Broken: one has not.
        """
        limit = limit or PATIENCE
        end = time.monotonic() + limit
        while self.running() and time.monotonic() < end:
            time.sleep(0.02)
        late = [self.processes.index(process) for process in self.running()]
        self.kill()
        check(
            not late,
            f"processes {late} still run {limit:.0f} s later, in phase {self.phase(late[0]) if late else ''}:\n{self.output()}",
        )
        return [process.returncode for process in self.processes]

    def send(self, number: int, indices: list[int]) -> None:
        """A signal to some of the processes."""
        for index in indices:
            if self.processes[index].poll() is None:
                self.processes[index].send_signal(number)

    def kill(self) -> None:
        """Ends what still runs."""
        for process in self.running():
            process.kill()
        for process in self.processes:
            process.wait()

    def output(self, last: int = 1500) -> str:
        """The ends of what the processes said."""
        texts = [
            (self.logs / f"process_{index}.log").read_text(errors="replace") for index in range(len(self.processes))
        ]
        return "\n".join(f"[{index}] {text[-last:]}" for index, text in enumerate(texts))


def losses(workdir: Path) -> dict[int, float]:
    """{step: loss} of metrics.jsonl; each step must stand there once."""
    file, found = workdir / "metrics.jsonl", {}
    for line in file.read_bytes().splitlines(keepends=True) if file.exists() else ():
        if line.endswith(b"\n") and "train/loss" in (entry := json.loads(line)):
            check(entry["step"] not in found, f"step {entry['step']} stands twice in {file}")
            found[entry["step"]] = entry["train/loss"]
    return found


def keys(workdir: Path) -> dict[int, list[str]]:
    """{step: the sample keys of the global batch, in order}; each step once for each process."""
    rows: dict[int, dict[int, list[str]]] = {}
    for file in sorted((workdir / "keys").glob("*.jsonl")):
        for line in file.read_bytes().splitlines(keepends=True):
            entry = json.loads(line)
            check(entry["first_row"] not in rows.setdefault(entry["step"], {}), f"step {entry['step']} twice in {file}")
            rows[entry["step"]][entry["first_row"]] = entry["keys"]
    return {step: [key for first in sorted(parts) for key in parts[first]] for step, parts in rows.items()}


def saved_steps(workdir: Path) -> list[int]:
    """The steps with a manifest."""
    return sorted(int(file.parent.name) for file in (workdir / "checkpoints").glob("*/manifest.json"))


def same(workdir: Path, whole: Path) -> None:
    """Raises Broken unless the run came to the same as the uninterrupted one: samples, losses, evaluations."""
    check(keys(workdir) == keys(whole), "the stream of samples is another")
    mine, expected = losses(workdir), losses(whole)
    check(list(mine) == list(expected), f"steps are missing: {sorted(set(expected) ^ set(mine))[:9]}")
    differ = [step for step in mine if mine[step] != expected[step]]
    check(not differ, f"the losses of steps {differ[:5]} differ, first {mine.get((differ or [0])[0])}")
    results = [json.loads((run / "evals.json").read_text())["steps"] for run in (workdir, whole)]
    check(results[0] == results[1], f"the evaluations differ: {results}")


def finish(workdir: Path, **options) -> None:
    """Starts the run a last time and lets it end."""
    job = Job(workdir, **options)
    check(job.wait(1800) == [0] * len(job.processes), f"the run did not end well:\n{job.output()}")


def uninterrupted(workdir: Path, **options) -> Path:
    """A run that nothing happens to."""
    finish(workdir, **options)
    return workdir


def kills(folder: Path, whole: Path, count: int, random_: random.Random, options: tuple = ()) -> dict[str, object]:
    """SIGKILL of all processes or of one, at a random moment or while a save is under way."""
    workdir, seen, outcome, slowest = folder / "killed", {}, Counter(), {True: 0.0, False: 0.0}
    for number in range(count):
        job = Job(workdir, options=options)
        in_save = random_.random() < 0.3
        moment = time.monotonic() + random_.uniform(0.0, 16.0)

        def due():
            return job.phase() == "save" if in_save else time.monotonic() > moment

        while not due() and len(job.running()) == len(job.processes):
            time.sleep(0.002)
        if len(job.running()) < len(job.processes):
            check(job.wait() == [0, 0], f"kill {number}: the run ended by itself:\n{job.output()}")
            same(workdir, whole)
            outcome["finished before the kill, as the uninterrupted run"] += 1
            shutil.rmtree(workdir)  # from the beginning
            seen = {}
            continue
        victims = random_.choice([[0, 1], [0], [1]])
        started = all(file.read_text() for file in job.phases)  # past waiting for each other
        job.send(signal.SIGKILL, victims)
        killed = time.monotonic()
        codes = job.wait((HEARTBEAT if started else START + 3) + SLACK)
        if len(victims) == 1:
            slowest[started] = max(slowest[started], time.monotonic() - killed)
        # JAX aborts where process 0 is gone, and Gloo, its collectives on CPUs, where a message ends in the middle.
        torn = "gloo::EnforceNotMet" in job.output()
        outcome["aborted by Gloo"] += torn
        named = (HUNG,) if victims == [1] and started and not torn else (HUNG, -6, -9)
        check(
            all(code in (-9, *named) for code in codes),
            f"kill {number} of {victims}: exit codes {codes}:\n{job.output()}",
        )
        outcome["during a save" if in_save else "at a random moment"] += 1
        outcome[{2: "all processes", 1: f"process {victims[0]} alone"}[len(victims)]] += 1
        for step, loss in losses(workdir).items():
            check(
                seen.setdefault(step, loss) == loss,
                f"kill {number}: step {step} came to {loss}, before to {seen[step]}",
            )
    finish(workdir, options=options)
    for step, loss in losses(workdir).items():
        check(seen.setdefault(step, loss) == loss, f"step {step} came to {loss}, before to {seen[step]}")
    same(workdir, whole)
    return {
        **outcome,
        "a survivor ended within": f"{slowest[True]:.1f} s ({slowest[False]:.1f} s where they still began)",
        "samples, losses, evaluations": "those of the uninterrupted run",  # or `same` had raised
    }


STOPS = {  # phase: (phase to stretch, options)
    "compile": ("", ()),
    "data": ("data", ()),
    "step": ("", ()),
    "evaluation": ("evaluation", ()),
    "save": ("save", ()),
}


def stops(
    folder: Path,
    whole: Path,
    count: int,
    random_: random.Random,
    options: tuple = (),
    phases: Iterable[str] = tuple(STOPS),
) -> dict[str, object]:
    """SIGTERM or SIGUSR1 to all processes or one of them, in each phase in turn; the run goes on from one to the next."""
    workdir, done, slowest = folder / "stopped", Counter(), Counter()
    for number in range(count):
        for phase in phases:
            while not (seconds := stopped(workdir, phase, number, random_, options)):  # it came to its end before
                same(workdir, whole)
                shutil.rmtree(workdir)
            done[phase] += 1
            slowest[phase] = max(slowest[phase], seconds)
    finish(workdir, options=options)
    same(workdir, whole)
    return {
        phase: f"{done[phase]} of {count} saved, exit {PREEMPTED}, slowest {slowest[phase]:.1f} s" for phase in phases
    }


def stopped(workdir: Path, phase: str, number: int, random_: random.Random, options: tuple) -> float:
    """One stop in a phase; the seconds that it took, or 0.0 if the run ended before."""
    slow, more = STOPS[phase]
    uncached = {"JAX_ENABLE_COMPILATION_CACHE": "0"} if phase == "compile" else {}
    seconds = {"CHAOS_SECONDS": "1" if phase == "data" else "3"}
    job = Job(workdir, slow=slow, options=(*options, *more), **seconds, **uncached)
    first = not saved_steps(workdir)
    reached = random_.randint(1, 8) if phase in ("step", "data") else 0  # not in the first one only

    def there() -> bool:
        times = 2 if phase == "compile" and first else 1  # the state's birth is the first
        return job.phase() == phase and job.entered(phase, times) and job.entered("step", reached)

    while not there() and len(job.running()) == 2:
        time.sleep(0.005)
    time.sleep(random_.uniform(0.0, 0.3))
    job.send(random_.choice([signal.SIGTERM, signal.SIGUSR1]), random_.choice([[0, 1], [0], [1]]))
    sent = time.monotonic()
    codes = job.wait(58 + SLACK)
    if codes == [0, 0]:
        return 0.0
    seconds = time.monotonic() - sent
    where = f"{phase}, round {number}"
    check(codes == [PREEMPTED] * 2, f"{where}: exit codes {codes}:\n{job.output()}")
    made, newest = max(losses(workdir), default=0), max(saved_steps(workdir), default=0)
    check(newest >= made, f"{where}: step {made} was made, but {newest} is saved:\n{job.output()}")
    check(
        not (phase == "compile" and first) or seconds < 3 + SLACK, f"a stop in the first compile took {seconds:.1f} s"
    )
    return seconds


def freezes(folder: Path, options: tuple = (), which: tuple = (1, 0)) -> dict[str, object]:
    """A process that stops for ever, in a step: the other ends within the limit and names it."""
    results = {}
    for frozen in which:
        job = Job(folder / f"frozen_{frozen}", options=options)
        job.wait_until(lambda: job.entered("step", 6), "step 6")
        job.send(signal.SIGSTOP, [frozen])
        since = time.monotonic()
        other = job.processes[1 - frozen]
        while other.poll() is None and time.monotonic() - since < HEARTBEAT + 8 + SLACK:
            time.sleep(0.05)
        seconds, said = time.monotonic() - since, job.output()
        code = other.poll()
        job.kill()
        check(code == HUNG, f"process {frozen} froze, the other ended with {code}:\n{said}")
        check(f"process {frozen} (" in said, f"process {frozen} froze and is not named:\n{said}")
        results[f"process {frozen} stopped"] = f"named after {seconds:.1f} s, exit {code}"
    return results


def corruption(
    folder: Path, whole: Path, restarts: int, random_: random.Random, options: tuple = ()
) -> dict[str, object]:
    """Every file of the newest checkpoint flipped, truncated and deleted; some of the cases as real restarts."""
    sys.path.insert(0, str(ROOT))
    from filip_jax.checkpoint import CheckpointWriter
    from filip_jax.saved_config import read_config
    from filip_jax.train.start import newest_sound

    workdir, outcome = folder / "corrupt", Counter()
    shutil.copytree(whole, workdir)
    *_, before, newest = saved_steps(workdir)
    spoilt = workdir / f"checkpoints/{newest}"
    files = sorted(path for path in spoilt.rglob("*") if path.is_file())
    cases = [(file, way) for file in files for way in ("flipped", "truncated", "deleted")]
    real = set(random_.sample(range(len(cases)), min(restarts, len(cases))))
    for number, (file, way) in enumerate(cases):
        data = file.read_bytes()
        spoil(file, way, random_)
        writer = CheckpointWriter(workdir, every_steps=1, every_minutes=0.0, keep_last=2, keep_every_steps=0)
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            found = (
                newest_sound(writer, workdir, read_config(workdir))
                if number not in real
                else restarted(workdir, options)
            )
        if data or way == "deleted":
            check(found == before, f"{file.name} {way}: went on from {found}, not from {before}")
            outcome[way] += 1
        shutil.rmtree(spoilt)
        shutil.copytree(whole / f"checkpoints/{newest}", spoilt)
    return {**{f"files {way}": count for way, count in outcome.items()}, "of these as real restarts": len(real)}


def restarted(workdir: Path, options: tuple) -> int:
    """The step that a real start goes on from."""
    job = Job(workdir, options=options)
    check(job.wait() == [0, 0], f"no restart:\n{job.output()}")
    said = job.output(100_000)
    check(said.count("IS DAMAGED") == 1 or "has no manifest.json" in said, f"nothing said:\n{said[-3000:]}")
    return int(said.split("resuming at step ")[1].split()[0])


def spoil(file: Path, way: str, random_: random.Random) -> None:
    """Damages a file."""
    data = bytearray(file.read_bytes())
    if way == "deleted":
        file.unlink()
    elif way == "truncated":
        file.write_bytes(data[: random_.randrange(len(data))] if data else data)
    elif data:
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        file.write_bytes(data)


def disks(folder: Path, options: tuple = ()) -> dict[str, object]:
    """Workdirs that cannot be written, from the start or at some time."""
    results = {}
    one = {"processes": 1, "devices": 1}

    def ends_clearly(name: str, job: Job, word: str) -> None:
        codes, said = job.wait(), job.output(4000)
        check(codes == [2], f"{name}: exit codes {codes}:\n{said}")
        check("Traceback" not in said and word in said, f"{name}: it said\n{said}")
        results[name] = (
            "one line, exit 2: "
            + said.strip().splitlines()[-1].replace(str(folder), "…").removeprefix("filip: error: ")[:110]
        )

    file = folder / "a_file"
    file.write_text("")
    ends_clearly("workdir is a file", Job(file, options=options, **one), "is a file")
    (folder / "link").symlink_to("/proc/self/nothing")
    ends_clearly(
        "workdir cannot be made", Job(folder / "link/run", options=options, **one), "nothing can be written there"
    )
    limited = folder / "limited"
    job = Job(limited, options=(*options, "--config.model.text.vocab_size=60000"), **one, CHAOS_FILE_LIMIT="3000000")
    ends_clearly("files are limited to 3 MB", job, "could not be saved")
    check(not saved_steps(limited), "a torn checkpoint counts")
    if os.geteuid() == 0 and mounted(folder / "small", "8m"):
        try:
            job = Job(
                folder / "small/run",
                options=(
                    *options,
                    "--config.compile_cache=False",
                    "--config.checkpoint.every_steps=1",
                    "--config.checkpoint.keep_last=99",
                ),
                **one,
            )
            ends_clearly("disk of 8 MB is full", job, "No space left")
            writer_steps = saved_steps(folder / "small/run")
            check(writer_steps, "nothing was saved before the disk was full")
            shutil.copytree(folder / "small/run", folder / "moved")
            job = Job(folder / "moved", options=options, **one)
            job.wait_until(lambda: job.entered("step"), "step")
            check(f"resuming at step {writer_steps[-1]}" in job.output(), "the last whole checkpoint is not used")
            job.kill()
        finally:
            subprocess.run(["umount", "-l", folder / "small"])
    return results


def mounted(folder: Path, size: str) -> bool:
    """Whether a small disk could be mounted."""
    folder.mkdir()
    return (
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True).returncode
        == 0
    )


def clocks(folder: Path, whole: Path, library: str, options: tuple = ()) -> dict[str, object]:
    """The clock jumps by a day, ahead and back, by libfaketime. JAX's own heartbeat may take that for a death."""
    check(library, "install libfaketime and name its library: --libfaketime=…/libfaketime.so.1")
    workdir, offset = folder / "clock", folder / "offset"
    offset.write_text("+0d")
    jumps = {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    outcomes = []
    for jump, back in (("+1d", "+0d"), ("-1d", "+0d")):
        job = Job(workdir, options=options, **jumps)
        job.wait_until(lambda job=job: job.entered("step", 6), "step 6")
        offset.write_text(jump)
        codes = job.wait(1800)
        check(codes != [2, 2] and 1 not in codes, f"{jump}: exit codes {codes}:\n{job.output()}")
        outcomes.append(f"{jump}: exit {codes[0]}")
        offset.write_text(back)
    finish(workdir, options=options)
    same(workdir, whole)
    return {"a day ahead, a day back": f"{', '.join(outcomes)}; started again, the run is the same"}


def shards(folder: Path) -> dict[str, object]:
    """The tars of a run are removed, or cut, while it reads them."""
    sys.path.insert(0, str(ROOT / "tests"))
    from pairs import write_webdataset

    results = {}
    for way in ("removed", "cut in half"):
        tars = folder / f"tars_{way.split()[0]}"
        tars.mkdir()
        write_webdataset(tars, [range(0, 40), range(40, 80)])
        more = ("--config.total_steps=400", "--config.eval_every_steps=0", "--source", "webdataset", f"path={tars}")
        workdir, one = folder / f"shards_{way.split()[0]}", {"processes": 1, "devices": 1, "options": more}
        job = Job(workdir, **one)
        job.wait_until(lambda job=job: job.entered("step", 6), "step 6")
        for file in tars.glob("*.tar"):
            if way == "removed":
                file.unlink()
            else:
                os.truncate(file, file.stat().st_size // 2)
        codes = job.wait()  # what is open can still be read
        again = Job(workdir, **one)
        ends = [codes, again.wait()]
        said = [job.output(3000), again.output(3000)]
        check("Traceback" not in said[0] + said[1], f"{way}:\n{said[0]}\n{said[1]}")
        check(ends[0] in ([0], [2]) and (ends[0] == [0] or way != "removed"), f"{way}: {ends}\n{said[0]}")
        check(ends[1] == [2], f"{way}: {ends}\n{said[1]}")
        results[f"shards {way}"] = f"exit {ends[0][0]}, then 2: {last_line(said[1], folder)}"
    return results


def last_line(said: str, folder: Path) -> str:
    """The message that a run ended with."""
    return said.strip().splitlines()[-1].replace(str(folder), "…").removeprefix("filip: error: ")[:110]


PARTS = ("kills", "stops", "freezes", "corruption", "disks", "shards", "clocks")


def main() -> int:
    """Prints the report; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stops", type=int, default=10, help="in each phase")
    parser.add_argument("--restarts", type=int, default=9, help="damaged checkpoints that a whole run starts from")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--libfaketime", default="", help="its library, for the clocks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs lie (default: a temporary folder)")
    report.add_output(parser)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="chaos_"))
    folder.mkdir(parents=True, exist_ok=True)
    options, random_ = (f"--config.total_steps={arguments.steps}",), random.Random(arguments.seed)
    wanted = arguments.only.split(",")
    whole = functools.cache(lambda: uninterrupted(folder / "whole", options=options))
    parts = {
        "kills": lambda: kills(folder, whole(), arguments.kills, random_, options),
        "stops": lambda: stops(folder, whole(), arguments.stops, random_, options),
        "freezes": lambda: freezes(folder, options),
        "corruption": lambda: corruption(folder, whole(), arguments.restarts, random_, options),
        "disks": lambda: disks(folder, options),
        "shards": lambda: shards(folder),
        "clocks": lambda: clocks(folder, whole(), arguments.libfaketime, options),
    }
    with report.recorded(arguments.output):
        print(
            "| broken by  | what                           | outcome |\n| ---------- | ------------------------------ | ------- |"
        )
        broken = 0
        for name in wanted:
            started = time.monotonic()
            try:
                rows = parts[name]() | {"took": f"{(time.monotonic() - started) / 60:.1f} min"}
            except Broken as error:
                broken, rows = broken + 1, {"BROKEN": str(error)}
            for what, outcome in rows.items():
                print(f"| {name:<10} | {what:<30} | {outcome} |", flush=True)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
