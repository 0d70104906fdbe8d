"""Distances and nearest neighbours, against brute force and the published metric."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import lpips
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import alexnet

from audit import demo
from audit.errors import NotFound
from audit.phase import similarity
from audit.phase.similarity import ALEXNET, LpipsEmbedder, embed, embedder, nearest
from audit.phase.sweep import Distance
from audit.reference.clip import ClipEmbedder

#: lpips calls torchvision the old way.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The parameter 'pretrained' is deprecated", "ignore:Arguments other than a weight enum"
)


@pytest.fixture(autouse=True)
def _fresh_and_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No embedder is kept from another test, torch's hub folder is empty, and nothing may be downloaded."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    embedder.cache_clear()
    yield
    embedder.cache_clear()


def images(count: int, channels: int = 3, side: int = 32, seed: int = 0) -> Tensor:
    """Noise that is smooth enough to have features, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, side // 4, side // 4, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")


# Neighbours.


def brute(vectors: NDArray[np.float32], among: NDArray[np.float32]) -> NDArray[np.float64]:
    """All distances, in double precision."""
    apart = vectors.astype(np.float64)[:, None] - among.astype(np.float64)[None]
    return np.linalg.norm(apart, axis=2)


def lattice(seed: int, count: int, dimension: int, levels: int) -> NDArray[np.float32]:
    """Points of a small lattice: many of them coincide, many are equally far."""
    return np.random.default_rng(seed).integers(0, levels, (count, dimension)).astype(np.float32)


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(2, 60),
    dimension=st.integers(1, 9),
    levels=st.integers(1, 6),
)
def test_the_nearest_other_row_is_the_one_of_brute_force(seed: int, count: int, dimension: int, levels: int) -> None:
    """With duplicates and ties: never the row itself, and at distance 0 where there is another like it."""
    vectors = lattice(seed, count, dimension, levels)
    every = brute(vectors, vectors)
    np.fill_diagonal(every, np.inf)
    distances, rows = nearest(vectors)
    assert (rows != np.arange(count)).all()
    np.testing.assert_allclose(distances, every.min(1), rtol=1e-6)
    np.testing.assert_allclose(distances, every[np.arange(count), rows], rtol=1e-6)
    _, first, counts = np.unique(vectors, axis=0, return_inverse=True, return_counts=True)
    assert ((distances == 0) == (counts[first.ravel()] > 1)).all()


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 60), others=st.integers(1, 60), dimension=st.integers(1, 9))
def test_the_nearest_of_another_set_is_the_one_of_brute_force(
    seed: int, count: int, others: int, dimension: int
) -> None:
    """A row that is in the other set as well is its own neighbour there."""
    vectors, among = lattice(seed, count, dimension, 4), lattice(seed + 1, others, dimension, 4)
    among[0] = vectors[0]
    distances, rows = nearest(vectors, among)
    every = brute(vectors, among)
    np.testing.assert_allclose(distances, every.min(1), rtol=1e-6)
    np.testing.assert_allclose(distances, every[np.arange(count), rows], rtol=1e-6)
    assert distances[0] == 0


@pytest.mark.parametrize("scale", [1e-3, 1e-5])
def test_copies_that_differ_a_little_are_found_exactly(scale: float) -> None:
    """Far from the origin, where expanding the square would lose them; never the row itself."""
    rng = np.random.default_rng(0)
    base = rng.uniform(-1, 1, (200, 256)).astype(np.float32)
    copies = base + (scale * rng.standard_normal(base.shape)).astype(np.float32)
    vectors = np.concatenate([base, copies])
    distances, rows = nearest(vectors)
    assert (rows == np.roll(np.arange(400), 200)).all()
    np.testing.assert_allclose(distances, brute(vectors, vectors)[np.arange(400), rows], rtol=1e-5)


# Vectors.


def test_pixels_are_their_own_vectors() -> None:
    """In any number of chunks; the distance is ℓ2."""
    shown = images(similarity._ROWS + 3, channels=1, side=8)
    vectors = embed(shown, "pixel")
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, shown.flatten(1).numpy())


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32)])
def test_clip_vectors_are_those_of_the_model_that_ships_with_basin(channels: int, side: int) -> None:
    """Unit vectors, so that ℓ2² = 2 − 2 cos, whatever the size and the number of channels."""
    shown = images(5, channels, side)
    vectors = embed(shown, "clip")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    expected = ClipEmbedder(f"local-dir:{demo.CLIP}")(shown).numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert brute(vectors, vectors)[0, 1] ** 2 == pytest.approx(2 - 2 * float(vectors[0] @ vectors[1]), abs=1e-5)


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    """All of them, in the order of the computation."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


@pytest.fixture
def metric_and_weights(tmp_path: Path) -> tuple[nn.Module, Path]:
    """The published metric on a random AlexNet, and the file of that AlexNet where torch's hub would put it."""
    torch.manual_seed(4)
    metric = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval().requires_grad_(False)
    backbone = alexnet()
    for own, theirs in zip(convolutions(backbone.features), convolutions(metric.net), strict=True):
        own.load_state_dict(theirs.state_dict())
    file = tmp_path / "torch" / "hub" / "checkpoints" / ALEXNET
    file.parent.mkdir(parents=True)
    torch.save(backbone.state_dict(), file)
    return metric, file


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 32), (3, 64)])
def test_the_distance_of_lpips_vectors_is_lpips(
    metric_and_weights: tuple[nn.Module, Path], channels: int, side: int
) -> None:
    """Squared ℓ2 between embeddings is the published metric, to 1e-4; 0 between an image and itself."""
    metric, file = metric_and_weights
    left, right = images(6, channels, side), images(6, channels, side, seed=1)
    ours = LpipsEmbedder(file)
    squared = (ours(left) - ours(right)).square().sum(1)
    with torch.inference_mode():
        published = metric(left.expand(-1, 3, -1, -1), right.expand(-1, 3, -1, -1)).flatten()
    torch.testing.assert_close(squared, published, rtol=1e-4, atol=0)
    assert (squared > 1e-3).all()
    assert torch.equal(ours(left), ours(left.clone()))


def test_lpips_vectors_come_from_the_file_in_the_hub_folder(metric_and_weights: tuple[nn.Module, Path]) -> None:
    """Named as torchvision names it, and read without a download."""
    shown = images(3)
    np.testing.assert_allclose(
        embed(shown, "lpips"), LpipsEmbedder(metric_and_weights[1])(shown).numpy(), rtol=1e-4, atol=1e-6
    )


def test_missing_weights_are_named(tmp_path: Path) -> None:
    """The message says which file is looked for and where, and how to get the package."""
    with pytest.raises(NotFound, match="basin-audit\\[lpips\\]") as caught:
        embedder("lpips")
    assert str(tmp_path / "torch" / "hub" / "checkpoints" / ALEXNET) in str(caught.value)
    assert (caught.value.reason, caught.value.field) == ("LPIPS_NOT_FOUND", "distance")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """A state dict that is not AlexNet's is no backbone."""
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / ALEXNET)
    with pytest.raises(RuntimeError, match="AlexNet"):
        LpipsEmbedder(tmp_path / ALEXNET)


@pytest.mark.parametrize("distance", get_args(Distance))
def test_vectors_are_fit_for_a_search(metric_and_weights: tuple[nn.Module, Path], distance: Distance) -> None:
    """Rows of float32 side by side in memory: an image's nearest is its copy, at distance 0."""
    shown = images(6)
    vectors = embed(torch.cat([shown, shown[2:3]]), distance)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    distances, rows = nearest(vectors)
    assert rows[6] == 2
    assert rows[2] == 6
    assert distances[2] == pytest.approx(0, abs=1e-5)
    assert (distances[[0, 1, 3, 4, 5]] > 1e-3).all()
