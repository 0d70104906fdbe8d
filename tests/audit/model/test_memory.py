"""Doing with less memory what did not fit: by failing allocations, and in a process that may have no more."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audit.model.batching import BatchingDenoiser
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser, repeat
from audit.model.memory import in_halves, is_out_of_memory
from tests.audit.makers import clusters, exact_denoiser
from tests.audit.model import scarce

LONG = 60.0


def exhaust() -> None:
    """Ask the CPU's allocator for more than there can be."""
    torch.empty(1 << 60, dtype=torch.uint8)


def raised(function: Callable[[], object]) -> BaseException:
    """What a function raises."""
    with pytest.raises(BaseException) as error:  # noqa: PT011
        function()
    return error.value


def test_which_errors_are_of_memory() -> None:
    """Those of the allocators of devices, CPU and Python, and what oneDNN says instead; no others."""
    assert is_out_of_memory(raised(exhaust))
    assert is_out_of_memory(raised(lambda: bytearray(1 << 62)))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert is_out_of_memory(RuntimeError("could not execute a primitive"))
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))
    assert is_out_of_memory(RuntimeError("posix_memalign failed:Cannot allocate memory (12)"))
    assert not is_out_of_memory(raised(lambda: torch.ones(2) @ torch.ones(3)))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for the convolution"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
    assert not is_out_of_memory(KeyboardInterrupt())


# In halves.


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """Garbage is looked for among what the tests make, not in all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 4))
def test_halves_give_what_the_whole_would(rows: int, fit: int, width: int) -> None:
    """Whatever number of rows fits; in order, and no row twice."""
    x, done = torch.randn(rows, width), []

    def square(part: Tensor) -> Tensor:
        if len(part) > fit:
            exhaust()
        done.extend(part.tolist())
        return part[:, :1] ** 2

    assert torch.equal(in_halves(square, x), x[:, :1] ** 2)
    assert done == x.tolist()


def test_what_fits_is_done_in_one_go() -> None:
    """Also nothing at all."""
    calls = []

    def count(part: Tensor) -> Tensor:
        calls.append(len(part))
        return part

    for rows in (0, 1, 64):
        assert len(in_halves(count, torch.ones(rows, 2))) == rows
    assert calls == [0, 1, 64]


def test_a_row_that_does_not_fit_is_an_error() -> None:
    """The allocator's; nothing is tried for ever."""
    calls = []

    def fail(part: Tensor) -> Tensor:
        calls.append(len(part))
        exhaust()
        return part

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        in_halves(fail, torch.ones(8, 2))
    assert calls == [8, 4, 2, 1]


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("shapes do not match"), KeyboardInterrupt()])
def test_other_errors_are_raised_at_once(error: BaseException) -> None:
    """Without another try."""
    calls = []

    def fail(part: Tensor) -> Tensor:
        calls.append(len(part))
        raise error

    with pytest.raises(type(error)):
        in_halves(fail, torch.ones(8, 2))
    assert calls == [8]


# Batches.


class Tight(Denoiser):
    """The exact denoiser where only so many rows fit; `heavy` timesteps do not fit at all."""

    def __init__(self, fit: int, heavy: int = -1) -> None:
        self.exact = exact_denoiser(clusters(3, 4, 0.5))
        self.schedule = self.exact.schedule
        self.prediction_type = self.exact.prediction_type
        self.fit, self.heavy = fit, heavy

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """As the class says."""
        if len(x) > self.fit or (t == self.heavy).any():
            exhaust()
        return self.exact.native(x, t, condition)

    def call(self, lane: Denoiser, rows: int, t: int) -> None:
        """Rows through a lane, compared with what they should be."""
        x = torch.randn(rows, 16, dtype=torch.float64)
        condition, times = repeat(self.exact.condition(0), rows), torch.full((rows,), t)
        torch.testing.assert_close(
            lane.native(x, times, condition), self.exact.native(x, times, condition), rtol=1e-12, atol=1e-12
        )


def together(batching: BatchingDenoiser, works: list[Callable[[Denoiser], Any]]) -> list[Any]:
    """What each work, in a lane and a thread of its own, returns or raises."""
    ready = threading.Barrier(len(works))

    def one(work: Callable[[Denoiser], Any]) -> Any:
        with batching.lane() as lane:
            ready.wait(LONG)
            return work(lane)

    with ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(one, work) for work in works]
        return [future.exception(LONG) or future.result() for future in futures]


@pytest.mark.parametrize(("fit", "left"), [(100, 64), (64, 64), (63, 32), (20, 16), (3, 2), (1, 1)])
def test_batches_become_as_small_as_they_have_to(fit: int, left: int) -> None:
    """Every lane has its answer, and later batches are of the size that fits."""
    inner, passes = Tight(fit), []
    with closing(
        BatchingDenoiser(inner, max_rows=64, max_wait=LONG, on_batch=lambda rows, *_: passes.append(rows))
    ) as batching:
        assert together(batching, [lambda lane, t=t: inner.call(lane, 16, t) for t in (5, 250, 700, 999)]) == [None] * 4
        assert batching.max_rows == left
        assert sum(passes) == 64
        with batching.lane() as lane:
            inner.call(lane, 70, 9)
        assert batching.max_rows == left
        assert sum(passes) == 134
        assert max(passes) <= fit


@pytest.mark.parametrize("rows", [1, 2, 3, 64])
def test_rows_that_never_fit_are_an_error_of_their_call(rows: int) -> None:
    """In company, too: the others have their answers, and so has whoever comes next."""
    inner = Tight(64, heavy=13)
    with closing(BatchingDenoiser(inner, max_rows=64, max_wait=LONG)) as batching:
        served, error, other = together(
            batching,
            [
                lambda lane: inner.call(lane, 2, 40),
                lambda lane: inner.call(lane, rows, 13),
                lambda lane: inner.call(lane, 3, 41),
            ],
        )
        assert (served, other) == (None, None)
        assert is_out_of_memory(error)
        assert batching.max_rows == 64
        with batching.lane() as lane:
            inner.call(lane, 5, 42)


def test_nothing_fits() -> None:
    """Every call has its error, and none of them waits for ever."""
    inner = Tight(0)
    with closing(BatchingDenoiser(inner, max_rows=64, max_wait=LONG)) as batching:
        errors = together(batching, [lambda lane, t=t: inner.call(lane, 4, t) for t in (5, 250, 700)])
        assert all(is_out_of_memory(error) for error in errors)
        inner.fit = 1
        with batching.lane() as lane:
            inner.call(lane, 5, 42)


# A process that may have no more.


def test_results_do_not_depend_on_memory(checkpoint: Checkpoint) -> None:
    """Batches and decoded images that do not fit are made piece by piece; a row that does not fit is an error."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=scarce.work, args=(theirs,))
    process.start()
    theirs.close()
    try:
        outputs, rows = ours.recv()
        images, decoded = ours.recv()
        refused, after = ours.recv()
        small = ours.recv()
    finally:
        process.kill()
        process.join()
    most = scarce.LANES * scarce.ROWS
    condition = checkpoint.encode_prompts([scarce.PROMPT])
    x, t = scarce.latents(most), scarce.timesteps(most)
    with torch.inference_mode():
        expected = checkpoint.denoiser.native(x, t, repeat(condition, most))
        whole = checkpoint.decode(scarce.latents(scarce.DECODED, 8))
    assert rows < most
    torch.testing.assert_close(torch.from_numpy(outputs), expected, rtol=1e-3, atol=1e-4)
    assert sum(decoded) == scarce.DECODED
    assert len(decoded) > 1
    torch.testing.assert_close(torch.from_numpy(images), whole, rtol=1e-3, atol=1e-4)
    assert refused
    assert after == most
    torch.testing.assert_close(torch.from_numpy(small), expected[:2], rtol=1e-3, atol=1e-4)
