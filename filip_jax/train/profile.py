"""Traces of a few steps, to see where their time goes: launch/profiles.md says how to read them."""

from pathlib import Path

import jax

from filip_jax.sections import at_least
from filip_jax.train.metrics import say

FOLDER = "profile"


def check_profile(*, first_step: int, steps: int) -> None:
    """Raises a UserError for values that can not be; these are the keys of a config's section `profile`."""
    at_least(1, "profile", first_step=first_step)
    at_least(0, "profile", steps=steps)


class Profile:
    """Traces some steps of this start into profile/ of the workdir, on the first process, in XProf's format.

    Args:
        workdir: the run's folder.
        start: the step that this start begins from.
        first_step: the first to trace, counted from this start: 1 is its first, which is no usual one.
        steps: so many; 0 traces none.
    """

    def __init__(self, workdir: Path, start: int, *, first_step: int, steps: int):
        self.folder, self.active = workdir / FOLDER, False
        self.first = start + first_step - 1 if steps and jax.process_index() == 0 else -1
        self.end = self.first + steps

    def at(self, step: int, state: object) -> jax.profiler.StepTraceAnnotation:
        """What the step after `step` runs in; begins and ends the trace, for which it waits for the devices."""
        if step == self.first:
            jax.block_until_ready(state)
            say(f"tracing the steps {step + 1} to {self.end} into {self.folder} ...")
            jax.profiler.start_trace(str(self.folder))
            self.active = True
        elif self.active and step >= self.end:
            self.close(state)
        return jax.profiler.StepTraceAnnotation("train", step_num=step + 1)

    def close(self, state: object = None) -> None:
        """Ends the trace if one is under way, when `state` is computed."""
        if self.active:
            self.active = False
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            say(f"traced: xprof --logdir={self.folder}")
