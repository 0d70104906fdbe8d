r"""Basins of attraction: how much noise a state survives.

A sample x₀ is noised to x_t = αx₀ + σε and denoised again; it *recovers* when it comes back to the same state. Noise
grows until it no longer does: the critical time is the last timestep from which at least a share p of the trials
recovers (the paper, figure 4B and its code: 10 trials, p = 0.9), and the basin is summed up by the ball of radius

    r = √(E‖x_t − x₀‖²) = √((1 − α)²‖x₀‖² + σ²d),      log V = (d/2) log π − log Γ(d/2 + 1) + d log r.

Noise levels are those of the sampler under audit, and the way back is the rest of its own trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.model.denoiser import Condition, Denoiser
from audit.model.sampling import SamplerSettings, sample_from, set_timesteps
from audit.reference.images import in_chunks

#: Tells which rows came back: called with latents (rows, ...) and the index of the point that each started from.
Recovered = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class BasinSettings:
    """How basins are measured.

    Attributes:
        trials: noises per point and level.
        share: p, the share of them that must recover.
        stride: steps of the sampler between two levels.
    """

    trials: int = 10
    share: float = 0.9
    stride: int = 2


@dataclass(frozen=True)
class Basins:
    """The basins of n points.

    Attributes:
        timesteps: the noise levels tried, ascending, (levels,).
        recovery: share of the trials that recovered, (n, levels); NaN beyond the first level that did not.
        critical_time: last timestep that recovers, (n,); 0 where not even the lowest level does.
        radius: r at the critical time, (n,); where not even the lowest level recovers, r there, an upper bound.
        log_volume: of the ball of that radius, in nats, (n,).
    """

    timesteps: NDArray[np.int64]
    recovery: NDArray[np.float64]
    critical_time: NDArray[np.int64]
    radius: NDArray[np.float64]
    log_volume: NDArray[np.float64]


def ball_log_volume(radius: NDArray[np.float64], dimension: int) -> NDArray[np.float64]:
    """Log-volume of d-dimensional balls, in nats."""
    return dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2 + 1) + dimension * np.log(radius)


def within(points: Tensor, distance: float) -> Recovered:
    """Recovery as an ℓ2 distance to the point itself of at most `distance`."""
    return lambda rows, index: (rows - points[index]).flatten(1).norm(dim=1) <= distance


def measure_basins(
    denoiser: Denoiser,
    scheduler: Callable[[], Any],
    sampler: SamplerSettings,
    points: Tensor,
    condition: Condition,
    unconditional: Condition,
    recovered: Recovered,
    settings: BasinSettings,
    *,
    seed: int = 0,
    rows: int = 2048,
) -> Basins:
    """Noise points more and more until they no longer come back.

    Args:
        denoiser: ε̂.
        scheduler: makes a fresh scheduler.
        sampler: the trajectory whose levels and steps are used.
        points: x₀, (n, *latent shape).
        condition: of the prompt, one row.
        unconditional: of the empty or negative prompt, one row.
        recovered: whether a state is the same again.
        settings: trials, share and levels.
        seed: of the noise; every (point, trial) has a noise of its own, the same one at every level.
        rows: most rows in one batch.
    """
    n, trials = len(points), settings.trials
    ready = scheduler()
    set_timesteps(ready, sampler.steps)
    steps = list(range(len(ready.timesteps) - 1, -1, -settings.stride))
    # Some schedulers stand between two timesteps.
    times = torch.as_tensor([float(ready.timesteps[step]) for step in steps], dtype=torch.float64)
    timesteps = times.round().long()
    recovery = np.full((n, len(steps)), np.nan)
    active = torch.arange(n)
    for level, step in enumerate(steps):
        index = active.repeat_interleave(trials)
        trial = torch.arange(trials).repeat(len(active))
        came_back = []
        for part in in_chunks(len(index), rows):
            seeds = [seed + int(i) * trials + int(j) for i, j in zip(index[part], trial[part], strict=True)]
            ends = sample_from(
                denoiser, scheduler(), sampler, condition, unconditional, points[index[part]], step, seeds
            )
            came_back.append(recovered(ends, index[part]))
        shares = torch.cat(came_back).cpu().reshape(-1, trials).double().mean(1)
        recovery[active.numpy(), level] = shares.numpy()
        active = active[shares >= settings.share - 1e-9]
        if not len(active):
            break
    passed = np.sum(recovery >= settings.share - 1e-9, axis=1)
    last = np.maximum(passed - 1, 0)
    flat = points.flatten(1).cpu().double()
    alpha, sigma = denoiser.schedule.at(times[last], flat)
    dimension = flat.shape[1]
    radius = ((1 - alpha[:, 0]) ** 2 * flat.square().sum(1) + sigma[:, 0] ** 2 * dimension).sqrt().numpy()
    return Basins(
        timesteps=timesteps.numpy(),
        recovery=recovery,
        critical_time=np.where(passed > 0, timesteps.numpy()[last], 0),
        radius=radius,
        log_volume=ball_log_volume(radius, dimension),
    )
