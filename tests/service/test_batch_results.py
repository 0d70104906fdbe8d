"""What batches found, over the wire."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.batch.discovery import conclude
from audit.v1 import audit_pb2, batch_pb2
from service.batch_wire import MOST_WHOLE, concluded_of, extra_of
from service.client import BasinClient
from service.results import plain
from tests.service.batch_calls import (
    begun,
    cancel,
    create,
    ended,
    endless,
    get,
    id_of,
    load,
    results,
    slow,
    spec,
    stream,
    unload,
    upload,
)
from tests.service.helpers import LONG, Client, eventually, failure, pixels, small, unhurried
from tests.service.runs import run_batch

#: What is put beside prompts, column by column.
EXTRA: dict[str, Any] = {
    "whole": 3,
    "negative": -7,
    "large": MOST_WHOLE,
    "fraction": 0.1,
    "tiny": 5e-324,
    "huge": 1.7976931348623157e308,
    "yes": True,
    "nothing": None,
    "": "a column without a name",
    "text": "Ünïcödé ✓ 日本語 \U0001f600 \n\t\0",
    "nested": {"list": [1, [2.5, {"three": None}], "x", False], "empty": {}, "none": []},
    "prompt": "another one",
    "outcome": "of another tool",
}


def test_outcomes_are_those_of_a_local_run(batch_client: Client, tmp_path: Path, prompts: list[str]) -> None:
    """The same prompts, settings and seeds have the same keys, answers and outcomes as without a server."""
    wanted = [*prompts[:4], *prompts[-3:], prompts[0]]
    rows = [{"prompt": prompt, "number": number} for number, prompt in enumerate(wanted)]
    how = spec("demo", reference="demo", seeds=4, steps=10)
    first_seed = how.budget.first_seed
    parts = [batch_pb2.UploadBatchRequest(header=batch_pb2.UploadBatchHeader(spec=how))]
    for row in rows:
        part = batch_pb2.BatchPrompt(prompt=row["prompt"])
        ParseDict({"number": row["number"]}, part.extra)
        parts.append(batch_pb2.UploadBatchRequest(prompts=batch_pb2.BatchPrompts(prompts=[part])))
    id_ = upload(batch_client, parts)
    run = run_batch(
        tmp_path / "run", rows, "--checkpoint", "demo", "--seeds", "4", "--steps", "10", "--guidance", "1",
        "--curvature", "off", "--seed", str(first_seed),
    )  # fmt: skip
    here = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    ended(batch_client, id_)
    concluded = [concluded_of(one) for one in results(batch_client, id_)]
    there = [plain(one) for one in concluded]
    for one, other in zip(there, here, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == (pytest.approx(other[name], abs=0.02) if isinstance(value, float) else other[name])
    assert len({one["outcome"] for one in there}) > 1
    distinct = concluded[:-1]
    said = conclude([one.row.first for one in distinct], [one.row.second for one in distinct])
    assert [one.outcome for one in concluded] == [*said, said[0]]


def test_a_cursor_goes_on_exactly_after_its_result(batch_client: Client, prompts: list[str]) -> None:
    """Wherever it stands, within a checkpoint, between two, and at the end."""
    id_ = create(batch_client, prompts[:3], spec("demo", "strict"))
    ended(batch_client, id_)
    everything = list(stream(batch_client, id_))
    assert len({one.cursor for one in everything}) == len(everything) == 6
    for number, one in enumerate(everything, 1):
        assert list(stream(batch_client, id_, cursor=one.cursor)) == everything[number:]


def test_many_results(batch_client: Client) -> None:
    """More than are read at once come all, once and in order."""
    id_ = create(batch_client, [f"many {number}" for number in range(1000)], endless())
    cancel(batch_client, id_)
    everything = list(stream(batch_client, id_))
    assert [one.result.position for one in everything] == list(range(1000))
    assert [one.result.position for one in stream(batch_client, id_, cursor=everything[499].cursor)] == [
        *range(500, 1000)
    ]


def test_results_as_they_stand(batch_client: Client) -> None:
    """While a batch runs, what is known comes, and the rest is open; nothing is concluded yet."""
    id_ = create(batch_client, [f"standing {number}" for number in range(40)], slow())
    begun(batch_client, id_)
    found = results(batch_client, id_)
    assert len(found) == 40
    assert any(one.HasField("first") for one in found)
    assert any(one.open and not one.HasField("first") for one in found)
    assert {one.outcome for one in found} == {batch_pb2.BATCH_OUTCOME_UNSPECIFIED}
    cancel(batch_client, id_)


def test_following_waits_for_what_is_not_there_yet(batch_client: Client, prompts: list[str]) -> None:
    """Each result comes when all of its audits are done, and the stream ends with the last one."""
    blocking = create(batch_client, ["in front"], endless())
    id_ = create(batch_client, prompts[:3], spec("demo", "strict"))
    unload(batch_client, "strict")
    followed = stream(batch_client, id_, follow=True)
    cancel(batch_client, blocking)
    found = [next(followed) for _ in range(3)]
    eventually(lambda: get(batch_client, id_).progress.state == batch_pb2.BATCH_STATE_PAUSED)
    load(batch_client, "strict")
    found += followed
    places = [(one.result.checkpoint, one.result.position) for one in found]
    assert places == [(name, position) for name in ("demo", "strict") for position in range(3)]
    assert not any(one.result.open for one in found)
    assert all(one.result.HasField("second") == bool(one.result.confirmation) for one in found)
    assert get(batch_client, id_).progress.open == 0
    assert list(stream(batch_client, id_, follow=True, cursor=found[-1].cursor)) == []


def test_following_ends_when_a_batch_is_ended(batch_client: Client) -> None:
    """What is not done then comes as it stands."""
    id_ = create(batch_client, ["one", "two"], endless())
    followed = stream(batch_client, id_, follow=True)
    with ThreadPoolExecutor(1) as reader:
        found = reader.submit(list, followed)
        eventually(lambda: get(batch_client, id_).progress.open == 2)
        cancel(batch_client, id_)
        outcomes = [one.result.outcome for one in found.result(LONG)]
    assert outcomes == 2 * [batch_pb2.BATCH_OUTCOME_FAILED]


def test_reports_come_when_asked_for(batch_client: Client, prompts: list[str]) -> None:
    """They are those of the same audits alone, and hold the pictures that the batch keeps."""
    how = spec("demo", reference="demo", pictures="BATCH_PICTURES_ALL")
    id_ = create(batch_client, prompts[:3], how)
    ended(batch_client, id_)
    assert not any(one.first.HasField("report") or one.second.HasField("report") for one in results(batch_client, id_))
    for one in results(batch_client, id_, include_reports=True):
        for answer, seed in ((one.first, how.budget.first_seed), (one.second, how.budget.first_seed + 2)):
            if answer is one.second and not one.confirmation:
                assert not one.HasField("second")
                continue
            assert answer.report.verdict == answer.verdict
            assert answer.report.probabilities == answer.probabilities
            assert [sample.seed for sample in answer.report.samples] == [seed, seed + 1]
            budget = audit_pb2.BudgetOptions(first_seed=seed, minimum_seeds=2)
            request = small(one.prompt.prompt, reference="demo", include_images=True, budget=budget)
            alone = unhurried(batch_client.audit(request))
            assert alone.samples[0].image.png
            kept = unhurried(answer.report)
            for one_sample, other in zip(kept.samples, alone.samples, strict=True):
                assert np.abs(pixels(one_sample.image) - pixels(other.image)).max() <= 1
            assert kept.subject == alone.subject
            assert kept.verdict == alone.verdict


@pytest.mark.parametrize("pictures", ["flagged", "all", "none"])
def test_pictures(batch_client: Client, prompts: list[str], pictures: str) -> None:
    """Reports keep theirs where the batch was asked to."""
    id_ = create(
        batch_client, [prompts[0], prompts[-1]], spec("demo", "strict", pictures=f"BATCH_PICTURES_{pictures.upper()}")
    )
    ended(batch_client, id_)
    flags = set()
    for one in results(batch_client, id_, include_reports=True):
        flagged = bool(one.confirmation)
        flags.add(flagged)
        kept = [sample.HasField("image") for sample in one.first.report.samples]
        assert kept == 2 * [pictures == "all" or (pictures == "flagged" and flagged)]
    assert flags == {True, False}


def test_what_stands_beside_prompts_is_carried(batch_client: Client) -> None:
    """Numbers, text of any script, lists and objects come back as they were given."""
    prompt = batch_pb2.BatchPrompt(prompt="with columns")
    ParseDict(EXTRA, prompt.extra)
    request = batch_pb2.CreateBatchRequest(spec=spec(), prompts=batch_pb2.BatchPrompts(prompts=[prompt]))
    id_ = id_of(batch_client.batches.CreateBatch(request, timeout=LONG))
    with BasinClient(batch_client.address) as client:
        other = client.submit(request.spec, [prompt])
    for one in (*results(batch_client, id_), *results(batch_client, other)):
        extra = extra_of(one.prompt, "extra")
        assert extra == EXTRA
        assert [type(value) for value in extra.values()] == [type(EXTRA[name]) for name in extra]
        row = plain(concluded_of(one))
        assert (row["prompt"], row["given_prompt"]) == ("with columns", "another one")
        assert row["given_outcome"] == "of another tool"


any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MOST_WHOLE, MOST_WHOLE)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40).filter(str.strip),
        min_size=1,
        max_size=4,
    ),
    extra=st.dictionaries(st.text(), any_json, max_size=4),
)
def test_any_prompts_come_back(batch_client: Client, texts: list[str], extra: dict[str, Any]) -> None:
    """Unaltered, in their order, with whatever stood beside them."""
    prompts = [batch_pb2.BatchPrompt(prompt=text) for text in texts]
    for prompt in prompts:
        ParseDict(extra, prompt.extra)
    request = batch_pb2.CreateBatchRequest(spec=endless(), prompts=batch_pb2.BatchPrompts(prompts=prompts))
    id_ = id_of(batch_client.batches.CreateBatch(request, timeout=LONG))
    cancel(batch_client, id_)
    found = results(batch_client, id_)
    assert [one.prompt.prompt for one in found] == texts
    assert [extra_of(one.prompt, "extra") for one in found] == len(texts) * [extra]
    assert failure(lambda: next(stream(batch_client, id_, cursor="x"))).reason == "CURSOR_INVALID"
