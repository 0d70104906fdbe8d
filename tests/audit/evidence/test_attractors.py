"""Attractors against an independent root finder on the closed form, and where two points become one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from audit.evidence.attractors import descend, find_attractors
from audit.model.denoiser import MeteredDenoiser, Schedule, repeat
from audit.model.empirical import EmpiricalDenoiser
from tests.audit.makers import clusters, exact_denoiser, stable_diffusion_schedule, timestep_of

DIMENSIONS = (2, 16, 64, 1024)
#: How far from the truth a descent may end: its step tolerance of 10⁻⁶ leaves as much as the rate of convergence
#: makes of it, and in single precision states of length 10 are rounded to 10⁻⁶.
PRECISIONS = [(torch.float64, 2e-5), (torch.float32, 1e-3)]

Vector = NDArray[np.float64]


def scaled_clusters(dimension: int, width: float = 0.3) -> Tensor:
    """Three clusters of four points, at distances that are alike in all dimensions."""
    scale = 4 / dimension**0.5
    return clusters(3, 4, width * scale, dimension=dimension, spread=3 * scale, seed=1)


def level_of(denoiser: EmpiricalDenoiser, t: int) -> tuple[float, float]:
    """α and σ of a timestep."""
    return float(denoiser.schedule.alphas[t]), float(denoiser.schedule.sigmas[t])


def attention(x: Vector, points: Vector, priors: Vector, alpha: float, sigma: float) -> Vector:
    """Responsibilities of points for x, written out."""
    logits = np.log(priors) - ((x - alpha * points) ** 2).sum(1) / (2 * sigma**2)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def memory(x: Vector, points: Vector, priors: Vector, alpha: float, sigma: float) -> Vector:
    """Where the softmax update of a dense associative memory takes x, until it stands still to 10⁻¹³."""
    for _ in range(100_000):
        moved = alpha * attention(x, points, priors, alpha, sigma) @ points
        if np.linalg.norm(moved - x) < 1e-13 * (1 + np.linalg.norm(x)):
            return moved
        x = moved
    raise AssertionError("the softmax update does not converge")


def newton(x: Vector, points: Vector, priors: Vector, alpha: float, sigma: float) -> tuple[Vector, Vector]:
    """Three Newton steps on the gradient of the energy from x, and the eigenvalues of σ²H where they end."""
    for _ in range(3):
        weights = attention(x, points, priors, alpha, sigma)
        mean = weights @ points
        away = points - mean
        hessian = np.eye(len(x)) - (alpha / sigma) ** 2 * (away.T * weights) @ away
        x = x - np.linalg.solve(hessian, x - alpha * mean)
    return x, np.linalg.eigvalsh(hessian)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("sigma", [0.1, 0.4, 0.9])
def test_descents_end_where_newton_and_the_softmax_update_do(
    dimension: int, sigma: float, dtype: torch.dtype, tolerance: float
) -> None:
    """From every start the end is the softmax update's, a root of the gradient, and a minimum of the energy."""
    points = scaled_clusters(dimension)
    priors = 1 + torch.rand(1, len(points), dtype=torch.float64)
    denoiser = exact_denoiser(points.to(dtype), priors)
    t = timestep_of(denoiser.schedule, sigma)
    alpha, level = level_of(denoiser, t)
    starts = (alpha * points[::3] + level * torch.randn(4, dimension, dtype=torch.float64)).to(dtype)
    ends, residual = descend(denoiser, starts, t, denoiser.condition(0))
    assert ends.dtype == dtype
    assert residual < 1e-5
    assert float((starts - ends).norm(dim=1).max()) > max(level / 2, 10 * tolerance)
    known = (points.numpy(), priors[0].numpy(), alpha, level)
    for start, end in zip(starts.double().numpy(), ends.double().numpy(), strict=True):
        assert np.linalg.norm(end - memory(start, *known)) < tolerance
        root, eigenvalues = newton(end, *known)
        assert np.linalg.norm(end - root) < tolerance
        assert eigenvalues[0] > 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_step_is_the_softmax_update(dimension: int, dtype: torch.dtype, tolerance: float) -> None:
    """One step takes a state to its points' average by softmax attention, α Σ w y."""
    points = scaled_clusters(dimension)
    denoiser = exact_denoiser(points.to(dtype))
    t = timestep_of(denoiser.schedule, 0.9)
    alpha, level = level_of(denoiser, t)
    start = torch.randn(1, dimension, dtype=torch.float64).to(dtype)
    end, _ = descend(denoiser, start, t, denoiser.condition(0), steps=1)
    weights = attention(start[0].double().numpy(), points.numpy(), np.ones(12), alpha, level)
    assert np.linalg.norm(end[0].double().numpy() - alpha * weights @ points.numpy()) < tolerance * dimension**0.5


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_at_small_noise_the_attractors_are_the_stored_points(
    dimension: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Separate points are an attractor each, at αy, with the starts that were noised from them, most visited first."""
    points = scaled_clusters(dimension)[::4]
    denoiser = exact_denoiser(points.to(dtype))
    t = timestep_of(denoiser.schedule, 0.1)
    alpha, level = level_of(denoiser, t)
    origin = torch.tensor([2, 0, 1, 1, 2, 1, 1, 2, 1])
    starts = (alpha * points[origin] + level * torch.randn(9, dimension, dtype=torch.float64)).to(dtype)
    found = find_attractors(denoiser, starts, t, denoiser.condition(0), distance=0.01)
    assert found.centers.dtype == dtype
    torch.testing.assert_close(found.centers.double(), alpha * points[[1, 2, 0]], rtol=0, atol=tolerance)
    assert found.visits.tolist() == [5, 3, 1]
    assert found.of_start.tolist() == [1, 2, 0, 0, 1, 0, 0, 1, 0]
    assert found.residual < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_at_large_noise_the_only_attractor_is_the_weighted_mean(
    dimension: int, dtype: torch.dtype, tolerance: float
) -> None:
    """All starts meet in Σπy, which the responsibilities leave by at most R³/σ² where R is the set's diameter."""
    points = scaled_clusters(dimension)
    priors = 1 + torch.rand(1, len(points), dtype=torch.float64)
    denoiser = EmpiricalDenoiser(
        points.to(dtype), priors, Schedule(torch.ones(3), torch.tensor([0.1, 30.0, 3000.0], dtype=torch.float64))
    )
    mean = (priors / priors.sum() @ points)[0]
    diameter = float(torch.cdist(points, points).max())
    for t in (1, 2):
        slack = diameter**3 / level_of(denoiser, t)[1] ** 2
        found = find_attractors(denoiser, points.to(dtype), t, denoiser.condition(0), distance=0.01)
        assert found.visits.tolist() == [len(points)]
        assert float((found.centers[0].double() - mean).norm()) < slack + tolerance
    assert slack < 0.01


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float32, 3e-3)])
@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("sigma", [0.2, 0.7, 0.97])
@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.1, 2.0])
def test_two_points_become_one_where_noise_is_half_their_distance(
    dimension: int, sigma: float, ratio: float, dtype: torch.dtype, tolerance: float
) -> None:
    """With r = αD/2σ there is one attractor, in the middle, for r < 1, and two for r > 1, where tanh says.

    Along the line through both, in units of αD/2, u = tanh(r²u).
    """
    schedule = stable_diffusion_schedule()
    t = timestep_of(schedule, sigma)
    alpha, level = float(schedule.alphas[t]), float(schedule.sigmas[t])
    half = ratio * level / alpha
    direction = torch.nn.functional.normalize(torch.randn(dimension, dtype=torch.float64), dim=0)
    middle = torch.randn(dimension, dtype=torch.float64) / dimension**0.5
    points = torch.stack([middle - half * direction, middle + half * direction])
    denoiser = exact_denoiser(points.to(dtype))
    found = find_attractors(denoiser, (alpha * points).to(dtype), t, denoiser.condition(0), distance=0.01 * level)
    centers = found.centers[torch.as_tensor(found.of_start)].double()
    if ratio < 1:
        assert found.visits.tolist() == [2]
        expected = alpha * middle.expand(2, -1)
    else:
        assert found.visits.tolist() == [1, 1]
        u = brentq(lambda u: u - math.tanh(ratio**2 * u), 0.01, 1)
        expected = alpha * torch.stack([middle - u * half * direction, middle + u * half * direction])
    assert float((centers - expected).norm(dim=1).max()) < tolerance


def test_a_duplicated_point_changes_nothing_but_weights() -> None:
    """A point stored twice attracts as a point of twice the weight does, and not as one of the same weight."""
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    schedule = stable_diffusion_schedule()
    t = timestep_of(schedule, 0.6)
    ends = []
    for stored, priors in (
        (points[[0, 1, 1]], [1.0, 1.0, 1.0]),
        (points, [1.0, 2.0]),
        (points, [1.0, 1.0]),
    ):
        denoiser = EmpiricalDenoiser(stored, torch.tensor([priors]), schedule)
        found = find_attractors(denoiser, points, t, denoiser.condition(0), distance=0.01)
        ends.append(found.centers[torch.as_tensor(found.of_start)])
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-12)
    assert float((ends[0] - ends[2]).norm(dim=1).max()) > 0.05


@settings(max_examples=15)
@given(sigma=st.floats(0.1, 0.98), seed=st.integers(0, 2**31), starts=st.integers(1, 12))
def test_visits_starts_and_centers_agree(sigma: float, seed: int, starts: int) -> None:
    """Visits count `of_start`, descend, add up to the starts, and every centre is the mean of its own ends."""
    generator = torch.Generator().manual_seed(seed)
    points = scaled_clusters(16)
    denoiser = exact_denoiser(points)
    t = timestep_of(denoiser.schedule, sigma)
    condition = denoiser.condition(0)
    alpha, _ = level_of(denoiser, t)
    x = 4 * alpha * torch.randn(starts, 16, generator=generator, dtype=torch.float64)
    ends, residual = descend(denoiser, x, t, condition)
    found = find_attractors(denoiser, x, t, condition, distance=0.05)
    assert found.residual == residual
    assert found.visits.sum() == starts
    assert found.visits.tolist() == sorted(found.visits, reverse=True)
    assert np.bincount(found.of_start, minlength=len(found.visits)).tolist() == found.visits.tolist()
    for index, center in enumerate(found.centers):
        torch.testing.assert_close(center, ends[torch.as_tensor(found.of_start == index)].mean(0))
    # Average linkage leaves no two clusters whose members are on average within the distance.
    for one in range(len(found.centers)):
        for other in range(one):
            pairs = torch.cdist(
                ends[torch.as_tensor(found.of_start == one)], ends[torch.as_tensor(found.of_start == other)]
            )
            assert float(pairs.mean()) > 0.05


@settings(max_examples=15)
@given(sigma=st.floats(0.05, 0.98), seed=st.integers(0, 2**31))
def test_a_step_never_raises_the_energy(sigma: float, seed: int) -> None:
    """The update is a descent of the closed-form energy, step by step."""
    generator = torch.Generator().manual_seed(seed)
    denoiser = exact_denoiser(scaled_clusters(16))
    t = timestep_of(denoiser.schedule, sigma)
    condition, time = repeat(denoiser.condition(0), 5), torch.full((5,), t)
    x = 3 * torch.randn(5, 16, generator=generator, dtype=torch.float64)
    before = denoiser.energy(x, time, condition)
    for _ in range(10):
        x, _ = descend(denoiser, x, t, denoiser.condition(0), steps=1)
        after = denoiser.energy(x, time, condition)
        assert float((after - before).max()) <= 1e-9 * float(before.abs().max())
        before = after


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_what_is_left_of_an_unfinished_descent_is_told(steps: int) -> None:
    """Stopped early, the residual is the longest step that the end points would take next."""
    denoiser = exact_denoiser(scaled_clusters(16))
    t = timestep_of(denoiser.schedule, 0.9)
    condition = denoiser.condition(0)
    starts = torch.randn(5, 16, dtype=torch.float64)
    ends, residual = descend(denoiser, starts, t, condition, steps=steps)
    _, level = level_of(denoiser, t)
    left = level * denoiser(ends, torch.full((5,), t), repeat(condition, 5))
    assert residual == pytest.approx(float(left.norm(dim=1).max()), rel=1e-12)
    assert residual > 1e-3
    assert torch.equal(starts, ends) == (steps == 0)


def test_a_descent_that_cannot_move_less_ends() -> None:
    """In single precision steps end at the rounding of long states, which is more than the tolerance."""
    points = clusters(3, 4, 0.03, dimension=1024, spread=3.0, seed=1)
    meter = MeteredDenoiser(exact_denoiser(points.float()))
    t = timestep_of(meter.schedule, 0.6)
    found = find_attractors(meter, points.float(), t, {"prompt": torch.zeros(1, dtype=torch.long)}, distance=0.01)
    assert found.visits.tolist() == [4, 4, 4]
    assert meter.evaluations <= 12 * 100


def test_a_wide_distance_joins_attractors() -> None:
    """Beyond the largest distance between end points they are all one, with their mean as centre."""
    points = scaled_clusters(16)
    denoiser = exact_denoiser(points)
    t = timestep_of(denoiser.schedule, 0.1)
    alpha, _ = level_of(denoiser, t)
    counts = []
    for distance in (0.01, 3.0, 100.0):
        found = find_attractors(denoiser, alpha * points, t, denoiser.condition(0), distance=distance)
        counts.append(len(found.centers))
    assert counts == [12, 3, 1]
    torch.testing.assert_close(found.centers[0], alpha * points.mean(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("distance", "visits"), [(0.9, [1, 1, 1]), (1.5, [2, 1]), (1.9, [3])])
def test_clusters_are_linked_by_average_distance(distance: float, visits: list[int]) -> None:
    """Points at 0, 1 and 2.2: the third is 1.7 on average from the first two, 1.2 from the nearest, 2.2 from the other.

    Single linkage would join all at 1.5, complete linkage would not at 1.9.
    """
    points = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.2, 1.0]], dtype=torch.float64)
    denoiser = EmpiricalDenoiser(points, torch.ones(1, 3), Schedule(torch.ones(1), torch.full((1,), 0.01)))
    found = find_attractors(denoiser, points, 0, denoiser.condition(0), distance=distance)
    assert found.visits.tolist() == visits


@pytest.mark.parametrize("shape", [(16,), (1, 4, 4), (4, 2, 2)])
def test_attractors_have_the_shape_of_latents(shape: tuple[int, ...]) -> None:
    """Images and vectors descend alike, one start or several."""
    points = scaled_clusters(16)
    flat, shaped = exact_denoiser(points), exact_denoiser(points.reshape(-1, *shape))
    t = timestep_of(flat.schedule, 0.5)
    for count in (1, 6):
        starts = points[:count] + 0.1
        expected = find_attractors(flat, starts, t, flat.condition(0), distance=0.05)
        found = find_attractors(shaped, starts.reshape(-1, *shape), t, shaped.condition(0), distance=0.05)
        assert found.centers.shape == (len(expected.centers), *shape)
        torch.testing.assert_close(found.centers.flatten(1), expected.centers, rtol=0, atol=1e-9)
        assert found.of_start.tolist() == expected.of_start.tolist()


def test_a_condition_has_attractors_of_its_own() -> None:
    """Points without weight under a prompt attract nothing there."""
    points = scaled_clusters(16)[::4]
    priors = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    denoiser = EmpiricalDenoiser(points, priors, stable_diffusion_schedule())
    t = timestep_of(denoiser.schedule, 0.1)
    alpha, _ = level_of(denoiser, t)
    for prompt, stored in ((0, points[:2]), (1, points[2:])):
        found = find_attractors(denoiser, alpha * points, t, denoiser.condition(prompt), distance=0.01)
        assert len(found.centers) == len(stored)
        assert float(torch.cdist(found.centers, alpha * stored).min(1).values.max()) < 1e-5
