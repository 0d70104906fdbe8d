"""BatchService of batch.proto, and google.longrunning.Operations for the same batches."""

# ruff: noqa: N802 - the .proto files name the methods

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2

from audit.errors import AuditError, InvalidInput, NotFound
from audit.v1 import batch_pb2, batch_pb2_grpc
from service.audit_log import tell
from service.batch_wire import OPERATIONS, about, extra_of, operation_of, prompt_to_proto, text_of
from service.batches import Batches, check_request_id
from service.calls import Context, send
from service.planning import Planner
from service.prompt_sets import PromptSets
from service.prompts import PromptEntry
from service.status import QueueFull
from service.streams import headed

#: Of the prompts of a batch with what is carried with them, and batches that are taken in at once.
MOST_BYTES = 256 * 2**20
MOST_INTAKES = 8
#: Seconds between two looks at an operation that somebody waits for.
GLANCE = 0.25
#: Seconds before a caller's deadline at which a wait ends: at the deadline itself, no answer would arrive any more.
SLACK = 1.0


class BatchHandlers(batch_pb2_grpc.BatchServiceServicer):
    """Batches.

    Args:
        batches: of the server.
        planner: of the server.
        prompt_sets: of the server.
        most: prompts in a batch.
    """

    def __init__(self, batches: Batches, planner: Planner, prompt_sets: PromptSets, most: int) -> None:
        self._batches = batches
        self._planner = planner
        self._prompt_sets = prompt_sets
        self._most = most
        self._intakes = 0

    async def CreateBatch(self, request: batch_pb2.CreateBatchRequest, context: Context) -> operations_pb2.Operation:
        """Take a batch in."""
        source = request.WhichOneof("source")
        if source is None:
            raise InvalidInput("give prompts or name a prompt set", reason="PROMPTS_REQUIRED", field="prompts")
        with self._intake(request.spec) as intake:
            if source == "prompts":
                take = partial(intake.add, request.prompts.prompts, source)
            else:
                take = partial(intake.add_set, self._prompt_sets, request.prompt_set)
            return await self._take_in(intake, take, request.request_id)

    async def UploadBatch(
        self, request_iterator: AsyncIterator[batch_pb2.UploadBatchRequest], context: Context
    ) -> operations_pb2.Operation:
        """Take a batch in, whose prompts come piece by piece."""
        with ExitStack() as resources:
            async for request in headed(request_iterator):
                if request.HasField("header"):
                    header = request.header
                    intake = resources.enter_context(self._intake(header.spec))
                else:
                    await asyncio.to_thread(intake.add, request.prompts.prompts, "prompts")
            return await self._take_in(intake, lambda: None, header.request_id)

    async def GetBatch(self, request: batch_pb2.GetBatchRequest, context: Context) -> batch_pb2.GetBatchResponse:
        """Tell how one stands."""
        return batch_pb2.GetBatchResponse(batch=await self._batches.describe(_required(request.batch)))

    async def ListBatches(
        self, request: batch_pb2.ListBatchesRequest, context: Context
    ) -> batch_pb2.ListBatchesResponse:
        """List them."""
        batches, token = await self._batches.list(request)
        return batch_pb2.ListBatchesResponse(batches=batches, next_page_token=token)

    async def CancelBatch(
        self, request: batch_pb2.CancelBatchRequest, context: Context
    ) -> batch_pb2.CancelBatchResponse:
        """End one."""
        return batch_pb2.CancelBatchResponse(batch=await self._batches.cancel(_required(request.batch)))

    async def DeleteBatch(
        self, request: batch_pb2.DeleteBatchRequest, context: Context
    ) -> batch_pb2.DeleteBatchResponse:
        """Delete one."""
        await self._batches.delete(_required(request.batch))
        return batch_pb2.DeleteBatchResponse()

    # As StreamAudit: writing to the context ends at once when the caller goes away.
    async def StreamBatchResults(  # type: ignore[override]
        self, request: batch_pb2.StreamBatchResultsRequest, context: Context
    ) -> None:
        """Stream what was found."""
        _required(request.batch)
        async for result in self._batches.results(request):
            await send(context, result)

    @contextmanager
    def _intake(self, spec: batch_pb2.BatchSpec) -> Iterator[_Intake]:
        """Room for the prompts of a request.

        Raises:
            QueueFull: as many others are taken in as may be.
        """
        if self._intakes == MOST_INTAKES:
            raise QueueFull(f"{MOST_INTAKES} batches are being taken in", reason="TOO_MANY_INTAKES", retry_seconds=5.0)
        self._intakes += 1
        try:
            yield _Intake(self._planner, self._most, spec)
        finally:
            self._intakes -= 1

    async def _take_in(self, intake: _Intake, take: Callable[[], None], request_id: str) -> operations_pb2.Operation:
        """Take a batch in, or answer as before where the same request can no longer be served."""
        check_request_id(request_id)
        try:
            await asyncio.to_thread(take)
            batch = await self._batches.take_in(intake.spec, intake.entries, request_id, intake.request)
        except AuditError:
            if (known := await self._batches.repeated(request_id, intake.request)) is None:
                raise
            batch = known
        tell(batch=batch.id)
        return operation_of(batch)


class _Intake:
    """The prompts of a request, as they come.

    Args:
        planner: of the server.
        most: prompts.
        spec: of the batch.

    Attributes:
        spec: of the batch.
        entries: so far.
    """

    def __init__(self, planner: Planner, most: int, spec: batch_pb2.BatchSpec) -> None:
        self.spec = spec
        self.entries: list[PromptEntry] = []
        self._planner = planner
        self._most = most
        self._bytes = 0
        self._digest = hashlib.sha256(spec.SerializeToString(deterministic=True))

    @property
    def request(self) -> str:
        """Digest of what was asked for so far."""
        return self._digest.hexdigest()

    def add(self, prompts: Iterable[batch_pb2.BatchPrompt], field: str) -> None:
        """Take prompts in. Takes a while: run it in a thread.

        Raises:
            InvalidInput: there are too many, or one is empty, too long or cannot be kept.
        """
        for prompt in prompts:
            self._hash(prompt.SerializeToString(deterministic=True))
            self._add(prompt, field)

    def add_set(self, sets: PromptSets, name: str) -> None:
        """As if the prompts of a set had come with the request.

        Raises:
            InvalidInput: as `add`.
            NotFound, BrokenPrompts: there is no set of that name, or it cannot be read.
        """
        self._hash(b"set " + name.encode())
        for position, entry in enumerate(sets.entries(name)):
            with about(f"prompt_set[{position}]"):
                message = prompt_to_proto(entry.prompt, entry.extra)
            self._add(message, "prompt_set")

    def _hash(self, part: bytes) -> None:
        self._digest.update(len(part).to_bytes(8, "little") + part)

    def _add(self, prompt: batch_pb2.BatchPrompt, field: str) -> None:
        self._bytes += prompt.ByteSize()
        if len(self.entries) == self._most:  # before they fill the memory
            raise InvalidInput(
                f"more than the {self._most:,} prompts that this server allows", reason="TOO_MANY_PROMPTS", field=field
            )
        if self._bytes > MOST_BYTES:
            raise InvalidInput(
                f"prompts and what is carried with them are more than {MOST_BYTES >> 20} MiB",
                reason="PROMPTS_TOO_LARGE",
                field=field,
            )
        place = f"{field}[{len(self.entries)}]"
        with about(place):
            self._planner.check_prompt(text_of(prompt.prompt, f"{place}.prompt"), f"{place}.prompt")
            self.entries.append(PromptEntry(prompt.prompt, extra_of(prompt, f"{place}.extra")))


class OperationHandlers(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]  # google's has no types
    """Batches as long-running operations (AIP-151).

    Args:
        batches: of the server.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        """List them; filters are those of ListBatches."""
        if request.name not in ("", OPERATIONS.rstrip("/")):
            raise NotFound(f"there is no collection {request.name[:64]!r}", reason="NAME_UNKNOWN", field="name")
        if request.filter:
            raise InvalidInput("operations have no filter: see ListBatches", reason="FILTER_UNKNOWN", field="filter")
        asked = batch_pb2.ListBatchesRequest(page_size=request.page_size, page_token=request.page_token)
        batches, token = await self._batches.list(asked)
        return operations_pb2.ListOperationsResponse(
            operations=[operation_of(batch) for batch in batches], next_page_token=token
        )

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """Tell how one stands."""
        return operation_of(await self._batches.describe(_id_of(request.name)))

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, context: Context
    ) -> empty_pb2.Empty:
        """End one."""
        await self._batches.cancel(_id_of(request.name))
        return empty_pb2.Empty()

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, context: Context
    ) -> empty_pb2.Empty:
        """Delete one."""
        await self._batches.delete(_id_of(request.name))
        return empty_pb2.Empty()

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """Wait until one is done, or for as long as the caller says; then tell how it stands."""
        seconds = request.timeout.seconds + request.timeout.nanos / 1e9 if request.HasField("timeout") else float("inf")
        left = context.time_remaining()
        end = time.monotonic() + min(seconds, float("inf") if left is None else left - SLACK)
        while True:
            operation = operation_of(await self._batches.describe(_id_of(request.name)))
            if operation.done or time.monotonic() >= end:
                return operation
            await self._batches.sleep(GLANCE)


def _id_of(name: str) -> str:
    if not name.startswith(OPERATIONS) or name == OPERATIONS:
        raise InvalidInput(f"an operation's name is {OPERATIONS}ID", reason="NAME_INVALID", field="name")
    return _asked(name.removeprefix(OPERATIONS), "name")


def _required(batch: str) -> str:
    if not batch:
        raise InvalidInput("batch is empty", reason="BATCH_REQUIRED", field="batch")
    return _asked(batch, "batch")


def _asked(id_: str, field: str) -> str:
    """The id of a batch that a call is about, which the audit log tells."""
    tell(batch=id_[:64])
    return text_of(id_, field)
