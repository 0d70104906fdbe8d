"""What surrounds every call of our own services: who calls, ids, log lines, metrics, and errors made into statuses."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from audit.errors import AuditError, InvalidInput, Stopped
from service import audit_log
from service.access import Access, caller, check_scope
from service.audit_log import AuditLog
from service.log import Logger
from service.metrics import Metrics
from service.status import Closed, ShuttingDown, code_of, to_status
from service.tracing import Span, Tracing

#: Packages of the services that are wrapped, as methods name them.
OURS = ("/audit.v1.", "/google.longrunning.")
#: A caller may name a call by this metadata key, so that its log and ours can be matched.
REQUEST_ID = "x-request-id"

#: Seconds. A caller's clock for its deadline starts before ours, by as long as the request takes to arrive; its giving
#: up may then look like a cancellation shortly before the end.
_DEADLINE_SKEW = 0.25

#: Calls that the operator may close.
ADMIN = frozenset(
    (
        "/audit.v1.CheckpointService/LoadCheckpoint",
        "/audit.v1.CheckpointService/UnloadCheckpoint",
        "/audit.v1.BatchService/DeleteBatch",
        "/audit.v1.ReferenceService/DeleteReference",
        "/google.longrunning.Operations/DeleteOperation",
    )
)
NOWHERE = Span()
#: Of the call that is being answered.
span: ContextVar[Span] = ContextVar("span", default=NOWHERE)

Context = grpc.aio.ServicerContext[Any, Any]
Behavior = Callable[[Any, Context], Awaitable[Any]]


class Calls(grpc.aio.ServerInterceptor):
    """Wraps the handlers of our own services; health and reflection are left alone.

    Args:
        logger: of the server.
        metrics: of the server.
        access: decides who may call.
        journal: the audit log.
        tracing: of the server.
        admin: whether calls that load, unload and delete are answered.

    Attributes:
        accepting: set it to False to refuse new calls.
    """

    def __init__(
        self, logger: Logger, metrics: Metrics, access: Access, journal: AuditLog, tracing: Tracing, *, admin: bool
    ) -> None:
        self._logger = logger
        self._metrics = metrics
        self._access = access
        self._journal = journal
        self._tracing = tracing
        self._admin = admin
        self.accepting = True
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_idle(self, seconds: float) -> None:
        """Until no call is in flight, for so long at most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler that would answer, wrapped."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(OURS):
            return handler
        method = handler_call_details.method
        # Requests are parsed in the wrapper, so that bytes that are none fail like every other bad input.
        parse = handler.request_deserializer
        if handler.request_streaming:
            wrapped = self._wrap(
                method, handler.stream_unary, lambda contents, context: _parse_all(contents, parse, context)
            )
            return grpc.stream_unary_rpc_method_handler(wrapped, response_serializer=handler.response_serializer)
        streams = handler.response_streaming
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        behavior = handler.unary_stream if streams else handler.unary_unary
        wrapped = self._wrap(method, behavior, lambda content, context: _parse(content, parse))
        return make(wrapped, response_serializer=handler.response_serializer)

    def _wrap(self, method: str, behavior: Behavior, parse: Callable[[Any, Context], Any]) -> Behavior:
        short = method.rpartition(".")[2]

        async def call(content: Any, context: Context) -> Any:
            metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
            request_id, start = _request_id(metadata), time.perf_counter()
            with self._tracing.call(method[1:], metadata) as own, audit_log.told() as told, self._counted():
                span.set(own)
                traced = {"trace_id": own.trace_id} if own.trace_id else {}
                with structlog.contextvars.bound_contextvars(method=short, request_id=request_id, **traced):

                    def end(code: grpc.StatusCode, error: Exception | None = None) -> None:
                        reason = error.reason if isinstance(error, AuditError) else "" if error is None else "INTERNAL"
                        seconds = time.perf_counter() - start
                        self._metrics.count_rpc(short, code, seconds, reason or code.name)
                        self._log(code, seconds, error)
                        own.end(code.name, reason, told)
                        self._journal.write(
                            method=short,
                            code=code.name,
                            reason=reason,
                            client=caller.get().name,
                            peer=context.peer(),
                            request_id=request_id,
                            **traced,
                            seconds=round(seconds, 4),
                            **told,
                        )

                    try:
                        who = self._access.identify(metadata.get("authorization"), _certificate(context))
                        caller.set(who)  # before anything is refused: the audit log names whom
                        check_scope(method, who)
                        if method in ADMIN and not self._admin:
                            raise Closed("this server answers no such calls", reason="ADMIN_CLOSED")
                        if not self.accepting:
                            raise ShuttingDown()
                        answer = await behavior(parse(content, context), context)
                    except asyncio.CancelledError:
                        end(code_of_cancellation(context))
                        raise
                    except Exception as error:
                        end(code_of(error), error)
                        await context.abort_with_status(rpc_status.to_status(to_status(error, request_id)))
                    else:
                        end(grpc.StatusCode.OK)
                        return answer

        return call

    @contextmanager
    def _counted(self) -> Any:
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    def _log(self, code: grpc.StatusCode, took: float, error: Exception | None = None) -> None:
        seconds = round(took, 4)
        if code is grpc.StatusCode.INTERNAL:
            self._logger.error("call", code=code.name, seconds=seconds, exc_info=error)
        elif isinstance(error, AuditError):
            self._logger.info("call", code=code.name, seconds=seconds, reason=error.reason, field=error.field)
        else:
            self._logger.info("call", code=code.name, seconds=seconds)


def _parse(content: bytes, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(content)
    except DecodeError as error:
        raise InvalidInput("the request is no message of this method", reason="REQUEST_UNREADABLE") from error


async def _parse_all(
    contents: AsyncIterator[bytes], parse: Callable[[bytes], Any], context: Context
) -> AsyncIterator[Any]:
    """The messages of a stream that came to its end.

    Raises:
        Stopped: the caller went away before.
    """
    async for content in contents:
        yield _parse(content, parse)
    # To grpc.aio, a stream that broke off has ended, too. Yet nothing can be sent there any more.
    try:
        await context.send_initial_metadata(())
    except Exception as error:
        raise Stopped("the stream broke off", reason="CANCELLED") from error


async def send(context: Context, message: Any) -> None:
    """Write a message of a stream.

    Raises:
        Stopped: the caller went away meanwhile.
    """
    try:
        await context.write(message)
    except grpc.aio.InternalError as error:  # a write that was under way fails before the call is cancelled
        raise Stopped("the caller went away", reason="CANCELLED") from error


def code_of_cancellation(context: Context) -> grpc.StatusCode:
    """Whether a call that was cancelled had run out of time."""
    left = context.time_remaining()
    late = left is not None and left <= _DEADLINE_SKEW
    return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED


def _certificate(context: Context) -> str:
    """The common name in the client's certificate; "" without one."""
    found = context.auth_context().get("x509_common_name", ())
    return next((name.decode(errors="replace") for name in found), "")


def _request_id(metadata: Mapping[str, str]) -> str:
    given = metadata.get(REQUEST_ID, "")
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else uuid.uuid4().hex
