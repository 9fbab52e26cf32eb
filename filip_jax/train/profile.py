"""Traces of a few steps, to see where their time goes: launch/profiles.md says how to read them."""

import contextlib
import warnings

import jax

from filip_jax.sections import at_least
from filip_jax.train.metrics import say
from filip_jax.workdir import Workdir

FOLDER = "profile"


def check_profile(*, first_step: int, steps: int) -> None:
    """Raises a UserError for values that cannot be; these are the keys of a config's section `profile`."""
    at_least(1, "profile", first_step=first_step)
    at_least(0, "profile", steps=steps)


class Profile:
    """Traces some steps of this start into profile/ of the workdir, on the first process, in XProf's format.

    Args:
        place: the run's workdir.
        start, total_steps: the step that this start begins from, and the run's last.
        first_step: the first to trace, counted from this start: 1 is its first, which is no usual one.
        steps: so many; 0 traces none.
    """

    def __init__(self, place: Workdir, start: int, total_steps: int, *, first_step: int, steps: int):
        self.folder, self.name, self.active = place.folder / FOLDER, f"{place.name}/{FOLDER}", False
        self.first = start + first_step - 1 if steps and jax.process_index() == 0 else -1
        self.end = min(self.first + steps, total_steps)
        if steps and start < total_steps < start + first_step:
            said = f"profile.first_step={first_step}: no step is traced, this start has {total_steps - start} left"
            warnings.warn(said, stacklevel=2)

    def at(self, step: int, state: object) -> jax.profiler.StepTraceAnnotation:
        """What the step after `step` runs in; begins and ends the trace, for which it waits for the devices."""
        if step == self.first:
            jax.block_until_ready(state)
            say(f"tracing the steps {step + 1} to {self.end} into {self.name} ...")
            jax.profiler.start_trace(str(self.folder.absolute()))
            self.active = True
        elif self.active and step >= self.end:
            self.close(state)
        return jax.profiler.StepTraceAnnotation("train", step_num=step + 1)

    def close(self, state: object = None) -> None:
        """Ends the trace if one is under way, when `state` is computed."""
        if self.active:
            self.active = False
            with contextlib.suppress(Exception):  # a step that failed says so itself
                jax.block_until_ready(state)
            try:
                jax.profiler.stop_trace()
                say(f"traced: xprof --logdir={self.name}")
            except Exception as error:  # of many types; a run does not end for its trace
                warnings.warn(f"{self.name}: the trace cannot be written: {error}", stacklevel=2)
