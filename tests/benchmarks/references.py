"""Indexes of reference sets against brute force, what building takes, and what the comparison costs an audit."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from audit import demo
from audit.auditor import Auditor
from audit.bench.markdown import markdown
from audit.budget import Budget
from audit.phase.data import load_fashion_mnist
from audit.reference.build import build
from audit.reference.clip import ClipEmbedder
from audit.reference.folder import publish, writing
from audit.reference.images import in_chunks, low_frequencies, to_float
from audit.reference.manifest import EmbedderInfo, IndexKind, Manifest, Options
from audit.reference.reference_set import ReferenceSet
from audit.reference.segments import PIXELS, Segment, content_digest, embedded, metadata_table, write_segment
from audit.reference.settling import SEGMENT_ROWS, settle
from tests.benchmarks.common import checkpoint, reference, truth

SIZES, WIDTH = (10_000, 100_000, 1_000_000), 512
#: Up to so many vectors every kind is measured; beyond, a graph takes an hour to build here, four-bit codes have shown
#: what they are worth, and no index is what the others are compared with.
EVERY_KIND = 100_000
#: Clusters of the mixture, exponent of their sizes, dimensions within one, and spread along and across those.
CLUSTERS, POWER, INNER, ALONG, ACROSS = 20_000, 0.9, 20, 0.6, 0.2
#: How far a query stands from the member that it was made of.
MOVED = 0.15
#: Queries of which recall is told, those asked one by one, and the number that they are drawn with; indexes were tuned
#: with another.
QUERIES, SINGLE, DRAWN = 1024, 128, 2
AUDITS, REFERENCES = 8, 1_000_000

Vectors = NDArray[np.float32]


class Measured(NamedTuple):
    """An index, on one thread."""

    recall: float
    single: float
    batch: float
    memory: float
    seconds: float


def run() -> str:
    """The tables, as Markdown."""
    rows, growth = [], []
    for size in SIZES:
        with _mixture_set(size) as (folder, manifest, vectors):
            queries = _queries(vectors)
            nearest = _nearest(vectors, queries)
            for kind in _kinds(size):
                found = _measure(folder, manifest, kind, vectors, queries, nearest)
                rows.append([f"{size:,}", *_row(kind, found)])
                growth.append([f"{size:,}", kind, f"{found.seconds:,.1f} s", f"{size / found.seconds:,.0f}"])
    return f"""# Reference sets

`python -m tests.benchmarks references`

## Indexes against brute force

Unit vectors of {WIDTH} dimensions from a mixture: {CLUSTERS:,} clusters whose sizes fall as rank^−{POWER}, centres with
a spectrum that falls as rank^−½, within a cluster {INNER} of 64 × {INNER} shared directions with spread {ALONG}, and
{ACROSS} across them, all before normalisation. {QUERIES:,} queries: half are members moved by {MOVED}, half new
draws of the mixture; indexes were tuned with others. Recall is of the nearest one, through
`ReferenceSet.search_vectors`, which compares candidates exactly with the stored vectors (half precision, on disk).
Times are of one thread, as ratios to brute force, measured right before: FAISS's flat index for one query at a time,
and blocks of matrix products for 64 at once, each the quicker of the two. The index takes so much memory with all of it
in use, as a share of the raw vectors of {4 * WIDTH:,} bytes; the stored vectors are mapped, not held.

{markdown(["vectors", "index", "recall@1", "one at a time", "batches of 64", "memory"], rows)}

{markdown(["vectors", "index", "trained and filled in", "vectors a second"], growth)}

## Real embeddings

The 60,000 images of Fashion-MNIST with the demo's CLIP model (64 dimensions); queries are {QUERIES:,} of them, shifted
by a pixel. Building is from an .npz file with that model, everything included.

{_fashion()}

## What the comparison costs an audit

{_audits()}
"""


def _kinds(size: int) -> list[IndexKind]:
    return list(get_args(IndexKind)) if size <= EVERY_KIND else ["ivf-flat", "ivf-rabitq"]


def _row(kind: str, found: Measured) -> list[str]:
    share = f"1/{1 / found.memory:.1f}" if found.memory < 1 else f"{found.memory:.2f}"
    return [kind, f"{found.recall:.4f}", f"{found.single:.1f} ×", f"{found.batch:.1f} ×", share]


def _mixture(count: int, seed: int) -> Vectors:
    """Unit vectors with the structure that embeddings of image collections have; see the page."""
    world, draw = np.random.default_rng(0), np.random.default_rng([seed, 1])
    spectrum = np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5
    centres = world.standard_normal((CLUSTERS, WIDTH), dtype=np.float32) * spectrum
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    weights = np.arange(1.0, CLUSTERS + 1) ** -POWER
    directions = world.standard_normal((64, INNER, WIDTH), dtype=np.float32) / np.float32((WIDTH * INNER) ** 0.5)
    found = np.empty((count, WIDTH), np.float32)
    for part in in_chunks(count, SEGMENT_ROWS):
        rows = part.stop - part.start
        cluster = draw.choice(CLUSTERS, rows, p=weights / weights.sum())
        own = centres[cluster]
        within = draw.standard_normal((rows, INNER), dtype=np.float32)
        for shared in range(len(directions)):
            chosen = cluster % len(directions) == shared
            own[chosen] += ALONG * within[chosen] @ directions[shared]
        own += ACROSS / WIDTH**0.5 * draw.standard_normal(own.shape, dtype=np.float32)
        found[part] = own / np.linalg.norm(own, axis=1, keepdims=True)
    return found


def _queries(vectors: Vectors) -> Vectors:
    draw = np.random.default_rng(DRAWN)
    members = vectors[draw.choice(len(vectors), QUERIES // 2, replace=False)]
    members = members + MOVED / WIDTH**0.5 * draw.standard_normal(members.shape, dtype=np.float32)
    members /= np.linalg.norm(members, axis=1, keepdims=True)
    return np.concatenate([members, _mixture(QUERIES // 2, 1000 + DRAWN)]).astype(np.float32)


@contextmanager
def _mixture_set(size: int) -> Iterator[tuple[Path, Manifest, Vectors]]:
    """A set of such vectors without an index, and the vectors."""
    vectors = _mixture(size, 1)
    with tempfile.TemporaryDirectory() as name:
        folder, segments = Path(name) / "set", []
        for part in in_chunks(size, SEGMENT_ROWS):
            rows = range(part.start, part.stop)
            digests = np.zeros((len(rows), 32), np.uint8)
            digests[:, :8] = np.arange(part.start, part.stop, dtype=np.uint64)[:, None].view(np.uint8)
            table = metadata_table([str(row) for row in rows], [""] * len(rows))
            stored = {embedded(0): vectors[part].astype(np.float16)}
            segments.append(write_segment(folder, Segment(digests, table, None, stored)))
        info = EmbedderInfo(model="none", digest="none", width=WIDTH)
        yield folder, Manifest(name="mixture", complete=False, embedders=[info], segments=segments), vectors


def _measure(
    folder: Path,
    manifest: Manifest,
    kind: IndexKind,
    vectors: Vectors,
    queries: Vectors,
    nearest: NDArray[np.int64],
) -> Measured:
    start = time.perf_counter()
    options = manifest.options.model_copy(update={"index": kind})
    indexed = settle(folder, manifest.model_copy(update={"options": options}), 0, lambda *step: None)
    opened = ReferenceSet.open(folder, indexed, [])
    search = partial(opened.search_vectors, k=1)
    search(queries[:1])
    seconds = time.perf_counter() - start
    with _one_thread():
        brute_single, brute_batch = _brute(vectors, queries)
        single = _seconds(lambda: [search(queries[row : row + 1]) for row in range(0, QUERIES, QUERIES // SINGLE)])
        hits, batch = 0, 0.0
        for part in in_chunks(QUERIES, 64):
            begin = time.perf_counter()
            indices = search(queries[part])[1]
            batch += time.perf_counter() - begin
            hits += int((indices[:, 0] == nearest[part]).sum())
    if kind == "flat":
        memory = 1.0
    else:
        memory = sum(file.bytes for info in indexed.indexes for file in info.files.values()) / vectors.nbytes
    found = Measured(hits / QUERIES, brute_single / (single / SINGLE), brute_batch / (batch / QUERIES), memory, seconds)
    print(f"{len(vectors):,} {kind}: {found}", file=sys.stderr, flush=True)
    return found


def _product(base: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The nearest of some queries, in blocks of matrix products."""
    best = [(base[part] @ rows.T).max(0) for part in in_chunks(len(base), 16_384)]
    values, places = torch.stack([one.values for one in best]), torch.stack([one.indices for one in best])
    block = values.argmax(0)
    return block * 16_384 + places[block, torch.arange(len(rows))]


def _nearest(vectors: Vectors, queries: Vectors) -> NDArray[np.int64]:
    base, asked = torch.from_numpy(vectors), torch.from_numpy(queries)
    return torch.cat([_product(base, asked[part]) for part in in_chunks(len(asked), 256)]).numpy()


def _brute(vectors: Vectors, queries: Vectors) -> tuple[float, float]:
    """Seconds of a query alone, and of one of 64."""
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    single = _seconds(lambda: [flat.search(queries[row : row + 1], 1) for row in range(8)]) / 8
    base, asked = torch.from_numpy(vectors), torch.from_numpy(queries)
    return single, _seconds(lambda: [_product(base, asked[:64]) for _ in range(2)]) / 128


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def _one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before[0])
    torch.set_num_threads(before[1])


def _fashion() -> str:
    """Fashion-MNIST with the demo's CLIP model."""
    images, embedder = load_fashion_mnist().images, ClipEmbedder(f"local-dir:{demo.CLIP}")
    shifted = np.roll(images[:: len(images) // QUERIES][:QUERIES], 1, axis=2)
    rows, building = [], []
    with tempfile.TemporaryDirectory() as name:
        for count in (10_000, len(images)):
            source, folder = Path(name) / f"{count}.npz", Path(name) / f"set-{count}"
            np.savez(source, images=images[:count])
            begin = time.perf_counter()
            build(source, folder, embedders=[embedder.model_name])
            seconds = time.perf_counter() - begin
            building.append([f"{count:,}", f"{seconds:.0f} s", f"{count / seconds:,.0f}"])
        opened = ReferenceSet.load(folder)
        stored = opened.stored(embedded(0), opened.live)
        queries = embedder(to_float(shifted[..., None])).numpy()
        for kind in _kinds(EVERY_KIND):
            nearest = _nearest(stored, queries)
            rows.append(_row(kind, _measure(folder, opened.manifest, kind, stored, queries, nearest)))
    return "\n\n".join(
        (
            markdown(["images", "built in", "images a second"], building),
            markdown(["index", "recall@1", "one at a time", "batches of 64", "memory"], rows),
        )
    )


def _audits() -> str:
    """Audits of the demo against a million images: the demo's own, and others made of them."""
    own = reference()
    prompts = [row.prompt for row in truth()[:: max(1, len(truth()) // AUDITS)]][:AUDITS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "set"
        with writing(folder):
            _write_million(folder, own)
        large = ReferenceSet.load(folder)
        rows = []
        for title, used in ((f"{len(own):,}", own), (f"{len(large):,}", large)):
            auditor, budget = Auditor(checkpoint(), used, demo.calibration()), Budget()
            shares = []
            for _ in range(2):  # the first visit reconstructs candidates, the second remembers them
                costs = [auditor.audit(prompt, budget=budget).cost for prompt in prompts]
                shares.append([cost.stage_seconds["searching"] / cost.compute_seconds for cost in costs])
            rows.append([title, *(f"{np.median(own_shares):.1%} ({max(own_shares):.1%})" for own_shares in shares)])
    return f"""`searching` in {len(prompts)} audits of the demo at the default budget: CLIP and pixel neighbours, and
the reconstruction of candidates, as a share of the wall time, median (largest). Reconstructions of candidates are made
once and remembered on disk. The large set is the demo's images and others made of two of them each.

{markdown(["images", "first visit", "reconstructions remembered"], rows)}
"""


def _write_million(folder: Path, own: ReferenceSet) -> None:
    """The demo's images, and blends of two, some of them mirrored."""
    draw = np.random.default_rng(0)
    images, vectors = own.images, own.stored(embedded(0), own.live)
    segments = []
    for part in in_chunks(REFERENCES, SEGMENT_ROWS):
        rows = np.arange(part.start, part.stop)
        first, second = rows % len(images), draw.integers(len(images), size=len(rows))
        weight = np.where(rows < len(images), 0, draw.uniform(0.2, 0.5, len(rows))).astype(np.float32)
        blend = images[first] * (1 - weight)[:, None, None, None] + images[second] * weight[:, None, None, None]
        blend = blend.round().astype(np.uint8)
        mixed = vectors[first] * (1 - weight)[:, None] + vectors[second] * weight[:, None]
        low = [low_frequencies(to_float(blend[block]), (32, 32)).numpy() for block in in_chunks(len(blend), 1024)]
        stored = {
            embedded(0): (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float16),
            PIXELS: np.concatenate(low).astype(np.float16),
        }
        digests = np.frombuffer(b"".join(map(content_digest, blend)), np.uint8).reshape(-1, 32)
        table = metadata_table([str(row) for row in rows], [""] * len(rows))
        segments.append(write_segment(folder, Segment(digests, table, blend, stored)))
    info = own.manifest.embedders[0].model_copy(update={"model": f"local-dir:{demo.CLIP}"})
    manifest = Manifest(
        name="million", complete=False, side=(32, 32), embedders=[info], segments=segments, options=Options()
    )
    publish(folder, settle(folder, manifest, 0, lambda *step: None))
