"""Workers that are seen keep their tasks; those of lost workers are anyone's."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import Engine, event, select, update

from audit.batch.tasks import Task
from service.store.queue import LEASE, MOST_ATTEMPTS, MOST_LOSSES, Queue
from service.store.records import DONE, FAILED, PENDING, RUNNING, Counts
from service.store.schema import TaskRow, WorkerRow
from service.store.store import Store
from tests.service.store.helpers import entries, examples, finish, finished, work_off


def unseen(engine: Engine, queue: Queue, seconds: float = 2 * LEASE) -> None:
    """Let a worker not be seen for so long."""
    with engine.begin() as connection:
        seen = datetime.now(UTC) - timedelta(seconds=seconds)
        changed = connection.execute(update(WorkerRow).where(WorkerRow.id == queue.worker).values(seen=seen))
        assert changed.rowcount == 1


def states(engine: Engine) -> dict[str, tuple[str, int, int]]:
    """State, errors and losses of every task."""
    with engine.connect() as connection:
        return {
            row.key: (row.state, row.attempts, row.losses)
            for row in connection.execute(select(TaskRow.key, TaskRow.state, TaskRow.attempts, TaskRow.losses))
        }


def test_a_worker_that_is_not_seen_loses_its_tasks(store: Store, queue: Queue, engine: Engine) -> None:
    """To whoever looks after its lease, and not before; what others work on is left alone."""
    batch, other = store.create(entries(3), {}), Queue(engine)
    lost, kept = queue.take(batch.id, "demo", 2, idle=True), other.take(batch.id, "demo", 1, idle=True)
    for seconds in (0, LEASE - 20):
        unseen(engine, queue, seconds)
        other.recover(batch.id)
        assert other.take(batch.id, "demo", 9, idle=True) == []
    unseen(engine, queue, LEASE + 1)
    other.recover(batch.id)
    assert other.take(batch.id, "demo", 9, idle=False) == []
    assert other.take(batch.id, "demo", 9, idle=True) == lost[:1]
    assert other.take(batch.id, "demo", 9, idle=True) == lost[1:]
    assert states(engine)[kept[0].key] == (RUNNING, 0, 0)
    assert store.counts(batch.id) == Counts(3, 0, 0)


def test_others_count_while_they_are_seen(store: Store, queue: Queue, engine: Engine) -> None:
    """A worker is alone unless another one took tasks, or told that it lives, within a lease."""
    batch, other = store.create(entries(2), {}), Queue(engine)
    queue.take(batch.id, "demo", 1, idle=True)
    assert queue.alone()
    other.take(batch.id, "demo", 1, idle=True)
    assert not queue.alone()
    unseen(engine, other, LEASE + 1)
    assert queue.alone()
    assert not other.alone()


def test_recovery_is_of_one_batch(store: Store, queue: Queue, engine: Engine) -> None:
    """What a lost worker did for another batch waits for whoever works on that."""
    batch, another = store.create(entries(1), {}), store.create(entries(1, tag="another "), {})
    other = Queue(engine)
    for one in (batch, another):
        queue.take(one.id, "demo", 1, idle=True)
    unseen(engine, queue)
    other.recover(batch.id)
    assert len(other.take(batch.id, "demo", 9, idle=True)) == 1
    assert other.take(another.id, "demo", 9, idle=True) == []


def test_a_worker_that_beats_keeps_its_tasks(store: Store, queue: Queue, engine: Engine) -> None:
    """However long they take."""
    batch, beating = store.create(entries(1), {}), Queue(engine, lease=0)
    beating.take(batch.id, "demo", 1, idle=True)
    for _ in range(3):
        unseen(engine, beating)
        beating.beat()
        queue.recover(batch.id)
        assert queue.take(batch.id, "demo", 9, idle=True) == []
    unseen(engine, beating)
    queue.recover(batch.id)
    assert len(queue.take(batch.id, "demo", 9, idle=True)) == 1


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """What the database is asked meanwhile."""
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        asked.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield asked
    event.remove(engine, "before_cursor_execute", note)


def test_beats_are_few(store: Store, queue: Queue, engine: Engine) -> None:
    """A worker that was seen a moment ago asks the database nothing."""
    queue.take(store.create(entries(1), {}).id, "demo", 1, idle=True)
    with statements(engine) as asked:
        for _ in range(100):
            queue.beat()
    assert asked == []


def test_workers_of_yesterday_are_forgotten(store: Store, queue: Queue, engine: Engine) -> None:
    """Others are not."""
    batch, workers = store.create(entries(3), {}), [queue, Queue(engine), Queue(engine)]
    for worker in workers:
        worker.take(batch.id, "demo", 1, idle=True)
    unseen(engine, workers[1], 2 * LEASE)
    unseen(engine, workers[2], timedelta(days=1, minutes=1).total_seconds())
    queue.recover(batch.id)
    with engine.connect() as connection:
        assert set(connection.scalars(select(WorkerRow.id))) == {workers[0].worker, workers[1].worker}


def test_a_late_worker_does_not_touch_what_another_has_since_taken(store: Store, queue: Queue, engine: Engine) -> None:
    """Neither giving it back, nor an error, nor a loss of its own counts; nor once it is done."""
    batch, other = store.create(entries(1), {}), Queue(engine)
    (task,) = queue.take(batch.id, "demo", 1, idle=True)
    unseen(engine, queue)
    other.recover(batch.id)

    def be_late() -> None:
        before = states(engine)
        queue.put_back([task])
        queue.fail(task, "too late")
        queue.fail(task, "too late", final=True)
        queue.lose([task])
        assert states(engine) == before

    be_late()  # while nobody has it
    assert other.take(batch.id, "demo", 1, idle=True) == [task]
    be_late()
    finish(other, batch.id, task)
    be_late()
    assert store.rows(batch.id)[0].error == ""
    assert store.counts(batch.id) == Counts(0, 1, 0, {"generalized": 1})


def test_what_a_late_worker_found_is_kept_once(store: Store, queue: Queue, engine: Engine) -> None:
    """Whoever is first decides; the other one's answer, and what it would have led to, is dropped."""
    batch, other = store.create(entries(1), {}), Queue(engine)
    (task,) = queue.take(batch.id, "demo", 1, idle=True)
    unseen(engine, queue)
    other.recover(batch.id)
    assert other.take(batch.id, "demo", 1, idle=True) == [task]
    queue.finish(batch.id, [finished(task, content="late")])
    other.put_back([task])  # it is done
    other.finish(batch.id, [finished(task, content="second")])
    kept = store.report(task.key)
    assert kept is not None
    assert list(kept.reasons) == ["late"]
    assert work_off(other, batch.id) == []
    assert store.counts(batch.id) == Counts(0, 1, 0, {"generalized": 1})


def test_lost_in_company_once_and_alone_three_times(store: Store, queue: Queue) -> None:
    """Then a task is set aside; those that were lost less often come first."""
    batch = store.create(entries(3), {})
    group = queue.take(batch.id, "demo", 3, idle=True)
    queue.lose(group)
    for losses in range(1, MOST_LOSSES):
        for task in group:
            assert queue.take(batch.id, "demo", 9, idle=False) == []
            assert queue.take(batch.id, "demo", 9, idle=True) == [task]
            assert store.counts(batch.id).failed == (group.index(task) if losses == MOST_LOSSES - 1 else 0)
            queue.lose([task])
    assert queue.take(batch.id, "demo", 9, idle=True) == []
    assert store.counts(batch.id) == Counts(0, 0, 3)
    assert all("lost" in row.error for row in store.rows(batch.id))


def test_tasks_are_lost_one_by_one(store: Store, queue: Queue) -> None:
    """Only those that are named."""
    batch = store.create(entries(3), {})
    group = queue.take(batch.id, "demo", 3, idle=True)
    queue.lose(group[1:2])
    queue.lose([])
    assert queue.take(batch.id, "demo", 9, idle=True) == group[1:2]
    assert store.counts(batch.id) == Counts(3, 0, 0)


@dataclass
class Known:
    """What a task should be like."""

    state: str = PENDING
    holder: int = -1
    attempts: int = 0
    losses: int = 0


WORKERS = 3
#: Who does what with which of all the tasks that it ever took.
steps = st.tuples(
    st.integers(0, WORKERS - 1),
    st.sampled_from(["take", "take", "finish", "fail", "put back", "lose", "vanish"]),
    st.integers(0, 9),
)


@examples
@given(st.lists(steps, max_size=40))
@example([(0, "take", 2), (0, "vanish", 0), (1, "take", 0), (0, "put back", 0), (2, "take", 0), (0, "finish", 0)])
def test_workers_do_not_undo_each_others_work(store: Store, engine: Engine, steps: list[tuple[int, str, int]]) -> None:
    """However late they are with whatever they do, a task is its last taker's, or done."""
    given = entries(4, tag=uuid.uuid4().hex)
    batch = store.create(given, {})
    known = {one.key: Known() for one in given}
    workers = [Queue(engine) for _ in range(WORKERS)]
    ever: list[list[Task]] = [[] for _ in workers]

    def lose(one: Known) -> None:
        one.losses += 1
        one.state = FAILED if one.losses == MOST_LOSSES else PENDING

    for who, action, number in steps:
        worker = workers[who]
        if action == "take":
            pending = sorted((key for key in known if known[key].state == PENDING), key=lambda key: known[key].losses)
            fresh = [key for key in pending if not known[key].losses]
            expected = fresh[: number + 1] or pending[:1]
            taken = worker.take(batch.id, "demo", number + 1, idle=True)
            assert [task.key for task in taken] == expected
            for key in expected:
                known[key].state, known[key].holder = RUNNING, who
            ever[who] += taken
        elif not ever[who]:
            continue
        elif action == "vanish":
            unseen(engine, worker)
            workers[who - 1].recover(batch.id)
            for one in known.values():
                if (one.state, one.holder) == (RUNNING, who):
                    lose(one)
        else:
            task = ever[who][number % len(ever[who])]
            one = known[task.key]
            mine = (one.state, one.holder) == (RUNNING, who)
            if action == "finish":
                finish(worker, batch.id, task)
                one.state = DONE
            elif action == "fail":
                worker.fail(task, "it broke")
                if mine:
                    one.attempts += 1
                    one.state = FAILED if one.attempts == MOST_ATTEMPTS else PENDING
            elif action == "put back":
                worker.put_back([task])
                one.state = PENDING if mine else one.state
            else:
                worker.lose([task])
                if mine:
                    lose(one)
        assert {key: found for key, found in states(engine).items() if key in known} == {
            key: (one.state, one.attempts, one.losses) for key, one in known.items()
        }
