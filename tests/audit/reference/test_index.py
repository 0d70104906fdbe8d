"""Indexes against brute force, on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit.reference import index as module
from audit.reference import settling, upkeep
from audit.reference.folder import publish, read_manifest, writing
from audit.reference.images import low_frequencies, pixel_vectors
from audit.reference.index import FLAT_BYTES, Index, choose, count_lists, index_bytes, write_index
from audit.reference.manifest import EmbedderInfo, IndexKind, Manifest, Options
from audit.reference.reference_set import ReferenceSet
from audit.reference.segments import Segment, embedded, metadata_table, write_segment
from tests.mutations import run

COUNT, WIDTH = 3000, 32
KINDS = [kind for kind in get_args(IndexKind) if kind != "flat"]


def unit(count: int, seed: int) -> np.ndarray:
    """Unit vectors around forty centres."""
    centres = np.random.default_rng(0).standard_normal((40, WIDTH))
    draw = np.random.default_rng(seed)
    found = centres[draw.integers(40, size=count)] + 0.5 * draw.standard_normal((count, WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = unit(COUNT, 1), unit(60, 2)


@pytest.fixture(scope="module", params=KINDS)
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of embeddings, two segments, with an index of each kind in two shards."""
    folder = tmp_path_factory.mktemp(request.param) / "set"
    with writing(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(settling, "SMALLEST", 100)
        patch.setattr(module, "ROWS", 2000)
        patch.setattr(module, "SHARD_BYTES", 1)
        segments = []
        for part in (slice(0, 1000), slice(1000, COUNT)):
            vectors = VECTORS[part].astype(np.float16)
            digests = np.zeros((len(vectors), 32), np.uint8)
            digests[:, :8] = np.arange(part.start, part.stop, dtype=np.uint64)[:, None].view(np.uint8)
            table = metadata_table([f"k{row}" for row in range(part.start, part.stop)], [""] * len(vectors))
            segments.append(write_segment(folder, Segment(digests, table, None, {embedded(0): vectors})))
        manifest = Manifest(
            name="kept",
            complete=False,
            options=Options(images=False, index=request.param),
            embedders=[EmbedderInfo(model="none", digest="none", width=WIDTH)],
            segments=segments,
        )
        publish(folder, settling.settle(folder, manifest, 0, lambda *step: None))
    return folder


def recall(opened: ReferenceSet, expected: np.ndarray) -> float:
    """Of the nearest one."""
    return float((opened.search_vectors(QUERIES, 1)[1][:, 0] == expected).mean())


def test_an_index_finds_what_brute_force_finds(kept: Path) -> None:
    """Similarities are exact up to half precision and in order; one query alone finds what it finds among others."""
    opened = ReferenceSet.load(kept, models=False)
    (info,) = opened.manifest.indexes
    assert info.shard_rows == [2000, 1000]
    every = QUERIES @ VECTORS.T
    assert recall(opened, every.argmax(1)) >= 0.95
    similarities, indices = opened.search_vectors(QUERIES, 5)
    np.testing.assert_allclose(similarities, np.take_along_axis(every, indices, 1), atol=2e-3)
    assert (np.diff(similarities, axis=1) <= 0).all()
    alone = np.concatenate([opened.search_vectors(query[None], 5)[1] for query in QUERIES])
    assert (alone == indices).mean() >= 0.99


def test_few_that_are_left_are_all_found(kept: Path, tmp_path: Path) -> None:
    """Where nearly everything was removed, lists near to a query hold too few: all that are left are compared."""
    folder = tmp_path / "set"
    shutil.copytree(kept, folder)
    count = read_manifest(folder).count
    left = [3, 700, 1500, count - 2]
    opened = ReferenceSet.load(folder, models=False)
    vectors = opened.stored(embedded(0), opened.live[left])
    upkeep.remove(folder, np.delete(np.arange(count), left).tolist())
    similarities, indices = ReferenceSet.load(folder, models=False).search_vectors(QUERIES, 9)
    expected = QUERIES @ vectors.T
    assert indices.shape == (len(QUERIES), 4)
    np.testing.assert_array_equal(indices, (-expected).argsort(1))
    np.testing.assert_allclose(similarities, -np.sort(-expected, 1), atol=1e-5)


def test_removed_rows_are_never_found(kept: Path) -> None:
    """What was nearest is gone, indices close up, and the next nearest is found instead; compacting changes nothing."""
    opened = ReferenceSet.load(kept, models=False)
    gone = np.unique(opened.search_vectors(QUERIES, 3)[1])
    upkeep.remove(kept, gone.tolist())
    left = ReferenceSet.load(kept, models=False)
    rest = np.delete(VECTORS, gone, axis=0)
    expected = (QUERIES @ rest.T).argmax(1)
    assert len(left) == len(rest)
    assert recall(left, expected) >= 0.95
    keys = np.delete(np.array([f"k{row}" for row in range(COUNT)]), gone)
    assert [entry.key for entry in left.entries([0, 5, len(left) - 1])] == keys[[0, 5, -1]].tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settling, "SMALLEST", 100)
        compacted = upkeep.compact(kept)
    assert (compacted.digest, compacted.rows) == (left.digest, len(rest))
    assert recall(ReferenceSet.load(kept, models=False), expected) >= 0.95
    # What was open before still answers, of the state that it was opened in.
    assert recall(left, expected) >= 0.95
    assert left.entries([0])[0].key == keys[0]


def test_an_index_is_continued(tmp_path: Path) -> None:
    """Rows that come later go into shards of their own, with the centroids that are there."""
    (tmp_path / "indexes").mkdir()
    rows = np.arange(2000)
    first = write_index(tmp_path, "a.npy", "ivf-rabitq", WIDTH, lambda own: VECTORS[own], 2000, rows)
    whole = write_index(
        tmp_path, "a.npy", "ivf-rabitq", WIDTH, lambda own: VECTORS[own], COUNT, np.arange(COUNT), extended=first
    )
    assert (whole.shard_rows, whole.trained_rows) == ([2000, 1000], 2000)
    found = Index(tmp_path, whole, None).search(VECTORS[[5, 2500]], 10)
    assert found[0, 0] == 5
    assert 2500 in found[1]


def test_the_kind_goes_by_size() -> None:
    """Few vectors are compared one by one, many through lists; lists grow with the square root."""
    assert choose(1000, 512) == "flat"
    assert choose(FLAT_BYTES // 2048, 512) == "flat"
    assert choose(1_000_000, 512) == "ivf-rabitq"
    assert index_bytes("ivf-rabitq", 10**6, 512) < 10**6 * 512 * 4 / 8
    assert [count_lists(count) for count in (10, 10**4, 10**6, 10**9)] == [16, 512, 4096, 65_536]


@run(40)
@given(
    seed=st.integers(0, 1000), side=st.tuples(st.integers(1, 90), st.integers(1, 90)), channels=st.sampled_from([1, 3])
)
def test_low_frequencies_are_a_projection(seed: int, side: tuple[int, int], channels: int) -> None:
    """No two images are farther apart in them than in their pixels; small images lose nothing of their brightness."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, channels, *side, generator=generator) * 2 - 1
    low, pixels = low_frequencies(images, side), pixel_vectors(images, 3, side)
    assert low.shape[1] % 16 == 0
    assert (torch.cdist(low, low) <= torch.cdist(pixels, pixels) + 1e-3).all()
    if channels == 1 and max(side) <= 14:
        torch.testing.assert_close(torch.cdist(low, low), torch.cdist(pixels, pixels), rtol=1e-3, atol=1e-3)
