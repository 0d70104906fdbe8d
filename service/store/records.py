"""What goes into the store and comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from audit.batch.discovery import Answer

#: States of a batch; tasks are pending, running, done or failed.
RUNNING, PAUSED, DONE, CANCELLED, FAILED = BATCH_STATES = ("running", "paused", "done", "cancelled", "failed")
PENDING = "pending"
#: Of tasks.
TASK_STATES = (PENDING, RUNNING, DONE, FAILED)
#: Note of a batch whose deletion has begun, and is to be ended.
DELETING = "being deleted"


def as_utc(time: datetime) -> datetime:
    """A time out of the store. SQLite forgets the time zone; all times are UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


@dataclass(frozen=True)
class Entry:
    """A prompt as it was given for a checkpoint.

    Attributes:
        checkpoint: by the name that the batch uses.
        position: in the list of prompts, from 0.
        prompt: never altered; "" once it was removed.
        key: of its first audit.
        extra: what else stood beside it.
    """

    checkpoint: str
    position: int
    prompt: str
    key: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """An item with what is known of it.

    Attributes:
        entry: as it was given.
        first: its audit; None before, or where it failed.
        second: the audit with fresh seeds; None where there is none.
        error: why an audit of it failed; "" where none did.
        confirmation: key of the audit with fresh seeds; "" where none is needed so far.
        open: whether an audit of it is still to be done.
    """

    entry: Entry
    first: Answer | None
    second: Answer | None
    error: str
    confirmation: str
    open: bool


@dataclass(frozen=True)
class Batch:
    """How a batch stands.

    Attributes:
        id: in the store.
        state: one of `BATCH_STATES`.
        note: why it paused or failed, in words.
        settings: that it is run with.
        prompts: items, over all checkpoints.
        created: when it was taken in.
        finished: when it came to its end; None before.
    """

    id: str
    state: str
    note: str
    settings: dict[str, Any]
    prompts: int
    created: datetime
    finished: datetime | None


@dataclass(frozen=True)
class Counts:
    """Tasks of a batch: to do or being worked on, done, and failed; and verdicts of its first audits."""

    open: int
    done: int
    failed: int
    verdicts: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All that are known so far; flagged prompts add more."""
        return self.open + self.done + self.failed
