"""Bad input to batches and operations: its code, reason and field, nothing taken in, and a server that lives on."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2

from audit.v1 import audit_pb2, batch_pb2
from service.paging import write_token
from tests.service.batch_calls import create, given, listed, parts_of, spec, stream, upload
from tests.service.helpers import LONG, SERVING, Client, Failure, failure

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

#: What to change in a good specification: code, reason, field.
SPECS: dict[str, tuple[dict[str, Any], grpc.StatusCode, str, str]] = {
    "no checkpoint among several": ({"checkpoints": []}, INVALID, "CHECKPOINT_REQUIRED", "spec.checkpoints"),
    "empty checkpoint": ({"checkpoints": [""]}, NOT_FOUND, "CHECKPOINT_NOT_FOUND", ""),
    "unknown checkpoint": ({"checkpoints": ["demo", "nope"]}, NOT_FOUND, "CHECKPOINT_NOT_FOUND", ""),
    "path for a checkpoint": ({"checkpoints": ["/etc"]}, NOT_FOUND, "CHECKPOINT_NOT_FOUND", ""),
    "checkpoint twice": ({"checkpoints": ["demo", "demo"]}, INVALID, "CHECKPOINT_REPEATED", "spec.checkpoints"),
    "not loaded": ({"checkpoints": ["demo", "idle"]}, PRECONDITION, "CHECKPOINT_NOT_LOADED", ""),
    "unknown reference": ({"reference": "nope"}, NOT_FOUND, "REFERENCE_NOT_FOUND", ""),
    "negative rate": (
        {"false_discovery_rate": -0.1}, INVALID, "FALSE_DISCOVERY_RATE_OUT_OF_RANGE", "spec.false_discovery_rate",
    ),
    "rate over one": (
        {"false_discovery_rate": 1.1}, INVALID, "FALSE_DISCOVERY_RATE_OUT_OF_RANGE", "spec.false_discovery_rate",
    ),
    "NaN rate": (
        {"false_discovery_rate": math.nan}, INVALID, "FALSE_DISCOVERY_RATE_OUT_OF_RANGE", "spec.false_discovery_rate",
    ),
    "pictures of the future": ({"pictures": 9}, INVALID, "PICTURES_UNKNOWN", "spec.pictures"),
}  # fmt: skip
SAMPLERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "too many steps": ({"steps": 1001}, "STEPS_OUT_OF_RANGE", "steps"),
    "NaN guidance": ({"guidance": math.nan}, "GUIDANCE_OUT_OF_RANGE", "guidance"),
    "huge eta": ({"eta": 1.01}, "ETA_OUT_OF_RANGE", "eta"),
    "odd height": ({"height": 33}, "SIZE_OUT_OF_RANGE", "height"),
    "unknown scheduler": ({"scheduler": "euler2"}, "SCHEDULER_UNKNOWN", "scheduler"),
    "long negative prompt": ({"negative_prompt": "a" * 301}, "PROMPT_TOO_LONG", "negative_prompt"),
}
BUDGETS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no seeds": ({"seeds": 0}, "SEEDS_OUT_OF_RANGE", "spec.budget.seeds"),
    "more seeds than the server allows": ({"seeds": 65}, "SEEDS_OUT_OF_RANGE", "spec.budget.seeds"),
    "negative first seed": ({"first_seed": -1}, "FIRST_SEED_OUT_OF_RANGE", "spec.budget.first_seed"),
    "no definition": ({"definition_samples": 0}, "DEFINITION_SAMPLES_OUT_OF_RANGE", "spec.budget.definition_samples"),
    "unknown curvature": ({"curvature": "exact"}, "CURVATURE_UNKNOWN", "spec.budget.curvature"),
}


def _with_extra(value: float) -> batch_pb2.BatchPrompts:
    made = given(["fine", "x"])
    made.prompts[1].extra.fields["n"].list_value.values.add().number_value = value
    return made


#: What to put in the place of good prompts: code, reason, field.
PROMPTS: dict[str, tuple[dict[str, Any], grpc.StatusCode, str, str]] = {
    "none": ({"prompts": None}, INVALID, "PROMPTS_REQUIRED", "prompts"),
    "an empty list": ({"prompts": given([])}, INVALID, "PROMPTS_EMPTY", "prompts"),
    "an empty one": ({"prompts": given(["x", ""])}, INVALID, "PROMPT_EMPTY", "prompts[1].prompt"),
    "a blank one": ({"prompts": given([" \t\n"])}, INVALID, "PROMPT_EMPTY", "prompts[0].prompt"),
    "a long one": ({"prompts": given(["x", "y", 301 * "z"])}, INVALID, "PROMPT_TOO_LONG", "prompts[2].prompt"),
    "NUL": ({"prompts": given(["a\0b"])}, INVALID, "NUL_CHARACTER", "prompts[0].prompt"),
    "NaN beside one": ({"prompts": _with_extra(math.nan)}, INVALID, "EXTRA_INVALID", "prompts[1].extra"),
    "infinity beside one": ({"prompts": _with_extra(-math.inf)}, INVALID, "EXTRA_INVALID", "prompts[1].extra"),
    "too many": ({"prompts": given(1001 * ["x"])}, INVALID, "TOO_MANY_PROMPTS", "prompts"),
    "an unknown set": ({"prompt_set": "nope"}, NOT_FOUND, "PROMPT_SET_NOT_FOUND", ""),
    "a path for a set": ({"prompt_set": "/etc/passwd"}, NOT_FOUND, "PROMPT_SET_NOT_FOUND", ""),
    "a set without a name": ({"prompt_set": ""}, NOT_FOUND, "PROMPT_SET_NOT_FOUND", ""),
    "a set whose file is gone": ({"prompt_set": "gone"}, PRECONDITION, "PROMPT_SET_GONE", ""),
    "an empty set": ({"prompt_set": "empty"}, PRECONDITION, "PROMPTS_EMPTY", ""),
    "a set with a long prompt": ({"prompt_set": "long"}, INVALID, "PROMPT_TOO_LONG", "prompt_set[1].prompt"),
    "a set with more than the wire carries": ({"prompt_set": "deep"}, INVALID, "EXTRA_INVALID", "extra"),
    "a long request id": ({"request_id": 65 * "x"}, INVALID, "REQUEST_ID_TOO_LONG", "request_id"),
    "NUL in a request id": ({"request_id": "\0"}, INVALID, "NUL_CHARACTER", "request_id"),
}


def _requests() -> Iterator[Any]:
    for name, (fields, code, reason, field) in SPECS.items():
        changed = spec()
        for part in fields:
            changed.ClearField(part)
        changed.MergeFrom(batch_pb2.BatchSpec(**fields))
        yield pytest.param({"spec": changed}, code, reason, field, id=name)
    for name, (fields, reason, field) in SAMPLERS.items():
        changed = spec(sampler=audit_pb2.SamplerOptions(**fields))
        yield pytest.param({"spec": changed}, INVALID, reason, f"spec.sampler.{field}", id=name)
    for name, (fields, reason, field) in BUDGETS.items():
        changed = spec(budget=audit_pb2.BudgetOptions(**fields))
        yield pytest.param({"spec": changed}, INVALID, reason, field, id=name)
    costly = spec(seeds=64, steps=990, sampler=audit_pb2.SamplerOptions(guidance=2.0))
    yield pytest.param({"spec": costly}, INVALID, "EVALUATIONS_OVER_LIMIT", "spec.budget", id="too much work")
    for name, (fields, code, reason, field) in PROMPTS.items():
        yield pytest.param(fields, code, reason, field, id=name)


def _is(refused: Failure, code: grpc.StatusCode, reason: str, field: str) -> bool:
    """Whether a call failed like this, in one line."""
    assert (refused.code, refused.reason, refused.domain) == (code, reason, "basin")
    assert refused.fields == ((field,) if field else ())
    assert refused.request_id
    assert 0 < len(refused.message) <= 500
    assert "\n" not in refused.message
    return True


@pytest.mark.parametrize(("fields", "code", "reason", "field"), list(_requests()))
def test_bad_batch(
    batch_client: Client, fields: dict[str, Any], code: grpc.StatusCode, reason: str, field: str
) -> None:
    """What is wrong with a batch is said before any of it is taken in, uploaded or not."""
    before = listed(batch_client)
    content = {"spec": spec(), "prompts": given(["fine"])} | fields
    if "prompt_set" in fields:
        del content["prompts"]
    request = batch_pb2.CreateBatchRequest(**content)
    assert _is(failure(lambda: batch_client.batches.CreateBatch(request, timeout=LONG)), code, reason, field)
    if content.get("prompts"):
        prompts = [batch_pb2.BatchPrompts(prompts=[one]) for one in request.prompts.prompts]
        header = batch_pb2.UploadBatchHeader(spec=request.spec, request_id=request.request_id)
        parts = [batch_pb2.UploadBatchRequest(header=header)]
        parts += [batch_pb2.UploadBatchRequest(prompts=one) for one in prompts]
        assert _is(failure(lambda: upload(batch_client, parts)), code, reason, field)
    assert listed(batch_client) == before
    assert batch_client.health() == SERVING


def test_the_bound_on_bytes(batch_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is carried with prompts is bounded, too, or it could fill the memory."""
    monkeypatch.setattr("service.batch_handlers.MOST_BYTES", 2000)
    create(batch_client, ["x"] * 5)
    request = batch_pb2.CreateBatchRequest(spec=spec(), prompts=given(["x"] * 5, {"text": 500 * "y"}))
    refused = failure(lambda: batch_client.batches.CreateBatch(request, timeout=LONG))
    assert _is(refused, INVALID, "PROMPTS_TOO_LARGE", "prompts")


def test_the_bound_on_prompts_is_over_all_checkpoints(batch_client: Client) -> None:
    """Each counts once for every checkpoint."""
    refused = failure(lambda: upload(batch_client, parts_of(spec("demo", "strict"), 501 * ["x"], at_once=100)))
    assert _is(refused, INVALID, "TOO_MANY_PROMPTS", "prompts")
    assert "1,002" in refused.message


def test_the_message_says_which_prompt(batch_client: Client) -> None:
    """Whoever reads only the message finds it, too."""
    refused = failure(lambda: upload(batch_client, parts_of(spec(), [*(12 * ["x"]), 301 * "y"], at_once=5)))
    assert refused.message == "prompts[12]: 301 characters, this server allows 300"


HEADER = batch_pb2.UploadBatchRequest(header=batch_pb2.UploadBatchHeader(spec=spec()))
PART = batch_pb2.UploadBatchRequest(prompts=given(["x"]))


@pytest.mark.parametrize(
    ("parts", "reason", "field"),
    [
        pytest.param([], "HEADER_MISSING", "header", id="nothing"),
        pytest.param([PART], "HEADER_MISPLACED", "header", id="no header"),
        pytest.param([PART, HEADER], "HEADER_MISPLACED", "header", id="header last"),
        pytest.param([HEADER, PART, HEADER], "HEADER_MISPLACED", "header", id="two headers"),
        pytest.param([batch_pb2.UploadBatchRequest(), HEADER], "HEADER_MISPLACED", "header", id="empty message first"),
        pytest.param([HEADER], "PROMPTS_EMPTY", "prompts", id="no prompts"),
    ],
)  # fmt: skip
def test_bad_upload(batch_client: Client, parts: list[batch_pb2.UploadBatchRequest], reason: str, field: str) -> None:
    """The header stands first and only there, and prompts come after it."""
    before = listed(batch_client)
    assert _is(failure(lambda: upload(batch_client, parts)), INVALID, reason, field)
    assert listed(batch_client) == before


def test_bytes_that_are_no_message(batch_client: Client) -> None:
    """Garbage is an error of its call alone, also in the middle of an upload."""
    single = batch_client.channel.unary_unary("/audit.v1.BatchService/CreateBatch")
    many = batch_client.channel.stream_unary("/audit.v1.BatchService/UploadBatch")
    for garbage in (b"\xff\xff\xff", b"\x0a\x02\xc3\x28"):
        assert _is(failure(lambda garbage=garbage: single(garbage, timeout=LONG)), INVALID, "REQUEST_UNREADABLE", "")
        contents = [HEADER.SerializeToString(), garbage]
        refused = failure(lambda contents=contents: many(iter(contents), timeout=LONG))
        assert _is(refused, INVALID, "REQUEST_UNREADABLE", "")
    assert batch_client.health() == SERVING


@pytest.mark.parametrize(
    ("batch", "code", "reason", "field"),
    [
        ("", INVALID, "BATCH_REQUIRED", "batch"),
        ("\0", INVALID, "NUL_CHARACTER", "batch"),
        ("nope", NOT_FOUND, "BATCH_NOT_FOUND", ""),
        ("operations/nope", NOT_FOUND, "BATCH_NOT_FOUND", ""),
        (32 * "0", NOT_FOUND, "BATCH_NOT_FOUND", ""),
        (10_000 * "x", NOT_FOUND, "BATCH_NOT_FOUND", ""),
    ],
)
def test_unknown_batch(batch_client: Client, batch: str, code: grpc.StatusCode, reason: str, field: str) -> None:
    """Whatever is asked of a batch that is not there."""
    calls = (
        lambda: batch_client.batches.GetBatch(batch_pb2.GetBatchRequest(batch=batch), timeout=LONG),
        lambda: batch_client.batches.CancelBatch(batch_pb2.CancelBatchRequest(batch=batch), timeout=LONG),
        lambda: batch_client.batches.DeleteBatch(batch_pb2.DeleteBatchRequest(batch=batch), timeout=LONG),
        lambda: list(stream(batch_client, batch)),
        lambda: list(stream(batch_client, batch, follow=True, include_reports=True)),
    )
    for call in calls:
        assert _is(failure(call), code, reason, field)


def _token(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


#: None of them was ever given out.
TOKENS = (
    "x", "?", " ", "null", "AAAA", "é", 1000 * "x", _token(), _token(None, None), _token(True, "x"), _token("x"),
    _token(1.0, "x"), _token("x", 10**30), _token("\0", 1), _token("\ud800", 1), _token({}, []), _token(["x"], 1),
)  # fmt: skip


@pytest.mark.parametrize("cursor", [*TOKENS, write_token("demo"), write_token(1, "demo")])
def test_bad_cursor(batch_client: Client, cursor: str) -> None:
    """Only the server's own are taken, also for a batch that is not there."""
    assert _is(failure(lambda: list(stream(batch_client, "nope", cursor=cursor))), INVALID, "CURSOR_INVALID", "cursor")


@pytest.mark.parametrize("token", [*TOKENS, write_token("demo", 1), _token(2**62, "x"), _token(-(2**62), "x")])
def test_bad_page_token(batch_client: Client, token: str) -> None:
    """Neither of batches nor of operations."""
    calls = (
        lambda: listed(batch_client, page_token=token),
        lambda: batch_client.operations.ListOperations(
            operations_pb2.ListOperationsRequest(page_token=token), timeout=LONG
        ),
    )
    for call in calls:
        assert _is(failure(call), INVALID, "PAGE_TOKEN_INVALID", "page_token")


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"page_size": -1}, "PAGE_SIZE_NEGATIVE", "page_size"),
        ({"state": 77}, "STATE_UNKNOWN", "state"),
        ({"checkpoint": "\0"}, "NUL_CHARACTER", "checkpoint"),
    ],
)
def test_bad_list(batch_client: Client, fields: dict[str, Any], reason: str, field: str) -> None:
    """A list names what it cannot make sense of."""
    assert _is(failure(lambda: listed(batch_client, **fields)), INVALID, reason, field)


@pytest.mark.parametrize(
    ("name", "code", "reason", "field"),
    [
        ("", INVALID, "NAME_INVALID", "name"),
        ("operations/", INVALID, "NAME_INVALID", "name"),
        ("batches/x", INVALID, "NAME_INVALID", "name"),
        ("operations/\0", INVALID, "NUL_CHARACTER", "name"),
        ("operations/x", NOT_FOUND, "BATCH_NOT_FOUND", ""),
        ("operations/operations/x", NOT_FOUND, "BATCH_NOT_FOUND", ""),
    ],
)
def test_unknown_operation(batch_client: Client, name: str, code: grpc.StatusCode, reason: str, field: str) -> None:
    """Whatever is asked of an operation that is not there."""
    for kind in ("Get", "Cancel", "Delete", "Wait"):
        request = getattr(operations_pb2, f"{kind}OperationRequest")(name=name)
        call = getattr(batch_client.operations, f"{kind}Operation")
        assert _is(failure(lambda call=call, request=request: call(request, timeout=LONG)), code, reason, field)


@pytest.mark.parametrize(
    ("fields", "code", "reason", "field"),
    [
        ({"name": "batches"}, NOT_FOUND, "NAME_UNKNOWN", ""),
        ({"filter": "done=true"}, INVALID, "FILTER_UNKNOWN", "filter"),
        ({"page_size": -1}, INVALID, "PAGE_SIZE_NEGATIVE", "page_size"),
    ],
)
def test_bad_list_of_operations(
    batch_client: Client, fields: dict[str, Any], code: grpc.StatusCode, reason: str, field: str
) -> None:
    """There is one collection, without filters."""
    request = operations_pb2.ListOperationsRequest(**fields)
    assert _is(failure(lambda: batch_client.operations.ListOperations(request, timeout=LONG)), code, reason, field)
