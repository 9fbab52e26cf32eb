"""The same work on many items, in this process or in others that end with it; words for a process that is gone."""

import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
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


def run(
    make: Callable[..., Callable[[int], Any]],
    arguments: tuple,
    items: Sequence[int],
    workers: int,
    option: str = "--workers",
) -> Iterator[Any]:
    """Yield what each item becomes, as soon as it is done; an interruption starts no further item.

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
    processes: dict[Connection, BaseProcess] = {}
    todo = iter(items)
    try:
        for item in islice(todo, workers):
            pipe, process = _start(make, arguments)
            processes[pipe] = process
            _hand(pipe, item)
        busy = set(processes)
        while busy:
            ready = wait(busy)
            for pipe in [pipe for pipe in busy if pipe in ready]:
                value, error, trace = _answer(pipe, processes, option)
                if error:
                    raise error from RuntimeError(f"in a worker process:\n{trace}")
                if (item := next(todo, None)) is None:
                    busy.remove(pipe)
                    pipe.close()
                else:
                    _hand(pipe, item)
                yield value
    finally:
        for pipe in processes:
            pipe.close()  # a worker ends when it has done its item
        for process in processes.values():
            process.join()


def _start(make: Callable, arguments: tuple) -> tuple[Connection, BaseProcess]:
    """Start a worker and return this process's end of the only pipe to it, which closes when the worker is gone."""
    spawn = multiprocessing.get_context("spawn")  # JAX, if it is loaded, does not survive a fork
    pipe, end = spawn.Pipe()
    process = spawn.Process(target=_work, args=(end, make, arguments))
    resource_tracker.ensure_running()  # the start of this helper process would let interruptions through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: the parent ends its workers
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        end.close()
    return pipe, process


def _hand(pipe: Connection, item: int) -> None:
    with suppress(ConnectionError):  # a worker that is gone is found by its missing answer
        pipe.send(item)


def _answer(
    pipe: Connection, processes: dict[Connection, BaseProcess], option: str
) -> tuple[Any, Exception | None, str]:
    """Return the value of the item that a worker had, or the error that it raised and its traceback.

    Raises:
        ProcessLost: the worker is gone. The other workers are ended.
    """
    try:
        return pipe.recv()
    except (EOFError, OSError) as error:
        processes[pipe].join()
        code = processes[pipe].exitcode or 0
        for process in processes.values():
            process.terminate()
        raise lost("a worker process", code, f"lower {option}") from error


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


def _work(pipe: Connection, make: Callable, arguments: tuple) -> None:
    """Answer each item that comes through the pipe, until the parent closes it; the main function of a worker."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", UserWarning)  # of data that is opened again: the command has said it
    do = None
    with suppress(EOFError, ConnectionError):
        while True:
            item = pipe.recv()
            try:
                do = do or make(*arguments)
                answer = do(item), None, ""
            except Exception as error:
                answer = None, error, traceback.format_exc()  # as text, since no traceback leaves its process
            pipe.send(answer)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)
