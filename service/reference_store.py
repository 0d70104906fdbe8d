"""Reference sets that callers make, on disk. Nothing here waits for an event loop: run it in threads.

    FOLDER/NAME/created.json    what its caller asked for
    FOLDER/NAME/set/            the set, as `audit.reference.manifest` describes it, from the first image on
    FOLDER/NAME/.lock           held while images are added, or all of it is deleted

A set begins when its folder gets its name and ends when it loses it, each by one rename. Several servers may share the
folder, where their file system knows locks.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from audit.errors import InvalidInput, NotFound
from audit.reference.build import add, build
from audit.reference.embedder import Opener
from audit.reference.folder import read_manifest
from audit.reference.manifest import LOCK, MANIFEST, Options
from audit.reference.reference_set import ReferenceSet
from audit.reference.settling import Progress
from service.config_parts import ReferenceStorePart
from service.names import check_name
from service.status import AlreadyExists, Closed, NotReady, StoreFull
from service.uploads import Upload

CREATED, SET = "created.json", "set"
#: Reasons that an answer holds at most.
MOST_LEFT_OUT = 100
#: Of a row without its image: key, caption, URL, digests.
ROW_BYTES = 1024

#: Tells one state of a set from another; None while it has no images.
Stamp = tuple[int, int] | None


class Creation(BaseModel):
    """How a set was asked for.

    Attributes:
        embedders: names of the operator's.
        options: how images are taken in.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedders: list[str]
    options: Options


@dataclass
class Addition:
    """What became of images.

    Attributes:
        reference: the set as it is now.
        counts: as `service.metrics.RECEIVED` names them.
        left_out: keys of the first that cannot be read, and why.
    """

    reference: ReferenceSet
    counts: dict[str, int]
    left_out: list[tuple[str, str]] = field(default_factory=list)


class ReferenceStore:
    """Sets that callers make.

    Args:
        settings: of them.
    """

    def __init__(self, settings: ReferenceStorePart) -> None:
        self._settings = settings

    @property
    def folder(self) -> Path:
        """Of all sets.

        Raises:
            Closed: callers may make none.
        """
        if self._settings.folder is None:
            raise Closed("callers make no reference sets on this server", reason="REFERENCE_STORE_CLOSED")
        return self._settings.folder

    def names(self) -> Sequence[str]:
        """Of the sets that are there; none where there may be none."""
        if self._settings.folder is None:
            return []
        return sorted(file.parent.name for file in self.folder.glob(f"*/{CREATED}") if _is_name(file.parent.name))

    def set_folder(self, name: str) -> Path:
        """Where a set is, once it has images."""
        return self.folder / name / SET

    def stamp(self, name: str) -> Stamp:
        """Another one after every change.

        Raises:
            NotFound: there is no such set.
        """
        if not (self.folder / name / CREATED).is_file():
            raise _missing(name)
        try:
            found = (self.set_folder(name) / MANIFEST).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def load(self, name: str, opener: Opener) -> ReferenceSet:
        """A set that has images.

        Args:
            name: of it.
            opener: gives its embedders.

        Raises:
            NotFound, BrokenReference: it cannot be loaded.
        """
        return ReferenceSet.load(self.set_folder(name), opener=opener)

    def bytes(self) -> int:
        """That all sets take, without what a kill left behind."""
        total = 0
        for name in self.names():
            with suppress(NotFound):
                total += sum(file.bytes for _, file in read_manifest(self.set_folder(name)).files())
        return total

    def create(self, name: str, creation: Creation) -> None:
        """Make a set without images. Made again in the same way it stays as it is.

        Raises:
            Closed: callers may make none.
            NotFound: an embedder has no name here.
            AlreadyExists: there is another set of that name.
            StoreFull: there are as many as there may be.
        """
        folder = self.folder / name
        for embedder in creation.embedders:
            if embedder not in self._settings.embedders:
                raise NotFound(
                    f"no embedder {embedder[:64]!r} is known here", reason="EMBEDDER_NOT_FOUND", field="embedders"
                )
        if not folder.exists() and len(self.names()) >= self._settings.sets:
            raise StoreFull(
                f"there are {self._settings.sets:,} reference sets, and no more may be made: delete one",
                reason="REFERENCE_STORE_FULL",
                field="reference",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / f".new-{secrets.token_hex(8)}"
        fresh.mkdir()
        (fresh / CREATED).write_text(creation.model_dump_json(indent=1) + "\n")
        try:
            fresh.rename(folder)  # fails where there is one, and what is in there
        except OSError as error:
            shutil.rmtree(fresh)
            if not folder.exists():
                raise
            if self._creation(name) != creation:
                raise AlreadyExists(
                    f"there is another reference set {name!r}", reason="REFERENCE_EXISTS", field="reference"
                ) from error

    def upload(self, image_bytes: int) -> Upload:
        """Room for the images of a stream.

        Raises:
            Closed: callers may make no sets.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        return Upload(self._settings, image_bytes, self.folder)

    def add(self, name: str, upload: Upload, complete: bool | None, opener: Opener, progress: Progress) -> Addition:
        """Add images. Until they are all in, the set stays as it was, whatever happens.

        Args:
            name: of the set.
            upload: to its end.
            complete: as `audit.reference.build.add` takes it.
            opener: gives its embedders.
            progress: likewise.

        Raises:
            NotFound, BrokenReference, InvalidInput: as `audit.reference.build` does.
            NotReady: another server adds to the set, or deletes it.
            StoreFull: there is no room.
        """
        faults = list[tuple[str, str]]()
        with self._locked(name):
            creation, folder = self._creation(name), self.set_folder(name)
            there = (folder / MANIFEST).is_file()
            if not there and not upload.images:
                raise InvalidInput("there are no images", reason="IMAGES_EMPTY", field="images")
            self._check_room(folder, creation.options, upload)
            before, duplicates = (0, 0) if not there else _counts(folder)
            # Work that a kill or a caller ended is begun anew: nobody may ever send the same again.
            if there:
                grown = add(
                    folder, upload.source(), complete=complete, restart=True, progress=progress,
                    left_out=lambda *fault: faults.append(fault), opener=opener,
                )  # fmt: skip
            else:
                grown = build(
                    upload.source(), folder, name=name, complete=bool(complete),
                    embedders=[self._model(embedder) for embedder in creation.embedders], options=creation.options,
                    restart=True, progress=progress, left_out=lambda *fault: faults.append(fault), opener=opener,
                )  # fmt: skip
        counts = {
            "added": len(grown) - before,
            "duplicates": grown.manifest.duplicates - duplicates,
            "unreadable": len(faults),
        }
        counts["repeated_images"] = upload.images - sum(counts.values())
        return Addition(grown, counts, faults[:MOST_LEFT_OUT])

    def delete(self, name: str) -> None:
        """Delete a set. Those that have it open keep the state that they opened.

        Raises:
            Closed, NotFound: there is none.
            NotReady: another server adds to it.
        """
        with self._locked(name):
            gone = self.folder / f".gone-{secrets.token_hex(8)}"
            (self.folder / name).rename(gone)
            shutil.rmtree(gone)

    def sweep(self) -> None:
        """Remove what a kill left of sets that were being made or deleted."""
        if self._settings.folder is not None and self.folder.is_dir():
            for path in [*self.folder.glob(".gone-*"), *self.folder.glob(".new-*")]:
                shutil.rmtree(path, ignore_errors=True)

    def _creation(self, name: str) -> Creation:
        try:
            return Creation.model_validate_json((self.folder / name / CREATED).read_bytes())
        except FileNotFoundError:
            raise _missing(name) from None

    def _model(self, embedder: str) -> str:
        try:
            return self._settings.embedders[embedder]
        except KeyError:
            raise NotFound(
                f"the embedder {embedder!r} is not known here any more", reason="EMBEDDER_NOT_FOUND", field="embedders"
            ) from None

    def _check_room(self, folder: Path, options: Options, upload: Upload) -> None:
        """Raises StoreFull for images that are too many, or would take too much, as far as can be told before."""
        present = _counts(folder)[0] if (folder / MANIFEST).is_file() else 0
        if present + upload.images > self._settings.images:
            raise StoreFull(
                f"the reference set has {present:,} images, and {self._settings.images:,} at most: no room for "
                f"{upload.images:,} more",
                reason="REFERENCE_STORE_FULL",
                field="images",
            )
        side = options.side
        pixels = 0 if side is None or not options.images else upload.images * side[0] * side[1]
        used, wanted = self.bytes(), 3 * pixels + ROW_BYTES * upload.images
        if used + wanted > self._settings.bytes:
            raise StoreFull(
                f"reference sets take {used:,} bytes, and {self._settings.bytes:,} at most: no room for {wanted:,} "
                "more",
                reason="REFERENCE_STORE_FULL",
                field="images",
            )

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        folder = self.folder / name
        if not (folder / CREATED).is_file():
            raise _missing(name)
        try:
            with FileLock(folder / LOCK, timeout=0):
                yield
        except Timeout as error:
            raise NotReady(
                f"another server is changing the reference set {name!r}",
                reason="REFERENCE_LOCKED",
                field="reference",
                retry_seconds=5.0,
            ) from error
        except OSError:
            if (folder / CREATED).is_file():
                raise
            raise _missing(name) from None


def _counts(folder: Path) -> tuple[int, int]:
    """Images of a set, and duplicates."""
    manifest = read_manifest(folder)
    return manifest.count, manifest.duplicates


def _is_name(name: str) -> bool:
    try:
        return check_name(name) == name
    except ValueError:
        return False


def named(name: str) -> str:
    """A name for a set, unaltered.

    Raises:
        InvalidInput: it is none.
    """
    try:
        return check_name(name)
    except ValueError as error:
        reason = "REFERENCE_NAME_INVALID" if name else "REFERENCE_REQUIRED"
        raise InvalidInput(f"reference: {error}", reason=reason, field="reference") from None


def _missing(name: str) -> NotFound:
    return NotFound(f"no caller made a reference set {name[:64]!r}", reason="REFERENCE_NOT_FOUND", field="reference")
