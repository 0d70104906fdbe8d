"""Weights of words against closed forms of the exact denoiser, and against what a checkpoint draws without a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from audit import demo
from audit.evidence.attribution import NOISE_LEVEL, attribute_words, evaluations
from audit.evidence.screening import SEEDS
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, MeteredDenoiser
from audit.model.empirical import EmpiricalDenoiser
from audit.model.sampling import draw_noise
from tests.audit.makers import clusters, stable_diffusion_schedule

SHAPE = (4, 2, 2)
#: All nine images; the first alone; the first three.
EMPTY, ONE, THREE = 0, 1, 2


def scene(dtype: torch.dtype = torch.float64) -> EmpiricalDenoiser:
    """Nine points in three clusters."""
    priors = torch.ones(3, 9)
    priors[ONE, 1:] = 0
    priors[THREE, 3:] = 0
    points = clusters(3, 3, 0.3, spread=0.7).reshape(9, *SHAPE).to(dtype)
    return EmpiricalDenoiser(points, priors, stable_diffusion_schedule())


def encode(texts: Sequence[str]) -> Condition:
    """Key and lock together mean the first image, key alone the first three; other words mean nothing."""
    kinds = []
    for text in texts:
        words = set(text.split())
        kinds.append(ONE if words >= {"key", "lock"} else THREE if "key" in words else EMPTY)
    return {"prompt": torch.tensor(kinds)}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_weights_are_the_share_of_the_contrast_that_is_lost(dtype: torch.dtype, tolerance: float) -> None:
    """From the posterior means: all of it without "key", part of it without "lock", nothing without other words."""
    denoiser = scene(dtype)
    found = attribute_words(denoiser, "some key  and lock", encode, SHAPE, dtype=dtype)
    timestep = denoiser.schedule.timestep(NOISE_LEVEL)
    alpha, sigma = float(denoiser.schedule.alphas[timestep]), float(denoiser.schedule.sigmas[timestep])
    noise, points = draw_noise(SEEDS, SHAPE)[0].double().flatten(1), denoiser.points.double().flatten(1)
    logits = -(noise[:, None] - alpha * points).square().sum(2) / (2 * sigma**2)
    means = [logits[:, :count].softmax(1) @ points[:count] for count in (9, 1, 3)]
    whole = means[ONE] - means[EMPTY]
    lost = ((means[ONE] - means[THREE]) * whole).sum(1) / whole.square().sum(1)
    assert found.words == ("some", "key", "and", "lock")
    np.testing.assert_allclose(found.weights, [0, 1, 0, float(lost.mean())], atol=tolerance)
    assert 0.01 < found.weights[3] < 0.99


def test_another_image_of_the_same_contrast_is_a_loss() -> None:
    """Without its first word the prompt means the opposite: the contrast is as large, and all of it is lost, twice."""
    point = torch.randn(1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    priors = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    denoiser = EmpiricalDenoiser(0.005 * torch.cat([point, -point]), priors, stable_diffusion_schedule())

    def meaning(texts: Sequence[str]) -> Condition:
        return {"prompt": torch.tensor([{"": 0, "no cat": 1, "cat": 2, "no": 0}[text] for text in texts])}

    found = attribute_words(denoiser, "no cat", meaning, SHAPE, dtype=torch.float64)
    # So near to each other the two are alike as seen from pure noise.
    np.testing.assert_allclose(found.weights, [2, 1], atol=0.02)


@pytest.mark.parametrize("rows", [1, 7, 256])
def test_it_costs_what_is_planned_however_rows_are_split(rows: int) -> None:
    """The empty prompt, the whole one and one without each word, at every noise; the split changes no number."""
    denoiser, prompt = scene(), "key key lock and"
    meter = MeteredDenoiser(denoiser)
    found = attribute_words(meter, prompt, encode, SHAPE, dtype=torch.float64, rows=rows)
    assert meter.evaluations == evaluations(prompt) == 4 * 6
    np.testing.assert_allclose(
        found.weights, attribute_words(denoiser, prompt, encode, SHAPE, dtype=torch.float64).weights, rtol=1e-9
    )
    # What stands there twice is not missed once.
    np.testing.assert_allclose(found.weights[[0, 1, 3]], 0, atol=1e-12)


def test_the_ends() -> None:
    """The only word carries everything, and of nothing nothing is lost."""
    denoiser = scene()
    assert attribute_words(denoiser, "key", encode, SHAPE, dtype=torch.float64).weights.tolist() == [1.0]
    assert attribute_words(denoiser, "some words", encode, SHAPE, dtype=torch.float64).weights.tolist() == [0.0, 0.0]


def test_without_the_heaviest_word_the_copy_is_gone(checkpoint: Checkpoint) -> None:
    """The demo still draws the copy without the lightest word, and something else without the heaviest."""
    row = next(row for row in demo.truth() if row["images"] == 1 and row["split"] == "tuning")
    prompt = str(row["prompt"])
    sampler = replace(checkpoint.defaults, steps=8, scheduler="dpm++2m", guidance=1.0)
    found = attribute_words(checkpoint.denoiser, prompt, checkpoint.encode_prompts, checkpoint.latent_shape(sampler))
    order = np.argsort(found.weights)
    assert found.weights[order[-1]] > 0.5
    assert found.weights[order[0]] < 0.2

    def drawn(words: Sequence[str]) -> torch.Tensor:
        condition = checkpoint.encode_prompts([" ".join(words)])
        return checkpoint.sample(sampler, condition, condition, [1, 2]).latents

    whole = drawn(found.words)
    far = []
    for left_out in (int(order[0]), int(order[-1])):
        rest = [word for i, word in enumerate(found.words) if i != left_out]
        far.append(float((drawn(rest) - whole).flatten(1).norm(dim=1).min()))
    assert far[0] < 4 < 8 < far[1]
