"""Screening of many prompts in one call."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from audit.auditor import Auditor
from audit.demo import CHECKPOINT, calibration
from audit.model.loading import load_checkpoint
from audit.v1 import audit_pb2
from tests.service.helpers import LONG, Client, endless, eventually, failure, until_sampling


def screen(
    client: Client, prompts: list[str], timeout: float | None = LONG, **fields: object
) -> audit_pb2.ScreenResponse:
    """Screen prompts with the demo."""
    request = audit_pb2.ScreenRequest(prompts=prompts, checkpoint="demo", **fields)  # type: ignore[arg-type]
    return client.audits.Screen(request, timeout=timeout)


def test_it_says_what_the_auditor_finds_in_process(client: Client, prompts: list[str]) -> None:
    """Flags, probabilities and measurements are those of the same screening without a server, in its order."""
    own = calibration()
    found = Auditor(load_checkpoint(CHECKPOINT), None, own).screen(prompts)
    response = screen(client, prompts)
    assert [result.prompt for result in response.results] == prompts
    for result, expected in zip(response.results, found, strict=True):
        assert result.flagged == expected.flagged
        assert result.recurring_probability == pytest.approx(expected.recurring_probability, abs=0.02)
        assert result.probabilities.memorized == pytest.approx(expected.probabilities[0], abs=0.02)
        values = {one.name: one.value for one in expected.measurements}
        assert {one.name: pytest.approx(one.value, rel=1e-3) for one in result.measurements} == values
    assert {result.flagged for result in response.results} == {True, False}
    assert (response.threshold, response.false_positive_rate) == (own.screen_threshold, own.false_positive_rate)
    assert response.calibration.digest == own.digest
    assert response.calibration.fits
    assert response.calibration.prompts == own.prompts
    assert response.calibration.estimators_digest.startswith("sha256:")


def test_it_costs_eight_evaluations_a_prompt(client: Client, prompts: list[str]) -> None:
    """And counts by what it comes to."""
    screen(client, prompts[:1])
    made = client.metric("basin_denoiser_evaluations_total")
    flagged, passed = (client.metric("basin_screened_prompts_total", flagged=flag) for flag in ("true", "false"))
    response = screen(client, prompts)
    assert client.metric("basin_denoiser_evaluations_total") - made == 8 * len(prompts)
    assert response.cost.evaluations == response.cost.screening_evaluations == 8 * len(prompts)
    hits = sum(result.flagged for result in response.results)
    assert client.metric("basin_screened_prompts_total", flagged="true") - flagged == hits
    assert client.metric("basin_screened_prompts_total", flagged="false") - passed == len(prompts) - hits


def test_other_settings_are_said_not_to_fit(client: Client, prompts: list[str]) -> None:
    """A calibration serves its own sampler settings."""
    response = screen(client, prompts[:2], sampler=audit_pb2.SamplerOptions(height=64, width=64))
    assert not response.calibration.fits


@pytest.mark.parametrize(
    ("prompts", "fields", "reason", "field"),
    [
        ([], {}, "PROMPTS_REQUIRED", "prompts"),
        (["one", " "], {}, "PROMPT_EMPTY", "prompts[1]"),
        (["x" * 4097], {}, "PROMPT_TOO_LONG", "prompts[0]"),
        (["x"] * 257, {}, "TOO_MANY_PROMPTS", "prompts"),
        (["x"], {"definition_samples": 1}, "DEFINITION_SAMPLES_OUT_OF_RANGE", "budget.definition_samples"),
        (["x"], {"sampler": audit_pb2.SamplerOptions(height=33)}, "SIZE_OUT_OF_RANGE", "sampler.height"),
    ],
)
def test_bad_requests_are_named(client: Client, prompts: list[str], fields: dict, reason: str, field: str) -> None:
    """Before anything is computed."""
    refused = failure(lambda: screen(client, prompts, **fields))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert refused.fields == (field,)


def test_it_stands_in_line_with_audits(launch: Callable[..., Client], prompts: list[str]) -> None:
    """Behind a long audit it waits, is refused where the line is full, and leaves when its caller goes away."""
    own = launch(concurrent_audits=1, queue_evaluations=59_000)
    working = own.stream(endless(prompts[0]))
    until_sampling(working)
    full = failure(lambda: screen(own, ["x"] * 256, timeout=None))
    assert (full.code, full.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    late = failure(lambda: screen(own, prompts[:2], timeout=0.5))
    assert (late.code, late.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_BEHIND_QUEUE")
    waiting = own.audits.Screen.future(audit_pb2.ScreenRequest(prompts=prompts[:2]))
    eventually(lambda: own.metric("basin_queue_depth") == 1)
    waiting.cancel()
    eventually(lambda: own.metric("basin_queue_depth") == 0)
    working.cancel()
    eventually(lambda: own.metric("basin_audits_in_flight") == 0)
    assert len(screen(own, prompts[:2]).results) == 2


def test_the_audit_log_has_digests(launch: Callable[..., Client], prompts: list[str], tmp_path: Path) -> None:
    """Which prompts were flagged is logged by digest, and never a prompt."""
    file = tmp_path / "audit.log"
    own = launch(audit_log=str(file))
    response = screen(own, prompts[:3])
    eventually(lambda: "Screen" in file.read_text())
    (line,) = [json.loads(one) for one in file.read_text().splitlines() if "Screen" in one]
    assert len(line["prompts_sha256"]) == 3
    assert line["flagged"] == [result.flagged for result in response.results]
    assert prompts[0] not in file.read_text()


def test_it_takes_its_share(launch: Callable[..., Client], prompts: list[str]) -> None:
    """What it made is taken from the client's quota, and not given back when it is done."""
    own = launch(quotas={"default": {"evaluations_per_second": 0.001, "burst_evaluations": 8}})
    screen(own, prompts[:2])  # the last one may owe
    refused = failure(lambda: screen(own, prompts[:1]))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
