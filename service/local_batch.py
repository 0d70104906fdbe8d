"""A batch: prompts of a file, checkpoints of folders, results in a store and a run folder."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from audit.auditor import Auditor
from audit.batch.discovery import FALSE_DISCOVERY_RATE
from audit.batch.runner import run_tasks
from audit.batch.tasks import Subject
from audit.budget import Budget
from audit.errors import InvalidInput
from audit.model.checkpoint import Checkpoint
from audit.v1 import audit_pb2
from audit.verdict.calibration import Calibration
from service import wire
from service.batch_settings import BatchSettings
from service.ledger import Patience, StoreLedger
from service.local import name_of, open_checkpoint, open_reference
from service.pictures import Pictures
from service.prompts import read_prompts
from service.run_folder import Run, claim, kept_store, writable_url, write_run
from service.runners import Runner, Source, run_here
from service.store.engine import connect
from service.store.queue import Queue
from service.store.records import DONE, PAUSED, RUNNING
from service.store.store import Store
from service.threads import alone


@dataclass(frozen=True)
class Wanted:
    """What a batch is to audit.

    Attributes:
        checkpoints: folders, or "demo".
        prompts: a file; see `service.prompts`.
        reference: a reference set's folder, "demo", or "" for none.
        sampler: on top of each checkpoint's own.
        budget: of every audit.
        pictures: which results keep theirs.
        false_discoveries: expected share of errors among the prompts that count as found.
        device: a torch device.
        dtype: a key of `service.local.DTYPES`.
        offload: whether text encoders and autoencoders wait on the CPU until they are used.
        retry_failed: whether what was set aside is tried again.
    """

    checkpoints: tuple[str, ...]
    prompts: Path
    reference: str
    sampler: audit_pb2.SamplerOptions
    budget: audit_pb2.BudgetOptions
    pictures: Pictures = Pictures.FLAGGED
    false_discoveries: float = FALSE_DISCOVERY_RATE
    device: str = "cpu"
    dtype: str = "float32"
    offload: bool = False
    retry_failed: bool = False


class LocalBatch:
    """A batch and its run folder. Made again with the same arguments, it goes on where it was left.

    Until it is closed, the thread that made it computes alone; see `service.threads`. Where it is refused, nothing is
    left in the folder, or of it, that was not there before.

    Args:
        wanted: what to audit.
        out: the run folder.
        store: URL of the store; "" for the one that the run has, which is a file in its folder unless said before.
        runner: who works on it, from `service.runners.find_runner`.

    Raises:
        InvalidInput: the folder holds something else, is being worked in or has another store, or a setting is
            impossible.
        NotFound: a checkpoint, the prompts or the store are not there.

    Attributes:
        distinct: different prompts of the file.
        stopping: set it to leave; what is in flight is put back.
        note: why the work pauses, in words; "" while it goes on.
    """

    def __init__(self, wanted: Wanted, out: Path, store: str = "", runner: Runner = run_here) -> None:
        self.wanted = wanted
        self.out = out
        self.names = _unique_names(wanted.checkpoints)
        # What is wrong with them is told before anything is made or loaded.
        self.distinct = len({given.prompt for given in read_prompts(wanted.prompts)})
        self.stopping = threading.Event()
        self.note = ""
        self._runner = runner
        self._opened: tuple[str, tuple[Checkpoint, Calibration | None]] | None = None
        self._calibrations: dict[str, Calibration | None] = {}
        begun = Run(store=writable_url(store), false_discoveries=wanted.false_discoveries)
        with ExitStack() as resources:  # what is raised in here undoes what was made
            resources.enter_context(alone())
            run = resources.enter_context(claim(out, begun))
            engine = connect(kept_store(out, run, store))
            self.store, self._queue = resources.enter_context(closing(Store(engine))), Queue(engine)
            self._reference = open_reference(wanted.reference) if wanted.reference else None
            self._budget = wire.budget(wanted.budget, Budget())
            self._subjects = {name: self._subject(folder) for name, folder in self.names.items()}
            try:
                settings = BatchSettings(
                    subjects=self._subjects,
                    reference=wanted.reference and name_of(wanted.reference),
                    pictures=wanted.pictures,
                    in_run_folder=True,
                )
                entries = settings.entries(partial(read_prompts, wanted.prompts))
                self.batch = self.store.create(entries, settings.content(), request_id=run.request_id)
            except InvalidInput as error:
                if error.reason != "REQUEST_ID_REUSED":
                    raise
                raise InvalidInput(
                    f"{out} holds a batch of other prompts or settings; name another --out folder",
                    reason="RUN_OF_ANOTHER_CONFIGURATION",
                    field="out",
                ) from error
            write_run(out, run.model_copy(update={"false_discoveries": wanted.false_discoveries}))
            self._resources = resources.pop_all()

    def close(self) -> None:
        """Let go of store and folder."""
        self._resources.close()

    def run(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Work it off, until it is done or `stopping` is set.

        Args:
            on_change: called whenever tasks came to their ends, or `note` changed.

        Raises:
            InvalidInput: somebody else ended the batch, or what was loaded is no longer what is to be audited.
            AuditError: the store failed while it was told to stop, or the runner cannot do it.
        """
        id_ = self.batch.id

        def tell(note: str) -> None:
            self.note = note
            on_change()

        insist = Patience(self.stopping, tell)
        insist(lambda: self._queue.recover(id_, all_workers=True))  # nobody else may work in the folder
        if self.wanted.retry_failed:
            insist(lambda: self._queue.retry_failed(id_))
        insist(lambda: self.store.set_state(id_, RUNNING))
        for name, folder in self.names.items():
            ledger = StoreLedger(self._queue, id_, name, self._subjects[name], self.wanted.pictures, insist)
            ledger.confirm_known()
            if not ledger.waiting():
                continue
            with self._runner(self._source(name), partial(self._auditor, folder), tell) as workers:
                run_tasks(ledger, workers, self.stopping, on_change)
            if self.stopping.is_set():
                insist(lambda: self.store.set_state(id_, PAUSED, "stopped"))
                return
        if insist(lambda: self.store.counts(id_)).open or not insist(
            lambda: self.store.set_state(id_, DONE, among=(RUNNING,))
        ):
            raise InvalidInput(
                "the batch was cancelled or deleted meanwhile; the same command begins it again",
                reason="BATCH_ENDED",
                field="out",
            )

    def _source(self, name: str) -> Source:
        wanted = self.wanted
        return Source(
            checkpoint=self.names[name],
            reference=wanted.reference,
            subject=self._subjects[name],
            calibration=self._calibrations[self.names[name]],
            device=wanted.device,
            dtype=wanted.dtype,
            offload=wanted.offload,
            include_images=wanted.pictures is not Pictures.NONE,
        )

    def _auditor(self, folder: str) -> Auditor:
        loaded, calibration = self._open(folder)
        return Auditor(loaded, self._reference, calibration)

    def _open(self, folder: str) -> tuple[Checkpoint, Calibration | None]:
        """The checkpoint of a folder; the last one is kept, since it is needed twice."""
        if self._opened is None or self._opened[0] != folder:
            self._opened = None  # one at a time in memory
            wanted = self.wanted
            self._opened = folder, open_checkpoint(folder, wanted.device, wanted.dtype, wanted.offload)
            self._calibrations[folder] = self._opened[1][1]
        return self._opened[1]

    def _subject(self, folder: str) -> Subject:
        return Subject.of(self._auditor(folder), self._budget, wire.sampler_overrides(self.wanted.sampler))


def _unique_names(checkpoints: tuple[str, ...]) -> dict[str, str]:
    """Folders by the names that people know them by; two of one name get numbers."""
    found: dict[str, str] = {}
    for folder in checkpoints:
        name, number = name_of(folder), 1
        while name in found:
            number += 1
            name = f"{name_of(folder)}-{number}"
        found[name] = folder
    return found
