"""Tables of the store. Changes need a migration beside this file."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Float, ForeignKey, Index, Integer, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: 64 bits everywhere; SQLite counts rows in its own INTEGER only.
Identity = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Of all tables."""


class BatchRow(Base):
    """A batch: what was asked for, and how it stands."""

    __tablename__ = "batches"
    __table_args__ = (Index("batches_age", "created", "id"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    request_id: Mapped[str | None] = mapped_column(String(64), unique=True)
    #: Of everything that was asked for: the same request id with another digest is refused.
    fingerprint: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), index=True)
    #: Why it paused or failed, in words.
    note: Mapped[str] = mapped_column(Text, default="")
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    prompts: Mapped[int]
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    finished: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    #: When its prompts were removed, all of them; see `service.store.retention`.
    prompts_removed: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class ItemRow(Base):
    """A prompt of a batch as it was given, "" once it was removed. Duplicates share their tasks."""

    __tablename__ = "items"
    __table_args__ = (Index("items_key", "batch", "key"),)

    batch: Mapped[str] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True)
    checkpoint: Mapped[str] = mapped_column(Text, primary_key=True)
    position: Mapped[int] = mapped_column(Identity, primary_key=True)
    prompt: Mapped[str] = mapped_column(Text)
    extra: Mapped[dict[str, Any]] = mapped_column(JSON)
    key: Mapped[str] = mapped_column(String(64))


class TaskRow(Base):
    """An audit that a batch needs: the first of a prompt, or the second of one that was flagged."""

    __tablename__ = "tasks"
    __table_args__ = (
        Index("tasks_of_batch", "batch", "key", unique=True),
        Index("tasks_to_do", "batch", "checkpoint", "state", "losses", "id"),
        Index("tasks_that_confirm", "batch", "confirms"),
        # An id is never given again, so that what comes late of a deleted task is no other's.
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Identity, primary_key=True, autoincrement=True)
    batch: Mapped[str] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"))
    checkpoint: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(String(64), index=True)
    prompt: Mapped[str] = mapped_column(Text)
    #: Key of the first audit that this one confirms; "" where it is a first one.
    confirms: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    #: Who works on it, or did last.
    worker: Mapped[str] = mapped_column(String(32), default="")
    #: How often it raised an error.
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    #: How often the process that worked on it was lost.
    losses: Mapped[int] = mapped_column(Integer, default=0)
    error: Mapped[str] = mapped_column(Text, default="")


class WorkerRow(Base):
    """A process that takes tasks. One that was not seen for some time is lost, and its tasks are anyone's."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    seen: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class ResultRow(Base):
    """The answer of an audit, by the digest of everything that decided it."""

    __tablename__ = "results"
    __table_args__ = (
        Index("results_age", "finished"),
        Index("results_with_prompt", "prompt_removed", "finished"),
        Index("results_with_pictures", "pictures_removed", "finished"),
    )

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    verdict: Mapped[str] = mapped_column(String(16))
    memorized: Mapped[float] = mapped_column(Float)
    spurious: Mapped[float] = mapped_column(Float)
    generalized: Mapped[float] = mapped_column(Float)
    evaluations: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Float)
    finished: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    #: `audit.v1.Report`, serialized.
    report: Mapped[bytes] = mapped_column(LargeBinary)
    #: When its report lost the prompt, and when its pictures; see `service.store.retention`.
    prompt_removed: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    pictures_removed: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
