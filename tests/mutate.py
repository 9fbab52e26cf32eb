"""Mutations of the library, and which tests notice them: what a tier of the tests guards.

    python tests/mutate.py             each mutation that has no outcome yet, with the whole tier where need be
    python tests/mutate.py --named     the same, with the tests that the mutation names only
    python tests/mutate.py 3 17        these mutations, whatever their outcome was
    python tests/mutate.py --table     the table alone, from the outcomes that are there

mutations.toml lists the mutations, mutations.json their outcomes, mutations.md is the table of both. Mutations are made in
copies of the tree. A test counts if it fails on the mutated tree and passes on the one that is as it was.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST, OUTCOMES, TABLE = (ROOT / "tests" / f"mutations.{ending}" for ending in ("toml", "json", "md"))
WHOLE = ("-m", "not slurm", "--hypothesis-profile=all")
TIERS = {"fast": ("-m", "not slow and not slurm"), "all": WHOLE}
UNNEEDED = (".git", ".venv*", ".*_cache", "__pycache__", "build", "dist", "runs", "*.egg-info")
UNFAIR = ("test_mutations.py", "test_lint.py")  # they notice any change of the text
MAX_SECONDS = {"named": 1200, "whole": 7200}  # that one start of pytest may take
NOTHING_WRONG = (0, 5)  # exit codes of pytest: all passed, or none was selected

# {"fast": the test that noticed it or "", "all": the same, "searched": "named" or "whole", "checked": "" if not yet}
Outcome = dict[str, str]


@dataclass(frozen=True)
class Mutation:
    """A change of one place of the library.

    Attributes:
        file: below filip_jax/.
        kind, what: what goes wrong, in a word and in a line.
        old, new: the text that stands in the file once, and what takes its place.
        tests: files, or file.py::test, that are run first.
    """

    file: str
    kind: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The name of the outcome; another change has another one."""
        return hashlib.sha256(json.dumps([self.file, self.old, self.new]).encode()).hexdigest()[:12]

    def applied(self, text: str) -> str:
        """Return the text of the file with the change in it."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"filip_jax/{self.file} holds {self.old!r} {count} times, not once: mend mutations.toml")
        return text.replace(self.old, self.new)


def read_mutations() -> list[Mutation]:
    """Return the list, whose order gives the numbers, from 1."""
    entries = tomllib.loads(LIST.read_text())["mutation"]
    return [Mutation(**entry | {"tests": tuple(entry["tests"])}) for entry in entries]


def read_outcomes(mutations: Sequence[Mutation]) -> dict[str, Outcome]:
    """Return the outcomes of these mutations as they are, by their digests."""
    known = json.loads(OUTCOMES.read_text())["outcomes"] if OUTCOMES.exists() else {}
    return {each.digest: {"checked": ""} | known[each.digest] for each in mutations if each.digest in known}


@contextlib.contextmanager
def copied(mutation: Mutation | None = None) -> Iterator[Path]:
    """A copy of the tree, with the mutation in it, that goes when the block ends."""
    with tempfile.TemporaryDirectory(prefix="filip_jax_mutated_") as folder:
        tree = Path(folder, "tree")
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*UNNEEDED))
        if mutation is not None:
            file = tree / "filip_jax" / mutation.file
            file.write_text(mutation.applied(file.read_text()))
        yield tree


def failures(tree: Path, tests: Sequence[str], seconds: float, *words: str) -> list[str]:
    """Return the tests of a tree that fail, as tests/file.py::name.

    Args:
        seconds: after which the tests are ended.
        words: options of pytest, such as those of a tier.

    Raises:
        RuntimeError: pytest could not run them, or not in time.
    """
    words += ("-q", "-p", "no:xdist", "-p", "no:cacheprovider", f"--basetemp={tree.parent / 'pt'}")
    words += tuple(f"--ignore=tests/{name}" for name in UNFAIR)
    paths = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *words, *tests], cwd=tree, env=os.environ | {"PYTHONPATH": paths}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(tests)}: no end within {seconds:g} s") from error
    finally:
        with contextlib.suppress(ProcessLookupError):  # and whatever the tests have left running
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode in NOTHING_WRONG:
        return []
    if failed := re.findall(r"^(?:FAILED|ERROR) (tests/[^\s\[]+)", output, re.MULTILINE):
        return failed
    raise RuntimeError(f"{' '.join(tests)}: pytest ended with {process.returncode}: {output[-2000:]}")


def outcome_of(mutation: Mutation, named_only: bool) -> Outcome:
    """Return which test fails first under a mutation, in each tier; raises as `failures` does.

    Args:
        named_only: whether no more than the tests that it names are run.
    """
    found = {"fast": "", "all": "", "searched": "named" if named_only else "whole", "checked": ""}
    named = [f"tests/{name}" for name in mutation.tests]
    with copied(mutation) as tree:
        for tier, words in TIERS.items():
            failed = failures(tree, named, MAX_SECONDS["named"], "-x", *words)
            if not failed and not named_only:
                failed = failures(tree, ["tests"], MAX_SECONDS["whole"], "-x", *words)
            if failed:
                return found | ({"fast": failed[0]} if tier == "fast" else {}) | {"all": failed[0]}
    return found


def table(mutations: Sequence[Mutation], outcomes: Mapping[str, Outcome]) -> str:
    """Return mutations.md."""
    rows = [("number", "file", "what is changed", "kind", "fast tier", "whole tier")]
    for number, mutation in enumerate(mutations, 1):
        of_it = outcomes.get(mutation.digest)
        tiers = [_say(of_it, tier) for tier in TIERS]
        rows.append((str(number), f"`{mutation.file}`", mutation.what, mutation.kind, *tiers))
    rows.insert(1, ("---",) * len(rows[0]))
    known = [outcomes[mutation.digest] for mutation in mutations if mutation.digest in outcomes]
    counts = {tier: sum(bool(outcome[tier]) for outcome in known) for tier in TIERS}
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return HEAD.format(count=len(mutations), **counts) + "\n".join(lines) + "\n"


HEAD = """# What the tests notice

Of {count} changes that each make the library wrong in one place the fast tier notices {fast}, the whole one {all}. Beside each
stands the test that fails first. `python tests/mutate.py` makes the changes that mutations.toml lists, in copies of the tree, runs
the tests and writes this table; `tests/test_mutations.py` sees to it that each can still be made.

"""


def _say(outcome: Outcome | None, tier: str) -> str:
    if outcome is None:
        return "not run yet"
    test = outcome[tier].removeprefix("tests/")
    if tier != "fast" and test and outcome["fast"]:
        return "the same"
    return f"`{test}`" if test else "not noticed" + (" by the tests it names" if outcome["searched"] == "named" else "")


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for; return how many mutations have no outcome or are not noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", type=int, nargs="*", metavar="NUMBER", help="of mutations")
    parser.add_argument("--named", action="store_true", help="run the tests that a mutation names only")
    parser.add_argument("--table", action="store_true", help="write the table only")
    options = parser.parse_args(arguments)
    mutations = read_mutations()
    outcomes = read_outcomes(mutations)
    if options.table:
        _write(mutations, outcomes)
        return 0
    for number in options.numbers or range(1, len(mutations) + 1):
        mutation = mutations[number - 1]
        if not options.numbers and _is_settled(outcomes.get(mutation.digest), options.named):
            continue
        try:
            outcomes[mutation.digest] = outcome_of(mutation, options.named)
        except (RuntimeError, ValueError) as error:
            print(f"{number} ({mutation.what}): {error}", file=sys.stderr)
            continue
        print(number, mutation.what, outcomes[mutation.digest]["all"] or "not noticed", sep="; ", flush=True)
        _write(mutations, outcomes)
    for test in _unsound(outcomes):
        print(f"{test} fails without a mutation, too: what it noticed does not count", file=sys.stderr)
        outcomes = {digest: outcome for digest, outcome in outcomes.items() if outcome["all"] != test}
    _write(mutations, outcomes)
    return sum(not outcomes.get(each.digest, {}).get("all") for each in mutations)


def _unsound(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Mark the outcomes as checked; return the tests that fail on the tree as it is."""
    unchecked = [outcome for outcome in outcomes.values() if outcome["all"] and not outcome["checked"]]
    if not unchecked:
        return []
    with copied() as tree:
        failed = failures(tree, sorted({outcome["all"] for outcome in unchecked}), MAX_SECONDS["whole"], *WHOLE)
    for outcome in unchecked:
        outcome["checked"] = "passes without the mutation"
    return failed


def _is_settled(outcome: Outcome | None, named_only: bool) -> bool:
    """Return whether no more can be found out."""
    return outcome is not None and (outcome["fast"] != "" or named_only or outcome["searched"] == "whole")


def _write(mutations: Sequence[Mutation], outcomes: Mapping[str, Outcome]) -> None:
    now = datetime.datetime.now(datetime.UTC).date().isoformat()
    OUTCOMES.write_text(json.dumps({"date": now, "outcomes": outcomes}, indent=1) + "\n")
    TABLE.write_text(table(mutations, outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
