"""Modes, recurrence and the chance that two seeds meet."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from audit.evidence.stability import cluster, measure_stability, pairwise_distances

#: Points on a coarse grid: exact duplicates and distances equal to the threshold happen often.
POINTS = st.integers(1, 12).flatmap(
    lambda n: arrays(np.float64, (n, 2), elements=st.integers(-6, 6).map(lambda v: v / 2))
)


@given(points=POINTS, delta=st.sampled_from([0.0, 0.5, 1.0, 2.5]))
def test_a_sample_recurs_exactly_when_another_is_near(points: np.ndarray, delta: float) -> None:
    """In a mode of several samples ⟺ the nearest other sample is within δ_s."""
    found = measure_stability(torch.from_numpy(points), delta)
    for index in range(len(points)):
        recurs = found.modes[found.mode_of[index]].recurs
        assert recurs == (found.nearest_sample_distance[index] <= delta)


@given(points=POINTS, delta=st.sampled_from([0.0, 0.5, 1.0, 2.5]))
def test_modes_partition_the_samples_by_links(points: np.ndarray, delta: float) -> None:
    """Modes are the connected components of "within δ_s", largest first, each once."""
    found = measure_stability(torch.from_numpy(points), delta)
    n = len(points)
    near = np.linalg.norm(points[:, None] - points[None], axis=2) <= delta
    reach = near.copy()
    for _ in range(n):
        reach = (reach @ reach.astype(int)) > 0
    for index in range(n):
        assert set(found.modes[found.mode_of[index]].members) == set(np.flatnonzero(reach[index]))
    sizes = [len(mode.members) for mode in found.modes]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == n
    assert sum(mode.share for mode in found.modes) == pytest.approx(1)
    assert found.recurring_share == pytest.approx(np.mean((near & ~np.eye(n, dtype=bool)).any(1)))


@given(points=POINTS, delta=st.sampled_from([0.0, 0.5, 1.0, 2.5]))
def test_meeting_rate_is_the_share_of_pairs_that_are_near(points: np.ndarray, delta: float) -> None:
    """The collision rate counts pairs, by brute force, and is undefined for one sample."""
    rate = measure_stability(torch.from_numpy(points), delta).meeting_rate
    n = len(points)
    pairs = [np.linalg.norm(points[i] - points[j]) <= delta for i in range(n) for j in range(i)]
    if pairs:
        assert rate == pytest.approx(np.mean(pairs))
    else:
        assert math.isnan(rate)


@given(points=POINTS)
def test_nearest_samples_are_the_nearest(points: np.ndarray) -> None:
    """Nearest other sample and its distance, by brute force; none when there is only one."""
    found = measure_stability(torch.from_numpy(points), 1.0)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_allclose(found.nearest_sample_distance, distances.min(1), atol=1e-12)
    if len(points) == 1:
        assert found.nearest_sample.tolist() == [-1]
    else:
        np.testing.assert_allclose(distances[np.arange(len(points)), found.nearest_sample], distances.min(1))


def test_meeting_rate_estimates_the_collision_probability() -> None:
    """Its mean over repeated draws is Σ p², within four standard errors."""
    rng = np.random.default_rng(0)
    shares = np.array([0.5, 0.3, 0.1, 0.1])
    rates = [
        measure_stability(torch.from_numpy(10.0 * rng.choice(4, size=(8, 1), p=shares)), 1.0).meeting_rate
        for _ in range(500)
    ]
    assert abs(np.mean(rates) - (shares**2).sum()) < 4 * np.std(rates) / len(rates) ** 0.5


def test_modes_of_equal_size_come_in_the_order_of_the_samples() -> None:
    """Ties are broken by the first member, so that a report is the same every time."""
    points = torch.tensor([[0.0], [10.0], [20.0], [10.1], [0.1]])
    found = measure_stability(points, 1.0)
    assert [set(mode.members) for mode in found.modes] == [{0, 4}, {1, 3}, {2}]
    assert found.mode_of.tolist() == [0, 1, 2, 1, 0]


def test_the_medoid_stands_first() -> None:
    """A mode is shown by its most central member, the rest follow in order."""
    points = torch.tensor([[0.0], [0.9], [1.8], [2.7], [1.3]])
    found = measure_stability(points, 1.0)
    assert found.modes[0].members == (4, 0, 1, 2, 3)


def test_a_chain_is_one_mode() -> None:
    """Single linkage: samples far apart belong together when others link them."""
    found = measure_stability(torch.arange(6.0)[:, None], 1.0)
    assert len(found.modes) == 1
    assert found.meeting_rate == pytest.approx(5 / 15)


@pytest.mark.parametrize("far", [False, True])
def test_two_samples(far: bool) -> None:
    """Two samples meet or do not."""
    found = measure_stability(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), 4.999 if far else 5.0)
    assert found.nearest_sample_distance.tolist() == [5.0, 5.0]
    assert found.nearest_sample.tolist() == [1, 0]
    assert found.meeting_rate == (0.0 if far else 1.0)
    assert found.recurring_share == (0.0 if far else 1.0)


def test_one_sample_says_nothing_of_recurrence() -> None:
    """A single sample is a mode of its own that does not recur."""
    found = measure_stability(torch.zeros(1, 3), 100.0)
    assert found.nearest_sample_distance.tolist() == [math.inf]
    assert [mode.members for mode in found.modes] == [(0,)]
    assert found.recurring_share == 0


def test_final_step_is_relative_to_the_latents() -> None:
    """The last displacement over the norm of the result, averaged; undefined without trajectories."""
    points = torch.zeros(2, 3)
    displacements = torch.tensor([[9.0, 1.0], [9.0, 4.0]])
    latents = torch.tensor([[3.0, 4.0], [0.0, 8.0]]).reshape(2, 1, 1, 2)
    assert measure_stability(points, 1.0, displacements, latents).final_step == pytest.approx((1 / 5 + 4 / 8) / 2)
    assert math.isnan(measure_stability(points, 1.0).final_step)


@given(points=POINTS, delta=st.sampled_from([0.0, 0.5, 1.0, 2.5]))
def test_known_distances_give_the_same_clusters(points: np.ndarray, delta: float) -> None:
    """Where the distances are there already, modes, neighbours and meetings are those of the points."""
    found, expected = (
        cluster(pairwise_distances(points), delta, 0.25),
        measure_stability(torch.from_numpy(points), delta),
    )
    assert found.final_step == 0.25
    assert (found.modes, found.nearest_sample.tolist()) == (expected.modes, expected.nearest_sample.tolist())
    assert found.mode_of.tolist() == expected.mode_of.tolist()
    np.testing.assert_array_equal(found.nearest_sample_distance, expected.nearest_sample_distance)
    assert found.meeting_rate == pytest.approx(expected.meeting_rate, nan_ok=True)


def test_distances_need_no_space() -> None:
    """Clusters are those of the distances given, also of such as no points have."""
    distances = np.array([[0.0, 1.0, 9.0], [1.0, 0.0, 1.0], [9.0, 1.0, 0.0]])
    found = cluster(distances, 1.0)
    assert [mode.members for mode in found.modes] == [(1, 0, 2)]
    assert found.meeting_rate == pytest.approx(2 / 3)
    assert math.isnan(found.final_step)
    assert len(cluster(distances, 0.9).modes) == 3


def test_multi_modal_recall_is_recall() -> None:
    """Five images in turn recur as surely as one, however far they are from each other."""
    images = 100 * torch.eye(5)
    found = measure_stability(images.repeat(4, 1), 1.0)
    assert found.recurring_share == 1
    assert [len(mode.members) for mode in found.modes] == [4] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairwise_distances_are_exact_for_near_copies(dtype: torch.dtype) -> None:
    """Small distances between large vectors do not drown, and the diagonal is zero."""
    rows = 1000 + torch.randn(5, 64, dtype=torch.float64).to(dtype)
    rows[1] = rows[0]
    rows[1, 0] += 0.125
    found = pairwise_distances(rows)
    assert found[0, 1] == pytest.approx(0.125, rel=1e-6)
    assert (np.diag(found) == 0).all()
    np.testing.assert_array_equal(found, found.T)
