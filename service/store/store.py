"""Batches with their items and results.

Every method but `delete` is one transaction: when it returns, what it did is kept, and when it raises, nothing of it.
Pages are cut by key, never by offset, so that the last one costs as much as the first.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Select, and_, exists, func, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from audit.batch.discovery import Answer
from audit.errors import InvalidInput, NotFound
from audit.v1 import report_pb2
from audit.verdict.rule import CLASSES, PhaseClass
from service.chunks import chunks
from service.store.deletion import delete_batch, forget
from service.store.engine import READS
from service.store.queue import insert_new, reuse, task_row
from service.store.records import (
    BATCH_STATES,
    CANCELLED,
    DELETING,
    DONE,
    FAILED,
    PENDING,
    RUNNING,
    Batch,
    Counts,
    Entry,
    Row,
    as_utc,
)
from service.store.retention import give_back
from service.store.schema import BatchRow, ItemRow, ResultRow, TaskRow

#: Rows of one insert, and of a page.
CHUNK = 500
#: What counts as lately.
RECENT = timedelta(minutes=10)
#: That servers work on a batch: that of a run folder is left to the process that owns the folder.
_OF_SERVERS = ~func.coalesce(BatchRow.settings["in_run_folder"].as_boolean(), False)


class Store:
    """Batches, their items, and results.

    Args:
        engine: from `service.store.engine.connect`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._readers = engine.execution_options(**{READS: True})

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def create(self, entries: Iterable[Entry], settings: dict[str, Any], *, request_id: str = "") -> Batch:
        """Take a batch in, whole or not at all.

        Args:
            entries: of every checkpoint.
            settings: what the batch is run with.
            request_id: makes a repeated request return the batch that is there; "" makes a new one.

        Raises:
            InvalidInput: the request id was used for something else.
        """
        id_, digest, count = uuid.uuid4().hex, hashlib.sha256(json.dumps(settings, sort_keys=True).encode()), 0
        with self._engine.begin() as connection:
            row = {
                "id": id_, "request_id": request_id or None, "fingerprint": "", "state": RUNNING, "note": "",
                "settings": settings, "prompts": 0, "created": datetime.now(UTC),
            }  # fmt: skip
            try:
                with connection.begin_nested():
                    connection.execute(insert(BatchRow).values(row))
            except IntegrityError:
                known = connection.execute(select(BatchRow).where(BatchRow.request_id == request_id)).one()
                if known.note == DELETING:
                    raise InvalidInput(
                        "the batch is being deleted: end that first", reason="BATCH_BEING_DELETED", field="request_id"
                    ) from None
                removed = connection.scalar(
                    select(ItemRow.batch).where(ItemRow.batch == known.id, ItemRow.prompt == "").limit(1)
                )
                for chunk in chunks(entries, CHUNK):
                    for entry in chunk:
                        _update(digest, entry)
                    if removed:
                        give_back(connection, known.id, chunk)
                if known.fingerprint != digest.hexdigest():
                    raise InvalidInput(
                        "the request id was used for another batch", reason="REQUEST_ID_REUSED", field="request_id"
                    ) from None
                return _batch(known)
            for chunk in chunks(entries, CHUNK):
                count += len(chunk)
                items, tasks = [], {}
                for entry in chunk:
                    _update(digest, entry)
                    items.append({"batch": id_, **vars(entry)})
                    tasks[entry.key] = task_row(id_, entry.checkpoint, entry.prompt, entry.key)
                connection.execute(insert(ItemRow), items)
                insert_new(connection, TaskRow, list(tasks.values()), ["batch", "key"])
            connection.execute(
                update(BatchRow).where(BatchRow.id == id_).values(prompts=count, fingerprint=digest.hexdigest())
            )
            reuse(connection, id_)
        return self.batch(id_)

    def batch(self, id_: str) -> Batch:
        """One batch.

        Raises:
            NotFound: there is none of this id.
        """
        with self._readers.connect() as connection:
            row = connection.execute(select(BatchRow).where(BatchRow.id == id_)).one_or_none()
        if row is None:
            raise NotFound(f"no batch {id_[:64]!r}", reason="BATCH_NOT_FOUND", field="batch")
        return _batch(row)

    def batch_of(self, request_id: str) -> Batch | None:
        """The batch of a request id; None where there is none."""
        with self._readers.connect() as connection:
            row = connection.execute(select(BatchRow).where(BatchRow.request_id == request_id)).one_or_none()
        return None if row is None else _batch(row)

    def batches(
        self,
        *,
        states: Collection[str] = (),
        checkpoint: str = "",
        after: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list[Batch]:
        """Batches, the newest first.

        Args:
            states: of these only; none for all.
            checkpoint: of those that audit it only; "" for all.
            after: `created` and `id` of the last one of the page before.
            limit: most of them.
        """
        query = select(BatchRow).order_by(BatchRow.created.desc(), BatchRow.id.desc()).limit(limit)
        if states:
            query = query.where(BatchRow.state.in_(states))
        if checkpoint:
            query = query.where(exists().where(ItemRow.batch == BatchRow.id, ItemRow.checkpoint == checkpoint))
        if after is not None:
            query = query.where(tuple_(BatchRow.created, BatchRow.id) < tuple_(*after))
        with self._readers.connect() as connection:
            return [_batch(row) for row in connection.execute(query)]

    def running(self) -> list[Batch]:
        """Batches for servers to work on, the oldest first."""
        query = select(BatchRow).where(BatchRow.state == RUNNING, _OF_SERVERS).order_by(BatchRow.created, BatchRow.id)
        with self._readers.connect() as connection:
            return [_batch(row) for row in connection.execute(query)]

    def states(self) -> dict[str, int]:
        """How many batches are in each state."""
        query = select(BatchRow.state, func.count()).group_by(BatchRow.state)
        with self._readers.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def last_done(self) -> datetime | None:
        """When the last batch was done, of those that are kept."""
        query = select(func.max(BatchRow.finished)).where(BatchRow.state == DONE)
        with self._readers.connect() as connection:
            found = connection.execute(query).scalar_one()
        return None if found is None else as_utc(found)

    def tasks(self) -> dict[tuple[str, str, str], int]:
        """How many tasks there are of the batches that servers work on, by batch, checkpoint and state."""
        of = (TaskRow.batch, TaskRow.checkpoint, TaskRow.state)
        query = (
            select(*of, func.count())
            .join(BatchRow, BatchRow.id == TaskRow.batch)
            .where(BatchRow.state == RUNNING, _OF_SERVERS)
            .group_by(*of)
        )
        with self._readers.connect() as connection:
            return {(row[0], row[1], row[2]): row[3] for row in connection.execute(query)}

    def set_state(self, id_: str, state: str, note: str = "", *, among: Sequence[str] = BATCH_STATES) -> bool:
        """Let a batch run, pause or end.

        Args:
            id_: of the batch.
            state: that it gets.
            note: why, in words.
            among: states of which it must be in one.

        Returns:
            Whether it was.
        """
        ended = datetime.now(UTC) if state in (DONE, CANCELLED, FAILED) else None
        query = update(BatchRow).where(BatchRow.id == id_, BatchRow.state.in_(among))
        with self._engine.begin() as connection:
            return bool(connection.execute(query.values(state=state, note=note, finished=ended)).rowcount)

    def counts(self, id_: str) -> Counts:
        """How the tasks of a batch stand."""
        tasks = select(TaskRow.state, func.count()).where(TaskRow.batch == id_).group_by(TaskRow.state)
        verdicts = (
            select(ResultRow.verdict, func.count())
            .join(TaskRow, TaskRow.key == ResultRow.key)
            .where(TaskRow.batch == id_, TaskRow.confirms == "", TaskRow.state == DONE)
            .group_by(ResultRow.verdict)
        )
        with self._readers.connect() as connection:
            found = {row[0]: row[1] for row in connection.execute(tasks)}
            said = {row[0]: row[1] for row in connection.execute(verdicts)}
        return Counts(found.get(PENDING, 0) + found.get(RUNNING, 0), found.get(DONE, 0), found.get(FAILED, 0), said)

    def rate(self, batch: Batch) -> float:
        """Audits per second of a batch, over the last `CHUNK` or fewer that were done within `RECENT`."""
        now = datetime.now(UTC)
        begin = max(batch.created, now - RECENT)
        recent = (
            select(ResultRow.finished)
            .join(TaskRow, TaskRow.key == ResultRow.key)
            .where(TaskRow.batch == batch.id, TaskRow.state == DONE, ResultRow.finished > begin)
            .order_by(ResultRow.finished.desc())
            .limit(CHUNK)
        )
        with self._readers.connect() as connection:
            times = [as_utc(time) for time in connection.scalars(recent)]
        if len(times) == CHUNK:
            begin = times[-1]
        return len(times) / max(1.0, (now - begin).total_seconds())

    def rows(self, id_: str, *, after: tuple[str, int] = ("", -1), limit: int = CHUNK) -> list[Row]:
        """Items with what is known of them, by checkpoint and position.

        Args:
            id_: of the batch.
            after: checkpoint and position of the last one of the page before.
            limit: most of them.
        """
        first, second, one, other = (
            ResultRow.__table__.alias("first"), ResultRow.__table__.alias("second"),
            TaskRow.__table__.alias("one"), TaskRow.__table__.alias("other"),
        )  # fmt: skip
        query: Select[Any] = (
            select(
                ItemRow, one.c.error, one.c.state,
                other.c.key.label("confirmation"), other.c.error.label("other_error"),
                other.c.state.label("other_state"),
                *(first.c[name].label(f"first_{name}") for name in ("verdict", *CLASSES)),
                *(second.c[name].label(f"second_{name}") for name in ("verdict", *CLASSES)),
            )
            .join(one, and_(one.c.batch == ItemRow.batch, one.c.key == ItemRow.key))
            .outerjoin(first, first.c.key == ItemRow.key)
            .outerjoin(other, and_(other.c.batch == ItemRow.batch, other.c.confirms == ItemRow.key))
            .outerjoin(second, second.c.key == other.c.key)
            .where(ItemRow.batch == id_, tuple_(ItemRow.checkpoint, ItemRow.position) > tuple_(*after))
            .order_by(ItemRow.checkpoint, ItemRow.position)
            .limit(limit)
        )  # fmt: skip
        with self._readers.connect() as connection:
            return [_row(row._mapping) for row in connection.execute(query)]

    def every_row(self, id_: str) -> Iterator[Row]:
        """All pages of `rows`."""
        after = ("", -1)
        while page := self.rows(id_, after=after):
            yield from page
            after = (page[-1].entry.checkpoint, page[-1].entry.position)

    def report(self, key: str) -> report_pb2.Report | None:
        """The report of an audit.

        One that lost its prompt shows it as long as a batch has it: the same key is the same prompt.
        """
        prompt = select(func.max(TaskRow.prompt)).where(TaskRow.key == key).scalar_subquery()
        with self._readers.connect() as connection:
            found = connection.execute(select(ResultRow.report, prompt).where(ResultRow.key == key)).one_or_none()
        if found is None:
            return None
        report = report_pb2.Report.FromString(found[0])
        report.prompt = report.prompt or found[1] or ""
        return report

    def reports(self, row: Row) -> tuple[report_pb2.Report | None, report_pb2.Report | None]:
        """The first and the second audit of an item; None where there is none."""
        first, second = (self.report(key) if key else None for key in (row.entry.key, row.confirmation))
        return first, second

    def delete(self, id_: str) -> None:
        """Delete a batch, with all results that no other batch has; see `service.store.deletion`.

        Raises:
            NotFound: there is none of this id.
        """
        delete_batch(self._engine, id_)
        forget(self._engine)


def _update(digest: Any, entry: Entry) -> None:
    digest.update(json.dumps([entry.checkpoint, entry.position, entry.key, entry.extra], sort_keys=True).encode())


def _batch(row: Any) -> Batch:
    ended = None if row.finished is None else as_utc(row.finished)
    return Batch(row.id, row.state, row.note, row.settings, row.prompts, as_utc(row.created), ended)


def _answer(found: Any, prefix: str = "") -> Answer:
    probabilities = (found[f"{prefix}memorized"], found[f"{prefix}spurious"], found[f"{prefix}generalized"])
    return Answer(PhaseClass(found[f"{prefix}verdict"]), probabilities)


def _row(found: Any) -> Row:
    answers = [None if found[f"{name}_verdict"] is None else _answer(found, f"{name}_") for name in ("first", "second")]
    entry = Entry(found["checkpoint"], found["position"], found["prompt"], found["key"], found["extra"])
    failed = found["error"] if answers[0] is None else (found["other_error"] or "") if answers[1] is None else ""
    # A flag whose second audit was not even taken on is as open as one that waits for it.
    states = found["state"], found["other_state"] or (PENDING if answers[0] and answers[0].flagged else DONE)
    to_do = any(state in (PENDING, RUNNING) for state in states)
    return Row(entry, answers[0], answers[1], failed, found["confirmation"] or "", to_do)
