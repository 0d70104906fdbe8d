"""Batches over the wire: taken in, looked at, listed, ended, deleted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from sqlalchemy import Engine, event, insert

from audit.model.batching import MOST_PASSED_OVER
from audit.v1 import audit_pb2, batch_pb2
from audit.verdict.rule import CLASSES
from service.batch_handlers import MOST_INTAKES
from service.client import BasinClient
from service.store.engine import connect
from service.store.schema import BatchRow
from tests.service.batch_calls import (
    begun,
    cancel,
    create,
    delete,
    ended,
    endless,
    get,
    given,
    id_of,
    listed,
    load,
    parts_of,
    results,
    slow,
    spec,
    unload,
    upload,
)
from tests.service.helpers import LONG, SMALL, Client, eventually, failure, small

RUNNING, PAUSED = batch_pb2.BATCH_STATE_RUNNING, batch_pb2.BATCH_STATE_PAUSED
DONE, CANCELLED = batch_pb2.BATCH_STATE_DONE, batch_pb2.BATCH_STATE_CANCELLED


def _evaluations(client: Client, *checkpoints: str) -> float:
    """Made until now, and what these checkpoints predict without a prompt, which is computed once, among them."""
    for checkpoint in checkpoints:
        client.audit(small("nothing", checkpoint=checkpoint))
    return client.metric("basin_denoiser_evaluations_total")


def test_a_batch_is_audited(batch_client: Client, prompts: list[str]) -> None:
    """It says of itself what was asked for, and in the end what it found."""
    before = datetime.now(UTC)
    how = spec(reference="demo", pictures="BATCH_PICTURES_NONE", false_discovery_rate=0.2)
    id_ = create(batch_client, prompts[:3], how)
    batch = ended(batch_client, id_)
    progress = batch.progress
    assert (batch.id, progress.batch, progress.state, progress.note) == (id_, id_, DONE, "")
    assert (progress.prompts, progress.open, progress.failed) == (3, 0, 0)
    flagged = progress.verdicts["memorized"] + progress.verdicts["spurious"]
    assert set(progress.verdicts) == set(CLASSES)
    assert sum(progress.verdicts.values()) == 3
    assert progress.done == 3 + flagged
    assert not progress.HasField("time_left")
    assert before <= batch.create_time.ToDatetime(UTC) <= batch.finish_time.ToDatetime(UTC) <= datetime.now(UTC)
    (outcomes,) = batch.outcomes
    assert outcomes.checkpoint == "demo"
    assert sum(outcomes.prompts.values()) == 3
    # What was asked for, and beside it what was not said.
    said = batch_pb2.BatchSpec()
    said.CopyFrom(batch.spec)
    assert said.budget.definition_samples == 512
    said.budget.ClearField("definition_samples")
    assert (said.sampler.height, said.sampler.width) == (32, 32)
    said.sampler.CopyFrom(how.sampler)
    assert said == how
    assert MessageToDict(batch.settings)["subjects"]["demo"]["reference_digest"].startswith("sha256:")


def test_unset_fields_are_the_servers_defaults(launch: Callable[..., Client], tmp_path: Any) -> None:
    """A spec that says nothing audits with the only checkpoint, its sampler and the default budget."""
    own = launch(
        budget={"seeds": 2, "minimum_seeds": 2, "curvature": "off", "definition_samples": 64},
        batches={"store": f"sqlite:///{tmp_path}/basin.db"},
    )
    said = get(own, create(own, ["anything"], batch_pb2.BatchSpec())).spec
    assert list(said.checkpoints) == ["demo"]
    assert said.budget == audit_pb2.BudgetOptions(
        seeds=2, minimum_seeds=2, first_seed=0, definition_samples=64, curvature="off"
    )
    assert said.sampler.steps == 20
    assert said.pictures == batch_pb2.BATCH_PICTURES_FLAGGED
    assert said.false_discovery_rate == 0.05
    assert said.reference == ""


def test_duplicates_are_audited_once(batch_client: Client) -> None:
    """Also those that another batch has audited already."""
    how = spec()
    before = _evaluations(batch_client, "demo")
    id_ = create(batch_client, ["one", "two", "one", "one ", "two"], how)
    batch = ended(batch_client, id_)
    assert batch.progress.prompts == 5
    found = results(batch_client, id_)
    assert [one.prompt.prompt for one in found] == ["one", "two", "one", "one ", "two"]
    assert len({one.key for one in found}) == 3
    assert found[0].first == found[2].first
    assert found[0].second == found[2].second
    assert batch.progress.done <= 2 * 3
    assert batch_client.metric("basin_denoiser_evaluations_total") - before == SMALL * batch.progress.done
    again = ended(batch_client, create(batch_client, ["two", "one", "new"], how))
    fresh = again.progress.done - sum(2 if one.HasField("second") else 1 for one in found[:2])
    assert fresh in (1, 2)
    assert batch_client.metric("basin_denoiser_evaluations_total") - before == SMALL * (batch.progress.done + fresh)


def test_two_checkpoints(batch_client: Client, prompts: list[str]) -> None:
    """Every prompt is audited with each, and results come by checkpoint."""
    id_ = create(batch_client, prompts[:4], spec("strict", "demo"))
    batch = ended(batch_client, id_)
    assert batch.progress.prompts == 8
    found = results(batch_client, id_)
    assert [(one.checkpoint, one.position) for one in found] == [
        (name, position) for name in ("demo", "strict") for position in range(4)
    ]
    assert {one.key for one in found[:4]}.isdisjoint(one.key for one in found[4:])
    assert [one.checkpoint for one in batch.outcomes] == ["strict", "demo"]
    for outcomes in batch.outcomes:
        own = [one for one in found if one.checkpoint == outcomes.checkpoint]
        counted = Counter(batch_pb2.BatchOutcome.Name(one.outcome) for one in own)
        assert {f"BATCH_OUTCOME_{name.upper()}": count for name, count in outcomes.prompts.items()} == counted
    # Two images that count as the same to one calibration do not to the other.
    for one, other in zip(found[:4], found[4:], strict=True):
        assert one.first.probabilities != other.first.probabilities


def test_two_names_of_one_checkpoint(batch_client: Client, prompts: list[str]) -> None:
    """What decides an answer is the same, so that each is worked out once and counts twice."""
    before = _evaluations(batch_client, "demo", "twin")
    id_ = create(batch_client, prompts[:3], spec("demo", "twin"))
    batch = ended(batch_client, id_)
    found = results(batch_client, id_)
    assert [one.checkpoint for one in found] == 3 * ["demo"] + 3 * ["twin"]
    for one, other in zip(found[:3], found[3:], strict=True):
        assert (one.key, one.first, one.second, one.outcome) == (other.key, other.first, other.second, other.outcome)
    assert batch_client.metric("basin_denoiser_evaluations_total") - before == SMALL * batch.progress.done
    assert batch.outcomes[0].prompts == batch.outcomes[1].prompts


def test_prompt_set(batch_client: Client) -> None:
    """The server knows its prompts, and what stands beside them."""
    request = batch_pb2.CreateBatchRequest(spec=spec(), prompt_set="mine")
    id_ = id_of(batch_client.batches.CreateBatch(request, timeout=LONG))
    assert ended(batch_client, id_).progress.state == DONE
    found = [(one.prompt.prompt, MessageToDict(one.prompt.extra)) for one in results(batch_client, id_)]
    assert found == [("from a set", {"number": "1"}), ("from a set too", {"number": "2"})]


def test_upload(batch_client: Client) -> None:
    """Prompts come in as many messages as it takes, some of them empty, and keep their order."""
    wanted = [f"prompt {number}" for number in range(900)]
    parts = list(parts_of(endless(), wanted, at_once=7))
    parts[5:5] = [batch_pb2.UploadBatchRequest(prompts=batch_pb2.BatchPrompts()), batch_pb2.UploadBatchRequest()]
    id_ = upload(batch_client, parts)
    batch = cancel(batch_client, id_)
    assert batch.progress.prompts == 900
    assert [one.prompt.prompt for one in results(batch_client, id_)] == wanted


def test_an_upload_that_breaks_off_takes_nothing_in(batch_client: Client) -> None:
    """Cancelled, late, or gone: what came before is forgotten, also by the request id."""
    before = listed(batch_client)

    def attempt(address: str, number: int, way: str) -> None:
        with grpc.insecure_channel(address) as channel:
            stub = type(batch_client.batches)(channel)
            call: list[Any] = []

            def parts() -> Iterator[batch_pb2.UploadBatchRequest]:
                yield from parts_of(endless(), ["a", "b", "c"], at_once=1, request_id="broken off")
                time.sleep(0.01 * number)
                if way == "cancel":
                    call[0].cancel()
                elif way == "hang up":
                    channel.close()
                time.sleep(1)

            call.append(stub.UploadBatch.future(parts(), timeout=0.3 if way == "deadline" else LONG))
            with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
                call[0].result()

    for way in ("cancel", "deadline", "hang up"):
        for number in range(4):
            attempt(batch_client.address, number, way)
    assert listed(batch_client) == before
    id_ = create(batch_client, ["another"], request_id="broken off")
    assert listed(batch_client) == [id_, *before]


def test_repeated_requests_make_one_batch(batch_client: Client) -> None:
    """The same id with the same content is the same batch, however it comes; with another content it is refused."""
    how = spec()
    first = create(batch_client, ["a", "b"], how, request_id="mine 1")
    assert create(batch_client, ["a", "b"], how, request_id="mine 1") == first
    assert upload(batch_client, parts_of(how, ["a", "b"], at_once=1, request_id="mine 1")) == first
    other_rate = batch_pb2.BatchSpec()
    other_rate.CopyFrom(how)
    other_rate.false_discovery_rate = 0.5
    for prompts, other in ((["a"], how), (["b", "a"], how), (["a", "b"], other_rate), (["a", "b"], spec())):
        request = batch_pb2.CreateBatchRequest(spec=other, prompts=given(prompts), request_id="mine 1")
        refused = failure(lambda request=request: batch_client.batches.CreateBatch(request, timeout=LONG))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
        assert refused.fields == ("request_id",)
    extra = batch_pb2.CreateBatchRequest(spec=how, prompts=given(["a", "b"], {"n": 1}), request_id="mine 1")
    assert failure(lambda: batch_client.batches.CreateBatch(extra, timeout=LONG)).reason == "REQUEST_ID_REUSED"
    assert create(batch_client, ["a", "b"], how) != first
    ended(batch_client, first)
    assert create(batch_client, ["a", "b"], how, request_id="mine 1") == first
    delete(batch_client, first)
    assert create(batch_client, ["a"], how, request_id="mine 1") != first


def test_a_repeated_request_is_answered_whatever_became_of_the_server(batch_client: Client) -> None:
    """It gets the batch that is there, also where it could no longer be served; another request learns why not."""
    how = spec("strict")
    first = create(batch_client, ["a"], how, request_id="answered")
    ended(batch_client, first)
    unload(batch_client, "strict")
    assert create(batch_client, ["a"], how, request_id="answered") == first
    other = batch_pb2.CreateBatchRequest(spec=how, prompts=given(["b"]), request_id="answered")
    assert failure(lambda: batch_client.batches.CreateBatch(other, timeout=LONG)).reason == "CHECKPOINT_NOT_LOADED"
    load(batch_client, "strict")


def test_few_batches_are_taken_in_at_once(batch_client: Client) -> None:
    """One too many is to come again later, and then it is taken in."""
    over = threading.Event()

    def parts(number: int) -> Iterator[batch_pb2.UploadBatchRequest]:
        yield from parts_of(spec(), [f"taken in {number}"])
        over.wait(LONG)

    calls = [batch_client.batches.UploadBatch.future(parts(number), timeout=LONG) for number in range(MOST_INTAKES + 1)]
    eventually(lambda: any(call.done() for call in calls))
    (late,) = [call for call in calls if call.done()]
    refused = failure(late.result)
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_INTAKES")
    assert refused.retry_seconds
    over.set()
    assert len({id_of(call.result()) for call in calls if call is not late}) == MOST_INTAKES
    assert create(batch_client, ["one too many"])


def test_batches_have_so_much_to_do_and_no_more(launch: Callable[..., Client], tmp_path: Path) -> None:
    """What would go over is to come again later; what is too much alone is taken in where nothing else is there."""
    own = launch(batches={"store": f"sqlite:///{tmp_path}/basin.db", "evaluations": 60_000})
    first = create(own, ["57,640 evaluations"], endless())
    refused = failure(lambda: create(own, ["one", "more"], endless()))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BATCHES_FULL")
    assert refused.retry_seconds
    assert own.metric("basin_errors_total", reason="BATCHES_FULL") == 1
    second = create(own, ["20 evaluations"])
    assert listed(own) == [second, first]
    cancel(own, first)
    ended(own, second)
    create(own, ["one", "more"], endless())


def test_lists(batch_client: Client) -> None:
    """The newest comes first, in pages of any size, by state and by checkpoint."""
    asked = (endless("demo"), endless("strict"), endless("strict", "demo"))
    one, two, three = (create(batch_client, ["listed"], how) for how in asked)
    cancel(batch_client, two)
    everything = listed(batch_client)
    assert everything[:3] == [three, two, one]
    assert len(set(everything)) == len(everything)
    for size in (1, 2, len(everything), 10**6):
        assert listed(batch_client, page_size=size) == everything
    page = batch_client.batches.ListBatches(batch_pb2.ListBatchesRequest(page_size=2), timeout=LONG)
    assert [batch.id for batch in page.batches] == [three, two]
    assert page.batches[1].progress.state == CANCELLED
    assert not page.batches[1].outcomes
    assert not page.batches[1].HasField("settings")
    by_state = {state: listed(batch_client, state=state, page_size=2) for state in (RUNNING, PAUSED, DONE, CANCELLED)}
    assert by_state[RUNNING] == [three, one]
    assert by_state[PAUSED] == []
    assert by_state[CANCELLED][0] == two
    assert sorted(id_ for own in by_state.values() for id_ in own) == sorted(everything)
    assert listed(batch_client, checkpoint="strict", page_size=1)[:2] == [three, two]
    assert listed(batch_client, checkpoint="strict", state=RUNNING) == [three]
    assert listed(batch_client, checkpoint="idle") == []
    for id_ in (one, three):
        cancel(batch_client, id_)
    assert listed(batch_client, state=RUNNING) == []


def test_batches_that_wait_are_found_among_many(launch: Callable[..., Client], tmp_path: Path) -> None:
    """In a few questions to the store, however many have ended."""
    url, now = f"sqlite:///{tmp_path}/basin.db", datetime.now(UTC)
    engine = connect(url)
    with engine.begin() as connection:
        rows = [
            {
                "id": f"{number:032}", "fingerprint": "", "state": "done" if number % 150 else "paused", "settings": {},
                "prompts": 0, "created": now + timedelta(seconds=number),
            }
            for number in range(301)
        ]  # fmt: skip
        connection.execute(insert(BatchRow), rows)
    engine.dispose()
    own = launch(batches={"store": url})
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if "ORDER BY batches.created DESC" in statement:
            asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    found = listed(own, state=PAUSED, page_size=2)
    event.remove(Engine, "before_cursor_execute", note)
    assert found == [f"{number:032}" for number in (300, 150, 0)]
    assert len(asked) == 2  # one a page


def test_cancel(batch_client: Client) -> None:
    """In the middle of its work a batch ends soon; what it found is kept, and no more denoiser calls are made."""
    id_ = create(batch_client, [f"cancelled {number}" for number in range(60)], slow())
    begun(batch_client, id_, 2)
    batch = cancel(batch_client, id_)
    assert batch.progress.state == CANCELLED
    assert batch.HasField("finish_time")
    assert sum(batch.outcomes[0].prompts.values()) == 60
    # A call in flight lets so many passes of callers go first, and an audit here makes two.
    for _ in range(MOST_PASSED_OVER // 2 + 1):
        batch_client.audit(small("cancelled", checkpoint="demo"))
    made = batch_client.metric("basin_denoiser_evaluations_total")
    batch_client.audit(small("cancelled", checkpoint="demo"))
    assert batch_client.metric("basin_denoiser_evaluations_total") - made == SMALL
    now = get(batch_client, id_)
    assert 2 <= now.progress.done < 60
    assert now.progress.open >= 60 - now.progress.done
    assert not now.progress.HasField("time_left")
    found = results(batch_client, id_)
    assert sum(one.HasField(name) for one in found for name in ("first", "second")) == now.progress.done
    for one in found:
        assert one.outcome != batch_pb2.BATCH_OUTCOME_UNSPECIFIED
        settled = one.HasField("second") or (not one.confirmation and one.HasField("first"))
        assert one.open is not settled
        assert (one.outcome == batch_pb2.BATCH_OUTCOME_FAILED) is one.open
    assert now.outcomes[0].prompts["failed"] == sum(one.open for one in found)
    assert cancel(batch_client, id_) == now


def test_cancelling_what_has_ended_changes_nothing(batch_client: Client) -> None:
    """A batch that is done stays done."""
    id_ = create(batch_client, ["done"])
    before = ended(batch_client, id_)
    assert before.progress.state == DONE
    assert cancel(batch_client, id_) == before == get(batch_client, id_)


def test_a_waiting_batch_can_be_cancelled(batch_client: Client) -> None:
    """Batches are worked off one after the other, and the others need not wait for one that is ended."""
    first = create(batch_client, ["first"], endless())
    second, third = (create(batch_client, [name]) for name in ("second", "third"))
    assert get(batch_client, second).progress.state == RUNNING
    assert cancel(batch_client, second).progress.state == CANCELLED
    cancel(batch_client, first)
    assert ended(batch_client, third).progress.state == DONE
    assert get(batch_client, second).progress.done == 0


def test_delete(batch_client: Client) -> None:
    """One that is worked on stays; one that has ended is gone with its results."""
    how = endless()
    id_ = create(batch_client, ["to be deleted"], how)
    refused = failure(lambda: delete(batch_client, id_))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BATCH_NOT_ENDED")
    assert get(batch_client, id_).progress.state == RUNNING
    cancel(batch_client, id_)
    delete(batch_client, id_)
    for call in (get, cancel, delete, results):
        missing = failure(lambda call=call: call(batch_client, id_))
        assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "BATCH_NOT_FOUND")
    assert id_ not in listed(batch_client)
    how = spec()
    delete(batch_client, ended(batch_client, create(batch_client, ["known"], how)).id)
    before = batch_client.metric("basin_denoiser_evaluations_total")
    ended(batch_client, create(batch_client, ["known"], how))
    assert batch_client.metric("basin_denoiser_evaluations_total") > before


def test_a_prompt_that_cannot_be_audited_costs_only_itself(batch_client: Client, prompts: list[str]) -> None:
    """The tokenizer has its say when an audit runs: the item fails with the reason, at the first try."""
    id_ = create(batch_client, [prompts[0], "x y " * 70, prompts[1]])
    batch = ended(batch_client, id_)
    assert (batch.progress.state, batch.progress.failed) == (DONE, 1)
    good, bad, fine = results(batch_client, id_)
    assert "tokens" in bad.error
    assert bad.outcome == batch_pb2.BATCH_OUTCOME_FAILED
    assert not bad.HasField("first")
    assert not bad.open
    assert good.error == fine.error == ""
    assert batch.outcomes[0].prompts["failed"] == 1


def test_audits_of_callers_go_on_beside_a_batch(batch_client: Client, prompts: list[str]) -> None:
    """Neither waits for the other to end."""
    id_ = create(batch_client, [f"beside {number}" for number in range(40)], slow())
    begun(batch_client, id_)
    for prompt in prompts[:3]:
        assert batch_client.audit(small(prompt, reference="demo")).prompt == prompt
        *_, last = batch_client.stream(small(prompt, sampler=audit_pb2.SamplerOptions(steps=5)))
        assert last.report.cost.sampling_evaluations == 10
    now = get(batch_client, id_).progress
    assert now.state == RUNNING
    assert now.open
    assert now.rate > 0
    assert now.time_left.ToTimedelta().total_seconds() > 0
    eventually(lambda: get(batch_client, id_).progress.done > now.done)
    cancel(batch_client, id_)


def test_the_client(batch_client: Client) -> None:
    """Plain calls for all of it; what its prompts raise it raises, and then nothing is taken in."""
    with BasinClient(batch_client.address) as client:
        before = [batch.id for batch in client.batches()]
        id_ = client.submit(spec(), given(["of", "a", "client"]).prompts)
        assert ended(batch_client, id_) == client.batch(id_)
        assert [one.result for one in client.batch_results(id_)] == results(batch_client, id_)
        first, *_ = client.batch_results(id_)
        assert len(list(client.batch_results(id_, cursor=first.cursor))) == 2
        how = spec()
        assert len({client.submit(how, "mine", request_id="by name") for _ in range(2)}) == 1
        left = client.submit(endless(), given(f"{number} {290 * 'x'}" for number in range(1000)).prompts)
        assert next(client.batches(state="BATCH_STATE_RUNNING")).id == left
        assert client.cancel_batch(left).progress.state == CANCELLED

        def broken() -> Iterator[batch_pb2.BatchPrompt]:
            yield from given(["fine"]).prompts
            raise ValueError("no more")

        known = [batch.id for batch in client.batches()]
        with pytest.raises(ValueError, match="no more"):
            client.submit(spec(), broken())
        assert [batch.id for batch in client.batches()] == known
        client.delete_batch(left)
        assert left not in [batch.id for batch in client.batches(checkpoint="demo")]
        assert set(before) < set(known)
