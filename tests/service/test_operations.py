"""Batches as google.longrunning.Operations."""

from __future__ import annotations

import time

import grpc
from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from audit.v1 import batch_pb2
from tests.service.batch_calls import cancel, create, ended, endless, get, given, id_of, listed, slow, spec
from tests.service.helpers import LONG, SERVING, Client, failure


def _get(client: Client, id_: str) -> operations_pb2.Operation:
    return client.operations.GetOperation(operations_pb2.GetOperationRequest(name=f"operations/{id_}"), timeout=LONG)


def _wait(client: Client, id_: str, seconds: float | None, deadline: float = LONG) -> operations_pb2.Operation:
    request = operations_pb2.WaitOperationRequest(name=f"operations/{id_}")
    if seconds is not None:
        request.timeout.CopyFrom(Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9)))
    return client.operations.WaitOperation(request, timeout=deadline)


def test_an_operation_is_its_batch(batch_client: Client) -> None:
    """While it runs, its metadata tells how far it is; when it is done, its response is the batch."""
    request = batch_pb2.CreateBatchRequest(spec=slow(), prompts=given(f"operated {number}" for number in range(4)))
    operation = batch_client.batches.CreateBatch(request, timeout=LONG)
    id_ = id_of(operation)
    assert not operation.done
    assert operation.WhichOneof("result") is None
    progress = batch_pb2.BatchProgress()
    assert operation.metadata.Unpack(progress)
    assert (progress.state, progress.prompts, progress.open) == (batch_pb2.BATCH_STATE_RUNNING, 4, 4)
    last = _wait(batch_client, id_, None)
    assert last.done
    assert last == _get(batch_client, id_)
    assert last.metadata.Unpack(progress)
    assert (progress.state, progress.open) == (batch_pb2.BATCH_STATE_DONE, 0)
    batch = batch_pb2.Batch()
    assert last.response.Unpack(batch)
    assert batch == get(batch_client, id_)
    assert batch.outcomes


def test_waiting_ends_with_its_timeout(batch_client: Client) -> None:
    """Then the operation is told as it stands, also shortly before the caller's own deadline; none waits for ever."""
    id_ = create(batch_client, ["waited for"], endless())
    for seconds, deadline in ((0.0, LONG), (0.6, LONG), (-5.0, LONG), (LONG, 2.0), (None, 2.0)):
        start = time.monotonic()
        assert not _wait(batch_client, id_, seconds, deadline).done
        assert time.monotonic() - start >= min(seconds or 0.0, 1.0) - 0.1
    cancel(batch_client, id_)
    assert _wait(batch_client, id_, None).done
    assert _wait(batch_client, id_, 0).done


def test_a_cancelled_operation(batch_client: Client) -> None:
    """Its error says so; cancelling it again is no error, as AIP-151 has it."""
    id_ = create(batch_client, ["cancelled"], endless())
    name = f"operations/{id_}"
    for _ in range(2):
        batch_client.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=name), timeout=LONG)
        operation = _get(batch_client, id_)
        assert operation.done
        assert operation.WhichOneof("result") == "error"
        assert operation.error.code == code_pb2.CANCELLED
        assert operation.error.message
        assert id_of(operation) == id_
    assert get(batch_client, id_).progress.state == batch_pb2.BATCH_STATE_CANCELLED


def test_deleting_an_operation(batch_client: Client) -> None:
    """It deletes the batch, once that has ended."""
    id_ = create(batch_client, ["deleted"], endless())
    request = operations_pb2.DeleteOperationRequest(name=f"operations/{id_}")
    refused = failure(lambda: batch_client.operations.DeleteOperation(request, timeout=LONG))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BATCH_NOT_ENDED")
    cancel(batch_client, id_)
    batch_client.operations.DeleteOperation(request, timeout=LONG)
    assert failure(lambda: _get(batch_client, id_)).code is grpc.StatusCode.NOT_FOUND
    assert id_ not in listed(batch_client)


def test_operations_are_listed_like_batches(batch_client: Client) -> None:
    """All of them, the newest first, in pages."""
    ended(batch_client, create(batch_client, ["listed"], spec()))
    names, request = [], operations_pb2.ListOperationsRequest(name="operations", page_size=3)
    while True:
        page = batch_client.operations.ListOperations(request, timeout=LONG)
        assert len(page.operations) <= 3
        names += [operation.name for operation in page.operations]
        assert all(operation.done for operation in page.operations)
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert names == [f"operations/{id_}" for id_ in listed(batch_client)]


def test_the_services_are_told_of(batch_client: Client) -> None:
    """By reflection, with all that their messages take, and by their health."""
    database = ProtoReflectionDescriptorDatabase(batch_client.channel)
    for package, name in (("audit.v1", "BatchService"), ("google.longrunning", "Operations")):
        assert f"{package}.{name}" in database.get_services()
        assert name in database.FindFileContainingSymbol(f"{package}.{name}").service[0].name
        assert batch_client.health(f"{package}.{name}") == SERVING
    described = database.FindFileContainingSymbol("google.longrunning.Operation")
    assert described.name == operations_pb2.DESCRIPTOR.name
