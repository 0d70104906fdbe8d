"""A reference set: images or their embeddings, what is known of each, and whether they are all there is.

Small sets live in memory; what `audit.reference.build` writes stays on disk, memory-mapped, and is searched through
FAISS indexes whose candidates are compared exactly (`audit.reference.manifest` describes the folder).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from audit.errors import AuditError, BrokenReference, InvalidInput
from audit.model.memory import in_halves
from audit.reference.clip import ClipEmbedder
from audit.reference.embedder import Embedder, Opener, open_embedder, open_embedders, relative_model
from audit.reference.folder import broken, check, format_of, publish, read_manifest, writing
from audit.reference.images import in_chunks, low_frequencies, pixel_vectors, read_image, to_float
from audit.reference.index import CANDIDATES, Index, nearest_rows
from audit.reference.manifest import PUBLISHED, EmbedderInfo, Manifest
from audit.reference.removed import kept_rows, removed_rows
from audit.reference.segments import (
    PIXELS,
    Segment,
    content_digest,
    embedded,
    metadata_table,
    open_segment,
    set_digest,
    write_segment,
)

#: Images that are embedded side by side.
EMBEDDED_ROWS = 256
#: Bytes of images up to which a set that is saved from memory is compressed, and read into memory again.
COMPRESSED_BYTES = 256 * 2**20
#: Rows that are read at once where all are compared.
_BLOCK = 65_536


@dataclass(frozen=True)
class Entry:
    """What is known of an image.

    Attributes:
        key: its name in the source.
        caption: "" where there is none.
        url: likewise.
        copies: how often the sources had it, or one nearly the same.
    """

    key: str
    caption: str
    url: str
    copies: int


class ReferenceSet:
    """Images and nearest-neighbour search over them. Safe to search from several threads.

    Args:
        name: what people call it.
        images: uint8, (n, height, width, channels).
        captions: one per image, "" where there is none.
        complete: whether this is the checkpoint's whole training set. Only then does "not found" mean "not there".
        embedder: for neighbours by embedding; None leaves them out.
        embeddings: what `embedder` gave for `images`, (n, width); made here when None.
        progress: called with (images embedded, images in all).

    Attributes:
        name: what people call it.
        complete: whether it is a checkpoint's whole training set.
        digest: "sha256:…" over the contents, in order, and completeness: the identity that reports name.
        embedders: whose vectors it holds; empty where it was opened without models.
        has_images: whether images are kept, so that pixels can be compared.
    """

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        captions: Sequence[str],
        *,
        complete: bool,
        embedder: Embedder | None = None,
        embeddings: NDArray[np.float16] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        vectors, infos = {}, []
        if embedder is not None:
            if embeddings is None:
                parts = []
                for part in in_chunks(len(images), EMBEDDED_ROWS):
                    parts.append(embedder(to_float(images[part])).numpy().astype(np.float16))
                    progress(part.stop, len(images))
                embeddings = np.concatenate(parts)
            vectors[embedded(0)] = embeddings
            infos.append(EmbedderInfo(model=embedder.model_name, digest=embedder.digest, width=embeddings.shape[1]))
        digests = np.frombuffer(b"".join(map(content_digest, images)), np.uint8).reshape(-1, 32)
        keys = [str(number) for number in range(len(images))]
        height, width = images.shape[1:3]
        self._open(
            None,
            Manifest(
                name=name,
                complete=complete,
                digest=set_digest([digests], complete),
                count=len(images),
                side=(height, width),
                embedders=infos,
            ),
            [Segment(digests, metadata_table(keys, list(captions)), images, vectors)],
            [] if embedder is None else [embedder],
        )

    def _open(
        self,
        folder: Path | None,
        manifest: Manifest,
        segments: Sequence[Segment],
        embedders: Sequence[Embedder],
    ) -> None:
        self.name, self.complete, self.digest = manifest.name, manifest.complete, manifest.digest
        self.manifest = manifest
        self.folder = folder
        self.segments = list(segments)
        self.embedders = tuple(embedders)
        self.has_images = manifest.side is not None
        self._starts = np.cumsum([0, *map(len, self.segments)])
        self._gone = removed_rows(folder, manifest)  # now: the next writer removes the file
        self.removed: NDArray[np.int64] = self._gone["row"].to_numpy()
        self._gaps = self.removed - np.arange(len(self.removed))
        self._channels = max((own.images.shape[3] for own in self.segments if own.images is not None), default=3)
        self._indexes: dict[str, Index] = {}
        if folder is not None:
            live = None
            if len(self.removed):
                live = np.ones(self._starts[-1], bool)
                live[self.removed] = False
            self._indexes = {info.vectors: Index(folder, info, live) for info in manifest.indexes}

    def __len__(self) -> int:
        return int(self._starts[-1]) - len(self.removed)

    @property
    def embedder(self) -> Embedder | None:
        """The first, whose neighbours reports name; None without one."""
        return self.embedders[0] if self.embedders else None

    @classmethod
    def load(cls, folder: Path, *, models: bool = True, opener: Opener = open_embedder) -> ReferenceSet:
        """Open a folder.

        Args:
            folder: that `save` or `audit.reference.build` wrote.
            models: whether embedders are loaded, without which only vectors and pixels can be searched.
            opener: gives an embedder by its name; those of several sets can then be one.

        Raises:
            NotFound: there is no reference set there.
            BrokenReference: it is damaged, of another format, or an embedder has other weights now.
        """
        if format_of(folder) == PUBLISHED:
            from audit.reference.published import PublishedSet  # which is a reference set itself

            return PublishedSet(folder, models=models, opener=opener)
        manifest = read_manifest(folder)
        try:
            check(folder, manifest)
            return cls.open(folder, manifest, open_embedders(folder, manifest.embedders, opener) if models else [])
        except (
            AuditError,
            EOFError,
            KeyError,
            RuntimeError,
            TypeError,
            ValueError,
            OSError,
            pa.ArrowException,
        ) as error:
            if read_manifest(folder) != manifest:  # a writer replaced it meanwhile, and removed its files
                return cls.load(folder, models=models, opener=opener)
            known = isinstance(error, BrokenReference) and error.reason == "REFERENCE_DAMAGED"
            raise error if known else broken(folder, error) from error

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, embedders: Sequence[Embedder]) -> ReferenceSet:
        """A state of a set whose files are known to be good."""
        opened = cls.__new__(cls)
        segments = [open_segment(folder, info, manifest) for info in manifest.segments]
        opened._open(folder, manifest, segments, embedders)
        return opened

    def save(self, folder: Path) -> None:
        """Write a set that lives in memory to a folder; whole or not at all. Another set is replaced.

        Raises:
            InvalidInput: something else is already there, or this set is on disk itself.
        """
        if self.folder is not None:
            raise InvalidInput(
                f"the reference set {self.name} is on disk already", reason="REFERENCE_ON_DISK", field="out"
            )
        with writing(folder):
            infos = [
                write_segment(folder, segment, compress=_image_bytes(segment) <= COMPRESSED_BYTES)
                for segment in self.segments
            ]
            embedders = [
                info.model_copy(update={"model": relative_model(info.model, folder)})
                for info in self.manifest.embedders
            ]
            publish(folder, self.manifest.model_copy(update={"segments": infos, "embedders": embedders}))

    @property
    def images(self) -> NDArray[np.uint8]:
        """All images, (n, height, width, channels). Of a large set that is more than memory holds.

        Raises:
            InvalidInput: it keeps none.
        """
        if len(self.segments) == 1 and self.segments[0].images is not None and not len(self.removed):
            return self.segments[0].images
        return self.pixels(range(len(self)))

    @cached_property
    def captions(self) -> list[str]:
        """All captions, in order. Of a large set, ask for `entries`."""
        found = [caption for own in self.segments for caption in own.table(["caption"])["caption"].to_pylist()]
        return [found[row] for row in self.live]

    def entries(self, indices: Sequence[int]) -> list[Entry]:
        """What is known of some images."""
        found = []
        for row, copies in zip(self._rows(np.asarray(indices, np.int64)).tolist(), self.copies(indices), strict=True):
            segment, own = self._place(row)
            (values,) = self.segments[segment].describe([own], ["key", "caption", "url"])
            found.append(Entry(**values, copies=int(copies)))
        return found

    def copies(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """How often the sources had each of some images, (n,)."""
        wanted = self._rows(np.asarray(indices, np.int64))
        rows, counts = self._copies
        if not len(rows):
            return np.ones(len(wanted), np.int64)
        place = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
        return 1 + np.where(rows[place] == wanted, counts[place], 0)

    def picture(self, index: int) -> NDArray[np.uint8] | None:
        """An image to look at, (height, width, channels): itself or its thumbnail; None where neither is kept."""
        if self.has_images:
            return self.pixels([index])[0]
        segment, own = self._place(int(self._rows(np.asarray([index]))[0]))
        content = self.segments[segment].describe([own], ["thumbnail"])[0]["thumbnail"]
        if content is None:
            return None
        decoded = read_image(content)
        return decoded[..., None] if decoded.ndim == 2 else decoded

    @cached_property
    def _copies(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows that others became one with, in order, and how many."""
        gone, targets = self._gone, []
        for segment, start in zip(self.segments, self._starts.tolist(), strict=False):
            targets.append(start + segment.others(["same_as"])["same_as"].drop_null().to_numpy())
        targets.append(gone["same_as"].drop_null().to_numpy())
        rows = kept_rows(np.concatenate(targets), gone)
        return np.unique(rows[rows >= 0], return_counts=True)

    def pixels(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Images by index, uint8 (n, height, width, channels).

        Raises:
            InvalidInput: the set keeps none.
        """
        if self.manifest.side is None:
            raise InvalidInput(
                f"the reference set {self.name} keeps no images", reason="REFERENCE_WITHOUT_IMAGES", field="reference"
            )
        rows = self._rows(np.asarray(indices, np.int64))
        found = np.empty((len(rows), *self.manifest.side, self._channels), np.uint8)
        for segment, chosen, own in self._split(rows):
            assert segment.images is not None
            found[chosen] = segment.images[own]
        return found

    def reference_images(self, indices: Sequence[int]) -> Tensor:
        """Images by index, float32 (n, channels, height, width) in [-1, 1]."""
        return to_float(self.pixels(indices))

    def vectors(self, images: Tensor) -> Tensor:
        """Any images as pixel vectors of this set's size and channels; of their own where the set keeps no images."""
        if self.manifest.side is None:
            return pixel_vectors(images, images.shape[1], (images.shape[2], images.shape[3]))
        return pixel_vectors(images, self._channels, self.manifest.side)

    def search_pixels(self, images: Tensor, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """ℓ2 distances to the k nearest images and their indices, each (n, k), nearest first.

        k is cut to the size of the set.

        Raises:
            InvalidInput: the set keeps no images.
        """
        k = min(k, len(self))
        if PIXELS not in self._indexes:
            return nearest_rows(self._all_pixels, self.vectors(images).numpy(), k)
        assert self.manifest.side is not None
        queries = self.vectors(images).numpy()
        rows = self._candidates(PIXELS, low_frequencies(images, self.manifest.side).numpy(), k)
        # Samples of one prompt have candidates in common, which are read once.
        distinct, places = np.unique(rows, return_inverse=True)
        own = self.vectors(self.reference_images(self._indices(np.maximum(distinct, 0)).tolist())).numpy()
        near = zip(queries, places.reshape(rows.shape), strict=True)
        distances = np.stack([np.linalg.norm(own[found] - query, axis=1) for query, found in near])
        return self._best(np.where(rows < 0, np.inf, distances).astype(np.float32), rows, k)

    def search_embedded(
        self, images: Tensor, k: int, which: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """Cosine similarities in [-1, 1] to the k nearest images and their indices; None without an embedder.

        Args:
            images: (n, channels, height, width) in [-1, 1].
            k: cut to the size of the set.
            which: of the embedders.
        """
        if which >= len(self.embedders):
            return None
        return self.search_vectors(in_halves(self.embedders[which], images).numpy(), k, which)

    def search_vectors(
        self, vectors: NDArray[np.float32], k: int, which: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As `search_embedded`, of unit vectors that the embedder made, (n, width).

        Raises:
            InvalidInput: they are of another width.
        """
        width = self._check_width(vectors, which)
        k = min(k, len(self))
        if embedded(which) not in self._indexes:
            similarities, indices = self._all_embedded(which).search(np.ascontiguousarray(vectors), k)
            return similarities, indices
        rows = self._candidates(embedded(which), vectors, k)
        own = self.stored(embedded(which), np.maximum(rows, 0).ravel()).reshape(*rows.shape, width)
        similarities = np.einsum("ncw,nw->nc", own, vectors)
        distances, indices = self._best(np.where(rows < 0, np.inf, -similarities), rows, k)
        return -distances, indices

    def _check_width(self, vectors: NDArray[np.float32], which: int) -> int:
        """The width of an embedder's vectors; raises InvalidInput for vectors of another one."""
        width = self.manifest.embedders[which].width
        if vectors.shape[1:] != (width,):
            raise InvalidInput(
                f"vectors of the reference set {self.name} have {width} values, not {vectors.shape[-1]}",
                reason="VECTORS_OF_ANOTHER_EMBEDDER",
                field="vectors",
            )
        return width

    @property
    def text_embedder(self) -> int | None:
        """Number of the first embedder that knows words; None where none does."""
        return next((number for number, one in enumerate(self.embedders) if isinstance(one, ClipEmbedder)), None)

    def search_text(self, text: str, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Cosine similarities in [-1, 1] of the k images nearest to a text, and their indices, each (1, k).

        Raises:
            InvalidInput: none of its embedders knows words.
        """
        if (which := self.text_embedder) is None:
            raise InvalidInput("only a set with a CLIP model knows words", reason="CLIP_REQUIRED", field="prompt")
        embedder = self.embedders[which]
        assert isinstance(embedder, ClipEmbedder)
        return self.search_vectors(embedder.embed_texts([text]).numpy(), k, which)

    def _candidates(self, name: str, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Rows among which the k nearest are, (n, more than k); -1 where there are no more."""
        index = self._indexes[name]
        rows = index.search(queries, max(2 * k, CANDIDATES[index.kind]))
        # The lists near to a query may hold too few, e.g. where nearly all of them were removed.
        for query in np.flatnonzero((rows[:, :k] < 0).any(1)):
            live, parts = self.live, []
            for part in in_chunks(len(live), _BLOCK):
                parts.append(np.square(self.stored(name, live[part]) - queries[query]).sum(1))
            nearest = live[np.concatenate(parts).argsort(kind="stable")[: rows.shape[1]]]
            rows[query] = np.pad(nearest, (0, rows.shape[1] - len(nearest)), constant_values=-1)
        return rows

    def stored(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors as they are stored, by the name of their file and by row, removed ones too: (n, width)."""
        found = np.empty((len(rows), self.segments[0].vectors[name].shape[1]), np.float32)
        for segment, chosen, own in self._split(rows):
            found[chosen] = segment.vectors[name][own]
        return found

    @property
    def live(self) -> NDArray[np.int64]:
        """Rows that count, in the order of their indices."""
        return np.setdiff1d(np.arange(self._starts[-1]), self.removed, assume_unique=True)

    def index_of(self, row: int) -> int | None:
        """The index of a row; None where it does not count."""
        place = int(np.searchsorted(self.removed, row))
        return None if place < len(self.removed) and self.removed[place] == row else row - place

    def _best(
        self, distances: NDArray[np.float32], rows: NDArray[np.int64], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        order = distances.argsort(axis=1, kind="stable")[:, :k]
        return np.take_along_axis(distances, order, 1), self._indices(np.take_along_axis(rows, order, 1))

    def _rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices count what is not removed."""
        return indices + np.searchsorted(self._gaps, indices, "right")

    def _indices(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows - np.searchsorted(self.removed, rows)

    def _place(self, row: int) -> tuple[int, int]:
        segment = int(np.searchsorted(self._starts, row, "right")) - 1
        return segment, row - int(self._starts[segment])

    def _split(self, rows: NDArray[np.int64]) -> Iterable[tuple[Segment, NDArray[np.bool_], NDArray[np.int64]]]:
        """Of every segment that has some of the rows: which of them, and where they are in it."""
        places = np.searchsorted(self._starts, rows, "right") - 1
        for place in np.unique(places):
            chosen = places == place
            yield self.segments[place], chosen, rows[chosen] - self._starts[place]

    @cached_property
    def _all_pixels(self) -> Any:
        flat = faiss.IndexFlatL2(self.vectors(self.reference_images([0])).shape[1])
        for part in in_chunks(len(self), 1024):
            flat.add(self.vectors(self.reference_images(range(part.start, part.stop))).numpy())
        return flat

    def _all_embedded(self, which: int) -> Any:
        if which not in self._flat:
            flat = faiss.IndexFlatIP(self.manifest.embedders[which].width)
            for part in in_chunks(len(self), _BLOCK):
                flat.add(self.stored(embedded(which), self._rows(np.arange(part.start, part.stop))))
            self._flat[which] = flat
        return self._flat[which]

    @cached_property
    def _flat(self) -> dict[int, Any]:
        return {}


def _image_bytes(segment: Segment) -> int:
    return 0 if segment.images is None else segment.images.nbytes
