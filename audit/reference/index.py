"""FAISS indexes of vectors that are too many to be compared one by one.

An index names candidates; the caller compares those exactly with the vectors as they are stored. Vectors are assigned
to lists around centroids (IVF), trained on a sample, and a search looks into the lists nearest to the query.

    flat        no index: every vector is compared, in memory
    ivf-flat    lists of the vectors in half precision
    ivf-pq      lists of product-quantised codes of four bits: a fraction of the memory, and candidates are worth less,
                so that more of them are compared exactly
    ivf-rabitq  the same with the signs of rotated vectors (RaBitQ, Gao & Long, SIGMOD 2024): a bit for each value
    hnsw        a navigable graph: quick to search, slow to build, and all of it has to stay in memory

Files are memory-mapped, in shards, so that one is built in bounded memory and the next can be appended. With FAISS for
GPUs, shards of the IVF kinds are searched there; what FAISS cannot move there stays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from audit.reference.folder import new_folder, seal
from audit.reference.images import in_chunks
from audit.reference.manifest import INDEXES, IndexInfo, IndexKind

#: Its types leave out what search parameters, selectors and lists have.
faiss: Any = _faiss

#: Float32 vectors of so many bytes are compared one by one.
FLAT_BYTES = 256 * 2**20
#: Bytes of a shard while it is built.
SHARD_BYTES = 2**30
#: Training vectors per centroid, and rounds of k-means: twice as many gained nothing that could be measured.
PER_CENTROID, ROUNDS = 20, 10
#: Lists at most, and from how many on centroids are found through a graph.
MOST_LISTS, GRAPH_LISTS = 65_536, 16_384
#: Lists that a search looks into.
PROBES = 32
#: Candidates of the graph, its links and how carefully they are chosen.
EXPLORED, GRAPH_LINKS, GRAPH_CONSTRUCTION = 96, 32, 60
#: Candidates that are compared exactly, at least.
CANDIDATES: dict[IndexKind, int] = {"flat": 0, "ivf-flat": 16, "ivf-pq": 128, "ivf-rabitq": 64, "hnsw": 16}
#: Rows that are added at once.
ROWS = 65_536
#: An index is trained anew when it has grown to so many times the rows that it was trained for.
GROWTH = 4
#: Fewer rows than this have no index.
SMALLEST = 4096

#: Gives the vectors of some rows, (n,) to (n, width), float32.
Vectors = Callable[[NDArray[np.int64]], NDArray[np.float32]]


def index_bytes(kind: IndexKind, count: int, width: int) -> int:
    """Memory that an index takes when all of it is in use."""
    lists = count_lists(count) * width * 4
    return {
        "flat": count * width * 4,
        "ivf-flat": count * (width * 2 + 8) + lists,
        "ivf-pq": count * (-(-_parts(width) // 2) + 8) + lists,
        "ivf-rabitq": count * (width // 8 + 16) + lists,
        "hnsw": count * (width * 2 + 8 * GRAPH_LINKS + 16),
    }[kind]


def choose(count: int, width: int) -> IndexKind:
    """The kind of index for so many vectors; docs/benchmarks/references.md has the reasons."""
    return "flat" if index_bytes("flat", count, width) <= FLAT_BYTES else "ivf-rabitq"


def count_lists(count: int) -> int:
    """About four times the square root: the search of centroids and that of lists then take about as long."""
    return int(np.clip(2 ** round(np.log2(4 * max(count, 1) ** 0.5)), 16, MOST_LISTS))


def _parts(width: int) -> int:
    """Of a product-quantised vector, of four bits each: one for every four values or so."""
    return max(parts for parts in range(1, max(1, width // 4) + 1) if width % parts == 0)


def train(kind: IndexKind, count: int, width: int, vectors: Vectors, rows: NDArray[np.int64]) -> Any:
    """An empty index.

    Args:
        kind: not flat.
        count: of the vectors that it is for.
        width: of them.
        vectors: by row.
        rows: that it may be trained on.
    """
    if kind == "hnsw":
        index = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_fp16, GRAPH_LINKS)
        index.hnsw.efConstruction = GRAPH_CONSTRUCTION
        index.train(vectors(rows[:1024]))
        return index
    lists = min(count_lists(count), len(rows))
    graph = "_HNSW32" if lists > GRAPH_LISTS else ""
    code = {"ivf-flat": "SQfp16", "ivf-pq": f"PQ{_parts(width)}x4fs", "ivf-rabitq": "RaBitQ"}[kind]
    index = faiss.index_factory(width, f"IVF{lists}{graph},{code}")
    index.cp.niter, index.cp.max_points_per_centroid = ROUNDS, PER_CENTROID
    index.cp.min_points_per_centroid = 1  # it would warn on standard error
    size = min(len(rows), max(PER_CENTROID * lists, ROWS))
    sample = np.random.default_rng(0).choice(rows, size, replace=False)
    index.train(vectors(np.sort(sample)))
    return index


def write_index(
    folder: Path,
    name: str,
    kind: IndexKind,
    width: int,
    vectors: Vectors,
    count: int,
    live: NDArray[np.int64],
    *,
    extended: IndexInfo | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> IndexInfo:
    """Index all rows of a set, or those behind what another index covers.

    Args:
        folder: of the set.
        name: of the file of each segment that holds the vectors.
        kind: not flat.
        width: of the vectors.
        vectors: by row.
        count: of rows.
        live: rows that count, to train on.
        extended: the index whose training and shards are taken over.
        progress: called with (rows indexed, rows in all).
    """
    path = new_folder(folder, INDEXES)
    sizes, trained_rows = [], len(live)
    if extended is None:
        empty = train(kind, len(live), width, vectors, live)
        faiss.write_index(empty, str(path / "trained.faiss"))
    else:
        sizes, trained_rows = list(extended.shard_rows), extended.trained_rows
        for file in extended.files:
            (path / file).hardlink_to(folder / INDEXES / extended.name / file)
    start = sum(sizes)
    most = max(ROWS, SHARD_BYTES // max(1, index_bytes(kind, 2**20, width) // 2**20))
    for part in in_chunks(count - start, most):
        shard = faiss.read_index(str(path / "trained.faiss"))
        for block in in_chunks(part.stop - part.start, ROWS):
            first = start + part.start
            shard.add(vectors(np.arange(first + block.start, first + block.stop)))
            progress(first + block.stop, count)
        _write_shard(shard, path / f"shard-{len(sizes):04d}.faiss")
        sizes.append(part.stop - part.start)
    digest, files = seal(path)
    return IndexInfo(name=digest, vectors=name, kind=kind, trained_rows=trained_rows, shard_rows=sizes, files=files)


def _write_shard(shard: Any, file: Path) -> None:
    if isinstance(shard, faiss.IndexHNSW):
        faiss.write_index(shard, str(file))
    else:  # all shards have the centroids of trained.faiss
        writer = faiss.FileIOWriter(str(file))
        faiss.write_InvertedLists(shard.invlists, writer)
        del writer  # closes it


class Index:
    """An index on disk. Safe to search from several threads.

    Args:
        folder: of the set.
        info: of the index.
        live: whether each row counts, (rows,); None where all do.
    """

    def __init__(self, folder: Path, info: IndexInfo, live: NDArray[np.bool_] | None) -> None:
        path = folder / INDEXES / info.name
        self.kind = info.kind
        self._sizes = list(info.shard_rows)
        self._starts = [sum(self._sizes[:shard]) for shard in range(len(self._sizes))]
        self._shards = [_open_shard(path, number, self.kind) for number in range(len(self._sizes))]
        self._bits = None if live is None else [
            np.packbits(live[start : start + size], bitorder="little")
            for start, size in zip(self._starts, self._sizes, strict=True)
        ]  # fmt: skip
        if any(shard.ntotal != size for shard, size in zip(self._shards, self._sizes, strict=True)):
            raise ValueError(f"the index {info.name} does not match its manifest")
        self._lock = threading.Lock()
        self._on_gpu = False
        # FAISS on a GPU knows no rows that do not count: such a set stays here until it is compacted.
        if live is None and self.kind != "hnsw" and faiss.get_num_gpus() > 0:
            with suppress(RuntimeError):  # of a kind that it does not support, or larger than its memory
                self._resources = faiss.StandardGpuResources()
                self._shards = [faiss.index_cpu_to_gpu(self._resources, 0, shard) for shard in self._shards]
                self._on_gpu = True

    def search(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Candidates for the nearest rows by ℓ2.

        Args:
            queries: (n, width).
            count: wanted of each.

        Returns:
            Row numbers, (n, count), nearest first as far as the index knows; -1 where there are fewer.
        """
        queries = np.ascontiguousarray(queries)
        if self._on_gpu:
            with self._lock:
                found = [shard.search(queries, count) for shard in self._shards]
        elif self.kind == "hnsw":
            found = [
                shard.search(queries, count, params=faiss.SearchParametersHNSW(efSearch=max(EXPLORED, count), sel=own))
                for shard, own in zip(self._shards, self._selectors(), strict=True)
            ]
        else:
            found = self._search_lists(queries, count)
        distances = np.concatenate([own for own, _ in found], 1)
        rows = np.concatenate(
            [np.where(own < 0, -1, own + start) for (_, own), start in zip(found, self._starts, strict=True)], 1
        )
        if len(found) == 1:
            return rows
        order = np.where(rows < 0, np.inf, distances).argsort(1, kind="stable")[:, :count]
        return np.take_along_axis(rows, order, 1)

    def _search_lists(
        self, queries: NDArray[np.float32], count: int
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Every shard has the same centroids, which are compared once."""
        first, n = self._shards[0], len(queries)
        probes = min(PROBES, first.nlist)
        near, lists = first.quantizer.search(queries, probes)
        found = []
        for shard, selector in zip(self._shards, self._selectors(), strict=True):
            distances, rows = np.empty((n, count), np.float32), np.empty((n, count), np.int64)
            arrays = (faiss.swig_ptr(each) for each in (lists, near, distances, rows))
            parameters = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
            shard.search_preassigned_c(n, faiss.swig_ptr(queries), count, *arrays, False, parameters)
            found.append((distances, rows))
        return found

    def _selectors(self) -> Sequence[Any]:
        if self._bits is None:
            return [None] * len(self._shards)
        return [faiss.IDSelectorBitmap(bits) for bits in self._bits]


def _open_shard(path: Path, number: int, kind: IndexKind) -> Any:
    file = str(path / f"shard-{number:04d}.faiss")
    if kind == "hnsw":
        return faiss.read_index(file, faiss.IO_FLAG_MMAP_IFC)
    shard = faiss.read_index(str(path / "trained.faiss"))
    reader = faiss.FileIOReader(file)
    lists = faiss.downcast_InvertedLists(faiss.read_InvertedLists(reader, faiss.IO_FLAG_MMAP))
    shard.replace_invlists(lists, True)
    lists.this.disown()  # the shard owns them now
    shard.ntotal = lists.compute_ntotal()
    shard.nprobe = min(PROBES, shard.nlist)
    return shard


def nearest_rows(
    index: _faiss.IndexFlatL2, vectors: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Exhaustive search, with exact distances.

    Args:
        index: what is searched.
        vectors: (n, d).
        k: neighbours of each; cut to the size of the index.

    Returns:
        ℓ2 distances and row numbers, each (n, k), nearest first.
    """
    _, indices = index.search(vectors, min(k, index.ntotal))
    # FAISS expands the square, which leaves a copy at a small distance of its own; these few are taken exactly.
    found = index.reconstruct_batch(indices.ravel()).reshape(*indices.shape, -1)
    distances = np.linalg.norm(found - vectors[:, None], axis=2)
    order = distances.argsort(axis=1, kind="stable")
    return np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1)
