"""The circle: closed forms against each other, against many points, and the whole of it once, small."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audit.model.denoiser import Condition, Denoiser, Schedule
from audit.model.empirical import EmpiricalDenoiser
from audit.phase import toy
from audit.phase.toy import (
    LEVELS,
    SIGMA_MAX,
    SIGMA_MIN,
    CircleDenoiser,
    VarianceExploding,
    circle_points,
    exact_denoiser,
    exploding_schedule,
    load_toy,
    preserving_schedule,
    sample_circle,
    toy_jobs,
)
from tests.audit.makers import timestep_of

EVEN = 20_000


def even_points(count: int) -> Tensor:
    """Evenly spaced on the circle, float64."""
    angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    return torch.stack([angles.cos(), angles.sin()], 1)


def somewhere(count: int = 12, seed: int = 0) -> Tensor:
    """Points up to 2 from the origin, float64; one of them next to it."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    radius = 2 * torch.rand(count, generator=generator, dtype=torch.float64)
    radius[0] = 1e-6
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def prompts(times: Tensor) -> Condition:
    """The condition of a finite set, one entry per row."""
    return {"prompt": torch.zeros_like(times)}


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.5, 1.0, 5.0])
def test_the_whole_circle_is_the_limit_of_many_points(sigma: float) -> None:
    """Energies and noise of 20,000 evenly spaced points, to 1e-9: between neighbours nothing is left to see."""
    many, limit = exact_denoiser(even_points(EVEN)), CircleDenoiser()
    x = somewhere()
    times = torch.full((len(x),), timestep_of(limit.schedule, sigma))
    torch.testing.assert_close(limit.energy(x, times), many.energy(x, times, prompts(times)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(limit(x, times, {}), many(x, times, prompts(times)), rtol=1e-9, atol=1e-9)


@settings(max_examples=50)
@given(
    radius=st.floats(0.01, 3.0),
    angle=st.floats(0, 6.3),
    sigma=st.floats(0.02, 9.0),
)
def test_noise_is_sigma_times_the_slope_of_the_energy(radius: float, angle: float, sigma: float) -> None:
    """By central differences, also far below the noise levels at which Bessel functions overflow."""
    limit = CircleDenoiser()
    x = radius * torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    t = torch.tensor([timestep_of(limit.schedule, sigma)])
    level = float(limit.schedule.sigmas[t])
    step = 1e-4 * level
    shifts = step * torch.eye(2, dtype=torch.float64)
    slopes = torch.stack(
        [(limit.energy(x + shift, t) - limit.energy(x - shift, t))[0] / (2 * step) for shift in shifts]
    )
    found = limit(x, t, {})[0]
    torch.testing.assert_close(found, level * slopes, rtol=1e-5, atol=1e-5 * max(1.0, radius / level))


@given(radius=st.floats(0.0, 2.0), sigma=st.floats(0.2, 5.0))
def test_the_papers_energy_is_this_one_in_other_units(radius: float, sigma: float) -> None:
    """E = R² + 1 − (1/β) log I₀(2βR) is 2σ² times ours, β = 1/2σ², but for a constant; overflow is far off here."""
    limit = CircleDenoiser()
    t = torch.full((2,), timestep_of(limit.schedule, sigma))
    variance = float(limit.schedule.sigmas[t[0]]) ** 2
    beta = 1 / (2 * variance)
    papers = [r**2 + 1 - math.log(np.i0(2 * beta * r)) / beta for r in (radius, 1.0)]
    ours = 2 * variance * limit.energy(torch.tensor([[0.0, radius], [1.0, 0.0]], dtype=torch.float64), t)
    assert float(ours[0] - ours[1]) == pytest.approx(papers[0] - papers[1], abs=1e-9)
    # The constant is the one of a normalized density.
    assert float(ours[1]) == pytest.approx(papers[1] + 2 * variance * math.log(2 * math.pi * variance), abs=1e-9)


def test_the_density_of_the_circle_integrates_to_one() -> None:
    """∫ exp(−E) over the plane, on a fine grid."""
    axis = torch.linspace(-4, 4, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    times = torch.full((len(grid),), timestep_of(exploding_schedule(), 0.3))
    mass = CircleDenoiser().energy(grid, times).neg().exp().sum() * (8 / 400) ** 2
    assert float(mass) == pytest.approx(1, abs=1e-6)


def test_both_schedules_have_the_same_noise_to_signal() -> None:
    """In geometric progression; one keeps the signal, the other the variance."""
    exploding, preserving = exploding_schedule(), preserving_schedule()
    assert len(exploding) == LEVELS
    ratios = exploding.sigmas[1:] / exploding.sigmas[:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, (SIGMA_MAX / SIGMA_MIN) ** (1 / (LEVELS - 1))))
    assert torch.equal(exploding.alphas, torch.ones(LEVELS, dtype=torch.float64))
    torch.testing.assert_close(preserving.sigmas / preserving.alphas, exploding.sigmas)
    torch.testing.assert_close(preserving.alphas**2 + preserving.sigmas**2, exploding.alphas)


@given(seed=st.integers(0, 2**32), dimension=st.integers(1, 5), count=st.integers(1, 6))
def test_a_variance_preserving_denoiser_explodes_into_the_other_one(seed: int, dimension: int, count: int) -> None:
    """The exact denoisers of the same points on both schedules are one, at every noise level."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    weights = torch.ones(1, count)
    inner = EmpiricalDenoiser(points, weights, preserving_schedule())
    expected = EmpiricalDenoiser(points, weights, exploding_schedule())
    wrapped = VarianceExploding(inner)
    torch.testing.assert_close(wrapped.schedule.sigmas, expected.schedule.sigmas)
    torch.testing.assert_close(wrapped.schedule.alphas, expected.schedule.alphas)
    t = torch.randint(LEVELS, (8,), generator=generator)
    x = 3 * torch.randn(8, dimension, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(wrapped(x, t, prompts(t)), expected(x, t, prompts(t)), rtol=1e-8, atol=1e-8)


class Unprompted(Denoiser):
    """The exact denoiser of points, without a prompt."""

    prediction_type = "epsilon"

    def __init__(self, points: Tensor) -> None:
        self.inner = exact_denoiser(points)
        self.schedule: Schedule = self.inner.schedule

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The inner one's."""
        return self.inner(x, t, prompts(t))


def test_samples_of_two_points_are_those_two_points() -> None:
    """More than 99% end within 0.05 of one, about as many at each, and seeds decide which."""
    points = torch.tensor([[0.6, 0.8], [-1.0, 0.0]])
    samples = sample_circle(Unprompted(points), 1000, seed=0)
    distances = torch.cdist(samples, points)
    assert float((distances.min(1).values < 0.05).double().mean()) > 0.99
    first = int((distances.argmin(1) == 0).sum())
    assert abs(first - 500) < 5 * 250**0.5  # five standard deviations
    # The last step takes all noise away.
    assert float(distances.min(1).values.median()) < 1e-5
    assert torch.equal(sample_circle(Unprompted(points), 50, seed=3), sample_circle(Unprompted(points), 50, seed=3))
    assert not torch.equal(sample_circle(Unprompted(points), 50, seed=3), sample_circle(Unprompted(points), 50, seed=4))


def test_noise_of_the_reverse_process_is_that_of_its_timesteps() -> None:
    """With one point at the origin, all of x is noise: its deviation is σ at every step, within 5%."""
    ratios: list[float] = []

    class Look(Unprompted):
        """Compares what it is shown with what it is told."""

        def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            ratios.append(float(x.square().mean().sqrt()) / float(self.schedule.sigmas[t[0]]))
            return super().native(x, t, condition)

    sample_circle(Look(torch.zeros(1, 2)), 4000, seed=2)
    assert len(ratios) == LEVELS
    assert min(ratios) > 0.95
    assert max(ratios) < 1.05


def test_samples_of_the_whole_circle_are_all_around_it() -> None:
    """Radii of 1, and angles that are uniform by a Kolmogorov–Smirnov distance of five standard errors."""
    samples = sample_circle(CircleDenoiser(), 500, seed=1)
    assert float((samples.norm(dim=1) - 1).abs().max()) < 0.06
    angles = np.sort(torch.atan2(samples[:, 1], samples[:, 0]).numpy()) / (2 * np.pi) + 0.5
    assert np.abs(angles - (np.arange(500) + 0.5) / 500).max() < 2.0 / 500**0.5


@given(size=st.integers(1, 50), seed=st.integers(0, 2**31))
def test_points_lie_on_the_circle_and_depend_on_seed_and_size(size: int, seed: int) -> None:
    """The same again for the same, others for another seed."""
    points = circle_points(size, seed)
    assert points.shape == (size, 2)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(size, dtype=torch.float64))
    assert torch.equal(points, circle_points(size, seed))
    assert not torch.equal(points, circle_points(size, seed + 1))


def test_the_whole_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every documented array in its shape, the exact ones exact; then nothing is left to do."""
    small = {"SIZES": (2, 5), "STEPS": 300, "BATCH": 64, "GRID": 5, "SAMPLES": 16, "RING": 6}
    for name, value in small.items():
        monkeypatch.setattr(toy, name, value)
    (job,) = toy_jobs(tmp_path, 4)
    shares: list[float] = []
    job.function(shares.append, "cpu")
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert toy_jobs(tmp_path, 4) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["K0002.npz", "K0005.npz", "circle.jsonl"]
    circles = load_toy(tmp_path)
    assert [circle.size for circle in circles] == [2, 5]
    for circle in circles:
        arrays = circle.arrays
        attractors = len(arrays["attractors"])
        exact = len(arrays["attractors_exact"])
        shapes = {
            "points": (circle.size, 2),
            "samples": (16, 2),
            **dict.fromkeys(["energy", "energy_exact", "energy_limit"], (5, 5)),
            "score": (25, 2),
            **dict.fromkeys(["ring_energy", "ring_energy_exact", "ring_energy_limit"], (6,)),
            "attractors": (attractors, 2),
            **dict.fromkeys(["attractor_visits", "attractor_energy", "attractor_distance"], (attractors,)),
            "attractors_exact": (exact, 2),
            "attractor_exact_distance": (exact,),
            **dict.fromkeys(["score_error", "score_error_limit"], (4,)),
        }
        assert {name: array.shape for name, array in arrays.items()} == shapes
        assert all(np.isfinite(array).all() for array in arrays.values())
        np.testing.assert_allclose(arrays["points"], circle_points(circle.size, 4), atol=1e-6)
        assert arrays["attractor_visits"].sum() == 16
        assert circle.stored + circle.spurious == attractors
        assert circle.stored_exact + circle.spurious_exact == exact
        assert not circle.flat

        # The grid has 5 points a side from −1.6 to 1.6, the ring six from (1, 0) on.
        axis = torch.linspace(-toy.EXTENT, toy.EXTENT, 5)
        grid = torch.cartesian_prod(axis, axis)
        around = even_points(6)
        points = torch.as_tensor(arrays["points"])
        at = timestep_of(exploding_schedule(), toy.SIGMA_SHOWN)

        def energies(x: Tensor, points: Tensor = points, at: int = at) -> tuple[Tensor, Tensor]:
            times = torch.full((len(x),), at)
            return (
                exact_denoiser(points).energy(x.double(), times, prompts(times)),
                CircleDenoiser().energy(x.double(), times),
            )

        for kind, landscape, ring in zip(("_exact", "_limit"), energies(grid), energies(around), strict=True):
            lowest = float(landscape.min())
            np.testing.assert_allclose(
                arrays[f"energy{kind}"], (landscape - lowest).reshape(5, 5), rtol=1e-4, atol=1e-4
            )
            np.testing.assert_allclose(arrays[f"ring_energy{kind}"], ring - lowest, rtol=1e-4, atol=1e-4)
        assert arrays["energy"].min() == 0
        nearest = np.linalg.norm(arrays["attractors"][:, None] - arrays["points"][None], axis=2).min(1)
        np.testing.assert_allclose(arrays["attractor_distance"], nearest, atol=1e-6)
        # In 300 steps the highest noise levels are learnt.
        assert (arrays["score_error"] > 0).all()
        assert arrays["score_error"][-1] < 0.5
