"""Loss, steps, resume, encoding and scoring on one GPU, part by part: a table of rows and one of ratios.

    bash benchmarks/gpu.sh --output=benchmarks/results/gpu_h200
    bash benchmarks/gpu.sh --tiny --parts=loss,resume
    bash benchmarks/gpu.sh --commit=HASH        of a copy of the project that is no git clone

Each part is a process of its own, and ends with its limit; rows come as they are measured and are written after each part, so
that a part that fails or hangs costs its own rows only. What cannot run here is left out in one line.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

import gpu_loss
import gpu_steps
import gpu_use
import report

# Of each part what measures it, and the seconds that it may take.
PARTS = {
    "loss": (gpu_loss.loss, 100), "loss_torch": (gpu_loss.loss_torch, 80), "step:B/32": (gpu_steps.steps, 110),
    "steps_torch": (gpu_steps.steps_torch, 90), "resume": (gpu_steps.resume, 80), "scoring": (gpu_use.scoring, 40),
    "encoding": (gpu_use.encoding, 60), "step:B/16": (gpu_steps.steps, 80), "step:L/14": (gpu_steps.steps, 100),
    "largest": (gpu_loss.largest, 60),
}  # fmt: skip
BUDGET = 460.0  # seconds of all parts together
PATIENCE = 10  # times as long as on a GPU: toy sizes are for any machine
SLACK = 5.0  # seconds that a process has to end in
COLUMNS = ("part", "what", "form", "ms", "rate", "unit", "share", "GiB")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, in this order (default: all)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, which any device runs")
    parser.add_argument("--seconds", type=float, default=BUDGET, help="of all parts together")
    parser.add_argument("--commit", help="of the project, where it is a copy without its history")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    report.add_output(parser)
    a = parser.parse_args()
    a.parts = a.parts.split(",")
    if unknown := set(a.parts) - set(PARTS):
        parser.error(f"--parts={','.join(sorted(unknown))}: parts are {', '.join(PARTS)}")
    return a


def rows_of(name: str, limit: float):
    """Yield what a part's process prints as rows, until it ends or its time is over; its last line is None or why it failed."""
    words = [sys.executable, *sys.argv, f"--only={name}"]
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    process, lines = subprocess.Popen(words, **options), queue.SimpleQueue()
    errors: list[str] = []

    def read():
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threads = [threading.Thread(target=read, daemon=True),
               threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)]  # fmt: skip
    for thread in threads:
        thread.start()
    end, failure = time.monotonic() + limit, None
    try:
        while True:
            try:
                line = lines.get(timeout=max(end - time.monotonic(), 0.01))
            except queue.Empty:
                failure = f"stopped after its {limit:.0f} s"
                break
            if line is None:
                break
            if line.startswith("{"):
                yield json.loads(line)
        try:
            code = process.wait(SLACK) if failure is None else 0
        except subprocess.TimeoutExpired:
            code, failure = 0, "did not end after its last row"
        if code:
            threads[1].join(SLACK)
            reasons = [line.strip() for line in errors if line.strip()] or [f"ended with {code}"]
            telling = [line for line in reasons if "Error" in line or "RESOURCE" in line] or reasons
            failure = telling[-1][:300]
    finally:  # of an interrupt, too: the part is in a session of its own, which Ctrl-C does not reach
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for thread, stream in zip(threads, (process.stdout, process.stderr), strict=True):
            thread.join(SLACK)  # what the part had started may hold its pipes
            if not thread.is_alive():
                stream.close()
    if failure:
        yield {"part": name, "what": failure, "form": "-"}


def line(row) -> str:
    def cell(name):
        value = row.get(name, "")
        if isinstance(value, float):
            return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 10 else f"{value:.1f}"
        return str(value).replace("|", "/")

    return f"| {' | '.join(map(cell, COLUMNS))} |"


def table(rows) -> str:
    head = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"
    return "\n".join([head, *map(line, rows)])


def ratios(rows) -> str:
    """Return the time of each form beside that of the first one of the same thing: above 1 the first is faster."""
    found: dict = {}
    for row in rows:
        if "ms" in row:
            found.setdefault((row["part"], row["what"]), []).append(row)
    lines = []
    for (part, what), forms in found.items():
        first = forms[0]
        lines += [f"| {part} | {what} | {each['form']} / {first['form']} | {each['ms'] / first['ms']:.2f} |"
                  for each in forms[1:]]  # fmt: skip
    head = ["| part | what | times | ratio |", "|" + " --- |" * 4]
    return "\n".join(head + lines) if lines else "no two forms of one thing ran"


def main():
    a = parse()
    if a.only:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # before JAX is imported
        name, _, folder = a.only.partition(">")
        return gpu_steps.resumed(folder, a.tiny) if folder else PARTS[name][0](name, a.tiny)
    origin = report.make_origin("torch", "flax", "optax", "orbax-checkpoint")
    origin["commit"] = origin["commit"] or a.commit
    if a.output is not None and origin["commit"] is None:
        sys.exit("--output: a result names its commit, and this is no git clone; name it by --commit=HASH")
    if a.output is not None:
        try:
            report.write(a.output, origin, table([]))
        except OSError as error:
            sys.exit(f"--output: {error}")
    print(report.heading(origin), flush=True)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that no part lives on
    rows, end = [], time.monotonic() + a.seconds
    print(table([]), flush=True)
    for name in a.parts:
        left = end - time.monotonic()
        limit = min(PARTS[name][1] * (PATIENCE if a.tiny else 1), left)
        found = (
            rows_of(name, limit) if limit > 1 else [{"part": name, "what": "left out: no time is left", "form": "-"}]
        )
        for row in found:
            rows.append(row)
            print(line(row), flush=True)
        if a.output is not None:
            report.write(a.output, origin, f"{table(rows)}\n\n{ratios(rows)}")
    print(f"\n{ratios(rows)}\n\n{a.seconds - (end - time.monotonic()):.0f} s")


if __name__ == "__main__":
    main()
