"""Jobs on real worker processes, and what becomes of them when something is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from audit.errors import NotFound, WorkerLost
from audit.phase.workers import default_devices, run_jobs
from tests.audit.phase import jobs
from tests.audit.phase.jobs import job

#: A machine under load needs a while to start a process that imports torch.
PATIENCE = 90.0
#: How fast everything has to be gone once it must; far less than jobs last.
SECONDS = 20.0


def begun(folder: Path) -> dict[str, dict[str, float]]:
    """What jobs said when they began, by their name."""
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.begun")}


def workers_left() -> list[psutil.Process]:
    """Children of this process that are still there, but for Python's own helper."""
    left = []
    for child in psutil.Process().children(recursive=True):
        # One that another test has ended meanwhile, or that waits to be reaped, has no command line any more.
        with suppress(psutil.NoSuchProcess):
            if "--multiprocessing-fork" in child.cmdline():
                left.append(child)
    return left


def test_all_jobs_run_on_their_devices_and_results_appear(tmp_path: Path) -> None:
    """Each device is one process of one thread, neither is this one, and afterwards none is left."""
    names = [f"job{index}" for index in range(5)]
    run_jobs("jobs", [job(jobs.quick, tmp_path, name) for name in names], ["cpu", "meta"])
    assert sorted(file.stem for file in tmp_path.glob("*.ended")) == names
    found = list(begun(tmp_path).values())
    assert {one["threads"] for one in found} == {1}
    places = {(one["pid"], one["device"]) for one in found}
    assert len({pid for pid, _ in places}) == len({device for _, device in places}) == len(places)
    assert {device for _, device in places} <= {"cpu", "meta"}
    assert os.getpid() not in {pid for pid, _ in places}
    assert workers_left() == []


def test_the_heaviest_job_goes_first(tmp_path: Path) -> None:
    """In whatever order jobs are given: the light ones fill the gaps at the end."""
    weights = {"b": 2.0, "e": 5.0, "a": 1.0, "d": 4.0, "c": 3.0}
    run_jobs("jobs", [job(jobs.quick, tmp_path, name, weight=weight) for name, weight in weights.items()], ["cpu"])
    found = begun(tmp_path)
    assert sorted(found, key=lambda name: found[name]["time"]) == ["e", "d", "c", "b", "a"]


def test_nothing_to_do_starts_nothing() -> None:
    """Not even where there is no device."""
    run_jobs("jobs", [], [])
    assert workers_left() == []


def test_by_default_there_is_one_worker_per_core() -> None:
    """Of those that this process may use; or one per GPU."""
    devices = default_devices()
    assert devices
    assert set(devices) == {"cpu"} or all(device.startswith("cuda:") for device in devices)
    if set(devices) == {"cpu"}:
        assert len(devices) == len(os.sched_getaffinity(0))


def test_an_exception_reaches_the_caller_and_stops_the_others(tmp_path: Path) -> None:
    """Even one that never reports, and jobs that have not begun never do."""
    failing = job(jobs.fail, tmp_path, "value", "silent", weight=2)
    start = time.monotonic()
    with pytest.raises(ValueError, match="a job went wrong"):
        run_jobs(
            "jobs",
            [failing, job(jobs.silent, tmp_path, "silent", weight=3), *[job(jobs.patient, tmp_path, "x")] * 4],
            ["cpu", "cpu"],
        )
    assert time.monotonic() - start < jobs.FOREVER
    assert not list(tmp_path.glob("*.ended"))
    assert workers_left() == []


@pytest.mark.parametrize(
    ("kind", "expected", "message"),
    [("audit", NotFound, "a file is not there"), ("unpicklable", RuntimeError, "Unpicklable: this and that")],
)
def test_exceptions_that_cannot_be_pickled_are_told_apart_from_lost_workers(
    tmp_path: Path, kind: str, expected: type[Exception], message: str
) -> None:
    """Basin's own errors keep their type, reason and field; of any other its name and message are left."""
    with pytest.raises(expected, match=message) as caught:
        run_jobs("jobs", [job(jobs.fail, tmp_path, kind, "")], ["cpu"])
    assert type(caught.value) is expected
    if isinstance(caught.value, NotFound):
        assert (caught.value.reason, caught.value.field) == ("FILE_NOT_FOUND", "data")
    # The traceback of the worker is told as well.
    assert "in fail" in str(caught.value.__cause__) + str(getattr(caught.value.__cause__, "__cause__", ""))


def test_a_killed_worker_is_told_and_ends_the_others(tmp_path: Path) -> None:
    """As when memory is short; even a job that never reports does not go on."""
    start = time.monotonic()
    with pytest.raises(WorkerLost, match="killed") as caught:
        run_jobs(
            "jobs",
            [job(jobs.die, tmp_path, "silent", weight=2), job(jobs.silent, tmp_path, "silent", weight=3)],
            ["cpu", "cpu"],
        )
    assert caught.value.reason == "WORKER_LOST"
    assert time.monotonic() - start < jobs.FOREVER
    assert not list(tmp_path.glob("*.ended"))
    assert workers_left() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    """A busy one, one that never reports, and one that waits for its next job; Ctrl-C reaches the whole group."""
    kinds = ["patient", "quick", "silent"]
    root = Path(__file__).parents[3]
    family: list[psutil.Process] = []
    with subprocess.Popen(
        [sys.executable, jobs.__file__, str(tmp_path), *kinds],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as parent:
        try:
            end = time.monotonic() + PATIENCE
            while len(begun(tmp_path)) < len(kinds) or not (tmp_path / "quick.ended").is_file():
                assert parent.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            family = psutil.Process(parent.pid).children(recursive=True)
            assert {int(one["pid"]) for one in begun(tmp_path).values()} <= {child.pid for child in family}
            if number == signal.SIGINT:
                os.killpg(parent.pid, number)
            else:
                parent.send_signal(number)
            _, alive = psutil.wait_procs(family, timeout=SECONDS)
            assert alive == []
            errors = parent.communicate(timeout=SECONDS)[1]
        finally:
            parent.kill()
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    assert parent.returncode != 0
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    assert sorted(file.stem for file in tmp_path.glob("*.ended")) == ["quick"]
