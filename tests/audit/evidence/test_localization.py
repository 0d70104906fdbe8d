"""Maps of recall against closed forms of the exact denoiser, where the copied part is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.evidence.localization import (
    FIRST_SEED,
    NOISE_LEVELS,
    RIDGE,
    SAMPLES,
    evaluations,
    locate_recall,
    otsu,
    overlap,
    smooth,
)
from audit.model.denoiser import MeteredDenoiser
from audit.model.empirical import EmpiricalDenoiser
from audit.model.sampling import draw_noise
from audit.phase.ladder import HALVES, Half, template_mask
from tests.audit.makers import stable_diffusion_schedule

SHAPE = (2, 6, 6)
#: All images; forty that have one half in common.
EMPTY, PROMPT = 0, 1


def scene(half: Half, dtype: torch.dtype = torch.float64) -> EmpiricalDenoiser:
    """Three hundred points, of which the first forty share one half."""
    generator = torch.Generator().manual_seed(4)
    points = 0.3 * torch.randn(300, *SHAPE, generator=generator, dtype=torch.float64)
    mask = torch.from_numpy(template_mask(half, SHAPE[1:]))
    points[:40, :, mask] = points[0, :, mask]
    priors = torch.ones(2, 300)
    priors[PROMPT, 40:] = 0
    return EmpiricalDenoiser(points.to(dtype), priors, stable_diffusion_schedule())


@pytest.mark.parametrize("half", HALVES)
def test_the_half_that_all_images_share_is_found(half: Half) -> None:
    """By Otsu's threshold, at an intersection over union of 0.9 or more."""
    denoiser, mask = scene(half), template_mask(half, SHAPE[1:])
    found = locate_recall(denoiser, denoiser.points[:6], denoiser.condition(PROMPT), denoiser.condition(EMPTY))
    assert found.values.shape == SHAPE[1:]
    assert found.samples == 6
    assert overlap(found.mask, mask) >= 0.9
    assert overlap(found.values > np.median(found.values), mask) >= 0.9
    assert found.values[mask].mean() > 3 * abs(found.values[~mask].mean())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_the_map_is_the_ratio_of_the_exact_errors(dtype: torch.dtype, tolerance: float) -> None:
    """ε̂ − ε = (α/σ)(ẑ₀ − x̂₀), with x̂₀ the posterior means."""
    denoiser = scene("left", dtype)
    latents = denoiser.points[10:13]
    found = locate_recall(denoiser, latents, denoiser.condition(PROMPT), denoiser.condition(EMPTY))
    points, total = denoiser.points.double().flatten(1), torch.zeros(SHAPE[1:], dtype=torch.float64)
    for level in NOISE_LEVELS:
        t = denoiser.schedule.timestep(level)
        alpha, sigma = float(denoiser.schedule.alphas[t]), float(denoiser.schedule.sigmas[t])
        for sample in range(3):
            clean = latents[sample].double().flatten()
            noise = draw_noise([FIRST_SEED + sample], SHAPE)[0].double().flatten()
            errors = []
            for count in (300, 40):
                wrong: list[Tensor] = []
                for sign in (1, -1):
                    x = alpha * clean + sign * sigma * noise
                    weights = (-(x - alpha * points[:count]).square().sum(1) / (2 * sigma**2)).softmax(0)
                    wrong.append((alpha / sigma * (clean - weights @ points[:count])).square())
                errors.append(torch.stack(wrong).mean(0).reshape(SHAPE).mean(0) + RIDGE)
            total += (errors[0] / errors[1]).log()
    np.testing.assert_allclose(found.values, smooth(total / 6).numpy(), atol=tolerance)


def test_a_prompt_that_says_nothing_has_an_empty_map() -> None:
    """0 everywhere, and no cell over the threshold."""
    denoiser = scene("top")
    found = locate_recall(denoiser, denoiser.points[:2], denoiser.condition(EMPTY), denoiser.condition(EMPTY))
    assert not found.values.any()
    assert not found.mask.any()


@pytest.mark.parametrize("rows", [1, 8, 256])
@pytest.mark.parametrize("count", [1, 5, 11])
def test_it_costs_what_is_planned_however_rows_are_split(rows: int, count: int) -> None:
    """8 evaluations a sample, of the first eight; the split changes no number."""
    denoiser = scene("right")
    meter, latents = MeteredDenoiser(denoiser), denoiser.points[:count]
    branches = denoiser.condition(PROMPT), denoiser.condition(EMPTY)
    found = locate_recall(meter, latents, *branches, rows=rows)
    assert meter.evaluations == evaluations(count) == 8 * min(count, SAMPLES)
    assert found.samples == min(count, SAMPLES)
    np.testing.assert_allclose(found.values, locate_recall(denoiser, latents[:SAMPLES], *branches).values, rtol=1e-9)


def test_otsu_parts_two_groups() -> None:
    """As trying every threshold does; between the groups where there are two."""
    rng = np.random.default_rng(0)
    for size in (2, 3, 20, 64):
        values = np.concatenate([rng.normal(0, 1, size), rng.normal(4, 0.5, size)])
        threshold = otsu(values)

        def between(at: float, values: np.ndarray = values) -> float:
            low, high = values[values <= at], values[values > at]
            return len(low) * len(high) * (high.mean() - low.mean()) ** 2 if len(low) and len(high) else 0.0

        assert between(threshold) == pytest.approx(max(map(between, values)))
    assert otsu([1.0, 1.0, 3.0, 3.0, 3.0]) == 2.0
    assert otsu([[5.0]]) == 5.0
    assert otsu(np.full((4, 4), 0.25)) == 0.25


def test_overlap_and_smoothing() -> None:
    """Intersection over union; means over what touches, the border repeated."""
    left, top = template_mask("left", (4, 4)), template_mask("top", (4, 4))
    assert overlap(left, left) == 1
    assert overlap(left, ~left) == 0
    assert overlap(left, top) == pytest.approx(1 / 3)
    assert overlap(left & ~left, top & ~top) == 1
    one = torch.zeros(3, 4, dtype=torch.float64)
    one[0, 0] = 9
    expected = torch.zeros(3, 4, dtype=torch.float64)
    expected[:2, :2] = torch.tensor([[4.0, 2.0], [2.0, 1.0]])
    torch.testing.assert_close(smooth(one), expected)
    torch.testing.assert_close(smooth(torch.full((1, 1), 2.0)), torch.full((1, 1), 2.0))
