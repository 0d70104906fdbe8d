"""Fifty random kills of three servers that share a store, and of the store: what was acknowledged stays."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime

import psycopg

from audit.bench.markdown import markdown
from audit.v1 import batch_pb2
from service.client import BasinClient, ServiceError
from tests.benchmarks.batch import captions
from tests.benchmarks.common import BENCHMARK_SEED
from tests.benchmarks.kills import LONGEST, Server, insist, submit
from tests.service.postgres import Postgres, running_postgres

SERVERS, KILLS = 3, 50
#: Of a batch, and batches that are not done at any time.
PROMPTS, OPEN = 40, 2
#: Seconds between two kills, and the share of them that hits the database.
PAUSE, DATABASE = (3.0, 10.0), 0.2


def run() -> str:
    """The table, as Markdown."""
    with running_postgres() as database:
        watched = _Watched(database.create())
        servers = [Server(watched.url, THREADS="1") for _ in range(SERVERS)]
        try:
            killed, heard = _disturbed(servers, database, watched)
            addresses = [server.address for server in servers]
            kept = {batch: insist(lambda batch=batch: _results(addresses, batch)) for batch in heard}
        finally:
            for server in servers:
                server.kill()
    lost = sum(one not in kept[batch] for batch, results in heard.items() for one in results)
    twice = sum(len(results) - len({one.position for one in results}) for results in heard.values())
    failed = sum(not one.first.HasField("report") for results in kept.values() for one in results)
    count = sum(map(len, heard.values()))
    missing = PROMPTS * len(heard) - sum(map(len, kept.values()))
    pause = f"{PAUSE[0]:g} to {PAUSE[1]:g}"
    return f"""# Replicas

`python -m tests.benchmarks replicas`: {SERVERS} servers on one PostgreSQL, batches of {PROMPTS} short items (8 seeds,
8 steps, no curvature) one after another at any of them, each read as it comes from any of them, and
{killed.total()} random kills (SIGKILL) of a server that serves, or of the database, {pause} seconds
apart; what was killed is started again.

{
        markdown(
            ["server killed", "database killed", "batches acknowledged", "results acknowledged"],
            [[str(killed["server"]), str(killed["database"]), str(len(heard)), f"{count:,}"]],
        )
    }

Results that were acknowledged and are not there, or are others: {lost}. Acknowledged twice: {twice}. Items without a
result: {missing}, failed: {failed}. Finished audits that were done again: {watched.again}, of
{len(watched.finished):,}.
"""


class _Watched:
    """A store, and when each of its audits was finished.

    Args:
        url: of the store.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.finished: dict[str, datetime] = {}
        #: Finished audits whose result vanished or was written again.
        self.again = 0

    def look(self) -> None:
        """Now, or not at all while the database is away."""
        with suppress(psycopg.OperationalError, psycopg.errors.UndefinedTable), psycopg.connect(self.url) as connection:
            now = dict(connection.execute("SELECT key, finished FROM results").fetchall())
            self.again += sum(now.get(key) != when for key, when in self.finished.items())
            self.finished = now


def _disturbed(
    servers: Sequence[Server], database: Postgres, watched: _Watched
) -> tuple[Counter[str], dict[str, list[batch_pb2.BatchResult]]]:
    """Kills by kind, and what was heard of each batch that a server has acknowledged."""
    chance, killed, end = random.Random(50), Counter[str](), time.monotonic() + LONGEST
    addresses = [server.address for server in servers]
    heard: dict[str, Future[list[batch_pb2.BatchResult]]] = {}
    with ThreadPoolExecutor(OPEN) as readers:
        while killed.total() < KILLS or not all(one.done() for one in heard.values()):
            until = time.monotonic() + chance.uniform(*PAUSE)
            while time.monotonic() < until:
                if killed.total() < KILLS and sum(not one.done() for one in heard.values()) < OPEN:
                    batch = insist(lambda: _submit(addresses, len(heard)))
                    heard[batch] = readers.submit(_read, addresses, batch)
                watched.look()
                time.sleep(0.2)
            assert time.monotonic() < end
            if killed.total() == KILLS:
                continue
            if chance.random() < DATABASE:
                database.stop(signal.SIGKILL)
                database.start()
                killed["database"] += 1
            elif serving := [server for server in servers if _serves(server.address)]:
                server = chance.choice(serving)
                server.kill()
                server.start()
                killed["server"] += 1
    return killed, {batch: one.result() for batch, one in heard.items()}


def _submit(addresses: Sequence[str], number: int) -> str:
    """The id of a batch that any of the servers has taken in."""
    with BasinClient(random.choice(addresses)) as client:
        return submit(client, captions(PROMPTS), BENCHMARK_SEED + 1000 * number, f"replicas-{number}")


def _read(addresses: Sequence[str], batch: str) -> list[batch_pb2.BatchResult]:
    """The results of a batch as they come, from one server after another, none asked for twice."""
    found, cursor = list[batch_pb2.BatchResult](), ""

    def go_on() -> None:
        nonlocal cursor
        with BasinClient(random.choice(addresses)) as client:
            for one in client.batch_results(batch, cursor=cursor, follow=True, include_reports=True):
                found.append(_without_outcome(one.result))
                cursor = one.cursor

    insist(go_on)
    return found


def _results(addresses: Sequence[str], batch: str) -> list[batch_pb2.BatchResult]:
    with BasinClient(random.choice(addresses)) as client:
        return [_without_outcome(one.result) for one in client.batch_results(batch, include_reports=True)]


def _without_outcome(result: batch_pb2.BatchResult) -> batch_pb2.BatchResult:
    """It depends on the whole batch, and is said at its end."""
    result.ClearField("outcome")
    return result


def _serves(address: str) -> bool:
    with suppress(ServiceError), BasinClient(address) as client:
        return bool(client.info())
    return False
