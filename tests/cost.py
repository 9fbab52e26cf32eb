"""What each test file costs: CPU seconds, wall seconds and memory, from all workers; files above their budget are named.

CPU seconds are those of the test process and of the processes that it started and waited for. FILIP_TEST_COSTS=FILE
keeps the numbers as JSON. The budgets follow from the table in README.md beside this file; none fails a test.
"""

import json
import os
import re
import resource
import sys
import time
from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("README.md")
ROW = re.compile(r"^\| (test_\w+\.py) +\| +(\d+) \| +(\d+) \| +(\d+) \| (.*) \|$", re.MULTILINE)
MARGIN, SLACK_SECONDS = 1.5, 10  # machines differ: a budget is the table's number times MARGIN, and SLACK_SECONDS more
MEBIBYTE = 2**20 if sys.platform == "darwin" else 2**10  # of the units that ru_maxrss has

costs: dict[str, dict[str, float]] = {}  # of this process, by file
peaks: list[float] = []  # of the workers, in MiB


def peak_memory() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBIBYTE


def _spent() -> tuple[float, float, float]:
    return sum(os.times()[:4]), time.monotonic(), peak_memory()


def _add(file: str, **numbers: float) -> None:
    entry = costs.setdefault(file, {})
    for name, number in numbers.items():
        entry[name] = entry.get(name, 0.0) + number


def pytest_collection_modifyitems(items):
    """Order the files by their cost, the dearest first, so that no worker is left alone with one at the end."""
    dearest = budgets("all")
    items.sort(key=lambda item: -dearest.get(item.path.name, 0.0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Add what a test and its fixtures cost to its file."""
    before = _spent()
    try:
        return (yield)
    finally:
        cpu, wall, memory = (now - then for now, then in zip(_spent(), before, strict=True))
        _add(item.path.name, cpu_seconds=cpu, wall_seconds=wall, peak_growth_mib=memory, tests=1)


def pytest_sessionfinish(session):
    """Send a worker's numbers to the process that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["costs"] = (costs, peak_memory())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take the numbers of a worker that is done."""
    worker_costs, peak = getattr(node, "workeroutput", {}).get("costs", ({}, 0.0))
    peaks.append(peak)
    for file, numbers in worker_costs.items():
        _add(file, **numbers)


def budgets(tier: str) -> dict[str, float]:
    """Return the CPU seconds that each file may take in a tier, "fast" or "all"."""
    column = 3 if tier == "fast" else 4
    rows = ROW.finditer(TABLE.read_text())
    return {row[1]: MARGIN * int(row[column]) + SLACK_SECONDS for row in rows}


def pytest_terminal_summary(terminalreporter, config):
    """Print the totals and the files above their budget; keep all numbers where FILIP_TEST_COSTS says."""
    total = sum(numbers["cpu_seconds"] for numbers in costs.values())
    memory = ", ".join(f"{peak:,.0f} MiB" for peak in peaks or [peak_memory()])
    terminalreporter.write_line(f"{total:,.0f} CPU seconds; peak memory of each worker: {memory}")
    allowed = budgets("fast" if "not slow" in config.option.markexpr else "all")
    for file, numbers in sorted(costs.items()):
        if numbers["cpu_seconds"] > allowed.get(file, SLACK_SECONDS):
            terminalreporter.write_line(
                f"above its budget: {file}, {numbers['cpu_seconds']:.0f} CPU seconds of {allowed.get(file, SLACK_SECONDS):.0f}"
            )
    if target := os.environ.get("FILIP_TEST_COSTS"):
        ordered = dict(sorted(costs.items(), key=lambda entry: -entry[1]["cpu_seconds"]))
        Path(target).write_text(json.dumps({"files": ordered, "peak_mib": peaks or [peak_memory()]}, indent=1))
