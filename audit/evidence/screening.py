r"""Screening on pure noise: how differently the network predicts with and without the prompt, before any image is made.

With ε_Δ = ε̂(z, t, prompt) − ε̂(z, t, empty prompt) on pure noise z, whatever the timestep, three measurements a noise
level (where hardly any signal is left, ε_Δ is what `audit.model.denoiser.Denoiser.contrast` says):

    contrast    ‖ε_Δ‖₂/√d                            large where the prompt leads to one image (Wen et al. 2024)
    curvature   σ ‖∂ε_Δ/∂x · ε_Δ‖₂ / ‖ε_Δ‖₂          by a forward difference, no autograd (Jeon et al. 2025)
    alignment   mean over pixels of the cosine over channels of ε_Δ with ε̂(z, t, empty prompt)
                                                     (Asthana & Belagiannis 2026)

The noise is the same for all prompts, so that the unconditional branch is evaluated once for all of them: a prompt
then costs one evaluation a noise and level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.evidence.curvature import DIFFERENCE_STEP
from audit.model.denoiser import Condition, Denoiser, concatenate, repeat, select
from audit.model.sampling import draw_noise
from audit.reference.images import in_chunks

#: σ/√(α² + σ²) of the noise levels at which prompts are screened. High up the contrast tells where one image is all
#: that a prompt leads to; half-way down, where the prediction on pure noise is far from what was trained, whether few
#: of them are.
NOISE_LEVELS = (0.92, 0.5)
#: Seeds of the noise: the same for all prompts of all checkpoints, and none that users are likely to audit with.
SEEDS = range(7_000_000_000, 7_000_000_004)
#: Evaluations that a prompt takes at these.
EVALUATIONS = len(NOISE_LEVELS) * len(SEEDS)


@dataclass(frozen=True)
class Contrast:
    """What a prompt changes in the prediction at some points.

    Attributes:
        unconditional: ε̂ under the empty prompt, (n, *latent shape).
        difference: ε_Δ, likewise.
        timestep: of all points.
        sigma: its σ.
    """

    unconditional: Tensor
    difference: Tensor
    timestep: int
    sigma: float

    @property
    def norm(self) -> Tensor:
        """‖ε_Δ‖₂, (n,)."""
        return self.difference.flatten(1).norm(dim=1)

    @property
    def alignment(self) -> Tensor:
        """Mean over pixels of the cosine over channels of ε_Δ with the unconditional prediction, (n,), in [-1, 1]."""
        return _alignment(self.unconditional, self.difference)


def _alignment(unconditional: Tensor, difference: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(unconditional, difference, dim=1).flatten(1).mean(1)


def measure_contrast(
    denoiser: Denoiser, x: Tensor, timestep: int, condition: Condition, unconditional: Condition
) -> Contrast:
    """ε_Δ at points: 2 evaluations each.

    Args:
        denoiser: ε̂.
        x: points, (n, *latent shape).
        timestep: of all points.
        condition: of the prompt, one row, or one for every point.
        unconditional: of the empty prompt, one row.
    """
    n = len(x)
    if len(next(iter(condition.values()))) != n:
        condition = repeat(condition, n)
    t = torch.full((n,), timestep)
    rows = concatenate([condition, repeat(unconditional, n)])
    wanted, other = denoiser.native(torch.cat([x, x]), t.repeat(2), rows).chunk(2)
    return Contrast(
        denoiser.noise(x, t, other),
        denoiser.contrast(t, wanted, other),
        timestep,
        float(denoiser.schedule.sigmas[timestep]),
    )


def contrast_curvature(
    denoiser: Denoiser, x: Tensor, found: Contrast, condition: Condition, unconditional: Condition
) -> Tensor:
    """‖∂ε_Δ/∂x · u‖₂ at u = ε_Δ/‖ε_Δ‖₂ by a forward difference, (n,): 2 evaluations a point.

    Args:
        denoiser: ε̂.
        x: the points that `found` is of.
        found: from `measure_contrast`.
        condition: as there.
        unconditional: as there.
    """
    shape = (-1, *([1] * (x.dim() - 1)))
    direction = found.difference / found.norm.clamp_min(torch.finfo(x.dtype).tiny).reshape(shape)
    # A forward difference has an error ∝ step + machine epsilon/step.
    step = found.sigma * DIFFERENCE_STEP * torch.finfo(x.dtype).eps ** 0.5
    moved = measure_contrast(denoiser, x + step * direction, found.timestep, condition, unconditional)
    return (moved.difference - found.difference).flatten(1).norm(dim=1) / step


@dataclass(frozen=True)
class Screening:
    """What screening measured of a prompt.

    Attributes:
        timesteps: of the noise levels.
        sigmas: their σ.
        contrast: ‖ε_Δ‖₂/√d of every noise and level, (n, levels).
        alignment: likewise, in [-1, 1].
    """

    timesteps: tuple[int, ...]
    sigmas: tuple[float, ...]
    contrast: NDArray[np.float64]
    alignment: NDArray[np.float64]


class Screen:
    """Screens prompts at one latent size, and knows what the network predicts there without a prompt.

    Args:
        denoiser: ε̂.
        latent_shape: of one row.
        unconditional: of the empty prompt, one row.
        noise_levels: σ/√(α² + σ²) of each level; the nearest training timestep is used.
        seeds: of the noise.
        device: where latents live.
        dtype: of latents.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        latent_shape: Sequence[int],
        unconditional: Condition,
        *,
        noise_levels: Sequence[float] = NOISE_LEVELS,
        seeds: Sequence[int] = SEEDS,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.timesteps = tuple(denoiser.schedule.timestep_at_level(level) for level in noise_levels)
        n, levels = len(seeds), len(self.timesteps)
        noise = draw_noise(seeds, latent_shape)[0].to(device, dtype)
        #: Every noise at every level, (n · levels, *latent shape), the levels of a noise beside each other.
        self._times = torch.tensor(self.timesteps).repeat(n)
        self._points = denoiser.schedule.pure_noise(noise.repeat_interleave(levels, 0), self._times)
        with torch.inference_mode():
            self._known = denoiser.native(self._points, self._times, repeat(unconditional, n * levels))

    @property
    def evaluations(self) -> int:
        """Of one prompt."""
        return len(self._times)

    @torch.inference_mode()
    def measure(self, denoiser: Denoiser, prompts: Condition, *, rows: int = 256) -> list[Screening]:
        """Screen prompts, in shared batches: `evaluations` each.

        Args:
            denoiser: ε̂, the one that this was made with or one that stands in for it.
            prompts: one row per prompt.
            rows: most rows in one call of the denoiser.
        """
        count, each = len(next(iter(prompts.values()))), self.evaluations
        norms, cosines = [], []
        for part in in_chunks(count * each, rows):
            index = torch.arange(part.start, part.stop)
            place, owner = index % each, index // each
            x, t, known = self._points[place], self._times[place], self._known[place]
            found = denoiser.contrast(t, denoiser.native(x, t, select(prompts, owner)), known)
            norms.append(found.flatten(1).cpu().double().square().mean(1).sqrt())
            cosines.append(_alignment(denoiser.noise(x, t, known), found).cpu().double())
        shape = (count, -1, len(self.timesteps))
        contrast, alignment = torch.cat(norms).reshape(shape).numpy(), torch.cat(cosines).reshape(shape).numpy()
        sigmas = tuple(float(denoiser.schedule.sigmas[t]) for t in self.timesteps)
        return [Screening(self.timesteps, sigmas, contrast[i], alignment[i]) for i in range(count)]
