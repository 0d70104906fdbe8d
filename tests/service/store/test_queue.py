"""How tasks are worked off, over SQLite and PostgreSQL alike."""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from audit.batch.discovery import Answer
from audit.batch.tasks import Task
from audit.verdict.rule import PhaseClass
from service.store.queue import MOST_ATTEMPTS, MOST_LOSSES, Finished, Queue
from service.store.records import DONE, FAILED, PENDING, RUNNING, Counts
from service.store.store import Store
from tests.service.store.helpers import (
    confirmation_of,
    entries,
    entry,
    examples,
    finish,
    finished,
    report,
    work_off,
)


def test_tasks_are_taken_in_order_and_once(store: Store, queue: Queue) -> None:
    """As many as are asked for, of the checkpoint that is asked for."""
    batch = store.create([*entries(5), *entries(2, checkpoint="other")], {})
    first = queue.take(batch.id, "demo", 2, idle=True)
    assert [(task.prompt, task.key, task.checkpoint, task.confirms) for task in first] == [
        (one.prompt, one.key, "demo", "") for one in entries(2)
    ]
    assert [task.key for task in queue.take(batch.id, "demo", 9, idle=False)] == [one.key for one in entries(5)[2:]]
    assert queue.take(batch.id, "demo", 9, idle=False) == []
    assert store.counts(batch.id) == Counts(7, 0, 0)
    assert [task.checkpoint for task in queue.take(batch.id, "other", 9, idle=True)] == ["other"] * 2
    queue.put_back(first)
    queue.put_back([])
    assert queue.take(batch.id, "demo", 9, idle=False) == first
    finish(queue, batch.id, first[0])
    queue.fail(first[1], "refused", final=True)
    queue.put_back(first)  # what came to its end stays there
    assert store.counts(batch.id) == Counts(5, 1, 1, {"generalized": 1})


def test_whether_tasks_wait(store: Store, queue: Queue) -> None:
    """Those of another checkpoint, or batch, or that somebody works on, do not."""
    batch = store.create([*entries(1), *entries(1, checkpoint="other")], {})
    (task,) = queue.take(batch.id, "demo", 9, idle=True)
    store.create(entries(1, tag="later"), {})
    assert [queue.waiting(batch.id, name) for name in ("demo", "other", "unknown")] == [False, True, False]
    queue.put_back([task])
    assert queue.waiting(batch.id, "demo")
    queue.take(batch.id, "demo", 9, idle=True)
    finish(queue, batch.id, task)
    assert not queue.waiting(batch.id, "demo")


def test_a_result_is_kept_with_its_report(store: Store, queue: Queue) -> None:
    """And the row says what it says."""
    batch = store.create(entries(1), {})
    (task,) = queue.take(batch.id, "demo", 1, idle=True)
    assert store.report(task.key) is None
    made = report("generalized", prompt=task.prompt, content="Zoë\0🎨")
    queue.finish(batch.id, [Finished(task, made, confirmation_of(task))])
    assert store.report(task.key) == made
    (row,) = store.rows(batch.id)
    assert row.first == Answer(PhaseClass.GENERALIZED, (0.01, 0.01, 0.98))
    assert (row.second, row.error) == (None, "")
    assert store.counts(batch.id) == Counts(0, 1, 0, {"generalized": 1})


def test_errors_set_a_task_aside(store: Store, queue: Queue) -> None:
    """After three of them, or one that is final; the last one is told, and the rest of the batch goes on."""
    batch = store.create(entries(3), {})
    tasks = queue.take(batch.id, "demo", 9, idle=True)
    queue.fail(tasks[0], "refused", final=True)
    for attempt in range(MOST_ATTEMPTS):
        queue.fail(tasks[1], f"attempt {attempt}")
        again = queue.take(batch.id, "demo", 9, idle=False)
        assert again == ([tasks[1]] if attempt < MOST_ATTEMPTS - 1 else [])
    queue.fail(tasks[2], "for once")
    work_off(queue, batch.id)
    assert store.counts(batch.id) == Counts(0, 1, 2, {"generalized": 1})
    assert [row.error for row in store.rows(batch.id)] == ["refused", f"attempt {MOST_ATTEMPTS - 1}", ""]


def test_errors_may_say_anything(store: Store, queue: Queue) -> None:
    """Also what no database keeps: it is told as far as it can be."""
    batch = store.create(entries(1), {})
    queue.fail(queue.take(batch.id, "demo", 1, idle=True)[0], "é\0\udcff\n" * 1000, final=True)
    (row,) = store.rows(batch.id)
    assert row.error == "é??\n" * 1000


def test_what_was_lost_comes_last_and_alone(store: Store, queue: Queue) -> None:
    """So that a task that kills its process takes no other with it."""
    batch = store.create(entries(6), {})
    lost = queue.take(batch.id, "demo", 2, idle=True)
    queue.recover(batch.id, all_workers=True)
    fresh = queue.take(batch.id, "demo", 9, idle=True)
    assert {task.key for task in fresh}.isdisjoint(task.key for task in lost)
    assert len(fresh) == 4
    assert queue.take(batch.id, "demo", 9, idle=False) == []
    assert queue.take(batch.id, "demo", 9, idle=True) == lost[:1]
    assert queue.take(batch.id, "demo", 9, idle=True) == lost[1:]


def test_what_is_lost_too_often_is_set_aside(store: Store, queue: Queue) -> None:
    """The fourth time; what was put back in good order, or belongs to another batch, was not lost."""
    batch, other = store.create(entries(2), {}), store.create(entries(2, tag="other "), {})
    (elsewhere,) = queue.take(other.id, "demo", 1, idle=True)
    (killing,) = queue.take(batch.id, "demo", 1, idle=True)
    queue.recover(batch.id, all_workers=True)  # once in company
    for _ in range(MOST_LOSSES):
        harmless = queue.take(batch.id, "demo", 9, idle=False)
        assert [task.key for task in harmless] == [entry(1).key]
        queue.put_back(harmless)
    finish(queue, batch.id, queue.take(batch.id, "demo", 9, idle=True)[0])
    for _ in range(MOST_LOSSES - 1):
        assert queue.take(batch.id, "demo", 9, idle=True) == [killing]
        queue.recover(batch.id, all_workers=True)
    assert queue.take(batch.id, "demo", 9, idle=True) == []
    assert store.counts(batch.id) == Counts(0, 1, 1, {"generalized": 1})
    assert "lost" in store.rows(batch.id)[0].error
    assert elsewhere not in queue.take(other.id, "demo", 9, idle=True)
    assert store.counts(other.id) == Counts(2, 0, 0)


def test_what_was_set_aside_is_tried_again(store: Store, queue: Queue) -> None:
    """As if it never had been: after errors, after losses, first and second audits; other batches are left alone."""
    batch, other = store.create(entries(4), {}), store.create(entries(1, tag="other "), {})
    queue.fail(queue.take(other.id, "demo", 1, idle=True)[0], "refused", final=True)
    broken, flagged, lost, fine = queue.take(batch.id, "demo", 9, idle=True)
    queue.finish(batch.id, [finished(flagged, "spurious"), finished(fine)])
    (second,) = queue.take(batch.id, "demo", 9, idle=False)
    queue.fail(second, "no memory", final=True)
    for _ in range(MOST_LOSSES):
        queue.lose([lost])
        queue.take(batch.id, "demo", 9, idle=True)
    queue.fail(broken, "refused", final=True)
    assert store.counts(batch.id) == Counts(0, 2, 3, {"spurious": 1, "generalized": 1})
    queue.retry_failed(batch.id)
    assert store.counts(batch.id) == Counts(3, 2, 0, {"spurious": 1, "generalized": 1})
    assert store.counts(other.id) == Counts(0, 0, 1)
    assert [row.error for row in store.rows(batch.id)] == [""] * 4
    # None of them counts as lost or has errors: all may be had at once.
    again = queue.take(batch.id, "demo", 9, idle=False)
    assert again == [broken, lost, second]
    for _ in range(MOST_ATTEMPTS - 1):
        queue.fail(broken, "it broke")
        assert queue.take(batch.id, "demo", 9, idle=False) == [broken]
    queue.finish(batch.id, [finished(task, "spurious") for task in again])
    assert len(work_off(queue, batch.id)) == 2
    assert {row.error for row in store.rows(batch.id)} == {""}
    queue.retry_failed(batch.id)
    assert store.counts(batch.id).open == 0


@dataclass
class Known:
    """What a task should be like."""

    key: str
    confirms: str = ""
    state: str = PENDING
    attempts: int = 0
    losses: int = 0
    verdict: str = ""
    error: str = ""


steps = st.one_of(
    st.tuples(st.just("take"), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("finish"), st.integers(0, 9), st.sampled_from(["memorized", "spurious", "generalized"])),
    st.tuples(st.just("fail"), st.integers(0, 9), st.booleans()),
    st.tuples(st.just("put back"), st.integers(0, 9), st.none()),
    st.tuples(st.just("lose"), st.integers(0, 9), st.none()),
    st.tuples(st.just("crash"), st.none(), st.none()),
    st.tuples(st.just("retry"), st.none(), st.none()),
)


@examples
@given(st.lists(steps, max_size=40))
@example([("take", 4, True), ("crash", None, None)] * 9)
@example([("take", 2, True), ("lose", 1, None), ("lose", 0, None)] * 9)
@example([("take", 1, True), ("fail", 0, False)] * 12)
def test_no_task_is_lost_or_done_twice(store: Store, queue: Queue, steps: list[tuple[str, Any, Any]]) -> None:
    """Whatever happens in whatever order, tasks are where they should be, and in the end each is done or failed."""
    tag = uuid.uuid4().hex
    given = entries(4, tag=tag)
    batch = store.create(given, {})
    known = {one.key: Known(one.key) for one in given}
    running: list[Task] = []

    def take(most: int, idle: bool) -> None:
        pending = [one for one in known.values() if one.state == PENDING]
        expected = [one.key for one in pending if not one.losses][:most]
        if not expected and idle:
            expected = [one.key for one in sorted(pending, key=lambda one: one.losses)][:1]
        taken = queue.take(batch.id, "demo", most, idle=idle)
        assert [task.key for task in taken] == expected
        assert [task.confirms for task in taken] == [known[key].confirms for key in expected]
        for task in taken:
            known[task.key].state = RUNNING
        running.extend(taken)

    def keep(task: Task, verdict: str) -> None:
        finish(queue, batch.id, task, verdict)
        one = known[task.key]
        one.state, one.verdict = DONE, verdict
        if not one.confirms and verdict != "generalized":
            second = confirmation_of(task)
            known[second] = Known(second, confirms=task.key)

    def lose(tasks: list[Task]) -> None:
        for task in tasks:
            one = known[task.key]
            one.losses += 1
            one.state = FAILED if one.losses == MOST_LOSSES else PENDING

    for action, value, more in steps:
        if action == "take":
            take(value, more)
        elif action == "crash":
            queue.recover(batch.id, all_workers=True)
            lose(running)
            running.clear()
        elif action == "retry":
            queue.retry_failed(batch.id)
            for one in known.values():
                if one.state == FAILED:
                    one.state, one.attempts, one.losses = PENDING, 0, 0
        elif running:
            task = running.pop(value % len(running))
            one = known[task.key]
            if action == "finish":
                keep(task, more)
            elif action == "lose":
                queue.lose([task])
                lose([task])
            elif action == "put back":
                queue.put_back([task])
                one.state = PENDING
            else:
                queue.fail(task, "it broke", final=more)
                one.attempts += 1
                one.state = FAILED if more or one.attempts == MOST_ATTEMPTS else PENDING
        states = [one.state for one in known.values()]
        verdicts = Counter(one.verdict for one in known.values() if one.state == DONE and not one.confirms)
        assert store.counts(batch.id) == Counts(
            states.count(PENDING) + states.count(RUNNING), states.count(DONE), states.count(FAILED), verdicts
        )
    queue.put_back(running)
    for task in running:
        known[task.key].state = PENDING
    for _ in range(2 * len(given)):
        taken = len(running)
        take(3, True)
        for task in running[taken:]:
            keep(task, "generalized")
    assert {one.state for one in known.values()} <= {DONE, FAILED}
    seconds = {one.confirms: one for one in known.values() if one.confirms}
    for row, wanted in zip(store.rows(batch.id), given, strict=True):
        first, second = known[wanted.key], seconds.get(wanted.key)
        assert row.entry == wanted
        assert (row.first.verdict if row.first else "") == first.verdict
        assert (row.second.verdict if row.second else "") == (second.verdict if second else "")
        assert bool(row.error) == (FAILED in (first.state, second.state if second else DONE))
