"""The work on a server's batches, one after the other, beside the audits of callers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from audit.auditor import Auditor
from audit.batch.local import LocalWorkers
from audit.batch.runner import Workers, run_tasks
from audit.batch.tasks import Task
from audit.errors import AuditError, InvalidInput
from service.batch_settings import BatchSettings
from service.checkpoints import CheckpointRegistry, LoadedCheckpoint
from service.config import Settings
from service.ledger import Patience, StoreLedger
from service.log import Logger
from service.metrics import Metrics
from service.pictures import Pictures
from service.references import ReferenceRegistry
from service.runners import Runner, Source
from service.status import StoreDown
from service.store.engine import StoreFailed
from service.store.queue import Queue
from service.store.records import DONE, FAILED, PAUSED, RUNNING, Batch
from service.store.store import Store
from service.threads import lone_threads

#: Seconds between two looks for work that nobody announced: of another server, or given back by a lost one.
IDLE = 2.0
#: What callers learn of a cluster that cannot do the work.
NO_WORKERS = "the workers in the server's Ray cluster cannot go on; the server's log says why"

_T = TypeVar("_T")


@dataclass
class _Turn:
    """What is being worked on."""

    batch: str
    checkpoint: str
    stopping: threading.Event = field(default_factory=threading.Event)


class BatchWork:
    """Works off batches, the oldest first, whichever server of the store took them in.

    Args:
        settings: of the server.
        runner: where audits are done elsewhere; None does them here, with the server's own denoisers.
        store: of batches.
        new_queue: makes a worker that takes their tasks.
        checkpoints: of the server.
        references: of the server.
        metrics: of the server.
        logger: of the server.
    """

    def __init__(
        self,
        settings: Settings,
        runner: Runner | None,
        store: Store,
        new_queue: Callable[[], Queue],
        checkpoints: CheckpointRegistry,
        references: ReferenceRegistry,
        metrics: Metrics,
        logger: Logger,
    ) -> None:
        self._settings = settings
        self._lanes = settings.batches.lanes
        self._elsewhere = runner
        self._store = store
        self._new_queue = new_queue
        self._queue = new_queue()
        self._checkpoints = checkpoints
        self._references = references
        self._metrics = metrics
        self._logger = logger
        self._pool = lone_threads(settings.batches.lanes, "batch-audit")
        self._runner = lone_threads(1, "batch")
        self._wake = asyncio.Event()
        self._turn: _Turn | None = None
        self._closing = False
        #: Why batches wait, by their ids.
        self.notes: dict[str, str] = {}
        #: Since when batches are known not to fit this server, by their ids, on the monotonic clock.
        self._unfit: dict[str, float] = {}
        self._task = asyncio.create_task(self._work())

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def stop(self, batch: str) -> None:
        """Stop what is in flight of a batch."""
        if self._turn is not None and self._turn.batch == batch:
            self._turn.stopping.set()

    def look(self) -> None:
        """Checkpoints were loaded or unloaded: let go of one that has to go, and use one that came."""
        self.notes.clear()  # they may say what is no longer so
        if self._turn is not None and not self._checkpoints.is_loaded(self._turn.checkpoint):
            self._turn.stopping.set()
        self.wake()

    async def close(self) -> None:
        """Put back what is in flight, and end."""
        self._closing = True
        if self._turn is not None:
            self._turn.stopping.set()
        self.wake()
        await self._task
        self._runner.shutdown()
        self._pool.shutdown()

    async def _work(self) -> None:
        while not self._closing:
            self._wake.clear()
            batches: list[Batch] = []
            with self._surviving():
                batches = await self._call(self._store.running)
            running = {batch.id for batch in batches}
            self.notes = {id_: note for id_, note in self.notes.items() if id_ in running}
            self._unfit = {id_: since for id_, since in self._unfit.items() if id_ in running}
            for batch in batches:
                with self._surviving():
                    await self._advance(batch)
            if not self._closing:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), IDLE)

    async def _advance(self, batch: Batch) -> None:
        """Do what can be done of a batch now."""
        try:
            settings = BatchSettings.read(batch.settings)
            await self._call(partial(self._queue.recover, batch.id))
            waits = []
            for name in settings.subjects:
                if self._closing:
                    return
                if why := await self._advance_checkpoint(batch.id, name, settings):
                    waits.append(why)
        except InvalidInput as error:
            await self._leave(batch.id, error)
            return
        self._unfit.pop(batch.id, None)
        self.notes[batch.id] = "; ".join(waits)
        if await self._call(partial(self._end, batch.id, settings)):
            self._logger.info("batch done", batch=batch.id)

    async def _leave(self, batch: str, error: InvalidInput) -> None:
        """Leave a batch that does not fit this server to others, as in an upgrade, and end it where there are none.

        Another one that it fits works on it, or on an older one: within a lease the store shows that it works.
        """
        self.notes[batch] = str(error)
        since = self._unfit.setdefault(batch, time.monotonic())
        if time.monotonic() - since > self._settings.batches.lease_seconds and await self._call(self._queue.alone):
            self._logger.error("batch failed", batch=batch, reason=error.reason)
            await self._call(partial(self._store.set_state, batch, FAILED, str(error), among=(RUNNING, PAUSED)))

    def _end(self, batch: str, settings: BatchSettings) -> bool:
        """Let a batch be done if nothing is left to do. Runs in a thread."""
        # Flags that were known before the batch have no second audit to do yet where their checkpoint is not loaded.
        if self._store.counts(batch).open or any(self._queue.unconfirmed(batch, name) for name in settings.subjects):
            return False
        return self._store.set_state(batch, DONE, among=(RUNNING,))

    async def _advance_checkpoint(self, batch: str, name: str, settings: BatchSettings) -> str:
        """Do what can be done with one checkpoint; why that is nothing, or ""."""
        try:
            with self._checkpoints.use(name) as loaded:
                auditor = loaded.auditor(self._references.get(settings.reference) if settings.reference else None)
                settings.check(name, auditor)
                self._turn = turn = _Turn(batch, name)
                ledger = StoreLedger(
                    self._queue,
                    batch,
                    name,
                    settings.subjects[name],
                    settings.pictures,
                    Patience(turn.stopping, partial(self._wait_for_store, batch)),
                    self._error_of,
                    partial(self._metrics.count_batch_audit, name),
                )
                open_workers = partial(self._open_workers, turn, loaded, auditor, settings)
                if why := await self._call(partial(self._run, turn, ledger, open_workers)):
                    return why
            with self._checkpoints.use(name):  # or say that it went away meanwhile
                pass
        except (InvalidInput, StoreFailed):
            raise
        except AuditError as error:  # not loaded, not yet, or for good: it may be loaded later
            return str(error)
        finally:
            self._turn = None
        return ""

    def _run(
        self,
        turn: _Turn,
        ledger: StoreLedger,
        open_workers: Callable[[], contextlib.AbstractContextManager[Workers]],
    ) -> str:
        """Work, and say why that cannot go on, or "". Runs in a thread."""
        ledger.confirm_known()
        if not ledger.waiting():  # or workers would be opened, and notes lost, as often as somebody looks
            return ""
        try:
            with open_workers() as workers:
                self.notes.pop(turn.batch, None)
                run_tasks(ledger, workers, turn.stopping)
        except StoreFailed:
            raise
        except AuditError as error:  # machines of the cluster may be mended; where they are is the operator's business
            if self.notes.get(turn.batch) != NO_WORKERS:
                self._logger.error("workers of batches", batch=turn.batch, reason=error.reason, error=str(error))
            return NO_WORKERS
        return ""

    def _open_workers(
        self, turn: _Turn, loaded: LoadedCheckpoint, auditor: Auditor, settings: BatchSettings
    ) -> contextlib.AbstractContextManager[Workers]:
        subject, include_images = settings.subjects[turn.checkpoint], settings.pictures is not Pictures.NONE
        if self._elsewhere is None:
            workers = LocalWorkers(
                auditor,
                loaded.batching,
                subject,
                pool=self._pool,
                lanes=self._lanes,
                include_images=include_images,
            )
            return contextlib.nullcontext(workers)
        entry = self._settings.all_checkpoints[turn.checkpoint]
        source = Source(
            checkpoint=entry.source,
            reference=str(self._references.folder(settings.reference)) if settings.reference else "",
            subject=subject,
            calibration=loaded.calibration,
            device="cpu",
            dtype=entry.dtype,
            include_images=include_images,
        )
        return self._elsewhere(source, lambda: auditor, partial(self._note, turn.batch))

    def _error_of(self, task: Task, error: BaseException) -> str:
        """What callers learn of an audit that failed."""
        if isinstance(error, AuditError):
            return str(error)
        self._logger.error("audit of a batch", checkpoint=task.checkpoint, exc_info=error)
        return "an internal error; the server's log has it"

    def _wait_for_store(self, batch: str, why: str) -> None:
        if why:
            self._metrics.store_errors.inc()
            self._logger.error("store of batches", batch=batch, error=why)
        self._note(batch, why and str(StoreDown()))

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Whatever goes wrong, the server goes on."""
        try:
            yield
        except Exception as error:
            if isinstance(error, StoreFailed):
                self._metrics.store_errors.inc()
                self._logger.error("store of batches", error=str(error))
            else:
                self._logger.error("batch", exc_info=error)
            self._queue = self._new_queue()  # or what was in flight would never count as lost

    def _note(self, batch: str, note: str) -> None:
        self.notes[batch] = note

    async def _call(self, function: Callable[[], _T]) -> _T:
        """Work, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._runner, function)
