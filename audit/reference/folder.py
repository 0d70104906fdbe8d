"""The folder of a reference set, and how it changes from one state to the next in one step.

A new state begins when its manifest takes the place of the old one, which is one rename; what no manifest names is
removed by the next writer. A kill at any moment leaves the old state or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from audit.errors import BrokenReference, InvalidInput, NotFound
from audit.reference.manifest import (
    FORMAT,
    INDEXES,
    LOCK,
    MANIFEST,
    PENDING,
    PUBLISHED,
    REMOVED,
    SEGMENTS,
    File,
    Manifest,
    Pending,
    Published,
)

#: Files are checked against their digests when a set is opened, the smallest first, up to so many bytes: a second or
#: two. Of larger ones only the size is looked at, and `check` reads all of them.
VERIFIED_BYTES = 2**30

_Model = TypeVar("_Model", bound=BaseModel)


def read_manifest(folder: Path) -> Manifest:
    """The state of a set.

    Raises:
        NotFound: there is no set.
        BrokenReference: its manifest is damaged or of another format.
        InvalidInput: it is a published set.
    """
    if not (folder / MANIFEST).is_file():
        unfinished = "; a build there is not finished: run it again" if (folder / PENDING).is_file() else ""
        raise NotFound(f"no reference set at {folder}{unfinished}", reason="REFERENCE_NOT_FOUND", field="reference")
    try:
        return _read(folder, MANIFEST, Manifest)
    except BrokenReference:
        if format_of(folder) != PUBLISHED:
            raise
        read_published(folder)  # a manifest that merely says so is damaged
        raise InvalidInput(
            f"{folder.name} is a published reference set: change the one that it was published from, and publish that "
            "again",
            reason="REFERENCE_PUBLISHED",
            field="reference",
        ) from None


def read_published(folder: Path) -> Published:
    """The state of a set that is published.

    Raises:
        BrokenReference: its manifest is damaged or of another format.
    """
    return _read(folder, MANIFEST, Published, PUBLISHED)


def format_of(folder: Path) -> int | None:
    """The format of a set's folder; None where it has none."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, int) else None


def read_pending(folder: Path) -> Pending | None:
    """The unfinished work in a folder, if any."""
    return _read(folder, PENDING, Pending) if (folder / PENDING).is_file() else None


def _read(folder: Path, name: str, model: type[_Model], expected: int = FORMAT) -> _Model:
    try:
        content = json.loads((folder / name).read_bytes())
        checksum = content.pop("checksum")
        if content.get("format", expected) != expected:
            raise ValueError(f"format {content['format']}, this version reads {expected}")
        if checksum != _checksum(content):
            raise ValueError(f"{name} has changed since it was written")
        return model.model_validate_json(json.dumps(content))
    except (AttributeError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        first = f"{name} is none" if isinstance(error, ValidationError | AttributeError | KeyError) else error
        raise broken(folder, first) from error


def broken(folder: Path, why: object) -> BrokenReference:
    """That a set cannot be read."""
    return BrokenReference(
        f"the reference set {folder.name} cannot be read: {why}", reason="REFERENCE_DAMAGED", field="reference"
    )


def state_checksum(folder: Path) -> str:
    """Of the manifest of a set; "" where there is none yet."""
    if not (folder / MANIFEST).is_file():
        return ""
    return _checksum(read_manifest(folder).model_dump(mode="json"))


def _checksum(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_state(folder: Path, state: Manifest | Pending | Published) -> None:
    """Make this the state of the set, or of the unfinished work. Its files are on disk already."""
    content = state.model_dump(mode="json")
    name = PENDING if isinstance(state, Pending) else MANIFEST
    partial = folder / f".{name}"
    partial.write_text(json.dumps({**content, "checksum": _checksum(content)}, indent=1) + "\n")
    _sync(partial)
    partial.replace(folder / name)
    _sync(folder)


def publish(folder: Path, manifest: Manifest) -> None:
    """Make this the state of the set, with nothing unfinished, and remove what belongs to no state."""
    write_state(folder, manifest)
    (folder / PENDING).unlink(missing_ok=True)
    sweep(folder)


def seal(folder: Path) -> tuple[str, dict[str, File]]:
    """Bring the files of a new folder to disk, and give it the name that goes with what is in them.

    Returns:
        The name, and the files by theirs.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        _sync(path)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        found[path.name] = File(bytes=path.stat().st_size, sha256=digest)
    _sync(folder)
    name = _checksum({name: file.sha256 for name, file in found.items()})[:16]
    if folder.with_name(name).exists():  # the same is there already
        shutil.rmtree(folder)
    else:
        folder.rename(folder.with_name(name))
    _sync(folder.parent)
    return name, found


def new_folder(folder: Path, kind: str) -> Path:
    """An empty folder below `folder/kind`, for `seal`."""
    path = folder / kind / f"new-{secrets.token_hex(8)}"
    path.mkdir(parents=True)
    return path


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove files that neither the set nor unfinished work names."""
    states = [read_manifest(folder)] if (folder / MANIFEST).is_file() else []
    pending = read_pending(folder)
    if pending is not None and pending.base == state_checksum(folder):
        states.append(pending.manifest)
    else:
        (folder / PENDING).unlink(missing_ok=True)
    kept = {Path(path).parts[1] for state in states for path, _ in state.files()}
    for kind in (SEGMENTS, INDEXES, REMOVED):
        for path in (folder / kind).glob("*"):
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)


def check(folder: Path, manifest: Manifest, most: int | None = VERIFIED_BYTES) -> None:
    """Compare the files of a set with its manifest.

    Args:
        folder: of the set.
        manifest: of it.
        most: bytes that are read, the smallest files first; None reads all. Sizes are compared of every file.

    Raises:
        BrokenReference: one is gone, or is not what was written.
    """
    read = 0
    for path, file in sorted(manifest.files(), key=lambda pair: pair[1].bytes):
        try:
            if (folder / path).is_symlink() or (folder / path).stat().st_size != file.bytes:
                raise ValueError(f"{path} has another size than it was written with")
            read += file.bytes
            if most is None or read <= most:
                with (folder / path).open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                        raise ValueError(f"{path} has changed since it was written")
        except OSError as error:
            raise broken(folder, f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise broken(folder, error) from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """One writer at a time; the folder is made, and what a killed writer left behind is removed.

    Raises:
        InvalidInput: something else is in the folder, or another writer.
    """
    known = {MANIFEST, PENDING, LOCK, SEGMENTS, INDEXES, REMOVED, f".{MANIFEST}", f".{PENDING}"}
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= known):
        raise InvalidInput(f"{folder} exists and is no reference set", reason="FOLDER_IN_USE", field="out")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            sweep(folder)
            try:
                yield
            finally:
                if not (folder / MANIFEST).exists() and not (folder / PENDING).exists():
                    shutil.rmtree(folder)  # nothing was begun
    except Timeout as error:
        raise InvalidInput(
            f"another process is writing to {folder.name}", reason="REFERENCE_LOCKED", field="reference"
        ) from error
