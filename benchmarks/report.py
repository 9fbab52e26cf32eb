"""Results of benchmarks: what is printed and where it is from, as a page (NAME.md) and as data (NAME.json)."""

import argparse
import contextlib
import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the option --output."""
    parser.add_argument(
        "--output", type=Path, metavar="NAME", help="write NAME.md and NAME.json, as benchmarks/results/loss_cpu"
    )


@contextlib.contextmanager
def recorded(output: Path | None, *packages: str) -> Iterator[None]:
    """Print where a result is from, then what the block prints; with `output`, write both as a page and as data.

    A block that raises or exits writes nothing. What other processes print is only recorded if the block prints it.
    """
    origin = make_origin(*packages)
    if output is not None:
        if origin["commit"] is None:
            sys.exit("--output: a result names its commit, and this is no git clone; run without --output")
        if not output.parent.is_dir():
            sys.exit(f"--output: no such folder: {output.parent}; make it first")
    copy = _Copy(sys.stdout)
    print(heading(origin), flush=True)
    with contextlib.redirect_stdout(copy):
        yield
    if output is not None:
        write(output, origin, copy.getvalue())


class _Copy(io.StringIO):
    """A copy of what is printed to a stream."""

    def __init__(self, stream):
        super().__init__()
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(text)
        return super().write(text)

    def flush(self) -> None:
        self.stream.flush()


def make_origin(*packages: str) -> dict:
    """Return the command, date, machine, versions and commit of a result; the commit is None without a git clone."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")  # where other results may lie
    return {
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "date": str(date.today()),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        },
        "versions": {"python": platform.python_version(), **_versions("jax", "jaxlib", "numpy", *packages)},
        "commit": commit,
        "dirty": bool(changes),
    }


def heading(origin: dict) -> str:
    """Return the lines that stand above a result."""
    machine = origin["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
    commit = f"commit {origin['commit'] or 'unknown'}{' with changes' if origin['dirty'] else ''}"
    return (
        f"`{origin['command']}`\n\n{origin['date']}, {commit}\n"
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {versions}\n"
    )


def write(output: Path, origin: dict, text: str) -> None:
    """Write OUTPUT.md, and OUTPUT.json with the rows of the tables in `text` and its other lines."""
    rows, lines = parse(text)
    output.with_name(f"{output.name}.md").write_text(f"{heading(origin)}\n{text.strip()}\n")
    content = json.dumps(origin | {"rows": rows, "lines": lines}, indent=1, ensure_ascii=False)
    output.with_name(f"{output.name}.json").write_text(content + "\n")


def parse(text: str) -> tuple[list[dict], list[str]]:
    """Return the rows of the Markdown tables in a text, each {column: cell}, and all other lines."""
    rows: list[dict] = []
    rest: list[str] = []
    columns: list[str] | None = None
    lines = text.splitlines()
    pairs = iter(zip(lines, [*lines[1:], ""], strict=True))
    for line, following in pairs:
        if columns is not None and line.startswith("|") and len(cells := _cells(line)) == len(columns):
            rows.append(dict(zip(columns, map(_number, cells), strict=True)))
        elif line.startswith("|") and re.fullmatch(r"\|[\s:|-]+\|", following):
            columns = _cells(line)
            next(pairs)
        else:
            columns = None
            if line.strip():
                rest.append(line)
    return rows, rest


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def _number(cell: str) -> str | int | float:
    """Return a cell that is a number, such as 1,250 or 0.38, as one; other cells as they are."""
    if not re.fullmatch(r"-?\d+(,\d{3})*(\.\d+)?", cell):
        return cell
    plain = cell.replace(",", "")
    return float(plain) if "." in plain else int(plain)


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine()


def _versions(*packages: str) -> dict[str, str]:
    versions = {}
    for name in dict.fromkeys(packages):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
