"""Consecutive rows of a reference set, in memory or on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from audit.reference.folder import new_folder, seal
from audit.reference.manifest import SEGMENTS, Manifest, SegmentInfo

#: Rows of Parquet that are read at once to look one up, and how many such groups are remembered.
GROUP_ROWS, REMEMBERED = 4096, 64

METADATA = pa.schema([("key", pa.string()), ("caption", pa.string()), ("url", pa.string()), ("thumbnail", pa.binary())])
#: `same_as` is the row that a duplicate became one with, counted from the first row of the segment it is written in
#: (earlier ones are negative), so that segments can move; null for what could not be read.
LEFT_OUT = pa.schema(
    [("key", pa.string()), ("caption", pa.string()), ("url", pa.string()), ("why", pa.string()),
     ("same_as", pa.int64()), ("similarity", pa.float32())]
)  # fmt: skip

PIXELS, DIGESTS = "pixels.npy", "digests.npy"


def embedded(number: int) -> str:
    """The file of an embedder's vectors."""
    return f"embedded-{number}.npy"


class MappedTable:
    """A Parquet file, mapped into memory: it can be read for as long as this lives, also when it was removed since.

    Args:
        file: that is mapped. No file descriptor is held.
    """

    def __init__(self, file: Path) -> None:
        self._content = pa.py_buffer(np.memmap(file, np.uint8, "r"))

    def opened(self) -> pq.ParquetFile:
        """For one reader."""
        return pq.ParquetFile(pa.BufferReader(self._content))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows."""
        return self.opened().read(columns=columns)


@dataclass(frozen=True)
class Segment:
    """Consecutive rows.

    Attributes:
        digests: SHA-256 of every row's content, uint8, (rows, 32).
        metadata: as `METADATA` has it.
        images: uint8, (rows, height, width, 1 or 3); None where none are kept.
        vectors: float16, (rows, width), by the name of their file.
        left_out: as `LEFT_OUT` has it; None for nothing.
    """

    digests: NDArray[np.uint8]
    metadata: pa.Table | MappedTable
    images: NDArray[np.uint8] | None
    vectors: dict[str, NDArray[np.float16]]
    left_out: pa.Table | MappedTable | None = None

    def __len__(self) -> int:
        return len(self.digests)

    def describe(self, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Metadata of some rows."""
        found = []
        for row in rows:
            if isinstance(self.metadata, MappedTable):
                group = _group(self.metadata, row // GROUP_ROWS, tuple(columns))
                found.append(group.slice(row % GROUP_ROWS, 1).to_pylist()[0])
            else:
                found.append(self.metadata.select(columns).slice(row, 1).to_pylist()[0])
        return found

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Metadata of all rows."""
        if isinstance(self.metadata, MappedTable):
            return self.metadata.read(columns)
        return self.metadata if columns is None else self.metadata.select(columns)

    def others(self, columns: Sequence[str] | None = None) -> pa.Table:
        """What was left out."""
        if isinstance(self.left_out, MappedTable):
            return self.left_out.read(columns)
        found = LEFT_OUT.empty_table() if self.left_out is None else self.left_out
        return found if columns is None else found.select(columns)


@lru_cache(REMEMBERED)
def _group(table: MappedTable, group: int, columns: tuple[str, ...]) -> pa.Table:
    return table.opened().read_row_group(group, columns=list(columns))


def content_digest(image: NDArray[np.uint8]) -> bytes:
    """SHA-256 of an image, (height, width, channels), 32 bytes."""
    content = hashlib.sha256(f"{image.shape}".encode())
    content.update(np.ascontiguousarray(image).data)
    return content.digest()


def set_digest(digests: Iterable[NDArray[np.uint8]], complete: bool) -> str:
    """Identity of contents in order, and of completeness."""
    content = hashlib.sha256()
    for part in digests:
        content.update(np.ascontiguousarray(part).data)
    content.update(f"complete={complete}".encode())
    return f"sha256:{content.hexdigest()}"


def metadata_table(
    keys: Sequence[str],
    captions: Sequence[str],
    urls: Sequence[str] | None = None,
    thumbnails: Sequence[bytes | None] | None = None,
) -> pa.Table:
    """As `METADATA` has it."""
    count = len(keys)
    return pa.table(
        [keys, captions, urls or [""] * count, thumbnails or [None] * count],
        schema=METADATA,
    )


def write_segment(folder: Path, segment: Segment, *, compress: bool = False) -> SegmentInfo:
    """Write a segment to a folder of its own, and to disk.

    Args:
        folder: of the set.
        segment: in memory.
        compress: whether images are compressed, and read into memory when the set is opened.
    """
    path = new_folder(folder, SEGMENTS)
    np.save(path / DIGESTS, segment.digests)
    _write_parquet(path / "metadata.parquet", segment.table())
    if segment.images is not None and compress:
        np.savez_compressed(path / "images.npz", images=segment.images)
    elif segment.images is not None:
        np.save(path / "images.npy", segment.images)
    for name, vectors in segment.vectors.items():
        np.save(path / name, vectors)
    if (others := segment.others()).num_rows:
        _write_parquet(path / "left-out.parquet", others)
    name, files = seal(path)
    return SegmentInfo(name=name, rows=len(segment), files=files)


def write_joined(folder: Path, parts: Sequence[tuple[Segment, NDArray[np.int64]]], left_out: pa.Table) -> SegmentInfo:
    """Write rows of several segments as one, array by array, with no more in memory than a block of rows.

    Args:
        folder: of the set.
        parts: segments of the same set, and which of their rows, in order.
        left_out: of the new segment.
    """
    path = new_folder(folder, SEGMENTS)
    rows = sum(len(chosen) for _, chosen in parts)
    first = parts[0][0]
    _copy(path / DIGESTS, [(segment.digests, chosen) for segment, chosen in parts], rows)
    for name in first.vectors:
        _copy(path / name, [(segment.vectors[name], chosen) for segment, chosen in parts], rows)
    images = [(segment.images, chosen) for segment, chosen in parts if segment.images is not None]
    if images:
        _copy(path / "images.npy", images, rows)
    with pq.ParquetWriter(path / "metadata.parquet", METADATA) as writer:
        tables = (segment.table().take(pa.array(chosen)) for segment, chosen in parts)
        for group in _regrouped(tables):
            writer.write_table(group, row_group_size=GROUP_ROWS)
    if left_out.num_rows:
        _write_parquet(path / "left-out.parquet", left_out)
    name, files = seal(path)
    return SegmentInfo(name=name, rows=rows, files=files)


def _copy(file: Path, parts: Sequence[tuple[NDArray[Any], NDArray[np.int64]]], rows: int) -> None:
    """Chosen rows of arrays, one after the other; grey images among colour ones become colour."""
    shape = max((array.shape[1:] for array, _ in parts), key=lambda shape: shape[-1])
    out = np.lib.format.open_memmap(file, mode="w+", dtype=parts[0][0].dtype, shape=(rows, *shape))
    start, block = 0, max(1, 2**26 // max(1, int(np.prod(shape))))
    for array, chosen in parts:
        for begin in range(0, len(chosen), block):
            own = array[chosen[begin : begin + block]]
            out[start : start + len(own)] = own
            start += len(own)
    out.flush()


def _regrouped(tables: Iterable[pa.Table]) -> Iterable[pa.Table]:
    """The same rows in tables of a multiple of `GROUP_ROWS`, but for the last."""
    held: pa.Table | None = None
    for table in tables:
        held = table if held is None else pa.concat_tables([held, table])
        whole = held.num_rows // GROUP_ROWS * GROUP_ROWS
        if whole:
            yield held.slice(0, whole)
            held = held.slice(whole)
    if held is not None and held.num_rows:
        yield held


def _write_parquet(file: Path, table: pa.Table) -> None:
    pq.write_table(table, file, row_group_size=GROUP_ROWS, compression="zstd")


def open_segment(folder: Path, info: SegmentInfo, manifest: Manifest) -> Segment:
    """A segment on disk, memory-mapped.

    Raises:
        ValueError, OSError: a file is not what the manifest promises.
    """
    path = folder / SEGMENTS / info.name
    digests = _open_array(path / DIGESTS, np.uint8, (info.rows, 32))
    vectors = {
        embedded(number): _open_array(path / embedded(number), np.float16, (info.rows, embedder.width))
        for number, embedder in enumerate(manifest.embedders)
    }
    images = None
    if manifest.side is not None:
        packed = "images.npz" in info.files
        images = _open_array(path / ("images.npz" if packed else "images.npy"), np.uint8, None)
        if images.ndim != 4 or images.shape[:3] != (info.rows, *manifest.side) or images.shape[3] not in (1, 3):
            raise ValueError(f"the images of segment {info.name} do not match its manifest")
        if PIXELS in info.files:
            vectors[PIXELS] = _open_array(path / PIXELS, np.float16, None)
    return Segment(
        digests,
        MappedTable(path / "metadata.parquet"),
        images,
        vectors,
        MappedTable(path / "left-out.parquet") if "left-out.parquet" in info.files else None,
    )


def _open_array(file: Path, dtype: type, shape: tuple[int, ...] | None) -> NDArray[Any]:
    mapped = file.suffix == ".npy" and (shape is None or shape[0] > 0)  # nothing cannot be mapped
    opened = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    array = opened["images"] if file.suffix == ".npz" else opened
    if array.dtype != dtype or (shape is not None and array.shape != shape):
        raise ValueError(f"{file.name} does not match the manifest")
    return array
