"""What the benchmarks share."""

from __future__ import annotations

import multiprocessing
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.connection import Connection

import numpy as np
import torch

from audit import demo
from audit.bench.truth import TruthRow, load_truth
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser, MeteredDenoiser, repeat
from audit.model.loading import load_checkpoint
from audit.reference.reference_set import ReferenceSet
from audit.report import Report
from service.client import BasinClient, ServiceError

#: Seeds of benchmark audits: apart from those of the truth, of the fit and of everyday audits.
BENCHMARK_SEED = 2_000_000


@cache
def checkpoint() -> Checkpoint:
    """The demo checkpoint."""
    return load_checkpoint(demo.CHECKPOINT, name="demo")


@cache
def reference() -> ReferenceSet:
    """Its complete training set."""
    return ReferenceSet.load(demo.REFERENCE)


@cache
def truth() -> tuple[TruthRow, ...]:
    """Its truth table."""
    return load_truth(demo.FOLDER / "truth.jsonl")


def seconds(work: Callable[[], object], repeats: int = 5) -> list[float]:
    """Wall seconds of each of several runs, after one that does not count."""
    work()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found


def bare_forward(rows: int) -> Callable[[], object]:
    """A call of the bare UNet with so many rows."""
    model = checkpoint()
    x = torch.randn(rows, *model.latent_shape(model.defaults))
    t = torch.full((rows,), 500)
    condition = repeat(model.encode_prompts([truth()[0].prompt]), rows)
    return torch.inference_mode()(lambda: model.denoiser.native(x, t, condition))


def forward_seconds(rows: int, repeats: int = 20) -> float:
    """Median wall seconds of one bare UNet call with so many rows."""
    return float(np.median(seconds(bare_forward(rows), repeats)))


class _Recorded(MeteredDenoiser):
    """Counts calls by their rows."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.calls: Counter[int] = Counter()

    def native(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        self.calls[len(x)] += 1
        return super().native(x, t, condition)


def calls_of(audit: Callable[..., Report]) -> tuple[Counter[int], Report]:
    """How many denoiser calls of how many rows an audit makes that is told its denoiser, and what it finds."""
    recorded = _Recorded(checkpoint().denoiser)
    report = audit(denoiser=recorded)
    return recorded.calls, report


def bare_seconds(calls: Mapping[int, int], repeats: int = 10) -> float:
    """What these calls take the bare UNet."""
    return sum(count * forward_seconds(rows, repeats) for rows, count in calls.items())


@contextmanager
def child(work: Callable[[Connection], None]) -> Iterator[Connection]:
    """A process of its own, and the end of its pipe that is ours. It ends where it reads after we have left."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(work, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def _work(work: Callable[[Connection], None], pipe: Connection) -> None:
    with suppress(EOFError):
        work(pipe)


@contextmanager
def served(*flags: str) -> Iterator[tuple[BasinClient, int]]:
    """A real `basin serve` with the demo checkpoint on loopback and these flags: its client and its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "service.cli", "serve", "--listen", f"127.0.0.1:{port}", "--metrics", "off"]
    server = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client, deadline = BasinClient(f"127.0.0.1:{port}"), time.monotonic() + 180
        while True:
            try:
                client.info()
                break
            except ServiceError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        yield client, server.pid
    finally:
        server.terminate()
        server.wait(60)
