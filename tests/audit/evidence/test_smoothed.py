"""The smoothed trace against the exact curvature, and its cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from audit.evidence.smoothed import measure_smoothed_trace
from audit.model.denoiser import MeteredDenoiser, repeat
from audit.model.empirical import EmpiricalDenoiser
from tests.audit.makers import clusters, exact_denoiser

LEVELS = (0.15, 0.5, 0.85)


def denoiser(width: float, dtype: torch.dtype = torch.float64) -> EmpiricalDenoiser:
    """Four clusters of twelve points in 16 dimensions."""
    points = clusters(4, 12, width, spread=1.0).to(dtype)
    return exact_denoiser(points.reshape(-1, 4, 2, 2))


@pytest.mark.parametrize("width", [0.02, 0.2, 1.0])
def test_its_mean_is_the_exact_trace_over_the_noise(width: float) -> None:
    """Over 4,000 noises the mean of s is that of σ·tr J/d from the exact H, within five standard errors.

    s divides by ‖ε‖² and not by d, which moves its mean by less than that.
    """
    exact = denoiser(width)
    many = 4000
    point = exact.points[:1].expand(many, 4, 2, 2)
    condition = exact.condition(0)
    found = measure_smoothed_trace(exact, point, condition, LEVELS, range(many))
    noise = torch.randn(many, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    for level, t in enumerate(found.timesteps):
        times = torch.full((many,), t)
        alpha, sigma = exact.schedule.at(times, point)
        curvature = exact.curvature(alpha * point + sigma * noise, times, repeat(condition, many))
        traces = float(sigma[0].square()) * curvature.diagonal(dim1=1, dim2=2).mean(1).numpy()
        errors = [values.std() / many**0.5 for values in (traces, found.values[:, level])]
        assert found.values[:, level].mean() == pytest.approx(traces.mean(), abs=5 * float(np.hypot(*errors)) + 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_an_isolated_point_gives_one(dtype: torch.dtype, tolerance: float) -> None:
    """Around one stored point alone ε̂ is the noise itself, at every level and for every noise."""
    points = torch.randn(1, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(dtype)
    alone = exact_denoiser(points)
    found = measure_smoothed_trace(alone, points.expand(5, 4, 2, 2), alone.condition(0), LEVELS, range(5))
    assert found.values.shape == (5, 3)
    np.testing.assert_allclose(found.values, 1.0, atol=tolerance)


def test_it_falls_as_the_neighbourhood_fills() -> None:
    """The wider a cluster, the less of the noise is found again."""
    means = []
    for width in (0.02, 0.1, 0.2):
        exact = denoiser(width)
        found = measure_smoothed_trace(exact, exact.points[:12], exact.condition(0), (0.5,), range(12))
        means.append(found.values.mean())
    assert means[0] > means[1] + 0.02
    assert means[1] > means[2] + 0.02


@pytest.mark.parametrize("rows", [1, 2, 7, 256])
def test_it_costs_two_evaluations_however_rows_are_split(rows: int) -> None:
    """2 evaluations a sample and level; the split into calls changes no number, nor do the other samples."""
    exact = denoiser(0.2)
    meter = MeteredDenoiser(exact)
    points = exact.points[:5]
    found = measure_smoothed_trace(meter, points, exact.condition(0), LEVELS, range(10, 15), rows=rows)
    assert meter.evaluations == 2 * 5 * 3
    whole = measure_smoothed_trace(exact, points[3:], exact.condition(0), LEVELS, range(13, 15))
    np.testing.assert_allclose(found.values[3:], whole.values, rtol=1e-9)
    assert found.sigmas == pytest.approx(LEVELS, abs=0.01)


def test_no_samples_have_no_trace() -> None:
    """Nothing is measured, and nothing is spent, where there is no sample."""
    meter = MeteredDenoiser(denoiser(0.2))
    found = measure_smoothed_trace(meter, torch.zeros(0, 4, 2, 2), {}, LEVELS, [])
    assert found.values.shape == (0, 3)
    assert meter.evaluations == 0
