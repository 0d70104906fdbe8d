r"""Attractors of the energy at one noise level: where denoising leaves a state as it is.

    x ← α x̂₀(x, t) = x − σ ε̂(x, t) = x − σ² ∇E(x)

is a descent of the energy with step σ². For the exact denoiser of a finite set it is the update of a dense associative
memory with softmax activation (Ramsauer et al. 2021, equation 3) and, as mean shift (Comaniciu & Meer 2002), it
converges; its fixed points are the stored points while σ is small, and blends of several where they are too near.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from audit.model.denoiser import Condition, Denoiser, repeat


@dataclass(frozen=True)
class Attractors:
    """States that descents end in.

    Attributes:
        centers: mean of each cluster of end points, (m, *latent shape), the most visited first.
        visits: descents that ended there, (m,).
        of_start: index of the attractor of each start, (n,).
        residual: largest ‖σε̂‖ over the end points: how far one more step would move.
    """

    centers: Tensor
    visits: NDArray[np.int64]
    of_start: NDArray[np.int64]
    residual: float


@torch.inference_mode()
def descend(
    denoiser: Denoiser, x: Tensor, t: int, condition: Condition, *, steps: int = 1000, tolerance: float = 1e-6
) -> tuple[Tensor, float]:
    """Repeat the update until nothing moves.

    Args:
        denoiser: ε̂.
        x: starts, (n, *latent shape).
        t: timestep.
        condition: of the prompt, one row.
        steps: at most.
        tolerance: length of a step under which a point has arrived; never less than what x is rounded to.

    Returns:
        The end points, and the length of the longest step that is left.
    """
    time, many = torch.full((len(x),), t, device=x.device), repeat(condition, len(x))
    _, sigma = denoiser.schedule.at(time, x)
    rounding = 4 * torch.finfo(x.dtype).eps
    for left in range(steps, -1, -1):
        step = sigma * denoiser(x, time, many)
        moved = step.flatten(1).norm(dim=1)
        if left == 0 or bool((moved <= (rounding * x.flatten(1).norm(dim=1)).clamp_min(tolerance)).all()):
            break
        x = x - step
    return x, float(moved.max())


def find_attractors(
    denoiser: Denoiser,
    starts: Tensor,
    t: int,
    condition: Condition,
    *,
    distance: float,
    steps: int = 1000,
    tolerance: float = 1e-6,
) -> Attractors:
    """Descend from every start and cluster where the descents end (average linkage).

    Args:
        denoiser: ε̂.
        starts: (n, *latent shape), n ≥ 1.
        t: timestep.
        condition: of the prompt, one row.
        distance: average ℓ2 distance up to which two clusters of end points are one attractor.
        steps: of a descent, at most.
        tolerance: length of a step under which a point has arrived.
    """
    ends, residual = descend(denoiser, starts, t, condition, steps=steps, tolerance=tolerance)
    flat = ends.flatten(1).cpu().double().numpy()
    labels = np.ones(1, dtype=np.int64)
    if len(flat) > 1:
        labels = fcluster(linkage(flat, "average"), distance, "distance")
    names, of_start, visits = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(-visits, kind="stable")
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    centers = torch.stack([ends[torch.as_tensor(of_start == index)].mean(0) for index in order])
    return Attractors(centers, visits[order], rank[of_start], residual)
