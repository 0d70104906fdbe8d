"""What goes wrong around a server: networks, clients, memory, disks, clocks. It goes on, and gives everything back."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.longrunning import operations_pb2
from sqlalchemy import func, select

from audit.v1 import batch_pb2, checkpoint_pb2, reference_pb2
from service import server as server_module
from service.config import load_settings
from service.server import RunningServer, start_server
from service.store.engine import connect
from service.store.schema import TaskRow
from tests.service.batch_calls import begun, create, ended, get, results, slow, spec
from tests.service.batch_calls import endless as endless_batch
from tests.service.helpers import (
    LONG,
    SERVING,
    SMALL,
    Client,
    endless,
    eventually,
    failure,
    failure_of,
    small,
    unhurried,
    until_sampling,
)
from tests.service.postgres import Postgres
from tests.service.processes import Process
from tests.service.proxy import Proxy

ROOT = Path(__file__).parents[2]
Spawn = Callable[..., Process]


# Networks and clients.


def test_a_client_that_falls_silent(launch: Callable[..., Client], prompts: list[str], monkeypatch: Any) -> None:
    """Cut off without a word, its audit is stopped as if it had hung up."""
    monkeypatch.setattr(server_module, "KEEPALIVE_SECONDS", 1.0)
    own = launch()
    with closing(Proxy(own.address)) as network:
        cut_off = Client(network.address)
        until_sampling(cut_off.stream(endless(prompts[0])))
        network.freeze()
        eventually(lambda: own.metric("basin_audits_in_flight") == 0)
    assert own.metric("basin_rpcs_total", method="AuditService/StreamAudit", code="CANCELLED") == 1


def test_connections_that_say_nothing(launch: Callable[..., Client], prompts: list[str]) -> None:
    """Hundreds of them disturb nobody, and are given back."""
    own = launch()
    own.audit(small(prompts[0]))
    host, _, port = own.address.rpartition(":")
    files = psutil.Process().num_fds()
    with ExitStack() as stack:
        for number in range(300):
            half = stack.enter_context(socket.create_connection((host, int(port))))
            if number % 2:
                half.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[: number % 24])
        assert own.audit(small(prompts[0])).cost.evaluations == SMALL
        assert own.health() == SERVING
    eventually(lambda: psutil.Process().num_fds() <= files + 8)


def test_a_client_that_does_not_read(launch: Callable[..., Client], prompts: list[str], tmp_path: Path) -> None:
    """Its stream waits for it, holding little; others are served, and when it goes away all is given back."""
    own = launch(batches={"store": f"sqlite:///{tmp_path}/basin.db"})
    how = spec(reference="demo", seeds=48, pictures=batch_pb2.BATCH_PICTURES_ALL)
    id_ = create(own, prompts[:30], how)
    ended(own, id_)
    memory = psutil.Process().memory_info().rss
    request = batch_pb2.StreamBatchResultsRequest(batch=id_, include_reports=True, follow=True)
    lazy = [own.batches.StreamBatchResults(request) for _ in range(20)]
    for call in lazy:
        next(iter(call))
    assert own.audit(small(prompts[0])).cost.evaluations == SMALL
    assert own.health() == SERVING
    assert psutil.Process().memory_info().rss < memory + 200 * 2**20
    for call in lazy:
        call.cancel()
    eventually(
        lambda: own.metric("basin_rpcs_total", method="BatchService/StreamBatchResults", code="CANCELLED") == len(lazy)
    )


# What calls leave behind.


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server in this process, whose inside can be looked at."""
    store = tmp_path_factory.mktemp("lone") / "basin.db"
    settings = load_settings(
        listen="127.0.0.1:0", metrics="127.0.0.1:0", concurrent_audits=1, batches={"store": f"sqlite:///{store}"}
    )
    with start_server(settings) as server:
        assert server.wait_ready(LONG)
        yield server


def upload_without_end() -> Iterator[batch_pb2.UploadBatchRequest]:
    """A header, and prompts for ever."""
    yield batch_pb2.UploadBatchRequest(header=batch_pb2.UploadBatchHeader(spec=spec()))
    while True:
        prompts = batch_pb2.BatchPrompts(prompts=[batch_pb2.BatchPrompt(prompt="x")])
        yield batch_pb2.UploadBatchRequest(prompts=prompts)


#: Calls that take far longer than their test, by the kind of call.
CALLS: dict[str, Callable[[Client, str, float | None], Any]] = {
    "Audit": lambda client, batch, timeout: client.audits.Audit.future(endless("x"), timeout=timeout),
    "StreamAudit": lambda client, batch, timeout: client.stream(endless("x"), timeout),
    "UploadBatch": lambda client, batch, timeout: client.batches.UploadBatch.future(
        upload_without_end(), timeout=timeout
    ),
    "StreamBatchResults": lambda client, batch, timeout: client.batches.StreamBatchResults(
        batch_pb2.StreamBatchResultsRequest(batch=batch, follow=True), timeout=timeout
    ),
    "WaitOperation": lambda client, batch, timeout: client.operations.WaitOperation.future(
        operations_pb2.WaitOperationRequest(name=f"operations/{batch}"), timeout=timeout
    ),
}


@pytest.mark.parametrize(
    ("kind", "end"),
    # An operation is waited for until shortly before the deadline, and told as it is then.
    [(kind, end) for kind in CALLS for end in ("cancel", "deadline") if (kind, end) != ("WaitOperation", "deadline")],
)
def test_nothing_is_left_of_a_call(lone: RunningServer, kind: str, end: str) -> None:
    """Whatever kind it is and however it ends: no place, no work, no thread of the server's."""
    client = Client.of(lone)
    id_ = create(client, ["held"], endless_batch())
    active = lone._server._calls
    call = CALLS[kind](client, id_, 2.0 if end == "deadline" else None)
    if end == "cancel":
        eventually(lambda: active._active)
        call.cancel()
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)) as ended_:
        list(call) if kind.startswith("Stream") else call.result()
    if isinstance(ended_.value, grpc.RpcError):
        expected = grpc.StatusCode.CANCELLED if end == "cancel" else grpc.StatusCode.DEADLINE_EXCEEDED
        assert failure_of(ended_.value).code is expected
    client.batches.CancelBatch(batch_pb2.CancelBatchRequest(batch=id_), timeout=LONG)
    eventually(lambda: not active._active)
    eventually(lambda: client.metric("basin_audits_in_flight") == client.metric("basin_queue_depth") == 0)
    assert client.metric("basin_queue_evaluations") == 0
    assert lone._server._batch_handlers._intakes == 0
    registered = lone._server._checkpoints._registered["demo"]
    eventually(lambda: registered.users == 0)
    assert registered.loaded is not None
    eventually(lambda: registered.loaded.batching._lanes == {False: 0, True: 0})


# Memory and disks.


def test_an_audit_that_needs_too_much_memory(spawn: Spawn, prompts: list[str]) -> None:
    """It fails alone, with a code that says why; the server goes on, and audits as before where there is memory."""
    process = spawn(limits={"pixels": 2**30}, concurrent_audits=1)
    client = process.client()
    before = client.audit(small(prompts[0]))
    used = psutil.Process(process.pid).memory_info().vms
    resource.prlimit(process.pid, resource.RLIMIT_AS, (used + 100 * 2**20, resource.RLIM_INFINITY))
    huge = small(prompts[0])
    huge.sampler.height = huge.sampler.width = 1024
    refused = failure(lambda: client.audit(huge))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert client.health("liveness") == SERVING
    resource.prlimit(process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert client.metric("basin_model_failures_total", kind="out_of_memory") == 1
    after = client.audit(small(prompts[0]))
    assert unhurried(after) == unhurried(before)


def test_a_disk_that_is_full(spawn: Spawn, tmp_path: Path, prompts: list[str]) -> None:
    """A batch pauses and says so, and callers' audits go on; with room again it goes on, too, losing nothing."""
    store = tmp_path / "basin.db"
    process = spawn(batches={"store": f"sqlite:///{store}", "lanes": 2})
    client = process.client()
    id_ = create(client, [f"full {number}" for number in range(6)], slow())
    begun(client, id_, 1)
    # Files can grow no more, the log neither, as on a full disk; the limit is the process's own.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    eventually(lambda: client.metric("basin_store_errors_total") > 0)
    assert client.audit(small(prompts[0])).cost.evaluations == SMALL
    assert client.health() == SERVING
    eventually(lambda: get(client, id_).progress.state == batch_pb2.BATCH_STATE_PAUSED)
    done = get(client, id_).progress.done
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    batch = ended(client, id_)
    assert (batch.progress.state, batch.progress.failed) == (batch_pb2.BATCH_STATE_DONE, 0)
    assert batch.progress.done >= max(6, done)


# Stopped processes and clocks.


def test_a_server_that_is_stopped_for_a_while(spawn: Spawn, postgres: Postgres) -> None:
    """Another one takes over what it held; when it goes on, nothing is done twice and nothing lost."""
    url = postgres.create()
    # Rows that it holds are waited for until PostgreSQL takes them back.
    processes = [spawn(batches={"store": url, "lanes": 2, "lease_seconds": 2}, abandoned=5) for _ in range(2)]
    one, other = (process.client() for process in processes)
    id_ = create(one, [f"stopped {number}" for number in range(8)], slow())
    begun(other, id_, 1)
    processes[0].signal(signal.SIGSTOP)
    batch = ended(other, id_)
    processes[0].signal(signal.SIGCONT)
    assert (batch.progress.state, batch.progress.failed) == (batch_pb2.BATCH_STATE_DONE, 0)
    whole = results(other, id_)
    assert [result.position for result in whole] == list(range(8))
    eventually(lambda: one.health() == SERVING)
    eventually(lambda: get(one, id_) == get(other, id_))  # it learns what the other one did
    assert results(one, id_) == whole
    for process in processes:
        process.kill()
    postgres.drop(url)


@contextmanager
def served_under_a_clock(folder: Path) -> Iterator[tuple[Client, Callable[[int], None]]]:
    """A server whose clock can be set, by so many seconds."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    assert library is not None, "install Debian's package faketime"
    clock, log = folder / "clock", folder / "log"
    clock.write_text("+0s")
    environment = os.environ | {
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "BASIN_BATCHES__STORE": f"sqlite:///{folder}/basin.db",
        "BASIN_BATCHES__LEASE_SECONDS": "5", "BASIN_LOG_FORMAT": "json",
    }  # fmt: skip
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"],
            cwd=ROOT, env=environment, stderr=stream,
        )  # fmt: skip
    try:
        yield _found(process, log), lambda seconds: _set(clock, seconds)
    finally:
        process.terminate()
        process.communicate(timeout=LONG)
    assert process.returncode == 0


def _found(process: subprocess.Popen[bytes], log: Path) -> Client:
    def lines() -> list[dict[str, Any]]:
        assert process.poll() is None, log.read_text()
        whole = (line for line in log.read_text().splitlines() if line.startswith("{") and line.endswith("}"))
        return [json.loads(line) for line in whole]

    eventually(lambda: any(line["event"] == "ready" for line in lines()))
    bound = next(line for line in lines() if line["event"] == "listening")
    return Client(bound["address"], bound["metrics"])


def _set(clock: Path, seconds: int) -> None:
    new = clock.with_suffix(".new")
    new.write_text(f"{seconds:+}s")
    new.replace(clock)


def test_a_clock_that_jumps(tmp_path: Path, prompts: list[str]) -> None:
    """An hour ahead and a day back, in the middle of a batch: no deadline passes, no work is lost or done twice."""
    with served_under_a_clock(tmp_path) as (client, set_clock):
        id_ = create(client, [f"jump {number}" for number in range(8)], slow())
        for done, jump in ((1, 3600), (2, -86_400), (3, 60)):
            begun(client, id_, done)
            set_clock(jump)
            assert client.audit(small(prompts[0]), timeout=60).cost.evaluations == SMALL
        batch = ended(client, id_)
        assert (batch.progress.state, batch.progress.failed) == (batch_pb2.BATCH_STATE_DONE, 0)
        whole = results(client, id_)
        assert [result.position for result in whole] == list(range(8))
    engine = connect(f"sqlite:///{tmp_path}/basin.db")
    with engine.connect() as connection:
        assert connection.execute(select(func.sum(TaskRow.losses), func.sum(TaskRow.attempts))).one() == (0, 0)
    engine.dispose()


# Loading.


def test_a_signal_while_loading(spawn: Spawn) -> None:
    """A server that is told to end before it is ready ends at once, without an error."""
    process = spawn()
    process.says("listening")
    process.signal(signal.SIGTERM)
    assert process.ends() == 0
    assert process.log[-1]["event"] == "stopped"


def test_searches_and_loads_that_nobody_waits_for(lone: RunningServer) -> None:
    """A caller that goes away takes its place in the line along; loading goes on."""
    client = Client.of(lone)
    calls = [
        client.references.SearchReference.future(
            reference_pb2.SearchReferenceRequest(reference="demo", image=b"no image"), timeout=LONG
        )
        for _ in range(8)
    ]
    for call in calls:
        call.cancel()
    load = client.checkpoints.LoadCheckpoint.future(checkpoint_pb2.LoadCheckpointRequest(checkpoint="demo"))
    load.cancel()
    eventually(lambda: not lone._server._calls._active)
    assert lone._server._reference_handlers._line.weight == 0
    assert client.audit(small("x")).cost.evaluations == SMALL
