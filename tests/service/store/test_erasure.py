"""Deletion by prompt and by age, and what is left of it in the files of SQLite and PostgreSQL."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event

from audit.errors import InvalidInput, NotFound
from service.store import deletion
from service.store.deletion import (
    Deleted,
    count_older,
    count_prompt,
    delete_batch,
    delete_older,
    delete_prompt,
    forget,
)
from service.store.engine import connect
from service.store.queue import Queue
from service.store.records import CANCELLED, DELETING, DONE, PAUSED, RUNNING, Counts, Entry
from service.store.retention import Retention, expire
from service.store.store import Store
from tests.service.postgres import PASSWORD
from tests.service.store.aged import (
    NOW,
    content,
    ended,
    files_with,
    full_report,
    given,
    stored,
    texts_of,
    work_for_ever,
    work_off,
)
from tests.service.store.helpers import key_of, sizes, started, told

TEXTS = ["a red shirt", "a blue dress", "something else"]


def test_a_prompt_goes_from_every_batch(engine: Engine) -> None:
    """With its duplicates and its results, of first and second audits; everything else stays, and counts are right."""
    store = Store(engine)
    one = ended(engine, [TEXTS[0], *TEXTS], 10)
    other = ended(engine, TEXTS[:2], 5)
    kept = {text: stored(engine, text) for text in TEXTS[1:]}
    assert count_prompt(engine, TEXTS[0]) == 3
    assert delete_prompt(engine, TEXTS[0]) == Deleted(prompts=3, results=2)
    assert TEXTS[0] not in str(content(engine))
    assert (texts_of(engine, one.id), texts_of(engine, other.id)) == (TEXTS[1:], [TEXTS[1]])
    assert (store.batch(one.id).prompts, store.batch(other.id).prompts) == (2, 1)
    assert store.counts(one.id) == Counts(0, 4, 0, {"memorized": 2})
    assert {text: stored(engine, text) for text in TEXTS[1:]} == kept
    assert sizes(engine) == {"batches": 2, "items": 3, "tasks": 6, "results": 4}
    assert count_prompt(engine, TEXTS[0]) == 0
    assert delete_prompt(engine, TEXTS[0]) == Deleted()


@pytest.mark.parametrize("text", ["", "a red", "A red shirt", "a red shirt ", "%", "a_red_shirt", "'; --"])
def test_only_exactly_that_prompt_goes(engine: Engine, text: str) -> None:
    """Nothing that looks alike, and no prompt that was removed before."""
    ended(engine, TEXTS[:1], 10)
    old = ended(engine, TEXTS[1:], 40)
    expire(engine, Retention(prompts=30), NOW)
    before = content(engine)
    assert delete_prompt(engine, text) == Deleted()
    assert content(engine) == before
    assert texts_of(engine, old.id) == [""] * 2


def test_a_prompt_goes_from_batches_that_lost_its_text(engine: Engine) -> None:
    """As long as one batch still says what it was: the key is the same."""
    old, young = ended(engine, TEXTS, 40), ended(engine, TEXTS[:1], 10)
    expire(engine, Retention(prompts=30), NOW)
    assert delete_prompt(engine, TEXTS[0]) == Deleted(prompts=2, results=2)
    assert stored(engine, TEXTS[0]) is None
    assert (Store(engine).batch(old.id).prompts, Store(engine).batch(young.id).prompts) == (2, 0)


def test_second_audits_go_though_only_their_first_is_known(engine: Engine) -> None:
    """The old batch lost the text, the young one has not confirmed its flag yet, and a third began with its seeds."""
    store = Store(engine)
    old = ended(engine, TEXTS[:1], 40)
    third = store.create([Entry("demo", 0, TEXTS[0], key_of(f"again {key_of(TEXTS[0])}"))], {})
    store.set_state(third.id, DONE)
    expire(engine, Retention(prompts=30), NOW + timedelta(days=100))
    young = store.create(given(TEXTS[:1]), {})
    assert sizes(engine) == {"batches": 3, "items": 3, "tasks": 4, "results": 2}
    assert delete_prompt(engine, TEXTS[0]) == Deleted(prompts=3, results=2)
    assert sizes(engine) == {"batches": 3, "items": 0, "tasks": 0, "results": 0}
    assert [store.batch(one.id).prompts for one in (old, third, young)] == [0, 0, 0]


def test_many_prompts_go_in_chunks(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same text under many settings has as many keys."""
    monkeypatch.setattr(deletion, "ROWS", 3)
    entries = [Entry("demo", place, "the same", key_of(f"{place}")) for place in range(20)]
    store = Store(engine)
    batch = store.create(entries, {})
    work_off(Queue(engine), batch.id)
    assert delete_prompt(engine, "the same") == Deleted(prompts=20, results=40)
    assert sizes(engine) == {"batches": 1, "items": 0, "tasks": 0, "results": 0}
    assert store.batch(batch.id).prompts == 0


def test_a_prompt_is_deleted_while_its_batch_is_at_work(engine: Engine, url: str) -> None:
    """Whoever works on it drops its answer, and does all the rest."""
    store, queue = Store(engine), Queue(engine)
    batch = store.create(given([f"prompt {number}" for number in range(30)]), {})
    (task,) = queue.take(batch.id, "demo", 1, idle=True)
    with started(work_for_ever, url, batch.id) as (_, pipe):
        done = [told(pipe)]
        for number in range(0, 30, 3):
            delete_prompt(engine, f"prompt {number}")
        while (key := told(pipe)) is not None:
            done.append(key)
    queue.put_back([task])
    work_off(queue, batch.id)
    assert texts_of(engine, batch.id) == [f"prompt {number}" for number in range(30) if number % 3]
    assert store.batch(batch.id).prompts == 20
    assert sizes(engine) == {"batches": 1, "items": 20, "tasks": 40, "results": 40}
    assert len(done) == len(set(done))


def test_who_asks_again_gets_no_deleted_prompt_back(engine: Engine) -> None:
    """The same request finds the batch without it."""
    batch = ended(engine, TEXTS, 10, request_id="the same")
    delete_prompt(engine, TEXTS[0])
    assert Store(engine).create(given(TEXTS), {}, request_id="the same").id == batch.id
    assert texts_of(engine, batch.id) == TEXTS[1:]
    assert TEXTS[0] not in str(content(engine))


def test_old_batches_go(engine: Engine) -> None:
    """Those that ended, also the cancelled ones; not those that never did."""
    ages = {CANCELLED: 31, DONE: 32, RUNNING: 33, PAUSED: 34}
    made = {state: ended(engine, [f"a {state} prompt"], age, state=state).id for state, age in ages.items()}
    young = ended(engine, TEXTS, 29).id
    before = NOW - timedelta(days=30)
    assert count_older(engine, before) == 2
    assert delete_older(engine, before) == Deleted(batches=2, prompts=2, results=4)
    assert {one.id for one in Store(engine).batches()} == {made[RUNNING], made[PAUSED], young}
    assert count_older(engine, before) == 0


def test_a_batch_that_goes_on_meanwhile_is_kept(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not old any more."""
    store, delete_one = Store(engine), deletion._delete_batch
    first, second = (ended(engine, [text], age).id for text, age in zip(TEXTS, (40, 39), strict=False))

    def revive(*arguments: Any) -> Deleted | None:
        found = delete_one(*arguments)
        store.set_state(second, RUNNING)
        return found

    monkeypatch.setattr(deletion, "_delete_batch", revive)
    assert delete_older(engine, NOW) == Deleted(batches=1, prompts=1, results=2)
    assert first not in str(content(engine))
    assert texts_of(engine, second) == TEXTS[1:2]


def test_a_deletion_that_was_interrupted_is_ended(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody works on what is left of the batch, or takes it for a whole one; deleting it again ends it."""
    monkeypatch.setattr(deletion, "ROWS", 2)
    store, queue = Store(engine), Queue(engine)
    batch = store.create(given(TEXTS), {}, request_id="the same")
    work_off(queue, batch.id)
    left = [2]

    def kill(connection: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    event.listen(engine, "commit", kill)
    with pytest.raises(KeyboardInterrupt):
        store.delete(batch.id)
    event.remove(engine, "commit", kill)
    found = store.batch(batch.id)
    assert (found.state, found.note) == (CANCELLED, DELETING)
    assert 0 < sizes(engine)["tasks"] < 6
    with pytest.raises(InvalidInput) as refused:
        store.create(given(TEXTS), {}, request_id="the same")
    assert refused.value.reason == "BATCH_BEING_DELETED"
    store.delete(batch.id)
    assert set(sizes(engine).values()) == {0}
    assert store.create(given(TEXTS), {}, request_id="the same").prompts == 3


def test_two_delete_the_same(engine: Engine) -> None:
    """One of them may find nothing any more; nothing is left, and nothing of another batch is missing."""
    batch, kept = ended(engine, TEXTS[:2], 40), ended(engine, TEXTS[1:], 10)
    barrier = threading.Barrier(2)

    def delete() -> None:
        barrier.wait(60)
        with suppress(NotFound):
            delete_batch(engine, batch.id)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(delete) for _ in range(2)]:
            future.result(60)
    assert sizes(engine) == {"batches": 1, "items": 2, "tasks": 4, "results": 4}
    assert all(row.first and row.second for row in Store(engine).rows(kept.id))


# What is left in the files.


def test_sqlite_gives_its_room_back(tmp_path: Path) -> None:
    """The file is cut, while another process has it open, and holds nothing of what was deleted."""
    engine, reader = (connect(f"sqlite:///{tmp_path}/basin.db") for _ in range(2))
    rng = random.Random(0)
    ended(
        engine, ["SECRET one", *(f"prompt {number}" for number in range(50))], 40,
        made=lambda task: full_report(task, picture=rng.randbytes(20_000)),
    )  # fmt: skip
    kept = ended(engine, TEXTS, 10)
    Store(reader).batches()
    file = tmp_path / "basin.db"
    full = file.stat().st_size
    delete_prompt(engine, "SECRET one")
    assert forget(engine) == []
    assert files_with(tmp_path, "SECRET") == []
    delete_older(engine, NOW - timedelta(days=30))
    assert forget(engine) == []
    assert file.stat().st_size < full / 10
    assert (tmp_path / "basin.db-wal").stat().st_size == 0
    assert texts_of(reader, kept.id) == TEXTS
    for one in (engine, reader):
        one.dispose()


def test_a_reader_of_sqlite_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reads is still in the log; once it is done, the log is emptied."""
    monkeypatch.setattr("service.store.engine.PATIENCE", 0.1)
    engine = connect(f"sqlite:///{tmp_path}/basin.db")
    batch = ended(engine, ["SECRET one"], 40)
    reader = connect(f"sqlite:///{tmp_path}/basin.db")
    with reader.execution_options(basin_reads=True).connect() as connection:
        connection.exec_driver_sql("SELECT * FROM items").all()
        delete_batch(engine, batch.id)
        (left,) = forget(engine)
        assert "SQLite's log" in left
        assert files_with(tmp_path, "SECRET") != []
    assert forget(engine) == []
    assert files_with(tmp_path, "SECRET") == []
    for one in (engine, reader):
        one.dispose()


def plain(url: str) -> psycopg.Connection[tuple[object, ...]]:
    """A connection past our code."""
    return psycopg.connect(url, autocommit=True)


def folder_of(url: str) -> Path:
    """Where a database keeps its files."""
    with plain(url) as connection:
        row = connection.execute(
            "SELECT current_setting('data_directory'), oid FROM pg_database WHERE datname = current_database()"
        ).fetchone()
        connection.execute("CHECKPOINT")
    assert row is not None
    return Path(str(row[0])) / "base" / str(row[1])


def dead_rows(url: str) -> int:
    """Of all tables, with their long values."""
    with plain(url) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pgstattuple")
        rows = connection.execute(
            "SELECT (pgstattuple(oid)).dead_tuple_count FROM pg_class WHERE relname IN ('batches', 'items', 'tasks', "
            "'results') UNION ALL SELECT (pgstattuple(reltoastrelid)).dead_tuple_count FROM pg_class "
            "WHERE relname IN ('items', 'results')"
        ).fetchall()
    return sum(int(str(count)) for (count,) in rows)


def test_postgresql_has_no_dead_rows_left(database: str) -> None:
    """They are vacuumed after every deletion and expiry, while others work."""
    engine = connect(database)
    batch, kept = ended(engine, [f"SECRET {number}" for number in range(300)], 40), ended(engine, TEXTS, 10)
    ended(engine, [f"HIDDEN {number}" for number in range(300)], 40)
    delete_batch(engine, batch.id)
    assert dead_rows(database) > 300
    assert forget(engine) == []
    assert dead_rows(database) == 0
    assert expire(engine, Retention(prompts=30, samples=7), NOW).left == ()
    assert dead_rows(database) == 0
    assert texts_of(engine, kept.id) == TEXTS
    engine.dispose()


def test_postgresql_written_anew_holds_no_deleted_byte(database: str) -> None:
    """In none of the database's files, not even in the planner's statistics."""
    engine = connect(database)
    rng = random.Random(0)
    old = ended(
        engine, [f"SECRET {number} {'x' * rng.randrange(3000)}" for number in range(100)], 40,
        made=lambda task: full_report(task, picture=b"FACE" + rng.randbytes(rng.randrange(1, 9000))),
    )  # fmt: skip
    kept = ended(engine, ["HIDDEN one", "PUBLIC one"], 10)
    with plain(database) as connection:
        connection.execute("ANALYZE")
    folder = folder_of(database)
    assert all(files_with(folder, mark) for mark in ("SECRET", "HIDDEN", "PUBLIC"))
    delete_batch(engine, old.id)
    delete_prompt(engine, "HIDDEN one")
    assert forget(engine, rewrite=True) == []
    assert folder_of(database) == folder
    assert files_with(folder, "SECRET") == files_with(folder, "FACE") == files_with(folder, "HIDDEN") == []
    assert files_with(folder, "PUBLIC")
    assert texts_of(engine, kept.id) == ["PUBLIC one"]
    engine.dispose()


def test_postgresql_in_use_is_not_waited_for(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone else would wait behind us: the rows are gone, and the rest is told."""
    monkeypatch.setattr(deletion, "LOCK_SECONDS", 0.2)
    engine, other = connect(database), connect(database)
    batch = ended(engine, ["SECRET one"], 40)
    with other.begin() as connection:
        connection.exec_driver_sql("SELECT * FROM batches")
        delete_batch(engine, batch.id)
        (left,) = forget(engine, rewrite=True)
        assert "in use" in left
    assert Store(engine).batches() == []
    assert forget(engine, rewrite=True) == []
    for one in (engine, other):
        one.dispose()


def test_postgresql_may_forbid_to_vacuum(database: str) -> None:
    """Whoever does not own the tables may delete from them all the same, and is told what is left to the server."""
    owner = connect(database)
    batch = ended(owner, TEXTS, 40)
    with plain(database) as connection:
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO guest")
    engine = connect(database.replace(f"//basin:{PASSWORD}@", "//guest:guest@"))
    delete_batch(engine, batch.id)
    left = forget(engine, rewrite=True)
    assert len(left) == 4
    assert all("vacuum" in line for line in left)
    assert set(sizes(owner).values()) == {0}
    engine.dispose()
    with plain(database) as connection:
        connection.execute("DROP OWNED BY guest; DROP ROLE guest")
    owner.dispose()


def test_ages_are_told_in_any_zone(engine: Engine) -> None:
    """A time without its zone would be taken for that of this machine."""
    ended(engine, TEXTS, 0)
    assert count_older(engine, NOW) == 0
    assert count_older(engine, datetime(2030, 1, 1, 12, 0, 1, tzinfo=UTC)) == 1
