"""Where the time of a run went, over all its restarts, and what the compile cache spared."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from filip_jax.cluster.watch import Watch
from filip_jax.compiled import FOLDER, keep_programs
from filip_jax.plain import markdown
from filip_jax.small_files import is_number

PHASES = ("start", "restore", "compile", "data", "step", "save", "evaluation", "end")
LOST = "lost_by_rollback"
NAMES = (*PHASES, LOST)
SAVED_EVENT = "/jax/compilation_cache/compile_time_saved_sec"


def key_of(name: str) -> str:
    """The metric of a phase."""
    return f"time/{name}_seconds"


class Goodput:
    """The seconds of each phase since the run began, earlier starts included.

    Args:
        before: seconds by phase up to the checkpoint that the run goes on from.
        dropped: the newest metrics that the run made beyond it, and lost.
        reached: seconds of the run when it was killed, where that is known; also of starts that logged nothing.
    """

    def __init__(self, watch: Watch, before: Mapping[str, Any], dropped: Mapping[str, Any], reached: float = 0.0):
        self.watch = watch
        self.before = {name: _seconds(before.get(name)) for name in NAMES}
        reached = max(reached, sum(_seconds(dropped.get(key_of(name))) for name in NAMES))
        self.before[LOST] += max(0.0, reached - sum(self.before.values()))

    def totals(self) -> dict[str, float]:
        """The seconds of each phase, rounded to milliseconds."""
        here = self.watch.totals()
        return {name: round(self.before[name] + here.get(name, 0.0), 3) for name in NAMES}

    def seconds(self) -> float:
        """Of all phases together."""
        return sum(self.totals().values())

    def metrics(self) -> dict[str, float]:
        """The same under the names of the metrics."""
        return {key_of(name): seconds for name, seconds in self.totals().items()}

    def table(self) -> str:
        """For the end of a run."""
        totals = self.totals()
        whole = sum(totals.values()) or 1.0
        rows = [(name, f"{s:.1f}", f"{100 * s / whole:.1f} %") for name, s in totals.items() if s >= 0.05]
        return markdown([("time spent in", "seconds", "share"), *rows], numbers=(1, 2))


def _seconds(value: object) -> float:
    """A number of seconds from a file; anything else is none."""
    return float(value) if is_number(value) and value > 0 else 0.0


class CompileCache:
    """Compiled programs that the next start finds again, in a folder in `parent`; see `keep_programs`.

    Attributes:
        spared: seconds of compilation that it has spared this process.

    Raises:
        UserError: others may write to the folder, and so make this run execute what they like.
    """

    def __init__(self, parent: Path, wanted: bool):
        self.spared = 0.0
        if wanted or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            keep_programs(parent / FOLDER)
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_: object) -> None:
        if event == SAVED_EVENT:
            self.spared += max(0.0, duration_secs)
