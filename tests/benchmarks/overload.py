"""A server that is offered ten times what it can do."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import grpc
import numpy as np
import psutil
from grpc_health.v1 import health_pb2

from audit.bench.markdown import markdown
from audit.v1 import audit_pb2
from service.client import BasinClient, ServiceError
from tests.benchmarks.calls import Tally, offer
from tests.benchmarks.common import BENCHMARK_SEED, child, served, truth

AUDIT, NOTHING = "/audit.v1.AuditService/Audit", "/nothing.Nothing/Nothing"
ROUNDS = 6
#: Seconds of each measurement.
SPAN = 20.0
#: Audits that are kept going to find out what the server can do.
CLIENTS = 24
#: Of an audit here, and how many of them wait or are worked on.
EVALUATIONS, ROOM = 4 * 18, 32
TIMES = 10


def run() -> str:
    """The table, as Markdown."""
    prompts = [row.prompt for row in truth()]
    requests = [_request(prompt) for prompt in prompts]
    contents = [request.SerializeToString() for request in requests]
    rows, health, memory = [], list[float](), 0.0
    flags = ("--queue-evaluations", str(ROOM * EVALUATIONS))
    with served(*flags) as (client, pid), child(_nothing) as pipe:
        idle = pipe.recv()
        process = psutil.Process(pid)
        _keep_busy(client, requests, 10.0)
        before = process.memory_info().rss / 2**20
        bests = [_keep_busy(client, requests, SPAN) / SPAN]
        for _ in range(ROUNDS):
            offered = TIMES * bests[-1]

            def check(channel: grpc.aio.Channel) -> asyncio.Future[None]:
                return asyncio.ensure_future(_check(channel, health))

            flood = offer(client.target, AUDIT, contents, rate=offered, seconds=SPAN, timeout=60, beside=check)
            memory = max(memory, process.memory_info().rss / 2**20)
            with ThreadPoolExecutor(1) as busy:  # so that both have the same neighbours
                meanwhile = busy.submit(_keep_busy, client, requests, SPAN)
                nothing = offer(idle, NOTHING, [b""], rate=offered, seconds=SPAN, timeout=60)
                beside = meanwhile.result() / SPAN
            bests.append(_keep_busy(client, requests, SPAN) / SPAN)
            rows.append(((bests[-2] + bests[-1]) / 2, beside, flood, nothing))
    goodput = [flood.meanwhile[grpc.StatusCode.OK] / SPAN for _, _, flood, _ in rows]
    alone = [good / best for good, (best, _, _, _) in zip(goodput, rows, strict=True)]
    alike = [good / beside for good, (_, beside, _, _) in zip(goodput, rows, strict=True)]
    refused = [_late(flood, grpc.StatusCode.RESOURCE_EXHAUSTED) for _, _, flood, _ in rows]
    answered = [_late(nothing, grpc.StatusCode.OK) for _, _, _, nothing in rows]
    relative = [one / other for one, other in zip(refused, answered, strict=True)]
    others = sum((flood.codes for _, _, flood, _ in rows), start=type(rows[0][2].codes)())
    others -= type(others)({grpc.StatusCode.OK: others[grpc.StatusCode.OK]})
    return f"""# Overload

`python -m tests.benchmarks overload`: `basin serve` on loopback with room for {ROOM} audits of {EVALUATIONS} denoiser
evaluations, offered {TIMES} times what it does with {CLIENTS} callers who wait for their answers, at a rate that waits
for nothing; {SPAN:g} seconds a measurement, {ROUNDS} rounds, and what it does at best is the mean of before and after
(the machine's speed drifts). The server without anything to do is another process of
grpc.aio that answers nothing at all, called at the same rate while Basin works at its best; making and answering
calls takes from the same two cores. Answers without a verdict:
{", ".join(f"{code.name} {count:,}" for code, count in others.items() if count)}.

{
        markdown(
            ["", "median", "lowest", "highest"],
            [
                ["verdicts a second, over the best beside as many calls of nothing", *_range(alike, "{:.2f}")],
                ["over the best with the machine to itself", *_range(alone, "{:.2f}")],
                ["a refusal, 99% within (ms)", *_range([1000 * value for value in refused], "{:.1f}")],
                [
                    "an answer of the server without anything to do, 99% within (ms)",
                    *_range([1000 * value for value in answered], "{:.1f}"),
                ],
                ["the former over the latter", *_range(relative, "{:.2f}")],
            ],
        )
    }

A health check meanwhile: 99% within {1000 * np.quantile(health, 0.99):.0f} ms (of {len(health):,}). Resident memory:
{before:,.0f} MB before, {memory:,.0f} MB at most.
"""


def _range(values: list[float], form: str) -> list[str]:
    return [form.format(value) for value in (np.median(values), min(values), max(values))]


def _late(tally: Tally, code: grpc.StatusCode) -> float:
    return float(np.quantile(tally.seconds[code], 0.99))


def _request(prompt: str) -> audit_pb2.AuditRequest:
    request = audit_pb2.AuditRequest(prompt=prompt, checkpoint="demo")
    request.sampler.MergeFrom(audit_pb2.SamplerOptions(steps=18, guidance=1.0))
    request.budget.MergeFrom(audit_pb2.BudgetOptions(seeds=4, first_seed=BENCHMARK_SEED, curvature="off"))
    return request


def _keep_busy(client: BasinClient, requests: list[audit_pb2.AuditRequest], seconds: float) -> int:
    """How many audits so many callers get in so many seconds."""
    end = time.perf_counter() + seconds

    def call(number: int) -> int:
        count = 0
        while time.perf_counter() < end:
            try:
                client.audit(requests[(number + CLIENTS * count) % len(requests)])
            except ServiceError as error:
                if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                continue
            count += time.perf_counter() < end
        return count

    with ThreadPoolExecutor(CLIENTS) as callers:
        return sum(callers.map(call, range(CLIENTS)))


async def _check(channel: grpc.aio.Channel, seconds: list[float]) -> None:
    call = channel.unary_unary("/grpc.health.v1.Health/Check")
    content = health_pb2.HealthCheckRequest(service="liveness").SerializeToString()
    while True:
        start = time.perf_counter()
        await call(content, timeout=60)
        seconds.append(time.perf_counter() - start)
        await asyncio.sleep(0.05)


def _nothing(pipe: Connection) -> None:
    """A server that does nothing: goes out its HOST:PORT."""

    async def answer(request: bytes, context: Any) -> bytes:
        return b""

    async def serve() -> None:
        server = grpc.aio.server()
        service, _, method = NOTHING[1:].partition("/")
        handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send(f"127.0.0.1:{port}")
        try:
            await asyncio.to_thread(pipe.recv)
        finally:
            await server.stop(None)

    asyncio.run(serve())
