"""What the store keeps of batches, over SQLite and PostgreSQL alike."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from audit.errors import InvalidInput, NotFound
from service.store.queue import Queue
from service.store.records import BATCH_STATES, CANCELLED, DONE, FAILED, PAUSED, RUNNING, Batch, Counts, Entry
from service.store.store import CHUNK, Store
from tests.service.store.helpers import (
    LONG,
    entries,
    entry,
    examples,
    finish,
    key_of,
    sizes,
    work_off,
)

# Taking a batch in.


def test_a_batch_is_kept_as_it_was_given(store: Store, queue: Queue) -> None:
    """Prompts, what stood beside them, and settings, to the last space."""
    odd: list[tuple[str, dict[str, Any]]] = [
        ("  Zoë 👩\u200d🎨\u2028\t'\"\\ %s :name $1 ", {}),
        ("x", {"none": None, "deep": [{"a": [1, 1.5, True, "é\0\u2028"]}], "large": 10**30}),
        ("\ufeff", {"": ""}),
        ("y" * 100_000, {"prompt": "another"}),
    ]
    given = [replace(one, prompt=prompt, extra=extra) for one, (prompt, extra) in zip(entries(4), odd, strict=True)]
    before = datetime.now(UTC)
    batch = store.create(given, {"sampler": {"steps": 5}, "é": None})
    assert batch == Batch(batch.id, RUNNING, "", {"sampler": {"steps": 5}, "é": None}, 4, batch.created, None)
    assert batch == store.batch(batch.id) == store.batches()[0]
    assert before <= batch.created <= datetime.now(UTC)
    rows = store.rows(batch.id)
    assert [row.entry for row in rows] == given
    assert {(row.first, row.second, row.error) for row in rows} == {(None, None, "")}
    assert store.counts(batch.id) == Counts(4, 0, 0)
    assert [task.prompt for task in queue.take(batch.id, "demo", 9, idle=True)] == [one.prompt for one in given]


@examples
@given(
    st.text(min_size=1).filter(lambda text: "\0" not in text),
    st.dictionaries(
        st.text(), st.text() | st.integers() | st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=3
    ),
)
def test_any_prompt_comes_back(store: Store, prompt: str, extra: dict[str, Any]) -> None:
    """Whatever a file of prompts may hold."""
    given = Entry("demo", 0, prompt, key_of(uuid.uuid4().hex), extra)
    (row,) = store.rows(store.create([given], {}).id)
    assert row.entry == given


def test_an_empty_batch(store: Store, queue: Queue) -> None:
    """Has nothing to do."""
    batch = store.create([], {})
    assert batch.prompts == 0
    assert queue.take(batch.id, "demo", 5, idle=True) == []
    assert store.counts(batch.id) == Counts(0, 0, 0)
    assert store.rows(batch.id) == list(store.every_row(batch.id)) == []


@pytest.mark.parametrize("failure", [InvalidInput("line 700: no JSON", reason="X"), KeyboardInterrupt(), OSError()])
@pytest.mark.parametrize("after", [0, 3, CHUNK, CHUNK + 100])
def test_a_batch_is_taken_in_whole_or_not_at_all(
    store: Store, engine: Engine, failure: BaseException, after: int
) -> None:
    """Whatever ends the list of prompts early, nothing is left of what came before; the same request may come again."""

    def failing() -> Iterator[Entry]:
        yield from entries(after)
        raise failure

    with pytest.raises(type(failure)):
        store.create(failing(), {}, request_id="request")
    assert set(sizes(engine).values()) == {0}
    assert store.batches() == []
    assert store.create(entries(after), {}, request_id="request").prompts == after


def test_a_repeated_request_makes_no_second_batch(store: Store, queue: Queue, engine: Engine) -> None:
    """The batch that is there is returned, however far it is."""
    batch = store.create(entries(CHUNK + 1), {"a": 1, "b": 2}, request_id="request")
    finish(queue, batch.id, queue.take(batch.id, "demo", 1, idle=True)[0])
    store.set_state(batch.id, PAUSED, "stopped")
    before = sizes(engine)
    again = store.create(iter(entries(CHUNK + 1)), {"b": 2, "a": 1}, request_id="request")
    assert again == replace(batch, state=PAUSED, note="stopped")
    assert sizes(engine) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda given, settings: given.append(entry(3)),
        lambda given, settings: given.pop(),
        lambda given, settings: given.clear(),
        lambda given, settings: given.reverse(),
        lambda given, settings: given.__setitem__(2, replace(given[2], key=key_of("other"))),
        lambda given, settings: given.__setitem__(2, replace(given[2], extra={"number": 3})),
        lambda given, settings: given.__setitem__(2, replace(given[2], position=7)),
        lambda given, settings: given.__setitem__(2, replace(given[2], checkpoint="other")),
        lambda given, settings: settings.update(steps=6),
    ],
    ids=["more", "fewer", "none", "order", "key", "extra", "position", "checkpoint", "settings"],
)
def test_a_request_id_is_for_one_batch(
    store: Store, engine: Engine, change: Callable[[list[Entry], dict[str, Any]], None]
) -> None:
    """Anything else under it is refused, and changes nothing."""
    batch = store.create(entries(3), {"steps": 5}, request_id="request")
    before = sizes(engine)
    given, wanted = entries(3), {"steps": 5}
    change(given, wanted)
    with pytest.raises(InvalidInput) as refused:
        store.create(given, wanted, request_id="request")
    assert (refused.value.reason, refused.value.field) == ("REQUEST_ID_REUSED", "request_id")
    assert sizes(engine) == before
    store.delete(batch.id)
    assert store.create(given, wanted, request_id="request").id != batch.id


def test_requests_without_an_id_are_new_ones(store: Store) -> None:
    """The same prompts twice are two batches."""
    first, second = (store.create(entries(2), {}) for _ in range(2))
    assert first.id != second.id
    assert len(store.batches()) == 2


def test_duplicates_share_a_task(store: Store, queue: Queue) -> None:
    """Beside each other, far apart, and under two names of one checkpoint; every item has the answer."""
    distinct = [entry(position) for position in range(CHUNK)]
    repeated = [replace(entry(0), position=CHUNK + more) for more in range(3)]
    given = [*distinct, *repeated, replace(entry(1), checkpoint="twin", position=0)]
    batch = store.create(given, {})
    assert batch.prompts == CHUNK + 4
    assert store.counts(batch.id) == Counts(CHUNK, 0, 0)
    work_off(queue, batch.id, lambda task: "memorized" if task.key == entry(0).key else "generalized")
    assert store.counts(batch.id) == Counts(0, CHUNK + 1, 0, {"memorized": 1, "generalized": CHUNK - 1})
    rows = list(store.every_row(batch.id))
    assert [row.entry for row in rows] == given
    flagged = [row.entry.position for row in rows if row.first is not None and row.first.flagged]
    assert flagged == [0, CHUNK, CHUNK + 1, CHUNK + 2]
    assert all(
        row.second is not None for row in rows if row.entry.position in flagged and row.entry.checkpoint == "demo"
    )


def test_names_as_long_as_folders_are(store: Store, queue: Queue) -> None:
    """A checkpoint is known by the name of its folder."""
    name = "é" * 127 + "-2"
    batch = store.create([replace(entry(0), checkpoint=name)], {})
    assert [task.checkpoint for task in queue.take(batch.id, name, 1, idle=True)] == [name]


# States and times.


def test_states_have_times_and_notes(store: Store) -> None:
    """A batch that goes on has not ended; times are in UTC, wherever the database is."""
    id_ = store.create([], {}).id
    for state in BATCH_STATES:
        store.set_state(id_, state, f"it is {state}")
        batch = store.batch(id_)
        assert (batch.state, batch.note) == (state, f"it is {state}")
        assert batch.created.utcoffset() == timedelta(0)
        if state in (DONE, CANCELLED, FAILED):
            assert batch.finished is not None
            assert batch.finished.utcoffset() == timedelta(0)
            assert batch.created <= batch.finished <= datetime.now(UTC)
        else:
            assert batch.finished is None
    store.set_state(id_, RUNNING)
    assert (store.batch(id_).note, store.batch(id_).finished) == ("", None)


def test_a_batch_leaves_only_the_states_that_are_named(store: Store) -> None:
    """One that was cancelled never becomes done; whether it was changed is told."""
    id_ = store.create([], {}).id
    assert not store.set_state(id_, DONE, among=(PAUSED, FAILED))
    assert store.set_state(id_, CANCELLED, "by a user", among=(RUNNING, PAUSED))
    cancelled = store.batch(id_)
    for state in (DONE, RUNNING, PAUSED, FAILED):
        assert not store.set_state(id_, state, "by its runner", among=(RUNNING, PAUSED))
    assert store.batch(id_) == cancelled
    assert not store.set_state("unknown", DONE)


def test_of_two_who_end_a_batch_one_does(store: Store) -> None:
    """Cancelled by one and done by the other at the same moment."""
    barrier = threading.Barrier(2)

    def end(id_: str, state: str) -> bool:
        barrier.wait(LONG)
        return store.set_state(id_, state, among=(RUNNING, PAUSED))

    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            id_ = store.create([], {}).id
            ended = {state: pool.submit(end, id_, state) for state in (CANCELLED, DONE)}
            winners = [state for state, future in ended.items() if future.result(LONG)]
            assert winners == [store.batch(id_).state]


@pytest.mark.parametrize("id_", ["", "unknown", "x" * 1000, "'; DROP TABLE batches; --"])
def test_unknown_batches(store: Store, queue: Queue, id_: str) -> None:
    """They are not found, and have nothing."""
    for call in (store.batch, store.delete):
        with pytest.raises(NotFound) as missing:
            call(id_)
        assert (missing.value.reason, missing.value.field) == ("BATCH_NOT_FOUND", "batch")
        assert len(str(missing.value)) < 100
    assert store.rows(id_) == []
    assert queue.take(id_, "demo", 5, idle=True) == []
    assert store.counts(id_) == Counts(0, 0, 0)
    assert store.report(id_) is None
