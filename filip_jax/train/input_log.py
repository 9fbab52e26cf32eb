"""What the input did to a run: texts that were cut, records that were replaced, samples of each step."""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from filip_jax.data.samples import Bad
from filip_jax.data.sources import Source
from filip_jax.errors import UserError
from filip_jax.files import open_to_append, replacing, writing
from filip_jax.small_files import Notes, is_whole, line_of, lines_of, read_lines, warn_of

FOLDER = "quarantine"
SKIPPED = "skipped"  # the samples of steps that the guards skipped
KEYS = "keys"  # the samples of every step
ENOUGH = 100  # samples of a part after which its share of bad records counts
NAMED = 100_000  # bad records that a process names


class InputLog:
    """Counts this process's rows; names bad records in quarantine/process_<n>.jsonl, each once.

    Args:
        sources: the mixture's sources by name.
        max_bad_fraction: of a part's samples since the start, above which the run ends.
        keys: whether the samples of each step are named in keys/process_<n>.jsonl.
    """

    def __init__(self, workdir: Path, *, sources: Mapping[str, Source], max_bad_fraction: float, keys: bool):
        self.sources, self.parts, self.max_bad_fraction = sources, tuple(sources), max_bad_fraction
        name = f"process_{jax.process_index()}.jsonl"
        self.file, self.skipped_file = workdir / FOLDER / name, workdir / SKIPPED / name
        self.keys_file = workdir / KEYS / name if keys else None
        self.named = _named(self.file)
        self.samples, self.bad = Counter[str](), Counter[str]()
        self.restart_window()

    def restart_window(self) -> None:
        """The fractions of the metrics count from here."""
        self.window_samples, self.window_bad, self.truncated = Counter[str](), Counter[str](), 0

    def add(self, rows: Mapping[str, Any]) -> None:
        """The rows of one batch.

        Raises:
            UserError: too many of a part's records cannot be used.
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
                    f"{count} of {visited} records of {part} cannot be used, more than "
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

    def log_keys(self, step: int, rows: Mapping[str, Any]) -> None:
        """Names this process's samples of a step, if the run keeps them."""
        if self.keys_file:
            _append(self.keys_file, [self._samples_of(step, rows)])

    def name_skipped(self, step: int, found: Mapping[str, float], rows: Mapping[str, Any]) -> Path:
        """Names this process's samples of a step that was skipped; returns the file."""
        numbers = {name: value if math.isfinite(value) else str(value) for name, value in found.items()}
        _append(self.skipped_file, [numbers | self._samples_of(step, rows)])
        return self.skipped_file

    def _samples_of(self, step: int, rows: Mapping[str, Any]) -> dict[str, Any]:
        places = zip(rows["part"].tolist(), rows["index"].tolist())
        keys = ["/".join((self.parts[part], *self.sources[self.parts[part]].where(n))) for part, n in places]
        return {"step": step, "first_row": jax.process_index() * len(keys), "keys": keys}

    def _name(self, bad: Sequence[Bad]) -> None:
        new = {(each.part, each.shard, each.key): each for each in bad if len(self.named) < NAMED}
        lines = [asdict(each) for place, each in new.items() if place not in self.named]
        self.named |= set(new)
        if lines:
            _append(self.file, lines)


def _append(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(exist_ok=True)  # a workdir that is gone is not made anew
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with writing(file), open_to_append(file) as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            text = text if stream.read(1) == b"\n" else "\n" + text  # a line that a kill tore
        stream.write(text.encode())


def forget_keys_after(workdir: Path, step: int) -> None:
    """Removes the steps beyond this one, to which a run goes back, from the logs of samples, line by line."""
    for file in (*(workdir / KEYS).glob("*.jsonl"), *(workdir / SKIPPED).glob("*.jsonl")):
        notes = Notes()
        if not file.is_dir():
            with replacing(file) as beside, beside.open("wb") as kept:
                kept.writelines(line for line in lines_of(file, notes) if _stands(line, notes, step))
            warn_of(file, notes)


def _stands(line: bytes, notes: Notes, step: int) -> bool:
    """Whether the line of a step stays; one that is not as we write it goes, and is noted."""

    def typed(content: dict[str, Any], notes: Notes) -> dict[str, Any] | None:
        return content if is_whole(content.get("step")) else notes.append(f"'step' is {content.get('step')!r:.100}")

    content = line_of(line, notes, typed)
    return content is not None and content["step"] <= step


def _named(file: Path) -> set[tuple[str, str, str]]:
    """The records that the file names."""

    def typed(content: dict[str, Any], notes: Notes) -> dict[str, Any] | None:
        names = [content.get(name) for name in ("part", "shard", "key")]
        return content if all(isinstance(x, str) for x in names) else notes.append(f"a record is {names!r:.100}")

    return {(each["part"], each["shard"], each["key"]) for each in read_lines(file, typed)}
