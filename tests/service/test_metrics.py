"""What Prometheus sees."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file

from audit import demo
from audit.v1 import audit_pb2
from tests.service.helpers import Client, eventually, failure, small


@pytest.fixture(scope="module")
def own(launch: Callable[..., Client]) -> Client:
    """A server whose counts are this module's alone."""
    return launch()


def _series(client: Client) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(client.metrics_text())
        for sample in family.samples
    }


def test_series_are_all_there_from_the_start(own: Client, prompts: list[str]) -> None:
    """Neither audits nor failures add series, and no series holds what a client has sent."""
    before = _series(own)
    own.audit(small(prompts[0], reference="demo"))
    failure(lambda: own.audit(small(prompts[0], checkpoint="made up")))
    failure(lambda: own.audit(small(prompts[0], reference="made up")))
    failure(lambda: own.audit(audit_pb2.AuditRequest()))
    assert _series(own) == before
    labels = {value for _, pairs in before for _, value in pairs}
    assert "made up" not in labels
    assert prompts[0] not in labels
    assert {("basin_audits_total", (("checkpoint", ""), ("code", "INTERNAL"), ("verdict", "")))} <= before


def test_audits_are_counted(own: Client, prompts: list[str]) -> None:
    """An audit counts once, by checkpoint, verdict and code; its evaluations, stages and wait count too."""
    names = (
        "basin_audits_total",
        "basin_denoiser_evaluations_total",
        "basin_queue_wait_seconds_count",
        "basin_audit_stage_seconds_count",
    )
    own.audit(small(prompts[1]))  # what the network predicts without a prompt is computed once
    before = [own.metric(name, **({"stage": "sampling"} if "stage" in name else {})) for name in names]
    report = own.audit(small(prompts[0]))
    after = [own.metric(name, **({"stage": "sampling"} if "stage" in name else {})) for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, report.cost.evaluations, 1, 1]
    verdict = audit_pb2.DESCRIPTOR.pool.FindEnumTypeByName("audit.v1.Verdict").values_by_number[report.verdict].name
    assert own.metric("basin_audits_total", checkpoint="demo", verdict=verdict, code="OK") >= 1
    for stage in report.cost.stage_seconds:
        assert own.metric("basin_audit_stage_seconds_count", stage=stage) >= 1


def test_failures_are_counted(own: Client, prompts: list[str]) -> None:
    """A refusal counts by its code, and under no checkpoint where the request named none that exists."""
    named = {"checkpoint": "demo", "code": "INVALID_ARGUMENT", "verdict": ""}
    unnamed = {"checkpoint": "", "code": "NOT_FOUND"}
    before = own.metric("basin_audits_total", **named), own.metric("basin_audits_total", **unnamed)
    failure(lambda: own.audit(small(" ")))
    failure(lambda: own.audit(small(prompts[0], checkpoint="nope")))
    eventually(lambda: own.metric("basin_audits_total", **unnamed) == before[1] + 1)
    assert own.metric("basin_audits_total", **named) == before[0] + 1


def test_what_the_model_is_to_blame_for_is_counted(
    launch: Callable[..., Client], tmp_path: Path, prompts: list[str]
) -> None:
    """A checkpoint that gives no finite numbers, by its name; one that does well beside it has none."""
    folder = Path(shutil.copytree(demo.CHECKPOINT, tmp_path / "overflowing"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "conv_out.weight": 1e38 * tensors["conv_out.weight"]}, weights)
    own = launch(demo=True, checkpoints={"overflowing": folder})
    own.audit(small(prompts[0]))
    for _ in range(2):
        refused = failure(lambda: own.audit(small(prompts[0], checkpoint="overflowing")))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SAMPLES_NOT_FINITE")
    assert own.metric("basin_model_failures_total", checkpoint="overflowing", kind="not_finite") == 2
    assert own.metric("basin_model_failures_total") == 2
    assert own.metric("basin_errors_total", reason="SAMPLES_NOT_FINITE") == 2


def test_gauges(own: Client) -> None:
    """An idle server with its demo says so."""
    assert own.metric("basin_checkpoints_loaded") == 1
    assert own.metric("basin_queue_depth") == own.metric("basin_audits_in_flight") == 0
    assert own.metric("basin_reference_images", reference="demo") > 0
    assert own.metric("basin_build_info") == 1
    assert own.metric("process_resident_memory_bytes") > 2**20


def test_promtool_has_nothing_to_say(own: Client, prompts: list[str]) -> None:
    """Names, help texts and types are what Prometheus wants."""
    own.audit(small(prompts[0], reference="demo"))
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=own.metrics_text(), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
