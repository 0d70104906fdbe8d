"""Request ids (AIP-155): a repeated request gets the answer that the first one got, or joins it while it is at work."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from audit.errors import InvalidInput
from audit.v1 import audit_pb2, report_pb2

MAX_ID = 128
#: Answers that are remembered, and their bytes in all; the oldest are forgotten first.
MAX_ANSWERS = 1024
MAX_BYTES = 64 * 2**20

_Job = TypeVar("_Job")


@dataclass
class _Entry(Generic[_Job]):
    fingerprint: bytes
    job: _Job | None
    report: report_pb2.Report | None = None
    size: int = 0


class Answers(Generic[_Job]):
    """What became of requests that bear an id. Those without one are not remembered."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, _Entry[_Job]] = OrderedDict()
        self._bytes = 0

    def find(self, id_: str, fingerprint: bytes) -> _Job | report_pb2.Report | None:
        """The answer to a request, the job at work on it, or None.

        Raises:
            InvalidInput: the id is too long, or belongs to another request.
        """
        if len(id_) > MAX_ID:
            raise InvalidInput(
                f"a request id has at most {MAX_ID} characters", reason="REQUEST_ID_TOO_LONG", field="request_id"
            )
        entry = self._entries.get(id_)
        if entry is None:
            return None
        if entry.fingerprint != fingerprint:
            raise InvalidInput(
                "the request id belongs to an earlier request that asked for something else",
                reason="REQUEST_ID_REUSED",
                field="request_id",
            )
        return entry.job if entry.report is None else entry.report

    def begin(self, id_: str, fingerprint: bytes, job: _Job) -> None:
        """A job works on a request."""
        if id_:
            self._entries[id_] = _Entry(fingerprint, job)

    def finish(self, id_: str, job: _Job, report: report_pb2.Report | None) -> None:
        """A job is done; None when it failed, so that the next request tries again."""
        entry = self._entries.get(id_)
        if entry is None or entry.job is not job:
            return  # without an id, or already replaced by a newer job
        if report is None:
            del self._entries[id_]
            return
        entry.job, entry.report, entry.size = None, report, report.ByteSize()
        self._entries.move_to_end(id_)
        self._bytes += entry.size
        for old in [key for key, known in self._entries.items() if known.report is not None]:
            if len(self._entries) <= MAX_ANSWERS and self._bytes <= MAX_BYTES:
                return
            self._bytes -= self._entries.pop(old).size


def fingerprint_of(request: audit_pb2.AuditRequest) -> bytes:
    """What makes two requests the same, whatever their ids."""
    copy = audit_pb2.AuditRequest()
    copy.CopyFrom(request)
    copy.ClearField("request_id")
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).digest()
