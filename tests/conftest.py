"""What all tests share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.audit.phase.finished import Finished
    from tests.service.postgres import Postgres

# readline, which pytest loads, hands its guess of the terminal's width to the processes that run the tests.
os.environ.pop("COLUMNS", None)
os.unsetenv("COLUMNS")  # also where Python does not know of it
# Side by side, teams of threads would wait for each other's cores most of the time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Whoever runs the tests in the background may have told them to ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


#: Files that take minutes, which begin first: left for the end, they would keep one worker busy and the other waiting.
LONGEST = (
    "service/test_soak.py", "cli/test_phase.py", "service/test_ray.py", "service/test_faults.py",
    "audit/phase/test_run.py", "service/test_batch_kills.py", "audit/phase/test_page.py", "cli/test_train_ladder.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the others as they come."""

    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((rank for rank, name in enumerate(LONGEST) if path.endswith(name)), len(LONGEST))

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """What was imported is no garbage; to look through it takes as long as a short test, wherever a server ends."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_files_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Folders of the tests' own: for stores and imported prompts, and for what is remembered between runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of `basin phase run` that nothing disturbed."""
    from tests.audit.phase.finished import finished_run, shared_folder  # most tests need nothing so heavy

    return finished_run(shared_folder(tmp_path_factory))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server."""
    from tests.service.postgres import running_postgres

    with running_postgres() as server:
        yield server


def _skipped(config: pytest.Config) -> list[str]:
    """The tests that were skipped, where CI_FATAL_SKIPS=1 makes that a failure."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI_FATAL_SKIPS") != "1" or reporter is None:
        return []
    return [report.nodeid for report in reporter.stats.get("skipped", [])]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session when a test was skipped."""
    if _skipped(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the skipped tests that failed the session."""
    if skipped := _skipped(config):
        terminalreporter.section("skips are failures here (CI_FATAL_SKIPS=1)", red=True)
        for nodeid in skipped:
            terminalreporter.line(nodeid)
