"""The tasks of batches: taken by workers, done, failed, lost, given back.

Every method is one transaction: when it returns, what it did is kept, and when it raises, nothing of it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, exists, select, update
from sqlalchemy.dialects import postgresql, sqlite

from audit.batch.tasks import Task
from audit.v1 import report_pb2
from audit.verdict.rule import PhaseClass
from service.store.engine import READS
from service.store.records import DONE, FAILED, PENDING, RUNNING
from service.store.schema import BatchRow, ResultRow, TaskRow, WorkerRow

#: Errors after which a task is set aside.
MOST_ATTEMPTS = 3
#: Lost workers after which it is set aside: one that it had company in, and as many as errors that it was alone in.
MOST_LOSSES = 4
#: Seconds after which a worker that was not seen is lost.
LEASE = 60.0

#: Rows that are looked over at once where answers are there already.
PAGE = 500

#: That a task's prompt was not removed since: without it, the answer would be another prompt's.
_KEPT = TaskRow.prompt != ""


@dataclass(frozen=True)
class Finished:
    """A task that is done.

    Attributes:
        task: as it was taken.
        report: of its audit.
        confirmation: key of the audit with fresh seeds, which is taken on where a first audit is flagged.
    """

    task: Task
    report: report_pb2.Report
    confirmation: str


@dataclass(frozen=True)
class Known:
    """What another store knows of a prompt.

    Attributes:
        task: its first audit, with any id.
        report: of it; None where there is none.
        confirmation: key of its second audit; "" where there is none.
        second: report of that; None where there is none.
        error: why one of them failed; "" where none did.
    """

    task: Task
    report: report_pb2.Report | None
    confirmation: str
    second: report_pb2.Report | None
    error: str


class Queue:
    """The tasks of one store, as one worker sees them.

    Args:
        engine: from `service.store.engine.connect`.
        lease: seconds after which a worker that was not seen is lost.

    Attributes:
        worker: its id.
    """

    def __init__(self, engine: Engine, lease: float = LEASE) -> None:
        self._engine = engine
        self._readers = engine.execution_options(**{READS: True})
        self._lease = lease
        self._seen = 0.0
        self.worker = uuid.uuid4().hex

    def beat(self) -> None:
        """Tell that this worker is alive; call it much more often than the lease is long."""
        if time.monotonic() - self._seen > self._lease / 5:
            with self._engine.begin() as connection:
                self._tell(connection)

    def alone(self) -> bool:
        """Whether no other worker was seen for the time of a lease."""
        with self._readers.connect() as connection:
            seen = WorkerRow.seen >= _now(connection) - timedelta(seconds=self._lease)
            return connection.scalar(select(WorkerRow.id).where(WorkerRow.id != self.worker, seen).limit(1)) is None

    def recover(self, batch: str, *, all_workers: bool = False) -> None:
        """Put back what lost workers were working on.

        A task that was lost too often is set aside: it may be what kills its process.

        Args:
            batch: its id.
            all_workers: whether every worker is known to be lost, seen lately or not.
        """
        lost = and_(TaskRow.batch == batch, TaskRow.state == RUNNING)
        with self._engine.begin() as connection:
            now = _now(connection)
            if not all_workers:
                alive = exists().where(
                    WorkerRow.id == TaskRow.worker, WorkerRow.seen >= now - timedelta(seconds=self._lease)
                )
                lost = and_(lost, ~alive)
            _lose(connection, lost)
            connection.execute(delete(WorkerRow).where(WorkerRow.seen < now - timedelta(days=1)))
            reuse(connection, batch)

    def take(
        self,
        batch: str,
        checkpoint: str,
        most: int,
        *,
        idle: bool,
        held: Collection[int] | None = None,
        confirmation: Callable[[Task], str] | None = None,
    ) -> list[Task]:
        """Begin some tasks; those whose answers another batch has found since are done at once.

        What was lost with its worker comes last and alone, so that a task that kills takes no other with it.

        Args:
            batch: its id.
            checkpoint: whose tasks.
            most: of them.
            idle: whether this worker works on nothing else.
            held: ids of all that it works on, where it knows. What else it was given it was never told of, since the
                store failed just then, and that is put back first.
            confirmation: key of a first audit's second one, which is taken on with an answer that is flagged; without
                it, that is left to `confirm`.
        """
        there = and_(TaskRow.batch == batch, TaskRow.checkpoint == checkpoint)
        own = and_(
            there,
            TaskRow.state == PENDING,
            _KEPT,
            exists().where(BatchRow.id == batch, BatchRow.state == RUNNING),  # it may have been cancelled elsewhere
        )
        query = (
            select(TaskRow, ResultRow.verdict)
            .outerjoin(ResultRow, ResultRow.key == TaskRow.key)
            .with_for_update(skip_locked=True, of=TaskRow)  # no one else takes them
        )
        page = most
        while True:
            with self._engine.begin() as connection:
                if held is not None:
                    untold = and_(there, self._mine(), TaskRow.id.not_in(held))
                    connection.execute(update(TaskRow).where(untold).values(state=PENDING))
                rows = connection.execute(query.where(own, TaskRow.losses == 0).order_by(TaskRow.id).limit(page)).all()
                if not rows and idle:
                    rows = connection.execute(query.where(own).order_by(TaskRow.losses, TaskRow.id).limit(1)).all()
                known = [row for row in rows if row.verdict is not None]
                if known:
                    _set_state(connection, known, DONE)
                if known and confirmation is not None:
                    flags = [row for row in known if not row.confirms and row.verdict != PhaseClass.GENERALIZED]
                    _take_on(connection, batch, [(task, confirmation(task)) for task in map(_as_task, flags)])
                begun = [row for row in rows if row.verdict is None][:most]
                if begun:
                    self._tell(connection)
                    _set_state(connection, begun, RUNNING, worker=self.worker)
            if begun or not known:
                return [_as_task(row) for row in begun]
            page = max(most, PAGE)  # where some are known, many are

    def finish(self, batch: str, done: Sequence[Finished]) -> None:
        """Keep results. Those of a batch that was deleted are dropped.

        Args:
            batch: its id.
            done: of its tasks.
        """
        with self._engine.begin() as connection:
            ids = [one.task.id for one in done]
            there = set(connection.scalars(select(TaskRow.id).where(TaskRow.id.in_(ids)).with_for_update()))
            kept = [one for one in done if one.task.id in there]
            if not kept:
                return
            connection.execute(update(TaskRow).where(TaskRow.id.in_(there)).values(state=DONE))
            # In one order for everyone, or two batches of the same prompts could wait for each other.
            results = [result_row(one.task.key, one.report) for one in kept]
            insert_new(connection, ResultRow, sorted(results, key=itemgetter("key")), ["key"])
            flagged = [one for one in kept if not one.task.confirms and one.report.verdict != report_pb2.generalized]
            _take_on(connection, batch, [(one.task, one.confirmation) for one in flagged])

    def fail(self, task: Task, error: str, *, final: bool = False) -> None:
        """Put a task back that raised an error, or set it aside when it was the last time."""
        with self._engine.begin() as connection:
            mine = and_(TaskRow.id == task.id, self._mine())
            over = mine if final else and_(mine, TaskRow.attempts + 1 >= MOST_ATTEMPTS)
            # Half a surrogate pair is no text, and PostgreSQL keeps no NUL.
            text = error.encode(errors="replace").decode().replace("\0", "?")
            values = {"attempts": TaskRow.attempts + 1, "error": text}
            connection.execute(update(TaskRow).where(over).values(state=FAILED, **values))
            connection.execute(update(TaskRow).where(mine).values(state=PENDING, **values))

    def lose(self, tasks: Sequence[Task]) -> None:
        """Put tasks back whose worker was lost; those that were lost too often are set aside."""
        with self._engine.begin() as connection:
            _lose(connection, and_(TaskRow.id.in_([task.id for task in tasks]), self._mine()))

    def put_back(self, tasks: Sequence[Task]) -> None:
        """Give tasks back that were begun and are left undone."""
        with self._engine.begin() as connection:
            own = TaskRow.id.in_([task.id for task in tasks])
            connection.execute(update(TaskRow).where(own, self._mine()).values(state=PENDING))

    def retry_failed(self, batch: str) -> None:
        """Put back what was set aside, as if it had never been tried."""
        with self._engine.begin() as connection:
            connection.execute(
                update(TaskRow)
                .where(TaskRow.batch == batch, TaskRow.state == FAILED, _KEPT)
                .values(state=PENDING, attempts=0, losses=0, error="")
            )

    def adopt(self, batch: str, known: Sequence[Known]) -> None:
        """Take over what another store knows of the prompts of a batch that both have."""
        results, seconds, errors = [], [], {}
        for one in known:
            if one.report is not None:
                results.append(result_row(one.task.key, one.report))
            if one.confirmation:
                seconds.append(
                    task_row(batch, one.task.checkpoint, one.task.prompt, one.confirmation, confirms=one.task.key)
                )
            if one.second is not None:
                results.append(result_row(one.confirmation, one.second))
            if one.error:
                errors[one.confirmation or one.task.key] = one.error
        with self._engine.begin() as connection:
            for table, rows, unique in ((ResultRow, results, ["key"]), (TaskRow, seconds, ["batch", "key"])):
                if rows:
                    insert_new(connection, table, sorted(rows, key=itemgetter("key")), unique)
            reuse(connection, batch)
            for key, error in errors.items():
                mine = and_(TaskRow.batch == batch, TaskRow.key == key, TaskRow.state != DONE)
                connection.execute(update(TaskRow).where(mine).values(state=FAILED, error=error))

    def waiting(self, batch: str, checkpoint: str) -> bool:
        """Whether tasks of a checkpoint wait for somebody."""
        query = select(TaskRow.id).where(
            TaskRow.batch == batch, TaskRow.checkpoint == checkpoint, TaskRow.state == PENDING
        )
        with self._readers.connect() as connection:
            return connection.scalar(query.limit(1)) is not None

    def unconfirmed(self, batch: str, checkpoint: str) -> list[Task]:
        """First audits that are flagged and have no second one yet: those whose answers were there before."""
        second = TaskRow.__table__.alias()
        query = (
            select(TaskRow)
            .join(ResultRow, ResultRow.key == TaskRow.key)
            .where(
                TaskRow.batch == batch,
                TaskRow.checkpoint == checkpoint,
                TaskRow.confirms == "",
                _KEPT,
                ResultRow.verdict != PhaseClass.GENERALIZED,
                ~exists().where(second.c.batch == batch, second.c.confirms == TaskRow.key),
            )
            .order_by(TaskRow.id)
        )
        with self._readers.connect() as connection:
            return [_as_task(row) for row in connection.execute(query)]

    def confirm(self, batch: str, tasks: Sequence[tuple[Task, str]]) -> None:
        """Take on the second audits of tasks, by their keys."""
        with self._engine.begin() as connection:
            _take_on(connection, batch, tasks)

    def _mine(self) -> ColumnElement[bool]:
        """That a task is this worker's: it may have been another's since."""
        return and_(TaskRow.worker == self.worker, TaskRow.state == RUNNING)

    def _tell(self, connection: Connection) -> None:
        values = {"id": self.worker, "seen": _now(connection)}
        statement = _insert(connection)(WorkerRow).values(values)
        connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"seen": values["seen"]}))
        self._seen = time.monotonic()


def task_row(batch: str, checkpoint: str, prompt: str, key: str, *, confirms: str = "") -> dict[str, Any]:
    """A task that nobody took yet."""
    return {
        "batch": batch, "checkpoint": checkpoint, "prompt": prompt, "key": key, "confirms": confirms,
        "state": PENDING, "worker": "", "attempts": 0, "losses": 0, "error": "",
    }  # fmt: skip


def result_row(key: str, report: report_pb2.Report) -> dict[str, Any]:
    """A result under its key."""
    found = report.probabilities
    return {
        "key": key, "verdict": report_pb2.Verdict.Name(report.verdict), "memorized": found.memorized,
        "spurious": found.spurious, "generalized": found.generalized, "evaluations": report.cost.evaluations,
        "seconds": report.cost.compute_seconds, "report": report.SerializeToString(),
        "finished": report.provenance.finish_time.ToDatetime(UTC),
    }  # fmt: skip


def insert_new(connection: Connection, table: Any, rows: Sequence[dict[str, Any]], unique: Sequence[str]) -> None:
    """Insert rows but for those that are there already."""
    connection.execute(_insert(connection)(table).on_conflict_do_nothing(index_elements=unique), rows)


def reuse(connection: Connection, batch: str, keys: Sequence[str] = ()) -> None:
    """Count tasks as done whose answers are there already; of these keys only, where some are given."""
    query = update(TaskRow).where(
        TaskRow.batch == batch, TaskRow.state == PENDING, exists().where(ResultRow.key == TaskRow.key)
    )
    connection.execute((query.where(TaskRow.key.in_(keys)) if keys else query).values(state=DONE))


def _take_on(connection: Connection, batch: str, flagged: Sequence[tuple[Task, str]]) -> None:
    """Take on the second audits of tasks, by their keys; those whose answers are there are done."""
    for start in range(0, len(flagged), PAGE):  # a statement has only so many parameters
        rows = [
            task_row(batch, task.checkpoint, task.prompt, key, confirms=task.key)
            for task, key in flagged[start : start + PAGE]
        ]
        insert_new(connection, TaskRow, rows, ["batch", "key"])
        # Of no others: a first audit whose answer came just now would never be confirmed.
        reuse(connection, batch, [row["key"] for row in rows])


def _set_state(connection: Connection, rows: Sequence[Any], state: str, **values: str) -> None:
    own = TaskRow.id.in_([row.id for row in rows])
    connection.execute(update(TaskRow).where(own).values(state=state, **values))


def _insert(connection: Connection) -> Any:
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[connection.dialect.name]


def _lose(connection: Connection, lost: ColumnElement[bool]) -> None:
    error = "the process that worked on it was lost each time"
    too_often = and_(lost, TaskRow.losses + 1 >= MOST_LOSSES)
    connection.execute(update(TaskRow).where(too_often).values(state=FAILED, losses=TaskRow.losses + 1, error=error))
    connection.execute(update(TaskRow).where(lost).values(state=PENDING, losses=TaskRow.losses + 1))


def _now(connection: Connection) -> datetime:
    """By the clock that all workers share."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    return connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()


def _as_task(row: Any) -> Task:
    return Task(row.id, row.checkpoint, row.prompt, row.key, row.confirms)
