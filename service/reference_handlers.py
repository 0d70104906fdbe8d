"""ReferenceService of reference.proto."""

# ruff: noqa: N802 - the .proto files name the methods

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from audit.errors import InvalidInput, Stopped
from audit.reference.images import read_upload, to_float
from audit.reference.manifest import Options
from audit.reference.reference_set import ReferenceSet
from audit.v1 import reference_pb2, reference_pb2_grpc
from service.audit_log import tell
from service.calls import Context
from service.config import Settings
from service.line import Line
from service.metrics import Metrics
from service.paging import page
from service.reference_store import Addition, Creation, named
from service.references import ReferenceRegistry
from service.status import AlreadyExists, QueueFull, Unsuited
from service.streams import headed
from service.threads import lone_threads
from service.uploads import Upload, check_upload
from service.wire import clip_neighbor, neighbor, picture

#: Hits of a search, unless said, and at most.
DEFAULT_HITS, MAX_HITS = 10, 100
#: Searches worked on at once. They are short, and compete with audits for the same cores.
CONCURRENT_SEARCHES = 2
#: Searches that wait or are worked on.
MOST_SEARCHES = 64
#: Streams of images that are received or added. One at a time is added.
MOST_ADDITIONS = 8
MAX_THUMBNAIL = 1024


class ReferenceHandlers(reference_pb2_grpc.ReferenceServiceServicer):
    """Reference sets.

    Args:
        references: of the server.
        settings: of the server.
        metrics: of the server.
    """

    def __init__(self, references: ReferenceRegistry, settings: Settings, metrics: Metrics) -> None:
        self._references = references
        self._metrics = metrics
        self._limits = settings.limits
        self._line = Line(CONCURRENT_SEARCHES, MOST_SEARCHES, "searches", "SEARCHES_FULL")
        self._executor = lone_threads(CONCURRENT_SEARCHES, "search")
        self._adder = lone_threads(1, "adder")
        self._additions = 0

    async def ListReferences(
        self, request: reference_pb2.ListReferencesRequest, context: Context
    ) -> reference_pb2.ListReferencesResponse:
        """List those that are loaded."""
        names, token = page(self._references.names, request.page_size, request.page_token)
        return reference_pb2.ListReferencesResponse(
            references=[self._references.describe(name) for name in names], next_page_token=token
        )

    async def GetReference(
        self, request: reference_pb2.GetReferenceRequest, context: Context
    ) -> reference_pb2.GetReferenceResponse:
        """Describe one."""
        _require(request.reference)
        return reference_pb2.GetReferenceResponse(reference=self._references.describe(request.reference))

    async def CreateReference(
        self, request: reference_pb2.CreateReferenceRequest, context: Context
    ) -> reference_pb2.CreateReferenceResponse:
        """Make one."""
        name, creation = named(request.reference), creation_of(request, self._limits.image_side)
        tell(reference=name)
        if self._references.is_operators(name):
            raise AlreadyExists(
                f"the operator has a reference set {name!r}", reason="REFERENCE_EXISTS", field="reference"
            )
        await asyncio.get_running_loop().run_in_executor(self._adder, self._references.store.create, name, creation)
        await self._references.look()
        return reference_pb2.CreateReferenceResponse(reference=self._references.describe(name))

    async def AddImages(
        self, request_iterator: AsyncIterator[reference_pb2.AddImagesRequest], context: Context
    ) -> reference_pb2.AddImagesResponse:
        """Add images to one."""
        with ExitStack() as resources:
            async for request in headed(request_iterator):
                if request.HasField("header"):
                    header = request.header
                    upload = resources.enter_context(self._received(header.reference))
                else:
                    await asyncio.to_thread(upload.add, request.images.images)
            return await self._add(header, upload)

    async def DeleteReference(
        self, request: reference_pb2.DeleteReferenceRequest, context: Context
    ) -> reference_pb2.DeleteReferenceResponse:
        """Delete one, once no images are being added."""
        name = self._created(request.reference)
        await asyncio.get_running_loop().run_in_executor(self._adder, self._references.store.delete, name)
        await self._references.look()
        return reference_pb2.DeleteReferenceResponse()

    async def SearchReference(
        self, request: reference_pb2.SearchReferenceRequest, context: Context
    ) -> reference_pb2.SearchReferenceResponse:
        """Find the images nearest to one, or to words."""
        _require(request.reference)
        self._check_search(request)
        reference = self._references.get(request.reference)
        tell(reference=request.reference, **({"prompt": request.prompt} if request.prompt else {}))
        if request.prompt and reference.text_embedder is None:
            raise Unsuited(
                f"the reference set {request.reference!r} has no CLIP model, and knows no words",
                reason="CLIP_REQUIRED",
                field="prompt",
            )
        ticket = self._line.enter()
        try:
            await ticket.called.wait()
            with self._metrics.reference_search_seconds.time():
                return await asyncio.get_running_loop().run_in_executor(self._executor, search, reference, request)
        finally:
            self._line.leave(ticket)

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown()
        self._adder.shutdown()

    @contextmanager
    def _received(self, reference: str) -> Iterator[Upload]:
        """Room for the images of a stream.

        Raises:
            NotFound, Unsuited, Closed: nothing can be added to the set.
            QueueFull: as many others are received or added as may be.
        """
        name = self._created(reference)
        self._references.store.stamp(name)
        if self._additions == MOST_ADDITIONS:
            raise QueueFull(
                f"{MOST_ADDITIONS} streams of images are being received", reason="TOO_MANY_INTAKES", retry_seconds=5.0
            )
        self._additions += 1
        try:
            upload = self._references.store.upload(self._limits.image_bytes)
            try:
                yield upload
            finally:
                upload.close()
        finally:
            self._additions -= 1

    async def _add(self, header: reference_pb2.AddImagesHeader, upload: Upload) -> reference_pb2.AddImagesResponse:
        complete = header.complete if header.HasField("complete") else None
        ended = threading.Event()

        def progress(stage: str, done: int, total: int | None) -> None:
            if ended.is_set():
                raise Stopped("the caller went away", reason="CANCELLED")

        def add() -> Addition:
            progress("", 0, None)
            store = self._references.store
            return store.add(header.reference, upload, complete, self._references.open_embedder, progress)

        work = asyncio.get_running_loop().run_in_executor(self._adder, add)
        try:
            addition = await asyncio.shield(work)
        except asyncio.CancelledError:
            ended.set()
            # The file of the images is closed when this returns.
            await asyncio.wait([work])
            if not work.cancelled():
                work.exception()  # seen
            raise
        finally:
            await self._references.look()
        self._metrics.count_received(**addition.counts)
        tell(**addition.counts)
        return reference_pb2.AddImagesResponse(
            reference=self._references.describe(header.reference),
            left_out=[reference_pb2.LeftOutImage(key=key, reason=why) for key, why in addition.left_out],
            **addition.counts,
        )

    def _created(self, name: str) -> str:
        """The name of a set that callers may change.

        Raises:
            InvalidInput: it is none.
            Unsuited: it is the operator's.
        """
        name = named(name)
        tell(reference=name)
        if self._references.is_operators(name):
            raise Unsuited(
                f"the reference set {name!r} is the operator's, who alone changes it",
                reason="REFERENCE_READ_ONLY",
                field="reference",
            )
        return name

    def _check_search(self, request: reference_pb2.SearchReferenceRequest) -> None:
        """Refuse a search that is out of bounds before anything is decoded.

        Raises:
            InvalidInput: there is neither an image nor a prompt, or both, or too much of one, or too many hits are
                wanted.
        """
        if not request.prompt:
            check_upload(request.image, self._limits.image_bytes)
        elif request.image:
            raise InvalidInput("give an image or a prompt, not both", reason="QUERY_AMBIGUOUS", field="prompt")
        elif len(request.prompt) > self._limits.prompt_characters:
            raise InvalidInput(
                f"the prompt has {len(request.prompt)} characters, at most {self._limits.prompt_characters} are read",
                reason="PROMPT_TOO_LONG",
                field="prompt",
            )
        if not 0 <= request.limit <= MAX_HITS:
            raise InvalidInput(
                f"limit must be in [0, {MAX_HITS}], not {request.limit}", reason="LIMIT_OUT_OF_RANGE", field="limit"
            )


def creation_of(request: reference_pb2.CreateReferenceRequest, most_side: int) -> Creation:
    """What a request asks for.

    Args:
        request: as it came.
        most_side: of an image that is kept, in pixels.

    Raises:
        InvalidInput: a value is out of its range, or nothing could be searched.
    """
    sized = request.height != 0 or request.width != 0
    if request.without_images and not request.embedders:
        raise InvalidInput(
            "a set without images needs an embedder: nothing could be searched",
            reason="EMBEDDER_REQUIRED",
            field="embedders",
        )
    if len(set(request.embedders)) < len(request.embedders):
        raise InvalidInput("an embedder is named twice", reason="EMBEDDER_REPEATED", field="embedders")
    if request.without_images and sized:
        raise InvalidInput("images that are not kept have no size", reason="SIZE_OUT_OF_RANGE", field="height")
    for side in ("height", "width"):
        if not request.without_images and not 1 <= getattr(request, side) <= most_side:
            raise InvalidInput(
                f"{side} must be in [1, {most_side}], not {getattr(request, side)}",
                reason="SIZE_OUT_OF_RANGE",
                field=side,
            )
    if not 0 <= request.thumbnail_side <= MAX_THUMBNAIL:
        raise InvalidInput(
            f"thumbnail_side must be in [0, {MAX_THUMBNAIL}], not {request.thumbnail_side}",
            reason="SIZE_OUT_OF_RANGE",
            field="thumbnail_side",
        )
    return Creation(
        embedders=list(request.embedders),
        options=Options(
            images=not request.without_images,
            side=(request.height, request.width) if sized else None,
            thumbnails=request.thumbnail_side,
        ),
    )


def search(
    reference: ReferenceSet, request: reference_pb2.SearchReferenceRequest
) -> reference_pb2.SearchReferenceResponse:
    """The reference images nearest to an uploaded one, or to words. Takes a while: run it in a thread.

    Raises:
        InvalidInput: the image is none, or of too many pixels.
    """
    limit = request.limit or DEFAULT_HITS
    response = reference_pb2.SearchReferenceResponse()
    if request.prompt:
        near = reference.search_text(request.prompt, limit)
    else:
        pixels = np.array(read_upload(request.image))  # a copy, because torch wants memory that it may write to
        image = to_float(np.atleast_3d(pixels)[None])
        if reference.has_images:
            distances, indices = (found[0].tolist() for found in reference.search_pixels(image, limit))
            for distance, index, entry in zip(distances, indices, reference.entries(indices), strict=True):
                shown = reference.picture(index) if request.include_images else None
                response.pixel.append(neighbor(index, entry, distance, None if shown is None else picture(shown)))
        embedded = reference.search_embedded(image, limit)
        if embedded is None:
            return response
        near = embedded
    similarities, indices = (found[0].tolist() for found in near)
    for similarity, index, entry in zip(similarities, indices, reference.entries(indices), strict=True):
        response.clip.append(clip_neighbor(index, entry, similarity))
    return response


def _require(reference: str) -> None:
    if not reference:
        raise InvalidInput("reference is empty", reason="REFERENCE_REQUIRED", field="reference")
