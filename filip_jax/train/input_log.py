"""What the input did to a run: texts that were cut, records that were replaced, time that was lost."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from filip_jax.data.pipeline import Bad
from filip_jax.errors import UserError

FOLDER = "quarantine"
ENOUGH = 100  # samples of a part after which its share of bad records counts
NAMED = 100_000  # bad records that a process names


class InputLog:
    """Counts this process's rows; names bad records in quarantine/process_<n>.jsonl, each once.

    Args:
        parts: names of the mixture's sources.
        max_bad_fraction: of a part's samples since the start, above which the run ends.
    """

    def __init__(self, workdir: Path, *, parts: Sequence[str], max_bad_fraction: float):
        self.parts, self.max_bad_fraction = tuple(parts), max_bad_fraction
        self.file = workdir / FOLDER / f"process_{jax.process_index()}.jsonl"
        self.named = _named(self.file)
        self.samples, self.bad = Counter(), Counter()
        self.restart_window()

    def restart_window(self) -> None:
        """The fractions of the metrics count from here."""
        self.window_samples, self.window_bad, self.truncated = Counter(), Counter(), 0

    def add(self, rows: Mapping[str, Any]) -> None:
        """The rows of one batch.

        Raises:
            UserError: too many of a part's records can not be used.
        """
        found = Counter({self.parts[part]: int(n) for part, n in zip(*np.unique(rows["part"], return_counts=True))})
        bad = Counter(each.part for each in rows["bad"])
        self.samples, self.window_samples = self.samples + found, self.window_samples + found
        self.bad, self.window_bad = self.bad + bad, self.window_bad + bad
        self.truncated += int(rows["truncated"].sum())
        self._name(rows["bad"])
        for part, count in self.bad.items():
            visited = self.samples[part] + count
            if visited >= ENOUGH and count > self.max_bad_fraction * visited:
                raise UserError(
                    f"{count} of {visited} records of {part} can not be used, more than "
                    f"data.max_bad_fraction={self.max_bad_fraction}; {self.file} names them"
                )

    def fractions(self) -> dict[str, float]:
        """Of this process's rows since the window began."""
        samples, bad = self.window_samples.total(), self.window_bad.total()
        found = {
            "data/text_truncated_frac": self.truncated / max(samples, 1),
            "data/bad_frac": bad / max(samples + bad, 1),
        }
        if len(self.parts) > 1:
            for part in self.parts:
                of_part = self.window_samples[part] + self.window_bad[part]
                found[f"data/bad_frac/{part}"] = self.window_bad[part] / max(of_part, 1)
                found[f"data/share/{part}"] = self.window_samples[part] / max(samples, 1)
        return found

    def _name(self, bad: Sequence[Bad]) -> None:
        new = {(each.part, each.shard, each.key): each for each in bad if len(self.named) < NAMED}
        lines = [json.dumps(asdict(each)) + "\n" for place, each in new.items() if place not in self.named]
        self.named |= set(new)
        if lines:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a+b") as file:
                if file.tell() and self.file.read_bytes()[-1:] != b"\n":  # a line that a kill tore
                    lines.insert(0, "\n")
                file.write("".join(lines).encode())


def _named(file: Path) -> set[tuple[str, str, str]]:
    """The records that the file names; a line torn by a kill is none."""
    found = set()
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            entry = json.loads(line)
            found.add((entry["part"], entry["shard"], entry["key"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
