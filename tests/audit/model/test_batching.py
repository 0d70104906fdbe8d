"""Concurrent lanes over one denoiser."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from audit.model.batching import MOST_PASSED_OVER, BatchingDenoiser
from audit.model.denoiser import Condition, Denoiser, repeat
from tests.audit.makers import clusters, exact_denoiser

#: Long enough that every lane of a test arrives before it is over; no test waits for it to pass.
LONG = 30.0


class Gated(Denoiser):
    """The exact denoiser behind a gate, which writes down the rows of every batch it is given."""

    def __init__(self) -> None:
        self.exact = exact_denoiser(clusters(3, 4, 0.5))
        self.schedule = self.exact.schedule
        self.prediction_type = self.exact.prediction_type
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """As the class says."""
        self.entered.release()
        assert self.gate.wait(LONG)
        self.batches.append(t.tolist())
        if (t == 13).any():
            raise ValueError("timestep 13")
        return self.exact.native(x, t, condition)

    def condition(self, rows: int) -> Condition:
        """Its only one, for as many rows."""
        return repeat(self.exact.condition(0), rows)


def call(lane: Denoiser, inner: Gated, t: int, rows: int = 2, width: int = 16) -> tuple[Tensor, Tensor]:
    """One call of a lane: what went in and what came out."""
    x = torch.randn(rows, width, dtype=torch.float64)
    return x, lane.native(x, torch.full((rows,), t), inner.condition(rows))


def run_together(batching: BatchingDenoiser, works: list[Callable[[Denoiser], object]]) -> list[object]:
    """Each work in a thread and a lane of its own; all lanes are open before the first call."""
    ready = threading.Barrier(len(works))

    def one(work: Callable[[Denoiser], object]) -> object:
        with batching.lane() as lane:
            ready.wait(LONG)
            return work(lane)

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(LONG) for future in [pool.submit(one, work) for work in works]]


def test_lanes_get_what_they_would_alone() -> None:
    """Rows of several lanes at different timesteps are merged into one pass and come back to their owners."""
    inner, passes = Gated(), []
    batching = BatchingDenoiser(
        inner, max_wait=LONG, on_batch=lambda rows, background, seconds: passes.append((rows, seconds))
    )
    try:
        results = run_together(
            batching, [lambda lane, t=t: (t, *call(lane, inner, t, rows=1 + t % 3)) for t in (5, 250, 700, 999)]
        )
    finally:
        batching.close()
    for t, x, output in results:  # type: ignore[misc]
        alone = inner.exact.native(x, torch.full((len(x),), t), inner.condition(len(x)))
        torch.testing.assert_close(output, alone, rtol=1e-12, atol=1e-12)
    assert [rows for rows, _ in passes] == [sum(1 + t % 3 for t in (5, 250, 700, 999))]
    assert passes[0][1] >= 0
    assert sorted(set(inner.batches[0])) == [5, 250, 700, 999]


def test_a_lane_alone_does_not_wait_for_company() -> None:
    """With one lane open a call is served at once, whatever the longest wait is."""
    inner = Gated()
    batching = BatchingDenoiser(inner, max_wait=LONG)
    try:
        with batching.lane() as lane:
            for t in (1, 2, 3):
                call(lane, inner, t)
    finally:
        batching.close()
    assert [set(batch) for batch in inner.batches] == [{1}, {2}, {3}]


def test_a_closed_lane_is_no_longer_waited_for() -> None:
    """Leaving a lane lets the calls of the others go."""
    inner = Gated()
    batching = BatchingDenoiser(inner, max_wait=LONG)
    try:
        left = threading.Event()

        def leave(lane: Denoiser) -> None:
            left.set()

        def stay(lane: Denoiser) -> None:
            left.wait(LONG)
            call(lane, inner, 4)

        run_together(batching, [leave, stay])
    finally:
        batching.close()
    assert inner.batches == [[4, 4]]


def test_the_longest_wait_is_bounded() -> None:
    """A lane that makes no call holds the others back for no longer than the bound."""
    inner = Gated()
    batching = BatchingDenoiser(inner, max_wait=0.01)
    try:
        with batching.lane(), batching.lane() as busy:
            call(busy, inner, 6)
    finally:
        batching.close()
    assert inner.batches == [[6, 6]]


def test_different_shapes_are_served_apart() -> None:
    """Latents of two sizes, or conditions of two kinds, never share a pass, and both are served."""
    seen: list[tuple[int, ...]] = []

    class Plain(Gated):
        def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            seen.append((*x.shape, len(condition)))
            return x

    batching = BatchingDenoiser(Plain(), max_wait=LONG)

    def work(shape: tuple[int, ...], condition: Condition) -> Callable[[Denoiser], object]:
        return lambda lane: lane.native(torch.ones(2, *shape), torch.zeros(2), condition)

    plain = {"text": torch.zeros(2, 3)}
    try:
        results = run_together(
            batching,
            [
                work((4, 8, 8), plain),
                work((4, 8, 8), plain),
                work((4, 4, 4), plain),
                work((4, 8, 8), {**plain, "pooled": torch.zeros(2, 1)}),
                work((4, 8, 8), {"text": torch.zeros(2, 5)}),
            ],
        )
    finally:
        batching.close()
    shapes = [tuple(result.shape) for result in results if isinstance(result, Tensor)]
    assert shapes == [(2, 4, 8, 8)] * 2 + [(2, 4, 4, 4)] + [(2, 4, 8, 8)] * 2
    assert sorted(seen) == sorted([(4, 4, 8, 8, 1), (2, 4, 4, 4, 1), (2, 4, 8, 8, 2), (2, 4, 8, 8, 1)])


def test_an_error_reaches_only_the_call_that_caused_it() -> None:
    """A batch that fails is tried again call by call."""
    inner = Gated()
    batching = BatchingDenoiser(inner, max_wait=LONG)

    def survive(lane: Denoiser) -> str:
        x, output = call(lane, inner, 40)
        torch.testing.assert_close(output, inner.exact.native(x, torch.full((2,), 40), inner.condition(2)))
        return "served"

    def fail(lane: Denoiser) -> str:
        with pytest.raises(ValueError, match="timestep 13"):
            call(lane, inner, 13)
        call(lane, inner, 41)
        return "raised, and served again"

    try:
        assert run_together(batching, [survive, fail, survive]) == ["served", "raised, and served again", "served"]
    finally:
        batching.close()


def test_a_call_larger_than_a_batch_is_cut_and_joined() -> None:
    """Rows come back in order, in passes of at most the allowed rows."""
    inner = Gated()
    batching = BatchingDenoiser(inner, max_rows=4)
    try:
        with batching.lane() as lane:
            x, output = call(lane, inner, 9, rows=11)
    finally:
        batching.close()
    assert [len(batch) for batch in inner.batches] == [4, 4, 3]
    torch.testing.assert_close(output, inner.exact.native(x, torch.full((11,), 9), inner.condition(11)))


def test_a_failing_piece_ends_its_call() -> None:
    """After the first piece of a large call has failed, the rest of it is not evaluated."""
    inner = Gated()
    batching = BatchingDenoiser(inner, max_rows=4)
    try:
        with batching.lane() as lane, pytest.raises(ValueError, match="timestep 13"):
            call(lane, inner, 13, rows=12)
    finally:
        batching.close()
    assert len(inner.batches) == 1


def test_a_huge_call_does_not_starve_a_small_one() -> None:
    """A small call that arrives while a huge one is served waits for the pass under way and at most one more."""
    inner = Gated()
    inner.gate.clear()
    batching = BatchingDenoiser(inner, max_rows=4, max_wait=0.0)
    try:
        with ThreadPoolExecutor(2) as pool, batching.lane() as huge, batching.lane() as small:
            first = pool.submit(call, huge, inner, 500, 40)
            assert inner.entered.acquire(timeout=LONG)  # its first piece is under way, behind the gate
            second = pool.submit(call, small, inner, 7, 1)
            while True:
                with batching._changed:
                    if any(int(request.t[0]) == 7 for request in batching._waiting):
                        break
                time.sleep(0.001)
            inner.gate.set()
            first.result(LONG)
            second.result(LONG)
    finally:
        batching.close()
    served = next(index for index, batch in enumerate(inner.batches) if 7 in batch)
    assert served <= 2
    assert sum(batch.count(500) for batch in inner.batches) == 40


def test_passes_run_where_they_are_told() -> None:
    """Every forward pass goes through `run`, so that one thread can do all the work of a device."""
    threads = []

    class Asking(Gated):
        def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            threads.append(threading.current_thread().name)
            return super().native(x, t, condition)

    inner = Asking()
    with ThreadPoolExecutor(1, thread_name_prefix="device") as device:
        batching = BatchingDenoiser(inner, run=lambda function: device.submit(function).result())
        try:
            with batching.lane() as lane:
                call(lane, inner, 3)
                call(lane, inner, 4)
        finally:
            batching.close()
    assert threads == ["device_0"] * 2


def test_closing_serves_what_waits_and_refuses_the_rest() -> None:
    """Calls that wait when the denoiser is closed are answered; later ones raise."""
    inner = Gated()
    inner.gate.clear()
    batching = BatchingDenoiser(inner, max_wait=LONG)
    with ThreadPoolExecutor(2) as pool, batching.lane() as lane:
        waiting = pool.submit(call, lane, inner, 8)
        assert inner.entered.acquire(timeout=LONG)
        closing = pool.submit(batching.close)
        inner.gate.set()
        closing.result(LONG)
        waiting.result(LONG)
        with pytest.raises(RuntimeError, match="closed"):
            call(lane, inner, 8)


def test_an_empty_call_is_answered() -> None:
    """No rows in, no rows out."""
    inner = Gated()
    batching = BatchingDenoiser(inner)
    try:
        with batching.lane() as lane:
            assert call(lane, inner, 5, rows=0)[1].shape == (0, 16)
    finally:
        batching.close()
    assert inner.batches == []


def test_the_foreground_goes_first_and_never_starves_the_background() -> None:
    """A call from the background is passed over so often as it may be, and then goes with the next pass."""
    inner, passes = Gated(), []
    batching = BatchingDenoiser(
        inner, max_rows=2, max_wait=0.0, on_batch=lambda rows, background, seconds: passes.append((rows, background))
    )
    calls = MOST_PASSED_OVER + 3
    inner.gate.clear()
    try:
        with ThreadPoolExecutor(calls + 2) as pool, batching.lane(background=True) as behind, batching.lane() as front:
            first = pool.submit(call, front, inner, 1)
            assert inner.entered.acquire(timeout=LONG)
            waiting = [pool.submit(call, behind, inner, 500)]
            arrived(batching, 1)
            for number in range(calls):
                waiting.append(pool.submit(call, front, inner, 100 + number))
                arrived(batching, 2 + number)
            inner.gate.set()
            for future in (first, *waiting):
                future.result(LONG)
    finally:
        batching.close()
    assert [batch[0] for batch in inner.batches].index(500) == 1 + MOST_PASSED_OVER
    assert passes[1 + MOST_PASSED_OVER] == (2, 2)


def test_the_background_fills_no_pass_of_the_foreground() -> None:
    """Rows cost time, which callers would wait for; among themselves calls from the background are merged."""
    inner = Gated()
    batching = BatchingDenoiser(inner, max_wait=0.0)
    inner.gate.clear()
    try:
        with ThreadPoolExecutor(4) as pool, batching.lane(background=True) as behind, batching.lane() as front:
            futures = [pool.submit(call, behind, inner, 1)]
            assert inner.entered.acquire(timeout=LONG)
            for number, (lane, t) in enumerate(((behind, 2), (behind, 3), (front, 4))):
                futures.append(pool.submit(call, lane, inner, t))
                arrived(batching, 1 + number)
            inner.gate.set()
            for future in futures:
                future.result(LONG)
    finally:
        batching.close()
    assert inner.batches == [[1, 1], [4, 4], [2, 2, 3, 3]]


def test_a_straggler_of_the_foreground_is_waited_for() -> None:
    """While the foreground is between two calls, the background begins no pass that it would have to wait for."""
    inner = Gated()
    batching = BatchingDenoiser(inner, max_rows=2, max_wait=LONG)
    try:
        with ThreadPoolExecutor(1) as pool, batching.lane(background=True) as behind:
            with batching.lane() as front:
                waiting = pool.submit(call, behind, inner, 1)
                arrived(batching, 1)
                call(front, inner, 2)
            waiting.result(LONG)
    finally:
        batching.close()
    assert inner.batches == [[2, 2], [1, 1]]


def arrived(batching: BatchingDenoiser, count: int) -> None:
    """Wait until so many calls wait."""
    end = time.monotonic() + LONG
    while len(batching._waiting) < count:
        assert time.monotonic() < end
        time.sleep(0.001)
