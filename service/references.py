"""The reference sets of a server: loaded when it starts, searched in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import numpy as np

from audit.errors import AuditError, BrokenReference, InvalidInput, NotFound
from audit.reference.images import read_upload, to_float
from audit.reference.reference_set import ReferenceSet
from audit.v1 import reference_pb2
from service.log import Logger
from service.metrics import Metrics
from service.status import NotReady
from service.threads import Devices
from service.wire import picture

DEFAULT_HITS = 10
MAX_HITS = 100


class ReferenceRegistry:
    """Registered reference sets by name. One that cannot be loaded is not listed, and says why when it is asked for.

    Args:
        folders: by name.
        executor: the one thread that loads.
        devices: that compute.
        metrics: of the server.
        logger: of the server.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        executor: Executor,
        devices: Devices,
        metrics: Metrics,
        logger: Logger,
    ) -> None:
        self._folders = dict(sorted(folders.items()))
        self._executor = executor
        self._devices = devices
        self._metrics = metrics
        self._logger = logger
        self._loaded: dict[str, ReferenceSet] = {}
        #: Messages and reasons.
        self._broken: dict[str, tuple[str, str]] = {}

    @property
    def names(self) -> Sequence[str]:
        """Of those that are loaded, in order."""
        return sorted(self._loaded)

    @property
    def complete(self) -> bool:
        """Whether all that are registered are loaded."""
        return len(self._loaded) == len(self._folders)

    async def load(self) -> None:
        """Load all of them."""
        for name, folder in self._folders.items():
            try:
                reference = await asyncio.get_running_loop().run_in_executor(self._executor, self._read, name, folder)
            except AuditError as error:
                self._broken[name] = str(error).replace(str(folder), name), error.reason
                self._logger.error("reference set failed", reference=name, reason=error.reason, error=str(error))
                continue
            self._loaded[name] = reference
            self._metrics.reference_images.labels(name).set(len(reference))
            self._logger.info("reference set loaded", reference=name, images=len(reference), digest=reference.digest)

    def get(self, name: str) -> ReferenceSet:
        """A loaded reference set.

        Raises:
            NotFound: no such name.
            BrokenReference: it cannot be loaded.
            NotReady: it is not loaded yet.
        """
        if name in self._loaded:
            return self._loaded[name]
        if name in self._broken:
            message, reason = self._broken[name]
            raise BrokenReference(message, reason=reason, field="reference")
        if name in self._folders:
            raise NotReady(
                f"the reference set {name!r} is being loaded",
                reason="REFERENCE_LOADING",
                field="reference",
                retry_seconds=1.0,
            )
        raise NotFound(f"no reference set {name[:64]!r} is registered", reason="REFERENCE_NOT_FOUND", field="reference")

    def describe(self, name: str) -> reference_pb2.ReferenceInfo:
        """What clients may know of a loaded set."""
        reference = self._loaded[name]
        return reference_pb2.ReferenceInfo(
            name=name,
            digest=reference.digest,
            size=len(reference),
            complete=reference.complete,
            clip_digest="" if reference.embedder is None else reference.embedder.digest,
        )

    def _read(self, name: str, folder: Path) -> ReferenceSet:
        """Runs in the loading thread."""
        try:
            reference = ReferenceSet.load(folder)
        except AuditError:
            raise
        except Exception as error:  # damaged files make the libraries raise anything at all
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BrokenReference(text, reason="REFERENCE_DAMAGED", field="reference") from error
        reference.name = name
        for embedder in reference.embedders:
            embedder.run = partial(self._devices.run, embedder.device)
        return reference


def check_upload(image: bytes, image_bytes: int) -> None:
    """Refuse an uploaded image that is out of bounds before it is decoded.

    Raises:
        InvalidInput: there is none, or it has more than `image_bytes`.
    """
    if not image:
        raise InvalidInput("there is no image", reason="IMAGE_EMPTY", field="image")
    if len(image) > image_bytes:
        raise InvalidInput(
            f"the image has {len(image)} bytes, at most {image_bytes} are read",
            reason="IMAGE_TOO_LARGE",
            field="image",
        )


def check_search(request: reference_pb2.SearchReferenceRequest, image_bytes: int) -> None:
    """Refuse a search that is out of bounds before anything is decoded.

    Raises:
        InvalidInput: there is no image, or it has more than `image_bytes`, or too many hits are wanted.
    """
    check_upload(request.image, image_bytes)
    if not 0 <= request.limit <= MAX_HITS:
        raise InvalidInput(
            f"limit must be in [0, {MAX_HITS}], not {request.limit}", reason="LIMIT_OUT_OF_RANGE", field="limit"
        )


def search(
    reference: ReferenceSet, request: reference_pb2.SearchReferenceRequest
) -> reference_pb2.SearchReferenceResponse:
    """The reference images nearest to an uploaded one. Takes a while: run it in a thread.

    Raises:
        InvalidInput: the image is none, or of too many pixels.
    """
    pixels = np.array(read_upload(request.image))  # a copy, because torch wants memory that it may write to
    image = to_float(np.atleast_3d(pixels)[None])
    limit = request.limit or DEFAULT_HITS
    response = reference_pb2.SearchReferenceResponse()
    if reference.has_images:
        distances, indices = (found[0].tolist() for found in reference.search_pixels(image, limit))
        for distance, index, entry in zip(distances, indices, reference.entries(indices), strict=True):
            shown = reference.picture(index) if request.include_images else None
            response.pixel.add(
                index=index,
                caption=entry.caption,
                original_distance=distance,
                image=None if shown is None else picture(shown),
            )
    if (near := reference.search_embedded(image, limit)) is not None:
        similarities, indices = (found[0].tolist() for found in near)
        for similarity, index, entry in zip(similarities, indices, reference.entries(indices), strict=True):
            response.clip.add(index=index, caption=entry.caption, similarity=similarity)
    return response
