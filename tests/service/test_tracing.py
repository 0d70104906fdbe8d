"""Traces, as a collector of OpenTelemetry's protocol receives them, and their ids in the log."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from service.config import ConfigError, load_settings
from service.server import start_server
from tests.service.helpers import LONG, SMALL, Client, eventually, failure, small
from tests.service.processes import Process

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self._lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See the protocol."""
        with self._lock:
            self.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Any]:
        """Spans of a name."""
        with self._lock:
            return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector on this machine, and where it is."""
    found, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield found, f"http://127.0.0.1:{port}"
    server.stop(None)


def attributes(span: Any) -> dict[str, Any]:
    """Of a span, texts and whole numbers."""
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_an_audit_is_a_trace(collector: tuple[Collector, str], prompts: list[str]) -> None:
    """A span for the call, in the caller's trace, with one for the wait and one for each stage below; no prompt."""
    found, endpoint = collector
    settings = load_settings(listen="127.0.0.1:0", metrics="off", traces=endpoint)
    with start_server(settings) as server:
        assert server.wait_ready(LONG)
        client = Client.of(server)
        client.audits.Audit(small(prompts[0], reference="demo"), metadata=[TRACEPARENT], timeout=LONG)
        failure(lambda: client.audit(small(" ")))
    answered, refused = sorted(found.named("audit.v1.AuditService/Audit"), key=lambda span: span.start_time_unix_nano)
    assert (answered.trace_id.hex(), answered.parent_span_id.hex()) == (TRACE, PARENT)
    told = attributes(answered)
    assert (told["rpc.grpc.status"], told["basin.checkpoint"], told["basin.evaluations"]) == ("OK", "demo", SMALL)
    assert attributes(refused)["basin.reason"] == "PROMPT_EMPTY"
    assert refused.trace_id != answered.trace_id
    below = [span for span in found.spans if span.parent_span_id == answered.span_id]
    assert [span.name for span in sorted(below, key=lambda span: span.start_time_unix_nano)] == [
        "queued", "screening", "sampling", "decoding", "searching", "curvature", "concluding",
    ]  # fmt: skip
    assert all(span.end_time_unix_nano <= answered.end_time_unix_nano for span in below)
    assert prompts[0] not in str(found.spans)


def test_of_traces_begun_here_a_share_is_kept(collector: tuple[Collector, str], prompts: list[str]) -> None:
    """Callers decide over theirs."""
    found, endpoint = collector
    settings = load_settings(listen="127.0.0.1:0", metrics="off", traces=endpoint, trace_ratio=0)
    with start_server(settings) as server:
        assert server.wait_ready(LONG)
        client = Client.of(server)
        client.audit(small(prompts[0]))
        client.audits.Audit(small(prompts[0]), metadata=[TRACEPARENT], timeout=LONG)
    assert [span.trace_id.hex() for span in found.named("audit.v1.AuditService/Audit")] == [TRACE]


def test_the_log_knows_the_trace(spawn: Callable[..., Process], prompts: list[str]) -> None:
    """Whether or not traces are kept; what is no trace context is left out."""
    process = spawn()
    client = Client(process.says("listening")["address"])
    process.says("ready")
    for value in (TRACEPARENT[1], "nonsense"):
        client.audits.Audit(small(prompts[0]), metadata=[("traceparent", value)], timeout=LONG)
    eventually(lambda: len([line for line in process.log if line["event"] == "call"]) == 2)
    first, second = (line for line in process.log if line["event"] == "call")
    assert (first["trace_id"], first["method"], first["code"]) == (TRACE, "AuditService/Audit", "OK")
    assert "trace_id" not in second
    assert first["request_id"] != second["request_id"]


def test_without_opentelemetry_the_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "service.otel", None)
    with pytest.raises(ConfigError, match=r"traces: OpenTelemetry is not installed: pip install 'basin-audit\[otel\]'"):
        start_server(load_settings(listen="127.0.0.1:0", metrics="off", traces="http://127.0.0.1:1"))
