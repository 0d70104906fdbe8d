"""Building reference sets, and adding to them: in a stream, in bounded memory, and resumable.

Rows are committed in segments, about one a minute. A build that was killed goes on behind the last of them when it is
asked for again with the same source; what was embedded before is not embedded again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from audit.errors import InvalidInput
from audit.reference.embedder import Embedder, Opener, open_embedder, relative_model
from audit.reference.folder import publish, read_manifest, read_pending, state_checksum, writing
from audit.reference.intake import Intake, LeftOut
from audit.reference.manifest import MANIFEST, EmbedderInfo, Manifest, Options, Pending
from audit.reference.reference_set import ReferenceSet
from audit.reference.settling import Progress, settle
from audit.reference.sources import Source, open_source


def build(
    source: Path | Source,
    folder: Path,
    *,
    name: str = "",
    complete: bool = True,
    embedders: Sequence[str] = (),
    options: Options | None = None,
    restart: bool = False,
    progress: Progress = lambda stage, done, total: None,
    left_out: LeftOut = lambda key, why: None,
    opener: Opener = open_embedder,
) -> ReferenceSet:
    """Build a set on disk. A build of the same source that was killed goes on; one that is done is opened.

    Args:
        source: what `audit.reference.sources` reads, or has opened.
        folder: of the set.
        name: the source's stem when "".
        complete: False when these are only some of the training images, or none. Where images could not be read, the
            set is partial whatever is said here.
        embedders: as `audit.reference.embedder.open_embedder` spells them. A source of embeddings needs the one that
            made them.
        options: how images are taken in.
        restart: whether unfinished work in the folder is dropped.
        progress: see `audit.reference.settling.Progress`. What it raises ends the build, as a kill would.
        left_out: see `audit.reference.intake.LeftOut`.
        opener: gives the embedders.

    Raises:
        NotFound: there is no source, or no weights of an embedder.
        BrokenReference: the folder holds a damaged set, or an embedder cannot be loaded.
        InvalidInput: the source holds nothing, or images of several sizes; the folder holds something else; or the
            options contradict each other.
    """
    options = options or Options()
    opened = source if isinstance(source, Source) else open_source(source)
    models = [opener(model) for model in embedders]
    _check(opened, models, options)
    origin = _origin(opened, [model.digest for model in models], options.model_dump_json(), str(complete), name)
    with writing(folder):
        if (folder / MANIFEST).is_file():
            if read_manifest(folder).origin == origin and not restart:
                return ReferenceSet.load(folder, opener=opener)
            raise InvalidInput(
                f"{folder} holds a reference set already; add to it, or name another folder",
                reason="FOLDER_IN_USE",
                field="out",
            )
        fresh = Manifest(
            name=name or (source.stem if isinstance(source, Path) else source.parts[0].stem),
            complete=complete,
            side=options.side if options.images and not opened.embedded else None,
            options=options.model_copy(update={"images": options.images and not opened.embedded}),
            embedders=[
                EmbedderInfo(model=relative_model(model.model_name, folder), digest=model.digest, width=_width(model))
                for model in models
            ],
        )
        pending = _resumed(folder, fresh, origin, restart)
        _take_in(Intake(folder, opened, models, pending, progress, left_out), origin)
    return ReferenceSet.load(folder, opener=opener)


def add(
    folder: Path,
    source: Path | Source,
    *,
    complete: bool | None = None,
    restart: bool = False,
    progress: Progress = lambda stage, done, total: None,
    left_out: LeftOut = lambda key, why: None,
    opener: Opener = open_embedder,
) -> ReferenceSet:
    """Add images to a set, as it takes them in. Until they all are, the set stays as it is.

    An addition that was killed goes on; one that is done is nothing to do.

    Args:
        folder: of the set.
        source: what `audit.reference.sources` reads, or has opened.
        complete: whether the set is now a checkpoint's whole training set; None leaves it as it is.
        restart: whether unfinished work in the folder is dropped.
        progress: see `audit.reference.settling.Progress`. What it raises ends the addition, as a kill would.
        left_out: see `audit.reference.intake.LeftOut`.
        opener: gives the embedders.

    Raises:
        NotFound: there is no set or no source.
        BrokenReference: the set is damaged.
        InvalidInput: the source holds nothing, images of another size than the set's, or embeddings where the set
            keeps images.
    """
    present = ReferenceSet.load(folder, opener=opener)
    opened = source if isinstance(source, Source) else open_source(source)
    if opened.embedded and (present.has_images or len(present.embedders) != 1):
        raise InvalidInput(
            f"{opened.parts[0].name} holds embeddings, the reference set needs images",
            reason="SOURCE_UNFIT",
            field="images",
        )
    with writing(folder):
        manifest = read_manifest(folder)
        origin = _origin(opened, [manifest.digest])
        if manifest.origin == _origin(opened, []) and not restart:
            return present
        grown = manifest if complete is None else manifest.model_copy(update={"complete": complete})
        pending = _resumed(folder, grown, origin, restart)
        _take_in(Intake(folder, opened, present.embedders, pending, progress, left_out), _origin(opened, []))
    return ReferenceSet.load(folder, opener=opener)


def _origin(source: Source, *asked: object) -> str:
    return hashlib.sha256(repr((source.identity, asked)).encode("utf-8", "replace")).hexdigest()


def _width(model: Embedder) -> int:
    return model(torch.zeros(1, 3, 32, 32)).shape[1]


def _check(source: Source, models: Sequence[Embedder], options: Options) -> None:
    """Raises InvalidInput where options contradict each other or the source."""
    why = ""
    if source.embedded and len(models) != 1:
        why = "a source of embeddings needs the embedder that made them, and no other"
    elif not models and not options.images:
        why = "a set without images needs an embedder: nothing could be searched"
    elif not models and options.near_duplicates is not None:
        why = "near duplicates are told by an embedder, and none is named"
    if why:
        raise InvalidInput(why, reason="EMBEDDER_REQUIRED", field="embedder")


def _resumed(folder: Path, fresh: Manifest, origin: str, restart: bool) -> Pending:
    pending = None if restart else read_pending(folder)
    if pending is None:
        return Pending(manifest=fresh, base=state_checksum(folder), origin=origin)
    if pending.origin != origin:
        raise InvalidInput(
            f"{folder} holds unfinished work with another source or other options; finish it, or start afresh",
            reason="REFERENCE_UNFINISHED",
            field="out",
        )
    return pending


def _take_in(intake: Intake, origin: str) -> None:
    """Take in what is not taken in yet, and make it the set's state, by the origin that the next one is told by."""
    folder = intake.folder
    published = read_manifest(folder).rows if (folder / MANIFEST).is_file() else 0
    intake.run()
    manifest = intake.pending.manifest
    if manifest.rows == published and not published:
        raise InvalidInput(
            f"no image of {intake.source.parts[0].name} can be read: {intake.fault}",
            reason="IMAGES_EMPTY",
            field="images",
        )
    manifest = settle(folder, manifest, published, intake.progress)
    publish(folder, manifest.model_copy(update={"origin": origin}))
