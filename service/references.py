"""The reference sets of a server: the operator's, loaded when it starts, and those that callers make meanwhile."""

from __future__ import annotations

import asyncio
import os.path
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from audit.errors import AuditError, BrokenReference, NotFound
from audit.reference.embedder import Embedder, open_embedder, shown, with_path
from audit.reference.reference_set import ReferenceSet
from audit.v1 import reference_pb2
from service.config_parts import ReferenceStorePart
from service.log import Logger
from service.metrics import Metrics
from service.reference_store import ReferenceStore, Stamp
from service.status import NotReady, Unsuited
from service.threads import Devices

#: Seconds between two looks at sets that other servers may have made or changed.
GLANCE = 2.0


@dataclass(frozen=True)
class _Created:
    """A set that a caller made.

    Attributes:
        stamp: of the state that was loaded.
        reference: the set; None while it has no images, or where it cannot be loaded.
        broken: message and reason of why it cannot be.
    """

    stamp: Stamp
    reference: ReferenceSet | None = None
    broken: tuple[str, str] | None = None


class ReferenceRegistry:
    """Registered reference sets by name. One that cannot be loaded is not listed, and says why when it is asked for.

    Args:
        folders: of the operator's, by name.
        created: settings of those that callers make.
        executor: the one thread that loads.
        devices: that compute.
        metrics: of the server.
        logger: of the server.
        on_gone: called with the name of a set of which nobody asks for the last state any more.

    Attributes:
        store: of those that callers make.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        created: ReferenceStorePart,
        *,
        executor: Executor,
        devices: Devices,
        metrics: Metrics,
        logger: Logger,
        on_gone: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.store = ReferenceStore(created)
        self._folders = dict(sorted(folders.items()))
        self._executor = executor
        self._devices = devices
        self._metrics = metrics
        self._logger = logger
        self._loaded: dict[str, ReferenceSet] = {}
        #: Messages and reasons.
        self._broken: dict[str, tuple[str, str]] = {}
        #: Sets that callers made, by name; None before they were looked at.
        self._created: dict[str, _Created] | None = None
        self._looking = asyncio.Lock()
        self._embedders: dict[str, Embedder] = {}
        self._on_gone = on_gone

    @property
    def names(self) -> Sequence[str]:
        """Of those that are loaded, or have no images yet, in order."""
        created = (name for name, one in (self._created or {}).items() if one.broken is None)
        return sorted({*self._loaded, *created})

    @property
    def complete(self) -> bool:
        """Whether all of the operator's are loaded."""
        return len(self._loaded) == len(self._folders)

    def is_operators(self, name: str) -> bool:
        """Whether a set is the operator's, so that callers cannot change it."""
        return name in self._folders

    def folder(self, name: str) -> Path:
        """Where a loaded set is."""
        return self._folders[name] if self.is_operators(name) else self.store.set_folder(name)

    async def watch(self) -> None:
        """Look for changes again and again, while callers may make sets."""
        while True:
            await asyncio.sleep(GLANCE)
            try:
                await self.look()
            except OSError as error:
                self._logger.error("reference store", error=error.strerror)

    async def look(self) -> None:
        """Take notice of sets that callers made, changed or deleted, on this server or on another one."""
        async with self._looking:
            known = self._created or {}
            found = await asyncio.get_running_loop().run_in_executor(self._executor, self._look, known)
            self._created = {name: one for name, one in found.items() if not self.is_operators(name)}
            for name, one in known.items():
                if found.get(name) is not one:
                    self._on_gone(name)
            self._metrics.created_references.set(len(self._created))
            manifests = [one.reference.manifest for one in self._created.values() if one.reference is not None]
            self._metrics.created_reference_bytes.set(
                sum(file.bytes for manifest in manifests for _, file in manifest.files())
            )

    def _look(self, known: Mapping[str, _Created]) -> dict[str, _Created]:
        """Runs in the loading thread."""
        found = dict[str, _Created]()
        for name in self.store.names():
            try:
                stamp = self.store.stamp(name)
                if name in known and known[name].stamp == stamp:
                    found[name] = known[name]
                else:
                    load = partial(self.store.load, name, self._embedder)
                    found[name] = _Created(stamp, None if stamp is None else self._read(name, load))
            except NotFound:  # deleted meanwhile
                continue
            except AuditError as error:
                found[name] = _Created(stamp, broken=(str(error), error.reason))
                self._logger.error("reference set failed", reference=name, reason=error.reason, error=str(error))
        return found

    async def load(self) -> None:
        """Load all of them."""
        if self.store.names():
            await asyncio.to_thread(self.store.sweep)
        for name, folder in self._folders.items():
            try:
                read = partial(self._read, name, partial(ReferenceSet.load, folder, opener=self._embedder))
                reference = await asyncio.get_running_loop().run_in_executor(self._executor, read)
            except AuditError as error:
                self._broken[name] = str(error).replace(str(folder), name), error.reason
                self._logger.error("reference set failed", reference=name, reason=error.reason, error=str(error))
                continue
            self._loaded[name] = reference
            self._metrics.reference_images.labels(name).set(len(reference))
            self._logger.info("reference set loaded", reference=name, images=len(reference), digest=reference.digest)
        await self.look()

    def get(self, name: str) -> ReferenceSet:
        """A loaded reference set.

        Raises:
            NotFound: no such name.
            BrokenReference: it cannot be loaded.
            NotReady: it is not loaded yet.
            Unsuited: it has no images yet.
        """
        if name in self._loaded:
            return self._loaded[name]
        created = (self._created or {}).get(name)
        if created is not None and created.reference is not None:
            return created.reference
        if broken := self._broken.get(name) or (created and created.broken):
            message, reason = broken
            raise BrokenReference(message, reason=reason, field="reference")
        if created is not None:
            raise Unsuited(f"the reference set {name!r} has no images yet", reason="REFERENCE_EMPTY", field="reference")
        if name in self._folders or (self._created is None and name in self.store.names()):
            raise NotReady(
                f"the reference set {name!r} is being loaded",
                reason="REFERENCE_LOADING",
                field="reference",
                retry_seconds=1.0,
            )
        raise NotFound(f"no reference set {name[:64]!r} is registered", reason="REFERENCE_NOT_FOUND", field="reference")

    def describe(self, name: str) -> reference_pb2.ReferenceInfo:
        """What clients may know of a set.

        Raises:
            NotFound, BrokenReference, NotReady: as `get`.
        """
        created = not self.is_operators(name)
        try:
            reference = self.get(name)
        except Unsuited:
            return reference_pb2.ReferenceInfo(name=name, created=created)
        height, width = reference.manifest.side or (0, 0)
        return reference_pb2.ReferenceInfo(
            name=name,
            digest=reference.digest,
            size=len(reference),
            complete=reference.complete,
            clip_digest="" if reference.embedder is None else reference.embedder.digest,
            created=created,
            height=height,
            width=width,
            embedders=[shown(one.model_name) for one in reference.embedders],
            duplicates=reference.manifest.duplicates,
            unreadable=reference.manifest.unreadable,
        )

    def open_embedder(self, model: str) -> Embedder:
        """The embedder of a name, for other threads than the loading one."""
        return self._executor.submit(self._embedder, model).result()

    def _embedder(self, model: str) -> Embedder:
        """The embedder of a name, which sets share. It computes in the thread of its device."""
        model = with_path(model, os.path.abspath)
        if model not in self._embedders:
            embedder = open_embedder(model)
            embedder.run = partial(self._devices.run, embedder.device)
            self._embedders[model] = embedder
        return self._embedders[model]

    def _read(self, name: str, load: Callable[[], ReferenceSet]) -> ReferenceSet:
        """Runs in the loading thread."""
        try:
            reference = load()
        except AuditError:
            raise
        except Exception as error:  # damaged files make the libraries raise anything at all
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BrokenReference(text, reason="REFERENCE_DAMAGED", field="reference") from error
        reference.name = name
        return reference
