"""What is measured of an image that already exists: beside the trace and the neighbours, whether it comes back.

Two things come back by themselves. Little noise changes no image: the last level at which D(ẑ₀ + (σ/α)ε), without any
denoising, is still the same image is the *noise time*. And what all seeds lead to is reached from anywhere: samples of
the prompt tell how often. An image lies in a basin (see `audit.evidence.basin`) where it comes back from beyond the
noise time. Where it does not even come back from within it, the prompt leads away from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.evidence.basin import BasinSettings, measure_basins
from audit.evidence.screening import Screening
from audit.evidence.smoothed import SmoothedTrace
from audit.model.denoiser import Condition, Denoiser
from audit.model.sampling import SamplerSettings, draw_noise, set_timesteps

#: Trials of the basin, the share of them that must come back, and levels at most.
TRIALS, SHARE, LEVELS = 4, 0.75, 10


@dataclass(frozen=True)
class Basin:
    """Whether an image comes back.

    Attributes:
        timesteps: the noise levels tried, ascending, (levels,).
        recovery: share of the trials that came back, (levels,); NaN beyond the first level from which too few did.
        critical_time: last timestep that it comes back from; 0 where not even from the first.
        noise_time: last timestep whose noise alone leaves it the same image; 0 where not even the first does.
        log_volume: of the ball of the noise at the critical time, in nats.
    """

    timesteps: NDArray[np.int64]
    recovery: NDArray[np.float64]
    critical_time: int
    noise_time: int
    log_volume: float

    @property
    def found(self) -> bool:
        """Whether the image comes back from where noise had made it another one."""
        return self.critical_time > self.noise_time

    @property
    def led_away(self) -> bool:
        """Whether the way back leads elsewhere although noise alone had changed nothing."""
        return self.critical_time < self.noise_time


@dataclass(frozen=True)
class Found:
    """What was measured of an image.

    Attributes:
        reconstruction: distance to D(E(image)).
        near: distance to the nearest reference; inf when no pixels were compared.
        draws: distances to the samples drawn, (draws,).
        basin: whether it comes back.
        screening: of the prompt; None without one, and where the checkpoint has no contrast.
        smoothed: the trace.
        prompted: whether there was a prompt.
    """

    reconstruction: float
    near: float
    draws: NDArray[np.float64]
    basin: Basin
    screening: Screening | None
    smoothed: SmoothedTrace
    prompted: bool


def stride(steps: int) -> int:
    """Steps between two levels."""
    return -(-steps // LEVELS)


def measure_return(
    denoiser: Denoiser,
    scheduler: Callable[[], Any],
    sampler: SamplerSettings,
    latent: Tensor,
    condition: Condition,
    unconditional: Condition,
    same: Callable[[Tensor], Tensor],
    *,
    seed: int,
) -> Basin:
    """Noise an image more and more until it no longer comes back.

    Args:
        denoiser: ε̂.
        scheduler: makes a fresh scheduler.
        sampler: the trajectory whose levels and steps are used.
        latent: of the image, (1, *latent shape).
        condition: of the prompt, one row.
        unconditional: of the empty or negative prompt, one row.
        same: tells which latents are the same image, (n,), bool.
        seed: of the noise.
    """
    ready = scheduler()
    set_timesteps(ready, sampler.steps)
    settings = BasinSettings(TRIALS, SHARE, stride(len(ready.timesteps)))
    basins = measure_basins(
        denoiser, scheduler, sampler, latent, condition, unconditional, lambda ends, _: same(ends), settings, seed=seed
    )
    noise = draw_noise(range(seed, seed + TRIALS), latent.shape[1:])[0].to(latent)
    unchanged = 0
    for timestep in basins.timesteps.tolist():
        alpha, sigma = denoiser.schedule.at(torch.tensor([timestep]), latent)
        if float(same(latent + sigma / alpha * noise).float().mean()) < SHARE:
            break
        unchanged = timestep
    return Basin(
        timesteps=basins.timesteps,
        recovery=basins.recovery[0],
        critical_time=int(basins.critical_time[0]),
        noise_time=unchanged,
        log_volume=float(basins.log_volume[0]),
    )
