"""The checkpoints of a server: registered by the operator, loaded and unloaded while it runs.

All bookkeeping happens on the event loop; only loading itself runs in a thread. There is one such thread, because the
libraries that read checkpoints patch torch globally while they do.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from audit.auditor import Auditor
from audit.demo import default_calibration
from audit.errors import AuditError, BrokenCheckpoint, NotFound
from audit.model.batching import BatchingDenoiser
from audit.model.checkpoint import Checkpoint
from audit.model.checkpoint_source import CheckpointSource
from audit.model.loading import load_checkpoint
from audit.model.sources import weights_bytes
from audit.reference.reference_set import ReferenceSet
from audit.v1 import checkpoint_pb2
from audit.verdict.calibration import Calibration
from service.config_parts import CheckpointEntry
from service.local import load_calibration
from service.log import Logger
from service.metrics import Metrics
from service.pace import Pace
from service.sharing import share
from service.status import NotLoaded, NotReady
from service.threads import Devices
from service.wire import gaps_to_proto


class LoadedCheckpoint:
    """A checkpoint in memory with all that audits need of it.

    Args:
        checkpoint: whose functions run in the thread of their device.
        batching: merges the denoiser calls of its audits.
        calibration: of its verdicts.
        pace: of its denoiser.
    """

    def __init__(
        self, checkpoint: Checkpoint, batching: BatchingDenoiser, calibration: Calibration, pace: Pace
    ) -> None:
        self.checkpoint = checkpoint
        self.batching = batching
        self.calibration = calibration
        self.pace = pace
        self._auditors: dict[str, Auditor] = {}

    @property
    def calibrated(self) -> bool:
        """Whether the calibration is this checkpoint's own."""
        return self.calibration.checkpoint_digest == self.checkpoint.digest

    def auditor(self, reference: ReferenceSet | None) -> Auditor:
        """The auditor against a reference set. They are kept, since each remembers what it reconstructed."""
        name = "" if reference is None else reference.name
        known = self._auditors.get(name)
        if known is None or known.reference is not reference:  # sets of callers change
            known = self._auditors[name] = Auditor(self.checkpoint, reference, self.calibration)
        return known

    def forget(self, reference: str) -> None:
        """Keep no auditor against a reference set, by its name."""
        self._auditors.pop(reference, None)


@dataclass
class _Registered:
    """A registered checkpoint and its state."""

    id: str
    entry: CheckpointEntry
    state: checkpoint_pb2.CheckpointState = checkpoint_pb2.CHECKPOINT_STATE_UNLOADED
    loaded: LoadedCheckpoint | None = None
    #: Of its weights, until they are gone: audits in flight hold those of one on its way out.
    memory_bytes: int = 0
    error: str = ""
    users: int = 0
    #: When it was last used, by the monotonic clock.
    used: float = 0.0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: What changes its state right now, by kind: callers that want the same join it.
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)


class CheckpointRegistry:
    """Registered checkpoints by id.

    Args:
        entries: by id.
        executor: the one thread that loads.
        devices: that compute.
        metrics: of the server.
        logger: of the server.
        batch_rows: most rows in a forward pass.
        batch_wait_seconds: longest wait of a denoiser call for others.
        memory_bytes: that loaded checkpoints may take together; 0 for no bound.
        on_change: called after every load and unload.
    """

    def __init__(
        self,
        entries: Mapping[str, CheckpointEntry],
        *,
        executor: Executor,
        devices: Devices,
        metrics: Metrics,
        logger: Logger,
        batch_rows: int,
        batch_wait_seconds: float,
        memory_bytes: int,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._registered = {id_: _Registered(id_, entry) for id_, entry in sorted(entries.items())}
        #: One at a time, or two that fit alone could be too much together.
        self._loading = asyncio.Lock()
        self._executor = executor
        self._devices = devices
        self._metrics = metrics
        self._logger = logger
        self._batch_rows = batch_rows
        self._batch_wait_seconds = batch_wait_seconds
        self._memory_bytes = memory_bytes
        self._on_change = on_change

    @property
    def ids(self) -> Sequence[str]:
        """Of all that are registered, in order."""
        return list(self._registered)

    def is_loaded(self, id_: str) -> bool:
        """Whether audits can use it."""
        return self._find(id_).loaded is not None

    def takes_no_prompt(self, id_: str) -> bool:
        """Whether it is loaded, and draws images of nothing in particular."""
        loaded = self._find(id_).loaded
        return loaded is not None and loaded.checkpoint.prompts == "none"

    def pace(self, id_: str) -> float:
        """Seconds that callers wait for an evaluation; 0 where nothing is known of it."""
        loaded = self._find(id_).loaded
        return 0.0 if loaded is None else loaded.pace.seconds

    def expected_pace(self, id_: str) -> float:
        """As `pace`, for an evaluation that is planned at most: many an audit is settled before."""
        loaded = self._find(id_).loaded
        return 0.0 if loaded is None else loaded.pace.seconds * loaded.pace.share

    def describe(self, id_: str) -> checkpoint_pb2.CheckpointInfo:
        """What clients may know of a checkpoint."""
        registered = self._find(id_)
        info = checkpoint_pb2.CheckpointInfo(id=id_, state=registered.state, error=registered.error)
        if registered.loaded is not None:
            checkpoint = registered.loaded.checkpoint
            info.digest, info.family, info.parameters = checkpoint.digest, checkpoint.family, checkpoint.parameters
            info.calibrated = registered.loaded.calibrated
            info.guidance, info.prompts = checkpoint.guidance, checkpoint.prompts
            info.gaps.extend(gaps_to_proto(checkpoint.gaps(checkpoint.defaults)))
        return info

    def forget_reference(self, name: str) -> None:
        """Let go of a reference set that is gone; audits in flight keep it."""
        for registered in self._registered.values():
            if registered.loaded is not None:
                registered.loaded.forget(name)

    @contextmanager
    def use(self, id_: str) -> Iterator[LoadedCheckpoint]:
        """A loaded checkpoint, which stays in memory meanwhile.

        Raises:
            NotFound: no such id.
            NotReady: it is being loaded.
            NotLoaded: it is not in memory, or on its way out.
        """
        registered = self._find(id_)
        if registered.loaded is None:
            if "load" in registered.tasks:
                raise NotReady(
                    f"the checkpoint {id_!r} is being loaded",
                    reason="CHECKPOINT_LOADING",
                    field="checkpoint",
                    retry_seconds=1.0,
                )
            why = f": {registered.error}" if registered.error else ""
            raise NotLoaded(
                f"the checkpoint {id_!r} is not loaded{why}", reason="CHECKPOINT_NOT_LOADED", field="checkpoint"
            )
        registered.users += 1
        registered.idle.clear()
        try:
            yield registered.loaded
        finally:
            registered.users -= 1
            registered.used = time.monotonic()
            if not registered.users:
                registered.idle.set()

    async def load(self, id_: str) -> None:
        """Load a checkpoint, unless it is loaded. Goes on when the caller goes away.

        Raises:
            NotFound: no such id.
            BrokenCheckpoint: it cannot be loaded; the others are not affected.
        """
        await self._change("load", self._find(id_), self._load)

    async def unload(self, id_: str) -> None:
        """Unload a checkpoint: at once for new audits, in fact when audits in flight have finished.

        Raises:
            NotFound: no such id.
        """
        await self._change("unload", self._find(id_), self._unload)

    async def close(self) -> None:
        """Unload all."""
        for id_ in self._registered:
            await self.unload(id_)

    def _find(self, id_: str) -> _Registered:
        try:
            return self._registered[id_]
        except KeyError:
            raise NotFound(
                f"no checkpoint {id_[:64]!r} is registered", reason="CHECKPOINT_NOT_FOUND", field="checkpoint"
            ) from None

    async def _change(
        self, kind: str, registered: _Registered, change: Callable[[_Registered], Coroutine[object, object, None]]
    ) -> None:
        task = registered.tasks.get(kind)
        if task is None:
            task = registered.tasks[kind] = asyncio.create_task(change(registered))

            def finish(done: asyncio.Task[None]) -> None:
                del registered.tasks[kind]
                if not done.cancelled():
                    done.exception()  # seen, also when every caller has gone away

            task.add_done_callback(finish)
        await asyncio.shield(task)

    async def _load(self, registered: _Registered) -> None:
        async with registered.changing:
            if registered.loaded is not None:
                return
            registered.state, registered.error = checkpoint_pb2.CHECKPOINT_STATE_LOADING, ""
            self._logger.info("loading checkpoint", checkpoint=registered.id)
            try:
                async with self._loading:
                    start = time.perf_counter()
                    await self._make_room(registered)
                    registered.loaded = await asyncio.get_running_loop().run_in_executor(
                        self._executor, self._read, registered.id, registered.entry
                    )
                    checkpoint = registered.loaded.checkpoint
                    self._hold(registered, checkpoint.parameters * checkpoint.dtype.itemsize)
            except AuditError as error:
                # What the libraries say may quote the path, which is the operator's business.
                error = BrokenCheckpoint(
                    str(error).replace(CheckpointSource.parse(registered.entry.source).base, registered.id),
                    reason=error.reason,
                    field="checkpoint",
                )
                registered.state, registered.error = checkpoint_pb2.CHECKPOINT_STATE_FAILED, str(error)
                self._metrics.checkpoint_loads.labels(registered.id, "failed").inc()
                self._logger.error("checkpoint failed", checkpoint=registered.id, reason=error.reason, error=str(error))
                raise error from None
            registered.state = checkpoint_pb2.CHECKPOINT_STATE_READY
            seconds = time.perf_counter() - start
            registered.used = time.monotonic()
            self._metrics.checkpoints_loaded.inc()
            self._metrics.checkpoint_loaded.labels(registered.id).set(1)
            self._metrics.checkpoint_load_seconds.labels(registered.id).set(seconds)
            self._metrics.checkpoint_loads.labels(registered.id, "ok").inc()
            calibration = registered.loaded.calibration
            digest = calibration.digest if calibration.checkpoint_digest else ""
            self._metrics.set_calibration(registered.id, digest, calibration.made)
            self._logger.info(
                "checkpoint loaded",
                checkpoint=registered.id,
                digest=checkpoint.digest,
                seconds=round(seconds, 2),
            )
            self._on_change()

    async def _make_room(self, wanted: _Registered) -> None:
        """Unload checkpoints that nobody uses, the one that was idle for longest first, until another one fits.

        Raises:
            BrokenCheckpoint: it does not fit, whatever is unloaded, or because the others are in use, if only until
                they are gone. Nothing was unloaded for it then.
        """
        if not self._memory_bytes:
            return
        dtype = getattr(torch, wanted.entry.dtype)
        needed = await asyncio.get_running_loop().run_in_executor(
            self._executor, weights_bytes, CheckpointSource.parse(wanted.entry.source), dtype
        )
        while (there := sum(one.memory_bytes for one in self._registered.values())) + needed > self._memory_bytes:
            idle = [one for one in self._registered.values() if one.loaded is not None and not one.users]
            in_use = there - sum(one.memory_bytes for one in idle)
            if in_use + needed > self._memory_bytes:
                raise BrokenCheckpoint(
                    f"{wanted.id} needs {needed} bytes, and {in_use} of at most {self._memory_bytes} are in use",
                    reason="CHECKPOINT_MEMORY",
                    field="checkpoint",
                )
            oldest = min(idle, key=lambda one: one.used)
            self._logger.info("checkpoint makes room", checkpoint=oldest.id, wanted=wanted.id)
            self._metrics.checkpoint_evictions.inc()
            await self.unload(oldest.id)

    def _hold(self, registered: _Registered, memory_bytes: int) -> None:
        registered.memory_bytes = memory_bytes
        self._metrics.checkpoint_memory.labels(registered.id).set(memory_bytes)

    async def _unload(self, registered: _Registered) -> None:
        async with registered.changing:
            registered.state, registered.error = checkpoint_pb2.CHECKPOINT_STATE_UNLOADED, ""
            loaded, registered.loaded = registered.loaded, None
            if loaded is None:
                return
            self._metrics.checkpoints_loaded.dec()
            self._metrics.checkpoint_loaded.labels(registered.id).set(0)
            self._on_change()
            while registered.users:
                await registered.idle.wait()
            await asyncio.get_running_loop().run_in_executor(self._executor, loaded.batching.close)
            del loaded
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._hold(registered, 0)
            self._logger.info("checkpoint unloaded", checkpoint=registered.id)

    def _read(self, id_: str, entry: CheckpointEntry) -> LoadedCheckpoint:
        """Runs in the loading thread."""
        try:
            source = CheckpointSource.parse(entry.source)
            if entry.calibration is not None and not source.calibration:
                source = replace(source, calibration=str(entry.calibration))
            loaded = load_checkpoint(
                source, name=id_, device=entry.device, dtype=getattr(torch, entry.dtype), offload=entry.offload
            )
            calibration = load_calibration(source) or default_calibration()
        except AuditError:
            raise
        except Exception as error:  # a device that is not there, memory that is not enough
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BrokenCheckpoint(text, reason="CHECKPOINT_DAMAGED", field="checkpoint") from error
        pace = Pace()

        def observe(rows: int, background: int, seconds: float) -> None:
            self._metrics.observe_pass(id_, rows, background, seconds)
            pace.observe(rows - background, seconds)

        shared, batching = share(
            loaded, self._devices, max_rows=self._batch_rows, max_wait=self._batch_wait_seconds, on_batch=observe
        )
        return LoadedCheckpoint(shared, batching, calibration, pace)
