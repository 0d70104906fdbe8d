"""The Python client: a server's audits, batches, checkpoints and reference sets as plain calls.

with BasinClient("localhost:50051") as client:
    report = client.audit(AuditRequest(prompt="a red silk dress for spring from oslo", reference="demo"))
    print(Verdict.Name(report.verdict), report.confidence)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.longrunning import operations_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

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
    report_pb2,
)
from service.channel import NOBODY, Identity, open_channel
from service.sending import add_up, in_messages, in_streams

_FIRST_PAUSE = 0.5

_T = TypeVar("_T")


class ServiceError(AuditError):
    """The server refused a call, failed, or did not answer.

    Attributes:
        reason: the server's, as `audit.errors` names it; the status code's name where the server gave none.
        field: the request field at fault, or "".
        code: the canonical status code.
        retry_seconds: how long the server asks to wait before the next try; None when it does not ask.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason: str = "",
        field: str = "",
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message, reason=reason or code.name, field=field)
        self.code = code
        self.retry_seconds = retry_seconds


class BasinClient:
    """Calls one server. Safe to use from several threads.

    Every call raises ServiceError when the server refuses it, fails, or does not answer.

    Args:
        target: HOST:PORT, or https://HOST:PORT where the server encrypts.
        timeout: seconds that one call may take; None for as long as it takes.
        patience: seconds that an audit goes on knocking while the server says "later": its queue is full, or what the
            audit needs is still being loaded.
        identity: what the client shows, and whom it believes.

    Raises:
        InvalidInput: something of the identity cannot be used.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = None,
        patience: float = 60.0,
        identity: Identity = NOBODY,
    ) -> None:
        self.target = target
        self.timeout = timeout
        self.patience = patience
        self._channel = open_channel(target, identity)
        self._audits = audit_pb2_grpc.AuditServiceStub(self._channel)
        self._batches = batch_pb2_grpc.BatchServiceStub(self._channel)
        self._checkpoints = checkpoint_pb2_grpc.CheckpointServiceStub(self._channel)
        self._references = reference_pb2_grpc.ReferenceServiceStub(self._channel)
        self._info = info_pb2_grpc.InfoServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in flight, which also stops its work on the server, and hang up."""
        self._channel.close()

    def audit(
        self,
        request: audit_pb2.AuditRequest,
        on_progress: Callable[[audit_pb2.Progress], None] | None = None,
    ) -> report_pb2.Report:
        """Audit one prompt.

        Args:
            request: what to audit, and how.
            on_progress: called from time to time.
        """

        def once() -> report_pb2.Report:
            if on_progress is None:
                with self._errors():
                    return self._audits.Audit(request, timeout=self.timeout).report
            for event in self._stream(request):
                if isinstance(event, report_pb2.Report):
                    return event
                on_progress(event)
            raise ServiceError("the server ended the audit without a report", code=grpc.StatusCode.DATA_LOSS)

        return self._patiently(once)

    def stream(self, request: audit_pb2.AuditRequest) -> Generator[audit_pb2.Progress | report_pb2.Report]:
        """Audit one prompt: any number of `Progress`, then the `Report`. Closing the iterator stops the audit."""
        return self._stream(request)

    def screen(self, request: audit_pb2.ScreenRequest) -> audit_pb2.ScreenResponse:
        """Screen prompts on pure noise; the server tells in its limits how many it takes at once."""

        def once() -> audit_pb2.ScreenResponse:
            with self._errors():
                return self._audits.Screen(request, timeout=self.timeout)

        return self._patiently(once)

    def inspect(self, request: audit_pb2.InspectImageRequest) -> audit_pb2.InspectImageResponse:
        """Tell the class of an image that already exists, as a sample of a checkpoint."""

        def once() -> audit_pb2.InspectImageResponse:
            with self._errors():
                return self._audits.InspectImage(request, timeout=self.timeout)

        return self._patiently(once)

    def submit(
        self,
        spec: batch_pb2.BatchSpec,
        prompts: Iterable[batch_pb2.BatchPrompt] | str,
        *,
        request_id: str = "",
    ) -> str:
        """Have a batch taken in.

        Args:
            spec: how to run it.
            prompts: what to audit, or the name of a prompt set that the server knows.
            request_id: any unique string of up to 64 characters: the same batch for the same id.

        Returns:
            The batch's id.

        Raises:
            Exception: whatever the prompts raise; then nothing is taken in.
        """
        with self._errors():
            if isinstance(prompts, str):
                request = batch_pb2.CreateBatchRequest(spec=spec, prompt_set=prompts, request_id=request_id)
                operation = self._batches.CreateBatch(request, timeout=self.timeout)
            else:
                operation = self._upload(batch_pb2.UploadBatchHeader(spec=spec, request_id=request_id), prompts)
        progress = batch_pb2.BatchProgress()
        operation.metadata.Unpack(progress)
        return progress.batch

    def batch(self, id_: str) -> batch_pb2.Batch:
        """How a batch stands, and what it says once it has ended."""
        with self._errors():
            return self._batches.GetBatch(batch_pb2.GetBatchRequest(batch=id_), timeout=self.timeout).batch

    def batches(
        self, *, state: batch_pb2.BatchState | str = "BATCH_STATE_UNSPECIFIED", checkpoint: str = ""
    ) -> Iterator[batch_pb2.Batch]:
        """Batches in a state and of a checkpoint, where these are given, the newest first."""
        request = batch_pb2.ListBatchesRequest(state=state, checkpoint=checkpoint)
        while True:
            with self._errors():
                page = self._batches.ListBatches(request, timeout=self.timeout)
            yield from page.batches
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def cancel_batch(self, id_: str) -> batch_pb2.Batch:
        """End a batch; what was found is kept."""
        with self._errors():
            return self._batches.CancelBatch(batch_pb2.CancelBatchRequest(batch=id_), timeout=self.timeout).batch

    def delete_batch(self, id_: str) -> None:
        """Delete a batch that has ended."""
        with self._errors():
            self._batches.DeleteBatch(batch_pb2.DeleteBatchRequest(batch=id_), timeout=self.timeout)

    def batch_results(
        self, id_: str, *, cursor: str = "", follow: bool = False, include_reports: bool = False
    ) -> Generator[batch_pb2.StreamBatchResultsResponse]:
        """What a batch found, by checkpoint and position.

        Args:
            id_: of the batch.
            cursor: of the last result that is known already; "" for all.
            follow: whether to wait for those that are not there yet.
            include_reports: whether results hold the reports of their audits.
        """
        request = batch_pb2.StreamBatchResultsRequest(
            batch=id_, cursor=cursor, follow=follow, include_reports=include_reports
        )
        with self._errors():
            call = self._batches.StreamBatchResults(request, timeout=self.timeout)
            try:
                yield from call
            finally:
                call.cancel()

    def info(self) -> info_pb2.GetInfoResponse:
        """Versions, limits and what is loaded."""
        with self._errors():
            return self._info.GetInfo(info_pb2.GetInfoRequest(), timeout=self.timeout)

    def checkpoints(self) -> list[checkpoint_pb2.CheckpointInfo]:
        """All registered checkpoints, by id."""
        found: list[checkpoint_pb2.CheckpointInfo] = []
        request = checkpoint_pb2.ListCheckpointsRequest()
        while True:
            with self._errors():
                page = self._checkpoints.ListCheckpoints(request, timeout=self.timeout)
            found += page.checkpoints
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    def load_checkpoint(self, checkpoint: str) -> checkpoint_pb2.CheckpointInfo:
        """Load a registered checkpoint."""
        with self._errors():
            request = checkpoint_pb2.LoadCheckpointRequest(checkpoint=checkpoint)
            return self._checkpoints.LoadCheckpoint(request, timeout=self.timeout).checkpoint

    def unload_checkpoint(self, checkpoint: str) -> checkpoint_pb2.CheckpointInfo:
        """Unload a checkpoint; audits in flight finish first."""
        with self._errors():
            request = checkpoint_pb2.UnloadCheckpointRequest(checkpoint=checkpoint)
            return self._checkpoints.UnloadCheckpoint(request, timeout=self.timeout).checkpoint

    def references(self) -> list[reference_pb2.ReferenceInfo]:
        """All registered reference sets, by name."""
        found: list[reference_pb2.ReferenceInfo] = []
        request = reference_pb2.ListReferencesRequest()
        while True:
            with self._errors():
                page = self._references.ListReferences(request, timeout=self.timeout)
            found += page.references
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    def reference(self, name: str) -> reference_pb2.ReferenceInfo:
        """A reference set."""
        with self._errors():
            request = reference_pb2.GetReferenceRequest(reference=name)
            return self._references.GetReference(request, timeout=self.timeout).reference

    def create_reference(self, request: reference_pb2.CreateReferenceRequest) -> reference_pb2.ReferenceInfo:
        """Make a reference set without images. Made again in the same way it stays as it is."""
        with self._errors():
            return self._references.CreateReference(request, timeout=self.timeout).reference

    def add_images(
        self, reference: str, images: Iterable[reference_pb2.NewImage], *, complete: bool | None = None
    ) -> reference_pb2.AddImagesResponse:
        """Add images to a reference set that a caller made, in as many streams as it takes.

        What was added stays where a later stream fails. Everything can be sent again: an image of the same key and
        content is never added twice.

        Args:
            reference: name of the set.
            images: any number, read as they are sent.
            complete: whether the set is now a checkpoint's whole training set; None leaves it as it is. It is said in
                the end, and never of a set of which an image was left out.

        Returns:
            The sums of all streams, and the set as it is after the last one.

        Raises:
            Exception: whatever the images raise.
        """
        limits, total = self.info().limits, reference_pb2.AddImagesResponse()
        for stream in in_streams(images, limits, total):
            self._send_images(total, reference_pb2.AddImagesHeader(reference=reference), stream)
        if complete is not None and not (complete and total.unreadable):
            self._send_images(total, reference_pb2.AddImagesHeader(reference=reference, complete=complete), [])
        return total

    def delete_reference(self, name: str) -> None:
        """Delete a reference set that a caller made; audits in flight finish."""
        with self._errors():
            self._references.DeleteReference(reference_pb2.DeleteReferenceRequest(reference=name), timeout=self.timeout)

    def search_reference(
        self, reference: str, image: bytes = b"", *, prompt: str = "", limit: int = 0, include_images: bool = False
    ) -> reference_pb2.SearchReferenceResponse:
        """The reference images nearest to an image, or to words.

        Args:
            reference: name of a reference set.
            image: a PNG, JPEG or WebP file of at most 16,777,216 pixels.
            prompt: words, where there is no image; the set then needs a CLIP model.
            limit: most hits wanted; 0 lets the server choose.
            include_images: whether hits carry their images.
        """
        with self._errors():
            request = reference_pb2.SearchReferenceRequest(
                reference=reference, image=image, prompt=prompt, limit=limit, include_images=include_images
            )
            return self._references.SearchReference(request, timeout=self.timeout)

    def _upload(
        self, header: batch_pb2.UploadBatchHeader, prompts: Iterable[batch_pb2.BatchPrompt]
    ) -> operations_pb2.Operation:
        def requests() -> Iterator[batch_pb2.UploadBatchRequest]:
            yield batch_pb2.UploadBatchRequest(header=header)
            for part in in_messages(prompts):
                yield batch_pb2.UploadBatchRequest(prompts=batch_pb2.BatchPrompts(prompts=part))

        return self._send(self._batches.UploadBatch, requests())

    def _send_images(
        self,
        total: reference_pb2.AddImagesResponse,
        header: reference_pb2.AddImagesHeader,
        images: Sequence[reference_pb2.NewImage],
    ) -> None:
        """Send one stream, again where the server says "later", and add what it came to."""

        def requests() -> Iterator[reference_pb2.AddImagesRequest]:
            yield reference_pb2.AddImagesRequest(header=header)
            for part in in_messages(images):
                yield reference_pb2.AddImagesRequest(images=reference_pb2.NewImages(images=part))

        def once() -> reference_pb2.AddImagesResponse:
            with self._errors():
                return self._send(self._references.AddImages, requests())

        add_up(total, self._patiently(once))

    def _send(self, method: Callable[..., _T], requests: Iterable[object]) -> _T:
        """Call a method with a stream. What the requests raise is raised here: gRPC says no more than that."""
        broken: list[Exception] = []

        def guarded() -> Iterator[object]:
            try:
                yield from requests
            except Exception as error:
                broken.append(error)
                raise

        try:
            return method(guarded(), timeout=self.timeout)
        except grpc.RpcError:
            if broken:
                raise broken[0] from None
            raise

    def _stream(self, request: audit_pb2.AuditRequest) -> Generator[audit_pb2.Progress | report_pb2.Report]:
        with self._errors():
            call = self._audits.StreamAudit(audit_pb2.StreamAuditRequest(audit=request), timeout=self.timeout)
            try:
                for event in call:
                    yield event.report if event.HasField("report") else event.progress
            finally:
                call.cancel()

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """Repeat a call that the server puts off, at the pace it asks for and ever slower, until patience ends."""
        deadline, pause = time.monotonic() + self.patience, _FIRST_PAUSE
        while True:
            try:
                return call()
            except ServiceError as error:
                if error.retry_seconds is None:
                    raise
                pause = max(pause, error.retry_seconds)
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause *= 1.5

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._translate(error) from None

    def _translate(self, error: grpc.RpcError) -> ServiceError:
        """A failed call as a ServiceError, with the details that AIP-193 puts into its status."""
        assert isinstance(error, grpc.Call)
        code, message = error.code(), error.details() or ""
        reason, field, retry_seconds = "", "", None
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            information = error_details_pb2.ErrorInfo()
            request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
            if detail.Unpack(information):
                reason = information.reason
            elif detail.Unpack(request) and request.field_violations:
                field = request.field_violations[0].field
            elif detail.Unpack(retry):
                retry_seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        if not reason:  # not the server's own words but gRPC's, which speak of channels and streams
            message = {
                grpc.StatusCode.UNAVAILABLE: f"no server answers at {self.target}",
                grpc.StatusCode.DEADLINE_EXCEEDED: f"{self.target} did not answer in time",
                grpc.StatusCode.UNIMPLEMENTED: f"the server at {self.target} does not offer this call",
                grpc.StatusCode.CANCELLED: "the call was cancelled",
            }.get(code, message)
        return ServiceError(
            message or f"the call failed: {code.name}",
            code=code,
            reason=reason,
            field=field,
            retry_seconds=retry_seconds,
        )
