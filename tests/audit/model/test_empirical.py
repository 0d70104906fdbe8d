"""The exact denoiser against automatic differentiation of its energy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from audit.model.denoiser import repeat
from audit.model.empirical import EmpiricalDenoiser
from tests.audit.makers import clusters, exact_denoiser, stable_diffusion_schedule, timestep_of

POINTS = clusters(3, 5, 0.4, dimension=6)


def somewhere(denoiser: EmpiricalDenoiser, sigma: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two noisy points and their timestep."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.full((2,), timestep_of(denoiser.schedule, sigma))
    picked = denoiser.points[torch.randint(len(denoiser.points), (2,), generator=generator)]
    alpha, sigmas = denoiser.schedule.at(t, picked)
    return alpha * picked + sigmas * torch.randn(picked.shape, generator=generator, dtype=torch.float64), t


@settings(max_examples=25)
@given(sigma=st.floats(0.05, 0.99), seed=st.integers(0, 2**31))
def test_noise_prediction_is_sigma_times_the_gradient_of_the_energy(sigma: float, seed: int) -> None:
    """ε̂ = σ∇E at any noise level."""
    denoiser = exact_denoiser(POINTS)
    x, t = somewhere(denoiser, sigma, seed)
    x.requires_grad_(True)
    condition = repeat(denoiser.condition(0), 2)
    (gradient,) = torch.autograd.grad(denoiser.energy(x, t, condition).sum(), x)
    _, sigmas = denoiser.schedule.at(t, x)
    torch.testing.assert_close(denoiser(x, t, condition), sigmas * gradient, rtol=1e-9, atol=1e-9)


@settings(max_examples=15)
@given(sigma=st.floats(0.05, 0.99), seed=st.integers(0, 2**31))
def test_curvature_is_the_hessian_of_the_energy_and_the_jacobian_of_the_noise(sigma: float, seed: int) -> None:
    """H = ∇²E, and ∂ε̂/∂x = σH."""
    denoiser = exact_denoiser(POINTS)
    x, t = somewhere(denoiser, sigma, seed)
    condition = denoiser.condition(0)
    curvature = denoiser.curvature(x, t, repeat(condition, 2))
    for row in range(2):
        at = t[row : row + 1]
        second = hessian(lambda z, at=at: denoiser.energy(z[None], at, condition)[0], x[row])
        first = jacobian(lambda z, at=at: denoiser(z[None], at, condition)[0], x[row])
        scale = float(second.abs().max())
        torch.testing.assert_close(curvature[row], second, rtol=1e-8, atol=1e-8 * scale)
        _, level = denoiser.schedule.at(at, x)
        torch.testing.assert_close(first, float(level) * second, rtol=1e-8, atol=1e-8 * scale)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 0.99])
def test_a_single_point_is_a_bowl(sigma: float) -> None:
    """One point has H = I/σ², everywhere, and its energy is the Gaussian's own."""
    denoiser = exact_denoiser(clusters(1, 1, 0.0, dimension=5))
    t = torch.tensor([timestep_of(denoiser.schedule, sigma)])
    x = torch.randn(1, 5, dtype=torch.float64)
    alpha, level = denoiser.schedule.at(t, x)
    torch.testing.assert_close(
        denoiser.curvature(x, t, denoiser.condition(0))[0], torch.eye(5, dtype=torch.float64) / level**2
    )
    gaussian = torch.distributions.Normal(alpha * denoiser.points, level).log_prob(x).sum()
    assert float(denoiser.energy(x, t, denoiser.condition(0))) == pytest.approx(-float(gaussian), rel=1e-12)


def test_energy_integrates_to_one() -> None:
    """exp(−E) is a probability density."""
    denoiser = exact_denoiser(torch.tensor([[-1.0], [0.3], [0.5]], dtype=torch.float64))
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    t = torch.full((len(x),), 300)
    density = (-denoiser.energy(x, t, repeat(denoiser.condition(0), len(x)))).exp()
    assert float(torch.trapezoid(density, x[:, 0])) == pytest.approx(1.0, abs=1e-9)


def test_conditions_select_sets_of_points() -> None:
    """At small noise each prompt denoises to its own points, also side by side in one batch."""
    points = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    denoiser = EmpiricalDenoiser(points, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]), stable_diffusion_schedule())
    t = torch.tensor([5, 5])
    x = torch.zeros(2, 2, dtype=torch.float64) + torch.tensor([0.2, 0.0])
    condition = {"prompt": torch.tensor([0, 1])}
    clean = denoiser.clean(x, t, denoiser.native(x, t, condition))
    torch.testing.assert_close(clean[0], points[0])
    torch.testing.assert_close(clean[1], points[1])


def test_priors_weigh_points() -> None:
    """Under pure noise the clean estimate is the mean by prior weight."""
    points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    schedule = stable_diffusion_schedule()
    denoiser = EmpiricalDenoiser(points, torch.tensor([[1.0, 3.0]]), schedule)
    x, t = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([999])
    found = float(denoiser.clean(x, t, denoiser.native(x, t, denoiser.condition(0))))
    alpha, sigma = float(schedule.alphas[999]), float(schedule.sigmas[999])
    weight = 3 * math.exp(-(alpha**2) / (2 * sigma**2))
    assert found == pytest.approx(weight / (1 + weight), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_and_vectors_denoise_alike(dtype: torch.dtype) -> None:
    """The shape of a latent row does not matter, and the dtype of x is kept."""
    points = clusters(2, 4, 0.5).to(dtype)
    flat, shaped = exact_denoiser(points), exact_denoiser(points.reshape(-1, 4, 2, 2))
    x, t = torch.randn(3, 16, dtype=dtype), torch.tensor([10, 200, 800])
    condition = repeat(flat.condition(0), 3)
    found = shaped(x.reshape(3, 4, 2, 2), t, condition)
    assert found.dtype == dtype
    torch.testing.assert_close(found.flatten(1), flat(x, t, condition))
