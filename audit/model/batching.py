"""Batching is a denoiser too: rows of concurrent audits, whatever their timesteps, in one forward pass.

Each audit talks to the model through a lane of its own, a plain synchronous `Denoiser`. A dispatcher thread takes
waiting rows from the lanes in turn and evaluates them together. It waits for stragglers only while some lane is
between two calls, and never longer than a bound.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.model.denoiser import Condition, Denoiser, concatenate
from audit.model.memory import free_memory, is_out_of_memory


@dataclass
class _Request:
    """Rows of one lane that wait for their turn."""

    x: Tensor
    t: Tensor
    condition: Condition
    arrived: float
    answer: Future[Tensor]

    @property
    def kind(self) -> tuple[object, ...]:
        """Only requests of the same kind fit into one forward pass."""
        parts = tuple((name, tensor.shape[1:], tensor.dtype) for name, tensor in sorted(self.condition.items()))
        return (self.x.shape[1:], self.x.dtype, parts)


class BatchingDenoiser:
    """Merges the calls of its lanes.

    Args:
        inner: evaluates the merged batches; called by one thread at a time.
        max_rows: most rows in a forward pass. Halved until memory suffices.
        max_wait: seconds that a call may wait for other lanes to join it.
        run: calls a function, e.g. in the thread of the device; every forward pass goes through it.
        on_batch: called after every forward pass with its rows and its seconds.
    """

    def __init__(
        self,
        inner: Denoiser,
        *,
        max_rows: int = 128,
        max_wait: float = 0.005,
        run: Callable[[Callable[[], None]], None] = lambda function: function(),
        on_batch: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        self.inner = inner
        self.max_rows = self._most_rows = max_rows
        self.max_wait = max_wait
        self._on_device = run
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._waiting: list[_Request] = []
        self._lanes = 0
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="basin-batching", daemon=True)
        self._thread.start()

    @contextmanager
    def lane(self) -> Iterator[Denoiser]:
        """The denoiser of one audit, for as long as it runs."""
        with self._changed:
            self._lanes += 1
        try:
            yield _Lane(self)
        finally:
            with self._changed:
                self._lanes -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Finish what waits and end the dispatcher."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def evaluate(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """One lane's call: queue its rows in pieces of at most `max_rows`, wait for all of them."""
        answers = []
        most = self.max_rows
        # One piece at a time, so that a large call does not hold back the other lanes.
        for start in range(0, len(x), most):
            part = slice(start, start + most)
            rows = {name: tensor[part] for name, tensor in condition.items()}
            piece = _Request(x[part], t[part], rows, time.monotonic(), Future())
            with self._changed:
                if self._closed:
                    raise RuntimeError("the denoiser is closed")
                self._waiting.append(piece)
                self._changed.notify_all()
            answers.append(piece.answer.result())
        return torch.cat(answers) if answers else torch.empty_like(x)

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                self._wait_for_company()
                batch = self._take()
            self._run(batch)

    def _wait_for_company(self) -> None:
        """Until every lane waits, the batch is full, or the oldest call has waited long enough."""
        deadline = self._waiting[0].arrived + self.max_wait
        while not self._closed:
            rows = sum(len(request.x) for request in self._waiting)
            left = deadline - time.monotonic()
            if len(self._waiting) >= self._lanes or rows >= self.max_rows or left <= 0:
                return
            self._changed.wait(left)

    def _take(self) -> list[_Request]:
        """The oldest request and those of its kind that fit beside it, in order of arrival."""
        batch: list[_Request] = []
        rest: list[_Request] = []
        kind, rows = self._waiting[0].kind, 0
        for request in self._waiting:
            if request.kind == kind and (not batch or rows + len(request.x) <= self.max_rows):
                batch.append(request)
                rows += len(request.x)
            else:
                rest.append(request)
        self._waiting = rest
        return batch

    def _run(self, batch: list[_Request]) -> None:
        try:
            self._on_device(lambda: self._forward(batch))
            return
        except Exception as error:
            rows = min(self.max_rows, sum(len(request.x) for request in batch))
            scarce = is_out_of_memory(error)
            if len(batch) == 1 and not (scarce and rows > 1):
                if scarce:  # not even one row fits, which says nothing about those of others
                    self.max_rows = self._most_rows
                batch[0].answer.set_exception(error)
                return
        # Outside of the handler, since the error holds on to the frames that hold the memory.
        if scarce and rows > 1:
            self.max_rows = rows // 2
            free_memory()
            self._run(batch)
        else:
            for request in batch:  # each on its own, so that one bad call fails alone
                self._run([request])

    @torch.inference_mode()
    def _forward(self, batch: list[_Request]) -> None:
        x = torch.cat([request.x for request in batch])
        t = torch.cat([request.t for request in batch])
        condition = concatenate([request.condition for request in batch])
        outputs = []
        for first in range(0, len(x), self.max_rows):  # one pass, unless memory has become short
            part = slice(first, first + self.max_rows)
            start = time.perf_counter()
            outputs.append(
                self.inner.native(x[part], t[part], {name: tensor[part] for name, tensor in condition.items()})
            )
            self._on_batch(len(outputs[-1]), time.perf_counter() - start)
        for request, rows in zip(batch, torch.cat(outputs).split([len(r.x) for r in batch]), strict=True):
            request.answer.set_result(rows)


class _Lane(Denoiser):
    """What an audit holds."""

    def __init__(self, batching: BatchingDenoiser) -> None:
        self._batching = batching
        self.schedule = batching.inner.schedule
        self.prediction_type = batching.inner.prediction_type

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self._batching.evaluate(x, t, condition)
