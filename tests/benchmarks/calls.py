"""Calls at a rate that does not wait for answers, and what became of them. For servers on this machine only."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc

#: Calls that may be on their way at once.
MOST = 4096


@dataclass
class Tally:
    """What became of calls.

    Attributes:
        seconds: of each call, by its code, from when it was due to its answer.
        meanwhile: answers by code that came while calls were still being made.
    """

    seconds: dict[grpc.StatusCode, list[float]] = field(default_factory=dict)
    meanwhile: Counter[grpc.StatusCode] = field(default_factory=Counter)

    @property
    def codes(self) -> Counter[grpc.StatusCode]:
        """How many calls ended in each code."""
        return Counter({code: len(found) for code, found in self.seconds.items()})


def offer(
    address: str,
    method: str,
    requests: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    timeout: float,
    beside: Callable[[grpc.aio.Channel], asyncio.Future[None]] | None = None,
) -> Tally:
    """Make calls at a rate, whatever becomes of them.

    Args:
        address: HOST:PORT on this machine.
        method: "/package.Service/Method", unary.
        requests: in turn.
        rate: calls a second.
        seconds: for so long.
        timeout: of each call.
        beside: makes something that runs meanwhile; it is cancelled at the end.
    """
    assert address.startswith("127.0.0.1:"), "load is for servers on this machine"
    return asyncio.run(_offer(address, method, requests, rate, seconds, timeout, beside))


async def _offer(
    address: str,
    method: str,
    requests: Sequence[bytes],
    rate: float,
    seconds: float,
    timeout: float,
    beside: Callable[[grpc.aio.Channel], asyncio.Future[None]] | None,
) -> Tally:
    tally, pending, turn = Tally(), set[asyncio.Task[None]](), itertools.cycle(requests)
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        call = channel.unary_unary(method)

        async def one(request: bytes, due: float) -> None:
            try:
                await call(request, timeout=timeout)
                code = grpc.StatusCode.OK
            except grpc.aio.AioRpcError as error:
                code = error.code()
            now = time.perf_counter()
            tally.seconds.setdefault(code, []).append(now - due)
            tally.meanwhile[code] += now < start + seconds

        other = beside(channel) if beside is not None else None
        start = time.perf_counter()
        for number in range(round(rate * seconds)):
            due = start + number / rate
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            assert len(pending) < MOST
            task = asyncio.create_task(one(next(turn), due))
            pending.add(task)
            task.add_done_callback(pending.discard)
        while pending:
            await asyncio.wait(pending)
        if other is not None:
            other.cancel()
    return tally
