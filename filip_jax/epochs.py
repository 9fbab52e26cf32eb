"""`epochs` in a config: passes over the data, of which total_steps is made before the run knows of either."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from filip_jax.errors import UserError

KEY = "epochs"
MAX_STEPS = 1e12


def allow_epochs(config: ConfigDict) -> bool:
    """Give a config that trains something the key `epochs`, 0 where it has none; return whether it trains something."""
    if "total_steps" not in config:
        return False
    epochs = config.get(KEY, 0.0)
    if not isinstance(epochs, int | float):
        raise UserError(f"epochs={epochs!r} in a config file must be a number of passes over the data")
    with config.unlocked():
        if KEY in config:  # as a reference to a value of another type, maybe
            del config[KEY]
        config[KEY] = float(epochs)
    return True


def apply_epochs(config: ConfigDict, given: Collection[str], count: Callable[[Mapping[str, Any]], int] | None) -> None:
    """Take `epochs` out of a config; if it is not 0, total_steps becomes that many passes over the source.

    What depends on total_steps follows, a warm-up of a tenth of it for one. A total_steps that the user gives replaces the
    config's own epochs.

    Args:
        given: keys that the user set.
        count: the `source` section -> its records; None where a command opens no source.

    Raises:
        UserError: both are given, epochs that cannot be, or epochs where nothing can be counted.
    """
    epochs = config[KEY]
    with config.unlocked():
        del config[KEY]
    if KEY in given and "total_steps" in given:
        raise UserError("total_steps and epochs are both given: leave one of them out")
    if not 0 <= epochs < math.inf:
        raise UserError(f"epochs={epochs} must be a number of passes over the data; 0 leaves total_steps as it is")
    if not epochs or "total_steps" in given:
        return
    if config.batch_size < 1:
        raise UserError(f"batch_size={config.batch_size} must be at least 1")
    if count is not None:
        steps = epochs * count(config.source.to_dict()) / config.batch_size
        if steps > MAX_STEPS:
            raise UserError(f"epochs={epochs} are {steps:.1e} steps; a run has at most {MAX_STEPS:.1e}")
        config.total_steps = max(1, round(steps))
    elif KEY in given:
        raise UserError("epochs counts the records of a source, which this command does not open: give total_steps")


def count_records(source: Mapping[str, Any]) -> int:
    """Return how many records a `source` section names."""
    from filip_jax.data.sources import make_source

    return len(make_source(source))
