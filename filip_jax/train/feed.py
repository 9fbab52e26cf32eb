"""Batches, taken in a thread, so that a main thread that waits for one still hears what happens."""

import contextlib
import gc
import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Protocol, runtime_checkable

SIGNAL_SECONDS = 1.0  # in which a signal to a whole process group reaches this process after its data workers


@runtime_checkable
class Rows(Protocol):
    """An iterator that can be closed."""

    def __next__(self) -> Any: ...

    def close(self) -> object: ...


def no_rows() -> Generator[Any, None, None]:
    """Yield nothing, for a run that has no step left: no data is read."""
    yield from ()


class Feed:
    """The next batch of an iterator, in the making.

    Args:
        rows: only the thread calls its `next`.
        stopping: whether the run is asked to stop. An error beside that is no error: the signal reached the
            workers, too.
    """

    def __init__(self, rows: Rows, stopping: Callable[[], object] = lambda: False):
        self.rows, self.queue, self.closed = rows, queue.Queue[Any](1), threading.Event()
        self.stopping = stopping
        self.item: Any = None
        self.thread = threading.Thread(target=self._run, daemon=True, name="feed")
        self.thread.start()

    def _run(self) -> None:
        try:
            while not self.closed.is_set():
                self._give((next(self.rows), None))
        except BaseException as error:  # a thread that ends without a word would be a hang
            self._give((None, error))

    def _give(self, item: Any) -> None:
        while not self.closed.is_set():
            with contextlib.suppress(queue.Full):
                return self.queue.put(item, timeout=0.2)

    def ready(self, seconds: float) -> bool:
        """Whether the next batch is there, waiting so long for it.

        Raises:
            Exception: whatever making it raised.
        """
        if self.item is None:
            with contextlib.suppress(queue.Empty):
                self.item, error = self.queue.get(timeout=seconds) if seconds else self.queue.get_nowait()
                if error and not self._is_stopping():
                    raise error
        return self.item is not None

    def _is_stopping(self) -> bool:
        end = time.monotonic() + SIGNAL_SECONDS
        while not self.stopping() and time.monotonic() < end:
            time.sleep(0.02)
        return bool(self.stopping())

    def take(self) -> Any:
        """The batch that is ready."""
        item, self.item = self.item, None
        return item

    def close(self) -> None:
        """Ends the thread, if what it waits for lets it, and the iterator; lets go of the batches that nobody took."""
        self.closed.set()
        self.thread.join(5.0)
        if not self.thread.is_alive():
            self.rows.close()
        self.item = None
        with contextlib.suppress(queue.Empty):
            self.queue.get_nowait()
        # JAX lets go of the batch that it read last only now. Batches of data workers lie in shared memory, of which
        # Python would complain when the process ends.
        gc.collect()
