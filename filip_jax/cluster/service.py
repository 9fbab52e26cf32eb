"""What processes tell each other through JAX's coordination service, which process 0 keeps; no device takes part."""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # the service has no public name

from filip_jax.errors import ProcessLost, UserError

POLL = 0.1  # seconds that one look for a key takes, so that a waiting main thread still meets signals
PREFIX = "filip_jax/"
MOST = 4000  # characters of a message; the service takes all of them together up to 4 MiB

_gathered = 0


def put(key: str, value: Any) -> None:
    """Sets a key for all processes."""
    _client().key_value_set(PREFIX + key, json.dumps(value), allow_overwrite=True)


def get(key: str, seconds: float = 0.0) -> Any:
    """The value of a key, waiting so long for it; None if nobody set it."""
    try:
        if seconds:
            return json.loads(_client().blocking_key_value_get(PREFIX + key, max(1, int(1000 * seconds))))
        return json.loads(_client().key_value_try_get(PREFIX + key))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error) or "NOT_FOUND" in str(error):
            return None
        raise


def get_all(folder: str) -> dict[int, Any]:
    """{process: value} of the keys folder/<process> that are set."""
    found = _client().key_value_dir_get(f"{PREFIX}{folder}/")
    return {int(key.rsplit("/", 1)[1]): json.loads(value) for key, value in found}


def drop(key: str) -> None:
    """Forgets a key, or a folder of keys."""
    _client().key_value_delete(PREFIX + key)


def gather(value: Any) -> list[Any]:
    """What each process gives, in their order, on all of them; called by all main threads in the same order.

    It waits for all, so it is a barrier, too; a process that never comes is the watch's to find.
    """
    global _gathered
    if jax.process_count() == 1:
        return [value]
    me, count, number = jax.process_index(), jax.process_count(), _gathered
    _gathered += 1
    put(f"gather/{number}/{me}", value)
    if me:
        while (values := get(f"gathered/{number}", POLL)) is None:
            pass
        return values
    while len(found := get_all(f"gather/{number}")) < count:
        get(f"gather/{number}/{min(set(range(count)) - set(found))}", POLL)
    values = [found[process] for process in range(count)]
    put(f"gathered/{number}", values)
    if number:  # all have come here, so all have read what was gathered before
        drop(f"gather/{number - 1}/")
        drop(f"gathered/{number - 1}")
    return values


def together(action: Callable[[], None]) -> None:
    """Runs an action on every process; a user's mistake, or a lost process, on one of them stops all of them.

    Raises:
        UserError: the action raised one, or an OSError, somewhere.
        ProcessLost: the action raised one somewhere.
    """
    kind, message = "", ""
    try:
        action()
    except (UserError, OSError, ProcessLost) as error:
        kind = "lost" if isinstance(error, ProcessLost) else "mistake"
        message = str(error)[:MOST] or type(error).__name__
    kind, message = next((found for found in gather([kind, message]) if found[0]), ("", ""))
    if kind:
        raise ProcessLost(message) if kind == "lost" else UserError(message)


def on_first_process(action: Callable[[], None]) -> None:
    """Runs an action on process 0 while the others wait; a user's mistake there stops all of them.

    Raises:
        UserError: the action raised one, or an OSError.
    """
    together(action if jax.process_index() == 0 else lambda: None)


def of_first_process(value: Any) -> Any:
    """What process 0 found, on all of them."""
    return gather(value)[0]


def wait_for_all(folder: str, seconds: float) -> None:
    """Until every other process has set folder/<process>, but not longer than that."""
    others = set(range(jax.process_count())) - {jax.process_index()}
    end = time.monotonic() + seconds
    while not others <= set(get_all(folder)) and time.monotonic() < end:
        time.sleep(0.02)


def address() -> str:
    """Return the host:port of the service; "" where this process is the only one."""
    return distributed.global_state.coordinator_address or ""


def _client() -> Any:
    return distributed.global_state.client
