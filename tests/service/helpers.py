"""A running server and what tests ask of it."""

from __future__ import annotations

import io
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.longrunning import operations_pb2_grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from audit.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    batch_pb2_grpc,
    checkpoint_pb2_grpc,
    info_pb2_grpc,
    reference_pb2_grpc,
    report_pb2,
)
from service.server import RunningServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
#: Seconds that nothing takes unless it hangs.
LONG = 120


class Client:
    """Stubs of a server's services, and its metrics."""

    def __init__(self, address: str, metrics_address: str = "", health_address: str = "") -> None:
        self.address = address
        self.health_address = health_address
        self.channel = grpc.insecure_channel(address, options=(("grpc.max_receive_message_length", -1),))
        self.audits = audit_pb2_grpc.AuditServiceStub(self.channel)
        self.batches = batch_pb2_grpc.BatchServiceStub(self.channel)
        self.operations = operations_pb2_grpc.OperationsStub(self.channel)
        self.checkpoints = checkpoint_pb2_grpc.CheckpointServiceStub(self.channel)
        self.references = reference_pb2_grpc.ReferenceServiceStub(self.channel)
        self.info = info_pb2_grpc.InfoServiceStub(self.channel)
        self._health = health_pb2_grpc.HealthStub(self.channel)
        self._metrics_address = metrics_address

    @classmethod
    def of(cls, server: RunningServer) -> Client:
        """Of a server in this process."""
        return cls(server.address, server.metrics_address, server.health_address)

    def health(self, service: str = "") -> int:
        """Status of a health service."""
        return self._health.Check(health_pb2.HealthCheckRequest(service=service), timeout=LONG).status

    def audit(self, request: audit_pb2.AuditRequest, timeout: float = LONG) -> report_pb2.Report:
        """The report of a unary audit."""
        return self.audits.Audit(request, timeout=timeout).report

    def stream(self, request: audit_pb2.AuditRequest, timeout: float | None = None) -> Any:
        """A streaming audit."""
        return self.audits.StreamAudit(audit_pb2.StreamAuditRequest(audit=request), timeout=timeout)

    def metrics_text(self) -> str:
        """What Prometheus would scrape."""
        with urllib.request.urlopen(f"http://{self._metrics_address}/metrics", timeout=LONG) as reply:
            return reply.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the series of a metric that bear these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics_text())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


#: Denoiser evaluations of `small`: 8 on pure noise, 2 samples of 2 steps, and 4 at each for the smoothed trace.
SMALL = 20
#: And of `endless`: 64 samples of 900 steps, the smoothed trace at 8 of them.
ENDLESS = 8 + 64 * 900 + 32


def small(prompt: str, **fields: Any) -> audit_pb2.AuditRequest:
    """A request that costs `SMALL` evaluations."""
    request = audit_pb2.AuditRequest(
        prompt=prompt,
        checkpoint="demo",
        budget=audit_pb2.BudgetOptions(seeds=2, curvature="off"),
        sampler=audit_pb2.SamplerOptions(steps=2, guidance=1.0),
    )
    request.MergeFrom(audit_pb2.AuditRequest(**fields))
    return request


def endless(prompt: str, checkpoint: str = "demo", **fields: Any) -> audit_pb2.AuditRequest:
    """A request that takes far longer than its test, which has to cancel it."""
    budget = audit_pb2.BudgetOptions(seeds=64, minimum_seeds=64, curvature="off")
    sampler = audit_pb2.SamplerOptions(steps=900, guidance=1.0)
    return audit_pb2.AuditRequest(prompt=prompt, checkpoint=checkpoint, budget=budget, sampler=sampler, **fields)


def until_sampling(call: Any) -> audit_pb2.Progress:
    """Read a stream until its audit makes denoiser calls."""
    for event in call:
        if event.progress.stage == "sampling" and event.progress.evaluations:
            return event.progress
    raise AssertionError("the stream ended")


def eventually(condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.05)


def pixels(image: report_pb2.Image) -> np.ndarray:
    """A picture's pixels, signed."""
    return np.asarray(Image.open(io.BytesIO(image.png), formats=["PNG"])).astype(int)


def unhurried(report: report_pb2.Report) -> report_pb2.Report:
    """A copy of a report without what depends on the clock."""
    copy = report_pb2.Report()
    copy.CopyFrom(report)
    copy.provenance.ClearField("finish_time")
    for field in ("queue_seconds", "compute_seconds", "stage_seconds"):
        copy.cost.ClearField(field)
    return copy


@dataclass(frozen=True)
class Failure:
    """A call's error as AIP-193 has it."""

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    fields: tuple[str, ...]
    retry_seconds: float | None
    request_id: str


def failure(call: Callable[[], Any]) -> Failure:
    """How a call fails."""
    try:
        call()
    except grpc.RpcError as raised:
        return failure_of(raised)
    raise AssertionError("the call succeeded")


def failure_of(error: grpc.RpcError) -> Failure:
    """An error with its details."""
    assert isinstance(error, grpc.Call)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, known = error_details_pb2.RetryInfo(), error_details_pb2.RequestInfo()
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        assert any(detail.Is(kind.DESCRIPTOR) and detail.Unpack(kind) for kind in (info, bad, retry, known))
    assert all(violation.reason == info.reason for violation in bad.field_violations)
    delay = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    return Failure(
        error.code(),
        error.details() or "",
        info.reason,
        info.domain,
        tuple(violation.field for violation in bad.field_violations),
        delay,
        known.request_id,
    )
