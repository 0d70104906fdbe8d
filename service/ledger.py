"""The store as a runner sees it: the tasks of one checkpoint of one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from audit.batch.tasks import Subject, Task
from audit.errors import AuditError
from audit.report import Report
from audit.v1 import report_pb2
from audit.verdict.rule import PhaseClass
from service import wire
from service.pictures import Pictures
from service.store.engine import StoreFailed
from service.store.queue import Finished, Queue

#: Seconds between two tries while the store fails, at first and at most.
SOON, LATE = 0.5, 10.0

_T = TypeVar("_T")


def describe(task: Task, error: BaseException) -> str:
    """An error in words, for those whose process it is."""
    return str(error) if isinstance(error, AuditError) else f"{type(error).__name__}: {error}"


class Patience:
    """Asks a store until it answers: while it fails, full or gone, nothing that was done may be lost.

    Args:
        stopping: set it to wait no longer.
        on_pause: called with what is wrong when the store begins to fail, and with "" when it works again.
    """

    def __init__(self, stopping: threading.Event, on_pause: Callable[[str], None] = lambda note: None) -> None:
        self._stopping = stopping
        self._on_pause = on_pause

    def __call__(self, ask: Callable[[], _T]) -> _T:
        """The answer.

        Raises:
            StoreFailed: the store failed while nobody wanted to wait any more.
        """
        pause = 0.0
        while True:
            try:
                answer = ask()
            except StoreFailed as error:
                if not pause:
                    self._on_pause(str(error))
                pause = min(LATE, 2 * pause or SOON)
                if self._stopping.wait(pause):
                    raise
            else:
                if pause:
                    self._on_pause("")
                return answer


class StoreLedger:
    """Implements `audit.batch.tasks.Ledger`.

    Args:
        queue: of the store that the batch is in.
        batch: its id.
        checkpoint: whose tasks, by the name that the batch uses.
        subject: what is audited.
        pictures: which results keep theirs.
        patience: with the store.
        error_of: what is kept of an error.
        on_audit: called with the verdict of every audit that is kept, and with "" for every one that failed.
    """

    def __init__(
        self,
        queue: Queue,
        batch: str,
        checkpoint: str,
        subject: Subject,
        pictures: Pictures,
        patience: Patience,
        error_of: Callable[[Task, BaseException], str] = describe,
        on_audit: Callable[[str], None] = lambda verdict: None,
    ) -> None:
        self._queue = queue
        self._batch = batch
        self._checkpoint = checkpoint
        self._subject = subject
        self._pictures = pictures
        self._insist = patience
        self._error_of = error_of
        self._on_audit = on_audit
        self._held: set[int] = set()

    def confirm_known(self) -> None:
        """Take on the second audits of prompts whose first ones were there before the batch."""
        known = self._insist(lambda: self._queue.unconfirmed(self._batch, self._checkpoint))
        again = [(task, self._confirmation(task)) for task in known]
        self._insist(lambda: self._queue.confirm(self._batch, again))

    def waiting(self) -> bool:
        """See `Queue.waiting`."""
        return self._insist(lambda: self._queue.waiting(self._batch, self._checkpoint))

    def beat(self) -> None:
        """See `Queue.beat`."""
        self._insist(self._queue.beat)

    def take(self, most: int, *, idle: bool) -> Sequence[Task]:
        """See `Queue.take`."""
        ask = partial(
            self._queue.take,
            self._batch,
            self._checkpoint,
            most,
            idle=idle,
            held=self._held,
            confirmation=self._confirmation,
        )
        tasks = self._insist(ask)
        self._held.update(task.id for task in tasks)
        return tasks

    def finish(self, done: Sequence[tuple[Task, Report]]) -> None:
        """See `Queue.finish`."""
        finished = [Finished(task, self._message(report), self._confirmation(task)) for task, report in done]
        self._insist(lambda: self._queue.finish(self._batch, finished))
        self._held.difference_update(task.id for task, _ in done)
        for _, report in done:
            self._on_audit(report.decision.verdict)

    def fail(self, task: Task, error: BaseException, *, final: bool) -> None:
        """See `Queue.fail`."""
        text = self._error_of(task, error)
        self._insist(lambda: self._queue.fail(task, text, final=final))
        self._on_audit("")
        self._held.discard(task.id)

    def lose(self, tasks: Sequence[Task]) -> None:
        """See `Queue.lose`."""
        self._insist(lambda: self._queue.lose(tasks))
        self._held.difference_update(task.id for task in tasks)

    def put_back(self, tasks: Sequence[Task]) -> None:
        """See `Queue.put_back`."""
        self._insist(lambda: self._queue.put_back(tasks))
        self._held.difference_update(task.id for task in tasks)

    def _confirmation(self, task: Task) -> str:
        """Key of the second audit."""
        return self._subject.confirmation.key(task.prompt)

    def _message(self, report: Report) -> report_pb2.Report:
        flagged = report.decision.verdict is not PhaseClass.GENERALIZED
        if self._pictures is Pictures.NONE or (self._pictures is Pictures.FLAGGED and not flagged):
            # Before they are encoded, which takes longer than all else here.
            report = replace(report, images=None, reference=report.reference and replace(report.reference, images={}))
        return wire.report_to_proto(report)
