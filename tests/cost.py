"""Record the CPU seconds, wall seconds and memory of each test file, over all workers, and name files above their budget.

CPU seconds are those of the test process and of the processes that it started and waited for. FILIP_TEST_COSTS=FILE
keeps the numbers as JSON. The budgets follow from the table in README.md beside this file; none fails a test.

    python tests/cost.py FAST.json ALL.json     writes what both tiers cost into that table
"""

import ast
import json
import os
import re
import resource
import sys
import time
from pathlib import Path

import pytest
from hypothesis import settings

TABLE = Path(__file__).with_name("README.md")
ROW = re.compile(r"^\| (test_\w+\.py) +\| +(\d*) \| +(\d*) \| (.*) \|\n", re.MULTILINE)
MARGIN, SLACK_SECONDS = 1.5, 10  # machines differ: a budget is the table's number times MARGIN, and SLACK_SECONDS more
MEBIBYTE = 2**20 if sys.platform == "darwin" else 2**10  # of the units that ru_maxrss has

costs: dict[str, tuple[float, float, float]] = {}  # by test: CPU seconds, wall seconds, growth of the peak in MiB
peaks: list[float] = []  # of the workers, in MiB


def peak_memory() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBIBYTE


def budgets(tier: str) -> dict[str, float]:
    """Return the CPU seconds that each file may take in a tier, "fast" or "all", as the profiles of Hypothesis are called."""
    column = {"fast": 2, "all": 3}[tier]
    stated = {row[1]: row[column] for row in ROW.finditer(TABLE.read_text())}
    return {file: MARGIN * int(seconds) + SLACK_SECONDS for file, seconds in stated.items() if seconds}


def pytest_collection_modifyitems(items):
    """Order the files by their cost, the dearest first, so that no worker is left alone with one at the end."""
    dearest = budgets("all")
    items.sort(key=lambda item: -dearest.get(item.path.name, 0.0))


def _spent() -> tuple[float, float, float]:
    return sum(os.times()[:4]), time.monotonic(), peak_memory()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Keep what a test and its fixtures cost."""
    before = _spent()
    try:
        return (yield)
    finally:
        costs[item.nodeid] = tuple(now - then for now, then in zip(_spent(), before, strict=True))


def pytest_sessionfinish(session):
    """Send a worker's numbers to the process that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["costs"] = (costs, peak_memory())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take the numbers of a worker that is done; one that died has none."""
    of_worker, peak = getattr(node, "workeroutput", {}).get("costs", ({}, 0.0))
    costs.update(of_worker)
    peaks.append(peak)


def by_file() -> dict[str, dict[str, float]]:
    """Return the sums over the tests of each file, the dearest file first."""
    sums: dict[str, list[float]] = {}
    for test, numbers in costs.items():
        file = Path(test.partition("::")[0]).name
        sums[file] = [total + number for total, number in zip(sums.get(file, (0.0,) * 3), numbers, strict=True)]
    names = ("cpu_seconds", "wall_seconds", "peak_growth_mib")
    return {file: dict(zip(names, sums[file], strict=True)) for file in sorted(sums, key=lambda file: -sums[file][0])}


def pytest_terminal_summary(terminalreporter):
    """Print the totals and the files above their budget; keep all numbers where FILIP_TEST_COSTS says."""
    files, memory = by_file(), peaks or [peak_memory()]
    spent = sum(numbers["cpu_seconds"] for numbers in files.values())
    terminalreporter.write_line(
        f"{spent:,.0f} CPU seconds; peak memory of each test process: {', '.join(f'{peak:,.0f} MiB' for peak in memory)}"
    )
    allowed = budgets(settings.get_current_profile_name())
    for file, numbers in files.items():
        if file in allowed and numbers["cpu_seconds"] > allowed[file]:
            terminalreporter.write_line(
                f"above its budget: {file}, {numbers['cpu_seconds']:.0f} CPU seconds of {allowed[file]:.0f}"
            )
    if target := os.environ.get("FILIP_TEST_COSTS"):
        tests = {test: numbers[0] for test, numbers in sorted(costs.items(), key=lambda entry: -entry[1][0])}
        Path(target).write_text(json.dumps({"peak_mib": memory, "files": files, "cpu_seconds": tests}, indent=1))


def guards(file: Path) -> str:
    """Return the first paragraph of a test file's docstring: what the file guards."""
    return " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n\n")[0].split())


def write_table(fast: Path, whole: Path) -> None:
    """Write a row for each test file: what it costs in each tier and what it guards."""
    text = TABLE.read_text()
    now = [json.loads(report.read_text())["files"] for report in (fast, whole)]
    rows = ""
    for file in sorted(TABLE.parent.glob("test_*.py")):
        seconds = [round(files[file.name]["cpu_seconds"]) if file.name in files else "" for files in now]
        rows += f"| {file.name} | {seconds[0]} | {seconds[1]} | {guards(file)} |\n"
    first = ROW.search(text)
    TABLE.write_text(text[: first.start()] + rows + ROW.sub("", text[first.start() :]))


if __name__ == "__main__":
    write_table(*map(Path, sys.argv[1:]))
