"""The store as a runner sees it: what is kept of reports, and how it waits for a store that fails."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import select

from audit import demo
from audit.auditor import Auditor
from audit.batch.tasks import Subject
from audit.budget import Budget
from audit.evidence.curvature import CurvatureSettings
from audit.report import Report
from audit.v1 import report_pb2
from service import ledger as waiting
from service.ledger import Patience, StoreLedger
from service.local import open_checkpoint, open_reference
from service.pictures import Pictures
from service.store.engine import StoreFailed, connect
from service.store.queue import LEASE, Queue
from service.store.records import DONE, PENDING, RUNNING, Counts, Entry
from service.store.schema import TaskRow
from service.store.store import Store
from tests.audit.phase.finished import full_disk
from tests.service.helpers import LONG
from tests.service.postgres import Postgres


@dataclass(frozen=True)
class Audited:
    """Audits of the demo checkpoint, with pictures.

    Attributes:
        subject: of both.
        flagged: of a prompt that is memorized.
        cleared: of one that is not.
    """

    subject: Subject
    flagged: Report
    cleared: Report


@pytest.fixture(scope="module")
def audited() -> Audited:
    """Two of them."""
    checkpoint, calibration = open_checkpoint("demo", "cpu", "float32")
    auditor = Auditor(checkpoint, open_reference("demo"), calibration)
    budget = Budget(seeds=12, minimum_seeds=12, curvature=CurvatureSettings(method="off"))
    subject = Subject.of(auditor, budget, {"steps": 3, "guidance": 1.0})
    flagged, cleared = (
        auditor.audit(
            str(max(demo.truth(), key=lambda row: float(str(row[kind])))["prompt"]),
            sampler=subject.sampler,
            budget=budget,
            include_images=True,
        )
        for kind in ("memorized", "generalized")
    )
    assert [report.decision.verdict for report in (flagged, cleared)] == ["memorized", "generalized"]
    return Audited(subject, flagged, cleared)


class Heard:
    """A ledger, and what it says.

    Args:
        kept: the batch.
        pictures: which results keep theirs.
    """

    def __init__(self, kept: Kept, pictures: Pictures = Pictures.FLAGGED) -> None:
        self.notes: list[str] = []
        self.said = threading.Event()
        self.ledger = StoreLedger(
            kept.queue, kept.batch.id, "demo", kept.subject, pictures, Patience(kept.stopping, self._hear)
        )

    def _hear(self, note: str) -> None:
        self.notes.append(note)
        self.said.set()


class Kept:
    """A batch of prompts.

    Args:
        url: of its store.
        subject: what is audited.
        prompts: of the batch.
    """

    def __init__(self, url: str, subject: Subject, prompts: list[str]) -> None:
        engine = connect(url)
        self.subject = subject
        self.store, self.queue = Store(engine), Queue(engine, lease=0)  # so that no beat is left out
        self.stopping = threading.Event()
        entries = [Entry("demo", position, prompt, subject.key(prompt)) for position, prompt in enumerate(prompts)]
        self.batch = self.store.create(entries, {})


def pictures_of(report: report_pb2.Report) -> int:
    """How many it holds."""
    drawn = sum(sample.HasField("image") for sample in report.samples)
    return drawn + sum(one.nearest_reference.HasField("image") for one in (*report.samples, *report.stability.modes))


@pytest.mark.parametrize("pictures", list(Pictures))
def test_results_keep_the_pictures_that_are_wanted(url: str, audited: Audited, pictures: Pictures) -> None:
    """Everything else of a report is there."""
    prompts = [audited.flagged.prompt, audited.cleared.prompt]
    kept = Kept(url, audited.subject, prompts)
    ledger = Heard(kept, pictures).ledger
    tasks = ledger.take(9, idle=True)
    ledger.finish(list(zip(tasks, (audited.flagged, audited.cleared), strict=True)))
    flagged, cleared = (kept.store.report(task.key) for task in tasks)
    assert flagged is not None
    assert cleared is not None
    assert bool(pictures_of(flagged)) == (pictures is not Pictures.NONE)
    assert bool(pictures_of(cleared)) == (pictures is Pictures.ALL)
    assert len(flagged.samples) == len(cleared.samples) == 12
    assert [report.prompt for report in (flagged, cleared)] == prompts
    assert [row.first.verdict for row in kept.store.rows(kept.batch.id) if row.first] == ["memorized", "generalized"]
    # The flag is confirmed with fresh seeds.
    (second,) = ledger.take(9, idle=True)
    assert second.key == audited.subject.confirmation.key(audited.flagged.prompt)
    assert second.confirms == tasks[0].key
    kept.store.close()


def test_known_flags_are_confirmed(url: str, audited: Audited) -> None:
    """Those of earlier batches, once."""
    prompts = [audited.flagged.prompt, audited.cleared.prompt]
    earlier, kept = Kept(url, audited.subject, prompts), Kept(url, audited.subject, prompts)
    ledger = Heard(earlier).ledger
    tasks = ledger.take(9, idle=True)
    ledger.finish(list(zip(tasks, (audited.flagged, audited.cleared), strict=True)))
    kept.queue.recover(kept.batch.id)
    ledger = Heard(kept).ledger
    assert ledger.take(9, idle=True) == []
    for _ in range(2):
        ledger.confirm_known()
    (second,) = ledger.take(9, idle=True)
    assert second.key == audited.subject.confirmation.key(audited.flagged.prompt)
    ledger.finish([(second, audited.flagged)])
    assert kept.store.counts(kept.batch.id) == Counts(0, 3, 0, {"memorized": 1, "generalized": 1})
    for one in (earlier, kept):
        one.store.close()


def test_flags_that_come_meanwhile_are_confirmed(url: str, audited: Audited) -> None:
    """Another batch audits the same, and comes first."""
    other, kept = (Kept(url, audited.subject, [audited.flagged.prompt]) for _ in range(2))
    ledger = Heard(other).ledger
    (first,) = ledger.take(9, idle=True)
    ledger.finish([(first, audited.flagged)])
    (second,) = Heard(kept).ledger.take(9, idle=True)
    assert second.key == audited.subject.confirmation.key(audited.flagged.prompt)
    assert second.confirms == first.key
    for one in (other, kept):
        one.store.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "shut down"])
def test_everything_waits_for_a_server_that_is_gone(postgres: Postgres, audited: Audited, how: signal.Signals) -> None:
    """It is told that the store is away and that it is back, and all that was to be kept is."""
    url = postgres.create()
    kept = Kept(url, audited.subject, [audited.flagged.prompt, audited.cleared.prompt, "fails", "is lost", "is left"])
    taking = Heard(kept)
    flagged, cleared, failing, lost, left = taking.ledger.take(5, idle=True)
    calls: list[Callable[[StoreLedger], object]] = [
        lambda ledger: ledger.finish([(flagged, audited.flagged), (cleared, audited.cleared)]),
        lambda ledger: ledger.fail(failing, ValueError("it broke"), final=True),
        lambda ledger: ledger.lose([lost]),
        lambda ledger: ledger.put_back([left]),
        lambda ledger: ledger.beat(),
        lambda ledger: ledger.confirm_known(),
        lambda ledger: ledger.take(1, idle=False),
    ]
    heard = [*(Heard(kept) for _ in calls[1:]), taking]
    with ThreadPoolExecutor(len(calls)) as pool:
        with postgres.outage(how):
            begun = [pool.submit(call, one.ledger) for call, one in zip(calls, heard, strict=True)]
            assert all(one.said.wait(LONG) for one in heard)
            assert not any(future.done() for future in begun)
        for future in begun:
            future.result(LONG)
    for one in heard:
        why, back = one.notes
        assert why.startswith(f"the store postgresql://basin:***@127.0.0.1:{postgres.port}/store_")
        assert len(why.splitlines()) == 1
        assert back == ""
    rows = kept.store.rows(kept.batch.id)
    assert [row.first.verdict if row.first else "" for row in rows] == ["memorized", "generalized", "", "", ""]
    assert [row.error for row in rows] == ["", "", "ValueError: it broke", "", ""]
    # What was lost, what was put back, and the confirmation are to do.
    assert kept.store.counts(kept.batch.id) == Counts(3, 2, 1, {"memorized": 1, "generalized": 1})
    kept.store.close()
    postgres.drop(url)


def test_nobody_waits_who_is_told_to_stop(postgres: Postgres, audited: Audited) -> None:
    """The store's error comes through, and what was begun is found again by whoever comes next."""
    url = postgres.create()
    kept = Kept(url, audited.subject, [audited.flagged.prompt])
    heard = Heard(kept)
    (task,) = heard.ledger.take(1, idle=True)
    with ThreadPoolExecutor(1) as pool, postgres.outage(signal.SIGKILL):
        begun = pool.submit(heard.ledger.finish, [(task, audited.flagged)])
        assert heard.said.wait(LONG)
        kept.stopping.set()
        with pytest.raises(StoreFailed):
            begun.result(LONG)
    assert kept.store.counts(kept.batch.id) == Counts(1, 0, 0)
    kept.queue.recover(kept.batch.id, all_workers=True)
    assert kept.queue.take(kept.batch.id, "demo", 1, idle=True) == [task]
    kept.store.close()
    postgres.drop(url)


def test_an_answer_that_is_lost_changes_nothing(
    postgres: Postgres, audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server kept what it was told, and its connection ended before it could say so: everything counts once."""
    url = postgres.create()
    kept = Kept(url, audited.subject, [audited.flagged.prompt, "fails", "is lost", "is left", "is in flight"])
    dialect = kept.store._engine.dialect
    commit, ledger = dialect.do_commit, Heard(kept).ledger

    @contextmanager
    def deaf() -> Iterator[None]:
        """The next transaction is kept, but nobody hears of it."""

        def forget(connection: Any) -> None:
            monkeypatch.setattr(dialect, "do_commit", commit)
            commit(connection)
            raise psycopg.OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(dialect, "do_commit", forget)
        yield
        assert dialect.do_commit == commit

    with deaf():
        (first,) = ledger.take(1, idle=True)
    with deaf():
        second, third, fourth, _ = ledger.take(4, idle=False)
    assert [task.prompt for task in (first, second)] == [audited.flagged.prompt, "fails"]
    with deaf():
        ledger.finish([(first, audited.flagged)])
    with deaf():
        ledger.fail(second, ValueError("it broke"), final=False)
    with deaf():
        ledger.lose([third])
    with deaf():
        ledger.put_back([fourth])
    with kept.store._engine.connect() as connection:
        query = select(TaskRow.prompt, TaskRow.confirms, TaskRow.state, TaskRow.attempts, TaskRow.losses)
        assert {(prompt, confirms != "", *rest) for prompt, confirms, *rest in connection.execute(query)} == {
            (audited.flagged.prompt, False, DONE, 0, 0),
            (audited.flagged.prompt, True, PENDING, 0, 0),
            ("fails", False, PENDING, 1, 0),
            ("is lost", False, PENDING, 0, 1),
            ("is left", False, PENDING, 0, 0),
            ("is in flight", False, RUNNING, 0, 0),
        }
    # Whoever works on it next finds what the last one was never told of.
    with deaf(), pytest.raises(StoreFailed):
        kept.queue.take(kept.batch.id, "demo", 1, idle=False)
    assert len(ledger.take(9, idle=False)) == 3
    kept.store.close()
    postgres.drop(url)


def test_tries_become_rarer(postgres: Postgres, audited: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that comes back is not met by a crowd; nor is a lease ever waited away."""
    monkeypatch.setattr(waiting, "SOON", 0.01)
    monkeypatch.setattr(waiting, "LATE", 0.05)
    url = postgres.create()
    kept = Kept(url, audited.subject, [audited.flagged.prompt])
    waits: list[float | None] = []
    seen = threading.Event()

    class Patient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            if len(waits) == 5:
                seen.set()
            return super().wait(timeout)

    kept.stopping = Patient()
    ledger = Heard(kept).ledger
    with ThreadPoolExecutor(1) as pool:
        with postgres.outage(signal.SIGKILL):
            begun = pool.submit(ledger.take, 1, idle=True)
            assert seen.wait(LONG)
        assert len(begun.result(LONG)) == 1
    assert waits[:5] == pytest.approx([0.01, 0.02, 0.04, 0.05, 0.05])
    assert LEASE > 5 * 10  # what a worker may be late by, and a try besides
    kept.store.close()
    postgres.drop(url)


def test_a_disk_that_is_full_for_a_while(tmp_path: Path, audited: Audited) -> None:
    """Work pauses with the reason, and goes on where it was as soon as there is room."""
    url = f"sqlite:///{tmp_path}/basin.db"
    kept = Kept(url, audited.subject, [f"prompt {number}" for number in range(20)])
    with ExitStack() as full:
        notes: list[str] = []

        def make_room(note: str) -> None:
            notes.append(note)
            full.close()

        ledger = StoreLedger(
            kept.queue, kept.batch.id, "demo", audited.subject, Pictures.ALL, Patience(kept.stopping, make_room)
        )
        full.enter_context(full_disk(max(file.stat().st_size for file in tmp_path.iterdir()) + 100_000))
        while tasks := ledger.take(4, idle=True):
            ledger.finish([(task, audited.flagged) for task in tasks])
    assert notes == [f"the store {url}: disk I/O error", ""]
    assert kept.store.counts(kept.batch.id) == Counts(0, 40, 0, {"memorized": 20})
    assert all(row.first and row.second for row in kept.store.every_row(kept.batch.id))
    kept.store.close()
