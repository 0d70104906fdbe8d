"""Opening a store."""

from __future__ import annotations

import tempfile
import traceback
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from audit.errors import AuditError, InvalidInput, NotFound
from service.store import engine as module
from service.store.engine import StoreFailed, connect
from service.store.schema import Base
from service.store.store import Store
from tests.service.postgres import PASSWORD, Postgres
from tests.service.store.helpers import entries, open_as_nobody, started, told


def refusal(url: str) -> AuditError:
    """Why a store is not opened: one line, with no password in it or in what caused it."""
    with pytest.raises(AuditError) as refused:
        connect(url)
    assert refused.value.field == "store"
    assert len(str(refused.value).splitlines()) == 1
    assert "secret" not in "".join(traceback.format_exception(refused.value))
    assert PASSWORD not in "".join(traceback.format_exception(refused.value))
    return refused.value


def test_the_migrations_make_the_schema(engine: Engine) -> None:
    """Alembic finds nothing to add, to drop or to alter."""
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
        assert {*Base.metadata.tables, "alembic_version"} == set(inspect(connection).get_table_names())


def test_a_server_that_is_stopped_gives_its_rows_back(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL ends the transaction of a client that says nothing more; others need not wait for it."""
    monkeypatch.setattr(module, "ABANDONED", 1)
    url = postgres.create()
    stopped, other = connect(url), connect(url)
    change = text("UPDATE batches SET note = 'x'")
    Store(stopped).create(entries(1), {})
    silent = stopped.connect()
    silent.execute(change)
    with other.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = '60s'"))
        connection.execute(change)
    with pytest.raises(StoreFailed):
        silent.execute(change)
    silent.invalidate()
    stopped.dispose()
    other.dispose()
    postgres.drop(url)


def test_a_store_is_opened_again(url: str) -> None:
    """With all that is in it."""
    for count in range(3):
        store = Store(connect(url))
        assert len(store.batches()) == count
        store.create(entries(2), {})
        store.close()


def test_a_store_of_a_newer_version_is_refused(url: str) -> None:
    """And left as it is."""
    engine = connect(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    for _ in range(2):
        refused = refusal(url)
        assert isinstance(refused, InvalidInput)
        assert refused.reason == "STORE_TOO_NEW"
        assert "newer version" in str(refused)


def test_folders_are_made(tmp_path: Path) -> None:
    """Those that lead to an SQLite file."""
    connect(f"sqlite:///{tmp_path}/a/b/basin.db").dispose()
    assert (tmp_path / "a" / "b" / "basin.db").is_file()


def test_what_is_acknowledged_outlives_a_power_cut(tmp_path: Path) -> None:
    """SQLite logs ahead, waits for the disk, keeps rows together, and overwrites what is deleted."""
    engine = connect(f"sqlite:///{tmp_path}/basin.db")
    with engine.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        }
    engine.dispose()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "STORE_INVALID"),
        ("basin.db", "STORE_INVALID"),
        ("://", "STORE_INVALID"),
        ("postgresql://user:secret@host:port/name", "STORE_INVALID"),
        ("postgresql://user:secret@[::1/name", "STORE_INVALID"),
        ("sqlite:////tmp/secret\0.db", "STORE_INVALID"),
        ("sqlite://", "STORE_UNSUPPORTED"),
        ("sqlite:///", "STORE_UNSUPPORTED"),
        ("sqlite:///:memory:", "STORE_UNSUPPORTED"),
        ("sqlite+aiosqlite:///basin.db", "STORE_UNSUPPORTED"),
        ("mysql://user:secret@host/name", "STORE_UNSUPPORTED"),
        ("postgres://user:secret@host/name", "STORE_UNSUPPORTED"),
        ("unheardof://user:secret@host/name?password=secret", "STORE_UNSUPPORTED"),
    ],
)
def test_urls_that_name_no_store(url: str, reason: str) -> None:
    """Are refused before anything is made."""
    refused = refusal(url)
    assert isinstance(refused, InvalidInput)
    assert refused.reason == reason


def test_files_that_are_no_store(tmp_path: Path) -> None:
    """A text, a folder, a file in place of a folder: each is named and left as it is."""
    (tmp_path / "text").write_text("a red shirt\n" * 1000)
    (tmp_path / "folder").mkdir()
    for name, why in (("text", "not a database"), ("folder", "unable to open"), ("text/basin.db", "File exists")):
        refused = refusal(f"sqlite:///{tmp_path}/{name}")
        assert isinstance(refused, NotFound)
        assert refused.reason == "STORE_UNREACHABLE"
        assert why in str(refused)
        assert f"{tmp_path}/{name}" in str(refused)
    assert (tmp_path / "text").read_text() == "a red shirt\n" * 1000
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "text"]


@pytest.mark.parametrize("name", ["there.db", "new.db", "new/basin.db"])
def test_a_folder_that_may_not_be_written(name: str) -> None:
    """Is told in one line, whether or not a store is there."""
    with tempfile.TemporaryDirectory(prefix="basin-read-only-") as folder:
        Path(folder).chmod(0o755)
        connect(f"sqlite:///{folder}/there.db").dispose()
        with started(open_as_nobody, Path(folder), name) as (_, pipe):
            refused = told(pipe)
        Path(folder).chmod(0o755)
        assert isinstance(refused, NotFound)
        assert refused.reason == "STORE_UNREACHABLE"
        assert folder in str(refused)
        assert len(str(refused).splitlines()) == 1
        assert not (Path(folder) / "new.db").exists()


def test_a_server_that_does_not_answer() -> None:
    """Nobody listens on port 1, and the name resolves nowhere."""
    for url in (
        "postgresql://user:secret@127.0.0.1:1/name?password=secret",
        "postgresql+psycopg://user:secret@127.0.0.1:1/name",
        "postgresql://user:secret@nowhere.invalid/name",
    ):
        refused = refusal(url)
        assert isinstance(refused, NotFound)
        assert refused.reason == "STORE_UNREACHABLE"
        assert "postgresql" in str(refused)


def test_a_server_that_refuses(postgres: Postgres) -> None:
    """A wrong password, an unknown user, an unknown database, one that may not be written."""
    here = f"127.0.0.1:{postgres.port}"
    for url, why in (
        (f"postgresql://basin:secret@{here}/postgres", 'password authentication failed for user "basin"'),
        (f"postgresql://basin@{here}/postgres?password=secret", "password authentication failed"),
        (f"postgresql://basin@{here}/postgres", "no password supplied"),
        (f"postgresql://nobody:secret@{here}/postgres", "password authentication failed"),
        (postgres.url("unheard_of"), 'database "unheard_of" does not exist'),
    ):
        refused = refusal(url)
        assert isinstance(refused, NotFound)
        assert refused.reason == "STORE_UNREACHABLE"
        assert why in str(refused)
    url = postgres.create()
    name = url.rsplit("/", 1)[1]
    postgres.execute(f"CREATE ROLE reader_{name} LOGIN PASSWORD '{PASSWORD}'")
    refused = refusal(url.replace("//basin:", f"//reader_{name}:"))
    assert refused.reason == "STORE_UNREACHABLE"
    assert "permission denied" in str(refused)
