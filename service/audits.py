"""Audits of a server: checked, lined up, run in threads, watched by those who asked for them.

All bookkeeping happens on the event loop; only the audits themselves run in threads, plain and synchronous. A thread
learns that nobody wants its audit any more from the `check` that the auditor calls before every denoiser call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from audit.errors import BrokenCheckpoint
from audit.model.memory import is_out_of_memory
from audit.reference.images import read_upload
from audit.v1 import audit_pb2, report_pb2
from service import wire
from service.access import caller
from service.answers import Answers, fingerprint_of
from service.checkpoints import CheckpointRegistry, LoadedCheckpoint
from service.config import Settings
from service.jobs import Answer, Job
from service.line import Line
from service.metrics import NOT_FINITE, OUT_OF_MEMORY, Metrics
from service.planning import InspectionPlan, Plan, Planner, ScreeningPlan
from service.quotas import Quotas
from service.status import OutOfMemory, QueueFull, ShuttingDown, TooLate
from service.threads import lone_threads

#: Seconds between two progress messages of one stream.
PROGRESS_INTERVAL = 0.1
#: Images that wait or are inspected: each is kept as it was sent.
MOST_IMAGES = 64
#: Seconds that refused callers are asked to wait at most.
MOST_SECONDS = 60.0


AuditJob = Job[report_pb2.Report]


class Watch:
    """One caller's view of a job, or of an answer given before."""

    def __init__(self, audits: Audits, job: AuditJob | None, answer: report_pb2.Report | None = None) -> None:
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
        self._images = Line(MOST_IMAGES, MOST_IMAGES, "images", "QUEUE_FULL")
        self._executor = lone_threads(settings.concurrent_audits, "audit")
        self._jobs: set[Job[Any]] = set()
        self._answers: Answers[AuditJob] = Answers()
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
        with _watched(job, watch, seconds_left):
            yield watch

    async def screen(self, request: audit_pb2.ScreenRequest, seconds_left: float | None) -> audit_pb2.ScreenResponse:
        """Screen prompts; goes away with its caller.

        Args:
            request: as it came.
            seconds_left: until the caller's deadline; None for ever.

        Raises:
            InvalidInput, NotFound, NotLoaded, NotReady: the request cannot be served.
            QueueFull: too much waits, or so much that the deadline would pass.
            QuotaExceeded: the client has asked for too much.
            TooLate: the work takes longer than there is time.
        """
        checkpoint = self._planner.checkpoint(request.checkpoint)
        plan = self._planner.plan_screening(checkpoint, request)
        work = partial(self._screen, request, plan)
        job = self._take_in(checkpoint, plan.evaluations, plan.evaluations, seconds_left, work)
        with _watched(job, object(), seconds_left):
            return await asyncio.shield(job.task)

    async def inspect(
        self, request: audit_pb2.InspectImageRequest, seconds_left: float | None
    ) -> audit_pb2.InspectImageResponse:
        """Inspect an image; goes away with its caller.

        Args:
            request: as it came.
            seconds_left: until the caller's deadline; None for ever.

        Raises:
            InvalidInput, NotFound, BrokenReference, NotLoaded, NotReady: the request cannot be served.
            QueueFull: too much waits, or so much that the deadline would pass.
            QuotaExceeded: the client has asked for too much.
            TooLate: the work takes longer than there is time.
        """
        checkpoint = self._planner.checkpoint(request.checkpoint)
        plan = self._planner.plan_inspection(checkpoint, request)
        work = partial(self._inspect, request, plan)
        place = self._images.enter()
        try:
            job = self._take_in(checkpoint, plan.evaluations, plan.least_evaluations, seconds_left, work)
            with _watched(job, object(), seconds_left):
                return await asyncio.shield(job.task)
        finally:
            self._images.leave(place)

    def checkpoint_of(
        self, request: audit_pb2.AuditRequest | audit_pb2.ScreenRequest | audit_pb2.InspectImageRequest
    ) -> str:
        """The id that a request means, registered or not; "" where it had to name one and did not."""
        return self._planner.checkpoint_if_one(request.checkpoint)

    def progress_of(self, job: AuditJob) -> audit_pb2.Progress:
        """How far a job is."""
        if job.progress is None:
            return audit_pb2.Progress(
                stage="queued",
                planned_evaluations=job.evaluations,
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

    def _begin(self, request: audit_pb2.AuditRequest, seconds_left: float | None) -> tuple[Watch, AuditJob | None]:
        fingerprint = fingerprint_of(request)
        known = self._answers.find(request.request_id, fingerprint)
        if isinstance(known, report_pb2.Report):
            return Watch(self, None, known), None
        if known is not None and not known.stopped:
            return Watch(self, known), known
        checkpoint = self._planner.checkpoint_if_one(request.checkpoint)
        self._planner.check_prompt(request.prompt, checkpoint=checkpoint)
        checkpoint = self._planner.checkpoint(request.checkpoint)
        explained = request.prompt if request.explain else ""
        plan = self._planner.plan(checkpoint, request.reference, request.sampler, request.budget, explained)
        work = partial(self._audit, request, plan)
        job = self._take_in(checkpoint, plan.evaluations, plan.least_evaluations, seconds_left, work)
        self._answers.begin(request.request_id, fingerprint, job)

        def finish(task: asyncio.Task[report_pb2.Report]) -> None:
            failed = task.cancelled() or task.exception() is not None
            self._answers.finish(request.request_id, job, None if failed else task.result())

        job.task.add_done_callback(finish)
        return Watch(self, job), job

    def _take_in(
        self,
        checkpoint: str,
        evaluations: int,
        least: int,
        seconds_left: float | None,
        work: Callable[[Job[Answer], LoadedCheckpoint], Answer],
    ) -> Job[Answer]:
        """Let work into the line, where quota, deadline and what is there already allow it."""
        client = caller.get().name
        self._quotas.check(client)
        if seconds_left is not None:
            self._check_deadline(checkpoint, least, seconds_left)
        job = Job(checkpoint, evaluations, self._line.enter(evaluations), work)
        self._quotas.take(client, evaluations)
        job.task = asyncio.create_task(self._run(job))
        self._jobs.add(job)

        def finish(task: asyncio.Task[Answer]) -> None:
            self._line.leave(job.ticket)
            self._jobs.discard(job)
            self._quotas.take(client, -job.left)

        job.task.add_done_callback(finish)
        return job

    def _check_deadline(self, checkpoint: str, evaluations: int, seconds_left: float) -> None:
        """Refuse at once what could not be done in time, as far as that can be told from what it takes at least.

        Raises:
            TooLate: it takes longer, even if nothing else was there.
            QueueFull: it takes longer because of what is there.
        """
        own = evaluations * self._checkpoints.pace(checkpoint)
        if own > seconds_left:
            raise TooLate(
                f"{evaluations} denoiser evaluations take about {own:.3g} s here, more time than there is until "
                f"the deadline ({max(0.0, seconds_left):.3g} s)",
                reason="DEADLINE_TOO_SHORT",
            )
        behind = own + sum(job.left * self._checkpoints.expected_pace(job.checkpoint) for job in self._jobs)
        if behind > seconds_left:
            raise QueueFull(
                f"with all that is there before, the answer would take about {behind:.3g} s, and the deadline is in "
                f"{seconds_left:.3g} s",
                reason="DEADLINE_BEHIND_QUEUE",
                retry_seconds=behind - seconds_left,
            )

    def _until_free(self, evaluations: int) -> float:
        """Seconds until so many have been made, as far as that can be told."""
        paces = [self._checkpoints.expected_pace(job.checkpoint) for job in self._jobs]
        return min(max(0.1, evaluations * max(paces, default=0.0)), MOST_SECONDS)

    async def _run(self, job: Job[Answer]) -> Answer:
        with self._checkpoints.use(job.checkpoint) as loaded:
            await job.ticket.called.wait()
            job.check()
            return await asyncio.get_running_loop().run_in_executor(self._executor, job.work, job, loaded)

    def _audit(
        self, request: audit_pb2.AuditRequest, plan: Plan, job: AuditJob, loaded: LoadedCheckpoint
    ) -> report_pb2.Report:
        """Runs in a thread."""
        queued = job.waited()
        self._metrics.queue_wait_seconds.observe(queued)
        auditor = loaded.auditor(plan.auditor.reference)
        with self._counting_failures(job.checkpoint), loaded.batching.lane() as lane:
            report = auditor.audit(
                request.prompt,
                sampler=plan.sampler,
                budget=plan.budget,
                include_images=request.include_images,
                explain=request.explain,
                denoiser=lane,
                on_progress=job.tell,
                check=job.check,
            )
        self._metrics.audit_seconds.observe(report.cost.compute_seconds)
        loaded.pace.finished(plan.evaluations, report.cost.evaluations)
        self._metrics.evaluations_saved.labels(job.checkpoint).inc(plan.evaluations - report.cost.evaluations)
        self._metrics.confidence.labels(report.decision.verdict).observe(report.decision.confidence)
        for stage, seconds in report.cost.stage_seconds.items():
            self._metrics.stage_seconds.labels(stage).observe(seconds)
        return wire.report_to_proto(replace(report, cost=replace(report.cost, queue_seconds=queued)))

    def _screen(
        self,
        request: audit_pb2.ScreenRequest,
        plan: ScreeningPlan,
        job: Job[audit_pb2.ScreenResponse],
        loaded: LoadedCheckpoint,
    ) -> audit_pb2.ScreenResponse:
        """Runs in a thread."""
        queued, start = job.waited(), time.perf_counter()
        self._metrics.queue_wait_seconds.observe(queued)
        auditor = loaded.auditor(None)
        with self._counting_failures(job.checkpoint), loaded.batching.lane() as lane:
            found = auditor.screen(
                request.prompts,
                sampler=plan.sampler,
                definition_samples=plan.definition_samples,
                denoiser=lane,
                on_progress=job.tell,
                check=job.check,
            )
        seconds = time.perf_counter() - start
        self._metrics.stage_seconds.labels("screening").observe(seconds)
        return wire.screening_to_proto(
            request.prompts, found, auditor, plan.sampler, seconds=seconds, queue_seconds=queued
        )

    def _inspect(
        self,
        request: audit_pb2.InspectImageRequest,
        plan: InspectionPlan,
        job: Job[audit_pb2.InspectImageResponse],
        loaded: LoadedCheckpoint,
    ) -> audit_pb2.InspectImageResponse:
        """Runs in a thread."""
        queued = job.waited()
        self._metrics.queue_wait_seconds.observe(queued)
        image = read_upload(request.image)
        auditor = loaded.auditor(plan.auditor.reference)
        with self._counting_failures(job.checkpoint), loaded.batching.lane() as lane:
            found = auditor.inspect(
                image, request.prompt, sampler=plan.sampler, denoiser=lane, on_progress=job.tell, check=job.check
            )
        for stage, seconds in found.cost.stage_seconds.items():
            self._metrics.stage_seconds.labels(stage).observe(seconds)
        found = replace(found, cost=replace(found.cost, queue_seconds=queued))
        return wire.inspection_to_proto(found, request.image)

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


@contextmanager
def _watched(job: Job[Any], watch: object, seconds_left: float | None) -> Iterator[None]:
    """Somebody waits for a job until a deadline."""
    job.join(watch, float("inf") if seconds_left is None else time.monotonic() + seconds_left)
    try:
        yield
    finally:
        job.leave(watch)
