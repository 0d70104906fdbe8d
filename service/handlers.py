"""The services of proto/audit/v1. Errors are raised; `service.calls` turns them into statuses."""

# ruff: noqa: N802 - the .proto files name the methods

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import structlog

from audit.errors import InvalidInput
from audit.model.sampling import SCHEDULERS
from audit.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    checkpoint_pb2,
    checkpoint_pb2_grpc,
    info_pb2,
    info_pb2_grpc,
    report_pb2,
)
from audit.version import basin_version, library_versions
from service.audit_log import tell
from service.audits import Audits
from service.calls import Context, code_of_cancellation, send, span
from service.checkpoints import CheckpointRegistry
from service.config import Settings
from service.log import fingerprint
from service.metrics import STAGES, Metrics
from service.paging import page
from service.references import ReferenceRegistry
from service.status import Closed, code_of, within


@dataclass
class _Outcome:
    """What an audit call came to."""

    report: report_pb2.Report | None = None


class AuditHandlers(audit_pb2_grpc.AuditServiceServicer):
    """Audits.

    Args:
        audits: of the server.
        metrics: of the server.
    """

    def __init__(self, audits: Audits, metrics: Metrics) -> None:
        self._audits = audits
        self._metrics = metrics

    async def Audit(self, request: audit_pb2.AuditRequest, context: Context) -> audit_pb2.AuditResponse:
        """Audit one prompt."""
        with self._counted(request, context) as outcome:
            with self._audits.watch(request, context.time_remaining()) as watch:
                outcome.report = await watch.report()
            return audit_pb2.AuditResponse(report=outcome.report)

    # The generated type knows generators only. Writing to the context ends at once when the caller goes away, while a
    # generator that was left at a yield keeps its audit until it is collected.
    async def StreamAudit(  # type: ignore[override]
        self, request: audit_pb2.StreamAuditRequest, context: Context
    ) -> None:
        """Audit one prompt, telling how far it is."""
        with self._counted(request.audit, context) as outcome, within("audit"):
            with self._audits.watch(request.audit, context.time_remaining()) as watch:
                async for progress in watch.progress():
                    await send(context, audit_pb2.StreamAuditResponse(progress=progress))
                outcome.report = await watch.report()
            await send(context, audit_pb2.StreamAuditResponse(report=outcome.report))

    async def Screen(self, request: audit_pb2.ScreenRequest, context: Context) -> audit_pb2.ScreenResponse:
        """Screen many prompts."""
        checkpoint = self._audits.checkpoint_of(request)
        structlog.contextvars.bind_contextvars(checkpoint=checkpoint[:64], prompts=len(request.prompts))
        tell(checkpoint=checkpoint[:64], prompts=list(request.prompts))
        response = await self._audits.screen(request, context.time_remaining())
        flagged = [result.flagged for result in response.results]
        tell(flagged=flagged, evaluations=response.cost.evaluations)
        self._metrics.count_screening(checkpoint, flagged.count(True), flagged.count(False))
        return response

    async def InspectImage(
        self, request: audit_pb2.InspectImageRequest, context: Context
    ) -> audit_pb2.InspectImageResponse:
        """Inspect an image."""
        checkpoint, digest = self._audits.checkpoint_of(request), hashlib.sha256(request.image).hexdigest()
        structlog.contextvars.bind_contextvars(checkpoint=checkpoint[:64], prompt_sha256=fingerprint(request.prompt))
        tell(checkpoint=checkpoint[:64], reference=request.reference[:64], prompt=request.prompt, image_sha256=digest)
        response = await self._audits.inspect(request, context.time_remaining())
        verdict = report_pb2.Verdict.Name(response.verdict) if response.verdict else ""
        tell(verdict=verdict, confidence=round(response.confidence, 4), evaluations=response.cost.evaluations)
        self._metrics.count_inspection(checkpoint, verdict)
        return response

    @contextmanager
    def _counted(self, request: audit_pb2.AuditRequest, context: Context) -> Iterator[_Outcome]:
        """Count the audit by what it comes to, and let the log know it."""
        checkpoint, outcome = self._audits.checkpoint_of(request), _Outcome()
        structlog.contextvars.bind_contextvars(checkpoint=checkpoint[:64], prompt_sha256=fingerprint(request.prompt))
        tell(checkpoint=checkpoint[:64], reference=request.reference[:64], prompt=request.prompt)
        try:
            yield outcome
        except asyncio.CancelledError:
            self._metrics.count_audit(checkpoint, code_of_cancellation(context))
            raise
        except Exception as error:
            self._metrics.count_audit(checkpoint, code_of(error))
            raise
        report = outcome.report
        assert report is not None
        verdict, cost = report_pb2.Verdict.Name(report.verdict), report.cost
        structlog.contextvars.bind_contextvars(verdict=verdict, evaluations=cost.evaluations)
        tell(verdict=verdict, confidence=round(report.confidence, 4), evaluations=cost.evaluations)
        stages = {name: cost.stage_seconds[name] for name in STAGES if name in cost.stage_seconds}
        span.get().stages(time.time(), cost.queue_seconds, stages)
        self._metrics.count_audit(checkpoint, grpc.StatusCode.OK, verdict)


class CheckpointHandlers(checkpoint_pb2_grpc.CheckpointServiceServicer):
    """Checkpoints.

    Args:
        checkpoints: of the server.
        settings: of the server.
    """

    def __init__(self, checkpoints: CheckpointRegistry, settings: Settings) -> None:
        self._checkpoints = checkpoints
        self._explicit = settings.model_control == "explicit"

    async def ListCheckpoints(
        self, request: checkpoint_pb2.ListCheckpointsRequest, context: Context
    ) -> checkpoint_pb2.ListCheckpointsResponse:
        """List them, loaded or not."""
        ids, token = page(self._checkpoints.ids, request.page_size, request.page_token)
        return checkpoint_pb2.ListCheckpointsResponse(
            checkpoints=[self._checkpoints.describe(id_) for id_ in ids], next_page_token=token
        )

    async def LoadCheckpoint(
        self, request: checkpoint_pb2.LoadCheckpointRequest, context: Context
    ) -> checkpoint_pb2.LoadCheckpointResponse:
        """Load one."""
        self._check(request.checkpoint)
        await self._checkpoints.load(request.checkpoint)
        return checkpoint_pb2.LoadCheckpointResponse(checkpoint=self._checkpoints.describe(request.checkpoint))

    async def UnloadCheckpoint(
        self, request: checkpoint_pb2.UnloadCheckpointRequest, context: Context
    ) -> checkpoint_pb2.UnloadCheckpointResponse:
        """Unload one."""
        self._check(request.checkpoint)
        await self._checkpoints.unload(request.checkpoint)
        return checkpoint_pb2.UnloadCheckpointResponse(checkpoint=self._checkpoints.describe(request.checkpoint))

    def _check(self, checkpoint: str) -> None:
        """Raises where a request cannot be served, whatever the checkpoint."""
        _require(checkpoint, "checkpoint")
        if not self._explicit:
            raise Closed("this server has the checkpoints that it began with", reason="MODEL_CONTROL_CLOSED")
        tell(checkpoint=checkpoint[:64])


class InfoHandlers(info_pb2_grpc.InfoServiceServicer):
    """What the server is.

    Args:
        settings: of the server.
        checkpoints: of the server.
        references: of the server.
    """

    def __init__(self, settings: Settings, checkpoints: CheckpointRegistry, references: ReferenceRegistry) -> None:
        self._settings = settings
        self._checkpoints = checkpoints
        self._references = references

    async def GetInfo(self, request: info_pb2.GetInfoRequest, context: Context) -> info_pb2.GetInfoResponse:
        """Versions, limits, what is registered."""
        limits = self._settings.limits
        return info_pb2.GetInfoResponse(
            version=basin_version(),
            libraries=library_versions(),
            limits=info_pb2.Limits(
                prompt_characters=limits.prompt_characters,
                seeds=limits.seeds,
                steps=limits.steps,
                image_side=limits.image_side,
                queue_evaluations=self._settings.queue_evaluations,
                concurrent_audits=self._settings.concurrent_audits,
                image_bytes=limits.image_bytes,
                evaluations=limits.evaluations,
                pixels=limits.pixels,
                prompts=limits.prompts,
                stream_images=self._settings.reference_store.stream_images,
                stream_bytes=self._settings.reference_store.stream_bytes,
            ),
            schedulers=list(SCHEDULERS),
            checkpoints=[self._checkpoints.describe(id_) for id_ in self._checkpoints.ids],
            references=[self._references.describe(name) for name in self._references.names],
            embedders=sorted(self._settings.reference_store.embedders) if self._settings.reference_store.folder else [],
        )


def _require(value: str, field: str) -> None:
    if not value:
        raise InvalidInput(f"{field} is empty", reason=f"{field.upper()}_REQUIRED", field=field)
