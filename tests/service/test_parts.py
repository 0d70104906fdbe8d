"""The parts of the server that need no server."""

from __future__ import annotations

import asyncio
import io
import json

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import AuditError, BrokenCheckpoint, BrokenPrompts, BrokenReference, InvalidInput, NotFound, Stopped
from audit.v1 import audit_pb2, report_pb2
from service import answers
from service.answers import Answers, fingerprint_of
from service.line import Line, Ticket
from service.log import fingerprint, make_logger
from service.status import (
    NotEnded,
    NotLoaded,
    NotReady,
    QueueFull,
    ShuttingDown,
    StoreDown,
    code_of,
    to_status,
    within,
)


async def test_line_is_first_come_first_served() -> None:
    """Places are given in the order of arrival, and positions count those ahead."""
    line = Line(2, 4, "things", "FULL")
    one, two, three, four = (line.enter() for _ in range(4))
    assert [ticket.called.is_set() for ticket in (one, two, three, four)] == [True, True, False, False]
    assert (line.busy, line.waiting, line.ahead(three), line.ahead(four)) == (2, 2, 0, 1)
    with pytest.raises(QueueFull) as full:
        line.enter()
    assert full.value.reason == "FULL"
    line.leave(two)
    assert three.called.is_set()
    assert not four.called.is_set()
    assert (line.busy, line.waiting, line.ahead(four)) == (2, 1, 0)


async def test_line_without_a_waiting_room() -> None:
    """Where no more may be there than have places, nobody waits."""
    line = Line(1, 1, "things", "FULL")
    ticket = line.enter()
    with pytest.raises(QueueFull):
        line.enter()
    line.leave(ticket)
    assert line.enter().called.is_set()


async def test_line_weighs_what_is_to_be_done() -> None:
    """What is there and what comes together weigh no more than may; alone, something heavier gets in."""
    line = Line(8, 100, "rows", "FULL", seconds=lambda weight: weight / 10)
    heavy = line.enter(500)
    with pytest.raises(QueueFull) as full:
        line.enter(1)
    assert full.value.retry_seconds == 40.1
    line.leave(heavy)
    tickets = [line.enter(30) for _ in range(3)]
    assert line.weight == 90
    with pytest.raises(QueueFull, match="90 rows wait or are being worked on, at most 100 may: no room for 30 more"):
        line.enter(30)
    line.leave(tickets[0])
    line.enter(40)


@given(st.lists(st.integers(-1, 5), max_size=60))
def test_line_never_loses_a_place(steps: list[int]) -> None:
    """Whatever comes and goes, places are neither lost nor given twice."""

    async def play() -> None:
        line, tickets = Line(2, 5, "things", "FULL"), list[Ticket]()
        for step in steps:
            if step < 0:
                try:
                    tickets.append(line.enter())
                except QueueFull:
                    assert len(tickets) == 5
            elif tickets:
                line.leave(tickets.pop(step % len(tickets)))
            assert line.busy == min(2, len(tickets))
            assert line.waiting == max(0, len(tickets) - 2)
            assert [ticket.called.is_set() for ticket in tickets].count(True) == line.busy

    asyncio.run(play())


def test_answers_are_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are bounded in number and in bytes; jobs at work are never forgotten."""
    known: Answers[object] = Answers()
    report = report_pb2.Report(prompt="x" * 1000)
    monkeypatch.setattr(answers, "MAX_BYTES", 3 * report.ByteSize())
    working = object()
    known.begin("working", b"w", working)
    for name in "abcde":
        job = object()
        known.begin(name, b"f", job)
        known.finish(name, job, report)
    assert [known.find(name, b"f") is not None for name in "abcde"] == [False, False, True, True, True]
    assert known.find("working", b"w") is working
    monkeypatch.setattr(answers, "MAX_ANSWERS", 2)
    known.finish("working", working, report)
    assert [known.find(name, b"f") is not None for name in "cde"] == [False, False, True]
    assert known.find("working", b"w") is report


def test_answers_of_replaced_jobs_do_not_count() -> None:
    """What a stopped job leaves behind does not touch the newer one of the same id."""
    known: Answers[object] = Answers()
    old, new = object(), object()
    known.begin("id", b"f", old)
    known.begin("id", b"f", new)
    known.finish("id", old, None)
    assert known.find("id", b"f") is new
    known.finish("id", new, None)
    assert known.find("id", b"f") is None


def test_fingerprints_tell_requests_apart() -> None:
    """The id is no part of what is asked; everything else is."""
    request = audit_pb2.AuditRequest(prompt="x", request_id="1")
    assert fingerprint_of(request) == fingerprint_of(audit_pb2.AuditRequest(prompt="x", request_id="2"))
    assert fingerprint_of(request) != fingerprint_of(audit_pb2.AuditRequest(prompt="x", include_images=True))
    assert request.request_id == "1"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("m", reason="R", field="f"), grpc.StatusCode.INVALID_ARGUMENT),
        (NotFound("m", reason="R"), grpc.StatusCode.NOT_FOUND),
        (BrokenCheckpoint("m", reason="R"), grpc.StatusCode.FAILED_PRECONDITION),
        (BrokenReference("m", reason="R"), grpc.StatusCode.FAILED_PRECONDITION),
        (BrokenPrompts("m", reason="R"), grpc.StatusCode.FAILED_PRECONDITION),
        (NotLoaded("m", reason="R"), grpc.StatusCode.FAILED_PRECONDITION),
        (NotEnded("m", reason="R"), grpc.StatusCode.FAILED_PRECONDITION),
        (StoreDown(), grpc.StatusCode.UNAVAILABLE),
        (QueueFull("m", reason="R", retry_seconds=1), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (NotReady("m", reason="R", retry_seconds=1), grpc.StatusCode.UNAVAILABLE),
        (ShuttingDown(), grpc.StatusCode.UNAVAILABLE),
        (Stopped("m", reason="CANCELLED"), grpc.StatusCode.CANCELLED),
        (Stopped("m", reason="DEADLINE_EXCEEDED"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (AuditError("m", reason="R"), grpc.StatusCode.INTERNAL),
        (ZeroDivisionError("m"), grpc.StatusCode.INTERNAL),
    ],
)
def test_codes(error: Exception, code: grpc.StatusCode) -> None:
    """Every kind of error has its canonical code, and every status its reason and domain."""
    status = to_status(error, "id")
    assert code_of(error) is code
    assert status.code == code.value[0]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "basin"
    assert info.reason == ("INTERNAL" if code is grpc.StatusCode.INTERNAL else error.reason)  # type: ignore[attr-defined]


def test_within_leaves_other_errors_alone() -> None:
    """Only fields of the request move into the message around it."""
    with pytest.raises(InvalidInput) as moved, within("audit"):
        raise InvalidInput("m", reason="R", field="budget.seeds")
    assert moved.value.field == "audit.budget.seeds"
    with pytest.raises(InvalidInput) as plain, within("audit"):
        raise InvalidInput("m", reason="R")
    assert plain.value.field == ""
    with pytest.raises(NotFound), within("audit"):
        raise NotFound("m", reason="R", field="checkpoint")


def test_log_lines() -> None:
    """JSON has one object a line, tracebacks without local variables; people get text; levels are kept."""
    file = io.StringIO()
    logger = make_logger("info", "auto", file)
    logger.debug("silent")
    prompt = "a secret prompt"
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        logger.exception("failed", prompt_sha256=fingerprint(prompt))
    (line,) = file.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["level"], len(entry["prompt_sha256"])) == ("failed", "error", 12)
    assert "boom" in entry["exception"]
    assert prompt not in line
    file = io.StringIO()
    make_logger("info", "console", file).info("listening", address="here")
    assert "listening" in file.getvalue()
    assert "address=here" in file.getvalue()
