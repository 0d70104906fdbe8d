"""What the service costs: audits over gRPC against the same in process, and the metrics' share of them."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection

import grpc
import numpy as np

from audit import demo
from audit.auditor import Auditor
from audit.bench.markdown import markdown
from audit.budget import Budget
from audit.v1 import audit_pb2
from service.metrics import STAGES, Metrics
from service.server import METHODS
from tests.benchmarks.common import BENCHMARK_SEED, checkpoint, child, reference, served, truth

PAIRS = 60
#: Calls that are timed together, of what takes microseconds.
CALLS = 20_000


def run() -> str:
    """The table, as Markdown."""
    prompts = [row.prompt for row in truth()]
    ratios = []
    with served() as (client, _), child(_audit) as own:
        for number in range(-5, PAIRS):  # the first ones reconstruct reference images, and do not count
            prompt, seed = prompts[number % len(prompts)], BENCHMARK_SEED + 100 * number
            request = audit_pb2.AuditRequest(prompt=prompt, checkpoint="demo", reference="demo")
            request.budget.first_seed = seed
            took = {}
            for way in ("over", "in") if number % 2 else ("in", "over"):
                start = time.perf_counter()
                if way == "over":
                    evaluations = client.audit(request).cost.evaluations
                else:
                    own.send((prompt, seed))
                    cpu, passes, same = own.recv()
                took[way] = time.perf_counter() - start
            assert evaluations == same
            if number >= 0:
                ratios.append(took["over"] / took["in"])
    low, middle, high = np.quantile(_medians(ratios), [0.025, 0.5, 0.975])
    pass_seconds, audit_seconds = _metric_seconds()
    share = (passes * pass_seconds + audit_seconds) / cpu
    return f"""# The service

`python -m tests.benchmarks service`: an audit at the default budget ({evaluations} evaluations) by one client of
`basin serve` on loopback, over the same prompt and seeds by `Auditor.audit` in another process, one after the other in
changing order; {PAIRS} pairs, median and its 95% interval (bootstrap). Metrics: CPU seconds of a call, over {CALLS:,}
calls, times the calls of an audit ({passes} forward passes), over the CPU seconds of the audit ({cpu:.2f}).

{
        markdown(
            ["over gRPC / in process", "95% interval", "metrics, share of CPU time"],
            [[f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{100 * share:.3f}%"]],
        )
    }
"""


def _medians(values: list[float]) -> np.ndarray:
    chance = np.random.default_rng(0)
    return np.median(chance.choice(values, (2000, len(values))), axis=1)


def _metric_seconds() -> tuple[float, float]:
    """CPU seconds of what is recorded for a forward pass, and for an audit."""
    metrics = Metrics(["demo"], ["demo"], METHODS)

    def of_pass() -> None:
        metrics.observe_pass("demo", 32, 0, 0.01)

    def of_audit() -> None:
        metrics.queue_wait_seconds.observe(0.1)
        metrics.audit_seconds.observe(0.5)
        metrics.confidence.labels("memorized").observe(0.9)
        for stage in STAGES:
            metrics.stage_seconds.labels(stage).observe(0.1)
        metrics.count_audit("demo", grpc.StatusCode.OK, "memorized")
        metrics.count_rpc("AuditService/Audit", grpc.StatusCode.OK, 0.5)

    found = []
    for record in (of_pass, of_audit):
        start = time.thread_time()
        for _ in range(CALLS):
            record()
        found.append((time.thread_time() - start) / CALLS)
    return found[0], found[1]


def _audit(pipe: Connection) -> None:
    """Audit what comes in; go out CPU seconds, denoiser calls and evaluations."""
    auditor, calls = Auditor(checkpoint(), reference(), demo.calibration()), 0

    def count() -> None:
        nonlocal calls
        calls += 1

    while True:
        prompt, seed = pipe.recv()
        calls, start = 0, time.process_time()
        report = auditor.audit(prompt, budget=Budget(first_seed=seed), check=count)
        pipe.send((time.process_time() - start, calls, report.cost.evaluations))
