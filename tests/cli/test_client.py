"""The client against a server that fails in every way it can."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from audit.errors import AuditError
from audit.v1 import audit_pb2
from service.client import BasinClient, ServiceError
from tests.cli.stub import Audits, serve


@pytest.fixture
def audits() -> Audits:
    """The service behind `client`."""
    return Audits()


@pytest.fixture
def client(audits: Audits) -> Iterator[BasinClient]:
    """A client of the stub."""
    with serve(audits) as address, BasinClient(address, timeout=60) as client:
        yield client


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
