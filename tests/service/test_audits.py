"""Audits over the wire."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from audit.auditor import Auditor
from audit.budget import Budget
from audit.demo import CHECKPOINT, REFERENCE, calibration
from audit.evidence.curvature import CurvatureSettings
from audit.model.loading import load_checkpoint
from audit.reference.reference_set import ReferenceSet
from audit.v1 import audit_pb2, checkpoint_pb2, report_pb2
from tests.service.helpers import (
    LONG,
    SMALL,
    Client,
    endless,
    eventually,
    failure,
    pixels,
    small,
    unhurried,
    until_sampling,
)


def test_report_says_what_the_auditor_finds_in_process(client: Client, prompts: list[str]) -> None:
    """A report from the server has the numbers of the same audit without one."""
    auditor = Auditor(load_checkpoint(CHECKPOINT, name="demo"), ReferenceSet.load(REFERENCE), calibration())
    budget = Budget(seeds=3, first_seed=5, curvature=CurvatureSettings())
    own = auditor.audit(prompts[0], sampler=auditor.resolve_sampler(steps=3, guidance=2.0), budget=budget)
    report = client.audit(
        audit_pb2.AuditRequest(
            prompt=prompts[0],
            checkpoint="demo",
            reference="demo",
            sampler=audit_pb2.SamplerOptions(steps=3, guidance=2.0),
            budget=audit_pb2.BudgetOptions(seeds=3, first_seed=5),
        )
    )
    assert report.prompt == prompts[0]
    assert report_pb2.Verdict.Name(report.verdict) == own.decision.verdict
    assert report.confidence == pytest.approx(own.decision.confidence, abs=0.02)
    assert [sample.seed for sample in report.samples] == [5, 6, 7]
    distances = [sample.nearest_reference.distance for sample in report.samples]
    assert own.evidence.neighbors is not None
    assert distances == pytest.approx(own.evidence.neighbors.distance, rel=1e-3)
    assert [level.prompt.trace for level in report.curvature] == pytest.approx(
        [level.prompt.trace for level in own.evidence.curvature], abs=5e-3
    )
    assert report.cost.evaluations == own.cost.evaluations
    assert report.subject.checkpoint == report.subject.reference == "demo"
    assert report.subject.reference_complete
    assert own.reference is not None
    assert report.subject.embedder_digest == own.reference.embedder_digest
    assert report.subject.sampler.scheduler == own.scheduler_class
    assert report.subject.calibration.digest == calibration().digest
    assert report.provenance.libraries["torch"]


def test_unset_fields_are_the_servers_defaults(launch: Callable[..., Client], prompts: list[str]) -> None:
    """A request of a prompt alone is audited with the only checkpoint, its sampler and the default budget."""
    own = launch(budget={"seeds": 2, "curvature": "off", "definition_samples": 64})
    report = own.audit(audit_pb2.AuditRequest(prompt=prompts[0]))
    assert report.subject.checkpoint == "demo"
    assert len(report.samples) == 2
    assert not report.curvature
    assert report.subject.definition_samples == 64
    assert not report.subject.reference
    assert not report.samples[0].HasField("nearest_reference")
    sampler = calibration().sampler
    assert sampler is not None
    assert report.subject.sampler.steps == sampler.steps
    assert report.subject.calibration.fits


def test_same_request_gives_the_same_report(client: Client, prompts: list[str]) -> None:
    """A request twice over, unary and streamed, has one answer."""
    request = small(prompts[0], reference="demo")
    first, second = (unhurried(client.audit(request)) for _ in range(2))
    *progress, last = client.stream(request)
    assert first == second == unhurried(last.report)
    assert {event.WhichOneof("event") for event in progress} <= {"progress"}
    for told in progress:
        assert told.progress.planned_evaluations == last.report.cost.evaluations


def test_other_seeds_give_other_samples(client: Client, prompts: list[str]) -> None:
    """The first seed decides which samples are drawn; seeds that two audits share give the same samples."""
    one = client.audit(small(prompts[0], include_images=True))
    other = client.audit(small(prompts[0], include_images=True, budget=audit_pb2.BudgetOptions(first_seed=1)))
    assert [sample.seed for sample in other.samples] == [1, 2]
    shared = [pixels(one.samples[1].image), pixels(other.samples[0].image)]
    assert np.abs(shared[0] - shared[1]).max() <= 1
    assert np.abs(pixels(one.samples[0].image) - pixels(other.samples[1].image)).max() > 1


def test_images_come_when_asked_for(client: Client, prompts: list[str]) -> None:
    """Samples and their nearest references are PNG files of the size that is stated, and absent otherwise."""
    bare = client.audit(small(prompts[0], reference="demo"))
    assert not any(sample.HasField("image") for sample in bare.samples)
    sampler = audit_pb2.SamplerOptions(height=64, width=32)
    report = client.audit(small(prompts[0], reference="demo", include_images=True, sampler=sampler))
    for sample in report.samples:
        assert pixels(sample.image).shape[:2] == (sample.image.height, sample.image.width) == (64, 32)
        assert pixels(sample.nearest_reference.image).shape[:2] == (32, 32)
    assert report.stability.modes[0].nearest_reference.HasField("image")


def test_stream_tells_how_far_it_is(client: Client, prompts: list[str]) -> None:
    """Evaluations never go down, stages come in order, and the report comes last."""
    request = small(prompts[0], reference="demo", sampler=audit_pb2.SamplerOptions(steps=30))
    *progress, last = client.stream(request)
    done = [event.progress.evaluations for event in progress]
    assert done == sorted(done)
    order = ["queued", "screening", "sampling", "decoding", "searching", "curvature", "concluding"]
    stages = [order.index(event.progress.stage) for event in progress]
    assert stages == sorted(stages)
    assert last.HasField("report")


def test_concurrent_audits_share_forward_passes(launch: Callable[..., Client], prompts: list[str]) -> None:
    """Four audits at once find what each finds alone, in fewer forward passes of as many rows."""
    own = launch(batch_wait_seconds=0.1)
    requests = [
        small(
            prompt,
            reference="demo",
            sampler=audit_pb2.SamplerOptions(steps=6 + index),
            budget=audit_pb2.BudgetOptions(seeds=3 + index, curvature="off" if index % 2 else "lanczos"),
        )
        for index, prompt in enumerate(prompts[:4])
    ]

    def passes() -> tuple[float, float, float]:
        rows = own.metric("basin_forward_pass_rows_sum")
        assert rows == own.metric("basin_denoiser_evaluations_total", checkpoint="demo")
        return rows, own.metric("basin_forward_pass_rows_count"), own.metric("basin_forward_pass_seconds_count")

    own.audit(requests[0])  # what the network predicts without a prompt is computed once
    before = passes()
    alone = [own.audit(request) for request in requests]
    rows_alone, passes_alone = (now - then for now, then in zip(passes()[:2], before, strict=False))
    assert rows_alone == sum(report.cost.evaluations for report in alone)
    with ThreadPoolExecutor(4) as callers:
        together = list(callers.map(own.audit, requests))
    rows, count, timed = passes()
    assert rows - before[0] == 2 * rows_alone
    assert count == timed
    assert count - before[1] - passes_alone < 0.7 * passes_alone

    for one, other in zip(alone, together, strict=True):
        assert one.verdict == other.verdict
        assert [s.nearest_reference.index for s in one.samples] == [s.nearest_reference.index for s in other.samples]
        assert [s.nearest_sample_distance for s in one.samples] == pytest.approx(
            [s.nearest_sample_distance for s in other.samples], rel=1e-3
        )
        assert [level.prompt.trace for level in one.curvature] == pytest.approx(
            [level.prompt.trace for level in other.curvature], abs=5e-3
        )
        assert one.confidence == pytest.approx(other.confidence, abs=0.02)


def test_health_answers_while_audits_run(client: Client, prompts: list[str]) -> None:
    """Inference does not hold up the event loop: calls come back while an audit is in the middle of its work."""
    call = client.stream(endless(prompts[0]))
    begun = until_sampling(call)
    for _ in range(20):
        assert client.health() == client.health("liveness") == 1
        client.checkpoints.ListCheckpoints(checkpoint_pb2.ListCheckpointsRequest(), timeout=LONG)
    later = next(call).progress
    assert later.stage == "sampling"
    assert begun.evaluations <= later.evaluations < later.planned_evaluations
    call.cancel()
    eventually(lambda: client.metric("basin_audits_in_flight") == 0)


def test_cancel_stops_the_work(client: Client, prompts: list[str]) -> None:
    """After a cancel the audit leaves, and no more denoiser evaluations are made."""
    before = client.metric("basin_audits_total", code="CANCELLED")
    call = client.stream(endless(prompts[0]))
    until_sampling(call)
    call.cancel()
    eventually(lambda: client.metric("basin_audits_in_flight") == 0)
    made = client.metric("basin_denoiser_evaluations_total")
    client.audit(small(prompts[0]))
    assert client.metric("basin_denoiser_evaluations_total") == made + SMALL
    assert client.metric("basin_audits_total", code="CANCELLED") == before + 1


def test_deadline_stops_the_work(client: Client, prompts: list[str]) -> None:
    """An audit that is not done at its deadline fails with DEADLINE_EXCEEDED and leaves."""
    before = client.metric("basin_audits_total", code="DEADLINE_EXCEEDED")
    assert failure(lambda: client.audit(endless(prompts[0]), timeout=2)).code is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: client.metric("basin_audits_total", code="DEADLINE_EXCEEDED") == before + 1)
    eventually(lambda: client.metric("basin_audits_in_flight") == 0)
