"""How much the store holds, and how old it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, func, select

from service.store.deletion import TABLES
from service.store.engine import READS, files_of, show, sqlite_file
from service.store.records import BATCH_STATES, as_utc
from service.store.schema import BatchRow, ResultRow


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds.

    Attributes:
        url: without a password.
        version: of its tables.
        size: bytes on disk, with indexes and log.
        batches: by state, those that there are.
        prompts: items of all batches.
        removed: batches whose prompts were removed.
        results: audits.
        oldest_batch: when the oldest one was taken in; None where there is none.
        oldest_result: when the oldest audit ended; None where there is none.
    """

    url: str
    version: str
    size: int
    batches: dict[str, int]
    prompts: int
    removed: int
    results: int
    oldest_batch: datetime | None
    oldest_result: datetime | None


def store_info(engine: Engine) -> StoreInfo:
    """Look a store over; large ones take some seconds."""
    with engine.execution_options(**{READS: True}).connect() as connection:
        by_state = connection.execute(select(BatchRow.state, func.count()).group_by(BatchRow.state))
        states = {row[0]: row[1] for row in by_state}
        prompts = func.coalesce(func.sum(BatchRow.prompts), 0)
        of_batches = select(prompts, func.count(BatchRow.prompts_removed), func.min(BatchRow.created))
        count, removed, oldest_batch = connection.execute(of_batches).one()
        results, oldest_result = connection.execute(select(func.count(), func.min(ResultRow.finished))).one()
        return StoreInfo(
            url=show(engine.url.set(drivername=engine.dialect.name)),
            version=MigrationContext.configure(connection).get_current_revision() or "",
            size=_size(connection),
            batches={state: states[state] for state in BATCH_STATES if state in states},
            prompts=count,
            removed=removed,
            results=results,
            oldest_batch=oldest_batch and as_utc(oldest_batch),
            oldest_result=oldest_result and as_utc(oldest_result),
        )


def _size(connection: Connection) -> int:
    if file := sqlite_file(connection.engine.url):
        return sum(part.stat().st_size for part in files_of(file) if part.exists())
    sizes = " + ".join(f"pg_total_relation_size('{name}')" for name in TABLES.split(", "))
    size: int = connection.exec_driver_sql(f"SELECT {sizes}").scalar_one()
    return size
