"""Deletion from the store: of a batch, of a prompt wherever it stands, of what is old; and making it final.

It goes in chunks, each a transaction of its own, so that nobody else waits for long and SQLite's log stays small.
What was interrupted is gone on with by asking again.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, exists, func, select, update

from audit.errors import NotFound
from service.store.engine import READS, StoreFailed, show
from service.store.records import CANCELLED, DELETING, DONE, FAILED
from service.store.schema import BatchRow, ItemRow, ResultRow, TaskRow

#: Rows of a chunk, and bytes of their reports: with secure_delete SQLite writes zeros over all of them, to its log.
ROWS = 500
BYTES = 16 * 2**20
#: Tables that hold what users gave or got.
TABLES = "batches, items, tasks, results"
#: Pages that SQLite moves in one go.
_PAGES = 2000
#: Seconds that PostgreSQL waits for tables which others use: everyone else waits behind it.
LOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Deleted:
    """How much was deleted.

    Attributes:
        batches: of them.
        prompts: items, over all checkpoints.
        results: audits.
    """

    batches: int = 0
    prompts: int = 0
    results: int = 0

    def __add__(self, other: Deleted) -> Deleted:
        return Deleted(self.batches + other.batches, self.prompts + other.prompts, self.results + other.results)


def ended_before(time: datetime) -> ColumnElement[bool]:
    """That a batch came to its end before a time in UTC. One that runs or pauses never did."""
    return and_(BatchRow.state.in_((DONE, CANCELLED, FAILED)), BatchRow.finished < time)


def delete_batch(engine: Engine, id_: str) -> Deleted:
    """Delete a batch, with all results that no other batch has.

    Raises:
        NotFound: there is none of this id.
    """
    deleted = _delete_batch(engine, BatchRow.id == id_)
    if deleted is None:
        raise NotFound(f"no batch {id_[:64]!r}", reason="BATCH_NOT_FOUND", field="batch")
    return deleted


def delete_prompt(engine: Engine, prompt: str) -> Deleted:
    """Delete a prompt from every batch, also from those that run: its items, tasks and results.

    Args:
        engine: of the store.
        prompt: exactly as it was given.
    """
    deleted = Deleted()
    own = and_(TaskRow.prompt == prompt, TaskRow.prompt != "")  # the latter were removed, whatever they were
    while True:
        with _alone(engine) as connection:
            keys = [row.key for row in within(connection.execute(_sized(own)))]
            if not keys:
                return deleted
            deleted += _delete_everywhere(connection, _with_confirmations(connection, keys))


def delete_older(engine: Engine, before: datetime) -> Deleted:
    """Delete batches that ended before a time, and results of audits before it that no batch refers to.

    Args:
        engine: of the store.
        before: with its time zone.
    """
    before, deleted = before.astimezone(UTC), Deleted()
    with engine.execution_options(**{READS: True}).connect() as connection:
        old = list(connection.scalars(select(BatchRow.id).where(ended_before(before)).order_by(BatchRow.finished)))
    for id_ in old:
        # Unless it was made to go on meanwhile.
        deleted += _delete_batch(engine, and_(BatchRow.id == id_, ended_before(before))) or Deleted()
    unused = and_(ResultRow.finished < before, ~exists().where(TaskRow.key == ResultRow.key))
    sized = select(ResultRow.key, func.length(ResultRow.report).label("size")).where(unused).limit(ROWS)
    while True:
        with _alone(engine) as connection:
            keys = [row.key for row in within(connection.execute(sized))]
            if not keys:
                return deleted
            connection.execute(delete(ResultRow).where(ResultRow.key.in_(keys)))
            deleted += Deleted(results=len(keys))


def count_prompt(engine: Engine, prompt: str) -> int:
    """How often a prompt stands in the store."""
    query = select(func.count()).select_from(ItemRow).where(ItemRow.prompt == prompt, ItemRow.prompt != "")
    with engine.execution_options(**{READS: True}).connect() as connection:
        return connection.execute(query).scalar_one()


def count_older(engine: Engine, before: datetime) -> int:
    """How many batches ended before a time, given with its time zone."""
    query = select(func.count()).select_from(BatchRow).where(ended_before(before.astimezone(UTC)))
    with engine.execution_options(**{READS: True}).connect() as connection:
        return connection.execute(query).scalar_one()


def within(rows: Iterator[Any]) -> list[Any]:
    """As many of these rows as have `BYTES` together by their column `size`, and at least one."""
    kept: list[Any] = []
    total = 0
    for row in rows:
        total += row.size
        if kept and total > BYTES:
            break
        kept.append(row)
    return kept


def forget(engine: Engine, *, rewrite: bool = False) -> list[str]:
    """Make deletion final: what was deleted can be read no more, and its room is given back.

    SQLite has overwritten it already, so freed pages are cut off the file and its log is emptied. PostgreSQL vacuums
    its tables; that leaves bytes in pages that live rows share, until others are written over them.

    Args:
        engine: of the store.
        rewrite: whether PostgreSQL writes its tables anew, without those bytes. Nobody can use them meanwhile.

    Returns:
        What could not be done, each in words.

    Raises:
        StoreFailed: the disk is full, or the database gone.
    """
    return _forget_sqlite(engine) if engine.dialect.name == "sqlite" else _forget_postgres(engine, rewrite)


def _forget_sqlite(engine: Engine) -> list[str]:
    try:
        with closing(engine.raw_connection()) as pooled:
            connection: sqlite3.Connection = pooled.driver_connection  # type: ignore[assignment]
            free, before = _one(connection, "freelist_count"), None
            while free and free != before:  # a file that cannot be cut keeps them
                connection.executescript(f"PRAGMA incremental_vacuum({_PAGES})")  # only a script is run to its end
                free, before = _one(connection, "freelist_count"), free
            busy = _one(connection, "wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise StoreFailed(f"the store {show(engine.url)}: {error}", reason="STORE_FAILED") from error
    return ["others read all the while, so that SQLite's log still holds it; run this again"] if busy else []


def _one(connection: sqlite3.Connection, pragma: str) -> int:
    value: int = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
    return value


def _forget_postgres(engine: Engine, rewrite: bool) -> list[str]:
    left: list[str] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":  # a table that is not ours
            left.append(str(notice.message_primary))

    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
        driver.add_notice_handler(hear)
        connection.detach()  # settings and handlers go with it
        connection.exec_driver_sql(f"VACUUM {TABLES}")
        if rewrite and not left:
            connection.exec_driver_sql(f"SET lock_timeout = {round(1000 * LOCK_SECONDS)}")
            try:
                connection.exec_driver_sql(f"VACUUM (FULL) {TABLES}")
            except StoreFailed as error:
                if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                    raise
                left.append("the tables are in use, so that their files could not be written anew; run this again")
    return left


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A transaction during which nobody takes tasks in or keeps results: in SQLite any one that writes."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("LOCK TABLE tasks IN EXCLUSIVE MODE")
        yield connection


def _sized(condition: ColumnElement[bool]) -> Any:
    """Keys of some tasks, with the sizes of their reports."""
    size = func.coalesce(func.length(ResultRow.report), 0).label("size")
    return (
        select(TaskRow.key, size).outerjoin(ResultRow, ResultRow.key == TaskRow.key).where(condition).distinct()
        .limit(ROWS)
    )  # fmt: skip


def _delete_batch(engine: Engine, condition: ColumnElement[bool]) -> Deleted | None:
    """Delete the batch that a condition holds of; None where there is none."""
    with _alone(engine) as connection:
        batch = connection.execute(select(BatchRow.id, BatchRow.finished).where(condition)).one_or_none()
        if batch is None:
            return None
        # Nobody begins anything in it any more, and it stays as old as it is, should this be interrupted.
        values = {"state": CANCELLED, "note": DELETING, "finished": batch.finished or datetime.now(UTC)}
        connection.execute(update(BatchRow).where(BatchRow.id == batch.id).values(values))
    deleted = Deleted()
    while True:
        with _alone(engine) as connection:
            keys = [row.key for row in within(connection.execute(_sized(TaskRow.batch == batch.id)))]
            if not keys:
                connection.execute(delete(BatchRow).where(BatchRow.id == batch.id))
                return deleted + Deleted(batches=1)
            deleted += _delete_keys(connection, batch.id, keys)


def _with_confirmations(connection: Connection, keys: Sequence[str]) -> list[str]:
    """Keys with those of the audits that confirm them in any batch, also where the text was removed already."""
    second = TaskRow.__table__.alias("second")
    query = select(second.c.key).join(TaskRow, and_(second.c.batch == TaskRow.batch, second.c.confirms == TaskRow.key))
    found = set(keys)
    while more := set(connection.scalars(query.where(TaskRow.key.in_(found)))) - found:
        found |= more  # what confirms in one batch may be a first audit in another
    return sorted(found)


def _delete_everywhere(connection: Connection, keys: Sequence[str]) -> Deleted:
    deleted = Deleted()
    by_batch: defaultdict[str, list[str]] = defaultdict(list)
    for row in connection.execute(select(TaskRow.batch, TaskRow.key).where(TaskRow.key.in_(keys))):
        by_batch[row.batch].append(row.key)
    for batch, own in by_batch.items():
        items = connection.execute(delete(ItemRow).where(ItemRow.batch == batch, ItemRow.key.in_(own))).rowcount
        connection.execute(update(BatchRow).where(BatchRow.id == batch).values(prompts=BatchRow.prompts - items))
        deleted += Deleted(prompts=items)
    results = connection.execute(delete(ResultRow).where(ResultRow.key.in_(keys))).rowcount
    connection.execute(delete(TaskRow).where(TaskRow.key.in_(keys)))
    return deleted + Deleted(results=results)


def _delete_keys(connection: Connection, batch: str, keys: Sequence[str]) -> Deleted:
    others = exists().where(TaskRow.key == ResultRow.key, TaskRow.batch != batch)
    results = connection.execute(delete(ResultRow).where(ResultRow.key.in_(keys), ~others)).rowcount
    items = connection.execute(delete(ItemRow).where(ItemRow.batch == batch, ItemRow.key.in_(keys))).rowcount
    connection.execute(delete(TaskRow).where(TaskRow.batch == batch, TaskRow.key.in_(keys)))
    return Deleted(prompts=items, results=results)
