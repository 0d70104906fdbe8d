"""Errors on the wire: a canonical code and the details of AIP-193.

    InvalidInput                          INVALID_ARGUMENT      BadRequest names the field
    NotFound                              NOT_FOUND
    BrokenCheckpoint, BrokenReference     FAILED_PRECONDITION
    BrokenPrompts                         FAILED_PRECONDITION
    NotLoaded, NotEnded, Closed           FAILED_PRECONDITION
    Unsuited                              FAILED_PRECONDITION
    AlreadyExists                         ALREADY_EXISTS
    Unauthenticated                       UNAUTHENTICATED
    PermissionDenied                      PERMISSION_DENIED
    QueueFull, QuotaExceeded              RESOURCE_EXHAUSTED    RetryInfo
    OutOfMemory, StoreFull                RESOURCE_EXHAUSTED
    TooLate                               DEADLINE_EXCEEDED
    NotReady, ShuttingDown, StoreDown     UNAVAILABLE           RetryInfo
    DatabaseAway                          UNAVAILABLE           RetryInfo
    Stopped                               CANCELLED, or DEADLINE_EXCEEDED where that is its reason
    anything else                         INTERNAL              a generic text; the log has the rest

Every status carries ErrorInfo (reason, domain "basin") and RequestInfo (the id under which the log knows the call).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from audit.errors import (
    AuditError,
    BrokenCheckpoint,
    BrokenPrompts,
    BrokenReference,
    DatabaseAway,
    InvalidInput,
    NotFound,
    Stopped,
)

DOMAIN = "basin"
DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
#: Trailers hold little more than this many bytes, and a message may quote what the caller sent.
MAX_MESSAGE = 500


class NotLoaded(AuditError):
    """A registered checkpoint is not in memory."""


class NotEnded(AuditError):
    """A batch is still worked on."""


class Closed(AuditError):
    """The operator allows no such calls."""


class Unsuited(AuditError):
    """What is named is there, and cannot do what is asked for."""


class AlreadyExists(AuditError):
    """Something else has that name."""


class StoreFull(AuditError):
    """There is as much as the operator allows, until something is deleted."""


class Unauthenticated(AuditError):
    """Nobody knows who calls."""


class PermissionDenied(AuditError):
    """Whoever calls may not do this."""


class OutOfMemory(AuditError):
    """A single row of the model did not fit into memory."""


class TooLate(AuditError):
    """What is asked for takes longer than the caller waits."""


class _Later(AuditError):
    """The same request may succeed after `retry_seconds`."""

    def __init__(self, message: str, *, reason: str, field: str = "", retry_seconds: float) -> None:
        super().__init__(message, reason=reason, field=field)
        self.retry_seconds = retry_seconds


class QueueFull(_Later):
    """As much waits as may."""


class QuotaExceeded(_Later):
    """A client has asked for more than its share."""


class NotReady(_Later):
    """What the request needs is still being loaded."""


class ShuttingDown(_Later):
    """The server takes no new calls."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down", reason="SHUTTING_DOWN", retry_seconds=1.0)


class StoreDown(_Later):
    """The store of batches does not answer."""

    def __init__(self) -> None:
        super().__init__("the store of batches does not answer", reason="STORE_DOWN", retry_seconds=5.0)


CODES: tuple[tuple[type[AuditError], grpc.StatusCode], ...] = (
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (BrokenCheckpoint, grpc.StatusCode.FAILED_PRECONDITION),
    (BrokenReference, grpc.StatusCode.FAILED_PRECONDITION),
    (BrokenPrompts, grpc.StatusCode.FAILED_PRECONDITION),
    (NotLoaded, grpc.StatusCode.FAILED_PRECONDITION),
    (NotEnded, grpc.StatusCode.FAILED_PRECONDITION),
    (Closed, grpc.StatusCode.FAILED_PRECONDITION),
    (Unsuited, grpc.StatusCode.FAILED_PRECONDITION),
    (AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (QueueFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (QuotaExceeded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (OutOfMemory, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StoreFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TooLate, grpc.StatusCode.DEADLINE_EXCEEDED),
    (NotReady, grpc.StatusCode.UNAVAILABLE),
    (ShuttingDown, grpc.StatusCode.UNAVAILABLE),
    (StoreDown, grpc.StatusCode.UNAVAILABLE),
    (DatabaseAway, grpc.StatusCode.UNAVAILABLE),
)


def code_of(error: BaseException) -> grpc.StatusCode:
    """The canonical code of an error."""
    if isinstance(error, Stopped):
        late = error.reason == DEADLINE_EXCEEDED
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    return next((code for kind, code in CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def to_status(error: BaseException, request_id: str) -> status_pb2.Status:
    """An error as google.rpc.Status."""
    code = code_of(error)
    known = isinstance(error, AuditError) and code is not grpc.StatusCode.INTERNAL
    message = _shorten(str(error)) if known else "an internal error; the server's log has it under the request's id"
    reason = error.reason if isinstance(error, AuditError) and known else "INTERNAL"
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)]
    if isinstance(error, InvalidInput) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=message, reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, AuditError) and error.retry_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_seconds * 1000))
        details.append(retry)
    details.append(error_details_pb2.RequestInfo(request_id=request_id))
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


@contextmanager
def within(field: str) -> Iterator[None]:
    """Errors in here are about a message inside `field` of the request: their fields say so."""
    try:
        yield
    except InvalidInput as error:
        if not error.field:
            raise
        raise InvalidInput(str(error), reason=error.reason, field=f"{field}.{error.field}") from error


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"
