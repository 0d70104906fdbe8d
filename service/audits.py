"""Audits of a server: checked, lined up, run in threads, watched by those who asked for them.

All bookkeeping happens on the event loop; only the audits themselves run in threads, plain and synchronous. A thread
learns that nobody wants its audit any more from the `check` that the auditor calls before every denoiser call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace

from audit.auditor import Progress
from audit.errors import AuditError, BrokenCheckpoint, Stopped
from audit.model.memory import is_out_of_memory
from audit.v1 import audit_pb2, report_pb2
from service import wire
from service.access import caller
from service.answers import Answers, fingerprint_of
from service.checkpoints import CheckpointRegistry, LoadedCheckpoint
from service.config import Settings
from service.line import Line, Ticket
from service.metrics import NOT_FINITE, OUT_OF_MEMORY, Metrics
from service.planning import Plan, Planner
from service.quotas import Quotas
from service.status import DEADLINE_EXCEEDED, OutOfMemory, QueueFull, ShuttingDown, TooLate
from service.threads import lone_threads

#: Seconds between two progress messages of one stream.
PROGRESS_INTERVAL = 0.1
#: Seconds that refused callers are asked to wait at most.
MOST_SECONDS = 60.0


class Job:
    """One audit, waiting or at work, and those who watch it.

    Args:
        request: as it came.
        checkpoint: that it means.
        plan: what it takes.
        ticket: its place in the line.
    """

    def __init__(self, request: audit_pb2.AuditRequest, checkpoint: str, plan: Plan, ticket: Ticket) -> None:
        self.request = request
        self.checkpoint = checkpoint
        self.plan = plan
        self.ticket = ticket
        self.task: asyncio.Task[report_pb2.Report]
        self.progress: Progress | None = None
        self.watchers: dict[Watch, float] = {}
        self._stop: AuditError | None = None
        self._entered = time.monotonic()
        self._deadline = float("inf")

    def join(self, watch: Watch, deadline: float) -> None:
        """One more waits for the answer, until a time of the monotonic clock."""
        self.watchers[watch] = deadline
        self._deadline = max(self.watchers.values())

    def leave(self, watch: Watch) -> None:
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
        return max(0, self.plan.evaluations - done)

    def waited(self) -> float:
        """Seconds since it entered the line."""
        return time.monotonic() - self._entered


class Watch:
    """One caller's view of a job, or of an answer given before."""

    def __init__(self, audits: Audits, job: Job | None, answer: report_pb2.Report | None = None) -> None:
        self._audits = audits
        self._job = job
        self._answer = answer

    async def progress(self) -> AsyncIterator[audit_pb2.Progress]:
        """What is new, at most every `PROGRESS_INTERVAL` seconds, until the job is done."""
        told = None
        while self._job is not None and not self._job.task.done():
            progress = self._audits.progress_of(self._job)
            if progress != told:
                told = progress
                yield progress
            await asyncio.wait([self._job.task], timeout=PROGRESS_INTERVAL)

    async def report(self) -> report_pb2.Report:
        """The answer.

        Raises:
            AuditError: there is none.
        """
        if self._answer is not None:
            return self._answer
        assert self._job is not None
        return await asyncio.shield(self._job.task)


class Audits:
    """Takes audits in and sees them through.

    Args:
        settings: of the server.
        planner: of the server.
        checkpoints: of the server.
        quotas: of the server's clients.
        metrics: of the server.
    """

    def __init__(
        self,
        settings: Settings,
        planner: Planner,
        checkpoints: CheckpointRegistry,
        quotas: Quotas,
        metrics: Metrics,
    ) -> None:
        self._planner = planner
        self._checkpoints = checkpoints
        self._quotas = quotas
        self._metrics = metrics
        most = settings.queue_evaluations
        self._line = Line(settings.concurrent_audits, most, "denoiser evaluations", "QUEUE_FULL", self._until_free)
        self._executor = lone_threads(settings.concurrent_audits, "audit")
        self._jobs: set[Job] = set()
        self._answers: Answers[Job] = Answers()
        line = self._line
        metrics.watch_queue(lambda: line.waiting, lambda: line.busy, lambda: line.weight, most)

    @contextmanager
    def watch(self, request: audit_pb2.AuditRequest, seconds_left: float | None) -> Iterator[Watch]:
        """Start an audit, or join the one of the same request id; leaving it alone stops it.

        Args:
            request: as it came.
            seconds_left: until the caller's deadline; None for ever.

        Raises:
            InvalidInput, NotFound, BrokenReference, NotLoaded, NotReady: the request cannot be served.
            QueueFull: too much waits, or so much that the deadline would pass.
            QuotaExceeded: the client has asked for too much.
            TooLate: the work takes longer than there is time.
        """
        watch, job = self._begin(request, seconds_left)
        if job is None:
            yield watch
            return
        deadline = float("inf") if seconds_left is None else time.monotonic() + seconds_left
        job.join(watch, deadline)
        try:
            yield watch
        finally:
            job.leave(watch)

    def checkpoint_of(self, request: audit_pb2.AuditRequest) -> str:
        """The id that a request means, registered or not; "" where it had to name one and did not."""
        return self._planner.checkpoint_if_one(request.checkpoint)

    def progress_of(self, job: Job) -> audit_pb2.Progress:
        """How far a job is."""
        if job.progress is None:
            return audit_pb2.Progress(
                stage="queued",
                planned_evaluations=job.plan.evaluations,
                queue_position=self._line.ahead(job.ticket),
            )
        return audit_pb2.Progress(
            stage=job.progress.stage,
            evaluations=job.progress.evaluations,
            planned_evaluations=job.progress.planned,
        )

    async def drain(self, seconds: float) -> None:
        """Wait for the jobs that are there, and stop those that take longer."""
        deadline = time.monotonic() + seconds
        while self._jobs and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait([job.task for job in self._jobs], timeout=left)
        for job in self._jobs:
            job.stop(ShuttingDown())
        while self._jobs:
            await asyncio.wait([job.task for job in self._jobs])

    def close(self) -> None:
        """End the threads. No job may be left."""
        self._executor.shutdown()

    def _begin(self, request: audit_pb2.AuditRequest, seconds_left: float | None) -> tuple[Watch, Job | None]:
        fingerprint = fingerprint_of(request)
        known = self._answers.find(request.request_id, fingerprint)
        if isinstance(known, report_pb2.Report):
            return Watch(self, None, known), None
        if known is not None and not known.stopped:
            return Watch(self, known), known
        self._planner.check_prompt(request.prompt)
        checkpoint = self._planner.checkpoint(request.checkpoint)
        plan = self._planner.plan(checkpoint, request.reference, request.sampler, request.budget)
        client = caller.get().name
        self._quotas.check(client)
        if seconds_left is not None:
            self._check_deadline(checkpoint, plan, seconds_left)
        job = Job(request, checkpoint, plan, self._line.enter(plan.evaluations))
        self._quotas.take(client, plan.evaluations)
        job.task = asyncio.create_task(self._run(job))
        self._jobs.add(job)
        self._answers.begin(request.request_id, fingerprint, job)

        def finish(task: asyncio.Task[report_pb2.Report]) -> None:
            self._line.leave(job.ticket)
            self._jobs.discard(job)
            failed = task.cancelled() or task.exception() is not None
            if failed:
                self._quotas.take(client, -job.left)
            self._answers.finish(request.request_id, job, None if failed else task.result())

        job.task.add_done_callback(finish)
        return Watch(self, job), job

    def _check_deadline(self, checkpoint: str, plan: Plan, seconds_left: float) -> None:
        """Refuse at once what could not be done in time, as far as that can be told.

        Raises:
            TooLate: it takes longer, even if nothing else was there.
            QueueFull: it takes longer because of what is there.
        """
        own = plan.evaluations * self._checkpoints.pace(checkpoint)
        if own > seconds_left:
            raise TooLate(
                f"{plan.evaluations} denoiser evaluations take about {own:.3g} s here, more time than there is until "
                f"the deadline ({max(0.0, seconds_left):.3g} s)",
                reason="DEADLINE_TOO_SHORT",
            )
        behind = own + sum(job.left * self._checkpoints.pace(job.checkpoint) for job in self._jobs)
        if behind > seconds_left:
            raise QueueFull(
                f"with all that is there before, the answer would take about {behind:.3g} s, and the deadline is in "
                f"{seconds_left:.3g} s",
                reason="DEADLINE_BEHIND_QUEUE",
                retry_seconds=behind - seconds_left,
            )

    def _until_free(self, evaluations: int) -> float:
        """Seconds until so many have been made, as far as that can be told."""
        paces = [self._checkpoints.pace(job.checkpoint) for job in self._jobs]
        return min(max(0.1, evaluations * max(paces, default=0.0)), MOST_SECONDS)

    async def _run(self, job: Job) -> report_pb2.Report:
        with self._checkpoints.use(job.checkpoint) as loaded:
            await job.ticket.called.wait()
            job.check()
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._audit, job, loaded)

    def _audit(self, job: Job, loaded: LoadedCheckpoint) -> report_pb2.Report:
        """Runs in a thread."""
        queued, plan = job.waited(), job.plan
        self._metrics.queue_wait_seconds.observe(queued)
        auditor = loaded.auditor(plan.auditor.reference)
        with self._counting_failures(job.checkpoint), loaded.batching.lane() as lane:
            report = auditor.audit(
                job.request.prompt,
                sampler=plan.sampler,
                budget=plan.budget,
                include_images=job.request.include_images,
                denoiser=lane,
                on_progress=job.tell,
                check=job.check,
            )
        self._metrics.audit_seconds.observe(report.cost.compute_seconds)
        self._metrics.confidence.labels(report.decision.verdict).observe(report.decision.confidence)
        for stage, seconds in report.cost.stage_seconds.items():
            self._metrics.stage_seconds.labels(stage).observe(seconds)
        return wire.report_to_proto(replace(report, cost=replace(report.cost, queue_seconds=queued)))

    @contextmanager
    def _counting_failures(self, checkpoint: str) -> Iterator[None]:
        """Count what the model is to blame for. The audit fails, and the server goes on."""
        failures = self._metrics.model_failures
        try:
            yield
            return
        except BrokenCheckpoint as error:
            if error.reason == "SAMPLES_NOT_FINITE":
                failures.labels(checkpoint, NOT_FINITE).inc()
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failures.labels(checkpoint, OUT_OF_MEMORY).inc()
        # Outside of the handler, since the error holds on to the frames that hold the memory.
        raise OutOfMemory("not even one row of this size fits into the memory that is free", reason="OUT_OF_MEMORY")
