"""Threads and processes that share a store, kills, full disks, connections that end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select

from audit.errors import AuditError
from service.store.engine import StoreFailed, connect
from service.store.queue import Queue
from service.store.records import DONE, RUNNING, Counts, Entry
from service.store.schema import ResultRow, TaskRow
from service.store.store import CHUNK, Store
from tests.service.postgres import Postgres
from tests.service.store.helpers import (
    LONG,
    create_and_hang,
    entries,
    entry,
    fill,
    finish,
    finished,
    race,
    sizes,
    started,
    told,
    work,
    work_off,
)

# Several at once.


def test_threads_never_take_the_same_task(store: Store, queue: Queue) -> None:
    """However they interleave."""
    batch = store.create(entries(120), {})
    barrier = threading.Barrier(4)

    def take() -> list[int]:
        barrier.wait(LONG)
        taken: list[int] = []
        while tasks := queue.take(batch.id, "demo", 1, idle=True):
            taken += [task.id for task in tasks]
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [one for future in [pool.submit(take) for _ in range(4)] for one in future.result(LONG)]
    assert len(taken) == len(set(taken)) == 120


def test_threads_with_the_same_request_make_one_batch(store: Store, engine: Engine) -> None:
    """Whoever comes first makes it, the others get it."""
    barrier = threading.Barrier(4)

    def create() -> str:
        barrier.wait(LONG)
        return store.create(entries(50), {}, request_id="request").id

    with ThreadPoolExecutor(4) as pool:
        made = {future.result(LONG) for future in [pool.submit(create) for _ in range(4)]}
    assert len(made) == 1
    assert sizes(engine) == {"batches": 1, "items": 50, "tasks": 50, "results": 0}


def test_processes_share_a_store_from_its_first_moment(url: str) -> None:
    """They make its tables, a batch by the same request, and take its tasks: each of these happens once."""
    with ExitStack() as stack:
        pipes = [stack.enter_context(started(race, url, 200))[1] for _ in range(3)]
        assert [told(pipe) for pipe in pipes] == ["ready"] * 3
        for pipe in pipes:
            pipe.send("go")
        answers = [told(pipe) for pipe in pipes]
    assert len({id_ for id_, _ in answers}) == 1
    taken = [task for _, tasks in answers for task in tasks]
    assert len(taken) == len(set(taken)) == 200


# Crashes.


def test_a_killed_process_leaves_no_half_batch(url: str) -> None:
    """Nor a lock: the same request works at once."""
    with started(create_and_hang, url) as (process, pipe):
        assert told(pipe) == "inside"
        process.kill()
        process.join()
    engine = connect(url)
    store = Store(engine)
    assert set(sizes(engine).values()) == {0}
    assert store.create(entries(3), {}, request_id="hanging").prompts == 3
    store.close()


@pytest.mark.parametrize("kept", [1, 23])
def test_a_killed_process_loses_at_most_what_it_was_doing(
    store: Store, queue: Queue, engine: Engine, url: str, kept: int
) -> None:
    """What it said to have kept is there, with its confirmation; the rest is done by the next one."""
    batch = store.create(entries(40), {})
    acknowledged = []
    with started(work, url, batch.id) as (process, pipe):
        acknowledged += [told(pipe) for _ in range(kept)]
        process.kill()
        process.join()
        try:
            while True:
                acknowledged.append(told(pipe))
        except EOFError:
            pass
    assert all(store.report(key) is not None for key in acknowledged)
    with engine.connect() as connection:
        done = set(connection.execute(select(TaskRow.key).where(TaskRow.state == DONE)).scalars())
        results = set(connection.execute(select(ResultRow.key)).scalars())
        flagged = set(connection.execute(select(ResultRow.key).where(ResultRow.verdict == "memorized")).scalars())
        seconds = list(connection.execute(select(TaskRow.confirms).where(TaskRow.confirms != "")).scalars())
        running = connection.execute(select(func.count()).where(TaskRow.state == RUNNING)).scalar_one()
    assert done == results
    assert 0 <= len(done) - len(acknowledged) <= 1
    assert sorted(seconds) == sorted(key for key in flagged if key in {one.key for one in entries(40)})
    assert running <= 4
    queue.recover(batch.id, all_workers=True)
    again = work_off(queue, batch.id)
    assert done.isdisjoint(task.key for task in again)
    counts = store.counts(batch.id)
    assert (counts.open, counts.failed) == (0, 0)
    assert all(row.first for row in store.rows(batch.id))


def test_a_file_that_can_grow_no_further_loses_nothing(tmp_path: Path) -> None:
    """There is one clear line, what was acknowledged is there, and with room again the batch goes on."""
    url = f"sqlite:///{tmp_path}/basin.db"
    store = Store(connect(url))
    batch = store.create(entries(40), {})
    store.close()
    with started(fill, url, batch.id, 150_000) as (_, pipe):
        done, message = told(pipe)
    assert 0 < len(done) < 40
    assert message == f"the store {url}: disk I/O error"
    engine = connect(url)
    store, queue = Store(engine), Queue(engine)
    assert all(store.report(key) is not None for key in done)
    assert store.counts(batch.id).done == len(done)
    queue.recover(batch.id, all_workers=True)
    again = work_off(queue, batch.id)
    assert {task.key for task in again}.isdisjoint(done)
    assert store.counts(batch.id).open == 0
    store.close()


def test_a_full_disk_takes_back_what_it_has_no_room_for(tmp_path: Path) -> None:
    """A batch that does not fit is not there; nor is a result, whose task can be had again."""
    url = f"sqlite:///{tmp_path}/basin.db"
    engine = connect(url)
    store, queue = Store(engine), Queue(engine)
    small = store.create(entries(2), {})
    (task, _) = queue.take(small.id, "demo", 2, idle=True)
    before = sizes(engine)
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one() + 5
    engine.dispose()

    def limit(connection: Any, record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(engine, "connect", limit)
    for attempt in (
        lambda: store.create(entries(3 * CHUNK, tag="large "), {}),
        lambda: queue.finish(small.id, [finished(task, "memorized", content="x" * 100_000)]),
    ):
        with pytest.raises(StoreFailed) as full:
            attempt()
        assert str(full.value) == f"the store {url}: database or disk is full"
        assert sizes(engine) == before
    event.remove(engine, "connect", limit)
    engine.dispose()
    finish(queue, small.id, task)
    assert store.counts(small.id) == Counts(1, 1, 0, {"generalized": 1})
    store.close()


def test_a_connection_that_the_database_ended_is_made_again(postgres: Postgres) -> None:
    """Between two calls nobody notices; within one it fails as a whole, with a clear line."""
    url = postgres.create()
    store = Store(connect(url))
    batch = store.create(entries(2), {})
    database = url.rsplit("/", 1)[1]
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    postgres.execute(end)
    assert store.counts(batch.id) == Counts(2, 0, 0)

    def interrupted() -> Iterator[Entry]:
        yield from entries(CHUNK + 1, tag="more ")
        postgres.execute(end)
        yield entry(CHUNK + 1, tag="more ")

    with pytest.raises(StoreFailed, match=r"terminating connection|closed the connection") as failed:
        store.create(interrupted(), {})
    assert len(str(failed.value).splitlines()) == 1
    assert [one.id for one in store.batches()] == [batch.id]
    assert len(store.rows(batch.id)) == 2
    store.close()


def test_failures_do_not_tell_prompts(store: Store, engine: Engine) -> None:
    """A log may hold the whole chain of exceptions."""
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE items RENAME TO things")
    with pytest.raises(StoreFailed) as failed:
        store.create([replace(entry(0), prompt="a secret prompt", extra={"n": "a secret note"})], {})
    chain: list[BaseException | None] = [failed.value]
    while chain[-1] is not None:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    assert len(chain) > 2
    assert "secret" not in " ".join(map(repr, chain))
    assert isinstance(failed.value, AuditError)
