"""The work on a batch: take tasks, have them audited, keep what came of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Protocol

from audit.batch.tasks import Ledger, Task
from audit.errors import AuditError, InvalidInput, Stopped, WorkerLost
from audit.report import Report

#: Seconds between two looks at the ledger while nothing ends.
TICK = 0.5


class Workers(Protocol):
    """Who audits the tasks of one checkpoint, here or elsewhere."""

    @property
    def lanes(self) -> int:
        """How many tasks can be worked on at once, now; 0 while there is nobody yet.

        Raises:
            AuditError: there will be nobody.
        """
        ...

    def submit(self, task: Task) -> Future[Report]:
        """Begin a task. Its future raises WorkerLost when whoever worked on it is gone, Stopped after `stop`."""
        ...

    def stop(self) -> None:
        """Make all futures come to their end soon."""
        ...


def run_tasks(
    ledger: Ledger,
    workers: Workers,
    stopping: threading.Event,
    on_change: Callable[[], None] = lambda: None,
) -> None:
    """Work until no task is left to take, or until told to stop; what is in flight then is put back.

    Args:
        ledger: of one checkpoint.
        workers: of that checkpoint.
        stopping: set it to leave.
        on_change: called whenever tasks came to their ends.

    Raises:
        AuditError: nobody can do the work, as the workers say; what was in flight is put back.
        Exception: whatever the ledger raises; what was in flight is left as it is, as if the process had been lost.
    """
    running: dict[Future[Report], Task] = {}
    failure: AuditError | None = None
    try:
        while not stopping.is_set():
            ledger.beat()
            try:
                room = workers.lanes - len(running)
            except AuditError as error:
                failure = error
                break
            if room > 0:
                for task in ledger.take(room, idle=not running):
                    running[workers.submit(task)] = task
            if running:
                ended = wait(running, timeout=TICK, return_when=FIRST_COMPLETED).done
                if ended:
                    _settle(ledger, [(running.pop(future), future) for future in ended])
                    on_change()
            elif room > 0:
                return
            else:
                time.sleep(TICK)
    finally:
        workers.stop()
        wait(running)
    _settle(ledger, [(task, future) for future, task in running.items()])
    if failure is not None:
        raise failure


def _settle(ledger: Ledger, ended: Sequence[tuple[Task, Future[Report]]]) -> None:
    """Tell the ledger; all that was done in one go, since every commit waits for the disk."""
    done, again, lost = [], [], []
    for task, future in ended:
        error = future.exception()
        if error is None:
            done.append((task, future.result()))
        elif isinstance(error, Stopped):
            again.append(task)
        elif isinstance(error, WorkerLost):
            lost.append(task)
        else:
            # What the prompt itself is to blame for would be refused again.
            ledger.fail(task, error, final=isinstance(error, InvalidInput))
    if done:
        ledger.finish(done)
    if again:
        ledger.put_back(again)
    if lost:
        ledger.lose(lost)
