"""Messages of batches, there and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st

from audit.batch.discovery import Answer, Outcome
from audit.batch.tasks import Subject
from audit.budget import Budget
from audit.errors import InvalidInput
from audit.evidence.curvature import CurvatureSettings
from audit.model.sampling import SamplerSettings
from audit.v1 import batch_pb2, report_pb2
from audit.verdict.rule import CLASSES, PhaseClass
from service.batch_settings import BatchSettings
from service.batch_wire import (
    MOST_LEVELS,
    MOST_WHOLE,
    batch_to_proto,
    concluded_of,
    entry_of,
    extra_of,
    operation_of,
    pictures_of,
    pictures_to_proto,
    prompt_to_proto,
    result_to_proto,
    state_of,
    state_to_proto,
)
from service.pictures import Pictures
from service.results import Concluded
from service.store.records import BATCH_STATES, CANCELLED, DONE, FAILED, PAUSED, RUNNING, Batch, Counts, Entry, Row

text = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.integers(-MOST_WHOLE, MOST_WHOLE) | st.floats(allow_nan=False, allow_infinity=False)
any_json = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
columns = st.dictionaries(text, any_json, max_size=4)
share = st.floats(0, 1)
answers = st.builds(Answer, st.sampled_from(PhaseClass), st.tuples(share, share, share))
entries = st.builds(Entry, checkpoint=text, position=st.integers(0, 2**62), prompt=text, key=text, extra=columns)
rows = st.builds(
    Row, entry=entries, first=st.none() | answers, second=st.none() | answers, error=text, confirmation=text,
    open=st.booleans(),
)  # fmt: skip


def _over_the_wire(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


@given(rows, st.sampled_from(Outcome))
def test_a_result_of_a_batch_that_has_ended(row: Row, outcome: Outcome) -> None:
    """Everything of it is there again."""
    message = _over_the_wire(result_to_proto(row, outcome))
    assert concluded_of(message) == Concluded(row, outcome)
    assert entry_of(message) == row.entry
    assert not message.first.HasField("report")


@given(rows)
def test_a_result_of_a_batch_at_work(row: Row) -> None:
    """Nothing is concluded: it is open, whatever was found of it already."""
    message = _over_the_wire(result_to_proto(row, None))
    assert message.outcome == batch_pb2.BATCH_OUTCOME_UNSPECIFIED
    assert message.open is row.open
    got = concluded_of(message).row
    assert got.open
    assert (got.entry, got.first, got.second, got.error) == (row.entry, row.first, row.second, row.error)


@given(rows)
def test_reports_come_along_with_their_answers(row: Row) -> None:
    """Each stands in its place, and none where there is no answer."""
    reports = [report_pb2.Report(prompt="first"), report_pb2.Report(prompt="second")]
    message = _over_the_wire(result_to_proto(row, None, reports))
    assert message.HasField("first") is (row.first is not None)
    assert message.HasField("second") is (row.second is not None)
    for name, answer, report in zip(("first", "second"), (row.first, row.second), reports, strict=True):
        if answer is not None:
            assert getattr(message, name).report == report


@given(text, columns)
def test_prompts(prompt: str, extra: dict[str, Any]) -> None:
    """They are never altered; numbers that are whole stay whole."""
    message = _over_the_wire(prompt_to_proto(prompt, extra))
    assert message.prompt == prompt
    got = extra_of(message, "extra")
    assert got == extra
    for name, value in extra.items():
        assert type(got[name]) is (
            int if isinstance(value, float) and value.is_integer() and abs(value) <= MOST_WHOLE else type(value)
        )


def _nested(levels: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"x": value} if kind is dict else [value]
    return value


@pytest.mark.parametrize("kind", [dict, list])
def test_nesting(kind: type) -> None:
    """As deep as is allowed also arrives inside a request and inside a result; one level more is refused."""
    extra = {"x": _nested(MOST_LEVELS - 1, kind)}
    prompt = prompt_to_proto("x", extra)
    for around in (
        batch_pb2.CreateBatchRequest(prompts=batch_pb2.BatchPrompts(prompts=[prompt])),
        batch_pb2.UploadBatchRequest(prompts=batch_pb2.BatchPrompts(prompts=[prompt])),
        batch_pb2.StreamBatchResultsResponse(result=batch_pb2.BatchResult(prompt=prompt)),
    ):
        assert _over_the_wire(around) == around
    assert extra_of(prompt, "extra") == extra
    deeper = {"x": _nested(MOST_LEVELS, kind)}
    message = batch_pb2.BatchPrompt()
    ParseDict(deeper, message.extra)
    for attempt in (lambda: prompt_to_proto("x", deeper), lambda: extra_of(message, "extra")):
        with pytest.raises(InvalidInput, match=f"more than {MOST_LEVELS} levels") as refused:
            attempt()
        assert (refused.value.reason, refused.value.field) == ("EXTRA_INVALID", "extra")


@pytest.mark.parametrize("number", [MOST_WHOLE + 1, -MOST_WHOLE - 1, 2**60, 10**400])
def test_whole_numbers_that_would_lose_digits(number: int) -> None:
    """They are refused, wherever they stand, rather than altered."""
    with pytest.raises(InvalidInput, match="too many digits") as refused:
        prompt_to_proto("x", {"fine": 1, "list": [{"deep": number}]})
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none(number: float) -> None:
    """JSON has no word for them, so that nobody could read them again."""
    message = batch_pb2.BatchPrompt()
    message.extra.fields["x"].number_value = number
    with pytest.raises(InvalidInput) as refused:
        extra_of(message, "prompts[3].extra")
    assert (refused.value.reason, refused.value.field) == ("EXTRA_INVALID", "prompts[3].extra")


def test_names_of_states_and_pictures() -> None:
    """Each has one on the wire, and the other way round; what is not known is refused."""
    for state in (*BATCH_STATES, ""):
        assert state_of(batch_pb2.BatchState.Value(state_to_proto(state))) == state
    assert len(batch_pb2.BatchState.values()) == len(BATCH_STATES) + 1
    for pictures in Pictures:
        assert pictures_of(batch_pb2.BatchSpec(pictures=pictures_to_proto(pictures))) is pictures
    assert len(batch_pb2.BatchPictures.values()) == len(Pictures) + 1
    assert pictures_of(batch_pb2.BatchSpec()) is Pictures.FLAGGED
    assert {f"BATCH_OUTCOME_{outcome.upper()}" for outcome in Outcome} == set(batch_pb2.BatchOutcome.keys()[1:])
    for attempt in (
        lambda: state_to_proto("asleep"),
        lambda: state_of(77),  # type: ignore[arg-type]
        lambda: pictures_of(batch_pb2.BatchSpec(pictures=77)),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidInput):
            attempt()


def _settings(**samplers: SamplerSettings) -> dict[str, Any]:
    budget = Budget(seeds=7, first_seed=5, definition_samples=64, curvature=CurvatureSettings(method="off"))
    subjects = {name: Subject("sha256:1", "float32", sampler, budget, "", "", "") for name, sampler in samplers.items()}
    return BatchSettings(subjects=subjects, reference="set", pictures=Pictures.ALL, false_discoveries=0.25).content()


BATCH = Batch("id", RUNNING, "", {}, 10, datetime(2030, 1, 2, 3, 4, 5, 678901, UTC), None)


def _batch(state: str = RUNNING, note: str = "", settings: Mapping[str, Any] | None = None) -> Batch:
    finished = BATCH.created + timedelta(hours=1) if state in (DONE, CANCELLED, FAILED) else None
    return Batch("id", state, note, dict(settings or _settings(demo=SamplerSettings())), 10, BATCH.created, finished)


def test_a_batch_says_what_was_asked_for() -> None:
    """Every setting is filled in, the sampler's where all checkpoints have the same."""
    sampler = SamplerSettings(
        scheduler="ddim", steps=9, guidance=2.0, negative_prompt="no", height=32, width=64, eta=0.5
    )
    spec = batch_to_proto(_batch(settings=_settings(b=sampler, a=sampler)), Counts(0, 0, 0), 0.0).spec
    assert list(spec.checkpoints) == ["b", "a"]
    assert (spec.reference, spec.false_discovery_rate) == ("set", 0.25)
    assert spec.pictures == batch_pb2.BATCH_PICTURES_ALL
    # Whether the guidance is embedded is the checkpoint's to say, and no option.
    own = {name: value for name, value in vars(sampler).items() if name != "embedded"}
    assert {field.name: value for field, value in spec.sampler.ListFields()} == own
    assert (spec.budget.seeds, spec.budget.first_seed, spec.budget.definition_samples) == (7, 5, 64)
    assert spec.budget.curvature == "off"
    other = batch_to_proto(_batch(settings=_settings(b=sampler, a=SamplerSettings())), Counts(0, 0, 0), 0.0).spec
    assert not other.HasField("sampler")
    foreign = batch_to_proto(_batch(settings={"subjects": {"x": {}}, "future": 1}), Counts(0, 0, 0), 0.0).spec
    assert foreign == batch_pb2.BatchSpec(checkpoints=["x"])


def test_a_batch_says_how_far_it_is() -> None:
    """Counts, the rate, and the time that is left at it; a reason to wait makes it a paused one."""
    counts = Counts(30, 5, 2, {"memorized": 3})
    batch = batch_to_proto(_batch(), counts, 0.4, "", None)
    progress = batch.progress
    assert (progress.prompts, progress.open, progress.done, progress.failed) == (10, 30, 5, 2)
    assert dict(progress.verdicts) == {name: 3 if name == "memorized" else 0 for name in CLASSES}
    assert (progress.state, progress.rate, progress.time_left.seconds) == (batch_pb2.BATCH_STATE_RUNNING, 0.4, 75)
    assert batch.create_time.ToDatetime(UTC) == BATCH.created
    assert not batch.HasField("finish_time")
    assert not batch_to_proto(_batch(), counts, 0.0).progress.HasField("time_left")
    assert not batch_to_proto(_batch(), Counts(0, 5, 0), 0.4).progress.HasField("time_left")
    waiting = batch_to_proto(_batch(), counts, 0.0, "for something").progress
    assert (waiting.state, waiting.note) == (batch_pb2.BATCH_STATE_PAUSED, "for something")
    ended = batch_to_proto(_batch(DONE), counts, 0.4, "for something", {"demo": {"failed": 10}})
    assert ended.progress.state == batch_pb2.BATCH_STATE_DONE
    assert not ended.progress.HasField("time_left")
    assert ended.finish_time.ToDatetime(UTC) - BATCH.created == timedelta(hours=1)
    assert [(one.checkpoint, dict(one.prompts)) for one in ended.outcomes] == [("demo", {"failed": 10})]


@pytest.mark.parametrize(
    ("state", "note", "code"),
    [
        (RUNNING, "", None), (PAUSED, "waits", None), (DONE, "", None), (CANCELLED, "", code_pb2.CANCELLED),
        (CANCELLED, "why", code_pb2.CANCELLED), (FAILED, "why", code_pb2.FAILED_PRECONDITION),
    ],
)  # fmt: skip
def test_operations(state: str, note: str, code: int | None) -> None:
    """Done means that the batch has ended, with a response where that was well."""
    batch = batch_to_proto(_batch(state, note), Counts(1, 2, 3), 0.0)
    operation = operation_of(batch)
    assert operation.name == "operations/id"
    assert operation.done is (state not in (RUNNING, PAUSED))
    progress, response = batch_pb2.BatchProgress(), batch_pb2.Batch()
    assert operation.metadata.Unpack(progress)
    assert progress == batch.progress
    assert operation.WhichOneof("result") == ("response" if state == DONE else None if code is None else "error")
    if state == DONE:
        assert operation.response.Unpack(response)
        assert response == batch
    if code is not None:
        assert operation.error.code == code
        assert operation.error.message == note or (not note and operation.error.message)
