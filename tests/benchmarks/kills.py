"""Thirty random kills in one batch: of the server, its database, workers in a Ray cluster, and nodes of that."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg

from audit.bench.markdown import markdown
from audit.v1 import audit_pb2, batch_pb2
from service.batch_wire import concluded_of
from service.client import BasinClient, ServiceError
from service.local_batch import LocalBatch
from service.results import Concluded, open_run
from tests.benchmarks.batch import captions, wanted
from tests.benchmarks.common import BENCHMARK_SEED
from tests.service.postgres import Postgres, running_postgres
from tests.service.ray_cluster import add_node, ray_cluster

PROMPTS = 300
KILLS = 30
#: Short, but not all over before the last kill.
HOW = {"sampler": {"steps": 8, "guidance": 1.0}, "budget": {"seeds": 8, "curvature": "off"}}
#: Seconds between two kills.
PAUSE = (2.0, 8.0)
LONGEST = 3600
ROOT = Path(__file__).parents[2]

_T = TypeVar("_T")


def run() -> str:
    """The table, as Markdown."""
    prompts = captions(PROMPTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = LocalBatch(wanted(folder, prompts, BENCHMARK_SEED, HOW), folder / "run")
        work.run()
        work.close()
        with open_run(folder / "run") as opened:
            undisturbed = {one.row.entry.prompt: one for own in opened.concluded.values() for one in own}
        with ray_cluster(1, 1) as cluster, running_postgres() as database:
            url = database.create()
            found, killed, again, begun = _disturbed(prompts, cluster, database, url)
    pairs = [(one, found[prompt]) for prompt, one in undisturbed.items() if prompt in found]
    same = sum(_said(one) == _said(other) for one, other in pairs)
    furthest = max(
        abs(ours - theirs)
        for one, other in pairs
        for before, after in ((one.row.first, other.row.first), (one.row.second, other.row.second))
        if before is not None and after is not None
        for ours, theirs in zip(before.probabilities, after.probabilities, strict=True)
    )
    rows = [[kind, str(killed[kind])] for kind in ("server", "database", "worker", "node")]
    return f"""# Kills

`python -m tests.benchmarks kills`: a batch of {PROMPTS} short items (8 seeds, 8 steps, no curvature) over gRPC, done by
a Ray cluster of two nodes, kept in PostgreSQL. {killed.total()} random kills (SIGKILL; a node with its processes)
before its end, {PAUSE[0]:g} to {PAUSE[1]:g} seconds apart; what was killed is started again.

{markdown(["killed", "times"], rows)}

Items lost: {PROMPTS - len(found)}. Finished audits that were begun again: {again}, of {begun}. Items whose outcome and
verdicts are those of an undisturbed run in one process: {same} of {PROMPTS}; largest difference of a probability
{furthest:.1e}.
"""


class Server:
    """`basin serve`, to be killed.

    Args:
        url: of its store.
        settings: other environment variables, without their `BASIN_`.
    """

    def __init__(self, url: str, **settings: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        own = {"BATCHES__STORE": url, "BATCHES__LEASE_SECONDS": "5", **settings}
        self._environment = {**os.environ, **{f"BASIN_{name}": value for name, value in own.items()}}
        self.start()

    def start(self) -> None:
        """Anew, at the same address."""
        command = [sys.executable, "-m", "service.cli", "serve", "--listen", self.address, "--metrics", "off"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


def _disturbed(
    prompts: list[str], cluster: Any, database: Postgres, url: str
) -> tuple[dict[str, Concluded], Counter[str], int, int]:
    """What was found by prompt, kills by kind, finished audits that were begun again, and all of them."""
    server = Server(url, BATCHES__RUNNER="ray", BATCHES__RAY__ADDRESS=cluster.address)
    chance, killed = random.Random(30), Counter[str]()
    client = BasinClient(server.address)
    try:
        batch = insist(lambda: submit(client, prompts, BENCHMARK_SEED, "kills"))
        done, again, end = set[int](), 0, time.monotonic() + LONGEST
        while killed.total() < KILLS and insist(lambda: client.batch(batch)).progress.open:
            until = time.monotonic() + chance.uniform(*PAUSE)
            while time.monotonic() < until:
                time.sleep(0.2)
                now = _done(url)
                again += len(done - now)
                done = now
            kind = chance.choice(("server", "database", "worker", "node"))
            if _kill(kind, server, database, cluster, chance):
                killed[kind] += 1
            assert time.monotonic() < end
        while insist(lambda: client.batch(batch)).progress.open:
            assert time.monotonic() < end
            time.sleep(1)
        now = _done(url)
        again += len(done - now)
        results = insist(lambda: [concluded_of(one.result) for one in client.batch_results(batch)])
        found = {one.row.entry.prompt: one for one in results if one.row.first is not None}
        return found, killed, again, len(now)
    finally:
        server.kill()
        client.close()


def submit(client: BasinClient, prompts: Sequence[str], first_seed: int, request_id: str) -> str:
    """The id of a batch of short items, the same however often it is sent."""
    spec = batch_pb2.BatchSpec(reference="demo")
    spec.sampler.MergeFrom(audit_pb2.SamplerOptions(**HOW["sampler"]))
    spec.budget.MergeFrom(audit_pb2.BudgetOptions(first_seed=first_seed, **HOW["budget"]))
    return client.submit(spec, [batch_pb2.BatchPrompt(prompt=prompt) for prompt in prompts], request_id=request_id)


def _said(one: Concluded) -> tuple[str, ...]:
    """Outcome and verdicts."""
    answers = (one.row.first, one.row.second)
    return (str(one.outcome), *("" if answer is None else str(answer.verdict) for answer in answers))


def insist(call: Callable[[], _T]) -> _T:
    """Ask a server until it answers: it may have been killed a moment ago."""
    end = time.monotonic() + 300
    while True:
        try:
            return call()
        except ServiceError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _done(url: str) -> set[int]:
    """Tasks that are done."""
    while True:
        with suppress(psycopg.OperationalError), psycopg.connect(url) as connection:
            return {row[0] for row in connection.execute("SELECT id FROM tasks WHERE state = 'done'")}
        time.sleep(0.1)


def _kill(kind: str, server: Server, database: Postgres, cluster: Any, chance: random.Random) -> bool:
    """Kill something and start it again; False where there is none of the kind just now."""
    if kind == "server":
        server.kill()
        server.start()
    elif kind == "database":
        database.stop(signal.SIGKILL)
        database.start()
    elif kind == "node":
        cluster.remove_node(chance.choice(list(cluster.worker_nodes)), allow_graceful=False)
        add_node(cluster, 1)
    else:
        actors = [
            one
            for one in psutil.process_iter(["name", "cmdline"])
            if "ray::_Actor" in " ".join(one.info["cmdline"] or [])
        ]
        if not actors:
            return False
        with suppress(psutil.NoSuchProcess):
            chance.choice(actors).kill()
    return True
