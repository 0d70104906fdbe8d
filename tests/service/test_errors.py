"""Bad input: its code, reason and field, and a server that lives on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.v1 import audit_pb2, report_pb2
from service import wire
from service.config import load_settings
from service.log import make_logger
from service.server import start_server
from tests.service.helpers import LONG, SERVING, Client, failure, small

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

#: What to change in a good request: code, reason, field.
BAD: dict[str, tuple[dict[str, Any], grpc.StatusCode, str, str]] = {
    "empty prompt": ({"prompt": ""}, INVALID, "PROMPT_EMPTY", "prompt"),
    "blank prompt": ({"prompt": " \t\n"}, INVALID, "PROMPT_EMPTY", "prompt"),
    "too many characters": ({"prompt": "a" * 301}, INVALID, "PROMPT_TOO_LONG", "prompt"),
    "too many tokens": ({"prompt": "x y " * 70}, INVALID, "PROMPT_TOO_LONG", "prompt"),
    "unknown checkpoint": ({"checkpoint": "nope"}, NOT_FOUND, "CHECKPOINT_NOT_FOUND", ""),
    "path for a checkpoint": ({"checkpoint": "/etc"}, NOT_FOUND, "CHECKPOINT_NOT_FOUND", ""),
    "checkpoint not loaded": ({"checkpoint": "copy"}, PRECONDITION, "CHECKPOINT_NOT_LOADED", ""),
    "no checkpoint among several": ({"checkpoint": ""}, INVALID, "CHECKPOINT_REQUIRED", "checkpoint"),
    "unknown reference": ({"reference": "nope"}, NOT_FOUND, "REFERENCE_NOT_FOUND", ""),
    "path for a reference": ({"reference": "../demo"}, NOT_FOUND, "REFERENCE_NOT_FOUND", ""),
    "long request id": ({"request_id": "x" * 129}, INVALID, "REQUEST_ID_TOO_LONG", "request_id"),
}
BAD_SAMPLER: dict[str, tuple[dict[str, Any], str, str]] = {
    "no steps": ({"steps": 0}, "STEPS_OUT_OF_RANGE", "steps"),
    "negative steps": ({"steps": -1}, "STEPS_OUT_OF_RANGE", "steps"),
    "too many steps": ({"steps": 1001}, "STEPS_OUT_OF_RANGE", "steps"),
    "more steps than integers": ({"steps": 2**31 - 1}, "STEPS_OUT_OF_RANGE", "steps"),
    "too few steps for the scheduler": ({"scheduler": "pndm", "steps": 1}, "STEPS_OUT_OF_RANGE", "steps"),
    "NaN guidance": ({"guidance": math.nan}, "GUIDANCE_OUT_OF_RANGE", "guidance"),
    "infinite guidance": ({"guidance": math.inf}, "GUIDANCE_OUT_OF_RANGE", "guidance"),
    "negative guidance": ({"guidance": -0.1}, "GUIDANCE_OUT_OF_RANGE", "guidance"),
    "huge guidance": ({"guidance": 101.0}, "GUIDANCE_OUT_OF_RANGE", "guidance"),
    "NaN eta": ({"eta": math.nan}, "ETA_OUT_OF_RANGE", "eta"),
    "huge eta": ({"eta": 1.01}, "ETA_OUT_OF_RANGE", "eta"),
    "no height": ({"height": 0}, "SIZE_OUT_OF_RANGE", "height"),
    "odd height": ({"height": 33}, "SIZE_OUT_OF_RANGE", "height"),
    "huge width": ({"width": 1028}, "SIZE_OUT_OF_RANGE", "width"),
    "unknown scheduler": ({"scheduler": "euler2" * 1000}, "SCHEDULER_UNKNOWN", "scheduler"),
    "long negative prompt": ({"negative_prompt": "a" * 301}, "PROMPT_TOO_LONG", "negative_prompt"),
    "wordy negative prompt": ({"negative_prompt": "x y " * 70}, "PROMPT_TOO_LONG", "negative_prompt"),
}
BAD_BUDGET: dict[str, tuple[dict[str, Any], str, str]] = {
    "no seeds": ({"seeds": 0}, "SEEDS_OUT_OF_RANGE", "budget.seeds"),
    "negative seeds": ({"seeds": -5}, "SEEDS_OUT_OF_RANGE", "budget.seeds"),
    "more seeds than the server allows": ({"seeds": 65}, "SEEDS_OUT_OF_RANGE", "budget.seeds"),
    "more seeds than anyone allows": ({"seeds": 10**6}, "SEEDS_OUT_OF_RANGE", "budget.seeds"),
    "negative first seed": ({"first_seed": -1}, "FIRST_SEED_OUT_OF_RANGE", "budget.first_seed"),
    "huge first seed": ({"first_seed": 2**63 - 1}, "FIRST_SEED_OUT_OF_RANGE", "budget.first_seed"),
    "no definition": ({"definition_samples": 0}, "DEFINITION_SAMPLES_OUT_OF_RANGE", "budget.definition_samples"),
    "unknown curvature": ({"curvature": "exact"}, "CURVATURE_UNKNOWN", "budget.curvature"),
}


def _bad() -> Iterator[Any]:
    for name, (fields, code, reason, field) in BAD.items():
        yield pytest.param(fields, code, reason, field, id=name)
    for name, (fields, reason, field) in BAD_SAMPLER.items():
        sampler = audit_pb2.SamplerOptions(**fields)
        yield pytest.param({"sampler": sampler}, INVALID, reason, f"sampler.{field}", id=name)
    for name, (fields, reason, field) in BAD_BUDGET.items():
        budget = audit_pb2.BudgetOptions(**fields)
        yield pytest.param({"budget": budget}, INVALID, reason, field, id=name)
    costly = {"budget": audit_pb2.BudgetOptions(seeds=64), "sampler": audit_pb2.SamplerOptions(steps=990, guidance=2.0)}
    yield pytest.param(costly, INVALID, "EVALUATIONS_OVER_LIMIT", "budget", id="too much work")


@pytest.mark.parametrize(("fields", "code", "reason", "field"), list(_bad()))
def test_bad_audit(
    client: Client, prompts: list[str], fields: dict[str, Any], code: grpc.StatusCode, reason: str, field: str
) -> None:
    """A bad request names its code, reason and field; streamed, the field lies inside `audit`."""
    request = small(prompts[0], reference="demo")
    for name, value in fields.items():
        if isinstance(value, str):
            setattr(request, name, value)
        else:
            getattr(request, name).MergeFrom(value)
    unary, streamed = failure(lambda: client.audit(request)), failure(lambda: list(client.stream(request)))
    assert (unary.code, unary.reason, unary.domain) == (code, reason, "basin")
    assert (streamed.code, streamed.reason) == (code, reason)
    assert unary.fields == ((field,) if field else ())
    assert streamed.fields == ((f"audit.{field}",) if field else ())
    assert unary.request_id
    assert len(unary.message) <= 500
    assert client.health() == SERVING


def test_nothing_in_the_request(client: Client) -> None:
    """A stream request without an audit is an audit of an empty prompt."""
    call = client.audits.StreamAudit(audit_pb2.StreamAuditRequest(), timeout=LONG)
    assert failure(lambda: list(call)).fields == ("audit.prompt",)


def test_bytes_that_are_no_message(client: Client, prompts: list[str]) -> None:
    """Garbage instead of a request is an error of that call alone."""
    call = client.channel.unary_unary("/audit.v1.AuditService/Audit")
    for garbage in (b"\xff\xff\xff", b"\x0a\x02\xc3\x28"):  # no fields; a prompt that is no UTF-8
        refused = failure(lambda garbage=garbage: call(garbage, timeout=LONG))
        assert (refused.code, refused.reason) == (INVALID, "REQUEST_UNREADABLE")
    assert client.audit(small(prompts[0]))


def test_unknown_method(client: Client) -> None:
    """A method that is not there is UNIMPLEMENTED."""
    call = client.channel.unary_unary("/audit.v1.AuditService/Delete")
    assert failure(lambda: call(b"", timeout=LONG)).code is grpc.StatusCode.UNIMPLEMENTED


def test_huge_message(client: Client, prompts: list[str]) -> None:
    """A message far over every limit is refused before it is read."""
    refused = failure(lambda: client.audit(small(prompts[0], request_id="x" * 4_000_000)))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.health() == SERVING


def test_request_id_of_the_caller(client: Client) -> None:
    """A call may bring its name; one that could not stand in a log is replaced."""

    def known_as(name: str) -> str:
        metadata = (("x-request-id", name),)
        return failure(
            lambda: client.audits.Audit(audit_pb2.AuditRequest(), timeout=LONG, metadata=metadata)
        ).request_id

    assert known_as("build-7.audit_12") == "build-7.audit_12"
    assert known_as('spaces and "quotes"') != 'spaces and "quotes"'


def test_internal_error_tells_nothing(tmp_path: Any, prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is INTERNAL with a generic text; the log has the traceback under the request's id, but never the prompt."""
    with (tmp_path / "log").open("w+") as log:
        free = load_settings(listen="127.0.0.1:0", metrics="127.0.0.1:0")
        with start_server(free, make_logger("debug", "json", log)) as server:
            assert server.wait_ready(LONG)
            client = Client.of(server)
            with monkeypatch.context() as patch:

                def broken(report: object) -> report_pb2.Report:
                    raise RuntimeError("cannot open /secret/path")

                patch.setattr(wire, "report_to_proto", broken)
                for attempt in (client.audit, lambda request: list(client.stream(request))):
                    internal = failure(lambda attempt=attempt: attempt(small(prompts[0])))
                    assert (internal.code, internal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
                    assert "secret" not in internal.message
                    assert "RuntimeError" not in internal.message
            assert client.audit(small(prompts[0]))
            assert client.metric("basin_audits_total", code="INTERNAL") == 2
            scraped = client.metrics_text()
        written = (tmp_path / "log").read_text()
    assert internal.request_id in written
    assert "cannot open /secret/path" in written
    assert "Traceback" in written
    assert prompts[0] not in written + scraped


@pytest.fixture(scope="module")
def cheap(launch: Callable[..., Client]) -> Client:
    """A server that allows very small audits only."""
    return launch(
        limits={"seeds": 3, "steps": 3, "image_side": 64, "evaluations": 40, "prompt_characters": 80},
        budget={"seeds": 2, "curvature": "off"},
    )


int32 = st.integers(-(2**31), 2**31 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(st.characters(codec="utf-8"), max_size=90),
    sampler=st.fixed_dictionaries(
        {},
        optional={
            "scheduler": st.sampled_from(["ddim", "ddpm", "euler", "euler-ancestral", "dpm++2m", "unipc", "pndm", "?"]),
            "steps": st.integers(-1, 5) | int32,
            "guidance": st.floats() | st.floats(0, 100),
            "negative_prompt": st.text(st.characters(codec="utf-8"), max_size=90),
            "height": st.sampled_from([-4, 0, 4, 32, 60, 64, 68]) | int32,
            "width": st.sampled_from([-4, 0, 4, 32, 60, 64, 68]) | int32,
            "eta": st.floats() | st.floats(0, 1),
        },
    ),
    budget=st.fixed_dictionaries(
        {},
        optional={
            "seeds": st.integers(-1, 5) | int32,
            "first_seed": int64,
            "definition_samples": st.integers(0, 10**6) | int32,
            "curvature": st.sampled_from(["", "off", "lanczos", "dense", "?"]),
        },
    ),
)
def test_any_numbers(cheap: Client, prompt: str, sampler: dict[str, Any], budget: dict[str, Any]) -> None:
    """Whatever the fields hold, the answer is a report or an error that blames a field."""
    request = audit_pb2.AuditRequest(
        prompt=prompt,
        reference="demo",
        sampler=audit_pb2.SamplerOptions(**{"steps": 2, **sampler}),
        budget=audit_pb2.BudgetOptions(**budget),
    )
    try:
        report = cheap.audit(request)
    except grpc.RpcError:
        refused = failure(lambda: cheap.audit(request))
        if refused.code is PRECONDITION:  # a network far from what it was trained for
            assert refused.reason == "SAMPLES_NOT_FINITE"
        else:
            assert refused.code is INVALID
            assert refused.fields
    else:
        assert report.verdict in (report_pb2.memorized, report_pb2.spurious, report_pb2.generalized)
        assert 0 <= report.confidence <= 1
    assert cheap.health() == SERVING
