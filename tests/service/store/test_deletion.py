"""Deleting a batch, and what happens meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from audit.errors import NotFound
from service.store.engine import connect
from service.store.queue import Queue
from service.store.records import Batch, Counts, Entry
from service.store.store import Store
from tests.service.store.helpers import LONG, entries, finish, finished, key_of, sizes, work_off


def test_deleting_a_batch_deletes_what_no_other_has(store: Store, queue: Queue, engine: Engine) -> None:
    """Its results, too, and those of confirmations."""
    kept, deleted = store.create(entries(3), {}), store.create(entries(6)[2:], {})
    for batch in (kept, deleted):
        work_off(queue, batch.id, lambda task: "memorized")
    reports = {one.key: store.report(one.key) for one in entries(3)}
    store.delete(deleted.id)
    assert sizes(engine) == {"batches": 1, "items": 3, "tasks": 6, "results": 6}
    assert {key: store.report(key) for key in reports} == reports
    assert all(row.first and row.second for row in store.rows(kept.id))
    with pytest.raises(NotFound):
        store.delete(deleted.id)
    store.delete(kept.id)
    assert set(sizes(engine).values()) == {0}


def test_a_result_that_comes_after_deletion_is_not_kept(store: Store, queue: Queue, engine: Engine) -> None:
    """Nobody would ever delete it."""
    batch = store.create(entries(4), {})
    tasks = queue.take(batch.id, "demo", 9, idle=True)
    store.delete(batch.id)
    finish(queue, batch.id, tasks[0], "memorized")
    finish(queue, batch.id, tasks[1], "generalized")
    queue.fail(tasks[2], "it broke")
    queue.put_back(tasks[3:])
    assert set(sizes(engine).values()) == {0}


def test_a_group_loses_only_what_was_deleted(store: Store, queue: Queue, engine: Engine) -> None:
    """The rest of it is kept, with its confirmations."""
    kept, deleted = store.create(entries(2), {}), store.create(entries(2, tag="deleted "), {})
    tasks = [task for batch in (deleted, kept) for task in queue.take(batch.id, "demo", 9, idle=True)]
    store.delete(deleted.id)
    queue.finish(kept.id, [finished(task, "memorized") for task in tasks])
    assert sizes(engine) == {"batches": 1, "items": 2, "tasks": 4, "results": 2}
    assert store.counts(kept.id) == Counts(2, 2, 0, {"memorized": 2})


def test_what_comes_late_is_not_taken_for_another_batch_s(store: Store, queue: Queue, engine: Engine) -> None:
    """A task that was deleted never has a namesake."""
    deleted = store.create(entries(3, tag="deleted "), {})
    late = queue.take(deleted.id, "demo", 9, idle=True)
    store.delete(deleted.id)
    batch = store.create(entries(3), {})
    tasks = queue.take(batch.id, "demo", 9, idle=True)
    assert {task.id for task in late}.isdisjoint(task.id for task in tasks)
    queue.finish(batch.id, [finished(late[0], "memorized")])
    queue.fail(late[1], "it broke", final=True)
    queue.lose(late[2:])
    queue.put_back(late)
    assert store.counts(batch.id) == Counts(3, 0, 0)
    assert queue.take(batch.id, "demo", 9, idle=True) == []
    assert sizes(engine) == {"batches": 1, "items": 3, "tasks": 3, "results": 0}


@contextmanager
def meanwhile(engine: Engine, action: Callable[[], object]) -> Iterator[None]:
    """Something that another thread does in the middle of a deletion, before it is committed, as far as it can."""
    begun: list[Future[object]] = []
    with ThreadPoolExecutor(1) as pool:

        def interfere(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if statement.startswith("DELETE FROM batches"):
                begun.append(pool.submit(action))
                wait(begun, timeout=0.5)

        event.listen(engine, "before_cursor_execute", interfere)
        yield
        event.remove(engine, "before_cursor_execute", interfere)
        (one,) = begun
        one.result(LONG)


def test_a_result_that_comes_during_deletion_is_not_kept(store: Store, queue: Queue, engine: Engine, url: str) -> None:
    """Nor one that is there just before the batch is gone."""
    batch = store.create(entries(1), {})
    (task,) = queue.take(batch.id, "demo", 1, idle=True)
    other = connect(url)
    with meanwhile(engine, lambda: finish(Queue(other), batch.id, task)):
        store.delete(batch.id)
    other.dispose()
    assert set(sizes(engine).values()) == {0}


def test_a_batch_that_comes_during_deletion_is_whole(store: Store, queue: Queue, engine: Engine, url: str) -> None:
    """It does not count on results that are being deleted."""
    batch = store.create(entries(3), {})
    work_off(queue, batch.id, lambda task: "memorized")
    other = Store(connect(url))
    with meanwhile(engine, lambda: other.create(entries(3), {})):
        store.delete(batch.id)
    other.close()
    (created,) = store.batches()
    work_off(queue, created.id)
    assert all(row.first for row in store.rows(created.id))


def test_deleted_bytes_are_gone_from_the_files(tmp_path: Path) -> None:
    """From SQLite's file and its log, while the store is open; what belongs to another batch stays."""
    engine = connect(f"sqlite:///{tmp_path}/basin.db")
    store, queue = Store(engine), Queue(engine)
    rng = random.Random(0)

    def batch_of(mark: str, count: int) -> Batch:
        made = store.create(
            [
                Entry("demo", number, f"{mark} {'x' * rng.randrange(300)}", key_of(f"{mark}{number}"), {"note": mark})
                for number in range(count)
            ],
            {"mark": mark},
            request_id=mark,
        )
        for task in queue.take(made.id, "demo", count, idle=True):
            content = mark * rng.randrange(1, 1000)
            queue.finish(made.id, [finished(task, "memorized", content=content)])
        for task in queue.take(made.id, "demo", count // 2, idle=True):
            queue.fail(task, f"{mark} broke")
        return made

    def found(mark: str) -> list[str]:
        return sorted(file.name for file in tmp_path.iterdir() if mark.encode() in file.read_bytes())

    deleted, kept, other = batch_of("SECRET", 150), batch_of("PUBLIC", 150), batch_of("HIDDEN", 150)
    assert found("SECRET") == ["basin.db"]
    assert found("HIDDEN") == ["basin.db", "basin.db-wal"]
    reader = connect(f"sqlite:///{tmp_path}/basin.db")
    Store(reader).batches()
    store.delete(other.id)
    assert found("HIDDEN") == []
    assert found("SECRET") == found("PUBLIC") == ["basin.db"]
    store.delete(deleted.id)
    assert found("SECRET") == []
    assert len(store.rows(kept.id)) == 150
    for one in (engine, reader):
        one.dispose()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["basin.db"]
