r"""Trace of the curvature, smoothed by noise: two plain evaluations a sample and level.

A sample ẑ₀ is noised to x = αẑ₀ + σε. By Stein's lemma (Stein 1981, lemma 2) the mean trace of J = ∂ε̂/∂x over the
noise needs no derivative,

    σ E_ε tr J(αẑ₀ + σε) = E_ε[ε · ε̂(αẑ₀ + σε)],

so that one noise gives an unbiased estimate of what `audit.evidence.curvature` calls the trace, averaged over the
neighbourhood that the noise reaches. With its mirror image −ε the part of ε̂ that is even in ε cancels:

    s = ε · (ε̂(αẑ₀ + σε) − ε̂(αẑ₀ − σε)) / 2‖ε‖².

In words, s is the share of the noise that the network finds again: 1 at an isolated stored point, less where the
neighbourhood is full of other states that the prompt allows. A product Jv in `curvature` costs as much, tells of one
direction at one point, and sees every ripple of the network there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.model.denoiser import Condition, Denoiser, repeat
from audit.model.sampling import draw_noise


@dataclass(frozen=True)
class SmoothedTrace:
    """The smoothed trace at n samples.

    Attributes:
        timesteps: of the noise levels.
        sigmas: their σ.
        values: s of every sample and level, (n, levels); 1 at an isolated stored point.
    """

    timesteps: tuple[int, ...]
    sigmas: tuple[float, ...]
    values: NDArray[np.float64]


@torch.inference_mode()
def measure_smoothed_trace(
    denoiser: Denoiser,
    latents: Tensor,
    condition: Condition,
    noise_levels: Sequence[float],
    seeds: Sequence[int],
    *,
    rows: int = 256,
) -> SmoothedTrace:
    """Measure s at every sample and noise level, one noise each: 2 evaluations.

    Args:
        denoiser: ε̂.
        latents: samples ẑ₀, (n, *latent shape), also none.
        condition: of the prompt, one row.
        noise_levels: σ/√(α² + σ²) of each level; the nearest training timestep is used.
        seeds: of the noise, one per sample; a sample has the same noise at every level.
        rows: most rows in one call of the denoiser.
    """
    n, levels = len(latents), len(noise_levels)
    timesteps = [denoiser.schedule.timestep_at_level(level) for level in noise_levels]
    sigmas = tuple(float(denoiser.schedule.sigmas[t]) for t in timesteps)
    if not n:
        return SmoothedTrace(tuple(timesteps), sigmas, np.zeros((0, levels)))
    noise = draw_noise(seeds, latents.shape[1:])[0].to(latents)
    t = torch.tensor(timesteps).repeat_interleave(n)
    clean, added = latents.repeat(levels, *[1] * (latents.dim() - 1)), noise.repeat(levels, *[1] * (latents.dim() - 1))
    found = []
    for start in range(0, levels * n, max(1, rows // 2)):
        part = slice(start, start + max(1, rows // 2))
        alpha, sigma = denoiser.schedule.at(t[part], clean)
        center, shift = alpha * clean[part], sigma * added[part]
        both = denoiser.precise(
            torch.cat([center + shift, center - shift]), t[part].repeat(2), repeat(condition, 2 * len(center))
        )
        plus, minus = both.flatten(1).chunk(2)
        direction = added[part].flatten(1).cpu().double()
        found.append(((plus - minus) * direction).sum(1) / (2 * direction.square().sum(1)))
    return SmoothedTrace(
        timesteps=tuple(timesteps),
        sigmas=sigmas,
        values=torch.cat(found).reshape(levels, n).T.numpy(),
    )
