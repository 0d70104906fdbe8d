"""How long the store keeps prompts, pictures and results.

A prompt's age is that of the batch that it was given with, since its end; a picture's that of the audit that drew it.
Nothing is taken from a batch that runs or pauses. What stays of a prompt is its key, a digest: asked again, its result
is found again, and its report shows the prompt that was asked, as long as a batch holds that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, Field
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute

from audit.v1 import report_pb2
from service.reports import without_images, without_texts
from service.store.deletion import ROWS, Deleted, delete_older, ended_before, forget, within
from service.store.engine import READS
from service.store.records import PAUSED, RUNNING, Entry
from service.store.schema import BatchRow, ItemRow, ResultRow, TaskRow

#: In place of an error, which may quote the prompt.
ERROR_REMOVED = "it failed; why was removed with the prompt"

#: Days; None is for ever.
Days = Annotated[float | None, Field(ge=0, le=36_500, allow_inf_nan=False)]


class Retention(BaseModel, frozen=True, extra="forbid"):
    """How long things are kept, in days; None is for ever.

    Attributes:
        prompts: what was given, with the columns beside it, after a batch has ended. Verdicts and counts stay.
        samples: pictures, after their audit.
        results: whole batches, after they have ended.
    """

    prompts: Days = None
    samples: Days = None
    results: Days = None


@dataclass(frozen=True)
class Expired:
    """What became too old.

    Attributes:
        batches: that were deleted.
        results: that were deleted.
        prompts: items of other batches that lost their text.
        pictures: reports that lost their pictures.
        left: what could not be done, each in words; see `service.store.deletion.forget`.
    """

    batches: int
    results: int
    prompts: int
    pictures: int
    left: tuple[str, ...] = ()


def expire(engine: Engine, retention: Retention, now: datetime, *, rewrite: bool = False) -> Expired:
    """Remove all that is too old, beside whoever works on the store.

    It takes many short transactions. Interrupted, it goes on the next time.

    Args:
        engine: of the store.
        retention: what is too old.
        now: with its time zone.
        rewrite: see `service.store.deletion.forget`.

    Raises:
        StoreFailed: the database could not do it. What was removed until then is gone.
    """
    now, old = now.astimezone(UTC), {name: days for name, days in retention if days is not None}
    before = {name: now - timedelta(days=days) for name, days in old.items()}
    deleted = delete_older(engine, before["results"]) if "results" in before else Deleted()
    prompts = _remove_prompts(engine, before["prompts"], now) if "prompts" in before else 0
    pictures = _remove_pictures(engine, before["samples"], now) if "samples" in before else 0
    return Expired(deleted.batches, deleted.results, prompts, pictures, tuple(forget(engine, rewrite=rewrite)))


def give_back(connection: Connection, batch: str, entries: Sequence[Entry]) -> None:
    """Put prompts back that were removed, since whoever asks again brings them along."""
    items = update(ItemRow).where(
        ItemRow.batch == batch, ItemRow.prompt == "",
        ItemRow.checkpoint == bindparam("of"), ItemRow.position == bindparam("at"),
    )  # fmt: skip
    tasks = update(TaskRow).where(
        TaskRow.batch == batch, TaskRow.prompt == "",
        or_(TaskRow.key == bindparam("of"), TaskRow.confirms == bindparam("of")),
    )  # fmt: skip
    connection.execute(
        items.values(prompt=bindparam("text"), extra=bindparam("beside")),
        [{"of": one.checkpoint, "at": one.position, "text": one.prompt, "beside": one.extra} for one in entries],
    )
    connection.execute(tasks.values(prompt=bindparam("text")), [{"of": one.key, "text": one.prompt} for one in entries])
    connection.execute(update(BatchRow).where(BatchRow.id == batch).values(prompts_removed=None))


def _remove_prompts(engine: Engine, before: datetime, now: datetime) -> int:
    """Items that lost their text."""
    query = select(BatchRow.id).where(ended_before(before), BatchRow.prompts_removed.is_(None))
    with engine.execution_options(**{READS: True}).connect() as connection:
        old = list(connection.scalars(query.order_by(BatchRow.finished)))
    count = sum(_remove_prompts_of(engine, id_, before, now) for id_ in old)
    # A batch that still has the prompt would lose nothing by it, but its reports would have to be read again.
    kept = exists().where(TaskRow.key == ResultRow.key, TaskRow.prompt != "")
    _strip(engine, without_texts, ResultRow.prompt_removed, and_(ResultRow.finished < before, ~kept), now)
    return count


def _remove_prompts_of(engine: Engine, batch: str, before: datetime, now: datetime) -> int:
    """Items of a batch that lost their text. One that goes on meanwhile keeps what is left."""
    count, task = 0, 0
    item: tuple[Any, ...] = "", -1
    place = tuple_(ItemRow.checkpoint, ItemRow.position)
    tasks = select(TaskRow.id).where(TaskRow.batch == batch).order_by(TaskRow.id).limit(ROWS)
    items = (
        select(ItemRow.checkpoint, ItemRow.position).where(ItemRow.batch == batch)
        .order_by(ItemRow.checkpoint, ItemRow.position).limit(ROWS)
    )  # fmt: skip
    error = case((TaskRow.error == "", ""), else_=ERROR_REMOVED)
    while True:
        with engine.begin() as connection:
            own = select(BatchRow.id).where(BatchRow.id == batch, ended_before(before)).with_for_update()
            if connection.execute(own).first() is None:
                return count
            ids = list(connection.scalars(tasks.where(TaskRow.id > task)))
            places = [tuple(row) for row in connection.execute(items.where(place > tuple_(*item)))]
            if ids:
                connection.execute(update(TaskRow).where(TaskRow.id.in_(ids)).values(prompt="", error=error))
                task = ids[-1]
            if places:
                chunk = update(ItemRow).where(
                    ItemRow.batch == batch, place > tuple_(*item), place <= tuple_(*places[-1]), ItemRow.prompt != ""
                )
                gone = connection.execute(chunk.values(prompt="", extra={}))
                count, item = count + gone.rowcount, places[-1]
            if not ids and not places:
                connection.execute(update(BatchRow).where(BatchRow.id == batch).values(prompts_removed=now))
                return count


def _remove_pictures(engine: Engine, before: datetime, now: datetime) -> int:
    """Reports that lost their pictures."""
    at_work = exists().where(
        TaskRow.key == ResultRow.key, BatchRow.id == TaskRow.batch, BatchRow.state.in_((RUNNING, PAUSED))
    )
    return _strip(engine, without_images, ResultRow.pictures_removed, and_(ResultRow.finished < before, ~at_work), now)


def _strip(
    engine: Engine,
    strip: Callable[[report_pb2.Report], report_pb2.Report],
    removed: InstrumentedAttribute[datetime | None],
    condition: ColumnElement[bool],
    now: datetime,
) -> int:
    """Take something out of reports.

    Args:
        engine: of the store.
        strip: leaves it out.
        removed: the column that says when.
        condition: of the results.
        now: in UTC.

    Returns:
        Reports that had it.
    """
    count, last = 0, None
    place = tuple_(ResultRow.finished, ResultRow.key)
    query = (
        select(ResultRow.finished, ResultRow.key, func.length(ResultRow.report).label("size"))
        .where(removed.is_(None), condition).order_by(ResultRow.finished, ResultRow.key).limit(ROWS)
    )  # fmt: skip
    rewrite = update(ResultRow).where(ResultRow.key == bindparam("of")).values(report=bindparam("without"))
    while True:
        with engine.begin() as connection:
            rows = within(connection.execute(query if last is None else query.where(place > tuple_(*last))))
            if not rows:
                return count
            last = rows[-1].finished, rows[-1].key
            # Another process may take something else out of them.
            reports = select(ResultRow.key, ResultRow.report).where(ResultRow.key.in_([row.key for row in rows]))
            changed = []
            for key, content in connection.execute(reports.with_for_update()):
                report = report_pb2.Report.FromString(content)
                if (stripped := strip(report)).ByteSize() < report.ByteSize():
                    changed.append({"of": key, "without": stripped.SerializeToString()})
            if changed:
                connection.execute(rewrite, changed)
            done = update(ResultRow).where(ResultRow.key.in_([row.key for row in rows]))
            connection.execute(done.values({removed: now}))
            count += len(changed)
