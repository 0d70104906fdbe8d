"""The runner's memory against the length of the batch."""

from __future__ import annotations

import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from audit.bench.markdown import markdown
from service.local_batch import LocalBatch
from tests.benchmarks.batch import captions, wanted
from tests.benchmarks.common import BENCHMARK_SEED, child

LENGTHS = (100, 1000, 10_000)
#: As little as an audit can be: what is measured is everything around it.
SHORT: dict[str, dict[str, Any]] = {
    "sampler": {"steps": 2, "guidance": 1.0},
    "budget": {"seeds": 2, "curvature": "off"},
}


def run() -> str:
    """The table, as Markdown."""
    memory = _memory()
    return f"""# Memory of a batch

`python -m tests.benchmarks batch_memory`: resident memory of the runner, largest after the first 50 audits, by the
length of the batch (2 seeds, 2 steps, no curvature, a process each).

{markdown([f"{length:,} prompts" for length in LENGTHS], [[f"{memory[length]:,.0f} MB" for length in LENGTHS]])}
"""


def _memory() -> dict[int, float]:
    found = {}
    for length in LENGTHS:
        with child(_short_batch) as work:
            work.send(length)
            found[length] = work.recv()
    return found


def _short_batch(pipe: Connection) -> None:
    """A batch whose length comes in; goes out the largest resident memory in MB."""
    length = pipe.recv()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = LocalBatch(wanted(folder, captions(length), BENCHMARK_SEED, SHORT), folder / "run")
        process, largest, done = psutil.Process(), 0.0, threading.Event()

        def watch() -> None:
            nonlocal largest
            while not done.wait(0.5):
                if work.store.counts(work.batch.id).done > 50:
                    largest = max(largest, process.memory_info().rss / 2**20)

        watcher = threading.Thread(target=watch)
        watcher.start()
        work.run()
        done.set()
        watcher.join()
        work.close()
    pipe.send(largest)
