"""What Prometheus scrapes. Every server has a registry of its own, and every label set exists from the start."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from wsgiref.simple_server import WSGIServer

import grpc
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from audit.report import library_versions
from audit.verdict.rule import CLASSES
from audit.version import basin_version
from service.config import ConfigError, split_address

STAGES = ("sampling", "decoding", "searching", "curvature", "concluding")
#: The codes, other than OK, that an audit can end with.
FAILURES = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
)
#: The label of audits whose request names no registered checkpoint.
NO_CHECKPOINT = ""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_PASS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The metrics of one server.

    Args:
        checkpoints: ids of the registered ones.
        references: names of the registered ones.
    """

    def __init__(self, checkpoints: Iterable[str], references: Iterable[str]) -> None:
        # They are one more series beside every counter and histogram, of no use here.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self._checkpoints = frozenset(checkpoints)
        self._audits = Counter(
            "basin_audits_total",
            "Audits answered, by checkpoint, verdict (empty without one) and status code.",
            ("checkpoint", "verdict", "code"),
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "basin_audit_stage_seconds",
            "Seconds that finished audits spent in each stage.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_wait_seconds = Histogram(
            "basin_queue_wait_seconds",
            "Seconds that audits waited before their work began.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.evaluations = Counter(
            "basin_denoiser_evaluations_total",
            "Single-row denoiser evaluations made.",
            ("checkpoint",),
            registry=registry,
        )
        self.forward_pass_rows = Histogram(
            "basin_forward_pass_rows",
            "Rows merged into each forward pass of a denoiser.",
            buckets=_ROWS,
            registry=registry,
        )
        self.forward_pass_seconds = Histogram(
            "basin_forward_pass_seconds",
            "Seconds of each forward pass of a denoiser.",
            buckets=_PASS_SECONDS,
            registry=registry,
        )
        self.checkpoints_loaded = Gauge("basin_checkpoints_loaded", "Checkpoints in memory.", registry=registry)
        self.reference_images = Gauge(
            "basin_reference_images", "Images in each loaded reference set.", ("reference",), registry=registry
        )
        build = Info("basin_build", "Versions of Basin and of the libraries that decide numbers.", registry=registry)
        libraries = {name.replace("-", "_"): version for name, version in library_versions().items()}
        build.info({"version": basin_version(), **libraries})
        ProcessCollector(registry=registry)

        for checkpoint in (*self._checkpoints, NO_CHECKPOINT):
            for code in FAILURES:
                self._audits.labels(checkpoint, "", code.name)
        for checkpoint in self._checkpoints:
            self.evaluations.labels(checkpoint)
            for verdict in CLASSES:
                self._audits.labels(checkpoint, verdict, grpc.StatusCode.OK.name)
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        for reference in references:
            self.reference_images.labels(reference)

    def watch_queue(self, depth: Callable[[], int], in_flight: Callable[[], int]) -> None:
        """Read the queue's gauges from the queue itself."""
        Gauge("basin_queue_depth", "Audits waiting.", registry=self.registry).set_function(depth)
        Gauge("basin_audits_in_flight", "Audits being worked on.", registry=self.registry).set_function(in_flight)

    def count_audit(self, checkpoint: str, code: grpc.StatusCode, verdict: str = "") -> None:
        """Count an answer. Whatever a client may have made up does not become a label."""
        if checkpoint not in self._checkpoints:
            checkpoint = NO_CHECKPOINT
        if code not in FAILURES and not verdict:
            code = grpc.StatusCode.INTERNAL
        self._audits.labels(checkpoint, verdict, code.name).inc()

    def observe_pass(self, checkpoint: str, rows: int, seconds: float) -> None:
        """Record one forward pass."""
        self.evaluations.labels(checkpoint).inc(rows)
        self.forward_pass_rows.observe(rows)
        self.forward_pass_seconds.observe(seconds)


class MetricsServer:
    """Serves /metrics on its own port, from a thread of its own.

    Args:
        metrics: what is served.
        address: HOST:PORT; port 0 takes a free one.

    Attributes:
        address: HOST:PORT as bound.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(self, metrics: Metrics, address: str) -> None:
        host, port = split_address(address)
        self._server: WSGIServer
        self._thread: threading.Thread
        try:
            self._server, self._thread = prometheus_client.start_http_server(port, host, metrics.registry)
        except OSError as error:
            raise ConfigError(f"metrics: {address} cannot be bound: {error.strerror or error}") from error
        self.address = f"{address.rpartition(':')[0]}:{self._server.server_port}"

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
