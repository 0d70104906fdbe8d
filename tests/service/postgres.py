"""A PostgreSQL server that runs for the tests alone."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

#: Of the server's only user; no message may hold it.
PASSWORD = "not-to-be-shown"


class Postgres:
    """A server of Debian's package `postgresql`.

    Args:
        folder: of its own; whoever runs the server may write to it.
        user: what the server is run as; it refuses to be run as root.
    """

    def __init__(self, folder: Path, user: dict[str, Any]) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        assert found, "install Debian's package postgresql"
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        secret, self._log = folder / "password", folder / "log"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        # A time zone that no code of ours may come to rely on.
        options = {
            "listen_addresses": "127.0.0.1", "unix_socket_directories": str(folder), "fsync": "off",
            "timezone": "Asia/Kathmandu",
        }  # fmt: skip
        self._command = [
            found[-1], "-D", f"{folder}/data", "-p", str(self.port),
            *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
        ]  # fmt: skip
        self._user = {"cwd": folder, **user}
        with self._log.open("wb") as log:
            subprocess.run(
                [
                    found[-1].with_name("initdb"), f"--pgdata={folder}/data", "--username=basin",
                    "--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync",
                ],
                stdout=log, stderr=log, check=True, **self._user,
            )  # fmt: skip
        self.start()

    def start(self) -> None:
        """Until it answers; again where a server that was killed is not quite gone."""
        self._process = self._launch()
        for _ in range(600):
            if self._process.poll() is not None:
                self._process = self._launch()
            try:
                return self.execute("SELECT 1")
            except psycopg.OperationalError:
                time.sleep(0.1)
        raise AssertionError(self._log.read_text())

    def _launch(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log, **self._user)

    def stop(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """At once, by a signal."""
        self._process.send_signal(number)
        self._process.wait(60)

    @contextmanager
    def outage(self, number: signal.Signals) -> Iterator[None]:
        """It is not there, and then it is again."""
        self.stop(number)
        try:
            yield
        finally:
            self.start()

    def url(self, database: str) -> str:
        """As Basin's users write it."""
        return f"postgresql://basin:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        """As its user, who may do everything."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def create(self) -> str:
        """The URL of a new database."""
        name = f"store_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Delete a database, whoever is connected to it."""
        self.execute(f"DROP DATABASE {url.rsplit('/', 1)[1]} WITH (FORCE)")


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server of one's own, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="basin-postgres-") as folder:
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            other = pwd.getpwnam("nobody")
            user = {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []}
            os.chown(folder, other.pw_uid, other.pw_gid)
        server = Postgres(Path(folder), user)
        try:
            yield server
        finally:
            server.stop()
