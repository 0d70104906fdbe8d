"""What is read of batches: lists, pages, rows, counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, update

from service.store.engine import READS, connect
from service.store.queue import Queue
from service.store.records import BATCH_STATES, DONE, FAILED, Batch, Counts, Entry
from service.store.schema import BatchRow, TaskRow
from service.store.store import CHUNK, Store
from tests.service.store.helpers import confirmation_of, entries, entry, finish, finished, work_off


def test_batches_are_listed_newest_first_and_once(store: Store, engine: Engine) -> None:
    """Page by page, while new ones come, and where several were made in one moment."""
    made = [store.create([], {"number": number}).id for number in range(12)]
    with engine.begin() as connection:
        moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        for index, id_ in enumerate(made):
            times = {"created": moment + timedelta(microseconds=index // 5)}
            connection.execute(update(BatchRow).where(BatchRow.id == id_).values(times))
    seen: list[Batch] = []
    while page := store.batches(after=(seen[-1].created, seen[-1].id) if seen else None, limit=2):
        seen += page
        store.create([], {"number": "new"})
    assert sorted(batch.id for batch in seen) == sorted(made)
    assert [batch.created for batch in seen] == sorted((batch.created for batch in seen), reverse=True)


def test_batches_by_state(store: Store) -> None:
    """Pages hold those of a state only."""
    made = [store.create([], {}).id for _ in range(10)]
    for index, id_ in enumerate(made):
        store.set_state(id_, BATCH_STATES[index % 5])
    for index, state in enumerate(BATCH_STATES):
        first = store.batches(states=[state], limit=1)
        rest = store.batches(states=[state], after=(first[0].created, first[0].id))
        assert [batch.id for batch in first + rest] == [made[index + 5], made[index]]
    assert len(store.batches()) == 10
    assert [batch.id for batch in store.batches(states=BATCH_STATES[:2])] == [made[index] for index in (6, 5, 1, 0)]
    assert store.batches(states=["unheard-of"]) == []


def test_batches_to_work_on(store: Store) -> None:
    """The oldest first, with their tasks: none that has ended, and none of a run folder, which is another's work."""
    made = [store.create(entries(2), settings).id for settings in ({}, {"in_run_folder": False}, {})]
    store.create(entries(2), {"in_run_folder": True})
    store.set_state(made[2], DONE)
    assert [batch.id for batch in store.running()] == made[:2]
    assert store.tasks() == {(id_, "demo", "pending"): 2 for id_ in made[:2]}


def test_batches_by_checkpoint(store: Store) -> None:
    """Those that audit it, alone or beside others; together with a state, and page by page."""
    made = {
        names: store.create([replace(one, checkpoint=name) for name in names for one in entries(2)], {}).id
        for names in ("a", "b", "ab", "")
    }
    store.set_state(made["a"], DONE)
    assert {batch.id for batch in store.batches(checkpoint="a")} == {made["a"], made["ab"]}
    assert {batch.id for batch in store.batches(checkpoint="b")} == {made["b"], made["ab"]}
    assert [batch.id for batch in store.batches(checkpoint="a", states=[DONE])] == [made["a"]]
    (newest,) = store.batches(checkpoint="a", limit=1)
    assert [batch.id for batch in store.batches(checkpoint="a", after=(newest.created, newest.id))] == [made["a"]]
    assert store.batches(checkpoint="unheard-of") == []


def test_a_batch_is_found_by_its_request(store: Store) -> None:
    """While it is there."""
    store.create(entries(1), {})
    batch = store.create(entries(1), {}, request_id="request")
    assert store.batch_of("request") == batch
    assert store.batch_of("another") is None
    assert store.batch_of("") is None
    store.delete(batch.id)
    assert store.batch_of("request") is None


@pytest.mark.parametrize("limit", [1, 4, 15, 100])
def test_rows_come_once_by_checkpoint_and_position(store: Store, queue: Queue, limit: int) -> None:
    """Page by page, while results come in, and other batches with the same prompts."""
    given = [one for name in ("b", "a", "c") for one in reversed(entries(5, checkpoint=name))]
    batch = store.create(given, {})
    seen: list[Entry] = []
    while page := store.rows(
        batch.id, after=(seen[-1].checkpoint, seen[-1].position) if seen else ("", -1), limit=limit
    ):
        seen += [row.entry for row in page]
        for task in queue.take(batch.id, "b", 1, idle=True):
            finish(queue, batch.id, task, "memorized")
        store.create(given, {})
    assert seen == sorted(given, key=lambda one: (one.checkpoint, one.position))


def test_every_row_of_a_large_batch(store: Store) -> None:
    """More than one page."""
    given = entries(2 * CHUNK + 1)
    batch = store.create(given, {})
    assert [row.entry for row in store.every_row(batch.id)] == given


def test_a_row_is_open_while_an_audit_of_it_is_to_be_done(store: Store, queue: Queue) -> None:
    """The first one, and the second one of a flag; then it is neither done nor failed any more."""
    batch = store.create([*entries(3), replace(entry(0), position=3)], {})

    def stand() -> list[tuple[bool, str, str]]:
        return [(row.open, row.confirmation, row.error) for row in store.rows(batch.id)]

    new, clear = (True, "", ""), (False, "", "")
    assert stand() == [new] * 4
    flagged, cleared, failing = queue.take(batch.id, "demo", 9, idle=True)
    assert stand() == [new] * 4
    waiting = (True, confirmation_of(flagged), "")
    queue.finish(batch.id, [finished(flagged, "memorized"), finished(cleared)])
    queue.fail(failing, "it broke")
    assert stand() == [waiting, clear, (True, "", "it broke"), waiting]
    _, second = queue.take(batch.id, "demo", 9, idle=True)
    assert stand()[0] == stand()[3] == waiting
    queue.fail(second, "no memory", final=True)
    queue.fail(failing, "it broke for good", final=True)
    ended = (False, confirmation_of(flagged), "no memory")
    assert stand() == [ended, clear, (False, "", "it broke for good"), ended]
    queue.retry_failed(batch.id)
    work_off(queue, batch.id)
    confirmed = (False, confirmation_of(flagged), "")
    assert stand() == [confirmed, clear, clear, confirmed]


def test_a_known_flag_is_open_before_its_second_audit_is_taken_on(store: Store, queue: Queue) -> None:
    """Its answer was there before the batch."""
    earlier = store.create(entries(2), {})
    for task, verdict in zip(queue.take(earlier.id, "demo", 9, idle=True), ("spurious", "generalized"), strict=True):
        finish(queue, earlier.id, task, verdict)
    batch = store.create(entries(2), {})
    assert [(row.open, row.confirmation) for row in store.rows(batch.id)] == [(True, ""), (False, "")]
    (flagged,) = queue.unconfirmed(batch.id, "demo")
    queue.confirm(batch.id, [(flagged, confirmation_of(flagged))])
    assert [(row.open, row.confirmation) for row in store.rows(batch.id)] == [
        (True, confirmation_of(flagged)),
        (False, ""),
    ]


def test_verdicts_are_counted_of_first_audits(store: Store, queue: Queue) -> None:
    """Each prompt once, however often it is given, and as soon as its answer is there; second audits do not count."""
    earlier = store.create(entries(1), {})
    work_off(queue, earlier.id, lambda task: "spurious")
    batch = store.create([*entries(4), replace(entry(0), position=4), replace(entry(1), position=5)], {})
    assert store.counts(batch.id) == Counts(3, 1, 0, {"spurious": 1})
    first, second, _ = queue.take(batch.id, "demo", 9, idle=True)
    finish(queue, batch.id, first, "memorized")
    assert store.counts(batch.id) == Counts(3, 2, 0, {"spurious": 1, "memorized": 1})
    queue.fail(second, "it broke", final=True)
    work_off(queue, batch.id, lambda task: "memorized")
    queue.recover(batch.id, all_workers=True)
    work_off(queue, batch.id)
    counts = store.counts(batch.id)
    assert counts == Counts(0, 4, 1, {"spurious": 1, "memorized": 1, "generalized": 1})
    assert counts.total == 5


@pytest.mark.parametrize(
    ("ask", "index"),
    [
        (lambda store: store.rows("any"), "tasks_that_confirm (batch=? AND confirms=?)"),
        (lambda store: store.batches(after=(datetime.now(UTC), "any")), "batches_age"),
    ],
    ids=["confirmations", "batches"],
)
def test_pages_are_found_by_index(tmp_path: Path, ask: Callable[[Store], object], index: str) -> None:
    """One costs as much of a long list as of a short one."""
    engine = connect(f"sqlite:///{tmp_path}/basin.db")
    asked: list[tuple[str, Any]] = []
    event.listen(engine, "before_cursor_execute", lambda connection, cursor, *found: asked.append(found[:2]))
    ask(Store(engine))
    ((statement, parameters),) = [one for one in asked if one[0].startswith("SELECT")]
    with engine.connect() as connection:
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    engine.dispose()
    assert [step for step in plan if "SCAN" in step or "TEMP B-TREE" in step] == []
    assert any(index in step for step in plan)


def test_readers_and_a_writer_do_not_wait_for_each_other(store: Store, queue: Queue, engine: Engine, url: str) -> None:
    """Who reads sees what was there before; what is written meanwhile is kept before the reader is done."""
    batch = store.create(entries(2), {})
    (task, _) = queue.take(batch.id, "demo", 9, idle=True)
    other = connect(url)
    with other.begin() as writing:
        writing.execute(update(TaskRow).values(state=FAILED, error="not yet"))
        assert store.counts(batch.id) == Counts(2, 0, 0)
        assert [row.error for row in store.rows(batch.id)] == ["", ""]
        assert store.batches() == [store.batch(batch.id)]
        assert store.report(task.key) is None
        assert queue.unconfirmed(batch.id, "demo") == []
        writing.rollback()
    with other.execution_options(**{READS: True}).connect() as reading:
        assert len(reading.execute(select(TaskRow)).fetchmany(1)) == 1
        finish(queue, batch.id, task)
        assert store.counts(batch.id) == Counts(1, 1, 0, {"generalized": 1})
    other.dispose()
