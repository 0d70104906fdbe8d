"""Batches in a real Ray cluster of several nodes, all on this machine."""

from __future__ import annotations

import ctypes
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from audit import demo
from audit.batch.ray import RayWorkers, connect
from audit.batch.tasks import Task
from audit.errors import AuditError, InvalidInput, NotFound, Stopped, WorkerLost
from audit.v1 import audit_pb2
from service.local_batch import LocalBatch, Wanted
from service.results import Concluded, open_run
from service.runners import LANES, RayOptions, find_runner
from service.store.records import PAUSED
from tests.service.helpers import LONG, eventually
from tests.service.ray_cluster import ROOT, add_node, ray_cluster
from tests.service.ray_workers import deeds, fatal, missing, short


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster whose head does no work."""
    with pytest.MonkeyPatch.context() as environment, ray_cluster() as cluster:
        environment.setenv("OMP_NUM_THREADS", "1")  # as some ways to start a node do
        yield cluster
    assert not processes()


@pytest.fixture
def nodes(cluster: Cluster) -> Callable[[int], list[Any]]:
    """Sees to it that so many nodes of two CPUs each are there, and returns them."""

    def be(count: int) -> list[Any]:
        while len(cluster.worker_nodes) > count:
            cluster.remove_node(next(iter(cluster.worker_nodes)))
        while len(cluster.worker_nodes) < count:
            add_node(cluster, 2)
        return list(cluster.worker_nodes)

    return be


def processes() -> list[psutil.Process]:
    """Those that hold workers, on all nodes of the cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::_Actor"):
                found.append(process)
    return found


# Processes and their tasks.


def ray_workers(open_workers: Any = deeds, **options: Any) -> RayWorkers:
    """Workers without a checkpoint, a process per node."""
    return RayWorkers(open_workers, **{"count": 0, "lanes": 2, "cpus": 2.0, "gpus": 0.0, **options})


def submit(workers: RayWorkers, deed: str) -> Future[Any]:
    """Have something done."""
    return workers.submit(Task(1, "demo", deed, deed, ""))


def test_processes_follow_the_nodes(cluster: Cluster, nodes: Callable[[int], list[Any]]) -> None:
    """Nodes that join get a process, which takes tasks; with a node that is lost ends what it did."""
    said: list[str] = []
    nodes(0)
    with connect(cluster.address):
        workers = ray_workers(on_pause=said.append)
        assert workers.lanes == 0
        assert isinstance(submit(workers, "where").exception(0), Stopped)
        assert said == ["no node of the Ray cluster has 2 CPU"]
        (first,) = nodes(1)
        eventually(lambda: workers.lanes == 2)
        assert said[-1] == ""
        assert submit(workers, "where").result(LONG)[0] == first.node_id
        waiting = [submit(workers, "wait") for _ in range(2)]
        (second,) = {*nodes(2)} - {first}
        eventually(lambda: workers.lanes == 4)
        node, process = submit(workers, "where").result(LONG)  # of the one that has nothing to do
        assert node == second.node_id
        assert process in {one.pid for one in processes()}
        cluster.remove_node(first, allow_graceful=False)
        assert all(isinstance(task.exception(LONG), WorkerLost) for task in waiting)
        assert submit(workers, "where").result(LONG)[0] == second.node_id
        last = submit(workers, "wait")
        workers.stop()
        assert isinstance(last.exception(0), Stopped)
        eventually(lambda: not processes())


def test_what_tasks_come_to(cluster: Cluster, nodes: Callable[[int], list[Any]]) -> None:
    """Errors arrive as they were raised; a process that dies takes its tasks along, and another one takes its place."""
    nodes(1)
    with connect(cluster.address):
        workers = ray_workers()
        eventually(lambda: workers.lanes == 2)
        _, process = submit(workers, "where").result(LONG)
        assert submit(workers, "threads").result(LONG) == 2
        refused = submit(workers, "refuse").exception(LONG)
        assert (type(refused), refused.reason, refused.field) == (InvalidInput, "PROMPT_EMPTY", "prompt")
        failed = submit(workers, "fail").exception(LONG)
        assert (type(failed), str(failed)) == (RuntimeError, "not enough of something")
        waiting, dying = submit(workers, "wait"), submit(workers, "die")
        assert isinstance(dying.exception(LONG), WorkerLost)
        assert isinstance(waiting.exception(LONG), WorkerLost)
        eventually(lambda: workers.lanes == 2)
        assert submit(workers, "where").result(LONG)[1] != process
        workers.stop()


@pytest.mark.parametrize(
    ("open_workers", "error", "text"),
    [
        (missing, NotFound, r"^no checkpoint folder 'gone' \(on the Ray node [\d.]+\)$"),
        (short, WorkerLost, r"^MemoryError: not enough of it \(on the Ray node [\d.]+\)$"),
        (fatal, WorkerLost, "^workers in the Ray cluster end before they are ready: .*worker process has died"),
    ],
)
def test_processes_that_cannot_work_end_all_work(
    cluster: Cluster, nodes: Callable[[int], list[Any]], open_workers: Any, error: type[AuditError], text: str
) -> None:
    """With what they said, or with Ray's reason where they died each time."""
    nodes(1)
    with connect(cluster.address):
        workers = ray_workers(open_workers)
        with pytest.raises(error, match=text):
            eventually(lambda: workers.lanes)
        workers.stop()


def test_another_version_is_no_worker(
    cluster: Cluster, nodes: Callable[[int], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else is wrong, this is said first."""
    nodes(1)
    monkeypatch.setattr("audit.batch.ray.basin_version", lambda: "7.0")
    with connect(cluster.address):
        workers = ray_workers(missing)
        with pytest.raises(InvalidInput, match=r"is not 7\.0"):
            eventually(lambda: workers.lanes)
        workers.stop()


def test_the_process_keeps_its_signals(cluster: Cluster) -> None:
    """Ray would end it at SIGTERM, in the middle of whatever it does; whichever thread joined the cluster."""

    def handlers() -> tuple[object, bytes]:
        ctypes.CDLL(None).sigaction(signal.SIGTERM, None, of_system)
        return signal.getsignal(signal.SIGTERM), of_system.raw[:8]  # a pointer, the first member

    def join() -> tuple[tuple[object, bytes], tuple[object, bytes]]:
        with connect(cluster.address):
            meanwhile = handlers()
        return meanwhile, handlers()

    of_system = ctypes.create_string_buffer(1024)
    before = handlers()
    assert join() == (before, before)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(join).result() == (before, before)


# Batches.

#: A tenth of a second for an audit.
FLAGS = ("--seeds", "4", "--steps", "5", "--guidance", "1", "--curvature", "off")
SAMPLER = audit_pb2.SamplerOptions(steps=5, guidance=1)
BUDGET = audit_pb2.BudgetOptions(seeds=4, curvature="off")


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Wanted:
    """Prompts of the demo's ladder."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(demo.prompts()[:24]))
    return Wanted(("demo",), file, "demo", SAMPLER, BUDGET)


def kept(out: Path) -> int:
    """Results that a run has so far."""
    with suppress(NotFound, InvalidInput), open_run(out) as run:
        return sum(answer is not None for one in run.concluded["demo"] for answer in (one.row.first, one.row.second))
    return 0


def select(out: Path, query: str) -> tuple[Any, ...]:
    """A row of a run's store."""
    with closing(sqlite3.connect(out / "basin.db")) as store:
        return store.execute(query).fetchone()


def test_a_batch_survives(cluster: Cluster, nodes: Callable[[int], list[Any]], wanted: Wanted, tmp_path: Path) -> None:
    """A worker is killed, its node leaves, another node comes: the results are those of this process."""
    here, there = tmp_path / "here", tmp_path / "there"
    (first,) = nodes(1)
    flags = ("--prompts", wanted.prompts, "--checkpoint", "demo", "--reference", "demo", "--out", there, *FLAGS)
    ray = ("--runner", "ray", "--ray-address", cluster.address, "--ray-workers", 1, "--ray-cpus", 0.5)
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "batch", "run", *map(str, (*flags, *ray))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process, closing(LocalBatch(wanted, here)) as batch:
        batch.run()
        with open_run(here) as run:
            expected = run.concluded
        eventually(lambda: kept(there))
        (worker,) = processes()
        worker.kill()
        before = kept(there)
        eventually(lambda: kept(there) > before)
        cluster.remove_node(first)
        at_last = kept(there)
        nodes(1)
        out, err = process.communicate(timeout=LONG)
    assert process.returncode == 0, err
    total = sum(1 + (one.row.second is not None) for one in expected["demo"])
    assert before < at_last < total
    done, losses, errors = select(there, "SELECT sum(state = 'done'), sum(losses), sum(attempts) FROM tasks")
    assert (done, errors) == (total, 0)
    assert 2 <= losses <= 2 * LANES  # what was in flight, and nothing else
    with open_run(there) as run:
        assert_same(run.concluded["demo"], expected["demo"])
    assert len(out.splitlines()) == 2
    said = [line for line in err.splitlines() if not line.startswith("audits")]
    assert said == [f"The page is {there / 'report.html'}."]


def assert_same(found: list[Concluded], expected: list[Concluded]) -> None:
    """Outcomes, and probabilities as far as the number of threads allows."""
    for one, other in zip(found, expected, strict=True):
        assert (one.row.entry, one.outcome) == (other.row.entry, other.outcome)
        for answer, known in ((one.row.first, other.row.first), (one.row.second, other.row.second)):
            assert (answer is None) == (known is None)
            if answer is not None and known is not None:
                assert answer.verdict is known.verdict
                assert answer.probabilities == pytest.approx(known.probabilities, abs=1e-3)


def test_a_batch_is_stopped(
    cluster: Cluster, nodes: Callable[[int], list[Any]], wanted: Wanted, tmp_path: Path
) -> None:
    """What is in flight is put back at once, and the workers end."""
    nodes(1)
    runner = find_runner("ray", "cpu", RayOptions(address=cluster.address, workers=1))
    notes = []
    with closing(LocalBatch(wanted, tmp_path / "run", runner=runner)) as batch:

        def stop() -> None:
            notes.append(batch.note)
            if batch.store.counts(batch.batch.id).done:
                batch.stopping.set()

        batch.run(stop)
        eventually(lambda: not processes())
        assert batch.store.batch(batch.batch.id).state == PAUSED
    assert notes[:2] == ["waiting for a worker in the Ray cluster", ""]
    assert kept(tmp_path / "run") < 24
    assert select(tmp_path / "run", "SELECT sum(state = 'running'), sum(losses) FROM tasks") == (0, 0)
