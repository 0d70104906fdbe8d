"""A job: work that somebody waits for, which ends when nobody does any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from audit.errors import AuditError, Stopped
from audit.work import Progress
from service.checkpoints import LoadedCheckpoint
from service.line import Ticket
from service.status import DEADLINE_EXCEEDED

Answer = TypeVar("Answer")


class Job(Generic[Answer]):
    """Work on one checkpoint, waiting or going on, and those who watch it.

    Args:
        checkpoint: id of the checkpoint.
        evaluations: of the denoiser, at most.
        ticket: its place in the line.
        work: what is to be done, in a thread.
    """

    def __init__(
        self,
        checkpoint: str,
        evaluations: int,
        ticket: Ticket,
        work: Callable[[Job[Answer], LoadedCheckpoint], Answer],
    ) -> None:
        self.checkpoint = checkpoint
        self.evaluations = evaluations
        self.ticket = ticket
        self.work = work
        self.task: asyncio.Task[Answer]
        self.progress: Progress | None = None
        self.watchers: dict[object, float] = {}
        self._stop: AuditError | None = None
        self._entered = time.monotonic()
        self._deadline = float("inf")

    def join(self, watch: object, deadline: float) -> None:
        """One more waits for the answer, until a time of the monotonic clock."""
        self.watchers[watch] = deadline
        self._deadline = max(self.watchers.values())

    def leave(self, watch: object) -> None:
        """One less; the last one's leaving stops the work."""
        del self.watchers[watch]
        if self.watchers:
            self._deadline = max(self.watchers.values())
        else:
            self.stop(Stopped("nobody waits for the answer any more", reason="CANCELLED"))

    def stop(self, error: AuditError) -> None:
        """End the work with an error: at once where it has not begun, else before the next denoiser call."""
        if self.task.done() or self._stop is not None:
            return
        self._stop = error
        self.ticket.called.set()

    @property
    def stopped(self) -> bool:
        """Whether the work was told to end: there is no use in joining."""
        return self._stop is not None

    def check(self) -> None:
        """Raises the error that the work was stopped with, and Stopped when the last deadline has passed."""
        if self._stop is not None:
            raise self._stop
        if time.monotonic() > self._deadline:
            self._stop = Stopped("the deadline passed", reason=DEADLINE_EXCEEDED)
            raise self._stop

    def tell(self, progress: Progress) -> None:
        """Called by the working thread; watchers look at the latest one when they have the time."""
        self.progress = progress

    @property
    def left(self) -> int:
        """Evaluations that are still to be made."""
        done = 0 if self.progress is None else self.progress.evaluations
        return max(0, self.evaluations - done)

    def waited(self) -> float:
        """Seconds since it entered the line."""
        return time.monotonic() - self._entered
