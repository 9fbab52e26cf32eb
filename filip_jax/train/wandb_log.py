"""Weights & Biases, for runs that name a project. Whatever happens there, training goes on."""

import contextlib
import os
import queue
import re
import secrets
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from filip_jax.errors import UserError
from filip_jax.extras import extra_module
from filip_jax.files import write_atomically
from filip_jax.plain import printable
from filip_jax.small_files import read_own
from filip_jax.train.metrics import say

FILE = "wandb_id.txt"
ID, MAX_ID_BYTES = re.compile(r"[\w-]{1,64}", re.ASCII), 100
BEGIN_SECONDS = 30.0  # for W&B to answer at the start, during which training goes on
END_SECONDS = 30.0  # for the last numbers at the end; what is not sent by then stays on the disk
LONGEST, ILLEGAL = 128, "/\\#?%:"  # characters of a name, those of a project's
WAITING = 10_000  # lines that wait for W&B; further ones are left out


def check_project(project: str) -> None:
    """Raises a UserError for a name that W&B does not take."""
    if len(project) > LONGEST or set(project) & set(ILLEGAL):
        raise UserError(f"wandb_project={project!r} must have at most {LONGEST} characters, and none of {ILLEGAL}")


class WandbLog:
    """Sends metrics to W&B from a thread of its own, so that neither its errors nor its waits reach the run.

    WANDB_MODE=offline needs no network: `wandb sync` sends later what then lies in the workdir's wandb/. The first
    error is one warning, and from there on nothing is sent. A run that goes on has the id that it began with;
    steps that it repeats stand twice in W&B, once in metrics.jsonl.

    Args:
        workdir: the run's folder, where its id is kept.
        project: of W&B; "" writes nothing.
        name: of the run, for people.
        config: shown beside the numbers.

    Raises:
        UserError: a project is named, but the package is not installed.
    """

    def __init__(self, workdir: Path, *, project: str, name: str, config: Mapping[str, Any]):
        self.enabled = bool(project) and jax.process_index() == 0
        if not self.enabled:
            return
        os.environ.setdefault("WANDB_SILENT", "true")  # it would ask for a key at the terminal, and wait
        wandb = extra_module("wandb", "wandb", f"wandb_project={project!r} needs")
        self.lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        run = {
            "dir": str(workdir),
            "project": project,
            "name": printable(name)[-LONGEST:],
            "id": _run_id(workdir),
            "config": dict(config),
        }
        self.thread = threading.Thread(target=self._send, args=(wandb, run), daemon=True)
        self.thread.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hands over the metrics of one step; returns at once."""
        if self.enabled and self.thread.is_alive() and self.lines.qsize() < WAITING:
            self.lines.put({"step": step, **metrics})

    def close(self) -> None:
        """Waits until everything is sent, or long enough."""
        if not self.enabled:
            return
        self.enabled = False
        self.lines.put(None)
        self.thread.join(END_SECONDS)
        if self.thread.is_alive():
            _warn(f"it does not answer within {END_SECONDS:g} s")

    def _send(self, wandb: Any, run: dict[str, Any]) -> None:
        """The thread: begins the run, sends lines until there is a None, and ends it."""
        try:
            settings = wandb.Settings(
                console="off",
                disable_git=True,
                save_code=False,  # the user's code and terminal are not sent
                init_timeout=BEGIN_SECONDS,
                finish_timeout=END_SECONDS,
                finish_timeout_raises=True,
            )
            sent = wandb.init(**run, resume="allow", settings=settings)
            if sent.url:
                say(f"wandb: {sent.url}")
            sent.define_metric("step")
            sent.define_metric("*", step_metric="step")  # its own count of steps takes none back
            while (line := self.lines.get()) is not None:
                sent.log(line)
            sent.finish()
            wandb.teardown()  # finish() may return before its file is on the disk, from where it may go to a bucket
        except (Exception, SystemExit) as error:  # as which teardown passes on that W&B's own process failed
            _warn(f"{type(error).__name__}: {error}")


def _run_id(workdir: Path) -> str:
    """The id of the run, made once."""
    file, found = workdir / FILE, ""
    if os.path.lexists(file):
        with contextlib.suppress(UserError, OSError):
            found = read_own(file, MAX_ID_BYTES).decode("utf-8", "replace").strip()
        if ID.fullmatch(found):
            return found
        warnings.warn(f"{file} holds no id that W&B gives: the run begins anew there", stacklevel=2)
    name = secrets.token_hex(4)
    write_atomically(file, name + "\n")
    return name


def _warn(said: str) -> None:
    """One line without the user's key."""
    said = " ".join(said.split())
    if key := os.environ.get("WANDB_API_KEY"):
        said = said.replace(key, "…")
    warnings.warn(f"wandb: {said[:300]}; no further metrics are sent there, the run goes on", stacklevel=2)
