"""Results that are kept, in groups, and the confirmations that they bring; what was done before is not done again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, delete

from audit.batch.tasks import Task
from service.store.engine import StoreFailed
from service.store.queue import Finished, Queue
from service.store.records import Counts
from service.store.schema import ResultRow
from service.store.store import Store
from tests.service.store.helpers import (
    LONG,
    confirmation_of,
    entries,
    entry,
    finish,
    finished,
    report,
    sizes,
    work_off,
)


@pytest.mark.parametrize("verdict", ["memorized", "spurious"])
def test_a_flag_brings_a_confirmation_once(store: Store, queue: Queue, verdict: str) -> None:
    """Also where its result is kept twice; a confirmation brings no other, whatever it says."""
    batch = store.create(entries(2), {})
    one, other = queue.take(batch.id, "demo", 9, idle=True)
    for _ in range(2):
        finish(queue, batch.id, one, verdict)
    finish(queue, batch.id, other, "generalized")
    (second,) = queue.take(batch.id, "demo", 9, idle=True)
    assert (second.prompt, second.checkpoint, second.confirms) == (one.prompt, "demo", one.key)
    assert second.key == confirmation_of(one)
    (row, _) = store.rows(batch.id)
    assert (row.first is not None, row.second) == (True, None)
    finish(queue, batch.id, second, verdict)
    assert queue.take(batch.id, "demo", 9, idle=True) == []
    row, _ = store.rows(batch.id)
    assert row.second is not None
    assert row.second.verdict == verdict
    assert queue.unconfirmed(batch.id, "demo") == []
    assert store.counts(batch.id) == Counts(0, 3, 0, {verdict: 1, "generalized": 1})


def test_a_confirmation_that_fails_is_told(store: Store, queue: Queue) -> None:
    """Beside the first answer."""
    batch = store.create(entries(1), {})
    finish(queue, batch.id, queue.take(batch.id, "demo", 1, idle=True)[0], "spurious")
    queue.fail(queue.take(batch.id, "demo", 1, idle=True)[0], "no memory", final=True)
    (row,) = store.rows(batch.id)
    assert row.first is not None
    assert (row.second, row.error) == (None, "no memory")


# Groups.


def group(tasks: list[Task]) -> list[Finished]:
    """Verdicts in turn, of which two thirds are flags."""
    verdicts = ("memorized", "generalized", "spurious")
    return [finished(task, verdicts[index % 3]) for index, task in enumerate(tasks)]


def test_a_group_is_kept_with_all_that_it_brings(store: Store, queue: Queue) -> None:
    """First and second audits beside each other; only flags of first ones are confirmed."""
    batch = store.create(entries(6), {})
    finish(queue, batch.id, queue.take(batch.id, "demo", 1, idle=True)[0], "memorized")
    tasks = queue.take(batch.id, "demo", 9, idle=True)
    assert [bool(task.confirms) for task in tasks] == [False] * 5 + [True]
    queue.finish(batch.id, group(tasks))
    assert store.counts(batch.id) == Counts(3, 7, 0, {"memorized": 3, "generalized": 2, "spurious": 1})
    seconds = queue.take(batch.id, "demo", 9, idle=True)
    assert [task.confirms for task in seconds] == [tasks[index].key for index in (0, 2, 3)]
    assert [task.key for task in seconds] == [confirmation_of(tasks[index]) for index in (0, 2, 3)]
    queue.finish(batch.id, [])
    assert store.counts(batch.id).open == 3


def test_a_group_is_kept_whole_or_not_at_all(store: Store, queue: Queue, engine: Engine) -> None:
    """Whatever cannot be kept of it: results, or the confirmations that come last."""
    batch = store.create(entries(4), {})
    tasks = queue.take(batch.id, "demo", 9, idle=True)
    before = sizes(engine)
    for column in ("results RENAME COLUMN seconds", "tasks RENAME COLUMN losses"):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {column} TO gone")
        with pytest.raises(StoreFailed):
            queue.finish(batch.id, group(tasks))
        table, _, name = column.partition(" RENAME COLUMN ")
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {table} RENAME COLUMN gone TO {name}")
        assert sizes(engine) == before
        assert store.counts(batch.id) == Counts(4, 0, 0)
        assert all(store.report(task.key) is None for task in tasks)
        assert queue.take(batch.id, "demo", 9, idle=True) == []
    queue.finish(batch.id, group(tasks))
    assert store.counts(batch.id) == Counts(3, 4, 0, {"memorized": 2, "generalized": 1, "spurious": 1})


def test_known_confirmations_of_a_group_are_reused(store: Store, queue: Queue, engine: Engine) -> None:
    """Those that are there count at once, the others are to do."""
    earlier = store.create(entries(2), {})
    work_off(queue, earlier.id, lambda task: "memorized")
    with engine.begin() as connection:
        connection.execute(delete(ResultRow).where(ResultRow.key.in_([entry(0).key, entry(1).key])))
    batch = store.create(entries(3), {})
    queue.finish(batch.id, [finished(task, "memorized") for task in queue.take(batch.id, "demo", 9, idle=True)])
    assert store.counts(batch.id) == Counts(1, 5, 0, {"memorized": 3})
    assert [task.confirms for task in queue.take(batch.id, "demo", 9, idle=True)] == [entry(2).key]
    assert [row.second is not None for row in store.rows(batch.id)] == [True, True, False]


def test_groups_of_two_batches_do_not_wait_for_each_other(store: Store, queue: Queue, engine: Engine) -> None:
    """The same prompts in any order, kept at the same time: no deadlock."""
    barrier = threading.Barrier(2)
    for round in range(10):
        given = entries(60, tag=f"{round} ")
        works = []
        for order in (1, -1):
            batch, worker = store.create(given, {}), Queue(engine)
            tasks = worker.take(batch.id, "demo", 99, idle=True)[::order]
            works.append((worker, batch.id, [finished(task) for task in tasks]))

        def keep(worker: Queue, id_: str, done: list[Finished]) -> None:
            barrier.wait(LONG)
            worker.finish(id_, done)

        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(keep, *work) for work in works]:
                future.result(LONG)


# What was done before.


def test_results_of_an_earlier_batch_are_not_made_again(store: Store, queue: Queue) -> None:
    """Neither first audits nor confirmations; what failed there is tried again."""
    earlier = store.create(entries(4), {})
    *tasks, failing = queue.take(earlier.id, "demo", 9, idle=True)
    queue.fail(failing, "it broke", final=True)
    for task, verdict in zip(tasks, ("memorized", "generalized", "spurious"), strict=True):
        finish(queue, earlier.id, task, verdict)
    work_off(queue, earlier.id, lambda task: "memorized")

    batch = store.create(entries(5), {})
    assert store.counts(batch.id) == Counts(2, 3, 0, {"memorized": 1, "generalized": 1, "spurious": 1})
    flagged = queue.unconfirmed(batch.id, "demo")
    assert [task.key for task in flagged] == [tasks[0].key, tasks[2].key]
    assert queue.unconfirmed(batch.id, "other") == []
    for _ in range(2):
        queue.confirm(batch.id, [(task, confirmation_of(task)) for task in flagged])
    assert queue.unconfirmed(batch.id, "demo") == []
    assert store.counts(batch.id) == Counts(2, 5, 0, {"memorized": 1, "generalized": 1, "spurious": 1})
    assert [task.key for task in work_off(queue, batch.id)] == [failing.key, entry(4).key]
    rows = store.rows(batch.id)
    assert [row.first.verdict if row.first else None for row in rows] == [
        "memorized", "generalized", "spurious", "generalized", "generalized",
    ]  # fmt: skip
    assert [row.second.verdict if row.second else None for row in rows] == ["memorized", None, "memorized", None, None]


def test_confirmations_that_are_not_there_are_to_do(store: Store, queue: Queue) -> None:
    """An earlier batch may have left a flag unconfirmed."""
    earlier = store.create(entries(1), {})
    finish(queue, earlier.id, queue.take(earlier.id, "demo", 1, idle=True)[0], "spurious")
    batch = store.create(entries(1), {})
    (flagged,) = queue.unconfirmed(batch.id, "demo")
    queue.confirm(batch.id, [(flagged, confirmation_of(flagged))])
    (second,) = queue.take(batch.id, "demo", 9, idle=True)
    assert (second.key, second.confirms, second.prompt) == (confirmation_of(flagged), flagged.key, flagged.prompt)
    # The earlier batch has it, too, once it is there.
    finish(queue, batch.id, second, "spurious")
    queue.recover(earlier.id, all_workers=True)
    assert store.counts(earlier.id) == Counts(0, 2, 0, {"spurious": 1})


def test_answers_that_came_since_are_not_made_again(store: Store, queue: Queue) -> None:
    """Another batch had them first: they count at once, and flags among them are confirmed, as far as they are not."""
    batch, other = store.create(entries(6), {}), store.create(entries(4), {})
    tasks = queue.take(other.id, "demo", 9, idle=True)
    queue.finish(other.id, group(tasks))
    finish(queue, other.id, queue.take(other.id, "demo", 1, idle=True)[0], "spurious")
    taken = queue.take(batch.id, "demo", 2, idle=True, confirmation=confirmation_of)
    assert [task.key for task in taken] == [one.key for one in entries(6)[4:]]
    assert store.counts(batch.id) == Counts(4, 5, 0, {"memorized": 2, "generalized": 1, "spurious": 1})
    assert queue.unconfirmed(batch.id, "demo") == []
    queue.finish(batch.id, [finished(task) for task in taken])
    seconds = queue.take(batch.id, "demo", 9, idle=True, confirmation=confirmation_of)
    assert [task.confirms for task in seconds] == [tasks[2].key, tasks[3].key]
    # A second audit that another batch has done brings no third one.
    queue.put_back(seconds)
    work_off(queue, other.id, lambda task: "memorized")
    assert queue.take(batch.id, "demo", 9, idle=True, confirmation=confirmation_of) == []
    assert store.counts(batch.id).open == 0
    assert all(row.second for row in store.rows(batch.id)[:4] if row.first and row.first.flagged)


def test_flags_that_come_while_others_are_confirmed(store: Store, queue: Queue) -> None:
    """They are confirmed, too."""
    earlier = store.create(entries(1), {})
    finish(queue, earlier.id, queue.take(earlier.id, "demo", 1, idle=True)[0], "spurious")
    batch, other = store.create(entries(2), {}), store.create(entries(2)[1:], {})
    flagged = queue.unconfirmed(batch.id, "demo")
    finish(queue, other.id, queue.take(other.id, "demo", 1, idle=True)[0], "memorized")
    queue.confirm(batch.id, [(task, confirmation_of(task)) for task in flagged])
    seconds = [queue.take(batch.id, "demo", 9, idle=True, confirmation=confirmation_of) for _ in range(2)]
    assert [[task.confirms for task in some] for some in seconds] == [[one.key] for one in entries(2)]


def test_a_flag_that_was_confirmed_before_is_confirmed_at_once(store: Store, queue: Queue, engine: Engine) -> None:
    """Where the first audit's result was deleted and made again."""
    earlier = store.create(entries(1), {})
    work_off(queue, earlier.id, lambda task: "memorized")
    with engine.begin() as connection:
        connection.execute(delete(ResultRow).where(ResultRow.key == entry(0).key))
    batch = store.create(entries(1), {})
    finish(queue, batch.id, queue.take(batch.id, "demo", 1, idle=True)[0], "memorized")
    assert store.counts(batch.id) == Counts(0, 2, 0, {"memorized": 1})


def test_a_result_is_kept_once(store: Store, queue: Queue) -> None:
    """Of two batches at work on the same prompts, the first one to be done decides."""
    first, second = store.create(entries(1), {}), store.create(entries(1), {})
    (one,), (other,) = (queue.take(batch.id, "demo", 1, idle=True) for batch in (first, second))
    queue.finish(first.id, [Finished(one, report(content="first"), confirmation_of(one))])
    queue.finish(second.id, [Finished(other, report(content="second"), confirmation_of(other))])
    kept = store.report(one.key)
    assert kept is not None
    assert list(kept.reasons) == ["first"]
    assert store.counts(second.id) == Counts(0, 1, 0, {"generalized": 1})
