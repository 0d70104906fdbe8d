"""All that was measured of a prompt, as it comes in: group by group of its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from audit.evidence.curvature import CurvatureLevel
from audit.evidence.neighbors import Neighbors
from audit.evidence.screening import Screening
from audit.evidence.smoothed import SmoothedTrace
from audit.evidence.stability import Stability, measure_stability
from audit.model.sampling import Samples


@dataclass(frozen=True)
class Evidence:
    """What was measured of a prompt.

    Attributes:
        screening: on pure noise; None where the checkpoint has no contrast.
        stability: of the samples.
        smoothed: at the first of them.
        neighbors: nearest references; None when nothing was searched.
        curvature: one entry per noise level; empty when it was not measured. It is shown, and decides nothing.
    """

    screening: Screening | None
    stability: Stability
    smoothed: SmoothedTrace
    neighbors: Neighbors | None = None
    curvature: tuple[CurvatureLevel, ...] = ()


@dataclass(frozen=True)
class Draws:
    """Samples of one prompt, and what was measured at each.

    Attributes:
        samples: n of them.
        images: decoded, (n, channels, height, width) in [-1, 1].
        vectors: in the space of pixel distances, (n, d).
        smoothed: at the first samples, or at all of them.
        neighbors: nearest references; None when nothing was searched.
    """

    samples: Samples
    images: Tensor
    vectors: Tensor
    smoothed: SmoothedTrace
    neighbors: Neighbors | None

    def __len__(self) -> int:
        return len(self.samples)

    @staticmethod
    def concatenate(groups: Sequence[Draws]) -> Draws:
        """Groups of the same prompt and settings, one after the other."""
        found = [group.neighbors for group in groups if group.neighbors is not None]
        smoothed = groups[0].smoothed
        return Draws(
            samples=Samples.concatenate([group.samples for group in groups]),
            images=torch.cat([group.images for group in groups]),
            vectors=torch.cat([group.vectors for group in groups]),
            smoothed=replace(smoothed, values=np.concatenate([group.smoothed.values for group in groups])),
            neighbors=Neighbors.concatenate(found) if found else None,
        )

    def first(self, n: int) -> Draws:
        """The first n samples alone."""
        samples, found = self.samples, self.neighbors
        return Draws(
            samples=Samples(
                seeds=samples.seeds[:n],
                latents=samples.latents[:n],
                displacements=samples.displacements[:n],
                contrasts=samples.contrasts[:n],
                contrast_map=None if samples.contrast_map is None else samples.contrast_map[:n],
            ),
            images=self.images[:n],
            vectors=self.vectors[:n],
            smoothed=replace(self.smoothed, values=self.smoothed.values[:n]),
            neighbors=None if found is None else found.first(n),
        )

    def evidence(self, screening: Screening | None, delta_s: float) -> Evidence:
        """What they show, with the screening of their prompt.

        Args:
            screening: of the prompt; None where there is no contrast.
            delta_s: distance up to which two samples are the same state.
        """
        stability = measure_stability(self.vectors, delta_s, self.samples.displacements, self.samples.latents)
        return Evidence(screening, stability, self.smoothed, self.neighbors)
