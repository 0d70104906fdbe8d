"""A batch's throughput against the bare denoiser's."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from audit.bench.markdown import markdown
from audit.v1 import audit_pb2
from service.local_batch import LocalBatch, Wanted
from tests.benchmarks.common import BENCHMARK_SEED, bare_forward, child, truth

PROMPTS = 200
RUNS = 3
ROWS = (32, 64, 128, 256)
#: Seconds of the batch, and of the bare UNet, in turn.
TURN, GLANCE = 4.0, 1.0


def captions(count: int) -> list[str]:
    """So many different prompts: those of the truth table, and the same of other towns."""
    known = [row.prompt for row in truth()]
    towns = ["riga", "turin", "ghent", "derby", "lille", "porto", "bergen", "tartu", "split", "cadiz"]
    found = dict.fromkeys(known)
    number = 0
    while len(found) < count:
        caption, town = known[number % len(known)], towns[number // len(known) % len(towns)]
        found[f"{caption.rsplit(' ', 1)[0]} {town} {number // (len(known) * len(towns)) or ''}".strip()] = None
        number += 1
    return list(found)[:count]


def wanted(folder: Path, prompts: list[str], seed: int, how: Mapping[str, Mapping[str, Any]] = {}) -> Wanted:
    """A batch of prompts with seeds of its own; sampler and budget where they are not the default ones."""
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    budget = audit_pb2.BudgetOptions(first_seed=seed, **how.get("budget", {}))
    sampler = audit_pb2.SamplerOptions(**how.get("sampler", {}))
    return Wanted(checkpoints=("demo",), prompts=file, reference="demo", sampler=sampler, budget=budget)


def run() -> str:
    """The tables, as Markdown."""
    with tempfile.TemporaryDirectory() as cache, child(_bare) as bare:
        os.environ["XDG_CACHE_HOME"] = cache  # of the processes that are started from here on
        bare.send(None)
        rows = bare.recv()
        runs = [_throughput(BENCHMARK_SEED + 10_000 * number, bare) for number in range(1 + RUNS)]
    first, *later = (ratio for ratio, _ in runs)
    table = [f"{value:.3f}" for value in (np.median(later), min(later), max(later), first)]
    return f"""# Batches

`python -m tests.benchmarks batch`: {PROMPTS} prompts with the demo checkpoint and reference set at the default budget,
as `basin batch run` does them: second audits of flagged prompts, decoding, search, encoded pictures and the store on
disk included ({runs[0][1]:,} denoiser evaluations). Evaluations a second over those of the bare UNet in another
process, at its best batch of {", ".join(map(str, ROWS))} rows ({rows}). Every {TURN:g} seconds the batch is halted for
{GLANCE:g} seconds of the bare UNet, so that both see the same neighbours on the machine; {RUNS} runs with fresh seeds.
Before them comes the first batch that ever met this autoencoder and this reference set, and reconstructs images; they
are remembered.

{markdown(["batch / bare denoiser", "lowest", "highest", "the first batch"], [table])}
"""


def _throughput(seed: int, bare: Connection) -> tuple[float, int]:
    """Evaluations a second of a batch over those of the bare denoiser, and how many there were."""
    with child(_audit) as work:
        work.send(seed)
        pid = work.recv()
        rates, halted, start = [], 0.0, time.perf_counter()
        while not work.poll(TURN):
            halt = time.perf_counter()
            os.kill(pid, signal.SIGSTOP)
            bare.send(GLANCE)
            rates.append(bare.recv())
            os.kill(pid, signal.SIGCONT)
            halted += time.perf_counter() - halt
        took = time.perf_counter() - start - halted
        evaluations = work.recv()
    return evaluations / took / float(np.mean(rates)), evaluations


def _audit(pipe: Connection) -> None:
    """Do a batch: its first seed comes in; go out the process, when it begins, and its evaluations."""
    seed = pipe.recv()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = LocalBatch(wanted(folder, captions(PROMPTS), seed), folder / "run")
        pipe.send(os.getpid())
        work.run()
        audits = (report for row in work.store.every_row(work.batch.id) for report in work.store.reports(row) if report)
        pipe.send(sum(report.cost.evaluations for report in audits))
        work.close()


def _bare(pipe: Connection) -> None:
    """Run the bare UNet: None comes in, goes out its best batch; then seconds come in, go out rows a second."""
    pipe.recv()
    rows = max(ROWS, key=lambda rows: np.median([_rate(rows, GLANCE) for _ in range(3)]))
    pipe.send(rows)
    while True:
        pipe.send(_rate(rows, pipe.recv()))


def _rate(rows: int, seconds: float) -> float:
    call, count = bare_forward(rows), 0
    call()
    start = time.perf_counter()
    while (took := time.perf_counter() - start) < seconds:
        call()
        count += rows
    return count / took
