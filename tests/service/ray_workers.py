"""Workers without a checkpoint, for processes of a Ray cluster: what they do is what the prompt of a task says."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import ray

from audit.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from audit.batch.tasks import Task  # which imports torch


def _where() -> tuple[str, int]:
    return ray.get_runtime_context().get_node_id(), os.getpid()


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _refuse() -> None:
    raise InvalidInput("the prompt is empty", reason="PROMPT_EMPTY", field="prompt")


def _fail() -> None:
    raise RuntimeError("not enough of something")


DEEDS = {
    "where": _where,
    "threads": _threads,
    "wait": threading.Event().wait,
    "refuse": _refuse,
    "fail": _fail,
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


class _Deeds:
    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def submit(self, task: Task) -> Future[Any]:
        return self._pool.submit(DEEDS[task.prompt])


@contextmanager
def deeds() -> Iterator[_Deeds]:
    """Workers that wait, fail or die as they are told."""
    with ThreadPoolExecutor(8) as pool:
        yield _Deeds(pool)


def fatal() -> AbstractContextManager[_Deeds]:
    """No workers: the process dies."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def missing() -> AbstractContextManager[_Deeds]:
    """No workers: what they need is not there."""
    raise NotFound("no checkpoint folder 'gone'", reason="CHECKPOINT_NOT_FOUND", field="checkpoint")


def short() -> AbstractContextManager[_Deeds]:
    """No workers: something else is wrong."""
    raise MemoryError("not enough of it\nby far")
