"""Published detectors against closed forms of the exact denoiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.bench import detectors
from audit.evidence.screening import contrast_curvature, measure_contrast
from audit.model.denoiser import MeteredDenoiser, repeat
from audit.model.empirical import EmpiricalDenoiser
from tests.audit.makers import clusters, stable_diffusion_schedule, timestep_of

SHAPE = (4, 2, 2)
PROMPT, EMPTY = 0, 1


@pytest.fixture
def denoiser() -> EmpiricalDenoiser:
    """Three of nine points under the prompt, all of them under the empty one; float64."""
    priors = torch.ones(2, 9)
    priors[PROMPT, 3:] = 0
    points = clusters(3, 3, 0.3, spread=0.7).reshape(9, *SHAPE)
    return EmpiricalDenoiser(points, priors, stable_diffusion_schedule())


@pytest.fixture
def noise() -> Tensor:
    """Places that are pure noise."""
    return torch.randn(4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_wen_and_asthana_add_up(denoiser: EmpiricalDenoiser, noise: Tensor) -> None:
    """The norm at the first timestep, and γ times the late alignment on top."""
    prompt, empty = denoiser.condition(PROMPT), denoiser.condition(EMPTY)
    first, late = (measure_contrast(denoiser, noise, t, prompt, empty) for t in (981, 41))
    norm = first.difference.flatten(1).square().sum(1).sqrt()
    torch.testing.assert_close(detectors.wen(first), norm)
    cosine = torch.nn.functional.cosine_similarity(late.unconditional, late.difference, dim=1).mean((1, 2))
    torch.testing.assert_close(detectors.asthana(first, late, 2.0), norm + 2.0 * cosine)


def test_jeon_is_the_product_with_the_scores_difference(denoiser: EmpiricalDenoiser, noise: Tensor) -> None:
    """‖(∂s_prompt/∂x − ∂s_empty/∂x) s_Δ‖ from the exact curvatures, within 10⁻⁴."""
    prompt, empty = denoiser.condition(PROMPT), denoiser.condition(EMPTY)
    t = timestep_of(denoiser.schedule, 0.5)
    found = measure_contrast(denoiser, noise, t, prompt, empty)
    score = detectors.jeon(found, contrast_curvature(denoiser, noise, found, prompt, empty))
    times, n = torch.full((len(noise),), t), len(noise)
    curvatures = [-denoiser.curvature(noise, times, repeat(branch, n)) for branch in (prompt, empty)]
    difference = -found.difference.flatten(1) / found.sigma
    exact = torch.einsum("nij,nj->ni", curvatures[0] - curvatures[1], difference).norm(dim=1)
    torch.testing.assert_close(score, exact, rtol=1e-4, atol=1e-6)


def test_kim_contrast_is_the_mean_of_the_map() -> None:
    """One number a sample."""
    found = detectors.kim_contrast(torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, 4.0]]]))
    torch.testing.assert_close(found, torch.tensor([3.0, 1.0]))


def test_kim_diagonal_comes_close_to_the_exact_one(denoiser: EmpiricalDenoiser, noise: Tensor) -> None:
    """With many probes the map is Σ_channels max(0, diag(H_prompt − H_empty)), within 5% of the largest entry."""
    prompt, empty = denoiser.condition(PROMPT), denoiser.condition(EMPTY)
    t = timestep_of(denoiser.schedule, 0.4)
    # Between an image of the prompt and one of another: only without the prompt is there a choice.
    x = float(denoiser.schedule.alphas[t]) * (denoiser.points[:2] + denoiser.points[3:5]) / 2 + 0.1 * noise[:2]
    meter = MeteredDenoiser(denoiser)
    found = detectors.kim_diagonal_map(meter, x, t, prompt, empty, probes=4096)
    assert meter.evaluations == 2 * 4096 * 4
    times = torch.full((2,), t)
    diagonals = [
        torch.diagonal(denoiser.curvature(x, times, repeat(branch, 2)), dim1=1, dim2=2) for branch in (prompt, empty)
    ]
    exact = (diagonals[0] - diagonals[1]).clamp_min(0).reshape(2, *SHAPE).sum(1)
    assert float(exact.max()) > 0.1
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05 * float(exact.max()))


def test_carlini_takes_the_worst_tile() -> None:
    """Images that differ in one tile are as far apart as that tile; the score is of the closest pair."""
    images = torch.zeros(3, 1, 8, 8)
    images[1, 0, 0, 0] = 3.0
    images[1, 0, 7, 7] = 4.0
    images[2] = 1.0
    found = detectors.carlini(images)
    assert found[0, 1] == pytest.approx(4.0)
    assert found[0, 2] == pytest.approx(2.0)  # four pixels a tile
    np.testing.assert_allclose(found, found.T)
    assert detectors.closest_pair(found) == pytest.approx(-2.0)


def test_displacement_is_the_largest_deviation() -> None:
    """In standard deviations of ordinary prompts, up or down."""
    rng = np.random.default_rng(0)
    ordinary = rng.normal([1.0, 2.0, 3.0], [0.1, 0.2, 0.3], (500, 3))
    mean, spread = ordinary.mean(0), ordinary.std(0, ddof=1)
    steps = mean + spread * np.array([[0.5, -4.0, 1.0], [0.0, 0.0, 2.0]])
    np.testing.assert_allclose(detectors.displacement(steps, ordinary), [4.0, 2.0])
