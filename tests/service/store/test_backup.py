"""Backups of SQLite and PostgreSQL, and the way back."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from sqlalchemy import Engine, func, select
from sqlalchemy.engine import make_url

from audit.errors import AuditError, InvalidInput, NotFound
from service.store import engine as engines
from service.store.backup import back_up, restore
from service.store.engine import StoreFailed, connect
from service.store.queue import Queue
from service.store.records import DONE
from service.store.schema import ItemRow, ResultRow, TaskRow
from service.store.store import Store
from tests.service.postgres import PASSWORD, Postgres
from tests.service.store.aged import (
    confirm_known,
    content,
    ended,
    full_report,
    given,
    open_tasks,
    texts_of,
    work_for_ever,
    work_off,
)
from tests.service.store.helpers import started, told

TEXTS = ["a red shirt", "Zoë\u2028🎨 \\ \t'", "something else"]


@pytest.fixture
def other(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Another place for a store, of the same kind, where there is none yet."""
    if url.startswith("sqlite"):
        return f"sqlite:///{tmp_path}/other/basin.db"
    return str(request.getfixturevalue("postgres").create())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where backups go."""
    return tmp_path / "backups" / "basin.backup"


def of(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All that a store holds."""
    engine = connect(url, make=False)
    found = content(engine)
    engine.dispose()
    return found


def refusal(kind: type[AuditError], *arguments: Any, **options: Any) -> str:
    """Why nothing is backed up or restored, in one line."""
    action, *rest = arguments
    with pytest.raises(kind) as refused:
        action(*rest, **options)
    assert len(str(refused.value).splitlines()) == 1
    assert PASSWORD not in str(refused.value)
    return str(refused.value)


def test_a_backup_holds_everything(engine: Engine, url: str, other: str, file: Path) -> None:
    """All rows of all tables, as they were; the file stands alone, and is no more than that."""
    ended(engine, TEXTS, 10)
    Store(engine).create(given(TEXTS), {"a": [1, None, "b"]}, request_id="open")
    Queue(engine).beat()
    before = content(engine)
    back_up(url, file)
    assert list(file.parent.iterdir()) == [file]
    ended(engine, ["later"], 10)
    restore(file, other)
    assert of(other) == before
    assert list(file.parent.iterdir()) == [file]
    assert content(engine) != before


def test_a_backup_of_a_store_at_work_is_consistent(engine: Engine, url: str, other: str, file: Path) -> None:
    """Whatever was acknowledged before is in it, and nothing by halves; restored, the batch goes on to its end."""
    texts = [f"prompt {number}" for number in range(150)]
    batch = Store(engine).create(given(texts), {}, request_id="a batch")
    with started(work_for_ever, url, batch.id) as (process, pipe):
        acknowledged = [told(pipe) for _ in range(20)]
        back_up(url, file)
        while pipe.poll():
            acknowledged.append(told(pipe))
        assert process.is_alive()
        went_on = told(pipe)
        assert went_on is not None
    restore(file, other)
    restored = connect(other)
    store, queue = Store(restored), Queue(restored)
    with restored.connect() as connection:
        results = set(connection.scalars(select(ResultRow.key)))
        done = set(connection.scalars(select(TaskRow.key).where(TaskRow.state == DONE)))
        seconds = set(connection.scalars(select(TaskRow.confirms).where(TaskRow.confirms != "")))
        assert connection.scalar(select(func.count()).select_from(ItemRow)) == 150
    assert set(acknowledged[:20]) <= results == done
    assert seconds == results - {key for key in results if key not in {one.key for one in given(texts)}}
    assert 0 < len(results) < 300
    assert store.create(given(texts), {}, request_id="a batch").id == batch.id
    queue.recover(batch.id, all_workers=True)
    confirm_known(queue, batch.id)
    assert work_off(queue, batch.id) == 300 - len(results)
    assert open_tasks(restored, batch.id) == 0
    assert all(row.first and row.second for row in store.rows(batch.id))
    restored.dispose()


def test_a_store_is_replaced_only_when_asked_to(engine: Engine, url: str, file: Path) -> None:
    """So is a backup. Replaced, the store is as it was."""
    ended(engine, TEXTS, 10)
    before = content(engine)
    engine.dispose()
    back_up(url, file)
    first = file.read_bytes()
    assert "already" in refusal(InvalidInput, back_up, url, file)
    assert file.read_bytes() == first
    ended(engine, ["later"], 10)
    changed = content(engine)
    engine.dispose()
    assert "already" in refusal(InvalidInput, restore, file, url)
    assert of(url) == changed
    restore(file, url, replace=True)
    assert of(url) == before
    ended(engine, ["later"], 10)
    engine.dispose()
    back_up(url, file, replace=True)
    restore(file, url, replace=True)
    assert "later" in str(of(url))


def test_a_store_of_an_older_version_is_backed_up_and_brought_up_to_date(url: str, other: str, file: Path) -> None:
    """As any store is when it is opened."""
    old = Path(str(make_url(url).database)) if url.startswith("sqlite") else None
    engine = engines.create_engine(make_url(url).set(drivername="sqlite" if old else "postgresql+psycopg"))
    with engine.begin() as connection:
        config = engines._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql(
            "INSERT INTO batches (id, fingerprint, state, note, settings, prompts, created) VALUES "
            "('a', '', 'done', '', '{}', 0, '2030-01-01 00:00:00.000000')"
        )
    engine.dispose()
    back_up(url, file)
    restore(file, other)
    restored = connect(other, make=False)
    assert [one.id for one in Store(restored).batches()] == ["a"]
    ended(restored, TEXTS, 10)
    restored.dispose()


def test_a_store_of_a_newer_version_is_refused(engine: Engine, url: str, other: str, file: Path) -> None:
    """In either direction, and nothing is made."""
    ended(engine, TEXTS, 10)
    back_up(url, file)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    newer = file.with_name("newer")
    assert "newer version" in refusal(InvalidInput, back_up, url, newer)
    assert not newer.exists()
    # An old backup may take its place.
    assert "already" in refusal(InvalidInput, restore, file, url)
    if not url.startswith("sqlite"):
        subprocess.run(["pg_dump", "-Fc", f"--file={newer}", url], check=True)
    else:
        engine.dispose()
        newer.write_bytes(Path(str(engine.url.database)).read_bytes())
    assert "newer version" in refusal(InvalidInput, restore, newer, other)
    engine.dispose()
    restore(file, url, replace=True)
    assert texts_in(url) == TEXTS


def texts_in(url: str) -> list[str]:
    """Prompts of the only batch of a store."""
    engine = connect(url, make=False)
    (batch,) = Store(engine).batches()
    found = texts_of(engine, batch.id)
    engine.dispose()
    return found


def test_what_is_no_backup_is_refused(engine: Engine, url: str, other: str, file: Path, tmp_path: Path) -> None:
    """A text, an empty file, a database of something else, a folder, nothing at all; a store is not touched by it."""
    ended(engine, TEXTS, 10)
    before = content(engine)
    engine.dispose()
    back_up(url, file)
    for name, what in (("text", b"a red shirt\n" * 1000), ("empty", b""), ("magic", file.read_bytes()[:16])):
        wrong = tmp_path / name
        wrong.write_bytes(what)
        for target in (url, other):
            assert name in refusal(InvalidInput, restore, wrong, target, replace=True)
        assert wrong.read_bytes() == what
    assert "No such file" in refusal(NotFound, restore, tmp_path / "nothing", other)
    assert "directory" in refusal(NotFound, restore, tmp_path, other)
    foreign = engines.create_engine(f"sqlite:///{tmp_path}/foreign.db")
    with foreign.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE batches (id TEXT)")
    foreign.dispose()
    assert "foreign.db" in refusal(InvalidInput, restore, tmp_path / "foreign.db", other)
    assert of(url) == before


def test_a_damaged_backup_is_refused(engine: Engine, url: str, other: str, file: Path) -> None:
    """Cut short, or with a part overwritten: the store that it was to replace is as it was."""
    ended(
        engine,
        [f"prompt {number}" for number in range(200)],
        10,
        made=lambda task: full_report(task, picture=os.urandom(999)),
    )
    before = content(engine)
    engine.dispose()
    back_up(url, file)
    whole = file.read_bytes()
    cut, spoilt = file.with_name("cut"), file.with_name("spoilt")
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    middle = len(whole) // 2
    spoilt.write_bytes(whole[:middle] + bytes(9000) + whole[middle + 9000 :])
    for damaged in (cut, spoilt):
        refusal(AuditError, restore, damaged, url, replace=True)
        assert of(url) == before
        refusal(AuditError, restore, damaged, other)
        refusal(AuditError, connect, other, make=False)
    restore(file, other)
    assert of(other) == before


def back_up_full(pipe: Connection, url: str, file: Path, most: int) -> None:
    """Back up where no file may be larger than that, and say what went wrong."""
    connect(url, make=False).dispose()  # whatever is imported on the way
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    try:
        back_up(url, file, replace=True)
    except AuditError as error:
        pipe.send(str(error))
    else:
        pipe.send("")


def test_a_full_disk_leaves_no_half_backup(engine: Engine, url: str, file: Path) -> None:
    """There is one clear line; an older backup of that name is as it was."""
    ended(engine, TEXTS, 10, made=lambda task: full_report(task, picture=os.urandom(100_000)))
    for before in (None, b"an older backup"):
        if before is not None:
            file.write_bytes(before)
        with started(back_up_full, url, file, 100_000) as (_, pipe):
            message = told(pipe)
        assert message.startswith("pg_dump: " if url.startswith("postgresql") else "cannot copy ")
        assert len(message.splitlines()) == 1
        assert [one.read_bytes() for one in file.parent.iterdir()] == ([] if before is None else [before])
    back_up(url, file, replace=True)


# SQLite.


def test_a_store_in_use_is_not_replaced(tmp_path: Path, file: Path) -> None:
    """Whoever has it open would go on writing to a file that is no more."""
    url = f"sqlite:///{tmp_path}/basin.db"
    engine = connect(url)
    ended(engine, TEXTS, 10)
    back_up(url, file)
    ended(engine, ["later"], 10)
    assert "is in use" in refusal(InvalidInput, restore, file, url, replace=True)
    assert "later" in str(content(engine))
    engine.dispose()
    restore(file, url, replace=True)
    assert "later" not in str(of(url))


def test_a_broken_store_is_replaced(tmp_path: Path, file: Path) -> None:
    """It is what backups are for; no log of the old one stays beside the new one."""
    url = f"sqlite:///{tmp_path}/basin.db"
    engine = connect(url)
    ended(engine, TEXTS, 10)
    engine.dispose()
    back_up(url, file)
    before = of(url)
    (tmp_path / "basin.db").write_bytes(b"no store " * 5000)
    for log in ("wal", "shm"):
        (tmp_path / f"basin.db-{log}").write_bytes(b"no log " * 5000)
    assert "already" in refusal(InvalidInput, restore, file, url)
    restore(file, url, replace=True)
    assert of(url) == before
    assert not list(tmp_path.glob("basin.db-*"))


def test_a_log_that_lies_about_is_not_played_into_a_restored_store(tmp_path: Path, file: Path) -> None:
    """A killed process left it, and its store is gone."""
    url = f"sqlite:///{tmp_path}/basin.db"
    engine = connect(url)
    ended(engine, TEXTS, 10)
    engine.dispose()
    back_up(url, file)
    before = of(url)
    ended(engine, ["later"], 10)
    log = (tmp_path / "basin.db-wal").read_bytes()
    engine.dispose()
    (tmp_path / "basin.db").unlink()
    (tmp_path / "basin.db-wal").write_bytes(log)
    restore(file, url)
    assert of(url) == before


def test_there_must_be_a_store_to_back_up(tmp_path: Path, file: Path) -> None:
    """None is made in its place, and the database of something else is not turned into one."""
    (tmp_path / "text").write_text("a red shirt\n" * 1000)
    foreign = engines.create_engine(f"sqlite:///{tmp_path}/foreign.db")
    with foreign.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE batches (id TEXT)")
    foreign.dispose()
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    assert "no store" in refusal(NotFound, back_up, f"sqlite:///{tmp_path}/nothing.db", file)
    for name in ("text", "foreign.db"):
        assert f"{name} is no store" in refusal(InvalidInput, back_up, f"sqlite:///{tmp_path}/{name}", file)
        assert "no store" in refusal(InvalidInput, connect, f"sqlite:///{tmp_path}/{name}", make=False)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_a_damaged_store_makes_no_backup(tmp_path: Path, file: Path) -> None:
    """Better to hear of it now than when the backup is needed."""
    url = f"sqlite:///{tmp_path}/basin.db"
    engine = connect(url)
    ended(engine, TEXTS, 10, made=lambda task: full_report(task, picture=os.urandom(50_000)))
    engine.dispose()
    store = tmp_path / "basin.db"
    whole = store.read_bytes()
    middle = len(whole) // 8192 * 4096
    store.write_bytes(whole[:middle] + bytes(3 * 4096) + whole[middle + 3 * 4096 :])
    assert "damaged" in refusal(StoreFailed, back_up, url, file)
    assert not file.exists()


# PostgreSQL.


def test_the_password_is_seen_by_nobody(
    database: str, postgres: Postgres, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes through the environment, wherever the URL has it, and is not asked for."""
    seen: list[list[str]] = []
    run = subprocess.run

    def spy(arguments: list[str], **options: Any) -> Any:
        seen.append(arguments)
        return run(arguments, **options)

    monkeypatch.setattr(subprocess, "run", spy)
    connect(database).dispose()
    target = postgres.create()
    moved = target.replace(f":{PASSWORD}@", "@") + f"?password={PASSWORD}&application_name=basin"
    back_up(database, file)
    restore(file, moved)
    assert len(seen) == 4
    assert PASSWORD not in str(seen)
    assert of(target) == of(database)
    wrong = database.replace(PASSWORD, "secret")
    message = refusal(NotFound, back_up, wrong, file.with_name("other"))
    assert "password authentication failed" in message
    assert "secret" not in message


def test_without_client_programs_there_is_a_clear_line(
    database: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written."""
    connect(database).dispose()
    back_up(database, file)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pg_dump is not installed" in refusal(NotFound, back_up, database, tmp_path / "new")
    assert "pg_restore is not installed" in refusal(NotFound, restore, file, database, replace=True)
    assert not (tmp_path / "new").exists()


def test_tables_of_others_are_left_alone(database: str, postgres: Postgres, file: Path) -> None:
    """They are not backed up, and survive it when the store is replaced; one that is in the way is not dropped."""
    engine = connect(database)
    ended(engine, TEXTS, 10)
    engine.dispose()
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE foreigners (name TEXT)")
        connection.execute("INSERT INTO foreigners VALUES ('mine')")
    back_up(database, file)
    assert b"foreigners" not in file.read_bytes()
    restore(file, database, replace=True)
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT * FROM foreigners").fetchall() == [("mine",)]
    assert texts_in(database) == TEXTS
    other = postgres.create()
    with psycopg.connect(other, autocommit=True) as connection:
        connection.execute("CREATE TABLE batches (name TEXT)")
    for replace in (False, True):
        assert "already exists" in refusal(StoreFailed, restore, file, other, replace=replace)
    with psycopg.connect(other) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        assert tables.fetchall() == [("batches",)]


def test_backups_of_one_database_do_not_fit_the_other(database: str, tmp_path: Path, file: Path) -> None:
    """Each is told what it is."""
    url = f"sqlite:///{tmp_path}/basin.db"
    for one in (url, database):
        connect(one).dispose()
    back_up(url, file)
    assert "no archive of pg_dump" in refusal(InvalidInput, restore, file, database, replace=True)
    back_up(database, file, replace=True)
    assert "of PostgreSQL" in refusal(InvalidInput, restore, file, url, replace=True)


def test_a_server_that_is_not_there(file: Path) -> None:
    """One line, and no file."""
    for call in (
        lambda: back_up("postgresql://a@127.0.0.1:1/name", file),
        lambda: restore(file, "postgresql://a@127.0.0.1:1/name"),
    ):
        with pytest.raises(NotFound) as refused:
            call()
        assert len(str(refused.value).splitlines()) == 1
    assert not file.exists()


def test_an_interrupted_dump_leaves_nothing(
    database: str, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pg_dump that is killed is told of by its signal."""
    connect(database).dispose()
    killed = tmp_path / "bin" / "pg_dump"
    killed.parent.mkdir()
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setenv("PATH", f"{killed.parent}:{os.environ['PATH']}")
    assert str(-signal.SIGKILL) in refusal(StoreFailed, back_up, database, file)
    assert list(file.parent.iterdir()) == []
