"""What expires and what stays, over SQLite and PostgreSQL alike."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, settings
from hypothesis import given as drawn
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import Connection, Engine, delete, event, select, update

from audit.batch.tasks import Task
from audit.errors import InvalidInput
from audit.v1 import report_pb2
from service.store import deletion, retention
from service.store.deletion import BYTES
from service.store.engine import connect
from service.store.queue import Queue
from service.store.records import CANCELLED, DONE, FAILED, PAUSED, RUNNING, Counts
from service.store.retention import ERROR_REMOVED, Expired, Retention, expire
from service.store.schema import Base, BatchRow, ItemRow, ResultRow, TaskRow
from service.store.store import Store
from tests.service.store.aged import (
    NOW,
    confirm_known,
    content,
    ended,
    files_with,
    full_report,
    given,
    open_tasks,
    stored,
    texts_of,
    work_for_ever,
    work_off,
)
from tests.service.store.helpers import key_of, sizes, started, told

TEXTS = ["a red shirt", "a blue dress", "something else"]
#: Old enough for anything.
LATER = NOW + timedelta(days=1000)
NOTHING = Expired(0, 0, 0, 0)


def test_without_settings_everything_is_kept_for_ever(engine: Engine) -> None:
    """That is the default."""
    ended(engine, TEXTS, 5000)
    before = content(engine)
    assert expire(engine, Retention(), LATER) == NOTHING
    assert content(engine) == before


def test_prompts_go_while_verdicts_and_counts_stay(engine: Engine) -> None:
    """From items with the columns beside them, from tasks, from errors and from reports, captions included."""
    store = Store(engine)
    batch = ended(engine, TEXTS, 31)
    with engine.begin() as connection:
        connection.execute(update(TaskRow).where(TaskRow.key == key_of(TEXTS[0])).values(error=f"no {TEXTS[0]}"))
    counts, rows = store.counts(batch.id), store.rows(batch.id)
    assert expire(engine, Retention(prompts=30), NOW) == replace(NOTHING, prompts=3)
    assert store.counts(batch.id) == counts
    assert store.batch(batch.id) == batch
    for row, was in zip(store.rows(batch.id), rows, strict=True):
        assert (row.first, row.second, row.entry.key) == (was.first, was.second, was.entry.key)
        assert (row.entry.prompt, row.entry.extra) == ("", {})
        report = store.report(row.entry.key)
        assert report is not None
        assert (report.prompt, report.verdict, list(report.reasons)) == ("", was.first and 1, ["No two seeds met."])
        assert report.samples[0].image.png == b"a picture"
        assert report.samples[0].nearest_reference.index == report.samples[0].nearest_clip.index == 7
    assert not any(text in str(content(engine)) for text in TEXTS)
    with engine.connect() as connection:
        assert ERROR_REMOVED in set(connection.scalars(select(TaskRow.error)))


def test_pictures_go_by_the_age_of_their_audit(engine: Engine) -> None:
    """Also where a young batch has the result; nothing else of the report changes."""
    ended(engine, TEXTS[:2], 8)
    ended(engine, TEXTS, 1)
    before = stored(engine, TEXTS[0])
    assert before is not None
    # Two prompts, each with a second audit.
    assert expire(engine, Retention(samples=7), NOW) == replace(NOTHING, pictures=4)
    for text in TEXTS[:2]:
        report = stored(engine, text)
        assert report is not None
        assert b"a picture" not in report.SerializeToString()
    report = stored(engine, TEXTS[0])
    assert report is not None
    for part in (before.samples[0], before.samples[0].nearest_reference, before.stability.modes[0].nearest_reference):
        part.ClearField("image")  # type: ignore[arg-type]
    assert report == before
    young = stored(engine, TEXTS[2])
    assert young is not None
    assert young.samples[0].image.png == b"a picture"


def test_old_batches_are_deleted_with_results_that_no_other_has(engine: Engine) -> None:
    """A younger batch keeps the answers that it found; a result that no batch refers to goes by its own age."""
    old, young = ended(engine, TEXTS[:2], 366), ended(engine, TEXTS[1:], 364)
    rows = Store(engine).rows(young.id)
    with engine.begin() as connection:
        unused = dict(connection.execute(select(ResultRow).limit(1)).mappings().one())
        for days in (364, 366):
            values = unused | {"key": key_of(f"unused {days}"), "finished": NOW - timedelta(days=days)}
            connection.execute(ResultRow.__table__.insert().values(values))  # type: ignore[attr-defined]
    assert expire(engine, Retention(results=365), NOW) == replace(NOTHING, batches=1, results=2 + 1)
    assert [one.id for one in Store(engine).batches()] == [young.id] != [old.id]
    assert Store(engine).rows(young.id) == rows
    assert sizes(engine) == {"batches": 1, "items": 2, "tasks": 4, "results": 5}


@pytest.mark.parametrize("state", [RUNNING, PAUSED])
def test_what_is_not_at_its_end_is_left_alone(engine: Engine, state: str) -> None:
    """However long ago it was begun, and also its results that are younger batches' as well."""
    ended(engine, TEXTS, 900, state=state)
    before = content(engine)
    assert expire(engine, Retention(prompts=0, samples=0, results=0), NOW) == NOTHING
    assert content(engine) == before
    ended(engine, TEXTS, 800)
    assert expire(engine, Retention(prompts=0, samples=0, results=0), NOW) == replace(NOTHING, batches=1)
    assert content(engine) == before


@pytest.mark.parametrize("state", [DONE, CANCELLED, FAILED])
def test_every_end_counts(engine: Engine, state: str) -> None:
    """A batch that was cancelled or failed is as old as its end."""
    batch = ended(engine, TEXTS, 31, state=state)
    assert expire(engine, Retention(prompts=30), NOW).prompts == 3
    assert texts_of(engine, batch.id) == [""] * 3


def test_times_are_told_from_any_zone(engine: Engine) -> None:
    """Whoever asks may live anywhere."""
    ended(engine, TEXTS, 30)
    for hours in (14, -12):
        now = NOW.astimezone(timezone(timedelta(hours=hours)))
        assert expire(engine, Retention(prompts=30), now) == NOTHING
    assert expire(engine, Retention(prompts=30), now + timedelta(microseconds=1)).prompts == 3


# The same prompt asked again.


def test_a_result_without_prompt_is_used_again_and_shows_what_was_asked(engine: Engine) -> None:
    """Nothing is audited again; the old batch shows nothing, and once the new one is too old nothing does."""
    store, queue = Store(engine), Queue(engine)
    old = ended(engine, TEXTS, 31)
    expire(engine, Retention(prompts=30), NOW)
    assert [store.report(key_of(text)).prompt for text in TEXTS] == [""] * 3  # type: ignore[union-attr]
    young = store.create(given(TEXTS[:2]), {})
    confirm_known(queue, young.id)
    assert queue.take(young.id, "demo", 9, idle=True) == []
    assert all(row.first and row.second for row in store.rows(young.id))
    for text, shown in zip(TEXTS, [*TEXTS[:2], ""], strict=True):
        report = store.report(key_of(text))
        assert report is not None
        assert (report.prompt, report.samples[0].nearest_reference.caption) == (shown, "")
    assert texts_of(engine, old.id) == [""] * 3
    assert texts_of(engine, young.id) == TEXTS[:2]
    store.set_state(young.id, DONE)
    assert expire(engine, Retention(prompts=30), LATER).prompts == 2
    assert not any(text in str(content(engine)) for text in TEXTS)


def test_a_report_keeps_its_prompt_while_a_batch_has_it(engine: Engine) -> None:
    """The older of two batches loses its prompts, and takes nothing from the younger one."""
    old, young = ended(engine, TEXTS[:2], 31), ended(engine, TEXTS[1:], 29)
    assert expire(engine, Retention(prompts=30), NOW).prompts == 2
    assert (texts_of(engine, old.id), texts_of(engine, young.id)) == (["", ""], TEXTS[1:])
    found = [stored(engine, text) for text in TEXTS]
    assert [(one.prompt, one.samples[0].nearest_clip.caption) for one in found if one] == [
        ("", ""), (TEXTS[1], TEXTS[1]), (TEXTS[2], TEXTS[2]),
    ]  # fmt: skip
    assert expire(engine, Retention(prompts=30), NOW + timedelta(days=2)).prompts == 2
    assert not any(text in str(content(engine)) for text in TEXTS)


def test_a_task_without_its_prompt_is_never_taken(engine: Engine) -> None:
    """Made to go on, a batch that was cancelled long ago audits nothing under another prompt's key."""
    store, queue = Store(engine), Queue(engine)
    batch = store.create(given([f"prompt {number}" for number in range(6)]), {})
    tasks = queue.take(batch.id, "demo", 3, idle=True)
    queue.fail(tasks[0], "it broke", final=True)
    queue.put_back(tasks[1:])
    store.set_state(batch.id, CANCELLED)
    counts = store.counts(batch.id)
    assert counts == Counts(open=5, done=0, failed=1)
    assert expire(engine, Retention(prompts=30), LATER).prompts == 6
    store.set_state(batch.id, RUNNING)
    queue.retry_failed(batch.id)
    assert queue.take(batch.id, "demo", 9, idle=True) == []
    assert queue.unconfirmed(batch.id, "demo") == []
    assert store.counts(batch.id) == counts


def test_who_asks_again_brings_the_prompts_along(engine: Engine) -> None:
    """The same request puts them back, so that what failed can be tried again; another one changes nothing."""
    store, queue = Store(engine), Queue(engine)
    batch = store.create(given(TEXTS), {}, request_id="the same")
    queue.fail(queue.take(batch.id, "demo", 1, idle=True)[0], "it broke", final=True)
    work_off(queue, batch.id)
    store.set_state(batch.id, DONE)
    rows = store.rows(batch.id)
    expire(engine, Retention(prompts=30), LATER)
    removed = content(engine)
    with pytest.raises(InvalidInput):
        store.create(given([*TEXTS[:2], "a guess"]), {}, request_id="the same")
    assert content(engine) == removed
    assert store.create(given(TEXTS), {}, request_id="the same").id == batch.id
    found = store.rows(batch.id)
    assert [row.entry for row in found] == [row.entry for row in rows]
    store.set_state(batch.id, RUNNING)
    queue.retry_failed(batch.id)
    assert work_off(queue, batch.id) == 2
    assert all(row.first and row.second for row in store.rows(batch.id))
    store.set_state(batch.id, DONE)
    assert expire(engine, Retention(prompts=30), LATER).prompts == 3
    assert not any(text in str(content(engine)) for text in TEXTS)


# Interruptions, and others at work.


class Interrupted(Exception):
    """Stands for a process that is killed."""


@contextmanager
def interrupted_after(engine: Engine, commits: int) -> Iterator[None]:
    """Let nothing be committed after so many times."""
    left = [commits]

    def count(connection: Connection) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted

    event.listen(engine, "commit", count)
    try:
        yield
    finally:
        event.remove(engine, "commit", count)


def test_interrupted_anywhere_it_goes_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any number of transactions; in the end everything is as if nothing had happened."""
    for module in (deletion, retention):
        monkeypatch.setattr(module, "ROWS", 2)
    kept = ended(engine, TEXTS, 1)
    before = sizes(engine)
    wanted, interruptions, complete = Retention(prompts=30, samples=7, results=365), 0, False
    while not complete:
        ended(engine, [f"old {number}" for number in range(3)], 400, made=harmless)
        middle = ended(engine, [f"middle {number}" for number in range(3)], 40, made=harmless)
        try:
            with interrupted_after(engine, interruptions):
                expire(engine, wanted, NOW)
            complete = True
        except Interrupted:
            interruptions += 1
            expire(engine, wanted, NOW)
        assert expire(engine, wanted, NOW) == NOTHING
        found = content(engine)
        assert not any(word in str(found) for word in ("old ", "middle "))
        assert str(found).count("VIEW") == 0
        assert {one.id for one in Store(engine).batches()} == {kept.id, middle.id}
        assert texts_of(engine, middle.id) == [""] * 3
        assert texts_of(engine, kept.id) == TEXTS
        Store(engine).delete(middle.id)
        assert sizes(engine) == before
    assert interruptions > 8


def harmless(task: Task) -> report_pb2.Report:
    """A report of a prompt that generalizes, with pictures all the same."""
    return full_report(task, "generalized", picture=b"VIEW")


def test_expiring_beside_a_worker(engine: Engine, url: str) -> None:
    """The batch at work loses nothing and is done whole, while everything old around it goes."""
    old = [ended(engine, [f"old {number} of {age}" for number in range(20)], age) for age in (40, 400)]
    batch = Store(engine).create(given([f"prompt {number}" for number in range(40)]), {})
    with started(work_for_ever, url, batch.id) as (_, pipe):
        done = [told(pipe)]
        found = [expire(engine, Retention(prompts=30, samples=0, results=365), NOW)]
        while (key := told(pipe)) is not None:
            done.append(key)
            if len(done) % 20 == 0:
                found.append(expire(engine, Retention(prompts=30, samples=0, results=365), LATER))
    assert found[0] == Expired(batches=1, results=40, prompts=20, pictures=40)
    assert [one.id for one in Store(engine).batches()] == [batch.id]
    assert old[0].id not in str(content(engine))
    assert len(set(done)) == len(done) == 80
    assert open_tasks(engine, batch.id) == 0
    rows = Store(engine).rows(batch.id)
    assert [row.entry.prompt for row in rows] == [f"prompt {number}" for number in range(40)]
    assert all(row.first and row.second for row in rows)
    report = stored(engine, "prompt 1")
    assert report is not None
    assert report.samples[0].image.png == b"a picture"


def test_removing_takes_no_more_room_than_a_chunk(tmp_path: Path) -> None:
    """SQLite's log stays far below what is removed, since others need the disk, too."""
    engine = connect(f"sqlite:///{tmp_path}/basin.db")
    rng = random.Random(0)
    large = 4 * BYTES // 40
    ended(
        engine, [f"{number}" for number in range(20)], 40,
        made=lambda task: full_report(task, "generalized", picture=rng.randbytes(large)),
    )  # fmt: skip
    engine.dispose()  # which empties the log
    log = tmp_path / "basin.db-wal"
    highest = [0]
    event.listen(engine, "commit", lambda connection: highest.append(log.stat().st_size))
    full = (tmp_path / "basin.db").stat().st_size
    assert full > 3 * 20 * large
    assert expire(engine, Retention(samples=7), NOW).pictures == 20
    assert max(highest) < 3 * BYTES < full
    assert (tmp_path / "basin.db").stat().st_size < full / 50
    assert log.stat().st_size == 0
    engine.dispose()


def test_removed_bytes_are_gone_from_the_file(tmp_path: Path) -> None:
    """Prompts and pictures, from SQLite's file and its log, while the store is open and others read."""
    engine, reader = (connect(f"sqlite:///{tmp_path}/basin.db") for _ in range(2))
    rng = random.Random(1)
    ended(
        engine, [f"SECRET {number} {'x' * rng.randrange(3000)}" for number in range(60)], 40,
        made=lambda task: full_report(task, picture=b"FACE" * rng.randrange(1, 3000)),
    )  # fmt: skip
    kept = ended(engine, ["PUBLIC one"], 1, made=lambda task: full_report(task, picture=b"VIEW"))
    for mark in ("SECRET", "FACE", "PUBLIC", "VIEW"):
        assert files_with(tmp_path, mark), mark
    Store(reader).batches()
    assert expire(engine, Retention(prompts=30), NOW).left == ()
    assert files_with(tmp_path, "SECRET") == []
    assert files_with(tmp_path, "FACE") != []
    expire(engine, Retention(samples=7), NOW)
    assert files_with(tmp_path, "FACE") == []
    assert files_with(tmp_path, "PUBLIC") == files_with(tmp_path, "VIEW") == ["basin.db"]
    assert texts_of(engine, kept.id) == ["PUBLIC one"]
    for one in (engine, reader):
        one.dispose()


# Any batches, any ages.

AGES = st.sampled_from([0.5, 1.0, 1.5, 2.0, 2.5])
BATCHES = st.lists(
    st.tuples(
        st.sampled_from([DONE, CANCELLED, FAILED, RUNNING, PAUSED]),
        AGES,
        st.lists(st.sampled_from(["p", "q", "r", "s"]), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=4,
)
DAYS = st.sampled_from([None, 1.0, 2.0])
ENDS = (DONE, CANCELLED, FAILED)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@drawn(batches=BATCHES, prompts=DAYS, samples=DAYS, results=DAYS)
@example([(DONE, 2.5, ["p"]), (RUNNING, 2.5, ["p", "q"])], 1.0, 1.0, 1.0)
@example([(DONE, 2.5, ["p", "p"]), (DONE, 1.5, ["p", "q"])], 1.0, 2.0, 2.0)
def test_nothing_older_remains_and_nothing_younger_is_touched(
    engine: Engine,
    batches: list[tuple[str, float, list[str]]],
    prompts: float | None,
    samples: float | None,
    results: float | None,
) -> None:
    """Whatever the states, the ages and the prompts that batches share."""
    with engine.begin() as connection:
        for table in (ResultRow, TaskRow, ItemRow, BatchRow):
            connection.execute(delete(table))
    batches = sorted(batches, key=lambda one: -one[1])  # results are as old as the first batch that has them
    made = [(ended(engine, texts, age, state=state), state, age, texts) for state, age, texts in batches]
    audited = {text: max(age for _, age, texts in batches if text in texts) for _, _, own in batches for text in own}

    def older(age: float, than: float | None) -> bool:
        return than is not None and age > than

    expire(engine, Retention(prompts=prompts, samples=samples, results=results), NOW)
    kept = [one for one in made if one[1] not in ENDS or not older(one[2], results)]
    assert {one.id for one in Store(engine).batches()} == {batch.id for batch, *_ in kept}
    for batch, state, age, texts in kept:
        gone = state in ENDS and older(age, prompts)
        assert texts_of(engine, batch.id) == ([""] * len(texts) if gone else texts)
        assert [row.entry.extra for row in Store(engine).rows(batch.id)] == [
            {} if gone else {"beside": text} for text in texts
        ]
        assert all(row.first and row.second for row in Store(engine).rows(batch.id))
        assert Store(engine).batch(batch.id) == batch
    for text, age in audited.items():
        users = [(state, age) for _, state, age, texts in kept if text in texts]
        report = stored(engine, text)
        assert (report is not None) == bool(users)
        if report is not None:
            running = any(state not in ENDS for state, _ in users)
            assert bool(report.samples[0].image.png) == (running or not older(age, samples))
            known = any(state not in ENDS or not older(one, prompts) for state, one in users)
            assert report.prompt == report.samples[0].nearest_reference.caption == (text if known else "")
    again = content(engine)
    assert expire(engine, Retention(prompts=prompts, samples=samples, results=results), NOW) == NOTHING
    assert content(engine) == again
    assert set(again) == set(Base.metadata.tables)


@pytest.mark.parametrize("days", [-1, -0.001, float("nan"), float("inf"), 36_501, "soon", ""])
@pytest.mark.parametrize("name", ["prompts", "samples", "results"])
def test_ages_that_are_none(name: str, days: object) -> None:
    """Are refused, as is anything else that is to be kept."""
    with pytest.raises(ValidationError, match=name):
        Retention.model_validate({name: days})
    with pytest.raises(ValidationError, match="weights"):
        Retention.model_validate({"weights": 1})
