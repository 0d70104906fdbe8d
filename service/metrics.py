"""What Prometheus scrapes. Every server has a registry of its own, and every label set exists from the start."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from wsgiref.simple_server import WSGIServer

import grpc
import prometheus_client
import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from audit.verdict.rule import CLASSES
from audit.version import basin_version, library_versions
from service.config import ConfigError
from service.config_parts import split_address
from service.store.records import BATCH_STATES, TASK_STATES

STAGES = ("screening", "sampling", "decoding", "searching", "curvature", "concluding", "explaining")
#: The codes, other than OK, that a call can end with.
FAILURES = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
)
#: Reasons of errors that tell something about the server, or of which an operator wants to know the number.
REASONS = frozenset(
    (
        "ADMIN_CLOSED", "BATCHES_FULL", "CANCELLED", "CHECKPOINT_DAMAGED", "CHECKPOINT_LOADING",
        "CHECKPOINT_NOT_LOADED", "DATABASE_AWAY", "DEADLINE_BEHIND_QUEUE", "DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT",
        "INTERNAL",
        "MODEL_CONTROL_CLOSED", "OUT_OF_MEMORY", "PROMPT_TOO_LONG", "QUEUE_FULL", "QUOTA_EXCEEDED", "REFERENCE_DAMAGED",
        "REFERENCE_LOADING", "REFERENCE_STORE_CLOSED", "REFERENCE_STORE_FULL", "REQUEST_UNREADABLE",
        "SAMPLES_NOT_FINITE", "SCOPE_MISSING", "SEARCHES_FULL",
        "SHUTTING_DOWN", "STORE_DOWN", "TOKEN_EXPIRED", "TOKEN_INVALID", "TOKEN_MISSING", "TOO_MANY_INTAKES",
    )
)  # fmt: skip
#: The label of all the others.
OTHER = "OTHER"
#: The label of audits whose request names no registered checkpoint.
NO_CHECKPOINT = ""
#: Whose denoiser evaluations they are: of callers' audits or of batches.
AUDIT, BATCH = "audit", "batch"
#: Ways in which a model can fail an audit.
NOT_FINITE, OUT_OF_MEMORY = "not_finite", "out_of_memory"
#: What may become of images that callers send.
RECEIVED = ("added", "duplicates", "repeated_images", "unreadable")
OPERATIONS = ("select", "insert", "update", "delete", "commit", "other")

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SHARES = (0.34, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The metrics of one server.

    Args:
        checkpoints: ids of the registered ones.
        references: names of the registered ones.
        methods: that the server answers, as "Service/Method".
    """

    def __init__(self, checkpoints: Iterable[str], references: Iterable[str], methods: Iterable[str]) -> None:
        # They are one more series beside every counter and histogram, of no use here.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self._checkpoints = frozenset(checkpoints)
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)

        self._rpcs = counter("basin_rpcs_total", "Calls answered, by method and status code.", ("method", "code"))
        self._rpc_seconds = histogram(
            "basin_rpc_seconds",
            "Seconds from a call's arrival to its end.",
            ("method",),
            buckets=(*_SHORT_SECONDS, 10, 30, 100),
        )
        self._errors = counter(
            "basin_errors_total",
            "Calls that ended with an error, by its reason; OTHER: of the request alone.",
            ("reason",),
        )

        self._audits = counter(
            "basin_audits_total",
            "Audits answered, by checkpoint, verdict (empty without one) and status code.",
            ("checkpoint", "verdict", "code"),
        )
        self._screened = counter(
            "basin_screened_prompts_total",
            "Prompts screened, by checkpoint and whether they were flagged.",
            ("checkpoint", "flagged"),
        )
        self._inspected = counter(
            "basin_inspected_images_total",
            "Images inspected, by checkpoint and verdict (empty where nothing told).",
            ("checkpoint", "verdict"),
        )
        self.audit_seconds = histogram(
            "basin_audit_seconds", "Seconds that finished audits took, without waiting.", buckets=_SECONDS
        )
        self.stage_seconds = histogram(
            "basin_audit_stage_seconds",
            "Seconds that finished audits spent in each stage.",
            ("stage",),
            buckets=_SECONDS,
        )
        self.confidence = histogram(
            "basin_confidence", "Confidence of verdicts, from 1/3 to 1.", ("verdict",), buckets=_SHARES
        )
        self.queue_wait_seconds = histogram(
            "basin_queue_wait_seconds", "Seconds that audits waited before their work began.", buckets=_SECONDS
        )

        self.evaluations_saved = counter(
            "basin_denoiser_evaluations_saved_total",
            "Denoiser evaluations of callers' audits that were planned, and not needed to settle the answer.",
            ("checkpoint",),
        )
        self._evaluations = counter(
            "basin_denoiser_evaluations_total",
            "Single-row denoiser evaluations made, for callers' audits and for batches.",
            ("checkpoint", "work"),
        )
        self._forward_pass_rows = histogram(
            "basin_forward_pass_rows", "Rows merged into each forward pass of a denoiser.", buckets=_ROWS
        )
        self._forward_pass_seconds = histogram(
            "basin_forward_pass_seconds", "Seconds of each forward pass of a denoiser.", buckets=_SHORT_SECONDS
        )
        self.model_failures = counter(
            "basin_model_failures_total",
            "Audits that a model failed: by NaN, or by needing too much memory.",
            ("checkpoint", "kind"),
        )

        self.checkpoints_loaded = gauge("basin_checkpoints_loaded", "Checkpoints in memory.")
        self.checkpoint_loaded = gauge("basin_checkpoint_loaded", "Whether a checkpoint is in memory.", ("checkpoint",))
        self.checkpoint_memory = gauge(
            "basin_checkpoint_memory_bytes",
            "Bytes of a checkpoint's weights, until those of an unloaded one are gone.",
            ("checkpoint",),
        )
        self.checkpoint_load_seconds = gauge(
            "basin_checkpoint_load_seconds", "Seconds that the last loading of a checkpoint took.", ("checkpoint",)
        )
        self._calibration_info = gauge(
            "basin_calibration_info",
            "The calibration that a checkpoint is judged by, by its digest; empty for the built-in defaults.",
            ("checkpoint", "digest"),
        )
        self._calibration_time = gauge(
            "basin_calibration_timestamp_seconds",
            "Unix time at which a checkpoint's calibration was made; 0 for the built-in defaults.",
            ("checkpoint",),
        )
        self.checkpoint_loads = counter(
            "basin_checkpoint_loads_total",
            "Times that a checkpoint was loaded, or could not be.",
            ("checkpoint", "result"),
        )
        self.checkpoint_evictions = counter(
            "basin_checkpoint_evictions_total", "Checkpoints unloaded to make room for others."
        )
        self.reference_images = gauge("basin_reference_images", "Images in each loaded reference set.", ("reference",))
        self.reference_search_seconds = histogram(
            "basin_reference_search_seconds",
            "Seconds of each search with an uploaded image or a prompt.",
            buckets=_SHORT_SECONDS,
        )
        self.created_references = gauge("basin_created_references", "Reference sets that callers made.")
        self.created_reference_bytes = gauge(
            "basin_created_reference_bytes", "Bytes of the reference sets that callers made."
        )
        self._received_images = counter(
            "basin_received_images_total",
            "Images that callers sent for reference sets, by what became of them.",
            ("result",),
        )

        self.store_seconds = histogram(
            "basin_store_seconds",
            "Seconds of each statement of the store of batches.",
            ("operation",),
            buckets=_SHORT_SECONDS,
        )
        self.store_errors = counter(
            "basin_store_errors_total", "Times that the store of batches could not do its work."
        )
        self.batches = gauge("basin_batches", "Batches in the store, by state.", ("state",))
        self.batch_items = gauge(
            "basin_batch_items", "Items of the running batches that servers work on, by state.", ("state",)
        )
        self.batch_audits = counter(
            "basin_batch_audits_total",
            "Audits of batches that this server finished, or that failed.",
            ("checkpoint", "verdict", "result"),
        )
        self.batch_last_success = gauge(
            "basin_batch_last_success_timestamp_seconds", "When the last batch in the store was done; 0 before."
        )

        self.ready = gauge(
            "basin_ready", "Whether calls are taken, all that is loaded at the start was, and some checkpoint still is."
        )
        self.draining = gauge("basin_draining", "Whether the server is about to stop.")
        self._certificate_expiry = gauge(
            "basin_certificate_expiry_timestamp_seconds", "When the server's certificate expires; 0 without TLS."
        )
        if torch.cuda.is_available():
            self._watch_gpus()
        build = Info("basin_build", "Versions of Basin and of the libraries that decide numbers.", registry=registry)
        libraries = {name.replace("-", "_"): version for name, version in library_versions().items()}
        build.info({"version": basin_version(), **libraries})
        ProcessCollector(registry=registry)
        self._begin(sorted(references), sorted(methods))

    def _begin(self, references: Sequence[str], methods: Sequence[str]) -> None:
        """Let every series exist."""
        codes = [grpc.StatusCode.OK.name, *(code.name for code in FAILURES)]
        for method in methods:
            self._rpc_seconds.labels(method)
            for code in codes:
                self._rpcs.labels(method, code)
        for reason in (*REASONS, OTHER):
            self._errors.labels(reason)
        for checkpoint in (*self._checkpoints, NO_CHECKPOINT):
            for failure in FAILURES:
                self._audits.labels(checkpoint, "", failure.name)
        for checkpoint in self._checkpoints:
            for verdict in CLASSES:
                self._audits.labels(checkpoint, verdict, grpc.StatusCode.OK.name)
                self.batch_audits.labels(checkpoint, verdict, "done")
            self.batch_audits.labels(checkpoint, "", "failed")
            for work in (AUDIT, BATCH):
                self._evaluations.labels(checkpoint, work)
            self.evaluations_saved.labels(checkpoint)
            for flagged in ("true", "false"):
                self._screened.labels(checkpoint, flagged)
            for told in (*CLASSES, ""):
                self._inspected.labels(checkpoint, told)
            self._calibration_time.labels(checkpoint)
            for kind in (NOT_FINITE, OUT_OF_MEMORY):
                self.model_failures.labels(checkpoint, kind)
            for result in ("ok", "failed"):
                self.checkpoint_loads.labels(checkpoint, result)
            for by_checkpoint in (self.checkpoint_loaded, self.checkpoint_memory, self.checkpoint_load_seconds):
                by_checkpoint.labels(checkpoint)
        for verdict in CLASSES:
            self.confidence.labels(verdict)
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        for reference in references:
            self.reference_images.labels(reference)
        for result in RECEIVED:
            self._received_images.labels(result)
        for operation in OPERATIONS:
            self.store_seconds.labels(operation)
        for state in BATCH_STATES:
            self.batches.labels(state)
        for state in TASK_STATES:
            self.batch_items.labels(state)

    def watch_queue(
        self, depth: Callable[[], int], in_flight: Callable[[], int], evaluations: Callable[[], int], most: int
    ) -> None:
        """Read the queue's gauges from the queue itself."""
        gauge = partial(Gauge, registry=self.registry)
        gauge("basin_queue_depth", "Audits waiting.").set_function(depth)
        gauge("basin_audits_in_flight", "Audits being worked on.").set_function(in_flight)
        gauge(
            "basin_queue_evaluations", "Denoiser evaluations planned by audits that wait or are worked on."
        ).set_function(evaluations)
        gauge("basin_queue_evaluations_limit", "Most of them before audits are refused.").set(most)

    def watch_certificate(self, expires: Callable[[], float]) -> None:
        """Read from the certificate when it expires, in seconds since 1970."""
        self._certificate_expiry.set_function(expires)

    def count_rpc(self, method: str, code: grpc.StatusCode, seconds: float, reason: str = "") -> None:
        """Count the end of a call of a method that the server answers."""
        self._rpcs.labels(method, _known(code).name).inc()
        self._rpc_seconds.labels(method).observe(seconds)
        if code is not grpc.StatusCode.OK:
            self._errors.labels(reason if reason in REASONS else OTHER).inc()

    def count_audit(self, checkpoint: str, code: grpc.StatusCode, verdict: str = "") -> None:
        """Count an answer. Whatever a client may have made up does not become a label."""
        if checkpoint not in self._checkpoints:
            checkpoint = NO_CHECKPOINT
        self._audits.labels(checkpoint, verdict, code.name if verdict else _known(code).name).inc()

    def count_screening(self, checkpoint: str, flagged: int, passed: int) -> None:
        """Count the prompts of a screening that was answered."""
        self._screened.labels(checkpoint, "true").inc(flagged)
        self._screened.labels(checkpoint, "false").inc(passed)

    def count_inspection(self, checkpoint: str, verdict: str) -> None:
        """Count an inspection that was answered; without a verdict nothing told."""
        self._inspected.labels(checkpoint, verdict).inc()

    def count_received(self, **images: int) -> None:
        """Count images that callers sent, by what became of them: see `RECEIVED`."""
        for result, count in images.items():
            self._received_images.labels(result).inc(count)

    def set_calibration(self, checkpoint: str, digest: str, made: datetime | None) -> None:
        """Tell which calibration a loaded checkpoint is judged by; no digest for the built-in defaults."""
        self._calibration_info.remove_by_labels({"checkpoint": checkpoint})
        self._calibration_info.labels(checkpoint, digest).set(1)
        self._calibration_time.labels(checkpoint).set(0.0 if made is None else made.timestamp())

    def count_batch_audit(self, checkpoint: str, verdict: str = "") -> None:
        """Count an audit of a batch; without a verdict it failed."""
        if checkpoint in self._checkpoints:
            self.batch_audits.labels(checkpoint, verdict, "done" if verdict else "failed").inc()

    def observe_pass(self, checkpoint: str, rows: int, background: int, seconds: float) -> None:
        """Record one forward pass; of its rows, some may be of batches."""
        self._evaluations.labels(checkpoint, AUDIT).inc(rows - background)
        self._evaluations.labels(checkpoint, BATCH).inc(background)
        self._forward_pass_rows.observe(rows)
        self._forward_pass_seconds.observe(seconds)

    def _watch_gpus(self) -> None:
        memory = Gauge(
            "basin_gpu_memory_bytes",
            "Memory of each GPU, used by whomever, and all.",
            ("device", "kind"),
            registry=self.registry,
        )

        def used(device: int) -> float:
            free, total = torch.cuda.mem_get_info(device)
            return total - free

        for device in range(torch.cuda.device_count()):
            memory.labels(f"cuda:{device}", "used").set_function(partial(used, device))
            memory.labels(f"cuda:{device}", "total").set(torch.cuda.mem_get_info(device)[1])


def _known(code: grpc.StatusCode) -> grpc.StatusCode:
    return code if code in FAILURES or code is grpc.StatusCode.OK else grpc.StatusCode.INTERNAL


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
        self._host, port = split_address(address)
        self._server: WSGIServer
        self._thread: threading.Thread
        try:
            self._server, self._thread = prometheus_client.start_http_server(port, self._host, metrics.registry)
        except OSError as error:
            raise ConfigError(f"metrics: {address} cannot be bound: {error.strerror or error}") from error
        self.address = f"{address.rpartition(':')[0]}:{self._server.server_port}"

    def close(self) -> None:
        """Stop answering and free the port."""
        ending = threading.Thread(target=self._server.shutdown)
        ending.start()
        # It looks whether to end when somebody calls, or else twice a second.
        with contextlib.suppress(OSError):
            socket.create_connection((self._host, self._server.server_port), timeout=1).close()
        ending.join()
        self._server.server_close()
        self._thread.join()
