"""Follows runs: each checkpoint that comes is evaluated, whatever happens to others."""

import time
import warnings
from collections import Counter
from typing import Any

from filip_jax.console import show, show_error
from filip_jax.errors import UserError

POLL = 5.0  # seconds
SAY = 60.0  # seconds between two lines that it waits
ATTEMPTS = 3  # at a checkpoint


def follow(session: Any) -> None:
    """Evaluates each new checkpoint until all runs have ended, or nothing comes any more.

    With the choice "latest" the newest one that is there and all that come; with "all" those before, too.

    Args:
        session: of `evaluate_runs`.
    """
    moved, said, tried, floors = time.monotonic(), -SAY, Counter[tuple[str, int]](), dict[str, int]()
    done: set[tuple[str, int]] = set()
    while True:
        ended = False
        try:
            session.find_runs()
            ended = bool(session.runs) and all(is_finished(session, path) for path in session.runs)
            for path, run in session.runs.items():
                steps = run.checkpoints.steps()  # of a run that has ended, all that ever come
                floors.setdefault(path, max(steps, default=0) if session.choice.step == "latest" else 0)
                done -= {key for key in done if key[0] == path and key[1] not in steps}  # a run may go back
                for step in steps:
                    if step >= floors[path] and (path, step) not in done:
                        if _try(session, path, step, tried):
                            done.add((path, step))
                            moved = time.monotonic()
                        else:
                            ended = False
        except OSError as error:
            warnings.warn(f"{error}; the watch goes on", stacklevel=2)
            ended = False
        if ended:
            return
        if session.choice.idle_minutes and time.monotonic() - moved > 60 * session.choice.idle_minutes:
            show(f"no new checkpoint for {session.choice.idle_minutes:g} minutes")
            return
        if time.monotonic() - said > SAY:
            said = time.monotonic()
            show(_waiting(session))
        time.sleep(POLL)


def is_finished(session: Any, path: str) -> bool:
    """Whether a run has the checkpoint of its last step."""
    run = session.runs[path]
    return max(run.checkpoints.steps(), default=0) >= run.config.get("total_steps", float("inf"))


def _try(session, path, step, tried) -> bool:
    """Whether a checkpoint is done with: evaluated, gone, or tried often enough."""
    tried[path, step] += 1
    last = tried[path, step] >= ATTEMPTS
    try:
        session.evaluate_step(path, step)
    except Exception as error:
        if not isinstance(error, (UserError, OSError)):
            show_error()
        if step not in session.runs[path].checkpoints.steps():
            warnings.warn(f"{path}: step {step} was removed before it was evaluated", stacklevel=2)
            return True
        session.failures[path, step, ""] = f"{path} at step {step}: {error}"
    else:
        session.failures.pop((path, step, ""), None)
        if (path, step) in session.found:
            show(*session.summary().split("\n"))
    failed = [key for key in session.failures if key[:2] == (path, step)]
    for key in failed:
        show(f"{session.failures[key]}{'' if last else '; it is tried again'}")
        if not last and key[2]:  # what was evaluated is recorded
            del session.failures[key]
    return last or not failed


def _waiting(session) -> str:
    why = "".join(f" ({error})" for key, error in session.failures.items() if isinstance(key, str))
    left = [path for path in session.runs if not is_finished(session, path)]
    if not left:
        return f"waiting for a run: {session.workdirs}{why}"
    newest = max(session.runs[left[0]].checkpoints.steps(), default=0)
    rest = f" and {len(left) - 1} more" if len(left) > 1 else ""
    last = session.runs[left[0]].config.get("total_steps", "?")
    return f"waiting for a checkpoint: {left[0]} is at step {newest} of {last}{rest}{why}"
