"""Inspecting an uploaded image."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from audit.auditor import Auditor
from audit.demo import CHECKPOINT, REFERENCE, calibration
from audit.model.loading import load_checkpoint
from audit.reference.images import encode_png
from audit.reference.reference_set import ReferenceSet
from audit.v1 import audit_pb2, report_pb2
from service import audits
from service.client import BasinClient
from service.local import LocalAudits
from tests.service.helpers import LONG, Client, endless, eventually, failure, until_sampling

FEW = audit_pb2.SamplerOptions(steps=4)


@pytest.fixture(scope="module")
def reference() -> ReferenceSet:
    """The demo's, opened here."""
    return ReferenceSet.load(REFERENCE)


@pytest.fixture(scope="module")
def image(reference: ReferenceSet, prompts: list[str]) -> bytes:
    """A training image of the first prompt, as a PNG file."""
    return encode_png(np.asarray(reference.images[reference.captions.index(prompts[0])]))


def asked(image: bytes, **fields: Any) -> audit_pb2.InspectImageRequest:
    """A request to the demo."""
    return audit_pb2.InspectImageRequest(**{"image": image, "checkpoint": "demo", "sampler": FEW, **fields})


def inspect(
    client: Client, image: bytes, timeout: float | None = LONG, **fields: Any
) -> audit_pb2.InspectImageResponse:
    """Inspect an image with the demo."""
    return client.audits.InspectImage(asked(image, **fields), timeout=timeout)


def test_it_says_what_the_auditor_finds_in_process(
    client: Client, reference: ReferenceSet, image: bytes, prompts: list[str]
) -> None:
    """Class, neighbour, trace, basin and cost are those of the same inspection without a server."""
    own = Auditor(load_checkpoint(CHECKPOINT), reference, calibration())
    pixels = np.asarray(Image.open(io.BytesIO(image)))
    expected = own.inspect(pixels, prompts[0])
    found = inspect(client, image, prompt=prompts[0], reference="demo", sampler=audit_pb2.SamplerOptions())
    assert found.verdict == report_pb2.memorized
    assert (found.confidence, found.decided, found.probabilities.memorized) == (1, True, 1)
    assert list(found.reasons) == list(expected.reasons)
    assert expected.neighbors is not None
    assert found.nearest_reference.index == expected.neighbors.index[0]
    assert found.nearest_reference.caption == prompts[0]
    assert found.nearest_reference.distance == pytest.approx(expected.neighbors.distance[0], abs=1e-2)
    assert found.nearest_reference.original_distance == 0
    assert found.nearest_clip.similarity == pytest.approx(1, abs=1e-2)
    assert found.reconstruction_distance == pytest.approx(expected.reconstruction_distance, rel=1e-3)
    values = {one.name: one.value for one in expected.measurements}
    assert {one.name: pytest.approx(one.value, rel=1e-2) for one in found.measurements} == values
    assert found.basin.found
    assert found.basin.critical_time == expected.basin.critical_time
    assert found.basin.noise_time == expected.basin.noise_time
    assert [level.recovery for level in found.basin.levels] == expected.basin.recovery.tolist()
    np.testing.assert_allclose(found.sample_distances, expected.draw_distance, rtol=1e-2, atol=1e-2)
    assert found.cost.evaluations == expected.cost.evaluations
    assert found.image_digest == f"sha256:{hashlib.sha256(image).hexdigest()}"
    assert found.prompt == prompts[0]
    assert found.subject.checkpoint_digest == own.checkpoint.digest
    assert (found.subject.reference, found.subject.reference_complete) == ("demo", True)
    assert found.subject.definition_samples == 512
    assert found.subject.calibration.fits
    assert found.subject.calibration.delta_s == pytest.approx(expected.delta_s)
    assert found.provenance.basin_version


def test_without_prompt_and_reference(client: Client, image: bytes) -> None:
    """Nothing tells its class, and nothing was searched."""
    found = inspect(client, image)
    assert found.verdict == report_pb2.VERDICT_UNSPECIFIED
    assert found.confidence == 0
    assert not found.HasField("nearest_reference")
    assert not found.HasField("nearest_clip")
    assert any("contrast" in reason for reason in found.reasons)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_other_files_are_read_too(client: Client, image: bytes, file_format: str) -> None:
    """In colour and of another size, the nearest is still the image that it was made from."""
    buffer = io.BytesIO()
    large = Image.open(io.BytesIO(image)).convert("RGB").resize((64, 64), Image.Resampling.BOX)
    large.save(buffer, file_format, quality=95)
    found = inspect(client, buffer.getvalue(), reference="demo")
    assert found.nearest_reference.index == inspect(client, image, reference="demo").nearest_reference.index
    assert found.nearest_reference.original_distance > 0


@pytest.mark.parametrize(
    ("content", "fields", "code", "reason", "field"),
    [
        (b"", {}, "INVALID_ARGUMENT", "IMAGE_EMPTY", "image"),
        (b"no image", {}, "INVALID_ARGUMENT", "IMAGE_UNREADABLE", "image"),
        (b"x" * 100_001, {}, "INVALID_ARGUMENT", "IMAGE_TOO_LARGE", "image"),
        (None, {"prompt": " "}, "INVALID_ARGUMENT", "PROMPT_EMPTY", "prompt"),
        (None, {"prompt": "x" * 301}, "INVALID_ARGUMENT", "PROMPT_TOO_LONG", "prompt"),
        (None, {"sampler": audit_pb2.SamplerOptions(height=33)}, "INVALID_ARGUMENT", "SIZE_OUT_OF_RANGE",
         "sampler.height"),
        (None, {"reference": "/etc"}, "NOT_FOUND", "REFERENCE_NOT_FOUND", ""),
        (None, {"checkpoint": "nope"}, "NOT_FOUND", "CHECKPOINT_NOT_FOUND", ""),
        (None, {"checkpoint": ""}, "INVALID_ARGUMENT", "CHECKPOINT_REQUIRED", "checkpoint"),
    ],
)  # fmt: skip
def test_bad_requests_are_named(
    client: Client, image: bytes, content: bytes | None, fields: dict[str, Any], code: str, reason: str, field: str
) -> None:
    """What is wrong with the upload, or with what is asked of it."""
    refused = failure(lambda: inspect(client, image if content is None else content, **fields))
    assert (refused.code.name, refused.reason) == (code, reason)
    assert refused.fields == ((field,) if field else ())


def test_evaluations_are_bounded(launch: Callable[..., Client], image: bytes) -> None:
    """By the same limit as those of audits, and refused before any is made."""
    own = launch(limits={"evaluations": 100})
    refused = failure(lambda: inspect(own, image, sampler=audit_pb2.SamplerOptions(steps=20)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "EVALUATIONS_OVER_LIMIT")
    assert inspect(own, image).cost.evaluations <= 100


def test_it_stands_in_line_with_audits(launch: Callable[..., Client], image: bytes, prompts: list[str]) -> None:
    """Behind a long audit it waits, is refused when that would take too long, and leaves with its caller."""
    own = launch(concurrent_audits=1)
    working = own.stream(endless(prompts[0]))
    until_sampling(working)
    late = failure(lambda: inspect(own, image, timeout=0.5))
    assert (late.code, late.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_BEHIND_QUEUE")
    waiting = own.audits.InspectImage.future(asked(image))
    eventually(lambda: own.metric("basin_queue_depth") == 1)
    waiting.cancel()
    eventually(lambda: own.metric("basin_queue_depth") == 0)
    working.cancel()
    eventually(lambda: own.metric("basin_audits_in_flight") == 0)
    assert inspect(own, image).reasons


def test_more_images_than_may_wait(
    launch: Callable[..., Client], image: bytes, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One too many is to come again later."""
    monkeypatch.setattr(audits, "MOST_IMAGES", 1)
    own = launch(concurrent_audits=1)
    working = own.stream(endless(prompts[0]))
    until_sampling(working)
    waiting = own.audits.InspectImage.future(asked(image))
    eventually(lambda: own.metric("basin_queue_depth") == 1)
    full = failure(lambda: inspect(own, image, timeout=None))
    assert (full.code, full.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert full.retry_seconds
    working.cancel()
    assert waiting.result(LONG).reasons
    assert inspect(own, image).reasons


def test_it_is_counted_and_logged(
    launch: Callable[..., Client], image: bytes, prompts: list[str], tmp_path: Path
) -> None:
    """By its verdict; in the audit log, prompt and image have digests."""
    file = tmp_path / "audit.log"
    own = launch(audit_log=str(file))
    inspect(own, image)  # what the network predicts without a prompt is computed once, for the first prompt
    made = own.metric("basin_denoiser_evaluations_total")
    found = inspect(own, image, reference="demo")
    assert own.metric("basin_denoiser_evaluations_total") - made == found.cost.evaluations
    assert own.metric("basin_inspected_images_total", checkpoint="demo", verdict="memorized") == 1
    assert own.metric("basin_inspected_images_total", checkpoint="demo", verdict="") == 1
    inspect(own, image, prompt=prompts[0])
    eventually(lambda: file.read_text().count("InspectImage") == 3)
    lines = [json.loads(one) for one in file.read_text().splitlines() if "InspectImage" in one]
    assert {line["image_sha256"] for line in lines} == {hashlib.sha256(image).hexdigest()}
    assert lines[1]["verdict"] == "memorized"
    assert lines[2]["prompt_sha256"] == hashlib.sha256(prompts[0].encode()).hexdigest()
    assert prompts[0] not in file.read_text()


def test_client_and_local_audits_agree(client: Client, image: bytes, prompts: list[str]) -> None:
    """The same request gives the same answer through either."""
    request = asked(image, prompt=prompts[0], reference="demo")
    with BasinClient(client.address) as remote:
        there = remote.inspect(request)
    here = LocalAudits("demo", "demo").inspect(request)
    for answer in (there, here):
        for field in ("cost", "provenance"):
            answer.ClearField(field)
    assert here.verdict == there.verdict == report_pb2.memorized
    assert here.image_digest == there.image_digest
    assert list(here.reasons) == list(there.reasons)
    assert here.basin.critical_time == there.basin.critical_time
