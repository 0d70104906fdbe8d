"""Connections to the store, and bringing its tables up to date."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError

from audit.errors import AuditError, InvalidInput, NotFound

#: Seconds that a writer waits for another one.
PATIENCE = 60
#: Seconds that PostgreSQL lets a transaction wait for its client: one that was stopped holds rows that others need.
ABANDONED = 45
#: Execution option of engines that only read.
READS = "basin_reads"


class StoreFailed(AuditError):
    """The database could not do what it was asked: it is gone, full, or may not be written."""


def connect(url: str, *, make: bool = True) -> Engine:
    """An engine whose tables are of this version, and whose statements raise StoreFailed.

    Args:
        url: as SQLAlchemy spells it: "sqlite:///basin.db", "postgresql://user@host/name".
        make: whether a store is made where there is none.

    Raises:
        InvalidInput: the URL is none, names another kind of database, or one that a newer Basin wrote; or it holds no
            store and none is to be made.
        NotFound: the database cannot be reached or written; or there is no such file and none is to be made.
    """
    if not make and (file := sqlite_file(parse_url(url))):
        version_of(file, field="store")
    engine, shown = _open(url)
    with _reaching(engine), engine.begin() as connection:
        current = _current(connection, shown)
        if not current and not make:
            raise no_store(shown, field="store")
        if current != _scripts().get_current_head():
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    return engine


def migrate(url: str, version: str) -> tuple[str, str]:
    """Change the version of a store's tables. One that is empty gets them.

    Args:
        url: of the store.
        version: "head", or an older one, as `basin store info` calls it.

    Returns:
        The versions before ("" where there was no store) and after.

    Raises:
        InvalidInput: there is no such version, or what `connect` raises.
        NotFound: what `connect` raises.
    """
    known = {revision.revision for revision in _scripts().walk_revisions()}
    if version != "head" and version not in known:
        raise InvalidInput(
            f"there is no version {version!r}; there are {', '.join(sorted(known))}",
            reason="VERSION_UNKNOWN",
            field="to",
        )
    target = _scripts().get_current_head() if version == "head" else version
    assert target is not None
    engine, shown = _open(url)
    with _reaching(engine), engine.begin() as connection:
        before = _current(connection, shown)
        if before != target:
            config = _config()
            config.attributes["connection"] = connection
            later = not before or target not in {one.revision for one in _scripts().iterate_revisions(before, "base")}
            (command.upgrade if later else command.downgrade)(config, target)
    engine.dispose()
    return before, target


def time_statements(engine: Engine, observe: Callable[[str, float], None]) -> None:
    """Tell how long the store takes.

    Args:
        engine: of the store.
        observe: called with the kind of a statement ("select", "insert", "update", "delete", "commit" or "other") and
            its seconds.
    """

    def begin(connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        connection.info["basin_start"] = time.perf_counter()

    def end(connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        kind = statement.lstrip()[:6].lower()
        seconds = time.perf_counter() - connection.info["basin_start"]
        observe(kind if kind in ("select", "insert", "update", "delete") else "other", seconds)

    def commit(connection: Any) -> None:
        start = time.perf_counter()
        do_commit(connection)
        observe("commit", time.perf_counter() - start)

    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", end)
    # There is an event before a commit, and none after it.
    do_commit = engine.dialect.do_commit
    engine.dialect.do_commit = commit  # type: ignore[assignment, method-assign]


def parse_url(url: str) -> URL:
    """The URL of a store.

    Raises:
        InvalidInput: it is none.
    """
    try:
        if "\0" in url:
            raise ValueError
        return make_url(url)
    except (ArgumentError, ValueError) as error:  # the latter of a port that is no number
        raise InvalidInput("the store is no database URL", reason="STORE_INVALID", field="store") from error


def show(url: URL) -> str:
    """A URL for people. Its query may hold a password, too."""
    return url.set(query={}).render_as_string(hide_password=True)


def without_password(url: URL) -> URL:
    """A URL that may be written down, and be seen by other users of a machine."""
    return url._replace(password=None).difference_update_query(["password"])


def sqlite_file(url: URL) -> Path | None:
    """The file of an SQLite store; None of any other."""
    if url.drivername != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


def files_of(store: Path) -> tuple[Path, ...]:
    """The file of an SQLite store, and the logs that SQLite may keep beside it."""
    return (store, *(store.with_name(store.name + log) for log in ("-wal", "-shm", "-journal")))


def open_file(file: Path) -> sqlite3.Connection:
    """An SQLite file as it is: none is made, and nothing of it is changed. Transactions begin where we say."""
    uri = f"file:{quote(str(file.absolute()))}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=PATIENCE, isolation_level=None, check_same_thread=False)


def version_of(file: Path, *, field: str) -> str:
    """The version of the tables in an SQLite store's file.

    Args:
        file: that is only read.
        field: who named it.

    Raises:
        NotFound: there is no such file, or it cannot be read.
        InvalidInput: it holds something else, or a store that a newer Basin wrote.
    """
    if not file.exists():
        raise NotFound(f"there is no store {file}", reason="STORE_NOT_FOUND", field=field)
    try:
        with closing(open_file(file)) as connection:
            version: str = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    except (sqlite3.Error, TypeError) as error:  # the latter of an empty table
        if isinstance(error, sqlite3.Error) and error.sqlite_errorname not in ("SQLITE_ERROR", "SQLITE_NOTADB"):
            raise NotFound(f"cannot read {file}: {error}", reason="STORE_UNREACHABLE", field=field) from error
        raise no_store(file, field=field) from error
    check_version(version, str(file), field=field)
    return version


def check_version(version: str, shown: str, *, field: str) -> None:
    """Raises InvalidInput of tables that a newer Basin made."""
    if version not in {revision.revision for revision in _scripts().walk_revisions()}:
        raise InvalidInput(f"the store {shown} was written by a newer version", reason="STORE_TOO_NEW", field=field)


def no_store(what: object, *, field: str) -> InvalidInput:
    """That a file or database holds something else."""
    return InvalidInput(f"{what} is no store of Basin's", reason="NOT_A_STORE", field=field)


def _explain(shown: str, context: ExceptionContext) -> None:
    """One line in place of a statement with all that stood in it."""
    error = context.sqlalchemy_exception
    if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError) and not context.is_pre_ping:
        lines = str(error.orig).strip().splitlines() or ["no answer"]
        raise StoreFailed(f"the store {shown}: {lines[0]}", reason="STORE_FAILED") from context.original_exception


def _begin_sqlite(connection: Connection) -> None:
    """Writers line up at once, or two that had both begun to read could never write; readers hinder nobody."""
    reads = connection.get_execution_options().get(READS)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _prepare_postgresql(connection: Any, record: object) -> None:
    connection.autocommit = True
    connection.execute(f"SET idle_in_transaction_session_timeout = '{ABANDONED}s'")
    connection.autocommit = False


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where sqlite3 guesses
    if not connection.execute("PRAGMA page_count").fetchone()[0]:  # later it cannot be said, and would take a lock
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # freed pages can be cut off
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # what was acknowledged outlives a power cut
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what was deleted is gone from the file


def _open(url: str) -> tuple[Engine, str]:
    """An engine, whatever the tables are, and its URL for people.

    Raises:
        InvalidInput, NotFound: as `connect` does.
    """
    parsed = parse_url(url)
    shown = show(parsed)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(parsed, pool_pre_ping=True, hide_parameters=True, connect_args={"connect_timeout": 10})
        event.listen(engine, "connect", _prepare_postgresql)
    elif file := sqlite_file(parsed):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotFound(
                f"cannot make {shown}: {error.strerror}", reason="STORE_UNREACHABLE", field="store"
            ) from error
        engine = create_engine(
            parsed, hide_parameters=True, connect_args={"timeout": PATIENCE, "check_same_thread": False}
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        raise InvalidInput(
            f"the store must be an SQLite file or PostgreSQL, not {shown}", reason="STORE_UNSUPPORTED", field="store"
        )
    event.listen(engine, "handle_error", partial(_explain, shown))
    return engine, shown


@contextmanager
def _reaching(engine: Engine) -> Iterator[None]:
    """Let go of an engine where it is of no use."""
    try:
        yield
    except BaseException as error:
        engine.dispose()
        if isinstance(error, StoreFailed):
            raise NotFound(str(error), reason="STORE_UNREACHABLE", field="store") from error
        raise


def _current(connection: Connection, shown: str) -> str:
    """The version of the tables that are there, "" of none. Whoever asks is the only one that may change it.

    Raises:
        InvalidInput: a newer Basin made them.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7314011)")  # one migrates, the others wait
    for version in MigrationContext.configure(connection).get_current_heads():
        check_version(version, shown, field="store")
        return version
    return ""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
