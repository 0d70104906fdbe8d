"""The server as a whole: what it says of itself, its health, how it ends."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from audit.model.sampling import SCHEDULERS
from audit.v1 import audit_pb2, batch_pb2, info_pb2
from service import batch_handlers
from service import server as server_module
from service.client import BasinClient
from service.config import ConfigError, load_settings
from service.server import SERVICES, start_server
from tests.service.batch_calls import create, id_of, parts_of, spec
from tests.service.helpers import (
    LONG,
    NOT_SERVING,
    SERVING,
    Client,
    endless,
    eventually,
    failure,
    failure_of,
    small,
    until_sampling,
)
from tests.service.processes import Process


def test_info(client: Client) -> None:
    """A client learns versions, limits, schedulers, checkpoints and reference sets."""
    info = client.info.GetInfo(info_pb2.GetInfoRequest(), timeout=LONG)
    assert info.version
    assert {"torch", "diffusers"} <= set(info.libraries)
    assert list(info.schedulers) == list(SCHEDULERS)
    assert (info.limits.prompt_characters, info.limits.seeds, info.limits.queue_evaluations) == (300, 64, 200_000)
    assert all(value for _, value in info.limits.ListFields())
    assert len(info.limits.ListFields()) == len(info_pb2.Limits.DESCRIPTOR.fields)
    assert "demo" in [checkpoint.id for checkpoint in info.checkpoints]
    assert [reference.name for reference in info.references] == ["demo"]


def test_reflection(client: Client) -> None:
    """A client without our files can find out what there is to call."""
    database = ProtoReflectionDescriptorDatabase(client.channel)
    assert {*SERVICES, "grpc.health.v1.Health"} <= set(database.get_services())
    described = database.FindFileContainingSymbol("audit.v1.AuditService")
    assert described.package == "audit.v1"


def test_health(client: Client) -> None:
    """Liveness, readiness and every service have a health of their own; others are unknown."""
    for name in ("", "liveness", "startup", "readiness", *SERVICES):
        assert client.health(name) == SERVING
    assert failure(lambda: client.health("nope")).code is grpc.StatusCode.NOT_FOUND


def test_not_ready_while_a_checkpoint_is_missing(folders: Any, prompts: list[str]) -> None:
    """A checkpoint that was to be there and is broken keeps the server from being ready, not from serving the rest."""
    settings = load_settings(
        listen="127.0.0.1:0", metrics="off", demo=True, checkpoints={"a": folders["damaged"], "b": folders["copy"]}
    )
    with start_server(settings) as server:
        assert not server.wait_ready(LONG)
        assert server.metrics_address == ""
        client = Client.of(server)
        assert client.health("liveness") == client.health("startup") == SERVING
        assert client.health() == client.health("readiness") == client.health("audit.v1.AuditService") == NOT_SERVING
        assert client.health("audit.v1.CheckpointService") == SERVING
        for checkpoint in ("demo", "b"):
            assert client.audit(small(prompts[0], checkpoint=checkpoint))


def test_early_client(prompts: list[str]) -> None:
    """A client that comes while the server still loads need not know: it waits."""
    with (
        start_server(load_settings(listen="127.0.0.1:0", metrics="off")) as server,
        BasinClient(server.address) as early,
    ):
        assert early.audit(small(prompts[0], reference="demo"))


def test_taken_ports() -> None:
    """A port that is taken is an error of one line, and frees what was bound already."""
    free = load_settings(listen="127.0.0.1:0", metrics="127.0.0.1:0")
    with start_server(free) as server:
        for taken in (
            {"listen": server.address, "metrics": "off"},
            {"listen": "127.0.0.1:0", "metrics": server.metrics_address},
        ):
            with pytest.raises(ConfigError, match="cannot be bound") as error:
                start_server(load_settings(**taken))
            assert "\n" not in str(error.value)


def test_stop_without_grace(prompts: list[str]) -> None:
    """Audits that outlast the grace period end as UNAVAILABLE, those at work and those that wait."""
    settings = load_settings(listen="127.0.0.1:0", metrics="off", concurrent_audits=1)
    with start_server(settings) as server:
        assert server.wait_ready(LONG)
        client = Client.of(server)
        working = client.stream(endless(prompts[0]))
        until_sampling(working)
        waiting = client.stream(endless(prompts[1]))
        assert next(waiting).progress.stage == "queued"
        server.stop(grace=0.2)
        for call in (working, waiting):
            with pytest.raises(grpc.RpcError) as ended:
                list(call)
            stopped = failure_of(ended.value)
            assert (stopped.code, stopped.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
            assert stopped.retry_seconds


def test_a_server_that_drains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and calls of every kind that it has begun come to their end within the grace period."""
    monkeypatch.setattr(server_module, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(batch_handlers, "MOST_INTAKES", 1)
    over, store = threading.Event(), {"store": f"sqlite:///{tmp_path}/basin.db"}

    def parts() -> Iterator[batch_pb2.UploadBatchRequest]:
        yield from parts_of(spec(), ["begun before, ended after"])
        over.wait(LONG)

    free = {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0"}
    with start_server(load_settings(**free, batches=store)) as server, ThreadPoolExecutor(1) as callers:
        assert server.wait_ready(LONG)
        client = Client.of(server)
        assert (client.metric("basin_ready"), client.metric("basin_draining")) == (1, 0)
        upload = client.batches.UploadBatch.future(parts(), timeout=LONG)
        eventually(lambda: failure(lambda: create(client, [])).reason == "TOO_MANY_INTAKES")
        stopping = callers.submit(server.stop, grace=LONG)
        eventually(lambda: client.health("readiness") == NOT_SERVING)
        assert (client.metric("basin_ready"), client.metric("basin_draining")) == (0, 1)
        assert client.health("startup") == client.health("liveness") == SERVING
        assert failure(lambda: create(client, [])).reason == "SHUTTING_DOWN"
        over.set()
        assert id_of(upload.result())
        stopping.result()


def test_sigterm_drains(spawn: Callable[..., Process], prompts: list[str]) -> None:
    """After SIGTERM the server lives, is not ready, refuses calls, finishes the audit in flight and exits with 0."""
    process = spawn(grace_seconds=LONG)
    address = process.says("listening")["address"]
    process.says("ready")
    client = Client(address)
    sampler, budget = audit_pb2.SamplerOptions(steps=300), audit_pb2.BudgetOptions(seeds=4)
    call = client.stream(small(prompts[0], sampler=sampler, budget=budget))
    until_sampling(call)
    process.signal()
    eventually(lambda: client.health() == NOT_SERVING)
    assert client.health("readiness") == client.health("audit.v1.AuditService") == NOT_SERVING
    assert client.health("liveness") == SERVING
    refused = failure(lambda: client.audit(small(prompts[1])))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    *_, last = call
    assert last.report.cost.sampling_evaluations == 1200
    assert process.ends() == 0
    process.says("stopped")
    assert all(prompts[0] not in json.dumps(line) for line in process.log)


def test_second_signal_ends_at_once(spawn: Callable[..., Process], prompts: list[str]) -> None:
    """Whoever insists need not wait for audits in flight; the exit code stays 0."""
    process = spawn(grace_seconds=3600, threads=1)
    address = process.says("listening")["address"]
    process.says("ready")
    call = Client(address).stream(endless(prompts[0]))
    until_sampling(call)
    process.signal(signal.SIGINT)
    process.says("draining")
    process.signal(signal.SIGINT)
    assert process.ends() == 0
    with pytest.raises(grpc.RpcError) as ended:
        list(call)
    assert failure_of(ended.value).code is grpc.StatusCode.UNAVAILABLE
