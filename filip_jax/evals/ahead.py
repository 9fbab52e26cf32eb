"""Work that threads do ahead of the one who takes its results."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

# While a bucket answers, in 30 ms, a core decodes ten photographs: many more threads than cores are of use. Pillow decodes
# and resizes without Python's lock. Where records lie on a disk so many cost next to nothing: 3.2 ms of a core for such a photograph, of one thread 3.1.
THREADS = 16
LAST_WORDS = 5.0  # seconds that all threads together get to end


def in_order(make: Callable[[int], T], count: int, ahead: int) -> Generator[T, None, None]:
    """make(0) … make(count - 1), in order; threads make the next ones while the caller is busy with others.

    The threads end with the generator: let it run to its end or close it. One that a dead disk holds is left behind.

    Args:
        ahead: how many, made or in the making, are held at most beside the one that was given last.

    Raises:
        Exception: what `make` raised, when it is the turn of its number.
    """
    todo: SimpleQueue[tuple[int, Future] | None] = SimpleQueue()
    waiting: deque[Future] = deque()
    threads: list[Thread] = []
    try:
        for n in range(min(THREADS, ahead, count)):
            thread = Thread(target=_work, args=(make, todo), daemon=True, name=f"ahead {n}")
            thread.start()
            threads.append(thread)
        for number in range(count):
            waiting.append(Future())
            todo.put((number, waiting[-1]))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for _ in threads:
            todo.put(None)
        for thread in threads:
            thread.join(LAST_WORDS / len(threads))


def _work(make: Callable[[int], T], todo: SimpleQueue) -> None:
    for number, future in iter(todo.get, None):
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(make(number))
            except BaseException as error:
                future.set_exception(error)
        del future  # and what was made, which is the caller's alone
