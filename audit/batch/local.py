"""Workers in this process: several audits at once, so that the denoiser's batches stay full."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from audit.auditor import Auditor
from audit.batch.tasks import Subject, Task
from audit.errors import Stopped
from audit.model.batching import BatchingDenoiser
from audit.report import Report


class LocalWorkers:
    """Implements `audit.batch.runner.Workers`.

    Args:
        auditor: of the checkpoint.
        batching: its denoiser; every task has a lane of its own.
        subject: what is audited.
        pool: threads for the tasks.
        lanes: tasks that run at once.
        include_images: whether reports keep their pictures.
    """

    def __init__(
        self,
        auditor: Auditor,
        batching: BatchingDenoiser,
        subject: Subject,
        *,
        pool: ThreadPoolExecutor,
        lanes: int,
        include_images: bool,
    ) -> None:
        self.lanes = lanes
        self._auditor = auditor
        self._batching = batching
        self._subject = subject
        self._pool = pool
        self._include_images = include_images
        self._stopping = threading.Event()

    def submit(self, task: Task) -> Future[Report]:
        """See `Workers.submit`."""
        return self._pool.submit(self.audit, task)

    def stop(self) -> None:
        """See `Workers.stop`; audits end before their next denoiser call."""
        self._stopping.set()

    def audit(self, task: Task) -> Report:
        """Do a task in this thread.

        Raises:
            Stopped: after `stop`.
            Exception: whatever the audit raises.
        """
        asked = self._subject.confirmation if task.confirms else self._subject
        with self._batching.lane(background=True) as lane:  # callers go first
            return self._auditor.audit(
                task.prompt,
                sampler=asked.sampler,
                budget=asked.budget,
                include_images=self._include_images,
                denoiser=lane,
                check=self._check,
            )

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Stopped("the batch was stopped", reason="BATCH_STOPPED")
