"""Servers and databases that are killed in the middle of a batch: nothing is lost, and nothing done twice."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from datetime import datetime

import grpc
import pytest
from sqlalchemy import Engine, func, select

from audit.v1 import batch_pb2
from service.store.engine import connect
from service.store.schema import ResultRow, TaskRow
from tests.service.batch_calls import begun, create, ended, get, load, results, slow, unload
from tests.service.helpers import SERVING, Client, failure
from tests.service.postgres import Postgres
from tests.service.processes import Process

Spawn = Callable[..., Process]
#: Of one audit that `slow` asks for.
EVALUATIONS = 8 + 4 * 25 + 16
#: Seconds that an audit takes, more or less: kills come anywhere in one.
AUDIT = 0.5


@pytest.fixture
def anywhere(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Waits for a moment that is drawn: whatever is under way, computing, writing or beating, may be hit."""
    moments = random.Random(request.node.name)

    def wait() -> None:
        time.sleep(moments.uniform(0, AUDIT))

    return wait


def _audits(client: Client) -> float:
    """How many audits a server has done, in denoiser evaluations."""
    # What the network predicts without a prompt is computed once.
    return max(0.0, client.metric("basin_denoiser_evaluations_total") - 8) / EVALUATIONS


def _finished(engine: Engine) -> dict[str, datetime]:
    """When every audit was finished, by its key."""
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(select(ResultRow.key, ResultRow.finished))}


def _running(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).where(TaskRow.state == "running")).scalar_one()


def _is_whole(client: Client, id_: str, count: int) -> bool:
    """Whether a batch came to a good end, with everything that it needs."""
    batch = ended(client, id_)
    found = results(client, id_, include_reports=True)
    assert (batch.progress.state, batch.progress.open, batch.progress.failed) == (batch_pb2.BATCH_STATE_DONE, 0, 0)
    assert [one.position for one in found] == list(range(count))
    for one in found:
        assert not one.open
        assert one.first.report.prompt == one.prompt.prompt
        assert one.HasField("second") == bool(one.confirmation)
        assert one.outcome != batch_pb2.BATCH_OUTCOME_FAILED
    return True


def test_a_server_that_is_killed(spawn: Spawn, url: str, anywhere: Callable[[], None]) -> None:
    """Told to end once and killed twice: what was done stays as it was, and the next server does the rest alone."""

    def start(lease: int) -> tuple[Process, Client]:
        process = spawn(batches={"store": url, "lanes": 3, "lease_seconds": lease})
        return process, process.client()

    process, client = start(1)
    id_ = create(client, [f"killed {number}" for number in range(14)], slow())
    engine, kept, done = connect(url), dict[str, datetime](), 0
    for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        begun(client, id_, done + 2)
        anywhere()
        done = get(client, id_).progress.done
        process.signal(end)
        assert process.ends() == (0 if end == signal.SIGTERM else -end)
        now = _finished(engine)
        assert len(now) >= done
        assert kept.items() <= now.items()
        kept = now
        if end == signal.SIGTERM:
            assert _running(engine) == 0
            process, client = start(3600)  # what was put back need not wait for the lease
        else:
            process, client = start(1)
    assert get(client, id_).progress.open
    assert _is_whole(client, id_, 14)
    last = _finished(engine)
    assert kept.items() <= last.items()
    assert _audits(client) == len(last) - len(kept) == get(client, id_).progress.done - len(kept)
    engine.dispose()


def test_two_servers_share_a_batch(spawn: Spawn, postgres: Postgres, anywhere: Callable[[], None]) -> None:
    """No audit is done twice; when one of them is killed, the other does its work, too."""
    url = postgres.create()
    engine = connect(url)
    processes = [spawn(batches={"store": url, "lanes": 2, "lease_seconds": 6}) for _ in range(2)]
    one, other = (process.client() for process in processes)
    id_ = create(one, [f"shared {number}" for number in range(12)], slow())
    assert _is_whole(other, id_, 12)
    assert get(one, id_) == get(other, id_)
    counts = [_audits(client) for client in (one, other)]
    assert min(counts) > 0
    assert sum(counts) == len(_finished(engine)) == get(one, id_).progress.done

    id_ = create(one, [f"left {number}" for number in range(8)], slow())
    begun(other, id_, 1)
    anywhere()
    processes[0].signal(signal.SIGKILL)
    processes[0].ends()
    kept = _finished(engine)
    assert _is_whole(other, id_, 8)
    assert kept.items() <= _finished(engine).items()
    engine.dispose()
    processes[1].kill()
    postgres.drop(url)


def test_a_database_that_is_killed(
    launch: Callable[..., Client], postgres: Postgres, anywhere: Callable[[], None]
) -> None:
    """The server says so, waits for it and goes on, also where a checkpoint comes and goes meanwhile."""
    url = postgres.create()
    client = launch(batches={"store": url, "lanes": 2, "lease_seconds": 2})
    engine = connect(url)
    id_ = create(client, [f"without {number}" for number in range(10)], slow())
    begun(client, id_, 1)
    anywhere()
    kept = _finished(engine)
    engine.dispose()
    with postgres.outage(signal.SIGKILL):
        for call in (get, results):
            down = failure(lambda call=call: call(client, id_))
            assert (down.code, down.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_DOWN")
            assert down.retry_seconds
        assert client.health() == SERVING
    begun(client, id_, len(kept) + 2)
    assert kept.items() <= _finished(engine).items()
    kept = _finished(engine)
    engine.dispose()
    with postgres.outage(signal.SIGKILL):
        # Its audits in flight can be told to nobody, and are left as if this server had been lost.
        unload(client, "demo")
    load(client, "demo")
    assert _is_whole(client, id_, 10)
    assert kept.items() <= _finished(engine).items()
    engine.dispose()
