"""Messages and audit's types."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from google.protobuf.json_format import Parse
from PIL import Image

from audit.auditor import Auditor
from audit.budget import Budget
from audit.demo import CHECKPOINT, REFERENCE, calibration
from audit.errors import InvalidInput
from audit.evidence.curvature import CurvatureSettings
from audit.model.loading import load_checkpoint
from audit.reference.reference_set import ReferenceSet
from audit.report import Report
from audit.v1 import audit_pb2, report_pb2
from service import wire
from service.reports import report_to_json


@pytest.fixture(scope="module")
def report(prompts: list[str]) -> Report:
    """A small audit with everything in it."""
    auditor = Auditor(load_checkpoint(CHECKPOINT, name="demo"), ReferenceSet.load(REFERENCE), calibration())
    budget = Budget(seeds=3, first_seed=2, curvature=CurvatureSettings(samples=1, probes=1, steps=2, baseline=True))
    sampler = auditor.resolve_sampler(steps=2, scheduler="euler", guidance=1.5, negative_prompt="grey")
    return auditor.audit(prompts[0], budget=budget, sampler=sampler, include_images=True, explain=True)


def _empty(message: object, path: str = "") -> list[str]:
    """Plain fields that hold nothing, by path; lists and messages are looked into."""
    found = []
    for field in message.DESCRIPTOR.fields:  # type: ignore[attr-defined]
        name, value = f"{path}{field.name}", getattr(message, field.name)
        if field.message_type is None:
            found += [name] if not value and field.type not in (field.TYPE_DOUBLE, field.TYPE_BOOL) else []
        elif field.message_type.GetOptions().map_entry:
            found += [name] if not value else []
        elif field.is_repeated:
            found += [name] if not value else _empty(value[0], f"{name}.")
        else:
            found += [name] if not message.HasField(field.name) else _empty(value, f"{name}.")  # type: ignore[attr-defined]
    return found


def test_every_field_is_filled(report: Report) -> None:
    """A report with everything leaves no field of its message empty, but for a mode's index and the copies' counts.

    Of this checkpoint no evidence is missing, and its guidance is not embedded. The images came from no URL.
    """
    empty = set(_empty(wire.report_to_proto(report)))
    assert empty <= {
        "samples.mode", "copies.found", "copies.distinct_references", "subject.calibration.digest", "gaps",
        "subject.sampler.embedded", "samples.nearest_reference.url", "samples.nearest_clip.url",
        "stability.modes.nearest_reference.url",
    }  # fmt: skip


def test_numbers_arrive(report: Report) -> None:
    """What the message says is what the report says."""
    message = wire.report_to_proto(report)
    assert report_pb2.Verdict.Name(message.verdict) == report.decision.verdict
    assert message.fractions.spurious.upper == report.decision.fractions[1].upper
    assert [sample.seed for sample in message.samples] == [2, 3, 4]
    assert report.evidence.neighbors is not None
    assert message.samples[1].nearest_reference.distance == report.evidence.neighbors.distance[1]
    assert message.samples[1].nearest_reference.index == report.evidence.neighbors.index[1]
    assert message.curvature[1].prompt.trace == report.evidence.curvature[1].prompt.trace
    assert list(message.curvature[0].prompt.top) == list(report.evidence.curvature[0].prompt.top)
    for mode, seen in zip(message.stability.modes, report.evidence.stability.modes, strict=True):
        assert list(mode.seeds) == [report.seeds[member] for member in seen.members]
    assert message.subject.sampler.scheduler == "EulerDiscreteScheduler"
    assert message.subject.sampler.negative_prompt == "grey"
    cost = message.cost
    parts = (cost.screening_evaluations, cost.sampling_evaluations, cost.curvature_evaluations)
    assert cost.evaluations == sum(parts) + cost.explaining_evaluations
    assert cost.screening_evaluations == 8
    assert report.explanation is not None
    words, places = report.explanation.attribution, report.explanation.localization
    assert [one.word for one in message.explanation.words] == list(words.words) == report.prompt.split()
    assert [one.weight for one in message.explanation.words] == list(words.weights)
    own_map = message.explanation.map
    assert np.reshape(own_map.values, (own_map.height, own_map.width)).tolist() == places.values.tolist()
    assert (own_map.threshold, message.explanation.samples) == (places.threshold, 3)
    for one, own in zip(message.measurements, report.decision.measurements, strict=True):
        assert (one.name, one.value) == (own.name, own.value)
        assert one.HasField("ordinary_lower") == one.HasField("ordinary_upper") == (own.ordinary is not None)
        assert own.ordinary in (None, (one.ordinary_lower, one.ordinary_upper))
    assert {one.name for one in message.measurements} == {
        "contrast_early", "contrast_late", "trace_near", "trace_far", "closeness", "meeting",
    }  # fmt: skip
    assert message.provenance.finish_time.ToDatetime(report.finished.tzinfo) == report.finished


def test_json(report: Report) -> None:
    """One line, the verdict as a word, NaN and infinity as the mapping has them, and the way back."""
    seen = report.evidence
    lonely = replace(seen.stability, nearest_sample_distance=np.full(3, np.inf), meeting_rate=math.nan)
    message = wire.report_to_proto(replace(report, evidence=replace(seen, stability=lonely)))
    line = report_to_json(message)
    content = json.loads(line)
    assert "\n" not in line
    assert content["prompt"] == report.prompt
    assert content["verdict"] == report.decision.verdict
    assert content["stability"]["meeting_rate"] == "NaN"
    assert content["samples"][0]["nearest_sample_distance"] == "Infinity"
    again = Parse(line, report_pb2.Report())
    assert json.loads(report_to_json(again)) == content
    empty = json.loads(report_to_json(report_pb2.Report()))
    assert (empty["prompt"], empty["verdict"]) == ("", "VERDICT_UNSPECIFIED")


def test_report_without_reference_or_curvature(report: Report) -> None:
    """What was not measured is absent, not zero."""
    bare = replace(report.evidence, neighbors=None, curvature=())
    message = wire.report_to_proto(replace(report, reference=None, evidence=bare, images=None, explanation=None))
    assert not message.curvature
    assert not message.HasField("explanation")
    assert not message.subject.reference
    assert not message.subject.embedder_digest
    for sample in message.samples:
        assert not sample.HasField("nearest_reference")
        assert not sample.HasField("nearest_clip")
        assert not sample.HasField("image")


@pytest.mark.parametrize(
    ("shape", "size"), [((512, 256, 3), (256, 128)), ((300, 600, 1), (128, 256)), ((20, 30, 3), (20, 30))]
)
def test_pictures_are_small(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    """Images come down to 256 pixels on the longer side, and are never blown up."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    picture = wire.picture(image)
    assert (picture.height, picture.width) == size
    with Image.open(io.BytesIO(picture.png)) as opened:
        assert opened.format == "PNG"
        assert opened.size == size[::-1]


def test_many_images_are_smaller(report: Report) -> None:
    """The pictures of a report stay bounded, however many samples it has."""
    seen = report.evidence
    assert seen.neighbors is not None
    noise = np.random.default_rng(0).integers(0, 256, (1, 200, 200, 1), dtype=np.uint8)
    few = replace(report, images=np.repeat(noise, 3, axis=0))
    assert wire.report_to_proto(few).samples[0].image.width == 200
    count = 256
    indices = np.zeros(count, dtype=np.int64)
    many = replace(
        few,
        seeds=tuple(range(count)),
        images=np.repeat(noise, count, axis=0),
        evidence=replace(
            seen,
            neighbors=replace(
                seen.neighbors,
                index=np.full(count, seen.neighbors.index[0]),
                distance=np.zeros(count),
                original_distance=np.zeros(count),
                clip_index=None,
                clip_similarity=None,
            ),
            stability=replace(
                seen.stability,
                nearest_sample=indices,
                nearest_sample_distance=np.zeros(count),
                modes=seen.stability.modes[:1],
                mode_of=indices,
            ),
        ),
        decision=replace(report.decision, sample_classes=(0,) * count),
    )
    message = wire.report_to_proto(many)
    assert message.samples[0].image.width == 128
    assert message.ByteSize() < 2**24


def test_request_options() -> None:
    """What a request leaves unset is left to the server; what it sets to zero is set to zero."""
    assert set(wire.sampler_overrides(audit_pb2.SamplerOptions()).values()) == {None}
    given = wire.sampler_overrides(audit_pb2.SamplerOptions(steps=0, guidance=0.0, scheduler="ddim"))
    assert {name: value for name, value in given.items() if value is not None} == {
        "steps": 0,
        "guidance": 0.0,
        "scheduler": "ddim",
    }
    defaults = Budget(seeds=5, curvature=CurvatureSettings(method="off", probes=7))
    assert wire.budget(audit_pb2.BudgetOptions(), defaults) == defaults
    own = wire.budget(audit_pb2.BudgetOptions(first_seed=3, curvature="dense"), defaults)
    assert own == replace(defaults, first_seed=3, curvature=replace(defaults.curvature, method="dense"))
    with pytest.raises(InvalidInput) as refused:
        wire.budget(audit_pb2.BudgetOptions(seeds=0), defaults)
    assert refused.value.field == "budget.seeds"
