"""The store of batches, asked off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from service.log import Logger
from service.metrics import Metrics
from service.status import StoreDown
from service.store.engine import StoreFailed
from service.threads import lone_threads

#: Questions to the store at once.
QUESTIONS = 4

_T = TypeVar("_T")


class StoreCalls:
    """Calls the store in threads of its own.

    Args:
        metrics: of the server.
        logger: of the server.
    """

    def __init__(self, metrics: Metrics, logger: Logger) -> None:
        self._metrics = metrics
        self._logger = logger
        self._threads = lone_threads(QUESTIONS, "store")

    async def __call__(self, question: Callable[[], _T]) -> _T:
        """The answer to a question.

        Raises:
            StoreDown: the store does not answer; that was counted and logged.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, question)
        except StoreFailed as error:
            self._metrics.store_errors.inc()
            self._logger.error("store of batches", error=str(error))
            raise StoreDown from error

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()
