"""Jobs for worker processes, in a module that they can import, and a script that starts some: `python jobs.py FOLDER`.

Every job writes a file FOLDER/NAME.begun with the process that does it, and FOLDER/NAME.ended once it has ended on its
own account.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from audit.errors import NotFound
from audit.phase.workers import Job, Report, run_jobs

#: Longer than any test waits.
FOREVER = 120.0


class Unpicklable(Exception):
    """Cannot be made again from its message alone."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def _begin(folder: Path, name: str, device: str) -> None:
    found = {"pid": os.getpid(), "device": device, "threads": torch.get_num_threads(), "time": time.time()}
    (folder / f"{name}.tmp").write_text(json.dumps(found))
    (folder / f"{name}.tmp").replace(folder / f"{name}.begun")


def quick(folder: Path, name: str, report: Report, device: str) -> None:
    """Done at once."""
    _begin(folder, name, device)
    report(0.5)
    (folder / f"{name}.ended").touch()


def patient(folder: Path, name: str, report: Report, device: str) -> None:
    """Goes on for ever, and reports."""
    _begin(folder, name, device)
    end = time.monotonic() + FOREVER
    while time.monotonic() < end:
        report(0.5)
        time.sleep(0.02)
    (folder / f"{name}.ended").touch()


def silent(folder: Path, name: str, report: Report, device: str) -> None:
    """Goes on for ever and never reports."""
    _begin(folder, name, device)
    time.sleep(FOREVER)
    (folder / f"{name}.ended").touch()


def _wait_for(file: Path) -> None:
    end = time.monotonic() + FOREVER
    while not file.is_file() and time.monotonic() < end:
        time.sleep(0.02)


def fail(folder: Path, kind: str, after: str, report: Report, device: str) -> None:
    """Raise one kind of exception, once another job has begun; "" for at once."""
    if after:
        _wait_for(folder / f"{after}.begun")
    errors: dict[str, Exception] = {
        "value": ValueError("a job went wrong"),
        "audit": NotFound("a file is not there", reason="FILE_NOT_FOUND", field="data"),
        "unpicklable": Unpicklable("this", "that"),
    }
    raise errors[kind]


def die(folder: Path, after: str, report: Report, device: str) -> None:
    """What the kernel does to a process when memory is short, once another job has begun."""
    _wait_for(folder / f"{after}.begun")
    os.kill(os.getpid(), signal.SIGKILL)


def job(work: Callable[..., None], *arguments: object, weight: float = 1.0) -> Job:
    """A job of this module."""
    return Job(str(arguments[-1]), weight, partial(work, *arguments))


def main(folder: Path, kinds: list[str]) -> None:
    """Run jobs of some kinds, one worker each."""
    work = {"quick": quick, "patient": patient, "silent": silent}
    (folder / "parent").write_text(str(os.getpid()))
    run_jobs("jobs", [job(work[kind], folder, kind) for kind in kinds], ["cpu"] * len(kinds))


if __name__ == "__main__":
    # Whoever runs the tests in the background may have told them to ignore Ctrl-C, which children inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(Path(sys.argv[1]), sys.argv[2:])
