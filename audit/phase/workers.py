"""Independent jobs on worker processes of one thread each.

Small networks use a second core badly: two processes of one thread do more than one of two (docs/benchmarks/training.md
has the numbers). A worker ends with its parent, whatever ended that.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from audit.errors import WorkerLost
from audit.progress import progress_bar

#: Called by a job with the share of it that is done, in [0, 1].
Report = Callable[[float], None]

#: Parts that a progress bar counts.
_PARTS = 1000


@dataclass(frozen=True)
class Job:
    """Work that needs no other job of its batch.

    Attributes:
        name: for people.
        weight: about its floating-point operations, for the progress bar and for the queue: the heaviest goes first.
        function: picklable; called with a `Report` and the device.
    """

    name: str
    weight: float
    function: Callable[[Report, str], None]


def default_devices() -> tuple[str, ...]:
    """One worker per GPU, or else one per core."""
    if torch.cuda.is_available():
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    return ("cpu",) * len(os.sched_getaffinity(0))


def run_jobs(title: str, jobs: Sequence[Job], devices: Sequence[str]) -> None:
    """Run all jobs, as many at a time as there are devices, with one progress bar for all.

    Args:
        title: of the bar.
        jobs: any number.
        devices: one worker process each; "cpu" may stand there several times.

    Raises:
        WorkerLost: a worker was killed.
        Exception: whatever a job raises, once the others have stopped; a RuntimeError that says the same where the
            exception cannot be sent from one process to another.
    """
    if not jobs:
        return
    jobs = sorted(jobs, key=lambda job: -job.weight)
    context = multiprocessing.get_context("spawn")
    shares = context.Array("d", len(jobs), lock=False)  # of every job that is done
    free: Any = context.Queue()
    for device in devices:
        free.put(device)
    weights = [job.weight for job in jobs]
    pool = ProcessPoolExecutor(
        min(len(devices), len(jobs)), mp_context=context, initializer=_start, initargs=(shares, free)
    )
    with progress_bar() as bar, _ended(pool):
        task = bar.add_task(title, total=_PARTS, note="")
        try:
            with _interrupts_held():
                futures = [pool.submit(_run, index, job.function) for index, job in enumerate(jobs)]
                # A submission tells the pool to watch its processes, and starts another one only then: one more for
                # the last.
                pool.submit(bool).cancel()
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.25, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                total = sum(share * weight for share, weight in zip(shares, weights, strict=True))
                bar.update(
                    task,
                    completed=int(_PARTS * total / sum(weights)),
                    note=f"{len(futures) - len(pending)} of {len(futures)} jobs",
                )
            bar.update(task, completed=_PARTS)
        except BrokenProcessPool as error:
            raise WorkerLost(
                "a worker process was killed (out of memory?); run the same command again, nothing is done twice",
                reason="WORKER_LOST",
            ) from error


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C is heard when this ends; processes that are started meanwhile never hear it: their parent ends them."""
    held: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by processes
    # Another thread may still hear it, and Python then calls the handler in this one.
    handler = signal.signal(signal.SIGINT, lambda number, frame: held.append(number)) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if held:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _ended(pool: ProcessPoolExecutor) -> Iterator[None]:
    """No worker outlives this. After a failure they are killed: what they write is whole or not there."""
    try:
        yield
    except BaseException:
        with _interrupts_held():
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


_shares: Any = None
_device = "cpu"


def _start(shares: Any, free: Any) -> None:
    global _shares, _device
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _shares, _device = shares, free.get()
    os.environ["OMP_NUM_THREADS"] = "1"  # of libraries that are loaded later
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A worker that waits for its next job would never learn that there is none."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(index: int, function: Callable[[Report, str], None]) -> None:
    def report(share: float) -> None:
        _shares[index] = share

    try:
        report(0.0)
        function(report, _device)
        report(1.0)
    except Exception as error:
        if _travels(error):
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _travels(error: Exception) -> bool:
    """Whether an exception can be unpickled; one that cannot would look like a lost worker."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True
