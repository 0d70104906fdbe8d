"""What is made of a reference set once rows are written: joined segments, indexes, near duplicates left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from audit.reference.images import in_chunks, pixel_size
from audit.reference.index import FLAT_BYTES, GROWTH, SMALLEST, choose, write_index
from audit.reference.manifest import IndexInfo, IndexKind, Manifest, SegmentInfo
from audit.reference.reference_set import ReferenceSet
from audit.reference.removed import with_removed
from audit.reference.segments import PIXELS, Segment, embedded, set_digest, write_joined

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
    manifest = indexed(folder, manifest, progress)
    if manifest.options.near_duplicates is not None:
        manifest = _without_near(folder, manifest, published, progress)
    return identified(folder, manifest)


def identified(folder: Path, manifest: Manifest) -> Manifest:
    """With its count and the digest of what counts; a set with unreadable images is not complete."""
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
    segments = rewrite(folder, opened, manifest, every, lambda rows: rows)
    return manifest.model_copy(update={"segments": segments})


def rewrite(
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


def indexed(folder: Path, manifest: Manifest, progress: Progress) -> Manifest:
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
    return with_removed(folder, manifest, gone, kept, similarity)
