"""Before each step all processes agree: to go, to save, to stop, or that one of them cannot go on."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import jax

from filip_jax.cluster import service
from filip_jax.cluster.watch import Watch
from filip_jax.errors import Preempted, ProcessLost, UserError


@dataclass(frozen=True)
class Decision:
    """What all processes do before a step.

    Attributes:
        stop: why the run stops, or "".
        save: whether the clock asks for a save.
        error: what one of them met, or "".
        lost: which process that one of them needs is gone, or "".
    """

    stop: str = ""
    save: bool = False
    error: str = ""
    lost: str = ""

    def end(self, said: str) -> Preempted | ProcessLost:
        """Return why the run ends before its time, which `stop` or `lost` says, with the words `said` behind it."""
        return Preempted(f"{self.stop}: {said}") if self.stop else ProcessLost(f"{self.lost}; {said}")


def roll_call(watch: Watch, step: int, ready: Callable[[float], bool], save: Callable[[], bool]) -> Decision:
    """What all processes decide about going on from `step`; returns when all are ready, or one must stop.

    A process that waits for data hears of a stop, too: nobody has begun the next step, so all can
    save this one.

    Args:
        ready: waits so many seconds for this process's batch; raises what stops the run.
        save: whether process 0's clock asks for a save.

    Raises:
        UserError: a process met one.
        Exception: what `ready` raised in this process, if the others have been told.
    """
    if jax.process_count() == 1:
        try:
            while not watch.stop and not ready(service.POLL):
                pass
        except ProcessLost as error:
            return Decision(watch.stop, lost=str(error))
        return Decision(watch.stop, save())
    lead = _lead if jax.process_index() == 0 else _follow
    decision, mine = lead(watch, step, _Ready(ready), save)
    if mine:
        raise mine
    if decision.error:
        raise UserError(decision.error)
    return decision


class _Ready:
    """A process's own vote: whether it has its batch, or what keeps it from ever having one."""

    def __init__(self, ready: Callable[[float], bool]):
        self.ready, self.is_ready, self.lost = ready, False, ""
        self.error: Exception | None = None

    def look(self, seconds: float) -> bool:
        """Whether there is a vote to give, waiting so long for it."""
        try:
            self.is_ready = self.is_ready or (not self.lost and self.error is None and self.ready(seconds))
        except ProcessLost as error:  # no error of the run's: all save
            self.lost = str(error)
        except Exception as error:
            self.error = error
        return self.is_ready or bool(self.lost) or self.error is not None

    def said(self) -> str:
        """The error for the others."""
        if self.error is None:
            return ""
        if isinstance(self.error, (UserError, OSError)):
            return str(self.error)
        return f"process {jax.process_index()} failed: {type(self.error).__name__}: {self.error}"


def _lead(watch: Watch, step: int, mine: _Ready, save: Callable[[], bool]) -> tuple[Decision, Exception | None]:
    others = range(1, jax.process_count())
    while True:
        ready = mine.look(0.0 if mine.is_ready else service.POLL / 4)
        votes = service.get_all(f"vote/{step}")
        errors = [mine.said(), *(vote["error"] for vote in votes.values())]
        stops = [watch.stop, *(vote["stop"] for vote in votes.values())]
        losses = [mine.lost, *(vote["lost"] for vote in votes.values())]
        decision = Decision(_first(stops), save(), _first(errors), _first(losses))
        missing = [process for process in others if process not in votes]
        if decision.stop or decision.error or decision.lost or (ready and not missing):
            break
        if ready:
            service.get(f"vote/{step}/{missing[0]}", service.POLL)
    service.put(f"decision/{step}", asdict(decision))
    service.drop(f"vote/{step - 1}/")  # all are past it
    service.drop(f"decision/{step - 1}")
    return decision, mine.error


def _first(texts: Sequence[str]) -> str:
    return next(filter(None, texts), "")


def _follow(watch: Watch, step: int, mine: _Ready, save: Callable[[], bool]) -> tuple[Decision, Exception | None]:
    me, given = jax.process_index(), None
    while True:
        has_vote = mine.look(0.0 if mine.is_ready else service.POLL / 4)
        vote = {"stop": watch.stop, "error": mine.said(), "lost": mine.lost}
        if vote != given and (has_vote or watch.stop):
            service.put(f"vote/{step}/{me}", vote)
            given = vote
        if found := service.get(f"decision/{step}", service.POLL if has_vote else 0.0):
            return Decision(**found), mine.error
