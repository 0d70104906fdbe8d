"""A server that does what a prompt says, mostly fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from audit.v1 import audit_pb2, audit_pb2_grpc, checkpoint_pb2, checkpoint_pb2_grpc, report_pb2


def status(code: grpc.StatusCode, message: str, *details: Message) -> grpc.Status:
    """A rich status, as AIP-193 has it."""
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    return rpc_status.to_status(status_pb2.Status(code=code.value[0], message=message, details=packed))


class Audits(audit_pb2_grpc.AuditServiceServicer):
    """Does what the prompt says."""

    def __init__(self) -> None:
        self.calls = 0
        self.started = threading.Event()
        self.cancelled = futures.Future[bool]()

    def Audit(self, request: audit_pb2.AuditRequest, context: grpc.ServicerContext) -> audit_pb2.AuditResponse:  # noqa: N802
        """Fail as asked, or answer."""
        self.calls += 1
        if request.prompt == "bad":
            violation = error_details_pb2.BadRequest.FieldViolation(field="sampler.steps", description="no")
            context.abort_with_status(
                status(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "steps must be in [1, 1000], not 0",
                    error_details_pb2.ErrorInfo(reason="STEPS_OUT_OF_RANGE", domain="basin"),
                    error_details_pb2.BadRequest(field_violations=[violation]),
                )
            )
        if request.prompt == "full" or (request.prompt == "busy" and self.calls < 3):
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(10)
            context.abort_with_status(
                status(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    "64 audits wait already",
                    error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="basin"),
                    retry,
                )
            )
        return audit_pb2.AuditResponse(report=report_pb2.Report(prompt=request.prompt))

    def StreamAudit(  # noqa: N802
        self, request: audit_pb2.StreamAuditRequest, context: grpc.ServicerContext
    ) -> Iterator[audit_pb2.StreamAuditResponse]:
        """Tell progress twice; then answer, or wait to be cancelled."""
        self.started.set()
        context.add_callback(lambda: self.cancelled.set_result(not context.is_active()))
        for done in (1, 2):
            yield audit_pb2.StreamAuditResponse(progress=audit_pb2.Progress(stage="sampling", evaluations=done))
        if request.audit.prompt != "endless":
            yield audit_pb2.StreamAuditResponse(report=report_pb2.Report(prompt=request.audit.prompt))
        else:
            self.cancelled.result(30)


class Checkpoints(checkpoint_pb2_grpc.CheckpointServiceServicer):
    """Lists five checkpoints, two a page."""

    def ListCheckpoints(  # noqa: N802
        self, request: checkpoint_pb2.ListCheckpointsRequest, context: grpc.ServicerContext
    ) -> checkpoint_pb2.ListCheckpointsResponse:
        """One page."""
        start = int(request.page_token or 0)
        page = [checkpoint_pb2.CheckpointInfo(id=str(number)) for number in range(start, min(5, start + 2))]
        token = str(start + 2) if start + 2 < 5 else ""
        return checkpoint_pb2.ListCheckpointsResponse(checkpoints=page, next_page_token=token)


@contextmanager
def serve(audits: Audits) -> Iterator[str]:
    """HOST:PORT of the stub on the loopback device."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    audit_pb2_grpc.add_AuditServiceServicer_to_server(audits, server)
    checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server(Checkpoints(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)
