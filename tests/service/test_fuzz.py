"""Every call with messages that nobody would send, and with bytes that are none."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import islice
from typing import Any

import grpc
import psutil
import pytest
from google.longrunning import operations_pb2
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from audit import demo
from audit.v1 import audit_pb2, batch_pb2, checkpoint_pb2, info_pb2, reference_pb2
from service.server import SERVICES
from tests.mutations import mutated, run
from tests.service.batch_calls import listed
from tests.service.fuzz import messages, perturbed, service
from tests.service.helpers import LONG, SERVING, SMALL, Client, small

#: Of messages, and of bytes, for each method.
EXAMPLES, MUTATIONS = 130, 65
#: Texts that mean something to the server.
WORDS = (
    "", "demo", "copy", "x", "a red silk dress", demo.prompts()[0], "ordinary", "operations", "operations/x", "ddim",
    "euler-ancestral", "lanczos", "dense", "off", "done", "page", "..", "../../etc/passwd", "/", "\0", "a\nb", "é" * 60,
)  # fmt: skip
METHODS = [(name, method.name) for name in SERVICES for method in service(name).methods]
#: Methods whose good message would end what the others need.
NEVER_GOOD = ("DeleteBatch", "DeleteOperation", "DeleteReference")
#: What a caller's fault, or a server that is busy, may look like.
EXPECTED = {
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED,
}  # fmt: skip


@pytest.fixture(scope="module")
def own(launch: Callable[..., Client], tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A server whose audits cost next to nothing."""
    store = tmp_path_factory.mktemp("fuzz") / "basin.db"
    return launch(
        limits={"prompt_characters": 300, "seeds": 4, "evaluations": 64, "image_bytes": 10_000},
        batches={"store": f"sqlite:///{store}", "prompts": 8},
        budget={"seeds": 4, "curvature": "off"},
        checkpoints={"copy": {"source": str(demo.CHECKPOINT)}},
        reference_store={"folder": store.with_name("references"), "images": 100, "sets": 20},
        demo=True,
    )


def any_message(client: Client, name: str, method: str) -> st.SearchStrategy[Message]:
    """A message that a method takes: anything at all, or one that is almost good."""
    for id_ in ("demo", "copy"):  # whatever other messages did
        client.checkpoints.LoadCheckpoint(checkpoint_pb2.LoadCheckpointRequest(checkpoint=id_), timeout=LONG)
    client.references.CreateReference(good("CreateReference", ""), timeout=LONG)
    if not listed(client):
        client.batches.CreateBatch(good("CreateBatch", ""), timeout=LONG)
    batch = listed(client)[0]
    words = (*WORDS, batch, f"operations/{batch}")
    return messages(service(name).methods_by_name[method].input_type, words) | perturbed(good(method, batch), words)


def good(method: str, batch: str) -> Message:
    """A message that a method answers."""
    audit = small(demo.prompts()[0], reference="demo")
    spec = batch_pb2.BatchSpec(checkpoints=["demo"], reference="demo", budget=audit.budget, sampler=audit.sampler)
    prompts, operation = batch_pb2.BatchPrompts(prompts=[batch_pb2.BatchPrompt(prompt="x")]), f"operations/{batch}"
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    return {
        "Audit": audit,
        "Screen": audit_pb2.ScreenRequest(prompts=["x", "y"], checkpoint="demo", sampler=audit.sampler),
        "InspectImage": audit_pb2.InspectImageRequest(
            image=image.getvalue(), prompt="x", checkpoint="demo", reference="demo", sampler=audit.sampler
        ),
        "StreamAudit": audit_pb2.StreamAuditRequest(audit=audit),
        "CreateBatch": batch_pb2.CreateBatchRequest(spec=spec, prompts=prompts),
        "UploadBatch": batch_pb2.UploadBatchRequest(header=batch_pb2.UploadBatchHeader(spec=spec)),
        "GetBatch": batch_pb2.GetBatchRequest(batch=batch),
        "ListBatches": batch_pb2.ListBatchesRequest(page_size=2, checkpoint="demo"),
        "CancelBatch": batch_pb2.CancelBatchRequest(batch=batch),
        "DeleteBatch": batch_pb2.DeleteBatchRequest(batch="none"),
        "StreamBatchResults": batch_pb2.StreamBatchResultsRequest(batch=batch, include_reports=True),
        "ListOperations": operations_pb2.ListOperationsRequest(name="operations", page_size=2),
        "GetOperation": operations_pb2.GetOperationRequest(name=operation),
        "CancelOperation": operations_pb2.CancelOperationRequest(name=operation),
        "DeleteOperation": operations_pb2.DeleteOperationRequest(name="operations/none"),
        "WaitOperation": operations_pb2.WaitOperationRequest(name=operation),
        "ListCheckpoints": checkpoint_pb2.ListCheckpointsRequest(page_size=1),
        "LoadCheckpoint": checkpoint_pb2.LoadCheckpointRequest(checkpoint="demo"),
        "UnloadCheckpoint": checkpoint_pb2.UnloadCheckpointRequest(checkpoint="copy"),
        "ListReferences": reference_pb2.ListReferencesRequest(page_size=1),
        "SearchReference": reference_pb2.SearchReferenceRequest(reference="demo", image=image.getvalue(), limit=2),
        "GetReference": reference_pb2.GetReferenceRequest(reference="demo"),
        "CreateReference": reference_pb2.CreateReferenceRequest(reference="made", height=8, width=8),
        "AddImages": reference_pb2.AddImagesRequest(header=reference_pb2.AddImagesHeader(reference="made")),
        "DeleteReference": reference_pb2.DeleteReferenceRequest(reference="none"),
        "GetInfo": info_pb2.GetInfoRequest(),
    }[method]


def rest_of(method: str) -> Message:
    """What may follow the first message of a stream."""
    if method == "AddImages":
        image = good("SearchReference", "").image
        return reference_pb2.AddImagesRequest(
            images=reference_pb2.NewImages(images=[reference_pb2.NewImage(image=image, key="x")])
        )
    return batch_pb2.UploadBatchRequest(prompts=good("CreateBatch", "").prompts)


def outcome(client: Client, name: str, method: str, contents: list[bytes]) -> grpc.StatusCode:
    """The code of a call with these bytes."""
    found = service(name).methods_by_name[method]
    path = f"/{name}/{method}"
    try:
        if found.client_streaming:
            client.channel.stream_unary(path)(iter([*contents, rest_of(method).SerializeToString()]), timeout=5.0)
        elif found.server_streaming:
            call: Any = client.channel.unary_stream(path)(contents[0], timeout=0.5)
            list(islice(call, 20))
            call.cancel()
        else:
            client.channel.unary_unary(path)(contents[0], timeout=0.5 if method == "WaitOperation" else 5.0)
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined]
    return grpc.StatusCode.OK


def test_there_are_enough() -> None:
    """Five thousand in a run."""
    assert len(METHODS) * (EXAMPLES + MUTATIONS) >= 5000


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_messages(own: Client, name: str, method: str) -> None:
    """Whatever they say, they are answered, or refused with a code that says whose fault it is."""
    made = any_message(own, name, method)

    @run(EXAMPLES)
    @given(st.lists(made, min_size=1, max_size=3))
    def check(sent: list[Any]) -> None:
        assert outcome(own, name, method, [message.SerializeToString() for message in sent]) in EXPECTED

    check()
    assert_unhurt(own)
    if method not in NEVER_GOOD:
        assert own.metric("basin_rpcs_total", method=f"{name.rpartition('.')[2]}/{method}", code="OK")


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_bytes(own: Client, name: str, method: str) -> None:
    """Bytes on the wire that were a message before something was done to them."""
    made = any_message(own, name, method)

    @run(MUTATIONS)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        content = data.draw(made).SerializeToString()
        assert outcome(own, name, method, [data.draw(mutated(content))]) in EXPECTED

    check()
    assert_unhurt(own)


def test_it_leaves_no_trace(own: Client, prompts: list[str]) -> None:
    """Afterwards the server audits as before, and what calls took is given back."""
    assert own.audit(small(prompts[0])).cost.evaluations == SMALL
    threads, files = psutil.Process().num_threads(), psutil.Process().num_fds()
    for name, method in METHODS:
        for _ in range(5):
            outcome(own, name, method, [b"\xff"])
    assert psutil.Process().num_threads() <= threads + 4
    assert psutil.Process().num_fds() <= files + 8


def assert_unhurt(client: Client) -> None:
    """No call was the server's own fault, and it is well."""
    assert client.metric("basin_rpcs_total", code="INTERNAL") == 0
    # Without any checkpoint it is not ready.
    client.checkpoints.LoadCheckpoint(checkpoint_pb2.LoadCheckpointRequest(checkpoint="demo"), timeout=LONG)
    assert client.health() == client.health("liveness") == SERVING
