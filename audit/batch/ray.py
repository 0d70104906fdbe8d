"""Workers in a Ray cluster: processes with a loaded checkpoint each, and several audits at once in each.

A process that is lost is started anew wherever there is room, and one that there is no room for waits until there is.
Processes of the cluster import this module before anything else of Basin: it must not import torch, whose OpenMP
reads what `service` sets.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import pickle
import signal
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import RayError, RayTaskError

from audit.errors import AuditError, InvalidInput, NotFound, Stopped, WorkerLost
from audit.version import basin_version

if TYPE_CHECKING:
    from audit.batch.runner import Workers
    from audit.batch.tasks import Task
    from audit.report import Report

#: Seconds to wait for an answer from the cluster's address.
PATIENCE = 5.0
#: Seconds between two looks at the nodes of the cluster.
ROUND = 2.0
#: Seconds without an answer of its head after which a cluster is given up; Ray ends the process after sixty.
SILENCE = 30.0
#: Most processes where their number is not given.
MOST_PROCESSES = 128
#: How often all processes may be lost before one of them is ready.
MOST_STARTS = 3


@contextmanager
def connect(address: str) -> Iterator[None]:
    """Be a driver of a Ray cluster that runs already.

    Args:
        address: see `check_address`.

    Raises:
        InvalidInput: the address is none.
        NotFound: there is no cluster, or not one that this machine can use.
    """
    check_address(address)
    try:
        with _own_sigterm():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, RayError, SystemExit) as error:
        raise NotFound(
            f"cannot join the Ray cluster {address}: {error}", reason="RAY_UNREACHABLE", field="ray_address"
        ) from error
    try:
        yield
    finally:
        with _own_sigterm():
            ray.shutdown()


def check_address(address: str) -> None:
    """Whether a Ray cluster can be reached. Ray itself would try for two minutes, and then end the process.

    Args:
        address: HOST:PORT of its head, or "auto" for RAY_ADDRESS or else the cluster that this machine is part of.

    Raises:
        InvalidInput: the address is none.
        NotFound: nobody answers there.
    """
    given = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
    if "://" in given:
        raise InvalidInput(
            "Ray clients are not supported: run the batch on a machine of the cluster, and give HOST:PORT or auto",
            reason="RAY_ADDRESS_INVALID",
            field="ray_address",
        )
    try:
        found = canonicalize_bootstrap_address(given)
    except ConnectionError as error:
        raise NotFound(
            "no Ray cluster runs on this machine: start one with `ray start`, or give its HOST:PORT",
            reason="RAY_UNREACHABLE",
            field="ray_address",
        ) from error
    except ValueError:
        found = None
    if not (found and found.rpartition(":")[2].isdigit() and int(found.rpartition(":")[2]) < 2**16):
        raise InvalidInput(
            f"{given!r} is no address of a Ray cluster: give HOST:PORT or auto",
            reason="RAY_ADDRESS_INVALID",
            field="ray_address",
        )
    try:
        _knock(found)
    except OSError as error:
        raise NotFound(
            f"no Ray cluster answers at {found if given == 'auto' else given}: {error.strerror or error}",
            reason="RAY_UNREACHABLE",
            field="ray_address",
        ) from error


def _knock(address: str) -> None:
    """Raises OSError where nobody listens."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's way to handle SIGTERM.

    Ray's way ends the process, and even where it does not, aborts it three seconds later; when Ray leaves, the
    system's way is what it leaves behind.
    """
    handler = signal.getsignal(signal.SIGTERM)
    libc, kept = ctypes.CDLL(None), ctypes.create_string_buffer(1024)  # larger than any struct sigaction
    libc.sigaction(signal.SIGTERM, None, kept)
    try:
        yield
    finally:
        # Elsewhere Python refuses, and Ray does not try; None is a handler that is not Python's.
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)
        libc.sigaction(signal.SIGTERM, kept, None)


class _Actor:
    """A process of the cluster. Every method runs in a thread of its own."""

    def __init__(self) -> None:
        self._resources = ExitStack()
        self._workers: Workers | None = None

    def open(self, version: str, packed: bytes, threads: int) -> None:
        """Make the workers of this process.

        Args:
            version: of the driver's Basin.
            packed: pickled, what makes the workers; it may mean something else to another version.
            threads: that compute.

        Raises:
            AuditError: it cannot be done here.
        """
        try:
            if version != basin_version():
                raise InvalidInput(f"Basin {basin_version()} is not {version}", reason="VERSION_DIFFERS")
            # Ray sets it, too, but not where it was set when the node was started. Nobody has imported torch yet.
            os.environ["OMP_NUM_THREADS"] = str(threads)
            self._workers = self._resources.enter_context(pickle.loads(packed)())
        except Exception as error:
            at = f"(on the Ray node {ray.util.get_node_ip_address()})"
            if not isinstance(error, AuditError):
                text = f"{type(error).__name__}: {_first_line(error)} {at}"
                raise WorkerLost(text, reason="WORKER_CANNOT_START") from error
            error.args = (f"{error} {at}",)
            raise

    def audit(self, task: Task) -> Report:
        """Do a task."""
        assert self._workers is not None
        return self._workers.submit(task).result()

    def stay(self) -> None:
        """Never return, so that whoever waits for it hears of the end of this process."""
        threading.Event().wait()


@dataclass
class _Process:
    """What the driver knows of an actor.

    Attributes:
        actor: its handle.
        opened: ends when it is ready.
        lost: why it is gone, in words; "" while it is there.
        tasks: that it works on.
    """

    actor: Any
    opened: Future[None]
    lost: str = ""
    tasks: set[Future[Report]] = field(default_factory=set)

    @property
    def was_ready(self) -> bool:
        """Whether it ever was."""
        return self.opened.done() and self.opened.exception() is None

    @property
    def ready(self) -> bool:
        """Whether it takes tasks."""
        return self.was_ready and not self.lost

    def submit(self, task: Task) -> Future[Report]:
        """Begin a task."""
        ended: Future[Report] = Future()
        ended.add_done_callback(self.tasks.discard)
        self.tasks.add(ended)
        answer: Future[Report] = self.actor.audit.remote(task).future()
        answer.add_done_callback(partial(self._pass_on, ended))
        return ended

    def lose(self, gone: Future[Any]) -> None:
        """Note that the actor is gone, as a future of its own tells."""
        self.lost = self.lost or _last_line(gone.exception()) or "it ended"

    def end(self, error: AuditError) -> None:
        """End the actor, and all that it works on with an error."""
        for ended in tuple(self.tasks):
            with suppress(InvalidStateError):
                ended.set_exception(error)
        with suppress(RayError):
            ray.kill(self.actor)

    def _pass_on(self, ended: Future[Report], answer: Future[Report]) -> None:
        error = answer.exception()
        with suppress(InvalidStateError):  # it was ended before
            if error is None:
                ended.set_result(answer.result())
            elif isinstance(error, RayTaskError):
                ended.set_exception(error.cause)
            else:
                self.lose(answer)
                ended.set_exception(WorkerLost(self.lost, reason="WORKER_LOST"))


class RayWorkers:
    """Implements `audit.batch.runner.Workers`. The processes are looked after whenever `lanes` is asked for.

    Args:
        open_workers: makes the workers of one process, in that process; pickled. What it raises ends the batch.
        count: of the processes; 0 for as many as the nodes of the cluster can hold, now and later.
        lanes: tasks that one process works on at once.
        cpus: of every process; the whole ones among them compute, at least one.
        gpus: of every process; processes may share one.
        on_pause: called with the reason while no process is ready, and with "" when one is again.
    """

    def __init__(
        self,
        open_workers: Callable[[], AbstractContextManager[Workers]],
        *,
        count: int,
        lanes: int,
        cpus: float,
        gpus: float,
        on_pause: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._packed = pickle.dumps(open_workers)
        self._count = count
        self._lanes = lanes
        self._needs = {kind: need for kind, need in (("CPU", cpus), ("GPU", gpus)) if need}
        self._threads = max(1, int(cpus))
        self._on_pause = on_pause
        self._actors = ray.remote(_Actor).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_concurrency=lanes + 1,  # one of them stays
            scheduling_strategy="SPREAD",
        )
        self._processes: list[_Process] = []
        self._unready_losses = 0
        self._room = 0
        self._head = ray.get_runtime_context().gcs_address
        self._node = ray.get_runtime_context().get_node_id()
        self._heard = time.monotonic()
        self._looked = -math.inf
        self._reason = ""
        self._stopped = Stopped("the batch was stopped", reason="BATCH_STOPPED")

    @property
    def lanes(self) -> int:
        """See `Workers.lanes`.

        Raises:
            AuditError: a process cannot be made ready, and will never be.
        """
        self._drop_lost()
        if time.monotonic() - self._looked > ROUND:
            self._fit()
        ready = sum(process.ready for process in self._processes)
        if ready:
            self._unready_losses = 0
        self._tell("" if ready else self._waiting())
        return self._lanes * ready

    def submit(self, task: Task) -> Future[Report]:
        """See `Workers.submit`; the process that has least to do begins it."""
        ready = [process for process in self._processes if process.ready]
        if ready:
            return min(ready, key=lambda process: len(process.tasks)).submit(task)
        nobody: Future[Report] = Future()
        nobody.set_exception(self._stopped)
        return nobody

    def stop(self) -> None:
        """See `Workers.stop`; the processes are ended."""
        for process in self._processes:
            process.end(self._stopped)
        self._processes.clear()

    def _drop_lost(self) -> None:
        for process in self._processes:
            error = process.opened.exception() if process.opened.done() else None
            if isinstance(error, RayTaskError):
                raise error.cause
        most = MOST_STARTS * len(self._processes)
        for process in [process for process in self._processes if process.lost]:
            process.end(WorkerLost(process.lost, reason="WORKER_LOST"))
            self._processes.remove(process)
            self._unready_losses += not process.was_ready
            if self._unready_losses >= most:
                raise WorkerLost(
                    f"workers in the Ray cluster end before they are ready: {process.lost}", reason="WORKER_LOST"
                )

    def _fit(self) -> None:
        """Start processes that there may be room for, and give up those that there is no room for any more."""
        self._looked = time.monotonic()
        try:
            _knock(self._head)  # without it, what follows would wait for ever
        except OSError as error:
            if time.monotonic() - self._heard > SILENCE:
                raise WorkerLost(
                    f"the head of the Ray cluster, {self._head}, does not answer any more", reason="RAY_UNREACHABLE"
                ) from error
            return
        self._heard = time.monotonic()
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        if self._node not in nodes:  # with it goes all that this process has started
            raise WorkerLost("this machine is no longer part of the Ray cluster", reason="RAY_UNREACHABLE")
        self._room = sum(
            min(int(node.get(kind, 0) / need + 1e-6) for kind, need in self._needs.items()) for node in nodes.values()
        )
        # One at least, so that Ray's autoscaler knows what is needed.
        wanted = self._count or min(max(self._room, 1), MOST_PROCESSES)
        waiting = [process for process in reversed(self._processes) if not process.opened.done()]
        for process in waiting[: max(0, len(self._processes) - wanted)]:
            process.end(self._stopped)
            self._processes.remove(process)
        while len(self._processes) < wanted:
            self._processes.append(self._start())

    def _start(self) -> _Process:
        actor: Any = self._actors.remote()
        process = _Process(actor, actor.open.remote(basin_version(), self._packed, self._threads).future())
        actor.stay.remote().future().add_done_callback(process.lose)
        return process

    def _waiting(self) -> str:
        if self._room:
            return "waiting for a worker in the Ray cluster"
        needs = " and ".join(f"{need:g} {kind}" for kind, need in self._needs.items())
        return f"no node of the Ray cluster has {needs}"

    def _tell(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            self._on_pause(reason)


def _first_line(error: object) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _last_line(error: object) -> str:
    """Where Ray says why, at length."""
    return textwrap.shorten(str(error).strip().rpartition("\n")[2], 200)
