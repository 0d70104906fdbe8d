"""Sixteen audits at once against one offline batch, and against the same sixteen one after another."""

from __future__ import annotations

import math
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import numpy as np
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from audit import demo
from audit.auditor import Auditor
from audit.bench.markdown import markdown
from audit.budget import Budget
from audit.v1 import audit_pb2
from service.client import BasinClient
from tests.benchmarks.common import (
    BENCHMARK_SEED,
    bare_forward,
    bare_seconds,
    calls_of,
    checkpoint,
    forward_seconds,
    reference,
    served,
    truth,
)

AUDITS = 16
ROUNDS = 3
CURVE = (1, 4, 8, 16, 32, 64, 128, 256)
#: Rows of the first group of an audit's seeds.
OWN = 4
#: Most rows that the server merges into one pass, by default.
MERGED = 128


def run() -> str:
    """The table, as Markdown."""
    prompts = [row.prompt for row in truth()[:: len(truth()) // AUDITS]][:AUDITS]
    calls, samples = _work(prompts)
    together, alone, offline, gains = [], [], [], []
    with served() as (client, _), ThreadPoolExecutor(AUDITS) as pool:
        _at_once(client, prompts, pool)  # reconstructs the reference images that are near
        for _ in range(ROUNDS):
            # What is compared stands side by side in time: the machine's speed drifts.
            before = _offline(calls, samples)
            together.append(_at_once(client, prompts, pool))
            offline.append((before + _offline(calls, samples)) / 2)
            alone.append(_one_by_one(client, prompts))
            gains.append(_bare_gain(calls))
        health = _health_milliseconds(client, prompts, pool)
    ratio = np.asarray(together) / np.asarray(offline)
    gain = np.asarray(alone) / np.asarray(together)
    relative = gain / np.asarray(gains)
    curve = [(rows, rows / forward_seconds(rows, 10)) for rows in CURVE]
    base = dict(curve)[OWN]
    evaluations = sum(rows * count for rows, count in calls.items())
    return f"""# Concurrent audits

`python -m tests.benchmarks concurrency`: {AUDITS} audits at the default budget over gRPC, all at once and one after
another. The offline batch is as many rows through the bare UNet, {MERGED} a pass, then decoding and search of all
samples, in one process without a server, before and after. An audit's own batches have
{evaluations / sum(calls.values()):.1f} rows on average, merged ones {MERGED}. {ROUNDS} rounds, interleaved; median
(range).

{
        markdown(
            ["ratio", "median", "range"],
            [
                ["at once / offline batch", *_range(ratio)],
                ["one after another / at once (the gain)", *_range(gain)],
                ["the bare forward pass's gain a row, own batches to merged", *_range(np.asarray(gains))],
                ["gain / the bare forward pass's gain", *_range(relative)],
            ],
        )
    }

Rows a second of the bare forward pass, relative to {OWN} rows:

{markdown([str(rows) for rows, _ in curve], [[f"{rate / base:.2f}" for _, rate in curve]])}

While {AUDITS} audits run, a health check takes {np.median(health):.0f} ms (median of {len(health)}; 99%:
{np.quantile(health, 0.99):.0f} ms, longest {max(health):.0f} ms).
"""


def _range(values: np.ndarray) -> tuple[str, str]:
    return f"{np.median(values):.2f}", f"{values.min():.2f} to {values.max():.2f}"


def _request(prompt: str) -> audit_pb2.AuditRequest:
    request = audit_pb2.AuditRequest(prompt=prompt, checkpoint="demo", reference="demo")
    request.budget.first_seed = BENCHMARK_SEED
    return request


def _at_once(client: BasinClient, prompts: list[str], pool: ThreadPoolExecutor) -> float:
    start = time.perf_counter()
    list(pool.map(lambda prompt: client.audit(_request(prompt)), prompts))
    return time.perf_counter() - start


def _work(prompts: list[str]) -> tuple[Counter[int], int]:
    """Denoiser calls of all audits by their rows, and samples drawn."""
    auditor, budget = Auditor(checkpoint(), reference(), demo.calibration()), Budget(first_seed=BENCHMARK_SEED)
    calls: Counter[int] = Counter()
    samples = 0
    for prompt in prompts:
        own, report = calls_of(partial(auditor.audit, prompt, budget=budget))
        calls += own
        samples += len(report.seeds)
    return calls, samples


def _bare_gain(calls: Counter[int]) -> float:
    """What a row of an audit costs in the audit's own batches, over what it costs in a merged one, by bare passes."""
    evaluations = sum(rows * count for rows, count in calls.items())
    return bare_seconds(calls) / (evaluations * forward_seconds(MERGED, 10) / MERGED)


def _health_milliseconds(client: BasinClient, prompts: list[str], pool: ThreadPoolExecutor) -> list[float]:
    """How long health checks take while audits run."""
    found = []
    with grpc.insecure_channel(client.target) as channel, ThreadPoolExecutor(1) as background:
        health = health_pb2_grpc.HealthStub(channel)
        audits = background.submit(_at_once, client, prompts, pool)
        while not audits.done():
            start = time.perf_counter()
            health.Check(health_pb2.HealthCheckRequest(service="liveness"))
            found.append(1000 * (time.perf_counter() - start))
            time.sleep(0.02)
    return found


def _one_by_one(client: BasinClient, prompts: list[str]) -> float:
    start = time.perf_counter()
    for prompt in prompts:
        client.audit(_request(prompt))
    return time.perf_counter() - start


def _offline(calls: Counter[int], samples: int) -> float:
    evaluations = sum(rows * count for rows, count in calls.items())
    model = checkpoint()
    latents = torch.randn(samples, *model.latent_shape(model.defaults))
    call = bare_forward(MERGED)
    start = time.perf_counter()
    for _ in range(math.ceil(evaluations / MERGED)):
        call()
    images = torch.cat([model.decode(part) for part in latents.split(64)])
    reference().search_pixels(images, 8)
    reference().search_clip(images, 1)
    return time.perf_counter() - start
