"""Batching is a denoiser too: rows of concurrent audits, whatever their timesteps, in one forward pass.

Each audit talks to the model through a lane of its own, a plain synchronous `Denoiser`. A dispatcher thread takes
waiting rows from the lanes in turn and evaluates them together. It waits for stragglers only while some lane is
between two calls, and never longer than a bound.

Lanes in the background, which nobody waits for, come after the others: while the others have rows to evaluate, calls
from the background are passed over, but only so often.
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

from audit.model.denoiser import Condition, Denoiser, concatenate, kind_of_rows
from audit.model.memory import free_memory, is_out_of_memory

#: Forward passes that a call from the background lets go first.
MOST_PASSED_OVER = 8


@dataclass
class _Request:
    """Rows of one lane that wait for their turn."""

    x: Tensor
    t: Tensor
    condition: Condition
    background: bool
    arrived: float
    answer: Future[Tensor]
    passed_over: int = 0

    @property
    def kind(self) -> tuple[object, ...]:
        """Only requests of the same kind fit into one forward pass."""
        return kind_of_rows(self.x, self.condition)

    @property
    def waits_behind(self) -> bool:
        """Whether calls of the foreground go first."""
        return self.background and self.passed_over < MOST_PASSED_OVER


class BatchingDenoiser:
    """Merges the calls of its lanes.

    Args:
        inner: evaluates the merged batches; called by one thread at a time.
        max_rows: most rows in a forward pass. Halved until memory suffices.
        max_wait: seconds that a call may wait for other lanes to join it.
        run: calls a function, e.g. in the thread of the device; every forward pass goes through it.
        on_batch: called after every forward pass with its rows, how many of them are of the background, and its
            seconds.
    """

    def __init__(
        self,
        inner: Denoiser,
        *,
        max_rows: int = 128,
        max_wait: float = 0.005,
        run: Callable[[Callable[[], None]], None] = lambda function: function(),
        on_batch: Callable[[int, int, float], None] = lambda rows, background, seconds: None,
    ) -> None:
        self.inner = inner
        self.max_rows = self._most_rows = max_rows
        self.max_wait = max_wait
        self._on_device = run
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._waiting: list[_Request] = []
        #: Open lanes of the foreground and of the background.
        self._lanes = {False: 0, True: 0}
        self._last_pass = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="basin-batching", daemon=True)
        self._thread.start()

    @contextmanager
    def lane(self, *, background: bool = False) -> Iterator[Denoiser]:
        """The denoiser of one audit, for as long as it runs.

        Args:
            background: whether lanes of the foreground go first.
        """
        with self._changed:
            self._lanes[background] += 1
        try:
            yield _Lane(self, background)
        finally:
            with self._changed:
                self._lanes[background] -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Finish what waits and end the dispatcher."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def evaluate(self, x: Tensor, t: Tensor, condition: Condition, background: bool) -> Tensor:
        """One lane's call: queue its rows in pieces of at most `max_rows`, wait for all of them."""
        answers = []
        most = self.max_rows
        # One piece at a time, so that a large call does not hold back the other lanes.
        for start in range(0, len(x), most):
            part = slice(start, start + most)
            rows = {name: tensor[part] for name, tensor in condition.items()}
            piece = _Request(x[part], t[part], rows, background, time.monotonic(), Future())
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
            self._last_pass = time.monotonic()

    def _wait_for_company(self) -> None:
        """Until every lane that counts waits, the batch is full, or the oldest call has waited long enough."""
        while not self._closed:
            front = [request for request in self._waiting if not request.background]
            group = front or self._waiting
            since = group[0].arrived
            complete = len(group) >= self._lanes[not front] or sum(len(call.x) for call in group) >= self.max_rows
            if not front and self._lanes[False]:  # the foreground is between two calls, and one may come at once
                since, complete = max(since, self._last_pass), False
            left = since + self.max_wait - time.monotonic()
            if complete or left <= 0:
                return
            self._changed.wait(left)

    def _take(self) -> list[_Request]:
        """The first request and those of its kind that fit beside it: the foreground first, in order of arrival.

        The background fills no room that the foreground leaves, since rows cost time; it has passes of its own.
        """
        batch: list[_Request] = []
        rest: list[_Request] = []
        first = min(self._waiting, key=lambda request: request.waits_behind)
        rows = 0
        for request in self._waiting:
            fits = not batch or rows + len(request.x) <= self.max_rows
            if request.kind == first.kind and request.waits_behind is first.waits_behind and fits:
                batch.append(request)
                rows += len(request.x)
            else:
                rest.append(request)
                request.passed_over += 1
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
        background = [request.background for request in batch for _ in request.x]
        outputs = []
        for first in range(0, len(x), self.max_rows):  # one pass, unless memory has become short
            part = slice(first, first + self.max_rows)
            start = time.perf_counter()
            outputs.append(
                self.inner.native(x[part], t[part], {name: tensor[part] for name, tensor in condition.items()})
            )
            self._on_batch(len(outputs[-1]), sum(background[part]), time.perf_counter() - start)
        for request, rows in zip(batch, torch.cat(outputs).split([len(r.x) for r in batch]), strict=True):
            request.answer.set_result(rows)


class _Lane(Denoiser):
    """What an audit holds."""

    def __init__(self, batching: BatchingDenoiser, background: bool) -> None:
        self._batching = batching
        self._background = background
        self.schedule = batching.inner.schedule
        self.prediction_type = batching.inner.prediction_type

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self._batching.evaluate(x, t, condition, self._background)
