"""Contrasts on pure noise against closed forms of the exact denoiser."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from audit.evidence.screening import Screen, contrast_curvature, measure_contrast
from audit.model.denoiser import MeteredDenoiser, concatenate, repeat
from audit.model.empirical import EmpiricalDenoiser
from audit.model.sampling import draw_noise
from tests.audit.makers import clusters, stable_diffusion_schedule, timestep_of

SHAPE = (4, 2, 2)
#: One stored image under the prompt, all of them under the empty one.
PROMPT, EMPTY = 0, 1


def scene(dtype: torch.dtype) -> tuple[EmpiricalDenoiser, Tensor]:
    """Nine points, and places that are pure noise."""
    points = clusters(3, 3, 0.3, spread=0.7).reshape(9, *SHAPE).to(dtype)
    priors = torch.ones(2, 9)
    priors[PROMPT, 1:] = 0
    noise = torch.randn(5, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return EmpiricalDenoiser(points, priors, stable_diffusion_schedule()), noise.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("sigma", [0.3, 0.7, 0.99])
def test_contrast_is_the_difference_of_the_means(sigma: float, dtype: torch.dtype, tolerance: float) -> None:
    """ε_Δ = −(α/σ)(x̂₀(prompt) − x̂₀(empty)): under the prompt the only image, else the weighted mean."""
    denoiser, x = scene(dtype)
    t = timestep_of(denoiser.schedule, sigma)
    found = measure_contrast(denoiser, x, t, denoiser.condition(PROMPT), denoiser.condition(EMPTY))
    alpha, own = float(denoiser.schedule.alphas[t]), float(denoiser.schedule.sigmas[t])
    assert found.sigma == own
    squared = (x.flatten(1)[:, None] - alpha * denoiser.points.flatten(1)[None]).square().sum(-1)
    mean = ((-squared / (2 * own**2)).softmax(1) @ denoiser.points.flatten(1)).reshape(x.shape)
    exact = -alpha / own * (denoiser.points[0] - mean)
    torch.testing.assert_close(found.difference, exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.norm, exact.flatten(1).norm(dim=1), rtol=0, atol=10 * tolerance)
    cosine = torch.nn.functional.cosine_similarity((x - alpha * mean) / own, exact, dim=1).flatten(1).mean(1)
    torch.testing.assert_close(found.alignment, cosine, rtol=0, atol=100 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 0.02)])
@pytest.mark.parametrize("sigma", [0.3, 0.7])
def test_curvature_is_the_derivative_along_the_contrast(sigma: float, dtype: torch.dtype, tolerance: float) -> None:
    """‖σ(H_prompt − H_empty)u‖ from the exact curvatures, within 2% in single precision, 10⁻⁵ in double."""
    denoiser, x = scene(dtype)
    t = timestep_of(denoiser.schedule, sigma)
    prompt, empty = denoiser.condition(PROMPT), denoiser.condition(EMPTY)
    found = measure_contrast(denoiser, x, t, prompt, empty)
    times = torch.full((len(x),), t)
    wide = x.double()
    difference = sigma_of(denoiser, t) * (
        denoiser.curvature(wide, times, repeat(prompt, len(x))) - denoiser.curvature(wide, times, repeat(empty, len(x)))
    )
    direction = found.difference.double().flatten(1) / found.norm.double()[:, None]
    exact = torch.einsum("nij,nj->ni", difference, direction).norm(dim=1)
    assert float(exact.min()) > 0.01
    own = contrast_curvature(denoiser, x, found, prompt, empty)
    torch.testing.assert_close(own.double(), exact, rtol=tolerance, atol=tolerance * float(exact.max()))


def sigma_of(denoiser: EmpiricalDenoiser, t: int) -> float:
    """σ of a timestep."""
    return float(denoiser.schedule.sigmas[t])


def test_evaluations_of_contrast_and_curvature() -> None:
    """2 evaluations a point for the contrast, 2 more for its curvature."""
    denoiser, x = scene(torch.float64)
    meter = MeteredDenoiser(denoiser)
    prompt, empty = denoiser.condition(PROMPT), denoiser.condition(EMPTY)
    found = measure_contrast(meter, x, 500, prompt, empty)
    assert meter.evaluations == 2 * len(x)
    contrast_curvature(meter, x, found, prompt, empty)
    assert meter.evaluations == 4 * len(x)


def test_the_same_prompt_has_no_contrast() -> None:
    """Nothing is divided by the norm of nothing."""
    denoiser, x = scene(torch.float32)
    empty = denoiser.condition(EMPTY)
    found = measure_contrast(denoiser, x, 500, empty, empty)
    assert float(found.norm.max()) == 0.0
    assert float(contrast_curvature(denoiser, x, found, empty, empty).max()) == 0.0


@pytest.mark.parametrize("rows", [1, 5, 256])
def test_a_screen_measures_the_contrast_of_every_prompt(rows: int) -> None:
    """As `measure_contrast` has it at the same noise, 1 evaluation a noise and level; the other branch is paid once."""
    denoiser, _ = scene(torch.float64)
    meter, seeds, levels = MeteredDenoiser(denoiser), range(40, 43), (0.9, 0.3)
    prompt, empty = denoiser.condition(PROMPT), denoiser.condition(EMPTY)
    screen = Screen(meter, SHAPE, empty, noise_levels=levels, seeds=seeds, dtype=torch.float64)
    assert meter.evaluations == screen.evaluations == 6
    first, second = screen.measure(meter, concatenate([prompt, empty]), rows=rows)
    assert meter.evaluations == 3 * 6
    noise = draw_noise(seeds, SHAPE)[0].double()
    for level, t in enumerate(first.timesteps):
        exact = measure_contrast(denoiser, noise, t, prompt, empty)
        assert exact.sigma == first.sigmas[level] == pytest.approx(levels[level], abs=0.01)
        torch.testing.assert_close(torch.from_numpy(first.contrast[:, level]), exact.norm / 4)
        torch.testing.assert_close(torch.from_numpy(first.alignment[:, level]), exact.alignment)
    assert second.contrast.shape == (3, 2)
    assert second.contrast.max() < 1e-12
