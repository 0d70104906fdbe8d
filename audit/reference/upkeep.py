"""Reference sets afterwards: entries found and removed, sets merged and compacted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from audit.errors import InvalidInput, NotFound
from audit.reference.folder import check, new_folder, publish, read_manifest, seal, writing
from audit.reference.manifest import PENDING, SEGMENTS, Manifest
from audit.reference.reference_set import ReferenceSet
from audit.reference.removed import kept_rows, removed_rows, with_removed, write_removed
from audit.reference.segments import LEFT_OUT, Segment
from audit.reference.settling import Progress, identified, indexed, rewrite, settle


def _settled(folder: Path) -> Manifest:
    """The state of a set, with no unfinished work beside it.

    Raises:
        InvalidInput: there is some.
    """
    manifest = read_manifest(folder)
    if (folder / PENDING).is_file():
        raise InvalidInput(
            f"an addition to {folder.name} is not finished: ask for it again first",
            reason="REFERENCE_UNFINISHED",
            field="reference",
        )
    check(folder, manifest)
    return manifest


def find(reference: ReferenceSet, *, keys: Sequence[str] = (), urls: Sequence[str] = ()) -> list[int]:
    """Indices of images by their keys or URLs; of a duplicate, that of the image it became one with.

    Raises:
        NotFound: one of them is nobody's.
    """
    rows, start = list[NDArray[np.int64]](), 0
    missing = {"key": set(keys), "url": set(urls)}
    for segment in reference.segments:
        kept, others = segment.table(["key", "url"]), segment.others(["key", "url", "same_as"])
        others = others.filter(pc.is_valid(others["same_as"]))
        for table, own in ((kept, np.arange(len(segment))), (others, others["same_as"].to_numpy())):
            for column, wanted in (("key", keys), ("url", urls)):
                hit = pc.is_in(table[column], pa.array(wanted, pa.string()))
                rows.append(start + own[hit.to_numpy()])
                missing[column] -= set(table[column].filter(hit).to_pylist())
        start += len(segment)
    if lost := sorted(missing["key"] | missing["url"]):
        raise NotFound(f"no image of {lost[0]!r} in the reference set", reason="IMAGE_NOT_FOUND", field="key")
    return np.flatnonzero(np.isin(reference.live, np.concatenate(rows))).tolist()


def remove(folder: Path, indices: Sequence[int]) -> Manifest:
    """Take images out. They cost disk until the set is compacted; a complete set is partial from now on.

    Args:
        folder: of the set.
        indices: of images, as searches name them.

    Raises:
        NotFound: there is no such image, or no set.
        BrokenReference: the set is damaged.
        InvalidInput: unfinished work is in the way, or nothing would be left.
    """
    with writing(folder):
        manifest = _settled(folder)
        chosen = np.unique(np.asarray(indices, np.int64))
        if len(chosen) and (chosen[0] < 0 or chosen[-1] >= manifest.count):
            wrong = chosen[0] if chosen[0] < 0 else chosen[-1]
            raise NotFound(
                f"no image {wrong} in a reference set of {manifest.count:,}", reason="IMAGE_NOT_FOUND", field="index"
            )
        if len(chosen) == manifest.count:
            raise InvalidInput("a reference set cannot be empty", reason="REFERENCE_EMPTY", field="index")
        opened = ReferenceSet.open(folder, manifest.model_copy(update={"indexes": []}), [])
        manifest = with_removed(folder, manifest, opened.live[chosen], None)
        manifest = identified(folder, manifest.model_copy(update={"complete": False, "origin": ""}))
        publish(folder, manifest)
        return manifest


def merge(folder: Path, others: Sequence[Path], progress: Progress = lambda stage, done, total: None) -> Manifest:
    """Take the rows of other sets in, without embedding anything. What is there already counts as a duplicate.

    Whether the set is complete stays as it is.

    Args:
        folder: of the set.
        others: folders of sets of the same embedders, with images of the same size or, as it, without.
        progress: see `Progress`.

    Raises:
        NotFound, BrokenReference: one of them is not there, or damaged.
        InvalidInput: they do not go together, or unfinished work is in the way.
    """
    with writing(folder):
        manifest = _settled(folder)
        published = manifest.rows
        for other in others:
            manifest = _taken_over(folder, manifest, other)
        manifest = settle(folder, manifest, published, progress).model_copy(update={"origin": ""})
        publish(folder, manifest)
        return manifest


def _taken_over(folder: Path, manifest: Manifest, other: Path) -> Manifest:
    theirs = read_manifest(other)
    check(other, theirs, None)
    for what, same in (
        ("embedders", [own.digest for own in theirs.embedders] == [own.digest for own in manifest.embedders]),
        ("size of images", theirs.side == manifest.side),
    ):
        if not same:
            raise InvalidInput(
                f"{other.name} and {folder.name} differ in their {what}", reason="REFERENCES_DIFFER", field="reference"
            )
    segments = []
    for info in theirs.segments:
        path = new_folder(folder, SEGMENTS)
        for name in info.files:
            _link(other / SEGMENTS / info.name / name, path / name)
        segments.append(info.model_copy(update={"name": seal(path)[0]}))
    offset, gone = manifest.rows, removed_rows(other, theirs)
    before = ReferenceSet.open(folder, manifest.model_copy(update={"indexes": []}), [])
    known = _contents(before)
    joined = manifest.model_copy(
        update={
            "segments": [*manifest.segments, *segments],
            "unreadable": manifest.unreadable + theirs.unreadable,
            "duplicates": manifest.duplicates + theirs.duplicates,
        }
    )
    rows = np.asarray(gone["row"].to_pylist(), np.int64) + offset
    same_as = [None if row is None else row + offset for row in gone["same_as"].to_pylist()]
    table = pa.table(
        [pa.array(rows), pa.array(same_as, pa.int64()), gone["similarity"]], names=["row", "same_as", "similarity"]
    )
    table = pa.concat_tables([removed_rows(folder, manifest), table])
    joined = joined.model_copy(update={"removed": write_removed(folder, table) if table.num_rows else None})
    if not manifest.options.deduplicate:
        return joined
    whole = ReferenceSet.open(folder, joined.model_copy(update={"indexes": []}), [])
    fresh = whole.live
    fresh = fresh[fresh >= offset]
    keys = _keys(whole)[fresh]
    order = known[0]
    place = np.searchsorted(order, keys)
    hit = np.minimum(place, len(order) - 1)
    double = order[hit] == keys if len(order) else np.zeros(len(keys), bool)
    if not double.any():
        return joined
    joined = joined.model_copy(update={"duplicates": joined.duplicates + int(double.sum())})
    return with_removed(folder, joined, fresh[double], known[1][hit[double]], np.ones(int(double.sum()), np.float32))


def _keys(opened: ReferenceSet) -> NDArray[np.uint64]:
    """Beginnings of the digests of all rows."""
    parts = [np.ascontiguousarray(segment.digests[:, :8]).view(np.uint64)[:, 0] for segment in opened.segments]
    return np.concatenate(parts)


def _contents(opened: ReferenceSet) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Beginnings of the digests of rows that count, in order, and the rows."""
    rows = opened.live
    keys = _keys(opened)[rows]
    order = keys.argsort(kind="stable")
    return keys[order], rows[order]


def _link(source: Path, target: Path) -> None:
    """Files are never changed, so that two sets can share them; on another disk they are copied."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def compact(folder: Path, progress: Progress = lambda stage, done, total: None) -> Manifest:
    """Give back what removed rows take, join small segments, and index anew what is no longer indexed well.

    Args:
        folder: of the set.
        progress: see `Progress`.

    Raises:
        NotFound: there is no set.
        BrokenReference: it is damaged.
        InvalidInput: unfinished work is in the way.
    """
    with writing(folder):
        manifest = _settled(folder)
        opened = ReferenceSet.open(folder, manifest.model_copy(update={"indexes": []}), [])
        gone = removed_rows(folder, manifest)

        def moved(rows: NDArray[np.int64]) -> NDArray[np.int64]:
            found = kept_rows(rows, gone)
            return np.where(found < 0, -1, found - np.searchsorted(opened.removed, found))

        chosen, more, start = list[NDArray[np.int64]](), list[dict[str, object]](), 0
        for segment in opened.segments:
            chosen.append(np.setdiff1d(np.arange(len(segment)), opened.removed - start, assume_unique=True))
            more += _near_entries(segment, start, gone, moved)
            start += len(segment)
        extra = pa.Table.from_pylist(more, schema=LEFT_OUT) if more else None
        segments = rewrite(folder, opened, manifest, chosen, moved, extra)
        update = {"segments": segments, "removed": None, "indexes": [] if gone.num_rows else manifest.indexes}
        manifest = identified(folder, indexed(folder, manifest.model_copy(update=update), progress))
        publish(folder, manifest)
        return manifest


def _near_entries(
    segment: Segment, start: int, gone: pa.Table, moved: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> list[dict[str, object]]:
    """Removed rows of a segment that became one with another, as what is left out."""
    rows = gone["row"].to_numpy()
    first, last = np.searchsorted(rows, [start, start + len(segment)])
    entries = gone.slice(first, last - first).to_pylist()
    known = segment.describe([entry["row"] - start for entry in entries], ["key", "caption", "url"])
    found = list[dict[str, object]]()
    for entry, own in zip(entries, known, strict=True):
        if entry["same_as"] is not None:
            (target,) = moved(np.asarray([entry["same_as"]], np.int64)).tolist()
            if target >= 0:
                values = {"why": "near duplicate", "same_as": target, "similarity": entry["similarity"]}
                found.append({**own, **values})
    return found
