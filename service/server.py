"""The gRPC server: puts the parts together, starts them, and takes them down again without losing an audit."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading
from collections.abc import Coroutine
from concurrent.futures import Future

import diffusers
import grpc
import torch
import transformers
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from audit.errors import AuditError
from audit.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    batch_pb2,
    batch_pb2_grpc,
    checkpoint_pb2,
    checkpoint_pb2_grpc,
    info_pb2,
    info_pb2_grpc,
    reference_pb2,
    reference_pb2_grpc,
)
from service.access import Access
from service.audit_log import AuditLog
from service.audits import Audits
from service.batch_handlers import BatchHandlers, OperationHandlers
from service.batches import Batches
from service.calls import Calls
from service.checkpoints import CheckpointRegistry
from service.config import ConfigError, Settings
from service.handlers import AuditHandlers, CheckpointHandlers, InfoHandlers
from service.log import Logger, make_logger
from service.metrics import Metrics, MetricsServer
from service.planning import Planner
from service.prompt_sets import PromptSets
from service.quotas import Quotas
from service.reference_handlers import ReferenceHandlers
from service.references import ReferenceRegistry
from service.threads import Devices, lone_threads
from service.tls import Tls
from service.tracing import make_tracing

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (audit_pb2, "AuditService"),
        (checkpoint_pb2, "CheckpointService"),
        (reference_pb2, "ReferenceService"),
        (batch_pb2, "BatchService"),
        (operations_pb2, "Operations"),
        (info_pb2, "InfoService"),
    )
)
#: As metrics name them.
METHODS = tuple(
    f"{service.name}/{method.name}"
    for name in SERVICES
    for service in (descriptor_pool.Default().FindServiceByName(name),)
    for method in service.methods
)
#: Health services of our own. Liveness is there while the process lives, startup once all that is loaded at the start
#: was tried; readiness, like "", while the server can do its work.
LIVENESS, STARTUP, READINESS = "liveness", "startup", "readiness"

MAX_REPLY = 64 * 2**20
#: After so long without a word, and as long without an answer, a connection is given up.
KEEPALIVE_SECONDS = 20.0
#: Calls at once over one connection.
MOST_STREAMS = 1024
#: Answers that are ready when the server stops have this long to reach their callers.
FLUSH_SECONDS = 1.0


class Server:
    """One server, on the event loop that starts it.

    Args:
        settings: all of them.
        logger: where it logs.

    Attributes:
        address: HOST:PORT as bound, once started.
        health_address: of the port for health checks alone; "" where there is none.
        metrics_address: HOST:PORT as bound; "" where there is none.

    Raises:
        ConfigError: a file that the settings name cannot be used.
    """

    def __init__(self, settings: Settings, logger: Logger) -> None:
        self._settings = settings
        self._logger = logger
        self.address = self.health_address = self.metrics_address = ""
        self._metrics = Metrics(settings.all_checkpoints, settings.all_references, METHODS)
        self._loader = lone_threads(1, "loader")
        self._devices = Devices()
        self._checkpoints = CheckpointRegistry(
            settings.all_checkpoints,
            executor=self._loader,
            devices=self._devices,
            metrics=self._metrics,
            logger=logger,
            batch_rows=settings.batch_rows,
            batch_wait_seconds=settings.batch_wait_seconds,
            memory_bytes=settings.checkpoint_memory_bytes,
            on_change=self._refresh,
        )
        self._references = ReferenceRegistry(
            settings.all_references,
            settings.reference_store,
            executor=self._loader,
            devices=self._devices,
            metrics=self._metrics,
            logger=logger,
            on_gone=self._checkpoints.forget_reference,
        )
        planner, quotas = Planner(settings, self._checkpoints, self._references), Quotas(settings.quotas)
        self._audits = Audits(settings, planner, self._checkpoints, quotas, self._metrics)
        self._batches = Batches(settings, planner, self._checkpoints, self._references, quotas, self._metrics, logger)
        self._batch_handlers = BatchHandlers(
            self._batches, planner, PromptSets(settings.prompts), settings.batches.prompts
        )
        self._preloads = {id_ for id_, entry in settings.all_checkpoints.items() if entry.preload}
        self._awaited = set(self._preloads)
        self._journal = AuditLog(settings.audit_log, settings.audit_log_prompts, logger)
        self._tracing = make_tracing(settings.traces, settings.trace_ratio)
        access = Access(settings.auth, logger)
        self._calls = Calls(logger, self._metrics, access, self._journal, self._tracing, admin=settings.admin)
        self._reference_handlers = ReferenceHandlers(self._references, settings, self._metrics)
        self._health = health.aio.HealthServicer()
        self._metrics_server: MetricsServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._grpc: grpc.aio.Server
        self._health_port: grpc.aio.Server | None = None
        #: Set when everything that is loaded at the start was tried.
        self.settled = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether all that the operator asked for was loaded, some checkpoint still is, and calls are accepted."""
        some = not self._preloads or any(map(self._checkpoints.is_loaded, self._checkpoints.ids))
        return self._calls.accepting and not self._awaited and some and self._references.complete

    async def start(self) -> None:
        """Bind the ports, answer calls, and begin to load.

        Raises:
            ConfigError: a port cannot be bound, or the store of batches cannot be used.
        """
        if self._settings.threads:
            torch.set_num_threads(self._settings.threads)
        try:
            await self._batches.start()
        except AuditError as error:
            raise ConfigError(f"batches.store: {error}") from error
        self._grpc = grpc.aio.server(
            interceptors=[self._calls],
            options=(
                ("grpc.so_reuseport", 0),  # or a second server on the same port would take half of the calls
                # An upload over the limit is refused by us, with a reason, unless it is far over it.
                ("grpc.max_receive_message_length", 2 * self._settings.limits.image_bytes + 2**20),
                ("grpc.max_send_message_length", MAX_REPLY),
                # A client whose machine or network is gone says nothing: ask, or its audits would go on for nobody.
                ("grpc.keepalive_time_ms", round(1000 * KEEPALIVE_SECONDS)),
                ("grpc.keepalive_timeout_ms", round(1000 * KEEPALIVE_SECONDS)),
                ("grpc.http2.ping_timeout_ms", round(1000 * KEEPALIVE_SECONDS)),  # or it is a minute
                ("grpc.max_concurrent_streams", MOST_STREAMS),
            ),
        )
        handlers = AuditHandlers(self._audits, self._metrics)
        audit_pb2_grpc.add_AuditServiceServicer_to_server(handlers, self._grpc)
        checkpoints = CheckpointHandlers(self._checkpoints, self._settings)
        checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server(checkpoints, self._grpc)
        reference_pb2_grpc.add_ReferenceServiceServicer_to_server(self._reference_handlers, self._grpc)
        batch_pb2_grpc.add_BatchServiceServicer_to_server(self._batch_handlers, self._grpc)
        operations_pb2_grpc.add_OperationsServicer_to_server(OperationHandlers(self._batches), self._grpc)
        info = InfoHandlers(self._settings, self._checkpoints, self._references)
        info_pb2_grpc.add_InfoServiceServicer_to_server(info, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if self._settings.reflection:
            reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc)
        await self._update_health()
        try:
            await self._bind()
        except ConfigError:
            await self._unbind(None)
            await self._batches.close()
            raise
        self._logger.info("listening", address=self.address, health=self.health_address, metrics=self.metrics_address)
        self._spawn(self._load())

    async def _bind(self) -> None:
        """Begin to answer.

        Raises:
            ConfigError: a port cannot be bound.
        """
        settings, tls = self._settings, None
        if settings.tls.certificate is not None:
            tls = Tls(settings.tls, self._logger)
            self._metrics.watch_certificate(lambda: tls.expires.timestamp())
        self.address = _add_port(self._grpc, "listen", settings.listen, tls)
        await self._grpc.start()
        if settings.health:
            self._health_port = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_port)
            self.health_address = _add_port(self._health_port, "health", settings.health)
            await self._health_port.start()
        if settings.metrics:
            self._metrics_server = MetricsServer(self._metrics, settings.metrics)
            self.metrics_address = self._metrics_server.address

    async def _unbind(self, grace: float | None) -> None:
        for port in (self._grpc, self._health_port):
            if port is not None:
                await port.stop(grace)

    async def drain(self, seconds: float) -> None:
        """Accept no more calls and let those in flight finish; stop those that take longer."""
        self._calls.accepting = False
        self._metrics.draining.set(1)
        self._refresh()
        self._logger.info("draining", seconds=seconds)
        await asyncio.gather(self._audits.drain(seconds), self._batches.pause(), self._calls.wait_idle(seconds))

    async def stop(self) -> None:
        """Take everything down, draining what is left without grace."""
        await self.drain(0)
        await self._calls.wait_idle(FLUSH_SECONDS)
        await self._unbind(FLUSH_SECONDS)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._checkpoints.close()
        await self._batches.close()
        self._audits.close()
        self._reference_handlers.close()
        self._loader.shutdown()
        self._devices.close()
        if self._metrics_server is not None:
            self._metrics_server.close()
        self._journal.close()
        self._tracing.close()
        self._logger.info("stopped")

    async def _load(self) -> None:
        async def load(id_: str) -> None:
            with contextlib.suppress(AuditError):  # it was logged, and the others can still be served
                await self._checkpoints.load(id_)

        # All at once, though one thread loads them: an audit that comes meanwhile learns that it is only early.
        await asyncio.gather(self._references.load(), *map(load, sorted(self._awaited)))
        self.settled.set()
        self._refresh()
        if self._settings.reference_store.folder is not None:
            self._spawn(self._references.watch())
        self._logger.info("ready" if self.ready else "not ready", checkpoints_missing=sorted(self._awaited))

    def _refresh(self) -> None:
        """Something changed that health may depend on."""
        self._batches.look()
        self._awaited -= {id_ for id_ in self._awaited if self._checkpoints.is_loaded(id_)}
        self._spawn(self._update_health())

    async def _update_health(self) -> None:
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        audits, *others = SERVICES
        self._metrics.ready.set(self.ready)
        await self._health.set(LIVENESS, serving)
        await self._health.set(STARTUP, serving if self.settled.is_set() else not_serving)
        for name in ("", READINESS, audits):
            await self._health.set(name, serving if self.ready else not_serving)
        for name in others:
            await self._health.set(name, serving if self._calls.accepting else not_serving)

    def _spawn(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Calls in flight may then finish within the grace period; a second signal stops them.

    Raises:
        ConfigError: a port cannot be bound.
    """
    # Half a million objects of torch and its like never become garbage, yet to look through them takes the collector a
    # third of a second, in which no call is answered.
    gc.freeze()
    logger = make_logger(settings.log_level, settings.log_format)
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    asked, insisted, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    def on_signal() -> None:
        (insisted if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    server = Server(settings, logger)
    await server.start()
    await asked.wait()
    draining = asyncio.create_task(server.drain(settings.grace_seconds))
    impatience = asyncio.create_task(insisted.wait())
    await asyncio.wait((draining, impatience), return_when=asyncio.FIRST_COMPLETED)
    draining.cancel()
    impatience.cancel()
    await server.stop()


def _add_port(server: grpc.aio.Server, setting: str, address: str, tls: Tls | None = None) -> str:
    """HOST:PORT as bound.

    Raises:
        ConfigError: it cannot be bound.
    """
    try:
        credentials = None if tls is None else tls.credentials()
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"{setting}: {address} cannot be bound") from error
    return f"{address.rpartition(':')[0]}:{port}"


class RunningServer:
    """A server in this process, on an event loop and a thread of its own. Made by `start_server`.

    Attributes:
        address: HOST:PORT of gRPC.
        health_address: HOST:PORT of health checks alone; "" where there is none.
        metrics_address: HOST:PORT of /metrics; "" where there is none.
    """

    def __init__(self, settings: Settings, logger: Logger) -> None:
        self._bound: Future[tuple[str, str, str]] = Future()
        self._settled = threading.Event()
        self._settings = settings
        self._logger = logger
        self._grace = 0.0
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._server: Server
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="basin-server", daemon=True)
        self._thread.start()
        self.address, self.health_address, self.metrics_address = self._bound.result()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait for what is loaded at the start; False when some of it could not be loaded, or not in time."""
        return self._settled.wait(timeout) and self._server.ready

    def stop(self, grace: float = 0.0) -> None:
        """Take the server down; calls in flight have `grace` seconds to finish."""
        if self._thread.is_alive():
            self._grace = grace
            with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
                self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    async def _main(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        try:
            self._server = Server(self._settings, self._logger)
            await self._server.start()
        except BaseException as error:
            self._bound.set_exception(error)
            return
        server = self._server
        self._bound.set_result((server.address, server.health_address, server.metrics_address))
        settling = asyncio.create_task(self._settle())
        try:
            await self._stopping.wait()
            await self._server.drain(self._grace)
            await self._server.stop()
        finally:
            settling.cancel()
            self._settled.set()

    async def _settle(self) -> None:
        await self._server.settled.wait()
        self._settled.set()


def start_server(settings: Settings, logger: Logger | None = None) -> RunningServer:
    """Start a server in the background of this process; returns when its ports are bound.

    Args:
        settings: all of them; port 0 takes a free one.
        logger: where it logs; warnings to standard error when None.

    Raises:
        ConfigError: a port cannot be bound.
    """
    return RunningServer(settings, logger or make_logger("warning", settings.log_format))
