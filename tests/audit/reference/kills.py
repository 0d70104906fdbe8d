"""Kills every operation on a reference set at every step that it takes on disk, and looks at what is left.

Run as a program, with a folder to work in and how many steps to go on from one kill to the next: a process that has
computed nothing yet can be forked safely. Prints one JSON object: for every operation, how many steps it takes, and
what was wrong afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from audit.errors import NotFound
from audit.reference import build as building
from audit.reference import intake, settling, upkeep
from audit.reference.folder import check, read_manifest, writing
from audit.reference.manifest import Options

os_fsync = os.fsync
#: Where an operation can be killed: before each call of these.
STEPS = ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"), (shutil, "rmtree"))


def forked(work: Callable[[], object], kill_at: int | None = None) -> bool:
    """Do something in a process of its own; whether that was killed."""
    process = os.fork()
    if process == 0:
        steps = 0

        def watched(call: Callable[..., object], *arguments: object, **options: object) -> object:
            nonlocal steps
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1
            # The machine goes on: nothing has to reach the disk.
            return None if call is os_fsync else call(*arguments, **options)

        for module, name in STEPS:
            setattr(module, name, partial(watched, getattr(module, name)))
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
        raise SystemExit("an operation failed")
    return os.WIFSIGNALED(status)


def state(folder: Path) -> str | None:
    """What a set says that it is, after every file was read."""
    try:
        found = read_manifest(folder)
    except NotFound:
        return None
    check(folder, found, None)
    return found.digest


def main() -> None:
    """See above."""
    base = Path(sys.argv[1])
    intake.SEGMENT_SECONDS, intake.EMBEDDED_ROWS, settling.SMALLEST = 0.0, 8, 16
    draw = np.random.default_rng(0)
    for name, count in (("first", 32), ("second", 16)):
        np.save(base / f"{name}.npy", draw.integers(0, 256, (count, 8, 8), dtype=np.uint8))
    options = Options(index="ivf-flat")
    folder, other, before = base / "set", base / "other", base / "before"
    forked(lambda: building.build(base / "second.npy", other, options=options))
    found = {}
    for name, work in (
        ("build", lambda: building.build(base / "first.npy", folder, options=options)),
        ("add", lambda: building.add(folder, base / "second.npy")),
        ("remove", lambda: upkeep.remove(folder, [0, 40])),
        ("compact", lambda: upkeep.compact(folder)),
        ("merge", lambda: upkeep.merge(folder, [other])),
    ):
        shutil.rmtree(before, ignore_errors=True)
        if folder.exists():
            folder.rename(before)
            shutil.copytree(before, folder)
        old = state(folder) if folder.exists() else None
        forked(work)
        new, after = state(folder), base / "after"
        shutil.rmtree(after, ignore_errors=True)
        folder.rename(after)
        step, wrong = 0, []
        while True:
            if before.exists():
                shutil.copytree(before, folder)
            killed = forked(work, step)
            left = state(folder) if folder.exists() else None
            if left not in (old, new):
                wrong.append(f"step {step}: neither the old state nor the new one")
            if killed and left == old:
                forked(work)
                if state(folder) != new:
                    wrong.append(f"step {step}: another state after it was done again")
            with writing(folder):
                pass
            named = {Path(path).parts[1] for path, _ in read_manifest(folder).files()}
            if named != {path.name for path in folder.glob("*/*")}:
                wrong.append(f"step {step}: files that no state names")
            shutil.rmtree(folder)
            if not killed:
                break
            step += int(sys.argv[2])
        after.rename(folder)
        found[name] = {"steps": step, "changed": old != new, "wrong": wrong}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
