"""The client against a server that fails in every way it can."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from audit.errors import AuditError
from audit.v1 import audit_pb2, audit_pb2_grpc, checkpoint_pb2, checkpoint_pb2_grpc, report_pb2
from service.client import BasinClient, ServiceError


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


@pytest.fixture
def audits() -> Audits:
    """The service behind `client`."""
    return Audits()


@pytest.fixture
def client(audits: Audits) -> Iterator[BasinClient]:
    """A client of a server on the loopback device."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    audit_pb2_grpc.add_AuditServiceServicer_to_server(audits, server)
    checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server(Checkpoints(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with BasinClient(f"127.0.0.1:{port}", timeout=60) as client:
        yield client
    server.stop(None)


def test_answers_arrive_with_and_without_progress(client: BasinClient) -> None:
    """Both ways to the same report."""
    seen: list[audit_pb2.Progress] = []
    request = audit_pb2.AuditRequest(prompt="good")
    assert client.audit(request).prompt == "good"
    assert client.audit(request, seen.append).prompt == "good"
    assert [progress.evaluations for progress in seen] == [1, 2]


def test_an_error_carries_reason_and_field(client: BasinClient) -> None:
    """The details of a rich status become attributes."""
    with pytest.raises(ServiceError, match=r"steps must be in \[1, 1000\], not 0") as caught:
        client.audit(audit_pb2.AuditRequest(prompt="bad"))
    assert isinstance(caught.value, AuditError)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.reason, caught.value.field) == ("STEPS_OUT_OF_RANGE", "sampler.steps")


def test_a_full_queue_is_tried_again(client: BasinClient, audits: Audits) -> None:
    """A server that asks to come back later is asked again."""
    assert client.audit(audit_pb2.AuditRequest(prompt="busy")).prompt == "busy"
    assert audits.calls == 3


def test_patience_ends(client: BasinClient) -> None:
    """A queue that stays full is an error."""
    client.patience = 0.7
    with pytest.raises(ServiceError, match="wait already") as caught:
        client.audit(audit_pb2.AuditRequest(prompt="full"))
    assert caught.value.retry_seconds == pytest.approx(0.01)


def test_leaving_a_stream_cancels_its_audit(client: BasinClient, audits: Audits) -> None:
    """An abandoned iterator does not leave work behind."""
    stream = client.stream(audit_pb2.AuditRequest(prompt="endless"))
    next(stream)
    stream.close()
    assert audits.cancelled.result(30)


def test_lists_are_read_to_their_end(client: BasinClient) -> None:
    """Pages are put together."""
    assert [found.id for found in client.checkpoints()] == list("01234")


def test_a_missing_call_is_said_in_words(client: BasinClient) -> None:
    """A server without a service is told from one that is not there."""
    with pytest.raises(ServiceError, match="does not offer"):
        client.info()


def test_nobody_there() -> None:
    """A target where nothing listens."""
    with BasinClient("127.0.0.1:1") as client, pytest.raises(ServiceError, match="no server answers at 127") as caught:
        client.info()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
