r"""Ten thousand nonsensical inputs: none may end in a traceback or hang.

    python benchmarks/fuzz.py                                 # 2,000 of each kind, one table
    python benchmarks/fuzz.py --kind=tars --cases=500 --seed=7
    python benchmarks/fuzz.py --kind=images --case=123        # one again, with its traceback

  configs    overrides and sources as on the command line, up to a run that is built but not compiled
  captions   texts through every tokenizer and every cleaning rule
  images     damaged, lying, odd and slow files through decoding, views and augmentation
  tars       damaged, lying and hostile tars through the index and the reading of every record
  lists      JSON lines, CSV, annotations, parquet and Arrow: damaged, nested, and those that unpack to gigabytes

A case is a function of the seed, its kind and its number. It is accepted or refused in one line (a UserError,
a BadRecord, or an OSError, which the command line prints in one line); all else is a traceback, what takes more
than --limit seconds of a processor a hang. Either makes the exit code 1. The cases of a kind run in one process of at most
MEMORY bytes; if it dies, that was a traceback, too, and another goes on.
"""

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import report

os.environ["JAX_PLATFORMS"] = "cpu"
KINDS = {
    "configs": ("fuzz_texts", "Configs"),
    "captions": ("fuzz_texts", "Captions"),
    "images": ("fuzz_files", "Images"),
    "tars": ("fuzz_files", "Tars"),
    "lists": ("fuzz_slow", "Lists"),
}
MEMORY = 20 << 30  # bytes of a process's address space, of which JAX's libraries take some
START = 300  # seconds that a process may take before its first case
WAITS = 5  # how much longer than its processor time a case may take where others use the machine, too
LONGEST = 5000  # characters of a line


class Hang(BaseException):
    """Not an Exception, so that what handles those does not swallow it."""


@dataclass
class Outcomes:
    """Of one kind of cases."""

    counts: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    worst: tuple[float, int] = (0.0, 0)  # seconds, case


def make_kind(kind: str, folder: Path):
    """What makes the cases of a kind, `make(rng)`, and tries one, `run(case)`."""
    sys.path.insert(0, str(Path(__file__).parent))
    module, name = KINDS[kind]
    return getattr(import_module(module), name)(folder)


def one(tested, kind: str, seed: int, number: int, limit: float) -> tuple[str, str]:
    """(accepted, refused, traceback or hang; what there is to say about it) of one case."""
    from filip_jax.data.record import BadRecord
    from filip_jax.errors import UserError, one_line

    case = tested.make(random.Random(f"{seed} {kind} {number}"))

    def stop(*_):
        raise Hang

    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, stop)
    signal.setitimer(signal.ITIMER_PROF, limit)
    signal.setitimer(signal.ITIMER_REAL, WAITS * limit)
    try:
        tested.run(case)
        found = "accepted", ""
    except (UserError, BadRecord, OSError) as error:
        quiet_alarms()
        text = one_line(str(error)) if isinstance(error, OSError) else str(error)  # as the command line does
        clear = len(text.splitlines()) == 1 and len(text) <= LONGEST
        found = (
            ("refused", text) if clear else ("traceback", f"{len(text)} characters are no clear line: {text!r:.500}")
        )
    except Hang:
        found = "hang", traceback.format_exc()
    except (Exception, SystemExit):
        found = "traceback", traceback.format_exc()
    finally:
        quiet_alarms()
    if found[0] in ("traceback", "hang"):
        found = found[0], f"{found[1]}\n{case!r:.1500}"
    return found


def quiet_alarms() -> None:
    for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
        signal.setitimer(timer, 0)


def work(pipe, kind: str, seed: int, first: int, cases: int, limit: float, folder: str) -> None:
    """In a process of its own: sends what became of each case."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries in C say of damaged files
    quiet()
    tested = make_kind(kind, Path(folder))
    pipe.send(None)
    for number in range(first, cases):
        started = time.process_time()
        outcome, note = one(tested, kind, seed, number, limit)
        pipe.send((number, outcome, note if outcome in ("traceback", "hang") else "", time.process_time() - started))


def quiet() -> None:
    warnings.simplefilter("ignore")


def try_kind(kind: str, seed: int, cases: int, limit: float) -> Outcomes:
    """Tries the cases 0 to `cases` of a kind; prints those that fail."""
    outcomes, following = Outcomes(), 0
    context = multiprocessing.get_context("spawn")
    while following < cases:
        folder = tempfile.mkdtemp(prefix="fuzz_")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(theirs, kind, seed, following, cases, limit, folder))
        process.start()
        theirs.close()
        try:
            if not ours.poll(START):
                raise TimeoutError(f"{kind}: no first case after {START} s")
            ours.recv()
            while following < cases:
                if ours.poll(3 * WAITS * limit):
                    number, outcome, note, seconds = ours.recv()
                else:  # in C, where no signal is heard
                    number, outcome, note, seconds = following, "hang", "it did not hear the alarm", limit
                    process.kill()
                _count(outcomes, kind, seed, number, outcome, note, seconds)
                following = number + 1
                if not process.is_alive() and outcome == "hang":
                    break
        except EOFError:
            process.join()
            _count(outcomes, kind, seed, following, "traceback", f"the process died: {process.exitcode}", 0.0)
            following += 1
        finally:
            process.kill()
            process.join()
            shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def _count(outcomes: Outcomes, kind: str, seed: int, number: int, outcome: str, note: str, seconds: float) -> None:
    outcomes.counts[outcome] += 1
    outcomes.seconds += seconds
    outcomes.worst = max(outcomes.worst, (seconds, number))
    if outcome in ("traceback", "hang"):
        print(f"{outcome}: --kind={kind} --seed={seed} --case={number}\n{note}\n".encode("utf-8", "replace").decode())


def table(found: dict[str, Outcomes]) -> str:
    """In markdown."""
    lines = [
        "| kind | cases | accepted | refused in one line | tracebacks | hangs | seconds | longest case |",
        "| --- " * 8 + "|",
    ]
    for kind, outcomes in found.items():
        counts = outcomes.counts
        cells = [kind, counts.total(), *(counts[name] for name in ("accepted", "refused", "traceback", "hang"))]
        longest, number = outcomes.worst
        lines.append(f"| {' | '.join(map(str, cells))} | {outcomes.seconds:.0f} | {1000 * longest:.0f} ms ({number}) |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="shared evenly by the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, help="this one alone")
    parser.add_argument("--case", type=int, help="this one alone, of --kind")
    parser.add_argument("--limit", type=float, default=10.0, help="processor seconds of a case, above which it hangs")
    report.add_output(parser)
    arguments = parser.parse_args()
    if arguments.cases < 1 or arguments.limit <= 0:
        parser.error("--cases must be at least 1, --limit above 0")
    if arguments.case is not None:
        if arguments.kind is None:
            parser.error("--case needs --kind")
        quiet()
        with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
            tested = make_kind(arguments.kind, Path(folder))
            outcome, note = one(tested, arguments.kind, arguments.seed, arguments.case, arguments.limit)
        print(f"{outcome}: {note}".encode("utf-8", "replace").decode())
        return outcome in ("traceback", "hang")
    kinds = [arguments.kind] if arguments.kind else list(KINDS)
    found = {}
    with report.recorded(arguments.output, "Pillow", "sentencepiece"):
        for n, kind in enumerate(kinds):
            cases = (arguments.cases + n) // len(kinds)
            found[kind] = try_kind(kind, arguments.seed, cases, arguments.limit)
        print(table(found))
    return int(any(outcomes.counts["traceback"] + outcomes.counts["hang"] for outcomes in found.values()))


if __name__ == "__main__":
    sys.exit(main())
