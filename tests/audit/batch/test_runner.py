"""The work on a batch, by real audits of the demo checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace

import pytest

from audit import demo
from audit.auditor import Auditor
from audit.batch.local import LocalWorkers
from audit.batch.runner import run_tasks
from audit.batch.tasks import Subject, Task
from audit.budget import Budget
from audit.demo import prompts
from audit.errors import Stopped, WorkerLost
from audit.evidence.curvature import CurvatureSettings
from audit.model.batching import BatchingDenoiser
from audit.model.denoiser import Condition
from audit.report import Report
from audit.verdict.rule import CLASSES, PhaseClass

LANES = 3
#: As little work as an audit can be, as little as tells the classes apart, and more than any test waits for.
CHEAP = Budget(seeds=2, curvature=CurvatureSettings(method="off")), {"steps": 2, "guidance": 1.0}
TELLING = Budget(seeds=12, curvature=CurvatureSettings(method="off")), {"steps": 3, "guidance": 1.0}
ENDLESS = Budget(seeds=64), {"steps": 900}


@dataclass
class Books:
    """A ledger in memory. Every flag is confirmed, errors are tolerated three times, losses twice.

    Attributes:
        open: tasks that can be had.
        running: tasks that were taken.
        done: reports by key of their tasks.
        failed: errors of tasks that are set aside, by key.
        events: what came of tasks, in order.
        on_beat: called at every beat.
        idle_only: whether tasks are to be had only while nothing else runs.
    """

    subject: Subject
    open: list[Task]
    running: list[Task] = field(default_factory=list)
    done: dict[str, Report] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    on_beat: Callable[[], None] = lambda: None
    idle_only: bool = False

    def beat(self) -> None:
        """See `Ledger.beat`."""
        self.on_beat()

    def take(self, most: int, *, idle: bool) -> Sequence[Task]:
        """See `Ledger.take`."""
        assert 0 < most <= LANES - len(self.running)
        assert idle == (not self.running)
        most = (1 if idle else 0) if self.idle_only else most
        taken, self.open = self.open[:most], self.open[most:]
        self.running += taken
        return taken

    def finish(self, done: Sequence[tuple[Task, Report]]) -> None:
        """See `Ledger.finish`."""
        for task, report in done:
            self._end(task, "done")
            assert task.key not in self.done
            self.done[task.key] = report
            if not task.confirms and report.decision.verdict is not PhaseClass.GENERALIZED:
                key = self.subject.confirmation.key(task.prompt)
                self.open.append(Task(1000 + task.id, task.checkpoint, task.prompt, key, task.key))

    def fail(self, task: Task, error: BaseException, *, final: bool) -> None:
        """See `Ledger.fail`."""
        self._end(task, "refused" if final else "error")
        if final or self.events.count(("error", task.prompt)) == 3:
            self.failed[task.key] = f"{type(error).__name__}: {error}"
        else:
            self.open.append(task)

    def lose(self, tasks: Sequence[Task]) -> None:
        """See `Ledger.lose`."""
        for task in tasks:
            self._end(task, "lost")
            if self.events.count(("lost", task.prompt)) < 2:
                self.open.append(task)
            else:
                self.failed[task.key] = "lost"

    def put_back(self, tasks: Sequence[Task]) -> None:
        """See `Ledger.put_back`."""
        for task in tasks:
            self._end(task, "put back")
            self.open.append(task)

    def _end(self, task: Task, how: str) -> None:
        self.running.remove(task)
        self.events.append((how, task.prompt))


class Bench:
    """Books and workers of the demo checkpoint.

    Args:
        auditor: of the demo checkpoint.
        wanted: prompts.
        work: budget and sampler settings.
        mishap: called with every prompt that is read; may raise.
    """

    def __init__(
        self,
        auditor: Auditor,
        pool: ThreadPoolExecutor,
        batching: BatchingDenoiser,
        wanted: Sequence[str],
        work: tuple[Budget, dict[str, object]] = CHEAP,
        mishap: Callable[[str], None] = lambda prompt: None,
    ) -> None:
        lock = threading.Lock()

        def encode(texts: Sequence[str]) -> Condition:
            for text in texts:
                mishap(text)
            with lock:  # tokenizers do not bear several threads at once
                return auditor.checkpoint.encode_prompts(texts)

        own = Auditor(replace(auditor.checkpoint, encode_prompts=encode), auditor.reference, auditor.calibration)
        self.subject = Subject.of(own, *work)
        tasks = [Task(number, "demo", prompt, self.subject.key(prompt), "") for number, prompt in enumerate(wanted)]
        self.books = Books(self.subject, tasks)
        self.workers = LocalWorkers(own, batching, self.subject, pool=pool, lanes=LANES, include_images=False)
        self.stopping = threading.Event()
        self.changes = 0

    def run(self) -> None:
        """All of it."""

        def note() -> None:
            self.changes += 1

        run_tasks(self.books, self.workers, self.stopping, note)


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for the tasks."""
    with ThreadPoolExecutor(LANES) as pool:
        yield pool


@pytest.fixture
def batching(auditor: Auditor) -> Iterator[BatchingDenoiser]:
    """What the lanes share."""
    with closing(BatchingDenoiser(auditor.checkpoint.denoiser)) as batching:
        yield batching


@pytest.fixture
def bench(auditor: Auditor, pool: ThreadPoolExecutor, batching: BatchingDenoiser) -> Callable[..., Bench]:
    """Makes benches."""
    return lambda *arguments, **named: Bench(auditor, pool, batching, *arguments, **named)


def test_every_task_is_done_once(bench: Callable[..., Bench], auditor: Auditor) -> None:
    """Those that come up on the way, too, with the answers that each would have alone."""
    memorized, spurious, generalized = (
        str(max(demo.truth(), key=lambda row: float(str(row[kind])))["prompt"]) for kind in CLASSES
    )
    one = bench([generalized, memorized, spurious], TELLING)
    subject, again = one.subject, one.subject.confirmation
    one.run()
    assert set(one.books.done) == {
        *map(subject.key, (memorized, spurious, generalized)), *map(again.key, (memorized, spurious)),
    }  # fmt: skip
    assert (one.books.open, one.books.running, one.books.failed) == ([], [], {})
    assert 0 < one.changes <= len(one.books.done)
    for asked, prompt in ((subject, generalized), (again, memorized)):
        report = one.books.done[asked.key(prompt)]
        alone = auditor.audit(prompt, sampler=asked.sampler, budget=asked.budget)
        assert report.prompt == prompt
        assert list(report.seeds) == list(alone.seeds)
        assert report.decision.verdict is alone.decision.verdict
        assert report.decision.probabilities == pytest.approx(alone.decision.probabilities, abs=1e-3)


def test_nothing_to_do(bench: Callable[..., Bench]) -> None:
    """It ends at once."""
    one = bench([])
    one.run()
    assert one.books.events == []
    assert one.changes == 0


def test_what_has_to_wait_is_done_alone(bench: Callable[..., Bench]) -> None:
    """None is begun before the one before has ended."""
    one = bench(prompts()[:3])
    one.books.idle_only = True
    one.run()
    assert len(one.books.done) >= 3


def test_stopping_puts_back_what_is_in_flight(bench: Callable[..., Bench]) -> None:
    """Audits that would take hours end before their next denoiser call."""
    one = bench(prompts()[: LANES + 2], ENDLESS)

    def stop_when_busy() -> None:
        if len(one.books.running) == LANES:
            one.stopping.set()

    one.books.on_beat = stop_when_busy
    one.run()
    assert sorted(one.books.events) == sorted(("put back", prompt) for prompt in prompts()[:LANES])
    assert len(one.books.open) == LANES + 2
    assert (one.books.running, one.books.done) == ([], {})


def test_stopped_before_it_begins(bench: Callable[..., Bench]) -> None:
    """Nothing is taken."""
    one = bench(prompts()[:3])
    one.stopping.set()
    one.run()
    assert len(one.books.open) == 3
    assert one.books.events == []


def test_an_error_is_of_one_task(bench: Callable[..., Bench]) -> None:
    """A prompt that the checkpoint cannot read is refused at once, other errors are tried again; the rest is done."""
    fine, broken, long = prompts()[:5], "a broken prompt", "shirt " * 600

    def breaks(prompt: str) -> None:
        if prompt == broken:
            raise RuntimeError("no such kernel")

    one = bench([long, broken, *fine], mishap=breaks)
    one.run()
    ended = [event for event in one.books.events if event[0] != "done"]
    assert ended.count(("refused", long)) == 1
    assert ended.count(("error", broken)) == 3
    assert len(ended) == 4
    assert "prompt" in one.books.failed[one.subject.key(long)]
    assert one.books.failed[one.subject.key(broken)] == "RuntimeError: no such kernel"
    assert {one.subject.key(prompt) for prompt in fine} <= set(one.books.done)


def test_a_lost_worker_is_told_apart_from_an_error(bench: Callable[..., Bench]) -> None:
    """Its tasks are lost, those of others are done."""
    fine, killing, unlucky = prompts()[:3], prompts()[3], prompts()[4]
    begun: list[str] = []

    def kill(prompt: str) -> None:
        begun.append(prompt)
        if prompt == killing or (prompt == unlucky and begun.count(prompt) == 1):
            raise WorkerLost("it was killed", reason="WORKER_LOST")

    one = bench([*fine, killing, unlucky], mishap=kill)
    one.run()
    ended = [event for event in one.books.events if event[0] != "done"]
    assert sorted(ended) == sorted([("lost", killing), ("lost", killing), ("lost", unlucky)])
    assert one.books.failed == {one.subject.key(killing): "lost"}
    assert {one.subject.key(prompt) for prompt in (*fine, unlucky)} <= set(one.books.done)


def test_a_task_that_was_stopped_elsewhere_comes_again(bench: Callable[..., Bench]) -> None:
    """It is neither an error nor a loss."""
    begun: list[str] = []

    def stop_once(prompt: str) -> None:
        begun.append(prompt)
        if begun.count(prompt) == 1 and prompt == prompts()[1]:
            raise Stopped("its machine shuts down", reason="BATCH_STOPPED")

    one = bench(prompts()[:3], mishap=stop_once)
    one.run()
    assert [event for event in one.books.events if event[0] != "done"] == [("put back", prompts()[1])]
    assert {one.subject.key(prompt) for prompt in prompts()[:3]} <= set(one.books.done)


def test_workers_may_come_later(bench: Callable[..., Bench]) -> None:
    """While there is nobody, nothing is taken, and nothing is over."""
    one = bench(prompts()[:2])
    one.workers.lanes, beats = 0, []

    def come() -> None:
        beats.append(len(one.books.running))
        if len(beats) == 2:
            one.workers.lanes = LANES

    one.books.on_beat = come
    one.run()
    assert beats[:2] == [0, 0]
    assert len(one.books.done) >= 2


@pytest.mark.parametrize("method", ["beat", "take", "finish", "fail"])
def test_a_ledger_that_raises_ends_the_work(
    bench: Callable[..., Bench], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """What was kept stays kept, the workers come to rest, and nothing more is told: it may be another's already."""
    one = bench([*prompts()[:8], "shirt " * 600])
    begun = []
    submit = one.workers.submit

    def count(task: Task) -> Future[Report]:
        begun.append(submit(task))
        return begun[-1]

    monkeypatch.setattr(one.workers, "submit", count)
    real = getattr(one.books, method)

    def fail_later(*arguments: object, **named: object) -> object:
        if len(one.books.done) >= 2:
            before.extend(one.books.events)
            raise OSError("the disk is gone")
        return real(*arguments, **named)

    before: list[tuple[str, str]] = []
    monkeypatch.setattr(one.books, method, fail_later)
    if method == "fail":
        one.books.open.insert(4, one.books.open.pop())
    with pytest.raises(OSError, match="the disk is gone"):
        one.run()
    assert all(future.done() for future in begun)
    assert one.books.events == before
    assert len(one.books.done) >= 2
