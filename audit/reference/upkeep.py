"""What happens to reference sets once rows are written: indexes, near duplicates, removal, merging, compaction."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from audit.errors import InvalidInput, NotFound
from audit.reference.images import in_chunks, pixel_size
from audit.reference.index import FLAT_BYTES, GROWTH, SMALLEST, choose, write_index
from audit.reference.manifest import (
    PENDING,
    REMOVED,
    ROWS,
    SEGMENTS,
    File,
    IndexInfo,
    IndexKind,
    Manifest,
    SegmentInfo,
    check,
    new_folder,
    publish,
    read_manifest,
    seal,
    writing,
)
from audit.reference.reference_set import ReferenceSet, kept_rows, removed_rows, set_digest
from audit.reference.segments import LEFT_OUT, PIXELS, Segment, embedded, write_joined

#: Rows and bytes of images of a segment at most.
SEGMENT_ROWS, SEGMENT_BYTES = 65_536, 2**28
#: So many small segments are joined, and an index of so many shards more than it needs is written anew.
MANY = 16
#: Neighbours of a row among which near duplicates are looked for.
NEAR = 16
#: Rows that are searched at once.
_QUERIES = 1024

#: Called with what is being done, how much of it is done, and how much there is; None where nobody knows.
Progress = Callable[[str, int, int | None], None]


def settle(folder: Path, manifest: Manifest, published: int, progress: Progress) -> Manifest:
    """Make a state out of segments: joined, indexed, without near duplicates, with its identity.

    Args:
        folder: of the set.
        manifest: so far.
        published: rows that the set had before.
        progress: see `Progress`.
    """
    manifest = _joined(folder, manifest)
    manifest = _indexed(folder, manifest, progress)
    if manifest.options.near_duplicates is not None:
        manifest = _without_near(folder, manifest, published, progress)
    return _identified(folder, manifest)


def _identified(folder: Path, manifest: Manifest) -> Manifest:
    complete = manifest.complete and not manifest.unreadable
    opened = ReferenceSet.open(folder, manifest.model_copy(update={"indexes": []}), [])
    digests, start = list[NDArray[np.uint8]](), 0
    for segment in opened.segments:
        kept = np.setdiff1d(np.arange(len(segment)), opened.removed - start, assume_unique=True)
        digests.append(segment.digests[kept])
        start += len(segment)
    return manifest.model_copy(
        update={"complete": complete, "count": len(opened), "digest": set_digest(digests, complete)}
    )


def _joined(folder: Path, manifest: Manifest) -> Manifest:
    """Neighbouring segments that are small, as one, where there are many. Rows keep their numbers."""
    if len(manifest.segments) <= MANY:
        return manifest
    opened = ReferenceSet.open(folder, manifest.model_copy(update={"indexes": []}), [])
    every = [np.arange(len(segment)) for segment in opened.segments]
    segments = _rewrite(folder, opened, manifest, every, lambda rows: rows)
    return manifest.model_copy(update={"segments": segments})


def _rewrite(
    folder: Path,
    opened: ReferenceSet,
    manifest: Manifest,
    chosen: Sequence[NDArray[np.int64]],
    moved: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    more: pa.Table | None = None,
) -> list[SegmentInfo]:
    """Segments of as many rows as may be, of some rows of those that are there.

    Args:
        folder: of the set.
        opened: as it is.
        manifest: of it.
        chosen: rows of every segment, numbered from its first.
        moved: from numbers of rows of the whole set to those they have afterwards; negative ones are gone.
        more: what is left out besides, `same_as` counted from the first row of all.
    """
    found, start = list[SegmentInfo](), 0
    starts = np.cumsum([0, *map(len, opened.segments)])
    for group in _groups(opened.segments, chosen):
        rows = sum(len(chosen[number]) for number in group)
        if len(group) == 1 and rows == len(opened.segments[group[0]]) and more is None and start == starts[group[0]]:
            found.append(manifest.segments[group[0]])
        else:
            tables = [_aimed(opened.segments[number].others(), int(starts[number]), start, moved) for number in group]
            if more is not None:
                tables.append(_aimed(more, 0, start, lambda rows: rows))
            more = None
            parts = [(opened.segments[number], chosen[number]) for number in group]
            left_out = pa.concat_tables(tables)
            if rows or left_out.num_rows:
                found.append(write_joined(folder, parts, left_out))
        start += rows
    return found


def _aimed(
    others: pa.Table, before: int, after: int, moved: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> pa.Table:
    """What is left out, with `same_as` counted from another row; without what was the same as a row that is gone."""
    same = others["same_as"].to_pylist()
    known = [row + before for row in same if row is not None]
    targets = iter(moved(np.asarray(known, np.int64)).tolist())
    column, kept = [], []
    for row in same:
        target = None if row is None else next(targets)
        kept.append(target is None or target >= 0)
        column.append(None if target is None else target - after)
    place = others.schema.get_field_index("same_as")
    return others.set_column(place, "same_as", pa.array(column, pa.int64())).filter(pa.array(kept, pa.bool_()))


def _groups(segments: Sequence[Segment], chosen: Sequence[NDArray[np.int64]]) -> Iterator[list[int]]:
    """Neighbours that fit into one segment."""
    group, rows, size = list[int](), 0, 0
    for number, (segment, own) in enumerate(zip(segments, chosen, strict=True)):
        each = 0 if segment.images is None else int(np.prod(segment.images.shape[1:]))
        if group and (rows + len(own) > SEGMENT_ROWS or size + len(own) * each > SEGMENT_BYTES):
            yield group
            group, rows, size = [], 0, 0
        group.append(number)
        rows, size = rows + len(own), size + len(own) * each
    if group:
        yield group


def _indexed(folder: Path, manifest: Manifest, progress: Progress) -> Manifest:
    """With an index over every kind of vectors that are too many."""
    present = {info.vectors: info for info in manifest.indexes}
    opened = ReferenceSet.open(folder, manifest.model_copy(update={"indexes": []}), [])
    live, found = opened.live, list[IndexInfo]()
    for name in opened.segments[0].vectors:
        kind = _kind(manifest, name, opened.segments[0].vectors[name].shape[1], len(live))
        if kind == "flat":
            continue
        old = present.get(name)
        if old is not None and _serves(old, kind, manifest.rows, len(live)):
            if sum(old.shard_rows) == manifest.rows:
                found.append(old)
                continue
        else:
            old = None
        found.append(
            write_index(
                folder,
                name,
                kind,
                opened.segments[0].vectors[name].shape[1],
                lambda rows, name=name: opened.stored(name, rows),  # type: ignore[misc]
                manifest.rows,
                live,
                extended=old,
                progress=lambda done, total: progress("indexing", done, total),
            )
        )
    return manifest.model_copy(update={"indexes": found})


def _kind(manifest: Manifest, name: str, width: int, count: int) -> IndexKind:
    options = manifest.options
    if count < SMALLEST or options.index == "flat":
        return "flat"
    kind = choose(count, width) if options.index == "auto" else options.index
    if name != PIXELS:
        return kind
    assert manifest.side is not None
    height, across = pixel_size(manifest.side)
    # Without an index, pixels themselves are compared, which are more than their low frequencies.
    if options.index == "auto" and count * height * across * 3 * 4 <= FLAT_BYTES:
        return "flat"
    return "ivf-rabitq" if kind == "flat" else kind


def _serves(index: IndexInfo, kind: IndexKind, rows: int, live: int) -> bool:
    """Whether an index can be kept, and continued where rows were added."""
    same = index.kind == kind and sum(index.shard_rows) <= rows
    return same and live <= GROWTH * index.trained_rows and len(index.shard_rows) <= MANY + rows // SEGMENT_ROWS // MANY


def _without_near(folder: Path, manifest: Manifest, published: int, progress: Progress) -> Manifest:
    """New rows that are nearly the same as another become one with it: the first of all that hang together."""
    threshold = manifest.options.near_duplicates
    assert threshold is not None
    opened = ReferenceSet.open(folder, manifest, [])
    live = opened.live
    new = live[live >= published]
    pairs = []
    for part in in_chunks(len(new), _QUERIES):
        similarities, indices = opened.search_vectors(opened.stored(embedded(0), new[part]), NEAR)
        rows = live[indices]
        own = np.repeat(new[part][:, None], rows.shape[1], 1)
        near = (similarities >= threshold) & (rows != own)
        pairs.append(np.stack([own[near], rows[near]]))
        progress("comparing", part.stop, len(new))
    left, right = np.concatenate(pairs, 1) if pairs else np.empty((2, 0), np.int64)
    if not left.size:
        return manifest
    graph = coo_matrix((np.ones(len(left), bool), (left, right)), shape=(manifest.rows, manifest.rows))
    _, component = connected_components(graph, directed=False)
    first = np.full(component.max() + 1, manifest.rows)
    np.minimum.at(first, component[live], live)
    gone = new[first[component[new]] != new]
    kept = first[component[gone]]
    similarity = np.einsum("nd,nd->n", opened.stored(embedded(0), gone), opened.stored(embedded(0), kept))
    manifest = manifest.model_copy(update={"duplicates": manifest.duplicates + len(gone)})
    return _with_removed(folder, manifest, gone, kept, similarity)


def _with_removed(
    folder: Path,
    manifest: Manifest,
    rows: NDArray[np.int64],
    same_as: NDArray[np.int64] | None,
    similarity: NDArray[np.float32] | None = None,
) -> Manifest:
    """With more rows that do not count, and what they are the same as."""
    count = len(rows)
    more = pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "same_as": pa.nulls(count, pa.int64()) if same_as is None else pa.array(same_as, pa.int64()),
            "similarity": pa.nulls(count, pa.float32()) if similarity is None else pa.array(similarity, pa.float32()),
        }
    )
    table = pa.concat_tables([removed_rows(folder, manifest), more]).sort_by("row")
    return manifest.model_copy(update={"removed": _write_removed(folder, table)})


def _write_removed(folder: Path, table: pa.Table) -> tuple[str, File]:
    path = new_folder(folder, REMOVED)
    pq.write_table(table, path / ROWS)
    name, files = seal(path)
    return name, files[ROWS]


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
        manifest = _with_removed(folder, manifest, opened.live[chosen], None)
        manifest = _identified(folder, manifest.model_copy(update={"complete": False, "origin": ""}))
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
    joined = joined.model_copy(update={"removed": _write_removed(folder, table) if table.num_rows else None})
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
    return _with_removed(folder, joined, fresh[double], known[1][hit[double]], np.ones(int(double.sum()), np.float32))


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
        segments = _rewrite(folder, opened, manifest, chosen, moved, extra)
        update = {"segments": segments, "removed": None, "indexes": [] if gone.num_rows else manifest.indexes}
        manifest = _identified(folder, _indexed(folder, manifest.model_copy(update=update), progress))
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
