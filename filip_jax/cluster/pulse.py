"""Signs of life: who lags behind, who is silent, who asked to stop; a thread of each process."""

import contextlib
import socket
import threading
import time
from typing import Any

import jax

from filip_jax.cluster import service
from filip_jax.cluster.watch import HUNG, PREEMPTED, Watch

BEAT = 1.0  # seconds between signs of life
UNHEARD = "end"  # the phase in which silence means nothing
FAREWELL = {
    0: 3.0,
    PREEMPTED: 3.0,
}  # seconds that process 0, whose end ends the others, waits for them to end by themselves
HASTE = 1.5  # the same where something went wrong


class Pulse:
    """Tells the other processes where this one is, and ends it when one of them is gone.

    With one process it does nothing.

    Args:
        heartbeat_seconds: without a sign of life after which a process counts as dead.
    """

    def __init__(self, watch: Watch, heartbeat_seconds: float):
        self.watch, self.heartbeat_seconds = watch, heartbeat_seconds
        self.limit = max(heartbeat_seconds - 4 * BEAT, heartbeat_seconds / 2)
        self.me, self.count = jax.process_index(), jax.process_count()
        self.seen: dict[int, tuple[Any, float]] = {}  # process: its last beat, and when it came
        self.answered, self.closed, self.deaf, self.last_words = time.monotonic(), False, False, ""
        if self.count > 1:
            watch.laggards, watch.look = self.laggards, self.check_service
            watch.on_leave.append(self.farewell)
            threading.Thread(target=self._run, daemon=True, name="pulse").start()

    def close(self) -> None:
        """Tells the others that this process comes to its end."""
        if self.count > 1:
            self.closed = True
            self.watch.look = lambda: None
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                service.put(f"beat/{self.me}", [-1, "end", self.watch.step, 0, socket.gethostname()])

    def _run(self) -> None:
        number = 0
        while not self.closed:
            with contextlib.suppress(Exception):  # of the service; its silence is the watch's to judge
                phase, step, seconds = self.watch.now()
                beat = [number, phase, step, round(seconds), socket.gethostname()]
                service.put(f"beat/{self.me}", beat)
                if self.watch.stop:
                    service.put("stop", f"{self.watch.stop} on process {self.me}")
                    self._follow_the_left()
                elif reason := service.get("stop"):
                    self.watch.request_stop(reason)
                if verdict := service.get("verdict"):
                    self.watch.leave(*verdict)
                self._listen()
                self.answered = time.monotonic()
            number += 1
            time.sleep(BEAT)

    def _follow_the_left(self) -> None:
        """A process that left had everything saved, and no step ends without it."""
        if left := [process for process in service.get_all("left") if process != self.me]:
            self.watch.leave(PREEMPTED, f"filip: process {left[0]} has stopped for {self.watch.stop}; exit {PREEMPTED}")

    def _listen(self) -> None:
        """Process 0 hears all, the others hear process 0."""
        beats = service.get_all("beat") if self.me == 0 else {0: service.get("beat/0")}
        now = time.monotonic()
        for process, beat in beats.items():
            if beat is not None and (process not in self.seen or self.seen[process][0] != beat):
                self.seen[process] = beat, now
        for process, (beat, when) in self.seen.items():
            if process != self.me and now - when > self.limit and beat[1] != UNHEARD:
                self._silent(process, beat, now - when)

    def _silent(self, process: int, beat: Any, seconds: float) -> None:
        _, phase, step, _, host = beat
        line = (
            f"filip: process {process} ({host}) has given no sign of life for {seconds:.0f} s; "
            f"it was in phase {phase} at step {step}; exit {HUNG}"
        )
        self.watch.leave(HUNG, line)

    def check_service(self) -> None:
        """Ends this process when process 0 does not answer; called by the watch, since the pulse itself hangs then."""
        if (seconds := time.monotonic() - self.answered) > self.limit and self.watch.now()[0] != UNHEARD:
            _, phase, step, _, host = self.seen.get(0, ((0, "start", 0, 0, "?"), 0.0))[0]
            line = (
                f"filip: process 0 ({host}), which the others meet at, has not answered for {seconds:.0f} s; "
                f"it was in phase {phase} at step {step}; exit {HUNG}"
            )
            self.deaf = True
            self.watch.leave(HUNG, line)

    def laggards(self) -> str:
        """The processes that are behind the furthest one, for the message of a hang."""
        beats = {process: (beat[2], beat[1] == "step", beat) for process, beat in service.get_all("beat").items()}
        furthest = max((step, stepping) for step, stepping, _ in beats.values())
        behind = [
            f"process {process} ({beat[4]}) in phase {beat[1]} at step {beat[2]} for {beat[3]} s"
            for process, (step, stepping, beat) in sorted(beats.items())
            if (step, stepping) < furthest
        ]
        return f"; behind are {', '.join(behind)}" if behind else "; no process is behind another"

    def wait_for_judgement(self, error: Exception) -> None:
        """A collective failed, so another process is probably gone: its silence will say which. Never returns."""
        time.sleep(self.heartbeat_seconds)
        said = " ".join(str(error).split())[:300]
        self.watch.leave(
            HUNG, f"filip: what all processes do together failed, and nobody is silent: {said}; exit {HUNG}"
        )

    def farewell(self, code: int, line: str) -> None:
        """Before this process ends: the others end alike, and process 0, whose end would abort them, waits for them."""
        if self.count == 1 or self.deaf:
            return
        self.closed = True  # what is said here is for the others
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if code == PREEMPTED:
                service.put("stop", f"{self.watch.stop or 'a stop'} on process {self.me}")
            elif code:
                service.put("verdict", [code, self.last_words or line])
            service.put(f"left/{self.me}", True)
            if self.me == 0:
                service.wait_for_all("left", FAREWELL.get(code, HASTE))
                time.sleep(BEAT / 4)
