r"""Published detectors of memorized prompts, each from its formula: the baselines of the benchmark.

With ε_Δ = ε̂(x, t, prompt) − ε̂(x, t, empty prompt) and the scores s = −ε̂/σ, a higher score means memorized, seeds are
averaged, and x is the pure noise that the sampler starts from unless said:

    Wen et al. (ICLR 2024)                    ‖ε_Δ‖₂ at the sampler's first step
    Jeon et al. (ICML 2025)                   ‖∂s_Δ/∂x · s_Δ‖₂ there, by a forward difference
    Asthana & Belagiannis (ICLR 2026)         ‖ε_Δ‖₂ at the first timestep + γ · cos(ε̂_uncond, ε_Δ) at a late one, the
                                              cosine over channels, averaged over pixels; γ is set by hand
    Kim & Lee (ICML 2026), contrast           mean of Σ_channels ε_Δ²/σ² at the last step of the trajectory
    Kim & Lee (ICML 2026), diagonal           mean of Σ_channels max(0, diag H_cond − diag H_uncond) there, H = ∇²E, the
                                              diagonals from Rademacher probes
    Carlini et al. (USENIX Security 2023)     −ℓ2 between two samples, the largest over tiles of the image
    trajectory displacement (2026)            max_t |‖z_t − z_{t+1}‖ − μ_t|/s_t with μ, s over ordinary prompts
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from audit.evidence.curvature import jacobian_product, rademacher
from audit.evidence.screening import Contrast
from audit.evidence.stability import pairwise_distances
from audit.model.denoiser import Condition, Denoiser, concatenate, repeat

#: Tiles along a side of the image: sixteen in all (Carlini et al. 2023).
TILES = 4
#: Probes of the diagonal (Kim & Lee 2026).
PROBES = 16


def wen(found: Contrast) -> Tensor:
    """‖ε_Δ‖₂, shape (n,), at the first step. 2 evaluations a seed."""
    return found.norm


def jeon(found: Contrast, curvature: Tensor) -> Tensor:
    """‖∂s_Δ/∂x · s_Δ‖₂, shape (n,), at the first step. 4 evaluations a seed.

    Args:
        found: ε_Δ there.
        curvature: ‖∂ε_Δ/∂x · ε_Δ‖₂/‖ε_Δ‖₂, from `audit.evidence.screening.contrast_curvature`.
    """
    return curvature * found.norm / found.sigma**2


def asthana(first: Contrast, late: Contrast, gamma: float) -> Tensor:
    """‖ε_Δ‖₂ at the first timestep + γ times the alignment at a late one, shape (n,). 4 evaluations a seed."""
    return first.norm + gamma * late.alignment


def kim_contrast(contrast_map: Tensor) -> Tensor:
    """The mean of the map Σ_channels ε_Δ²/σ², (n, height, width): shape (n,). Free with a guided trajectory."""
    return contrast_map.flatten(1).mean(1)


@torch.inference_mode()
def kim_diagonal_map(
    denoiser: Denoiser,
    x: Tensor,
    timestep: int,
    condition: Condition,
    unconditional: Condition,
    *,
    probes: int = PROBES,
    seed: int = 0,
) -> Tensor:
    """Σ_channels max(0, diag H_cond − diag H_uncond), shape (n, height, width): 4 evaluations a point and probe.

    Hutchinson's estimate of a diagonal is the mean of v ⊙ Jv over sign vectors v (Bekas, Kokiopoulou & Saad 2007). The
    paper takes vᵀJ by backpropagation; Jv by central differences has the same mean and needs no autograd.

    Args:
        denoiser: ε̂.
        x: points before the last step, (n, *latent shape).
        timestep: of the last step.
        condition: of the prompt, one row.
        unconditional: of the empty prompt, one row.
        probes: sign vectors a point; the same ones for both branches.
        seed: of the probes.
    """
    n, d = len(x), x[0].numel()
    signs = rademacher(n * probes, d, seed).repeat(2, 1)
    rows = concatenate([repeat(condition, n * probes), repeat(unconditional, n * probes)])
    points = x.repeat_interleave(probes, 0)
    products = jacobian_product(
        denoiser,
        torch.cat([points, points]),
        torch.full((2 * n * probes,), timestep),
        rows,
        signs / d**0.5,
    )
    diagonal = (signs * d**0.5 * products).reshape(2, n, probes, *x.shape[1:]).mean(2)
    sigma = float(denoiser.schedule.sigmas[timestep])
    return ((diagonal[0] - diagonal[1]) / sigma).clamp_min(0).sum(1)


def carlini(images: Tensor) -> NDArray[np.float64]:
    """ℓ2 between every two samples, the largest over tiles: shape (n, n). Full trajectories.

    Args:
        images: (n, channels, height, width).
    """
    n, _, height, width = images.shape
    tiles = images.cpu().double().unfold(2, height // TILES, height // TILES).unfold(3, width // TILES, width // TILES)
    flat = tiles.permute(2, 3, 0, 1, 4, 5).reshape(TILES * TILES, n, -1)
    return np.max([pairwise_distances(tile) for tile in flat], axis=0)


def closest_pair(distances: NDArray[np.float64]) -> float:
    """The score of Carlini et al. for samples of one prompt: minus the distance of the two that are closest."""
    return -float(distances[np.triu_indices(len(distances), 1)].min())


def displacement(steps: ArrayLike, ordinary: ArrayLike) -> NDArray[np.float64]:
    """max_t |‖z_t − z_{t+1}‖ − μ_t|/s_t, shape (n,). Free with a trajectory.

    Args:
        steps: ‖z_t − z_{t+1}‖ of every seed, (n, steps).
        ordinary: of samples of ordinary prompts, (m, steps), m ≥ 2.
    """
    plain = np.asarray(ordinary, dtype=np.float64)
    return (np.abs(np.asarray(steps) - plain.mean(0)) / plain.std(0, ddof=1)).max(1)
