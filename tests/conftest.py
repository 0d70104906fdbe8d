"""What all tests share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.audit.phase.finished import Finished


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of `basin phase run` that nothing disturbed."""
    from tests.audit.phase.finished import finished_run  # most tests need nothing so heavy

    return finished_run(tmp_path_factory.getbasetemp() / "phase")


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
