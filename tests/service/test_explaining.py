"""Explanations over the wire."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from audit.v1 import audit_pb2
from service.reports import without_images, without_texts
from tests.service.helpers import SMALL, Client, failure, small, unhurried

#: Denoiser evaluations to explain two samples of a prompt of eight words.
EXPLAINING = 4 * (2 + 8) + 8 * 2


def test_an_explanation_comes_when_asked_for(client: Client, prompts: list[str]) -> None:
    """Words with weights, a map and its threshold; planned, counted, streamed as a stage, and the rest is the same."""
    plain = client.audit(small(prompts[0]))
    *progress, last = client.stream(small(prompts[0], explain=True))
    report = last.report
    assert not plain.HasField("explanation")
    assert [one.word for one in report.explanation.words] == prompts[0].split()
    assert max(one.weight for one in report.explanation.words) > 0
    assert len(report.explanation.map.values) == report.explanation.map.height * report.explanation.map.width == 64
    assert min(report.explanation.map.values) <= report.explanation.map.threshold < max(report.explanation.map.values)
    assert report.explanation.samples == 2
    assert (report.explanation.words_method, report.explanation.map_method) == ("deletion", "error-ratio")
    assert (plain.cost.evaluations, plain.cost.explaining_evaluations) == (SMALL, 0)
    assert report.cost.explaining_evaluations == EXPLAINING
    assert report.cost.evaluations == SMALL + EXPLAINING
    assert {event.progress.planned_evaluations for event in progress} == {SMALL + EXPLAINING}
    assert "explaining" in report.cost.stage_seconds
    assert "explaining" not in plain.cost.stage_seconds
    assert report.probabilities.memorized == pytest.approx(plain.probabilities.memorized, abs=1e-3)
    assert unhurried(client.audit(small(prompts[0], explain=True))) == unhurried(report)


def test_the_stage_is_counted(launch: Callable[..., Client], prompts: list[str]) -> None:
    """Among the seconds by stage, where there are none without an explanation."""
    own = launch()
    own.audit(small(prompts[0]))
    assert own.metric("basin_audit_stage_seconds_count", stage="explaining") == 0
    own.audit(small(prompts[0], explain=True))
    assert own.metric("basin_audit_stage_seconds_count", stage="explaining") == 1


def test_a_long_prompt_takes_what_its_words_take(launch: Callable[..., Client], prompts: list[str]) -> None:
    """The limit on evaluations holds for the words too, and is checked before any work."""
    own = launch(limits={"evaluations": SMALL + EXPLAINING})
    assert own.audit(small(prompts[0], explain=True)).HasField("explanation")
    assert own.audit(small(f"{prompts[0]} again")).prompt
    found = failure(lambda: own.audit(small(f"{prompts[0]} again", explain=True)))
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "EVALUATIONS_OVER_LIMIT")


def test_a_report_without_texts_has_no_words(client: Client, prompts: list[str]) -> None:
    """They are the prompt, like the names of images; the map stays, also where pictures go."""
    report = client.audit(small(prompts[0], explain=True, reference="demo"))
    bare = without_texts(without_images(report))
    assert not bare.explanation.words
    assert report.samples[0].nearest_reference.key
    assert report.samples[0].nearest_clip.caption
    for near in (bare.samples[0].nearest_reference, bare.samples[0].nearest_clip):
        assert not near.key + near.caption + near.url
    assert bare.explanation.map == report.explanation.map
    assert not without_texts(client.audit(small(prompts[0]))).HasField("explanation")


def test_the_request_id_knows_the_difference(client: Client, prompts: list[str]) -> None:
    """The same request with an explanation is another one."""
    client.audit(small(prompts[1], request_id="explained"))
    again: audit_pb2.AuditRequest = small(prompts[1], request_id="explained", explain=True)
    assert failure(lambda: client.audit(again)).reason == "REQUEST_ID_REUSED"
