"""Nearest reference images after the decoder's trip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audit import demo
from audit.auditor import Auditor
from audit.budget import Budget
from audit.calibrate import copy_threshold
from audit.evidence import neighbors as module
from audit.evidence.neighbors import NeighborFinder, Neighbors
from audit.model.checkpoint import Checkpoint
from audit.model.pieces import in_pieces
from audit.reference.build import build
from audit.reference.manifest import Options
from audit.reference.reference_set import ReferenceSet
from service.wire import report_to_proto


@pytest.fixture(scope="module")
def small(reference: ReferenceSet) -> ReferenceSet:
    """Fifty different images of the demo's training set, pixels only."""
    images = np.unique(np.asarray(reference.images), axis=0)
    images = images[np.linspace(0, len(images) - 1, 50).astype(int)]
    return ReferenceSet("small", images, [""] * 50, complete=True)


def through_decoder(checkpoint: Checkpoint, images: torch.Tensor) -> torch.Tensor:
    """The trip that every sample has been on."""
    return checkpoint.decode(checkpoint.encode(images))


def test_an_exact_copy_has_distance_zero_and_the_original_stands_at_the_floor(
    checkpoint: Checkpoint, small: ReferenceSet
) -> None:
    """Copies through the autoencoder are found at distance 0; the stored image is a reconstruction error away."""
    originals = small.reference_images([3, 30])
    found = NeighborFinder(small, checkpoint).find(through_decoder(checkpoint, originals))
    floor = (through_decoder(checkpoint, originals) - originals).flatten(1).norm(dim=1).numpy()
    exact = found.distance < 1e-3
    # An untrained decoder may blur an image so far that its original is not among the nearest: then it is no copy.
    for row in np.flatnonzero(exact):
        assert found.index[row] == [3, 30][row]
        assert found.original_distance[row] == pytest.approx(floor[row], rel=1e-3)
        assert found.original_distance[row] > 100 * found.distance[row]
    candidates = small.search_pixels(through_decoder(checkpoint, originals), module.CANDIDATES)[1]
    assert exact.tolist() == [3 in candidates[0], 30 in candidates[1]]


def test_distances_are_to_reconstructions(checkpoint: Checkpoint, small: ReferenceSet) -> None:
    """Among the nearest originals, the one whose reconstruction is nearest wins, at that distance."""
    images = torch.rand(4, 1, 32, 32) * 2 - 1
    found = NeighborFinder(small, checkpoint).find(images)
    rebuilt = through_decoder(checkpoint, small.reference_images(list(range(50)))).flatten(1)
    every = torch.cdist(images.flatten(1).double(), rebuilt.double()).numpy()
    candidates = small.search_pixels(images, module.CANDIDATES)[1]
    for row in range(4):
        best = candidates[row][every[row][candidates[row]].argmin()]
        assert found.distance[row] == pytest.approx(every[row][best], rel=1e-4)
        assert every[row][found.index[row]] == pytest.approx(every[row][best], rel=1e-4)
    assert found.clip_index is None
    assert found.clip_similarity is None


def test_the_same_neighbours_however_many_are_asked(checkpoint: Checkpoint, small: ReferenceSet) -> None:
    """One by one and all at once, with reconstructions remembered or forgotten."""
    images = torch.rand(5, 1, 32, 32) * 2 - 1
    whole = NeighborFinder(small, checkpoint).find(images)
    one_by_one = NeighborFinder(small, checkpoint)
    for row in range(5):
        found = one_by_one.find(images[row : row + 1])
        assert found.index[0] == whole.index[row]
        assert found.distance[0] == pytest.approx(whole.distance[row], abs=1e-3)


def test_reconstructions_make_do_with_little_memory(checkpoint: Checkpoint, small: ReferenceSet) -> None:
    """Where a device cannot take them all at once, fewer at a time give the same."""
    expected, sizes = NeighborFinder(small, checkpoint).reconstruct(list(range(20))), []

    def crowded(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 6:
            raise torch.OutOfMemoryError("no room")
        return checkpoint.encode(images)

    scarce = in_pieces(replace(checkpoint, encode=crowded, autoencoder="new"))
    found = NeighborFinder(small, scarce).reconstruct(list(range(20)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert sizes == [1, 19, 9, 4, 4, 4, 4, 3]


def test_nothing_is_reconstructed_twice(checkpoint: Checkpoint, small: ReferenceSet) -> None:
    """Neither in this run nor in the next, for as long as autoencoder, precision and images are the same."""

    def never(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    first = NeighborFinder(small, checkpoint).reconstruct([4, 9, 4])
    assert torch.equal(first[0], first[2])
    next_release = replace(checkpoint, encode=never, digest="sha256:another")
    again = NeighborFinder(small, next_release).reconstruct([9, 4])
    assert torch.equal(again, first[[1, 0]])
    cut = ReferenceSet("cut", small.images[1:], [""] * 49, complete=True)
    for reference, other in (
        (small, replace(next_release, autoencoder="sha256:another")),
        (small, replace(next_release, dtype=torch.bfloat16)),
        (small, replace(next_release, defaults=replace(checkpoint.defaults, height=64))),
        (cut, next_release),
    ):
        with pytest.raises(AssertionError):
            NeighborFinder(reference, other).reconstruct([4])


def test_references_of_other_sizes_and_colours_are_compared(checkpoint: Checkpoint) -> None:
    """A colour set of larger images is brought to the checkpoint for the trip, and compared at its own size."""
    rng = np.random.default_rng(0)
    wide = ReferenceSet("wide", rng.integers(0, 256, (6, 48, 40, 3), dtype=np.uint8), [""] * 6, complete=False)
    found = NeighborFinder(wide, checkpoint).find(torch.rand(2, 1, 32, 32) * 2 - 1)
    assert found.distance.shape == (2,)
    assert np.isfinite(found.distance).all()
    # A checkpoint of grey images cannot copy colour: the distance is that of 3 × 48 × 40 values.
    assert (found.distance > 1).all()


def test_clip_neighbours_come_along(checkpoint: Checkpoint, reference: ReferenceSet) -> None:
    """With an embedder every sample has a nearest image by cosine."""
    found = NeighborFinder(reference, checkpoint).find(reference.reference_images([7, 8]))
    assert found.clip_index is not None
    assert found.clip_similarity is not None
    np.testing.assert_allclose(found.clip_similarity, 1, atol=5e-3)
    assert found.index.dtype == found.clip_index.dtype == np.int64


def test_a_reference_image_stands_for_one_that_is_not_there(checkpoint: Checkpoint, small: ReferenceSet) -> None:
    """Its distance to the others is what a search finds for it in a set without it."""
    chosen = [0, 7, 31, 49]
    found = NeighborFinder(small, checkpoint).between_references(chosen)
    for index, distance in zip(chosen, found, strict=True):
        others = ReferenceSet("others", np.delete(small.images, index, axis=0), [""] * 49, complete=True)
        expected = NeighborFinder(others, checkpoint).find(through_decoder(checkpoint, small.reference_images([index])))
        assert distance == pytest.approx(expected.distance[0], rel=1e-3)


def test_distances_between_references_do_not_depend_on_how_many_are_asked(
    checkpoint: Checkpoint, small: ReferenceSet
) -> None:
    """More than one batch, in any order, and one alone: the same, and never the distance to itself."""
    finder = NeighborFinder(small, checkpoint)
    order = [int(i) for i in np.random.default_rng(0).permutation(50)]
    many = finder.between_references(order + order[:30])
    assert many.shape == (80,)
    assert (many > 0.1).all()
    np.testing.assert_allclose(many[50:], many[:30], rtol=1e-3)
    np.testing.assert_allclose(finder.between_references([order[4]]), many[4:5], rtol=1e-3)


def test_an_image_that_is_stored_twice_has_its_double_as_neighbour(checkpoint: Checkpoint, small: ReferenceSet) -> None:
    """It is itself that does not count, not its copies."""
    doubled = ReferenceSet("doubled", np.concatenate([small.images, small.images[5:6]]), [""] * 51, complete=True)
    found = NeighborFinder(doubled, checkpoint).between_references([4, 5, 50])
    assert found[0] > 0.1
    assert (found[1:] < 1e-2).all()


def made(rows: range, *, clip: bool) -> Neighbors:
    """Neighbours whose numbers are their rows."""
    own = np.arange(rows.start, rows.stop)
    real = own.astype(np.float64)
    return Neighbors(
        own, real + np.float64(0.25), real + np.float64(0.5), own + 100 if clip else None, own / 100 if clip else None
    )


@pytest.mark.parametrize("clip", [True, False])
def test_groups_of_neighbours_are_put_together_and_cut(clip: bool) -> None:
    """One group after the other, the first n of them, with and without CLIP."""
    whole = made(range(7), clip=clip)
    joined = Neighbors.concatenate(
        [made(range(3), clip=clip), made(range(3, 4), clip=clip), made(range(4, 7), clip=clip)]
    )
    for found, expected in ((joined, whole), (whole.first(4), made(range(4), clip=clip)), (whole.first(9), whole)):
        for name, value in vars(expected).items():
            if value is None:
                assert getattr(found, name) is None
            else:
                np.testing.assert_array_equal(getattr(found, name), value)


def test_a_set_without_images_is_searched_by_embedding(
    tmp_path: Path, checkpoint: Checkpoint, reference: ReferenceSet
) -> None:
    """No pixel distance is made up: nothing counts as compared, and the nearest by embedding is there all the same."""
    np.save(tmp_path / "a.npy", np.unique(np.asarray(reference.images), axis=0)[:50, ..., 0])
    options = Options(images=False)
    bare = build(tmp_path / "a.npy", tmp_path / "set", embedders=[f"local-dir:{demo.CLIP}"], options=options)
    images = torch.from_numpy(np.load(tmp_path / "a.npy")[[7, 8]]).float()[:, None] / 127.5 - 1
    finder = NeighborFinder(bare, checkpoint)
    for found in (finder.find(images), finder.find_existing(images, images)):
        assert not found.compared
        assert np.isinf(found.distance).all()
        assert found.clip_index is not None
        assert found.clip_index.tolist() == [7, 8]
    assert copy_threshold(finder) is None


def test_an_audit_against_a_set_without_images_says_so(
    tmp_path: Path, checkpoint: Checkpoint, reference: ReferenceSet
) -> None:
    """Copies are not told, the bound of their rate stays at one, and the reasons name the most similar image."""
    np.save(tmp_path / "a.npy", np.asarray(reference.images)[:50, ..., 0])
    options = Options(images=False, thumbnails=16)
    bare = build(tmp_path / "a.npy", tmp_path / "set", embedders=[f"local-dir:{demo.CLIP}"], options=options)
    budget = Budget(seeds=4, minimum_seeds=4)
    report = Auditor(checkpoint, bare, demo.calibration()).audit(demo.prompts()[0], budget=budget, include_images=True)
    assert (report.decision.copies, report.decision.copy_rate_bound) == (0, 1.0)
    assert report.decision.reasons[0].startswith("The reference set keeps no images")
    assert report.decision.reasons[1].startswith("By embedding, the most similar image")
    assert report.reference is not None
    assert report.reference.entries.keys() == report.reference.images.keys()
    assert {image.shape for image in report.reference.images.values()} == {(16, 16, 1)}
    message = report_to_proto(report)
    assert not message.samples[0].HasField("nearest_reference")
    near = message.samples[0].nearest_clip
    (entry,) = bare.entries([near.index])
    assert (near.key, near.caption, near.url) == (entry.key, entry.caption, entry.url) == (entry.key, "", "")
