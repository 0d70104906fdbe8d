"""Attractor stability: seeds differ, the prompt is fixed. Where do they meet?

A mode is a cluster of samples linked by steps of at most δ_s (single linkage), so that a sample recurs exactly when
its nearest other sample is within δ_s: the paper's rule for returning to a state (Pham et al. 2025, section on the
transition). Two seeds meet with probability

    p = 2/(n(n−1)) Σ_{i<j} 1[‖x_i − x_j‖ ≤ δ_s],

the collision rate, an unbiased (U-statistic) estimate of Σ_m p_m² over the modes m of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from torch import Tensor


@dataclass(frozen=True)
class Mode:
    """An attractor, as far as the seeds drawn show it.

    Attributes:
        members: sample indices, the medoid first.
        share: of all samples, in (0, 1].
    """

    members: tuple[int, ...]
    share: float

    @property
    def recurs(self) -> bool:
        """Whether another sample returned to it."""
        return len(self.members) > 1


@dataclass(frozen=True)
class Stability:
    """What n seeds say about recurrence.

    Attributes:
        nearest_sample: index of each sample's nearest other sample, (n,); -1 when there is only one sample.
        nearest_sample_distance: its ℓ2 distance, (n,); inf when there is only one sample.
        modes: largest first.
        mode_of: mode index of each sample, (n,).
        meeting_rate: p above, in [0, 1]; NaN for one sample.
        final_step: ‖z_1 − z_0‖ of the sampler's last step, relative to ‖z_0‖, mean over samples: how much the
            trajectories still moved at their end.
    """

    nearest_sample: NDArray[np.int64]
    nearest_sample_distance: NDArray[np.float64]
    modes: tuple[Mode, ...]
    mode_of: NDArray[np.int64]
    meeting_rate: float
    final_step: float

    @property
    def recurring_share(self) -> float:
        """Share of the samples drawn whose mode holds another sample."""
        return sum(mode.share for mode in self.modes if mode.recurs)


def pairwise_distances(vectors: Tensor | NDArray[np.float32]) -> NDArray[np.float64]:
    """ℓ2 distances between rows, (n, n), with an exact zero diagonal."""
    double = torch.as_tensor(vectors).double()
    return torch.cdist(double, double, compute_mode="donot_use_mm_for_euclid_dist").numpy()


def measure_stability(
    vectors: Tensor, delta_s: float, displacements: Tensor | None = None, latents: Tensor | None = None
) -> Stability:
    """Cluster samples and count how often seeds meet.

    Args:
        vectors: samples in the space of pixel distances, (n, d).
        delta_s: distance up to which two samples are the same state.
        displacements: of the trajectories, (n, steps), as `audit.model.sampling.Samples` has them.
        latents: the samples' latents, (n, ...), for the scale of the displacements.
    """
    final_step = float("nan")
    if displacements is not None and latents is not None:
        final_step = float((displacements[:, -1] / latents.cpu().flatten(1).norm(dim=1)).mean())
    return cluster(pairwise_distances(vectors), delta_s, final_step)


def cluster(distances: NDArray[np.float64], delta_s: float, final_step: float = float("nan")) -> Stability:
    """`measure_stability` of samples whose distances are known.

    Args:
        distances: between every two samples, (n, n).
        delta_s: distance up to which two samples are the same state.
        final_step: goes into the result as it is.
    """
    n = len(distances)
    off = distances + np.diag(np.full(n, np.inf))
    count, labels = connected_components(off <= delta_s, directed=False)
    clusters = [np.flatnonzero(labels == label) for label in range(count)]
    clusters.sort(key=lambda cluster: (-len(cluster), cluster[0]))
    modes, mode_of = [], np.empty(n, dtype=np.int64)
    for index, cluster in enumerate(clusters):
        medoid = cluster[distances[np.ix_(cluster, cluster)].sum(1).argmin()]
        members = (int(medoid), *(int(m) for m in cluster if m != medoid))
        modes.append(Mode(members, len(cluster) / n))
        mode_of[cluster] = index
    return Stability(
        nearest_sample=off.argmin(1) if n > 1 else np.full(n, -1),
        nearest_sample_distance=off.min(1),
        modes=tuple(modes),
        mode_of=mode_of,
        meeting_rate=float((off <= delta_s).sum() / (n * (n - 1))) if n > 1 else float("nan"),
        final_step=final_step,
    )
