"""Taking the images of a source in: decoded, sorted out and embedded a few at a time, written segment by segment."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from audit.errors import InvalidInput
from audit.model.memory import in_halves
from audit.reference.contents import KnownContents
from audit.reference.embedder import Embedder
from audit.reference.folder import write_state
from audit.reference.images import fit, low_frequencies, read_image, thumbnail, to_float
from audit.reference.manifest import Pending
from audit.reference.reference_set import EMBEDDED_ROWS, ReferenceSet
from audit.reference.segments import LEFT_OUT, PIXELS, Segment, content_digest, embedded, metadata_table, write_segment
from audit.reference.settling import SEGMENT_BYTES, SEGMENT_ROWS, Progress
from audit.reference.sources import Item, Source

#: A segment is committed after so long, whatever its size: what a kill costs at most.
SEGMENT_SECONDS = 60.0
#: Threads that decode images, and how many of those may wait to be embedded.
DECODERS, WAITING = 4, 32
#: Float32 pixels that are embedded side by side.
EMBEDDED_BYTES = 256 * 2**20

#: Called with the key of an image that cannot be read, and why.
LeftOut = Callable[[str, str], None]


@dataclass
class _Rows:
    """Rows that wait to be written, and what was left out among them."""

    items: list[Item] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    thumbnails: list[bytes | None] = field(default_factory=list)
    vectors: dict[str, list[NDArray[np.float16]]] = field(default_factory=dict)
    left_out: list[dict[str, Any]] = field(default_factory=list)


class Intake:
    """Reads a source to its end, and writes segments.

    Args:
        folder: of the set.
        source: of images or embeddings.
        models: the set's embedders.
        pending: how far an earlier one came.
        progress: see `audit.reference.settling.Progress`.
        left_out: see `LeftOut`.

    Attributes:
        pending: how far it came.
        fault: the first thing that was wrong with what could not be read; "" where nothing was.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        models: Sequence[Embedder],
        pending: Pending,
        progress: Progress,
        left_out: LeftOut,
    ) -> None:
        self.folder, self.source, self.models, self.pending, self.progress = folder, source, models, pending, progress
        self.left_out = left_out
        manifest = pending.manifest
        self.options = manifest.options
        self.start = manifest.rows
        self.side = manifest.side
        # Without images to keep, models are shown the middle square of each, as they were trained.
        self.shown = self.options.side if self.options.images else _square(models)
        self.known = KnownContents()
        #: Keys with the row that each is the same as; -1 of what could not be read.
        self.keyed = set[tuple[str, int]]()
        if self.options.deduplicate and manifest.segments:
            present = ReferenceSet.open(folder, manifest, [])
            self.known.add(np.concatenate([segment.digests for segment in present.segments]), present.live)
            if source.keyed:
                self.keyed = _keyed(present)
        self.rows = _Rows()
        self.fault = ""
        self.committed = time.monotonic()
        self.done = self.start

    def run(self) -> None:
        """Take in what is not taken in yet."""
        first = self.pending.part
        for part in range(first, len(self.source.parts)):
            read = self.pending.item if part == first else 0
            decoded = self._decoded(self.source.items(part, read))
            while batch := list(islice(decoded, self._rows_at_once())):
                self._take(batch)
                read += len(batch)
                self.progress("embedding" if self.models else "reading", self.done, None)
                if self._full():
                    self._commit(part, read)
        self._commit(len(self.source.parts), 0)

    def _rows_at_once(self) -> int:
        """Images that are embedded side by side: fewer, where they are known to be large."""
        size = self.shown or self.side
        return EMBEDDED_ROWS if size is None else max(1, min(EMBEDDED_ROWS, EMBEDDED_BYTES // (12 * size[0] * size[1])))

    def _decoded(self, items: Iterator[Item]) -> Iterator[tuple[Item, NDArray[np.uint8] | None, str]]:
        """Every item with its image as it is kept, and with what is wrong with it; in order, a few of them ahead."""
        with ThreadPoolExecutor(DECODERS) as pool:
            waiting: list[Future[tuple[Item, NDArray[np.uint8] | None, str]]] = []
            try:
                for item in items:
                    waiting.append(pool.submit(self._decode, item))
                    if len(waiting) >= WAITING:
                        yield waiting.pop(0).result()
                for future in waiting:
                    yield future.result()
            finally:
                for future in waiting:
                    future.cancel()

    def _decode(self, item: Item) -> tuple[Item, NDArray[np.uint8] | None, str]:
        if item.fault or item.vector is not None:
            return item, None, item.fault
        try:
            content = item.content
            assert content is not None
            image = content if isinstance(content, np.ndarray) else read_image(content)
            return item, fit(image, self.shown), ""
        except (InvalidInput, OSError) as error:
            return item, None, str(error)

    def _take(self, batch: Sequence[tuple[Item, NDArray[np.uint8] | None, str]]) -> None:
        """Sort out what is not to be kept, and embed the rest."""
        items, images, vectors = list[Item](), list[NDArray[np.uint8]](), list[NDArray[np.float16]]()
        for item, image, fault in batch:
            vector = None
            if item.vector is not None:
                vector, fault = self._unit(item.vector)
            elif image is not None and not fault:
                self._check_size(image)
            if fault:
                self.fault = self.fault or f"{item.key}: {fault}"
                self.left_out(item.key, fault)
                if not self._is_repeated(item, -1):
                    self._leave_out(item, fault, None)
                continue
            digest = hashlib.sha256(vector.data).digest() if vector is not None else content_digest(_given(image))
            row = self.start + len(self.rows.items) + len(items)
            if self.options.deduplicate and (same := self.known.find(digest, row)) is not None:
                if not self._is_repeated(item, same):
                    self._leave_out(item, "duplicate", same)
                continue
            self._is_repeated(item, row)
            items.append(item)
            self.rows.digests.append(digest)
            if vector is not None:
                vectors.append(vector)
            else:
                images.append(_given(image))
        self.done += len(items)
        self.rows.items += items
        if vectors:
            self.rows.vectors.setdefault(embedded(0), []).append(np.stack(vectors))
        if images:
            self._embed(images)

    def _is_repeated(self, item: Item, row: int) -> bool:
        """Whether a keyed source gave this key with the content of this row before; remembered from now on."""
        pair = (item.key, row)
        if not self.source.keyed or pair in self.keyed:
            return self.source.keyed
        self.keyed.add(pair)
        return False

    def _embed(self, images: list[NDArray[np.uint8]]) -> None:
        channels = max(image.shape[2] for image in images)
        batch = np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])
        floats = to_float(batch)
        for number, model in enumerate(self.models):
            found = in_halves(model, floats).numpy().astype(np.float16)
            self.rows.vectors.setdefault(embedded(number), []).append(found)
        if self.side is not None:
            self.rows.images += images
            low = low_frequencies(floats, self.side).numpy().astype(np.float16)
            self.rows.vectors.setdefault(PIXELS, []).append(low)
        side = self.options.thumbnails
        self.rows.thumbnails += [thumbnail(image, side) if side else None for image in images]

    def _check_size(self, image: NDArray[np.uint8]) -> None:
        """The first image decides, where nothing else did."""
        height, width = image.shape[:2]
        if self.options.images and self.side is None:
            self.side = height, width
        if self.options.images and (height, width) != self.side:
            assert self.side is not None
            raise InvalidInput(
                f"the images of {self.source.parts[0].name} have several sizes ({self.side[0]}×{self.side[1]}, "
                f"{height}×{width} …); name the one to bring them to",
                reason="IMAGES_MIXED_SIZES",
                field="images",
            )

    def _unit(self, vector: NDArray[np.float32]) -> tuple[NDArray[np.float16] | None, str]:
        width = self.pending.manifest.embedders[0].width
        if vector.shape != (width,):
            return None, f"its embedding has {vector.size} values, the embedder makes {width}"
        length = float(np.linalg.norm(vector.astype(np.float64)))
        if not np.isfinite(length) or length == 0:
            return None, "its embedding is zero or not finite"
        return np.ascontiguousarray(vector / length, np.float16), ""

    def _leave_out(self, item: Item, why: str, same_as: int | None) -> None:
        self.rows.left_out.append(
            {
                "key": item.key,
                "caption": item.caption,
                "url": item.url,
                "why": why,
                "same_as": None if same_as is None else same_as - self.start,
                "similarity": None if same_as is None else 1.0,
            }
        )

    def _full(self) -> bool:
        rows = self.rows
        if not rows.items:
            return False
        size = sum(image.nbytes for image in rows.images[:1]) * len(rows.images)
        return (
            len(rows.items) >= SEGMENT_ROWS
            or size >= SEGMENT_BYTES
            or time.monotonic() - self.committed >= SEGMENT_SECONDS
        )

    def _commit(self, part: int, item: int) -> None:
        """Write what is there as a segment; what is left out goes with it, and waits where there is none."""
        rows, manifest = self.rows, self.pending.manifest
        if not rows.items and not (rows.left_out and manifest.segments):
            self.pending = self.pending.model_copy(update={"part": part, "item": item})
            return
        urls = [entry.url for entry in rows.items]
        table = metadata_table(
            [entry.key for entry in rows.items], [entry.caption for entry in rows.items], urls,
            rows.thumbnails or None,
        )  # fmt: skip
        images = None
        if self.side is not None:
            channels = max((image.shape[2] for image in rows.images), default=1)
            images = np.empty((len(rows.items), *self.side, channels), np.uint8)
            for place, image in zip(images, rows.images, strict=True):
                place[:] = image
        digests = np.frombuffer(b"".join(rows.digests), np.uint8).reshape(-1, 32)
        widths = {embedded(number): info.width for number, info in enumerate(manifest.embedders)}
        if self.side is not None:
            widths[PIXELS] = low_frequencies(torch.zeros(1, 1, *self.side), self.side).shape[1]
        vectors = {
            name: np.concatenate([np.empty((0, width), np.float16), *rows.vectors.get(name, [])])
            for name, width in widths.items()
        }
        left_out = pa.Table.from_pylist(rows.left_out, schema=LEFT_OUT)
        info = write_segment(self.folder, Segment(digests, table, images, vectors, left_out))
        duplicates = sum(entry["same_as"] is not None for entry in rows.left_out)
        manifest = manifest.model_copy(
            update={
                "segments": [*manifest.segments, info],
                "side": self.side,
                "duplicates": manifest.duplicates + duplicates,
                "unreadable": manifest.unreadable + len(rows.left_out) - duplicates,
            }
        )
        self.pending = self.pending.model_copy(update={"manifest": manifest, "part": part, "item": item})
        write_state(self.folder, self.pending)
        self.known.add(digests, np.arange(len(digests)), self.start)
        self.start, self.rows, self.committed = manifest.rows, _Rows(), time.monotonic()


def _keyed(present: ReferenceSet) -> set[tuple[str, int]]:
    """See `Intake.keyed`."""
    found, start = set[tuple[str, int]](), 0
    for segment in present.segments:
        found.update((key, start + row) for row, key in enumerate(segment.table(["key"])["key"].to_pylist()))
        for entry in segment.others(["key", "same_as"]).to_pylist():
            found.add((entry["key"], -1 if entry["same_as"] is None else start + entry["same_as"]))
        start += len(segment)
    return found


def _square(models: Sequence[Embedder]) -> tuple[int, int] | None:
    sides = [max(model.size) for model in models]
    return (max(sides), max(sides)) if sides else None


def _given(image: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    assert image is not None
    return image
