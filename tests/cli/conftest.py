"""What the tests of the command line share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from audit.batch.local import LocalWorkers
from audit.batch.tasks import Task
from audit.demo import prompts
from audit.report import Report
from service.cli import main
from service.config import load_settings
from service.server import start_server

#: As little work as an audit can be.
CHEAP = ("--seeds", "2", "--steps", "2", "--guidance", "1", "--curvature", "off")


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


Basin = Callable[..., Result]


@pytest.fixture
def basin(capsys: pytest.CaptureFixture[str]) -> Basin:
    """The command line, in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Result(end.value.code if isinstance(end.value.code, int) else 0, captured.out, captured.err)

    return run


@pytest.fixture
def prompt() -> str:
    """A prompt of the demo checkpoint's ladder."""
    return prompts()[0]


def is_one_error(result: Result, *words: str) -> bool:
    """Whether a command failed with one line on stderr that holds these words, and printed nothing else."""
    lines = result.err.splitlines()
    assert result.code == 2, result
    assert result.out == "", result
    assert len(lines) == 1, result
    assert lines[0].startswith("error: "), result
    assert all(word in lines[0] for word in words), result
    return True


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a real server in this process, with the demo checkpoint and reference set and a store of its own."""
    with serving(f"sqlite:///{tmp_path_factory.mktemp('store')}/basin.db") as address:
        yield address


@contextmanager
def serving(store: str, address: str = "127.0.0.1:0") -> Iterator[str]:
    """HOST:PORT of a server in this process, with the demo checkpoint and reference set and this store."""
    settings = load_settings(listen=address, metrics="off", demo=True, log_level="error", batches={"store": store})
    with start_server(settings) as running:
        assert running.wait_ready(120)
        yield running.address


#: Whoever runs the tests in the background may have told them to ignore Ctrl-C, which children inherit.
WITH_CTRL_C = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("service.cli", run_name="__main__", alter_sys=True)
"""


def start_basin(*arguments: object) -> subprocess.Popen[str]:
    """The command line as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", WITH_CTRL_C, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def audited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of what is audited in this process."""
    begun: list[str] = []
    submit = LocalWorkers.submit

    def note(self: LocalWorkers, task: Task) -> Future[Report]:
        begun.append(task.key)
        return submit(self, task)

    monkeypatch.setattr(LocalWorkers, "submit", note)
    return begun
