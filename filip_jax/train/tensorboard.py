"""Metrics for TensorBoard, written by the thread that has them. The one door of tensorboardX.

Its own SummaryWriter writes in a thread that a full disk ends in silence; whoever adds a metric then waits for ever.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from filip_jax.files import writing

FLUSH_SECONDS = 10.0  # about, between two times that the events go to the disk


class Scalars:
    """Writes numbers by step into an events file of its own.

    Args:
        folder: made if it is not there.
        step: the first that is written; TensorBoard hides what earlier files have from it on.
    """

    def __init__(self, folder: Path, step: int):
        self.folder, self.flushed = folder.absolute(), time.monotonic()  # tensorboardX takes "s3:" for a bucket
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            self.events = EventsWriter(str(self.folder / "events"))
        self._write(Event(step=step, file_version="brain.Event:2"))
        self._write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the numbers of a step.

        Raises:
            OSError: the disk fails.
        """
        for name, value in metrics.items():
            self._write(Event(step=step, summary=scalar(name, value)))
        if time.monotonic() - self.flushed >= FLUSH_SECONDS:
            with writing(self.folder):
                self.events.flush()
            self.flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is left. Raises as `add` does."""
        with writing(self.folder):
            self.events.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with writing(self.folder):
            self.events.write_event(event)
