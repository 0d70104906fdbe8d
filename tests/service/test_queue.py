"""The bounded queue, deadlines and request ids."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from audit.v1 import audit_pb2
from tests.service.helpers import (
    ENDLESS,
    SMALL,
    Client,
    endless,
    eventually,
    failure,
    failure_of,
    small,
    until_sampling,
)


@pytest.fixture(scope="module")
def narrow(launch: Callable[..., Client]) -> Client:
    """A server that works on one audit at a time, and has room for two long ones."""
    return launch(concurrent_audits=1, queue_evaluations=2 * ENDLESS)


def test_full_queue_refuses_at_once(narrow: Client, prompts: list[str]) -> None:
    """One more than may wait is RESOURCE_EXHAUSTED with a time to retry, unary or streamed; health does not notice."""
    working = narrow.stream(endless(prompts[0]))
    until_sampling(working)
    waiting = narrow.stream(endless(prompts[1]))
    first = next(waiting).progress
    assert (first.stage, first.queue_position, first.evaluations) == ("queued", 0, 0)
    assert first.planned_evaluations == ENDLESS
    assert narrow.metric("basin_queue_depth") == narrow.metric("basin_audits_in_flight") == 1
    assert narrow.metric("basin_queue_evaluations") == narrow.metric("basin_queue_evaluations_limit") == 2 * ENDLESS
    for refused in (
        failure(lambda: narrow.audits.Audit(small(prompts[2]))),
        failure(lambda: list(narrow.stream(small(prompts[2])))),
    ):
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.reason == "QUEUE_FULL"
        assert refused.retry_seconds is not None
        assert refused.retry_seconds > 0
    assert narrow.health() == narrow.health("liveness") == 1
    assert narrow.metric("basin_audits_total", code="RESOURCE_EXHAUSTED") == 2
    assert narrow.metric("basin_errors_total", reason="QUEUE_FULL") == 2

    waiting.cancel()  # it gives its place away, and never begins
    eventually(lambda: narrow.metric("basin_queue_depth") == 0)
    waits_before = narrow.metric("basin_queue_wait_seconds_count")
    with ThreadPoolExecutor(1) as callers:
        patient = callers.submit(lambda: narrow.audits.Audit(small(prompts[2])).report)
        eventually(lambda: narrow.metric("basin_queue_depth") == 1)
        working.cancel()
        assert patient.result().cost.queue_seconds > 0
    assert narrow.metric("basin_queue_wait_seconds_count") == waits_before + 1


def test_a_deadline_that_the_queue_would_pass_is_refused_at_once(narrow: Client, prompts: list[str]) -> None:
    """The caller learns when there would be time, and no place in the line is taken."""
    working = narrow.stream(endless(prompts[0]))
    until_sampling(working)
    begun = narrow.metric("basin_queue_wait_seconds_count")
    late = failure(lambda: narrow.audit(small(prompts[1]), timeout=0.5))
    assert (late.code, late.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_BEHIND_QUEUE")
    assert late.retry_seconds is not None
    assert late.retry_seconds > 0
    assert narrow.metric("basin_queue_depth") == 0
    working.cancel()
    eventually(lambda: narrow.metric("basin_audits_in_flight") == 0)
    assert narrow.metric("basin_queue_wait_seconds_count") == begun


def test_a_deadline_shorter_than_the_work_is_refused_at_once(narrow: Client, prompts: list[str]) -> None:
    """Also by an idle server, once it knows its pace; waiting would help nobody, so there is no time to retry."""
    narrow.audit(small(prompts[0]))
    begun = narrow.metric("basin_queue_wait_seconds_count")
    late = failure(lambda: narrow.audit(endless(prompts[1]), timeout=1.0))
    assert (late.code, late.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")
    assert late.retry_seconds is None
    assert narrow.metric("basin_queue_wait_seconds_count") == begun


def test_deadline_in_the_queue(launch: Callable[..., Client], prompts: list[str]) -> None:
    """An audit that joins one before it shares its place; where its deadline passes it leaves, and never begins."""
    own = launch(concurrent_audits=1)
    working = own.stream(endless(prompts[0]))
    until_sampling(working)
    begun = own.metric("basin_queue_wait_seconds_count")
    waiting = own.stream(small(prompts[1], request_id="shared"))
    next(waiting)
    late = failure(lambda: own.audit(small(prompts[1], request_id="shared"), timeout=0.3))
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert own.metric("basin_queue_depth") == 1
    waiting.cancel()
    eventually(lambda: own.metric("basin_queue_depth") == 0)
    working.cancel()
    eventually(lambda: own.metric("basin_audits_in_flight") == 0)
    assert own.metric("basin_queue_wait_seconds_count") == begun


def test_request_id_repeats_the_answer(client: Client, prompts: list[str]) -> None:
    """The same id and request get the very same report, without new work, unary or streamed."""
    request = small(prompts[0], request_id="again")
    first = client.audit(request)
    made = client.metric("basin_denoiser_evaluations_total")
    assert client.audit(request) == first
    (event,) = client.stream(request)
    assert event.report == first
    assert client.metric("basin_denoiser_evaluations_total") == made


def test_request_id_of_another_request(client: Client, prompts: list[str]) -> None:
    """An id that belongs to something else is refused."""
    client.audit(small(prompts[0], request_id="taken"))
    refused = failure(lambda: client.audit(small(prompts[1], request_id="taken")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert refused.fields == ("request_id",)


def test_concurrent_duplicates_join(client: Client, prompts: list[str]) -> None:
    """A duplicate joins the audit at work, which goes on until the last of its callers leaves."""
    request = endless(prompts[0], request_id="joined")
    one, other = client.stream(request), client.stream(request)
    until_sampling(one)
    until_sampling(other)
    assert client.metric("basin_audits_in_flight") == 1
    one.cancel()
    seen = until_sampling(other).evaluations
    eventually(lambda: until_sampling(other).evaluations > seen)
    other.cancel()
    eventually(lambda: client.metric("basin_audits_in_flight") == 0)


def test_duplicate_outlives_the_deadline_of_the_first(client: Client, prompts: list[str]) -> None:
    """The deadline of one caller does not end the audit of another."""
    request = endless(prompts[0], request_id="hasty")
    other = client.stream(request)
    until_sampling(other)
    hasty = failure(lambda: client.audit(request, timeout=0.3))
    assert hasty.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert until_sampling(other)
    other.cancel()
    eventually(lambda: client.metric("basin_audits_in_flight") == 0)


def test_request_id_of_a_stopped_audit_starts_anew(client: Client, prompts: list[str]) -> None:
    """An audit that was cancelled is not an answer: the next request of its id works."""
    request = small(prompts[0], request_id="stopped")
    budget, sampler = endless(prompts[0]).budget, endless(prompts[0]).sampler
    long = audit_pb2.AuditRequest(prompt=prompts[0], checkpoint="demo", request_id="stopped")
    long.budget.CopyFrom(budget)
    long.sampler.CopyFrom(sampler)
    call = client.stream(long)
    until_sampling(call)
    call.cancel()
    with pytest.raises(grpc.RpcError) as cancelled:
        list(call)
    assert failure_of(cancelled.value).code is grpc.StatusCode.CANCELLED
    eventually(lambda: client.metric("basin_audits_in_flight") == 0)
    assert client.audit(request).cost.evaluations == SMALL
