"""Tracing with OpenTelemetry's SDK, which not everybody has installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from audit.version import basin_version
from service.tracing import Span, Tracing

_NANO = 1_000_000_000


class OtelTracing(Tracing):
    """Sends spans to a collector, in the background.

    Args:
        endpoint: URL of an OTLP collector over gRPC.
        ratio: share of the traces begun here that are kept; callers decide over theirs.
    """

    def __init__(self, endpoint: str, ratio: float) -> None:
        resource = Resource.create({"service.name": "basin", "service.version": basin_version()})
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(ratio)))
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("basin")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def call(self, method: str, metadata: Mapping[str, str]) -> Iterator[Span]:
        """See `Tracing.call`."""
        service, _, name = method.partition("/")
        with self._tracer.start_as_current_span(
            method,
            self._propagator.extract(metadata),
            trace.SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
            record_exception=False,  # its text may quote what the caller sent
            set_status_on_exception=False,
        ) as span:
            yield _Span(self._tracer, span)

    def close(self) -> None:
        """See `Tracing.close`."""
        self._provider.shutdown()


class _Span(Span):
    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        super().__init__(trace.format_trace_id(span.get_span_context().trace_id))
        self._tracer = tracer
        self._span = span

    def end(self, code: str, reason: str, facts: Mapping[str, Any]) -> None:
        self._span.set_attribute("rpc.grpc.status", code)
        for name, value in facts.items():
            if name != "prompt":
                self._span.set_attribute(f"basin.{name}", value)
        if reason:
            self._span.set_attribute("basin.reason", reason)
            self._span.set_status(trace.StatusCode.ERROR, reason)

    def stages(self, finished: float, queued: float, stages: Mapping[str, float]) -> None:
        spent = {"queued": queued, **stages}
        context = trace.set_span_in_context(self._span)
        begin = finished - sum(spent.values())
        for name, seconds in spent.items():
            child = self._tracer.start_span(name, context, start_time=int(begin * _NANO))
            begin += seconds
            child.end(int(begin * _NANO))
