"""Servers in processes of their own, which may be killed."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

from service.config import load_settings
from service.server import serve
from service.store import engine
from tests.service.helpers import LONG, Client


class Process:
    """`serve` in a process of its own.

    Args:
        log: a file that it may write.
        abandoned: seconds that PostgreSQL lets its transactions wait for it.
        settings: on top of free ports.
    """

    def __init__(self, log: Path, *, abandoned: int = engine.ABANDONED, **settings: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # what takes seconds to import is imported once
        self._log = log
        log.touch()
        free = {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0", "log_format": "json", "threads": 1}
        self._process = context.Process(target=_serve, args=(log, abandoned, {**free, **settings}))
        self._process.start()

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines that are whole."""
        lines = self._log.read_text().splitlines(keepends=True)
        # Libraries may write lines of their own.
        return [json.loads(line) if line.startswith("{") else {"event": line} for line in lines if line.endswith("\n")]

    def says(self, event: str) -> dict[str, Any]:
        """Wait for a line of the log."""
        end = time.monotonic() + 2 * LONG
        while True:
            alive = self._process.is_alive()
            for line in self.log:
                if line["event"] == event:
                    return line
            assert alive, self._log.read_text()
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.05)

    def client(self) -> Client:
        """Of it, once it is ready."""
        bound = self.says("listening")
        self.says("ready")
        return Client(bound["address"], bound["metrics"])

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Ask it to end."""
        os.kill(self.pid, number)

    def ends(self) -> int:
        """Its exit code."""
        self._process.join(LONG)
        assert self._process.exitcode is not None, self._log.read_text()
        return self._process.exitcode

    def kill(self) -> None:
        """End it for sure."""
        self._process.kill()
        self._process.join()


def _serve(log: Path, abandoned: int, settings: dict[str, Any]) -> None:
    engine.ABANDONED = abandoned
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
    asyncio.run(serve(load_settings(**settings)))
