"""`basin batch run`: going on where it was stopped or killed."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from audit import demo
from audit.batch.local import LocalWorkers
from audit.batch.tasks import Task
from audit.report import Report
from service.run_folder import read_run
from service.store.records import DONE, PAUSED, PENDING, RUNNING
from service.store.store import Store
from tests.audit.phase.finished import wait_for
from tests.cli.batch_runs import RUN, SLOW, finished, lines, opened, prompt_file, some, states
from tests.cli.conftest import Basin, is_one_error, start_basin
from tests.service.postgres import Postgres


def test_a_run_keeps_its_store(basin: Basin, tmp_path: Path, audited: list[str]) -> None:
    """It goes on with the one that was named first, named again or not; another one is refused."""
    out, url = tmp_path / "run", f"sqlite:///{tmp_path}/away.db"
    command = (*RUN, "--prompts", some(tmp_path, 1), "--out", out)
    assert basin(*command, "--store", url).code == 0
    audited.clear()
    before = read_run(out)
    for again in (command, (*command, "--store", url)):
        assert basin(*again).code == 0
    assert is_one_error(basin(*command, "--store", f"sqlite:///{tmp_path}/other.db"), str(out), "away.db", "--out")
    assert audited == []
    assert read_run(out) == before
    assert not list(tmp_path.rglob("basin.db"))
    assert not (tmp_path / "other.db").exists()


def kill_in_the_middle(command: tuple[object, ...], out: Path) -> None:
    """Start a run as a process of its own and kill it as soon as some tasks are done."""
    process = start_basin(*command)
    try:
        wait_for((out / "basin.db").exists, process)
        with opened(out) as store:
            wait_for(lambda: states(store)[DONE, 0] >= 3, process)
    finally:
        process.kill()
        process.communicate()


def test_a_killed_run_goes_on(basin: Basin, tmp_path: Path, audited: list[str]) -> None:
    """With the same command; what was done is not done again, and what was in flight comes last."""
    out, count = tmp_path / "run", 18
    command = (*SLOW, "--prompts", some(tmp_path, count), "--out", out)
    kill_in_the_middle(command, out)
    assert not (out / "results.jsonl").exists()
    with opened(out) as store:
        kept, left = finished(store), states(store)
    assert len(kept) >= 3
    assert 0 < left[RUNNING, 0] <= 8
    assert basin(*command).code == 0
    assert len(audited) == len(set(audited))
    assert kept.keys().isdisjoint(audited)
    assert len(lines(out)) == count
    with opened(out) as store:
        assert {key: finished(store)[key] for key in kept} == kept
        assert kept.keys() | set(audited) == finished(store).keys()
        assert states(store) == {(DONE, 0): len(finished(store)) - left[RUNNING, 0], (DONE, 1): left[RUNNING, 0]}
        assert {row["key"] for row in lines(out)} <= finished(store).keys()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
def test_a_stopped_run_goes_on(
    basin: Basin, tmp_path: Path, audited: list[str], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """It ends with 130, puts back what was in flight, and says how to go on; the same command then does."""
    out, count = tmp_path / "run", 12
    command = (*SLOW, "--guidance", "1", "--prompts", some(tmp_path, count), "--out", out)
    submit = LocalWorkers.submit
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    def interrupt(self: LocalWorkers, task: Task) -> Future[Report]:
        if len(audited) == 10:
            os.kill(os.getpid(), number)
        return submit(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(LocalWorkers, "submit", interrupt)
        result = basin(*command)
    assert (result.code, result.out) == (130, ""), result
    assert result.err.splitlines()[-1] == "stopped; the same command goes on"
    assert not list(out.glob("report*"))
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    with opened(out) as store:
        kept = finished(store)
        assert 0 < len(kept) < 12
        assert set(states(store)) == {(DONE, 0), (PENDING, 0)}  # nothing counts as lost
        batch = store.batch_of(read_run(out).request_id)
        assert batch is not None
        assert (batch.state, batch.note) == (PAUSED, "stopped")
    audited.clear()
    assert basin(*command).code == 0
    assert kept.keys().isdisjoint(audited)
    assert len(lines(out)) == count


def test_what_failed_is_tried_again_when_told(
    basin: Basin, tmp_path: Path, audited: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it stays as it is."""
    fine, unlucky = demo.prompts()[:2]
    long, out = "shirt " * 600, tmp_path / "run"
    file = prompt_file(tmp_path, *({"prompt": prompt} for prompt in (fine, unlucky, long)))
    command = (*RUN, "--prompts", file, "--out", out)
    audit = LocalWorkers.audit

    def break_down(self: LocalWorkers, task: Task) -> Report:
        if task.prompt == unlucky:
            raise RuntimeError("no such kernel")
        return audit(self, task)

    monkeypatch.setattr(LocalWorkers, "audit", break_down)
    assert basin(*command, "--fail-on", "failed > 1").code == 3
    assert [row["error"] != "" for row in lines(out)] == [False, True, True]
    assert lines(out)[1]["error"] == "RuntimeError: no such kernel"
    monkeypatch.setattr(LocalWorkers, "audit", audit)
    audited.clear()
    assert basin(*command, "--fail-on", "failed > 1").code == 3
    assert audited == []
    assert basin(*command, "--retry-failed", "--fail-on", "failed > 1").code == 0
    keys = [row["key"] for row in lines(out)]
    assert keys[0] not in audited
    assert keys[1] in audited
    assert keys[2] in audited
    assert [row["outcome"] == "failed" for row in lines(out)] == [False, False, True]


def test_a_server_that_is_killed_is_waited_for(
    basin: Basin, tmp_path: Path, postgres: Postgres, audited: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a batch, even while its progress is looked up; nothing is audited twice or lost."""
    out, url = tmp_path / "run", postgres.create()
    counts, calls = Store.counts, []
    with ExitStack() as restart:

        def kill_once(self: Store, id_: str) -> Any:
            calls.append(id_)
            if len(calls) == 4:
                outage = ExitStack()
                outage.enter_context(postgres.outage(signal.SIGKILL))
                thread = threading.Timer(1.0, outage.close)
                restart.callback(thread.join)
                thread.start()
            return counts(self, id_)

        monkeypatch.setattr(Store, "counts", kill_once)
        result = basin(*RUN, "--prompts", some(tmp_path, 12), "--out", out, "--store", url)
    assert result.code == 0, result
    assert len(calls) > 4
    assert len(audited) == len(set(audited))
    assert [row["outcome"] for row in lines(out)].count("failed") == 0
    assert len(lines(out)) == 12
    assert postgres.url("")[:20] not in (out / "run.json").read_text()
    assert not (out / "basin.db").exists()
    with opened(out, url) as store:
        assert finished(store).keys() == set(audited)
    postgres.drop(url)
