r"""Screening on pure noise: how differently the network predicts with and without the prompt, before any image is made.

With ε_Δ = ε̂(z, t, prompt) − ε̂(z, t, empty prompt) on pure noise z, whatever the timestep, three measurements a noise
level:

    contrast    ‖ε_Δ‖₂/√d                            large where the prompt leads to one image (Wen et al. 2024)
    curvature   σ ‖∂ε_Δ/∂x · ε_Δ‖₂ / ‖ε_Δ‖₂          by a forward difference, no autograd (Jeon et al. 2025)
    alignment   mean over pixels of the cosine over channels of ε_Δ with ε̂(z, t, empty prompt)
                                                     (Asthana & Belagiannis 2026)

The noise is the same for all prompts, so that the unconditional branch is evaluated once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audit.evidence.curvature import DIFFERENCE_STEP
from audit.model.denoiser import Condition, Denoiser, concatenate, repeat


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
        return torch.nn.functional.cosine_similarity(self.unconditional, self.difference, dim=1).flatten(1).mean(1)


def measure_contrast(
    denoiser: Denoiser,
    x: Tensor,
    timestep: int,
    condition: Condition,
    unconditional: Condition,
    known: Tensor | None = None,
) -> Contrast:
    """ε_Δ at points: 2 evaluations each, or 1 where the unconditional prediction is known.

    Args:
        denoiser: ε̂.
        x: points, (n, *latent shape).
        timestep: of all points.
        condition: of the prompt, one row, or one for every point.
        unconditional: of the empty prompt, one row.
        known: the unconditional prediction there.
    """
    n = len(x)
    if len(next(iter(condition.values()))) != n:
        condition = repeat(condition, n)
    if known is None:
        rows = concatenate([condition, repeat(unconditional, n)])
        wanted, other = denoiser(torch.cat([x, x]), torch.full((2 * n,), timestep), rows).chunk(2)
    else:
        wanted, other = denoiser(x, torch.full((n,), timestep), condition), known
    return Contrast(other, wanted - other, timestep, float(denoiser.schedule.sigmas[timestep]))


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
