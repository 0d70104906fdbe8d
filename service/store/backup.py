"""Backups of the store: a file that holds all of it as it was at one moment, and the way back.

Of SQLite the file is itself a store, read through SQLite's online backup while others write. Of PostgreSQL it is an
archive of `pg_dump`, which `pg_restore` reads: both come with its client programs.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from sqlalchemy import URL

from audit.errors import InvalidInput, NotFound
from audit.phase.folder import whole
from service.store.deletion import TABLES
from service.store.engine import (
    StoreFailed,
    check_version,
    connect,
    files_of,
    no_store,
    open_file,
    parse_url,
    show,
    sqlite_file,
    version_of,
    without_password,
)

#: How an archive of pg_dump begins.
_ARCHIVE = b"PGDMP"


def back_up(url: str, file: Path, *, replace: bool = False) -> None:
    """Write a backup, whole or not at all, while others work on the store.

    Args:
        url: of the store.
        file: to write.
        replace: whether a file that is there is written over.

    Raises:
        InvalidInput: the file is there, or the URL is none of a store.
        NotFound: there is no store, it cannot be reached, or pg_dump is not installed.
        StoreFailed: the backup could not be written.
    """
    _free(file, replace=replace, field="file")
    parsed = parse_url(url)
    if source := sqlite_file(parsed):
        version_of(source, field="store")
        with whole(file) as partial:
            _copy(source, partial)
        return
    connect(url, make=False).dispose()
    tables = [f"--table={name}" for name in (*TABLES.split(", "), "workers", "alembic_version")]
    with whole(file) as partial:
        _run("pg_dump", ["--format=custom", "--no-owner", "--no-privileges", *tables, f"--file={partial}"], parsed)
        _check_archive(partial)


def restore(file: Path, url: str, *, replace: bool = False) -> None:
    """Make a store of a backup, whole or not at all. Nobody may work on a store that is replaced.

    Args:
        file: that `back_up` wrote.
        url: of the store.
        replace: whether a store that is there is replaced.

    Raises:
        InvalidInput: the file holds no backup, one of the other database or one of a newer version; or the store is
            there, or in use.
        NotFound: there is no such file, the database cannot be reached, or pg_restore is not installed.
        StoreFailed: the store could not be written; what was there is as it was.
    """
    parsed = parse_url(url)
    target = sqlite_file(parsed)
    _check_kind(file, archive=target is None)
    if target is None:
        _check_archive(file)
        _restore_postgres(file, parsed, url, replace=replace)
    else:
        version_of(file, field="file")
        _free(target, replace=replace, field="store")
        with whole(target) as partial:
            _copy(file, partial)
            _make_way(target)
    connect(url).dispose()  # a backup of an older version is brought up to date


def _check_kind(file: Path, *, archive: bool) -> None:
    try:
        with file.open("rb") as content:
            found = content.read(len(_ARCHIVE)) == _ARCHIVE
    except OSError as error:
        raise NotFound(f"cannot read {file}: {error.strerror}", reason="BACKUP_NOT_FOUND", field="file") from error
    if found != archive:
        why = (
            "is a backup of PostgreSQL, not of SQLite" if found else "is no archive of pg_dump, as PostgreSQL needs it"
        )
        raise InvalidInput(f"{file} {why}", reason="BACKUP_OF_ANOTHER_DATABASE", field="file")


def _free(file: Path, *, replace: bool, field: str) -> None:
    if file.is_dir() or (file.exists() and not replace):
        why = "is a folder" if file.is_dir() else "is there already; --replace writes over it"
        raise InvalidInput(f"{file} {why}", reason="TARGET_EXISTS", field=field)


# SQLite.


def _copy(source: Path, target: Path) -> None:
    """Copy a store as it is at this moment, and check the copy. Writers go on meanwhile."""
    target.unlink(missing_ok=True)  # what a killed process left half-written
    try:
        with closing(open_file(source)) as reader, closing(sqlite3.connect(target, isolation_level=None)) as writer:
            writer.execute("PRAGMA journal_mode = OFF")  # a copy that fails is thrown away
            reader.backup(writer)
            damage = writer.execute("PRAGMA integrity_check(1)").fetchone()[0]
            writer.execute("PRAGMA journal_mode = DELETE")  # one file, wherever it is put
    except sqlite3.Error as error:
        raise StoreFailed(f"cannot copy {source} to {target.parent}: {error}", reason="COPY_FAILED") from error
    if damage != "ok":
        line = " ".join(str(damage).split())
        raise StoreFailed(f"{source} is damaged: {line}", reason="STORE_DAMAGED")
    with target.open("rb") as content:
        os.fsync(content.fileno())


def _make_way(store: Path) -> None:
    """Make sure that a store may be put there: nobody has the one that is there open, and no log is left behind.

    Raises:
        InvalidInput: it is in use.
    """
    try:
        with closing(open_file(store)) as connection:
            connection.execute("PRAGMA busy_timeout = 1000")
            connection.execute("PRAGMA journal_mode = DELETE")  # takes whoever has it for itself, and its log in
    except sqlite3.Error as error:  # most of them since it is damaged, or not there
        if error.sqlite_errorname == "SQLITE_BUSY":
            raise InvalidInput(f"{store} is in use: end that first", reason="STORE_IN_USE", field="store") from error
    for log in files_of(store)[1:]:  # SQLite would play it into whatever store it finds beside it
        log.unlink(missing_ok=True)


# PostgreSQL.


def _restore_postgres(file: Path, parsed: URL, url: str, *, replace: bool) -> None:
    try:
        connect(url, make=False).dispose()
        there = True
    except InvalidInput as error:
        if error.reason not in ("NOT_A_STORE", "STORE_TOO_NEW"):
            raise
        there = error.reason == "STORE_TOO_NEW"
    if there and not replace:
        raise InvalidInput(
            f"{show(parsed)} holds a store already; --replace writes over it", reason="TARGET_EXISTS", field="store"
        )
    clean = ["--clean", "--if-exists"] if there else []  # tables of others are left alone
    options = ["--single-transaction", "--no-owner", "--no-privileges", *clean, str(file)]
    _run("pg_restore", options, parsed)


def _check_archive(file: Path) -> None:
    """Look for a store of a version that is known in an archive.

    Raises:
        InvalidInput: it holds no store, or one of a newer version; or it cannot be read.
    """
    try:
        script = _run("pg_restore", ["--data-only", "--table=alembic_version", "--file=-", str(file)])
    except StoreFailed as error:
        raise InvalidInput(f"{file} cannot be read: {error}", reason="NOT_A_STORE", field="file") from error
    version = re.search(r"^COPY \S*alembic_version .*\n(\w+)$", script, re.MULTILINE)
    if version is None:
        raise no_store(file, field="file")
    check_version(version[1], str(file), field="file")


def _run(tool: str, arguments: Sequence[str], url: URL | None = None) -> str:
    """What a client program of PostgreSQL says, connected to a database where one is named.

    Raises:
        NotFound: it is not installed.
        StoreFailed: it failed; the message is its own.
    """
    program = shutil.which(tool)
    if program is None:
        raise NotFound(
            f"{tool} is not installed: it is one of PostgreSQL's client programs",
            reason="TOOL_NOT_FOUND",
            field="store",
        )
    environment = {**os.environ, "LC_ALL": "C", "PGCONNECT_TIMEOUT": "10"}
    target = []
    if url is not None:
        target = ["--no-password", f"--dbname={_libpq(url)}"]
        if password := url.password or url.query.get("password"):
            environment["PGPASSWORD"] = str(password)  # arguments are seen in the list of processes
    done = subprocess.run(
        [program, *target, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error:" in line] or [f"ended with {done.returncode}"]
        raise StoreFailed(f"{tool}: {lines[0].partition('error: ')[2] or lines[0]}", reason="TOOL_FAILED")
    return done.stdout


def _libpq(url: URL) -> str:
    """A URL as PostgreSQL's own programs read it."""
    return without_password(url).set(drivername="postgresql").render_as_string(hide_password=False)
