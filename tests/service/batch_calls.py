"""What tests ask of a server's batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.json_format import ParseDict

from audit.v1 import audit_pb2, batch_pb2, checkpoint_pb2
from tests.service.helpers import LONG, Client, eventually

_unused = itertools.count(10_000, 1000)


def spec(*checkpoints: str, seeds: int = 2, steps: int = 2, **fields: Any) -> batch_pb2.BatchSpec:
    """Audits of `SMALL` evaluations, with noise seeds that no other batch has, so that no answer is known before."""
    made = batch_pb2.BatchSpec(
        checkpoints=checkpoints or ["demo"],
        sampler=audit_pb2.SamplerOptions(steps=steps, guidance=1.0),
        budget=audit_pb2.BudgetOptions(seeds=seeds, minimum_seeds=seeds, first_seed=next(_unused), curvature="off"),
    )
    made.MergeFrom(batch_pb2.BatchSpec(**fields))
    return made


def slow(*checkpoints: str, **fields: Any) -> batch_pb2.BatchSpec:
    """Audits that take long enough for something to happen meanwhile."""
    return spec(*checkpoints, seeds=4, steps=25, **fields)


def endless(*checkpoints: str, **fields: Any) -> batch_pb2.BatchSpec:
    """Audits that take far longer than their test, which has to cancel them."""
    return spec(*checkpoints, seeds=64, steps=900, **fields)


def given(prompts: Iterable[str], extra: dict[str, Any] | None = None) -> batch_pb2.BatchPrompts:
    """Prompts, each with the same beside it."""
    made = batch_pb2.BatchPrompts(prompts=[batch_pb2.BatchPrompt(prompt=prompt) for prompt in prompts])
    for prompt in made.prompts:
        if extra is not None:
            ParseDict(extra, prompt.extra)
    return made


def create(client: Client, prompts: Iterable[str], how: batch_pb2.BatchSpec | None = None, **fields: Any) -> str:
    """The id of a batch that was taken in with its request."""
    request = batch_pb2.CreateBatchRequest(spec=how or spec(), prompts=given(prompts), **fields)
    return id_of(client.batches.CreateBatch(request, timeout=LONG))


def upload(client: Client, parts: Iterable[batch_pb2.UploadBatchRequest]) -> str:
    """The id of a batch that was taken in piece by piece."""
    return id_of(client.batches.UploadBatch(iter(parts), timeout=LONG))


def parts_of(
    how: batch_pb2.BatchSpec, prompts: Sequence[str], at_once: int = 10, request_id: str = ""
) -> Iterator[batch_pb2.UploadBatchRequest]:
    """The messages of an upload."""
    yield batch_pb2.UploadBatchRequest(header=batch_pb2.UploadBatchHeader(spec=how, request_id=request_id))
    for start in range(0, len(prompts), at_once):
        yield batch_pb2.UploadBatchRequest(prompts=given(prompts[start : start + at_once]))


def id_of(operation: operations_pb2.Operation) -> str:
    """The id of an operation's batch, which its name and its metadata both tell."""
    progress = batch_pb2.BatchProgress()
    assert operation.metadata.Unpack(progress)
    assert operation.name == f"operations/{progress.batch}"
    return progress.batch


def get(client: Client, id_: str) -> batch_pb2.Batch:
    """A batch as it stands."""
    return client.batches.GetBatch(batch_pb2.GetBatchRequest(batch=id_), timeout=LONG).batch


def cancel(client: Client, id_: str) -> batch_pb2.Batch:
    """A batch that was ended."""
    return client.batches.CancelBatch(batch_pb2.CancelBatchRequest(batch=id_), timeout=LONG).batch


def delete(client: Client, id_: str) -> None:
    """Delete a batch."""
    client.batches.DeleteBatch(batch_pb2.DeleteBatchRequest(batch=id_), timeout=LONG)


def ended(client: Client, id_: str) -> batch_pb2.Batch:
    """A batch, once it has ended."""
    request = operations_pb2.WaitOperationRequest(name=f"operations/{id_}")
    assert client.operations.WaitOperation(request, timeout=2 * LONG).done
    return get(client, id_)


def begun(client: Client, id_: str, done: int = 1) -> None:
    """Wait until so many audits of a batch are done."""
    eventually(lambda: get(client, id_).progress.done >= done)


def stream(client: Client, id_: str, **fields: Any) -> Any:
    """The call that streams results."""
    return client.batches.StreamBatchResults(batch_pb2.StreamBatchResultsRequest(batch=id_, **fields), timeout=2 * LONG)


def results(client: Client, id_: str, **fields: Any) -> list[batch_pb2.BatchResult]:
    """What a batch found."""
    return [one.result for one in stream(client, id_, **fields)]


def listed(client: Client, **fields: Any) -> list[str]:
    """Ids of batches, the newest first."""
    ids, request = [], batch_pb2.ListBatchesRequest(**fields)
    while True:
        page = client.batches.ListBatches(request, timeout=LONG)
        ids += [batch.id for batch in page.batches]
        request.page_token = page.next_page_token
        if not request.page_token:
            return ids


def load(client: Client, checkpoint: str) -> None:
    """Load a checkpoint."""
    request = checkpoint_pb2.LoadCheckpointRequest(checkpoint=checkpoint)
    client.checkpoints.LoadCheckpoint(request, timeout=LONG)


def unload(client: Client, checkpoint: str) -> None:
    """Unload a checkpoint, once nothing in flight needs it."""
    request = checkpoint_pb2.UnloadCheckpointRequest(checkpoint=checkpoint)
    client.checkpoints.UnloadCheckpoint(request, timeout=LONG)
