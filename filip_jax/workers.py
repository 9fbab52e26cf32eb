"""The same work on many items, in this process or in others that end with it; words for a process that is gone."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from typing import Any

from filip_jax.errors import ProcessLost

CAUSES: dict[int, str] = {
    signal.SIGKILL: "out of memory?",
    signal.SIGBUS: "no room left in /dev/shm (Docker's --shm-size), or a file that was cut while it was read?",
    **dict.fromkeys(
        (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE),
        "a crash in native code, perhaps on a damaged file: does `filip data inspect` end so, too?",
    ),
}


class _Spawn(multiprocessing.context.SpawnContext):
    """Starts processes and keeps them, since `multiprocessing.active_children` forgets those that have ended."""

    def __init__(self):
        super().__init__()
        self.started: list[multiprocessing.context.SpawnProcess] = []

    def Process(self, *given: Any, **named: Any) -> Any:  # type: ignore[override] # a class there
        self.started.append(multiprocessing.context.SpawnProcess(*given, **named))
        return self.started[-1]


def run(
    make: Callable[..., Callable[[int], Any]],
    arguments: tuple,
    items: Sequence[int],
    workers: int,
    option: str = "--workers",
) -> Iterator[Any]:
    """Yields what each item becomes, as soon as it is done; an interruption starts no further item.

    Args:
        make: gives the function of an item when called with `arguments`, once in each process.
        workers: processes; 0 works in this one.
        option: of the command that says how many, for messages.

    Raises:
        ProcessLost: a worker is gone.
        UserError, OSError: `make` or its function raised it in a worker.
    """
    if workers == 0:
        yield from map(make(*arguments), items)
        return
    context = _Spawn()  # JAX, if it is loaded, does not survive a fork
    pool = ProcessPoolExecutor(min(workers, len(items) or 1), context, _begin, (make, arguments))
    try:
        todo, waiting = iter(items), set[Future]()
        while True:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: the parent ends its workers
            waiting |= {pool.submit(_one, item) for item in islice(todo, 2 * workers - len(waiting))}
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        pool.shutdown(wait=True, cancel_futures=True)  # after which each has its exit code
        codes = [process.exitcode for process in context.started if process.exitcode]
        # The pool ends others by SIGTERM.
        code = next((code for code in codes if code != -signal.SIGTERM), -signal.SIGTERM)
        raise lost("a worker process", code, f"lower {option}") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def lost(process: str, code: int, remedy: str, end: str = "") -> ProcessLost:
    """The error that says how a process ended, and perhaps why.

    Args:
        process: that is gone, as in "a data worker".
        code: its exit code; -9 is an end by signal 9.
        remedy: for a lack of memory.
        end: how it ended, if `code` only stands for something like it.
    """
    if code >= 0:
        return ProcessLost(f"{process} ended with exit code {code}; what it wrote stands above")
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    cause = CAUSES.get(-code, "who sent it?")
    then = f" Then {remedy}" if -code in (signal.SIGKILL, signal.SIGBUS) else ""
    return ProcessLost(f"{process} {end or f'was killed by {name}'}: {cause}{then}")


_do: Callable[[int], Any]


def _begin(make: Callable, arguments: tuple) -> None:
    """Prepares a worker process."""
    global _do
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", UserWarning)  # of data that is opened again: the command has said it
    try:
        _do = make(*arguments)
    except Exception as error:  # which an item brings to the parent; from here it would only break the pool
        _do = partial(_fail, error)


def _fail(error: Exception, item: int) -> None:
    raise error


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _one(item: int) -> Any:
    return _do(item)
