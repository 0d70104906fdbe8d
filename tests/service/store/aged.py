"""Batches that ended some time ago, with reports that hold all that can be removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select, update

from audit.batch.tasks import Task
from audit.v1 import report_pb2
from service.store.engine import connect
from service.store.queue import Finished, Queue
from service.store.records import DONE, Batch, Entry
from service.store.schema import Base, BatchRow, ResultRow, TaskRow
from service.store.store import Store
from tests.service.store.helpers import key_of, report

#: What all ages are told from, to the microsecond, as every database keeps it.
NOW = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)


def given(texts: Sequence[str], *, beside: str = "") -> list[Entry]:
    """Prompts as a user gives them; the same text has the same key."""
    return [Entry("demo", place, text, key_of(text), {"beside": beside or text}) for place, text in enumerate(texts)]


def again(task: Task) -> str:
    """Key of its second audit."""
    return key_of(f"again {task.key}")


def full_report(task: Task, verdict: str = "memorized", picture: bytes = b"a picture") -> report_pb2.Report:
    """A report with pictures, and with the prompt as caption of what it recalls."""
    made = report(verdict, prompt=task.prompt, content="No two seeds met.")
    image = report_pb2.Image(png=picture, height=8, width=8)
    near = report_pb2.Neighbor(index=7, caption=task.prompt, distance=1, image=image)
    clip = report_pb2.ClipNeighbor(index=7, caption=task.prompt, similarity=0.5)
    made.samples.append(report_pb2.SampleEvidence(seed=1, image=image, nearest_reference=near, nearest_clip=clip))
    made.stability.modes.append(report_pb2.Mode(seeds=[1], share=1, nearest_reference=near))
    return made


def work_off(queue: Queue, batch: str, made: Callable[[Task], report_pb2.Report] = full_report) -> int:
    """Everything that is left to do, three tasks at a time; how many there were."""
    count = 0
    while tasks := queue.take(batch, "demo", 3, idle=True):
        queue.finish(batch, [Finished(task, made(task), again(task)) for task in tasks])
        count += len(tasks)
    return count


def confirm_known(queue: Queue, batch: str) -> None:
    """Take on second audits of what was flagged before the batch came."""
    queue.confirm(batch, [(task, again(task)) for task in queue.unconfirmed(batch, "demo")])


def ended(
    engine: Engine,
    texts: Sequence[str],
    days: float,
    *,
    state: str = DONE,
    made: Callable[[Task], report_pb2.Report] = full_report,
    **options: Any,
) -> Batch:
    """A batch that was worked off and came to a state so many days ago, as did those of its audits that are new."""
    store = Store(engine)
    with engine.connect() as connection:
        before = set(connection.scalars(select(ResultRow.key)))
    batch, queue = store.create(given(texts), {}, **options), Queue(engine)
    confirm_known(queue, batch.id)
    work_off(queue, batch.id, made)
    store.set_state(batch.id, state)
    time = NOW - timedelta(days=days)
    with engine.begin() as connection:
        connection.execute(update(ResultRow).where(ResultRow.key.not_in(before)).values(finished=time))
        own = update(BatchRow).where(BatchRow.id == batch.id)
        connection.execute(own.values(created=time))
        connection.execute(own.where(BatchRow.finished.is_not(None)).values(finished=time))
    return store.batch(batch.id)


def texts_of(engine: Engine, batch: str) -> list[str]:
    """Prompts of a batch, as far as they are there."""
    return [row.entry.prompt for row in Store(engine).rows(batch)]


def stored(engine: Engine, text: str) -> report_pb2.Report | None:
    """The report of a prompt's first audit as it is stored; None where it is gone."""
    with engine.connect() as connection:
        content = connection.scalar(select(ResultRow.report).where(ResultRow.key == key_of(text)))
    return None if content is None else report_pb2.Report.FromString(content)


def content(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables, in the order of their keys."""
    with engine.connect() as connection:
        return {
            name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for name, table in Base.metadata.tables.items()
        }


def open_tasks(engine: Engine, batch: str) -> int:
    """Tasks that were not done."""
    query = select(func.count()).select_from(TaskRow).where(TaskRow.batch == batch, TaskRow.state != DONE)
    with engine.connect() as connection:
        return connection.execute(query).scalar_one()


def files_with(folder: Path, mark: str) -> list[str]:
    """Files somewhere in a folder that hold a text."""
    return sorted(file.name for file in folder.rglob("*") if file.is_file() and mark.encode() in file.read_bytes())


def work_for_ever(pipe: Connection, url: str, id_: str) -> None:
    """Do the tasks of a batch one by one, and tell of each."""
    queue = Queue(connect(url))
    while tasks := queue.take(id_, "demo", 1, idle=True):
        queue.finish(id_, [Finished(task, full_report(task), again(task)) for task in tasks])
        pipe.send(tasks[0].key)
    pipe.send(None)
