"""What can go wrong, as one small tree.

AuditError
├── InvalidInput          the caller asked for something impossible; names the field
├── NotFound              a checkpoint, reference set or file that is not there
├── BrokenCheckpoint      a checkpoint folder that cannot or must not be loaded
├── BrokenReference       a reference set that cannot be loaded
├── DatabaseAway          a reference set's database that does not answer
├── BrokenPrompts         a prompt set that cannot be read
├── Stopped               a deadline passed or the caller cancelled; raised between two denoiser calls
└── WorkerLost            a worker process was killed
"""

from __future__ import annotations

from functools import partial
from typing import Any


class AuditError(Exception):
    """Base of all errors that Basin raises on purpose.

    Attributes:
        reason: UPPER_SNAKE_CASE, stable, meant for machines (AIP-193).
        field: the request field at fault in dotted form, or "" where none is.
        retry_seconds: when the same request may succeed; None where it will not.
    """

    retry_seconds: float | None = None

    def __init__(self, message: str, *, reason: str, field: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by their arguments alone, exceptions would lose reason and field."""
        return partial(type(self), reason=self.reason, field=self.field), self.args


class InvalidInput(AuditError):
    """A value out of its range, of the wrong kind, or impossible with this checkpoint."""


class NotFound(AuditError):
    """Something named by the caller does not exist."""


class BrokenCheckpoint(AuditError):
    """A checkpoint folder is incomplete, damaged, of an unknown family, or holds pickled weights."""


class BrokenReference(AuditError):
    """A reference set's folder is incomplete or damaged."""


class DatabaseAway(AuditError):
    """The database of a reference set does not answer, so that nobody knows what is near."""

    retry_seconds = 5.0


class BrokenPrompts(AuditError):
    """A prompt set's file is gone or damaged."""


class Stopped(AuditError):
    """Work ended before its result: the deadline passed or the caller went away."""


class WorkerLost(AuditError):
    """A worker process was killed, most often for want of memory."""


def require_finite(finite: bool, what: str) -> None:
    """Raises BrokenCheckpoint unless what a checkpoint gave is finite.

    NaN compares as far from everything: it would pass for something new.
    """
    if not finite:
        raise BrokenCheckpoint(
            f"the checkpoint gives {what} that are not finite under these settings; try another precision",
            reason="SAMPLES_NOT_FINITE",
        )
