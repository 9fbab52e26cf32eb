"""The same work on many items, in this process or in others that end with it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

from filip_jax.errors import UserError


def run(
    make: Callable[..., Callable[[int], Any]], arguments: tuple, items: Sequence[int], workers: int
) -> Iterator[Any]:
    """Yields what each item becomes, as soon as it is done; an interruption starts no further item.

    Args:
        make: gives the function of an item when called with `arguments`, once in each process.
        workers: processes; 0 works in this one.

    Raises:
        UserError: a worker was killed.
    """
    if workers == 0:
        yield from map(make(*arguments), items)
        return
    context = multiprocessing.get_context("spawn")  # JAX, if it is loaded, does not survive a fork
    pool = ProcessPoolExecutor(min(workers, len(items) or 1), context, _begin, (make, arguments))
    try:
        todo, waiting = iter(items), set()
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
        raise UserError(
            "a worker process was killed, perhaps for want of memory; the same command goes on where it stopped"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_do: Callable[[int], Any]


def _begin(make: Callable, arguments: tuple) -> None:
    """Prepares a worker process."""
    global _do
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _do = make(*arguments)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _one(item: int) -> Any:
    return _do(item)
