"""Threads of a server: one for every device, which computes, and many that do not.

libgomp's threads spin only while there are no more of them than cores, and every thread that enters a parallel region
gets a team of its own. Teams of idle audits would so slow the forward passes by an eighth. Hence all computation on a
device happens in its one thread, first come, first served, and the other threads stay alone.

So must whichever thread loads a checkpoint and then waits: a team that it had while it loaded counts until it ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

_T = TypeVar("_T")


class Devices:
    """The threads of the devices, by name of the device; each is started when it is first needed."""

    def __init__(self) -> None:
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._lock = threading.Lock()

    def run(self, device: str, function: Callable[[], _T]) -> _T:
        """Call a function in the thread of a device, and wait for it. Not for functions that call this again."""
        with self._lock:
            thread = self._threads.get(device)
            if thread is None:
                thread = self._threads[device] = ThreadPoolExecutor(1, thread_name_prefix=f"basin-{device}")
        return thread.submit(function).result()

    def close(self) -> None:
        """End the threads. No call may be left."""
        for thread in self._threads.values():
            thread.shutdown()


def lone_threads(count: int, name: str) -> ThreadPoolExecutor:
    """So many threads that never get a team of OpenMP's."""
    return ThreadPoolExecutor(count, thread_name_prefix=f"basin-{name}", initializer=_stay_alone)


@contextmanager
def alone() -> Iterator[None]:
    """In here, this thread gets no team of OpenMP's."""
    with _stay_alone():
        yield


def _stay_alone() -> threadpool_limits:
    torch.get_num_threads()  # torch sets the number itself when a thread first asks for it
    return threadpool_limits(1, user_api="openmp")
