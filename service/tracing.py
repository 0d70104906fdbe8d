"""OpenTelemetry: a span for every call, and below that of an audit one for its wait and one for each stage."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from service.config import ConfigError

#: W3C trace context; its second field is the id of the trace.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class Span:
    """One call, as traces show it. This one goes nowhere.

    Attributes:
        trace_id: that the caller gave, or that was made for the call; "" without one.
    """

    def __init__(self, trace_id: str = "") -> None:
        self.trace_id = trace_id

    def end(self, code: str, reason: str, facts: Mapping[str, Any]) -> None:
        """What the call came to."""

    def stages(self, finished: float, queued: float, stages: Mapping[str, float]) -> None:
        """Where an audit's time went.

        Args:
            finished: when, in seconds since 1970.
            queued: seconds in the queue.
            stages: seconds by stage, in their order.
        """


class Tracing:
    """Makes spans that go nowhere; the ids of callers' traces reach the log all the same."""

    @contextmanager
    def call(self, method: str, metadata: Mapping[str, str]) -> Iterator[Span]:
        """The span of a call.

        Args:
            method: "package.Service/Method".
            metadata: of the call.
        """
        match = _TRACEPARENT.fullmatch(metadata.get("traceparent", ""))
        yield Span(match[1] if match else "")

    def close(self) -> None:
        """Send what was not sent yet."""


def make_tracing(endpoint: str, ratio: float) -> Tracing:
    """Tracing as the operator wants it.

    Args:
        endpoint: URL of an OTLP collector over gRPC; "" for none.
        ratio: share of the traces begun here that are kept.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    if not endpoint:
        return Tracing()
    try:
        from service.otel import OtelTracing
    except ModuleNotFoundError as error:
        raise ConfigError("traces: OpenTelemetry is not installed: pip install 'basin-audit[otel]'") from error
    return OtelTracing(endpoint, ratio)
