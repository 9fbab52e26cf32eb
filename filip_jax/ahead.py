"""Work that threads do ahead of the one who takes its results."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

# While a bucket answers, in 30 ms, a core decodes ten photographs: many more threads than cores are of use. Pillow decodes
# and resizes without Python's lock. Where records lie on a disk so many cost next to nothing: 3.2 ms of a core for such a photograph, of one thread 3.1.
THREADS = 16
LAST_WORDS = 5.0  # seconds that all threads together get to end


def in_order(make: Callable[[S], T], items: Iterable[S], ahead: int) -> Generator[T, None, None]:
    """Yield make(item) of each item, in order; threads make the next ones while the caller is busy with others.

    The threads end with the generator: let it run to its end or close it. One that a dead disk holds is left behind.

    Args:
        items: of which the caller's thread takes the next one whenever one is yielded.
        ahead: how many, made or in the making, are held at most beside the one that was given last.

    Raises:
        Exception: what `make` raised, when it is the turn of its item.
    """
    todo: SimpleQueue[tuple[S, Future] | None] = SimpleQueue()
    waiting: deque[Future] = deque()
    threads: list[Thread] = []
    try:
        for item in items:
            if len(threads) < min(THREADS, ahead):
                threads.append(Thread(target=_work, args=(make, todo), daemon=True, name=f"ahead {len(threads)}"))
                threads[-1].start()
            waiting.append(Future())
            todo.put((item, waiting[-1]))
            del item
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


def _work(make: Callable[[S], T], todo: SimpleQueue) -> None:
    for item, future in iter(todo.get, None):
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(make(item))
            except BaseException as error:
                future.set_exception(error)
        del item, future  # and what was made, which is the caller's alone
